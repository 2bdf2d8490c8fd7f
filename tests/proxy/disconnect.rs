//! What becomes of an answer whose client has left.

use std::time::Duration;

use crate::support::{CHAT, Proxy, Raw, Setup, Upstream, request, response};

fn drains(upstream: &Upstream) -> Proxy {
    Setup::permits(1).set("upstream.0.on_disconnect", "drain").before(upstream.address)
}

#[tokio::test]
async fn it_is_cancelled_by_default() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let client = proxy.chat(&[]).await;
    let mut call = upstream.next().await;
    drop(client);
    call.wire.ends().await;
    proxy.until("tidegate_in_flight", "", |n| n == 0.0).await;
}

#[tokio::test]
async fn drained_it_is_read_to_its_end_with_its_permit_and_its_connection_lives_on() {
    let mut upstream = Upstream::start().await;
    let proxy = drains(&upstream);
    let mut client = proxy.chat(&[]).await;
    let mut call = upstream.next().await;
    call.wire.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    assert_eq!(client.head().await.status(), 200);
    drop(client);
    // the next one waits for the permit
    let mut next = proxy.chat(&[]).await;
    proxy.queued(1).await;
    assert!(call.wire.is_silent().await, "the connection stays open");
    assert_eq!(proxy.metric("tidegate_in_flight", "").await, 1.0);
    call.raw("and it").await;
    let second = upstream.next().await;
    assert_eq!(second.connection, 1);
    second.answer(200, &[], b"ok").await;
    assert_eq!(next.response().await.text(), "ok");
    assert_eq!(proxy.metric("tidegate_requests_total", "outcome=\"cancelled\"").await, 1.0);
}

#[tokio::test]
async fn also_where_the_client_left_before_the_head() {
    let mut upstream = Upstream::start().await;
    let proxy = drains(&upstream);
    let client = proxy.chat(&[]).await;
    let mut call = upstream.next().await;
    drop(client);
    let mut next = proxy.chat(&[]).await;
    proxy.queued(1).await;
    assert!(call.wire.is_silent().await, "the request goes on");
    call.raw(response(200, &[], b"for nobody")).await;
    upstream.next().await.answer(200, &[], b"ok").await;
    assert_eq!(next.response().await.text(), "ok");
    proxy.until("tidegate_in_flight", "", |n| n == 0.0).await;
}

#[tokio::test]
async fn but_not_for_ever() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1)
        .set("upstream.0.on_disconnect", "drain")
        .set("upstream.0.drain_limit", "200ms")
        .before(upstream.address);
    for head in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"] {
        let mut client = proxy.chat(&[]).await;
        let mut call = upstream.next().await;
        call.wire.send(head).await;
        if !head.is_empty() {
            client.head().await;
        }
        drop(client);
        call.wire.ends().await;
        proxy.until("tidegate_in_flight", "", |n| n == 0.0).await;
    }
}

#[tokio::test]
async fn a_drain_of_the_process_waits_for_it_and_at_last_ends_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1)
        .set("upstream.0.on_disconnect", "drain")
        .set("listen.drain_timeout", "300ms")
        .before(upstream.address);
    let client = proxy.chat(&[]).await;
    let mut call = upstream.next().await;
    drop(client);
    assert!(call.wire.is_silent().await);
    let clock = tidegate::clock::Clock::start();
    proxy.stop().drain();
    proxy.join().await;
    assert!(clock.now().since(Default::default()) >= Duration::from_millis(250));
    call.wire.ends().await;
}

#[tokio::test]
async fn what_tells_of_no_usage_is_not_read_for_nobody() {
    let mut upstream = Upstream::start().await;
    let proxy = drains(&upstream);
    for head in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"] {
        let mut client = proxy.connect().await;
        client.send(request("GET", "/v1/files/f/content", &[], b"")).await;
        let mut call = upstream.next().await;
        call.wire.send(head).await;
        if !head.is_empty() {
            client.head().await;
        }
        drop(client);
        call.wire.ends().await;
    }
}

#[tokio::test]
async fn what_was_never_sent_is_not_sent_for_nobody() {
    let upstream = Raw::start().await;
    let port = upstream.address.port();
    let pem = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap().cert.pem();
    let file = std::env::temp_dir().join(format!("tidegate-ca-{}-{port}.pem", std::process::id()));
    std::fs::write(&file, pem).unwrap();
    let proxy = Setup::permits(1)
        .set("upstream.0.on_disconnect", "drain")
        .set("upstream.0.ca_file", file.display())
        .at(&format!("https://localhost:{port}/v1"));
    std::fs::remove_file(&file).unwrap();
    let client = proxy.chat(&[]).await;
    let mut handshake = upstream.accept().await;
    assert!(handshake.wait().await, "the other side wants TLS");
    drop(client);
    proxy.in_flight(0).await;
    handshake.rest().await;
}

#[tokio::test]
async fn a_body_counts_for_as_long_as_it_is_held() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4)
        .set("upstream.0.on_disconnect", "drain")
        .set("limits.body_bytes", CHAT.len() + 1)
        .set("limits.body_memory", CHAT.len() + 1)
        .before(upstream.address);
    let client = proxy.chat(&[]).await;
    let mut call = upstream.next().await;
    drop(client);
    assert!(call.wire.is_silent().await, "the request goes on");
    let answer = proxy.chat(&[]).await.response().await;
    assert_eq!((answer.status(), answer.code().as_str()), (503, "overloaded"));
    call.answer(200, &[], b"for nobody").await;
    proxy.in_flight(0).await;
    let mut client = proxy.chat(&[]).await;
    upstream.next().await.answer(200, &[], b"ok").await;
    assert_eq!(client.response().await.status(), 200);
}

#[tokio::test]
async fn who_closes_at_the_last_event_had_all_of_it() {
    for policy in ["cancel", "drain"] {
        let mut upstream = Upstream::start().await;
        let proxy = Setup::permits(1).set("upstream.0.on_disconnect", policy).before(upstream.address);
        let mut client = proxy.chat(&[]).await;
        let mut call = upstream.next().await;
        let events = "data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        call.wire.send(format!("{head}{:x}\r\n{events}\r\n", events.len())).await;
        client.head().await;
        assert_eq!(client.chunk().await, events.as_bytes());
        // the body's end is still on its way
        drop(client);
        proxy.until("tidegate_requests_total", "outcome=\"success\"", |n| n == 1.0).await;
        assert_eq!(proxy.metric("tidegate_tokens_total", "kind=\"output\"").await, 2.0);
        assert_eq!(proxy.metric("tidegate_requests_total", "outcome=\"cancelled\"").await, 0.0);
        proxy.in_flight(0).await;
    }
}
