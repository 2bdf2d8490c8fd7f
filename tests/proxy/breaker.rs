//! The breaker: when it opens, what it says, and the one probe that closes it.

use std::net::SocketAddr;

use tidegate::clock::Clock;
use tokio::net::TcpListener;

use crate::support::{CHAT_PATH, Proxy, Raw, Setup, Upstream, nobody};

async fn opened(proxy: &Proxy, failures: usize) {
    for _ in 0..failures {
        assert_eq!(proxy.chat(&[]).await.response().await.status(), 502);
    }
    proxy.breaker("open").await;
}

#[tokio::test]
async fn five_failures_in_a_row_open_it_and_then_the_answer_comes_at_once() {
    let proxy = Setup::default().before(nobody().await);
    assert_eq!(proxy.admin("/readyz").await.status(), 200);
    for _ in 0..4 {
        assert_eq!(proxy.chat(&[]).await.response().await.status(), 502);
    }
    proxy.breaker("closed").await;
    opened(&proxy, 1).await;
    let clock = Clock::start();
    // 20 s are less than the recovery of 30 s
    let response = proxy.chat(&["x-tidegate-deadline-ms: 20000"]).await.response().await;
    assert!(clock.now().since(Default::default()).as_millis() < 1000);
    assert_eq!((response.status(), response.code().as_str()), (503, "upstream_unavailable"));
    assert_eq!(response.get("x-tidegate-reason"), Some("upstream_unavailable"));
    assert_eq!(response.error("type"), "server_error");
    assert_eq!(response.get("x-should-retry"), Some("true"));
    let after: u64 = response.get("retry-after").unwrap().parse().unwrap();
    assert!((28..=30).contains(&after), "{after}");
    let bypassing = proxy.ask("GET", "/v1/models", &[], b"").await;
    assert_eq!((bypassing.status(), bypassing.code().as_str()), (503, "upstream_unavailable"));
    let ready = proxy.admin("/readyz").await;
    assert_eq!((ready.status(), ready.text().as_str()), (503, "breaker open\n"));
    assert_eq!(proxy.admin("/healthz").await.status(), 200);
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "to=\"open\"").await, 1.0);
}

#[tokio::test]
async fn a_recovery_of_more_than_a_minute_is_not_to_be_retried() {
    let proxy = Setup::default().set("breaker.recovery", "90s").before(nobody().await);
    opened(&proxy, 5).await;
    let response = proxy.chat(&[]).await.response().await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.get("x-should-retry"), Some("false"));
}

/// An address where somebody listens later.
async fn later() -> SocketAddr {
    nobody().await
}

#[tokio::test]
async fn requests_wait_for_a_recovery_that_comes_before_their_deadline_and_one_of_them_probes() {
    let address = later().await;
    let proxy = Setup::permits(50).set("breaker.recovery", "400ms").before(address);
    opened(&proxy, 5).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(proxy.chat(&[]).await);
    }
    let accept = async |what: &str| {
        let (stream, _) = crate::support::within(what, listener.accept()).await.unwrap();
        crate::support::Wire::new(stream)
    };
    let mut probe = accept("the probe").await;
    probe.message().await;
    proxy.queued(19).await;
    let second = tokio::time::timeout(std::time::Duration::from_millis(300), listener.accept()).await;
    assert!(second.is_err(), "there is more than one probe");
    assert_eq!(proxy.metric("tidegate_in_flight", "").await, 1.0);
    probe.send(crate::support::response(200, &["connection: close"], b"ok")).await;
    let mut wires = Vec::new();
    for _ in 0..19 {
        let mut wire = accept("those who waited").await;
        wire.message().await;
        wire.send(crate::support::response(200, &["connection: close"], b"ok")).await;
        wires.push(wire);
    }
    for mut client in clients {
        assert_eq!(client.response().await.status(), 200);
    }
    proxy.breaker("closed").await;
    assert_eq!(proxy.admin("/readyz").await.status(), 200);
}

#[tokio::test]
async fn a_probe_that_fails_opens_it_again() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(9)
        .set("breaker.recovery", "200ms")
        .set("breaker.failures", 1)
        .before(upstream.address);
    let mut first = proxy.chat(&[]).await;
    drop(upstream.accept().await);
    assert_eq!(first.response().await.status(), 502);
    let (mut a, mut b) = (proxy.chat(&[]).await, proxy.chat(&[]).await);
    drop(upstream.accept().await);
    // one of the two was the probe; the other waits for the next recovery
    let answered = tokio::select! {
        response = a.response() => { std::mem::swap(&mut a, &mut b); response }
        response = b.response() => response,
    };
    assert_eq!(answered.status(), 502);
    let mut wire = upstream.accept().await;
    wire.message().await;
    wire.send(crate::support::response(200, &[], b"ok")).await;
    assert_eq!(a.response().await.status(), 200);
    proxy.breaker("closed").await;
}

#[tokio::test]
async fn a_probe_whose_client_leaves_gives_its_place_to_the_next() {
    let address = later().await;
    let proxy = Setup::permits(9).set("breaker.recovery", "200ms").before(address);
    opened(&proxy, 5).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let leaves = proxy.chat(&[]).await;
    let (stream, _) = crate::support::within("the probe", listener.accept()).await.unwrap();
    let mut probe = crate::support::Wire::new(stream);
    probe.message().await;
    let mut waits = proxy.chat(&[]).await;
    proxy.queued(1).await;
    drop(leaves);
    probe.ends().await;
    let (stream, _) = crate::support::within("the next probe", listener.accept()).await.unwrap();
    let mut next = crate::support::Wire::new(stream);
    next.message().await;
    next.send(crate::support::response(404, &[], b"alive")).await;
    assert_eq!(waits.response().await.status(), 404);
    proxy.breaker("closed").await;
}

#[tokio::test]
async fn neither_4xx_nor_429_nor_clients_that_leave_ever_open_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(9)
        .set("breaker.failures", 2)
        .set("breaker.min_samples", 2)
        .set("breaker.failure_rate", 0.1)
        .before(upstream.address);
    for status in [400, 401, 404, 413, 422, 429, 429, 429, 429] {
        let mut client = proxy.chat(&[]).await;
        upstream.next().await.answer(status, &[], b"").await;
        assert_eq!(client.response().await.status(), status);
    }
    for _ in 0..6 {
        let client = proxy.chat(&[]).await;
        let mut call = upstream.next().await;
        drop(client);
        call.wire.ends().await;
        proxy.in_flight(0).await;
    }
    for _ in 0..4 {
        let mut client = proxy.connect().await;
        client.send(format!("POST {CHAT_PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n12")).await;
        drop(client);
    }
    proxy.breaker("closed").await;
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "").await, 0.0);
}

#[tokio::test]
async fn an_upload_that_its_client_breaks_off_never_opens_it() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().set("breaker.failures", 1).before(upstream.address);
    for _ in 0..3 {
        let mut client = proxy.connect().await;
        client
            .send("POST /v1/files HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await;
        let mut wire = upstream.accept().await;
        wire.head().await;
        client.send("not a chunk size\r\n").await;
        let response = client.response().await;
        assert_eq!((response.status(), response.code().as_str()), (400, "bad_request"));
        wire.rest().await;
    }
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "").await, 0.0);
}

#[tokio::test]
async fn a_stream_that_breaks_is_a_failure() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().set("breaker.failures", 2).before(upstream.address);
    for _ in 0..2 {
        let mut client = proxy.chat(&[]).await;
        let mut wire = upstream.accept().await;
        wire.message().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        client.head().await;
        client.chunk().await;
        drop(wire);
        client.rest().await;
    }
    proxy.breaker("open").await;
}

#[tokio::test]
async fn server_errors_count_and_a_success_between_them_starts_the_count_anew() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("breaker.failures", 3).before(upstream.address);
    for status in [500, 503, 200, 529, 500] {
        let mut client = proxy.chat(&[]).await;
        upstream.next().await.answer(status, &[], b"").await;
        assert_eq!(client.response().await.status(), status);
    }
    proxy.breaker("closed").await;
    let mut client = proxy.chat(&[]).await;
    upstream.next().await.answer(502, &[], b"").await;
    client.response().await;
    proxy.breaker("open").await;
}

#[tokio::test]
async fn an_upload_that_takes_its_time_is_not_made_the_probe_that_all_others_wait_for() {
    let address = later().await;
    let proxy = Setup::permits(9).set("breaker.recovery", "200ms").before(address);
    opened(&proxy, 5).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let mut slow = proxy.connect().await;
    // half of an upload, sent once the probe may go
    proxy.until("tidegate_breaker_state", "state=\"open\"", |n| n == 1.0).await;
    let mut ready = false;
    while !ready {
        ready = proxy.admin("/readyz").await.status() == 200;
    }
    slow.send("POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nhalf").await;
    let mut client = proxy.chat(&["x-tidegate-deadline-ms: 3000"]).await;
    let serving = async {
        let mut wires = Vec::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut wire = crate::support::Wire::new(stream);
            if wire.head().await.target() == CHAT_PATH {
                wire.send(crate::support::response(200, &["connection: close"], b"ok")).await;
            }
            wires.push(wire);
        }
    };
    let response = tokio::select! {
        response = client.response() => response,
        () = serving => panic!("accepts for ever"),
    };
    assert_eq!(response.status(), 200, "{}", response.text());
}
