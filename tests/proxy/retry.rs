//! What is tried again, what is not, and what the client gets when there is no further try.

use crate::support::{CHAT, CHAT_PATH, JSON, Proxy, Setup, Upstream, nobody, request};

/// Retries at once, as often as the budget allows.
fn eager() -> Setup {
    Setup::permits(4)
        .set("retry.budget", 500)
        .set("retry.success_refund", 1)
        .set("retry.backoff", "1ms,1ms,1ms,1ms")
        .set("breaker.failures", 100)
        .set("breaker.min_samples", 1000)
}

#[tokio::test]
async fn a_refused_request_goes_again_and_its_client_never_knows() {
    let mut upstream = Upstream::start().await;
    let proxy = eager().before(upstream.address);
    for status in [500, 502, 503, 504, 529, 408] {
        let mut client = proxy
            .chat(&["x-stainless-retry-count: 1", "idempotency-key: k1", "authorization: Bearer mine"])
            .await;
        let first = upstream.next().await;
        let head = first.request.head.clone();
        first.answer(status, &[], b"no").await;
        let second = upstream.next().await;
        assert_eq!(
            (second.request.head.fields.clone(), second.request.body.clone()),
            (head.fields, CHAT.to_vec())
        );
        assert_eq!(second.request.get("x-stainless-retry-count"), Some("1"));
        assert_eq!(second.request.get("idempotency-key"), Some("k1"));
        second.answer(200, &[], b"yes").await;
        let answer = client.response().await;
        assert_eq!((answer.status(), answer.text().as_str()), (200, "yes"), "{status}");
    }
    // a small answer is read to its end, so that its connection serves the next try
    assert_eq!(upstream.connections(), 1);
    assert_eq!(proxy.metric("tidegate_in_flight", "").await, 0.0);
    assert_eq!(proxy.metric("tidegate_retries_total", "reason=\"status\"").await, 6.0);
}

#[tokio::test]
async fn the_upstream_s_own_last_answer_is_what_the_client_gets_in_the_end() {
    let mut upstream = Upstream::start().await;
    let proxy = eager().before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    for n in 0..5 {
        let call = upstream.next().await;
        call.answer(500, &["x-request-id: theirs"], format!("failure {n}").as_bytes()).await;
    }
    let answer = client.response().await;
    assert_eq!((answer.status(), answer.text().as_str()), (500, "failure 4"));
    assert_eq!((answer.get("x-request-id"), answer.get("x-tidegate-reason")), (Some("theirs"), None));
    assert!(upstream.is_quiet());
    let proxy = eager().before(nobody().await);
    let answer = proxy.chat(&[]).await.response().await;
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream_error"));
    assert_eq!(proxy.metric("tidegate_retries_total", "reason=\"connect\"").await, 4.0);
}

#[tokio::test]
async fn a_reset_before_the_head_is_tried_again_and_one_in_the_body_is_not() {
    let mut upstream = Upstream::start().await;
    let proxy = eager().before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    drop(upstream.next().await);
    let mut second = upstream.next().await;
    second.wire.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    let head = client.head().await;
    assert_eq!(head.status(), 200);
    drop(second);
    assert_eq!(client.rest().await, b"half");
    assert!(upstream.is_quiet());
    assert_eq!(proxy.metric("tidegate_retries_total", "reason=\"reset\"").await, 1.0);
}

async fn asked_once(proxy: &Proxy, upstream: &mut Upstream, bytes: Vec<u8>, status: u16) {
    let mut client = proxy.connect().await;
    client.send(bytes).await;
    upstream.next().await.answer(status, &[], b"no").await;
    assert_eq!(client.response().await.status(), status);
    assert!(upstream.is_quiet());
}

#[tokio::test]
async fn what_would_do_harm_twice_is_sent_once() {
    let mut upstream = Upstream::start().await;
    let proxy = eager().set("limits.replay_bytes", 100).before(upstream.address);
    let thread = br#"{"model":"m","assistant":"a"}"#;
    asked_once(&proxy, &mut upstream, request("POST", "/v1/threads/runs", &[JSON], thread), 500).await;
    let stored = br#"{"model":"m","input":"x","background":true}"#;
    asked_once(&proxy, &mut upstream, request("POST", "/v1/responses", &[JSON], stored), 502).await;
    // not of the list
    asked_once(&proxy, &mut upstream, request("POST", CHAT_PATH, &[JSON], CHAT), 400).await;
    asked_once(&proxy, &mut upstream, request("POST", CHAT_PATH, &[JSON], CHAT), 404).await;
    let large = format!(r#"{{"model":"m","messages":["{}"]}}"#, "x".repeat(100));
    asked_once(&proxy, &mut upstream, request("POST", CHAT_PATH, &[JSON], large.as_bytes()), 503).await;
    // with a key of its own, or refused, it may go again
    for (fields, status) in [(&[JSON, "idempotency-key: 1"][..], 500), (&[JSON], 503), (&[JSON], 429)] {
        let mut client = proxy.connect().await;
        client.send(request("POST", "/v1/threads/runs", fields, thread)).await;
        upstream.next().await.answer(status, &["retry-after-ms: 1"], b"no").await;
        upstream.next().await.answer(200, &[], b"yes").await;
        assert_eq!(client.response().await.status(), 200);
    }
}

#[tokio::test]
async fn retry_after_is_waited_for_without_the_permit() {
    let mut upstream = Upstream::start().await;
    let proxy = eager().set("scaling.max_permits", 1).before(upstream.address);
    let mut first = proxy.chat(&[]).await;
    upstream.next().await.answer(503, &["retry-after-ms: 300"], b"no").await;
    proxy.queued(1).await;
    assert_eq!(proxy.metric("tidegate_in_flight", "").await, 0.0);
    // another one takes it meanwhile
    let mut second = proxy.chat(&[]).await;
    let call = upstream.next().await;
    call.answer(200, &[], b"second").await;
    assert_eq!(second.response().await.text(), "second");
    upstream.next().await.answer(200, &[], b"first").await;
    let answer = first.response().await;
    assert_eq!(answer.text(), "first");
    let waited: u64 = answer.get("x-tidegate-queue-ms").unwrap().parse().unwrap();
    assert!((290..2000).contains(&waited), "{waited}");
}

#[tokio::test]
async fn a_long_retry_after_is_passed_on_at_once() {
    let mut upstream = Upstream::start().await;
    let proxy = eager().before(upstream.address);
    for (status, n) in [(503, 3600), (429, 3600)] {
        let mut client = proxy.chat(&[]).await;
        upstream.next().await.answer(status, &[&format!("retry-after: {n}")], b"later").await;
        let answer = client.response().await;
        assert_eq!((answer.status(), answer.get("retry-after")), (status, Some("3600")));
        assert_eq!(answer.text(), "later");
    }
}

#[tokio::test]
async fn the_budget_bounds_what_a_dead_upstream_has_to_bear() {
    let mut upstream = Upstream::start().await;
    let proxy = eager().set("retry.budget", 10).before(upstream.address);
    // two retries, and then none
    for tries in [3, 1, 1] {
        let mut client = proxy.chat(&[]).await;
        for _ in 0..tries {
            upstream.next().await.answer(500, &[], b"no").await;
        }
        assert_eq!(client.response().await.status(), 500);
    }
    assert!(upstream.is_quiet());
    assert_eq!(proxy.metric("tidegate_retry_budget_tokens", "").await, 0.0);
}

#[tokio::test]
async fn a_client_that_leaves_between_two_tries_leaves_nothing_behind() {
    let mut upstream = Upstream::start().await;
    let proxy = eager().before(upstream.address);
    let client = proxy.chat(&[]).await;
    upstream.next().await.answer(503, &["retry-after: 5"], b"no").await;
    proxy.queued(1).await;
    drop(client);
    proxy.queued(0).await;
    assert_eq!(proxy.metric("tidegate_in_flight", "").await, 0.0);
    assert!(upstream.is_quiet());
}

#[tokio::test]
async fn what_never_got_there_is_not_charged_even_if_it_cannot_go_again() {
    let proxy = eager()
        .set("limits.replay_bytes", 1)
        .set("upstream.0.requests_per_minute", 600)
        .before(nobody().await);
    let left = async || {
        assert_eq!(proxy.chat(&[]).await.response().await.status(), 502);
        proxy.metric("tidegate_upstream_ratelimit_remaining", "kind=\"requests\"").await
    };
    let full = left().await;
    for _ in 0..4 {
        assert!(left().await >= full);
    }
}
