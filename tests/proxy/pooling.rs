//! Connections that are used again, and those that turn out to be dead.

use crate::support::{CHAT, CHAT_PATH, JSON, Setup, Upstream, request};

#[tokio::test]
async fn requests_one_after_the_other_share_a_connection() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for _ in 0..20 {
        let mut client = proxy.chat(&[]).await;
        upstream.next().await.answer(200, &[], b"ok").await;
        assert_eq!(client.response().await.status(), 200);
        proxy.until("tidegate_upstream_connections", "idle", |n| n >= 1.0).await;
    }
    assert!(upstream.connections() <= 4, "{}", upstream.connections());
}

#[tokio::test]
async fn a_connection_that_died_while_idle_is_never_shown_to_a_client() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("breaker.failures", 3).before(upstream.address);
    let mut client = proxy.connect().await;
    let mut seen = 0;
    for round in 0..200 {
        let (method, path, body) =
            if round % 2 == 0 { ("POST", CHAT_PATH, CHAT) } else { ("GET", "/v1/models", &b""[..]) };
        client.send(request(method, path, &[JSON], body)).await;
        let mut call = upstream.next().await;
        seen += 1;
        call.wire.send(crate::support::response(200, &[], b"ok")).await;
        assert_eq!(client.response().await.status(), 200, "round {round}");
        // it promised to keep it, and closes it now: before, while or after the next request is written
        if round % 3 == 0 {
            drop(call);
        } else {
            client.send(request("GET", "/v1/models", &[], b"")).await;
            drop(call);
            let call = upstream.next().await;
            seen += 1;
            call.answer(200, &["connection: close"], b"ok").await;
            let response = client.response().await;
            assert_eq!(response.status(), 200, "round {round}: {}", response.text());
        }
    }
    assert!(seen >= 200);
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "").await, 0.0);
}

#[tokio::test]
async fn a_request_on_a_connection_that_was_reset_unanswered_is_sent_once_more_and_no_more_than_that() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[JSON], CHAT)).await;
    upstream.next().await.answer(200, &[], b"ok").await;
    assert_eq!(client.response().await.status(), 200);
    proxy.until("tidegate_upstream_connections", "idle", |n| n == 1.0).await;
    client.send(request("POST", CHAT_PATH, &[JSON], CHAT)).await;
    let first = upstream.next().await;
    assert_eq!(first.connection, 1, "it was to be reused");
    drop(first);
    let second = upstream.next().await;
    assert_eq!(second.request.body, CHAT, "the body is whole the second time");
    assert_eq!(second.connection, 2);
    drop(second);
    assert_eq!(client.response().await.status(), 502, "a new connection that breaks is the upstream's fault");
    assert!(upstream.is_quiet());
}

#[tokio::test]
async fn a_request_that_must_not_be_repeated_is_never_sent_twice() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("breaker.failures", 1000)
        .set("breaker.min_samples", 1000)
        .before(upstream.address);
    for path in ["/v1/batches", "/v1/fine_tuning/jobs", "/v1/files"] {
        for _ in 0..5 {
            let mut client = proxy.connect().await;
            client.send(request("POST", path, &[JSON], b"{}")).await;
            upstream.next().await.answer(200, &[], b"ok").await;
            assert_eq!(client.response().await.status(), 200);
            client.send(request("POST", path, &[JSON], b"{}")).await;
            // read, acted on, and closed without a word
            drop(upstream.next().await);
            assert_eq!(client.response().await.status(), 502, "{path}");
            assert!(upstream.is_quiet(), "{path} was sent twice");
        }
    }
}

#[tokio::test]
async fn an_idempotency_key_allows_to_repeat() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("GET", "/v1/models", &[], b"")).await;
    upstream.next().await.answer(200, &[], b"ok").await;
    client.response().await;
    proxy.until("tidegate_upstream_connections", "idle", |n| n == 1.0).await;
    client.send(request("POST", "/v1/batches", &[JSON, "idempotency-key: k"], b"{}")).await;
    let first = upstream.next().await;
    assert_eq!(first.connection, 1);
    drop(first);
    let second = upstream.next().await;
    assert_eq!(second.request.text(), "{}");
    second.answer(200, &[], b"ok").await;
    assert_eq!(client.response().await.status(), 200);
}

#[tokio::test]
async fn connections_made_for_requests_that_may_not_share_one_do_not_pile_up() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    for _ in 0..30 {
        client.send(request("POST", "/v1/batches", &[JSON], b"{}")).await;
        upstream.next().await.answer(200, &[], b"ok").await;
        assert_eq!(client.response().await.status(), 200);
    }
    let idle = proxy.until("tidegate_upstream_connections", "state=\"active\"", |n| n == 0.0).await;
    let idle = idle + proxy.metric("tidegate_upstream_connections", "state=\"idle\"").await;
    assert!(idle <= 3.0, "one request at a time left {idle} connections open");
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("upstream.0.idle_timeout", "300ms").before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let mut call = upstream.next().await;
    call.wire.send(crate::support::response(200, &[], b"ok")).await;
    assert_eq!(client.response().await.status(), 200);
    call.wire.ends().await;
    proxy.until("tidegate_upstream_connections", "", |n| n == 0.0).await;
}

#[tokio::test]
async fn workers_share_their_idle_connections() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("listen.workers", 4).before(upstream.address);
    for _ in 0..24 {
        let mut client = proxy.chat(&[]).await;
        upstream.next().await.answer(200, &[], b"ok").await;
        assert_eq!(client.response().await.status(), 200);
        proxy.until("tidegate_upstream_connections", "idle", |n| n >= 1.0).await;
    }
    assert!(upstream.connections() <= 6, "each core keeps its own: {}", upstream.connections());
}
