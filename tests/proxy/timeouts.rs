//! How long a whole answer may take.

use crate::support::{CHAT_PATH, CHAT_STREAM, JSON, Raw, Setup, Upstream, request, within};

#[tokio::test]
async fn a_response_that_is_not_over_in_time_breaks_off() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4).set("upstream.0.total_timeout", "300ms").before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let mut call = upstream.next().await;
    call.wire
        .send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    assert_eq!(client.head().await.status(), 200);
    // it goes on and on, so it is not idle
    let mut seen = Vec::new();
    let broke = loop {
        call.wire.send("8\r\ndata: x\n\r\n").await;
        match client.try_chunk().await {
            Some(chunk) if chunk.starts_with(b"\n\ndata: ") => break chunk,
            Some(chunk) => seen.extend(chunk),
            None => panic!("it broke off without a word: {:?}", String::from_utf8_lossy(&seen)),
        }
    };
    let text = String::from_utf8_lossy(&broke).into_owned();
    assert!(text.contains("upstream_timeout") && text.contains("300ms"), "{text}");
    assert_eq!(client.try_chunk().await, None);
    proxy.until("tidegate_in_flight", "", |n| n == 0.0).await;
}

#[tokio::test]
async fn it_also_bounds_the_wait_for_the_head_and_a_silent_body() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4).set("upstream.0.total_timeout", "200ms").before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let call = upstream.next().await;
    let answer = client.response().await;
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream_timeout"));
    drop(call);
    let mut client = proxy.chat(&[]).await;
    let mut call = upstream.next().await;
    call.wire.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    assert_eq!(client.head().await.status(), 200);
    assert_eq!(client.rest().await, b"half");
}

#[tokio::test]
async fn it_says_nothing_of_the_upstream_and_is_not_tried_again() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4)
        .set("upstream.0.total_timeout", "200ms")
        .set("breaker.failures", 1)
        .set("retry.budget", 500)
        .set("retry.backoff", "1ms")
        .before(upstream.address);
    for head in ["", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"] {
        let mut client = proxy.chat(&[]).await;
        let mut call = upstream.next().await;
        call.wire.send(head).await;
        client.head().await;
        call.wire.ends().await;
        proxy.in_flight(0).await;
        assert!(upstream.is_quiet());
    }
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "").await, 0.0);
}

#[tokio::test]
async fn a_stream_s_head_that_is_not_there_in_time_is_the_upstream_s_doing() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4)
        .set("upstream.0.total_timeout", "200ms")
        .set("breaker.failures", 1)
        .set("retry.backoff", "")
        .before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[JSON], CHAT_STREAM)).await;
    let _call = upstream.next().await;
    let answer = client.response().await;
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream_timeout"));
    proxy.until("tidegate_breaker_transitions_total", "", |n| n == 1.0).await;
}

#[tokio::test]
async fn an_upload_that_still_moves_does_not_outlast_it() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(4).set("upstream.0.total_timeout", "300ms").before(upstream.address);
    let mut client = proxy.connect().await;
    let head = format!("POST /v1/files HTTP/1.1\r\nhost: a\r\n{JSON}\r\ntransfer-encoding: chunked\r\n\r\n");
    client.send(head).await;
    let mut wire = upstream.accept().await;
    wire.head().await;
    let moving = async {
        loop {
            client.send("1\r\nx\r\n").await;
            if wire.try_chunk().await.is_none() {
                return;
            }
        }
    };
    within("the upload's end", moving).await;
    let answer = client.response().await;
    assert_eq!((answer.status(), answer.code().as_str()), (504, "upstream_timeout"));
}

#[tokio::test]
async fn heads_that_never_come_lower_the_learned_limit_whether_or_not_the_requests_go_again() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("upstream.0.first_byte_timeout", "200ms")
        .set("limits.replay_bytes", 1)
        .before(upstream.address);
    let before = proxy.metric("tidegate_upstream_limit", "").await;
    let (mut clients, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        clients.push(proxy.chat(&[]).await);
        calls.push(upstream.next().await);
    }
    for mut client in clients {
        assert_eq!(client.response().await.status(), 504);
    }
    proxy.until("tidegate_upstream_limit", "", |n| n < before).await;
}
