//! Clients that are slow, silent, or too many.

use std::time::Duration;

use crate::support::{CHAT_PATH, CHAT_STREAM, JSON, Raw, Setup, Upstream, Wire, request};

#[tokio::test]
async fn a_head_that_drips_is_ended_and_counted() {
    let upstream = Upstream::start().await;
    let proxy = Setup::default().set("limits.header_timeout", "300ms").before(upstream.address);
    let mut client = proxy.connect().await;
    client.send("GET /v1/models HTTP/1.1\r\nhost: a\r\nx-drip: ").await;
    let mut pace = tokio::time::interval(Duration::from_millis(40));
    let dripping = async {
        for _ in 0..200 {
            pace.tick().await;
            if !client.try_send(b"x").await {
                return true;
            }
        }
        false
    };
    assert!(dripping.await, "a byte now and then keeps a head open for ever");
    assert_eq!(proxy.metric("tidegate_connection_faults_total", "header_timeout").await, 1.0);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_ended() {
    let upstream = Upstream::start().await;
    let proxy = Setup::default().set("limits.header_timeout", "200ms").before(upstream.address);
    let mut silent = proxy.connect().await;
    silent.ends().await;
    // neither does half of HTTP/2's preface help
    let mut half = proxy.connect().await;
    half.send("PRI * HTTP/2.0\r\n\r\n").await;
    half.ends().await;
}

#[tokio::test]
async fn a_second_head_that_does_not_come_is_ended_after_the_head_timeout() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("limits.header_timeout", "200ms").before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("GET", "/v1/models", &[], b"")).await;
    upstream.next().await.answer(200, &[], b"ok").await;
    assert_eq!(client.response().await.text(), "ok");
    client.send("GET /v1/models HTTP/1.1\r\nhost:").await;
    // 75 s of keep-alive are not for this one
    client.rest().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_keep_alive_idle_and_not_after_the_head_timeout() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("limits.header_timeout", "100ms")
        .set("limits.keep_alive_idle", "500ms")
        .before(upstream.address);
    let mut client = proxy.connect().await;
    let clock = tidegate::clock::Clock::start();
    client.send(request("GET", "/v1/models", &[], b"")).await;
    upstream.next().await.answer(200, &[], b"ok").await;
    client.response().await;
    client.ends().await;
    let lived = clock.now().since(Default::default());
    assert!(lived >= Duration::from_millis(450), "{lived:?}");
    assert_eq!(proxy.metric("tidegate_connection_faults_total", "").await, 0.0, "that is no fault");
}

#[tokio::test]
async fn a_connection_that_idles_after_an_answer_of_our_own_lives_as_long() {
    let upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("limits.header_timeout", "100ms")
        .set("limits.keep_alive_idle", "500ms")
        .before(upstream.address);
    let mut client = proxy.connect().await;
    let clock = tidegate::clock::Clock::start();
    client.send("GET /v1/models HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 400);
    client.ends().await;
    let lived = clock.now().since(Default::default());
    assert!(lived >= Duration::from_millis(450) && lived < Duration::from_secs(3), "{lived:?}");
}

#[tokio::test]
async fn a_response_that_takes_longer_than_both_timeouts_is_not_ended_by_them() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("limits.header_timeout", "100ms")
        .set("limits.keep_alive_idle", "100ms")
        .set("limits.body_timeout", "100ms")
        .set("limits.write_timeout", "100ms")
        .before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let call = upstream.next().await;
    assert!(tokio::time::timeout(Duration::from_millis(400), client.head()).await.is_err());
    call.answer(200, &[], b"late").await;
    assert_eq!(client.response().await.text(), "late");
}

/// Fills the pipe until nobody takes more.
async fn pour(wire: &mut Wire) {
    let piece = vec![b'x'; 64 << 10];
    let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
    while wire.try_send(&chunk).await {}
}

#[tokio::test]
async fn a_client_that_reads_nothing_gives_its_permit_back_after_the_write_timeout() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(1).set("limits.write_timeout", "300ms").before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[JSON], CHAT_STREAM)).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
    // ends when the proxy closes it
    pour(&mut wire).await;
    proxy.in_flight(0).await;
    assert_eq!(proxy.metric("tidegate_connection_faults_total", "write_timeout").await, 1.0);
}

#[tokio::test]
async fn a_connection_too_many_is_told_503() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("limits.max_connections", 2).before(upstream.address);
    let mut first = proxy.connect().await;
    let second = proxy.connect().await;
    first.send(request("GET", "/v1/models", &[], b"")).await;
    let call = upstream.next().await;
    let mut third = proxy.connect().await;
    let response = third.response().await;
    assert_eq!((response.status(), response.code().as_str()), (503, "overloaded"));
    assert_eq!(response.get("x-tidegate-reason"), Some("overloaded"));
    assert_eq!(response.get("retry-after"), Some("1"));
    assert_eq!(response.get("x-should-retry"), Some("true"));
    third.ends().await;
    assert_eq!(proxy.metric("tidegate_connection_faults_total", "too_many").await, 1.0);
    // a place that comes free is a place
    call.answer(200, &[], b"ok").await;
    assert_eq!(first.response().await.text(), "ok");
    drop(second);
    loop {
        let mut again = proxy.connect().await;
        again.send(request("GET", "/v1/models", &[], b"")).await;
        let call = tokio::select! {
            call = upstream.next() => call,
            refused = again.try_head() => {
                assert!(refused.is_none_or(|head| head.status() == 503));
                continue;
            }
        };
        call.answer(200, &[], b"ok").await;
        assert_eq!(again.response().await.text(), "ok");
        break;
    }
}

#[tokio::test]
async fn the_503_for_a_connection_too_many_carries_a_request_id_like_every_answer_of_ours() {
    let upstream = Upstream::start().await;
    let proxy = Setup::default().set("limits.max_connections", 1).before(upstream.address);
    let _first = proxy.connect().await;
    let response = proxy.connect().await.response().await;
    assert_eq!(response.status(), 503);
    assert!(response.get("x-tidegate-request-id").is_some(), "{:?}", response.head);
}
