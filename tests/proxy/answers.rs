//! Our own answers: status, code, type and fields of each row of the table.

use crate::support::{CHAT_PATH, JSON, Message, Raw, Setup, Upstream, nobody, request};

struct Wanted {
    status: u16,
    code: &'static str,
    kind: &'static str,
    retry_after: bool,
    should_retry: Option<&'static str>,
}

fn check(response: &Message, wanted: &Wanted) {
    let code = wanted.code;
    assert_eq!(response.status(), wanted.status, "{code}: {}", response.text());
    assert_eq!(response.code(), code);
    assert_eq!(response.error("type"), wanted.kind, "{code}");
    assert!(!response.error("message").is_empty(), "{code}");
    let json: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert!(json["error"].as_object().unwrap().contains_key("param"), "{code}: OpenAI's shape has it");
    assert_eq!(response.get("content-type"), Some("application/json"), "{code}");
    assert_eq!(response.get("x-tidegate-reason"), Some(code));
    assert_eq!(response.get("x-should-retry"), wanted.should_retry, "{code}");
    assert_eq!(response.get("x-tidegate-request-id").map(str::len), Some(32), "{code}");
    assert_eq!(response.get("x-request-id"), response.get("x-tidegate-request-id"), "{code}");
    match response.get("retry-after") {
        None => assert!(!wanted.retry_after, "{code}: Retry-After is missing"),
        Some(after) => {
            assert!(wanted.retry_after, "{code}: Retry-After: {after}");
            assert!(after.parse::<u64>().unwrap() >= 1, "{code}: {after}");
        }
    }
}

const fn busy(code: &'static str) -> Wanted {
    Wanted { status: 429, code, kind: "rate_limit_error", retry_after: true, should_retry: Some("true") }
}

const fn unavailable(code: &'static str) -> Wanted {
    Wanted { status: 503, code, kind: "server_error", retry_after: true, should_retry: Some("true") }
}

const fn fault(status: u16, code: &'static str) -> Wanted {
    Wanted { status, code, kind: "server_error", retry_after: false, should_retry: None }
}

const fn client(status: u16, code: &'static str) -> Wanted {
    let kind = "invalid_request_error";
    Wanted { status, code, kind, retry_after: false, should_retry: Some("false") }
}

#[tokio::test]
async fn a_full_queue_answers_429_queue_full() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).set("queue.max_requests", 1).before(upstream.address);
    let _running = proxy.chat(&[]).await;
    let _call = upstream.next().await;
    let _waiting = proxy.chat(&[]).await;
    proxy.queued(1).await;
    check(&proxy.chat(&[]).await.response().await, &busy("queue_full"));
}

#[tokio::test]
async fn a_queue_full_of_bytes_answers_429_queue_full() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).set("queue.max_bytes", 1000).before(upstream.address);
    let _running = proxy.chat(&[]).await;
    let _call = upstream.next().await;
    let mut large = proxy.connect().await;
    check(&large.ask("POST", CHAT_PATH, &[JSON], &[b' '; 1001]).await, &busy("queue_full"));
}

#[tokio::test]
async fn a_wait_beyond_the_queues_timeout_answers_429_queue_timeout() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).set("queue.timeout", "150ms").before(upstream.address);
    let _running = proxy.chat(&[]).await;
    let _call = upstream.next().await;
    check(&proxy.chat(&[]).await.response().await, &busy("queue_timeout"));
    proxy.queued(0).await;
}

#[tokio::test]
async fn a_deadline_that_cannot_be_met_answers_429_deadline_unreachable() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    // some waiting, so that the queue's pace is known: about 20 a second
    let mut clients = vec![proxy.chat(&[]).await];
    proxy.in_flight(1).await;
    for _ in 0..12 {
        clients.push(proxy.chat(&[]).await);
    }
    proxy.queued(12).await;
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(50));
    pace.tick().await;
    for left in (6..12).rev() {
        pace.tick().await;
        upstream.next().await.answer(200, &[], b"").await;
        proxy.queued(left).await;
    }
    // six are ahead of it
    let response = proxy.chat(&["x-tidegate-deadline-ms: 20"]).await.response().await;
    check(&response, &busy("deadline_unreachable"));
}

#[tokio::test]
async fn an_upstream_that_is_not_there_answers_502() {
    let proxy = Setup::default().before(nobody().await);
    check(&proxy.chat(&[]).await.response().await, &fault(502, "upstream_error"));
    check(&proxy.ask("GET", "/v1/models", &[], b"").await, &fault(502, "upstream_error"));
}

#[tokio::test]
async fn an_upstream_that_closes_before_its_head_answers_502() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    wire.send("HTTP/1.1 200 OK\r\nx-half").await;
    drop(wire);
    check(&client.response().await, &fault(502, "upstream_error"));
}

#[tokio::test]
async fn an_upstream_without_an_answer_in_time_is_504() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().set("upstream.0.first_byte_timeout", "150ms").before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    check(&client.response().await, &fault(504, "upstream_timeout"));
    wire.ends().await;
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn interim_responses_do_not_stop_the_first_byte_timeout() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().set("upstream.0.first_byte_timeout", "200ms").before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    wire.send("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nx-drip: ").await;
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(50));
    for _ in 0..8 {
        pace.tick().await;
        wire.send("x").await;
    }
    check(&client.response().await, &fault(504, "upstream_timeout"));
}

#[tokio::test]
async fn a_body_larger_than_what_is_read_answers_413() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("limits.body_bytes", 100).before(upstream.address);
    let body = vec![b' '; 101];
    check(&proxy.ask("POST", CHAT_PATH, &[JSON], &body).await, &client(413, "body_too_large"));
    // its length need not be known
    let mut chunked = proxy.connect().await;
    let head = format!("POST {CHAT_PATH} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n65\r\n");
    chunked.send([head.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await;
    check(&chunked.response().await, &client(413, "body_too_large"));
    assert!(upstream.is_quiet());
    // just enough is enough
    let mut fits = proxy.connect().await;
    fits.send(request("POST", CHAT_PATH, &[JSON], &body[1..])).await;
    upstream.next().await.answer(200, &[], b"").await;
    assert_eq!(fits.response().await.status(), 200);
}

#[tokio::test]
async fn bodies_beyond_the_memory_for_them_answer_503_and_the_memory_comes_back() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1)
        .set("limits.body_bytes", 1000)
        .set("limits.body_memory", 1500)
        .before(upstream.address);
    let body = vec![b' '; 1000];
    let mut first = proxy.connect().await;
    first.send(request("POST", CHAT_PATH, &[JSON], &body)).await;
    let call = upstream.next().await;
    let refused = proxy.ask("POST", CHAT_PATH, &[JSON], &body).await;
    check(&refused, &unavailable("overloaded"));
    assert_eq!(refused.get("retry-after"), Some("1"));
    // a client that leaves in the middle of its body gives its memory back too
    call.answer(200, &[], b"").await;
    first.response().await;
    for _ in 0..5 {
        let mut leaves = proxy.connect().await;
        leaves.send(format!("POST {CHAT_PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n")).await;
        leaves.send(&body[..999]).await;
    }
    proxy.until("tidegate_requests_total", "", |n| n >= 7.0).await;
    let mut again = proxy.connect().await;
    again.send(request("POST", CHAT_PATH, &[JSON], &body)).await;
    upstream.next().await.answer(200, &[], b"").await;
    assert_eq!(again.response().await.status(), 200);
}

#[tokio::test]
async fn a_body_that_pauses_too_long_answers_408() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("limits.body_timeout", "150ms").before(upstream.address);
    let mut slow = proxy.connect().await;
    slow.send(format!("POST {CHAT_PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345")).await;
    check(&slow.response().await, &client(408, "bad_request"));
    slow.ends().await;
    assert!(upstream.is_quiet());
}

#[tokio::test]
async fn an_upload_that_pauses_too_long_answers_408_and_lets_go_of_the_upstream() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().set("limits.body_timeout", "150ms").before(upstream.address);
    let mut slow = proxy.connect().await;
    slow.send("POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345").await;
    let mut wire = upstream.accept().await;
    check(&slow.response().await, &client(408, "bad_request"));
    wire.rest().await;
    proxy.until("tidegate_unqueued_in_flight", "", |n| n == 0.0).await;
}

#[tokio::test]
async fn too_many_requests_outside_the_queue_answer_503() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("limits.max_unqueued", 2).before(upstream.address);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut client = proxy.connect().await;
        client.send(request("GET", "/v1/models", &[], b"")).await;
        held.push((client, upstream.next().await));
    }
    let refused = proxy.ask("GET", "/v1/models", &[], b"").await;
    check(&refused, &unavailable("overloaded"));
    assert_eq!(refused.get("retry-after"), Some("1"));
    let (mut client, call) = held.pop().unwrap();
    call.answer(200, &[], b"").await;
    assert_eq!(client.response().await.status(), 200);
    proxy.until("tidegate_unqueued_in_flight", "", |n| n == 1.0).await;
    let mut again = proxy.connect().await;
    again.send(request("GET", "/v1/models", &[], b"")).await;
    upstream.next().await.answer(200, &[], b"").await;
    assert_eq!(again.response().await.status(), 200);
}

#[tokio::test]
async fn what_attempts_come_back_with_is_counted_also_where_the_client_never_sees_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4).set("retry.budget", 500).set("retry.backoff", "1ms,1ms");
    let proxy = proxy.before(upstream.address);
    let answers = async |class: &str| {
        proxy.metric("tidegate_upstream_answers_total", &format!("class=\"{class}\"")).await
    };
    assert_eq!(answers("429").await, 0.0);
    let page = proxy.admin("/metrics").await.text();
    assert!(page.contains("tidegate_upstream_answers_total"), "shown before the first answer");
    let mut client = proxy.chat(&[]).await;
    upstream.next().await.answer(429, &["retry-after-ms: 1"], b"").await;
    upstream.next().await.answer(503, &[], b"").await;
    upstream.next().await.answer(200, &[], b"").await;
    assert_eq!(client.response().await.status(), 200);
    assert_eq!((answers("429").await, answers("5xx").await, answers("2xx").await), (1.0, 1.0, 1.0));
    let proxy = Setup::permits(4).before(nobody().await);
    assert_eq!(proxy.chat(&[]).await.response().await.status(), 502);
    assert_eq!(proxy.metric("tidegate_upstream_answers_total", "class=\"error\"").await, 1.0);
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_was_read_is_not_lost_to_a_reset() {
    let proxy = Setup::default().set("limits.body_bytes", 100).before(nobody().await);
    // more than the kernel keeps
    let length = 16 << 20;
    for first in ["HTTP/1.1\r\nhost: a", "HTTP/1.1\r\nhost: a\r\nconnection: close", "HTTP/1.0\r\nhost: a"] {
        let mut client = proxy.connect().await;
        client.send(format!("POST {CHAT_PATH} {first}\r\ncontent-length: {length}\r\n\r\n")).await;
        // as many clients do, it sends all before it reads a word
        assert!(client.try_send(&vec![b' '; length]).await, "{first}");
        check(&client.response().await, &self::client(413, "body_too_large"));
    }
}
