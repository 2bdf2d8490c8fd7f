//! The graceful end.

use std::time::Duration;

use tokio::net::TcpStream;

use crate::support::{CHAT_PATH, CHAT_STREAM, JSON, Proxy, Raw, Setup, Upstream, Wire, request};

async fn streaming(proxy: &Proxy, upstream: &Raw) -> (Wire, Wire) {
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[JSON], CHAT_STREAM)).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    wire.send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    wire.send("9\r\ndata: 1\n\n\r\n").await;
    client.head().await;
    client.chunk().await;
    (client, wire)
}

/// Nobody can connect any more.
async fn closed(proxy: &Proxy) {
    let refused = async {
        loop {
            match TcpStream::connect(proxy.address).await {
                Err(_) => return,
                // it was in the backlog: answered or closed, but not left alone
                Ok(stream) => {
                    Wire::new(stream).rest().await;
                }
            }
        }
    };
    crate::support::within("the sockets to close", refused).await;
}

#[tokio::test]
async fn a_drain_finishes_what_streams_refuses_what_waits_and_ends() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let (mut client, mut wire) = streaming(&proxy, &upstream).await;
    let mut waiting = proxy.chat(&[]).await;
    proxy.queued(1).await;
    let mut idle = proxy.connect().await;
    proxy.stop().drain();
    let refused = waiting.response().await;
    assert_eq!((refused.status(), refused.code().as_str()), (503, "draining"));
    assert_eq!(refused.get("x-tidegate-reason"), Some("draining"));
    assert_eq!(refused.error("type"), "server_error");
    assert_eq!(refused.get("x-should-retry"), Some("true"));
    assert!(refused.get("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    waiting.ends().await;
    idle.ends().await;
    let ready = proxy.admin("/readyz").await;
    assert_eq!((ready.status(), ready.text().as_str()), (503, "draining\n"));
    assert_eq!(proxy.admin("/healthz").await.status(), 200);
    closed(&proxy).await;
    for n in 0..5 {
        wire.send(format!("9\r\ndata: {n}\n\n\r\n")).await;
        assert_eq!(client.chunk().await, format!("data: {n}\n\n").as_bytes());
    }
    wire.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"");
    client.rest().await;
    proxy.join().await;
}

#[tokio::test]
async fn a_drain_lets_those_who_wait_have_their_turn_if_so_configured() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).set("queue.on_drain", "finish").before(upstream.address);
    let mut first = proxy.chat(&[]).await;
    let call = upstream.next().await;
    let mut waiting = proxy.chat(&[]).await;
    proxy.queued(1).await;
    proxy.stop().drain();
    closed(&proxy).await;
    call.answer(200, &[], b"1").await;
    assert_eq!(first.response().await.text(), "1");
    upstream.next().await.answer(200, &[], b"2").await;
    let response = waiting.response().await;
    assert_eq!(response.text(), "2");
    waiting.ends().await;
    proxy.join().await;
}

#[tokio::test]
async fn a_drain_that_takes_too_long_is_cut_off() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(4).set("listen.drain_timeout", "300ms").before(upstream.address);
    let (mut client, mut wire) = streaming(&proxy, &upstream).await;
    let clock = tidegate::clock::Clock::start();
    proxy.stop().drain();
    assert_eq!(client.try_chunk().await.filter(|c| c.is_empty()), None, "cut off, not ended");
    client.rest().await;
    wire.rest().await;
    proxy.join().await;
    let took = clock.now().since(Default::default());
    assert!(took >= Duration::from_millis(250) && took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn stopping_at_once_waits_for_nobody() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(4).before(upstream.address);
    let (mut client, _wire) = streaming(&proxy, &upstream).await;
    let clock = tidegate::clock::Clock::start();
    proxy.stop().now();
    client.rest().await;
    proxy.join().await;
    assert!(clock.now().since(Default::default()) < Duration::from_secs(2));
}

#[tokio::test]
async fn a_drain_waits_for_a_tunnel_and_ends_it_at_the_timeout() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(4).set("listen.drain_timeout", "1500ms").before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("GET", "/v1/realtime", &["connection: upgrade", "upgrade: websocket"], b"")).await;
    let mut wire = upstream.accept().await;
    wire.head().await;
    wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 101);
    proxy.stop().drain();
    closed(&proxy).await;
    client.send("still").await;
    assert_eq!(wire.take(5).await, b"still");
    client.rest().await;
    wire.rest().await;
    proxy.join().await;
}

#[tokio::test]
async fn a_request_on_an_open_connection_that_comes_during_the_drain_is_not_left_without_an_answer() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4).before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let call = upstream.next().await;
    // pipelined behind one that runs
    client.send(request("GET", "/v1/models", &[], b"")).await;
    proxy.stop().drain();
    closed(&proxy).await;
    call.answer(200, &[], b"first").await;
    let response = client.response().await;
    assert_eq!(response.text(), "first");
    assert_eq!(response.get("connection"), Some("close"), "the client must know that this was the last");
    client.ends().await;
    proxy.join().await;
}
