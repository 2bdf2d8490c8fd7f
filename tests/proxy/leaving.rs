//! Clients that leave: whatever they held is let go of at once.

use std::time::Duration;

use tidegate::clock::Clock;

use crate::support::{CHAT_PATH, CHAT_STREAM, JSON, Raw, Setup, Upstream, request};

#[tokio::test]
async fn a_client_that_leaves_while_queued_takes_its_ticket_with_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let mut running = proxy.chat(&[]).await;
    let call = upstream.next().await;
    let mut waiting = Vec::new();
    for _ in 0..5 {
        waiting.push(proxy.chat(&[]).await);
    }
    proxy.queued(5).await;
    drop(waiting);
    proxy.queued(0).await;
    assert_eq!(proxy.metric("tidegate_queue_bytes", "").await, 0.0);
    call.answer(200, &[], b"ok").await;
    assert_eq!(running.response().await.status(), 200);
    proxy.in_flight(0).await;
    assert!(upstream.is_quiet(), "nobody's request went up");
}

#[tokio::test]
async fn a_client_that_only_says_it_will_send_no_more_has_left_too() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let _running = proxy.chat(&[]).await;
    let _call = upstream.next().await;
    let mut waiting = proxy.chat(&[]).await;
    proxy.queued(1).await;
    waiting.finish().await;
    proxy.queued(0).await;
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_large_body_leaves_nothing_behind() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1)
        .set("limits.body_bytes", "4MiB")
        .set("limits.body_memory", "4MiB")
        .before(upstream.address);
    let large = vec![b'x'; 4 << 20];
    for _ in 0..3 {
        let mut client = proxy.connect().await;
        let head = format!("POST {CHAT_PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", large.len());
        client.send(head).await;
        client.send(&large[..3 << 20]).await;
        drop(client);
    }
    proxy.until("tidegate_requests_total", "", |n| n == 3.0).await;
    assert_eq!(proxy.metric("tidegate_in_flight", "").await, 0.0);
    assert!(upstream.is_quiet());
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[JSON], &large)).await;
    upstream.next().await.answer(200, &[], b"ok").await;
    assert_eq!(client.response().await.status(), 200, "the memory for bodies came back");
}

#[tokio::test]
async fn a_client_that_leaves_with_a_large_body_queued_takes_its_ticket_with_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let _running = proxy.chat(&[]).await;
    let _call = upstream.next().await;
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[JSON], &vec![b' '; 16 << 20])).await;
    proxy.queued(1).await;
    assert_eq!(proxy.metric("tidegate_queue_bytes", "").await, f64::from(16 << 20));
    drop(client);
    proxy.queued(0).await;
    assert_eq!(proxy.metric("tidegate_queue_bytes", "").await, 0.0);
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_an_upload_ends_it_at_the_upstream() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send("POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n").await;
    client.send(vec![b'x'; 1000]).await;
    let mut wire = upstream.accept().await;
    wire.head().await;
    wire.take(1000).await;
    drop(client);
    wire.ends().await;
    proxy.until("tidegate_unqueued_in_flight", "", |n| n == 0.0).await;
}

/// How long after the client left its upstream connection was closed, at most of several tries' least.
async fn cancelled_within(begun: bool) -> Duration {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(1).set("breaker.failures", 1).before(upstream.address);
    let mut worst = Duration::ZERO;
    for _ in 0..5 {
        let mut client = proxy.connect().await;
        client.send(request("POST", CHAT_PATH, &[JSON], CHAT_STREAM)).await;
        let mut wire = upstream.accept().await;
        wire.message().await;
        if begun {
            wire.send(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
            )
            .await;
            wire.send("9\r\ndata: 1\n\n\r\n").await;
            client.head().await;
            client.chunk().await;
        }
        proxy.in_flight(1).await;
        let clock = Clock::start();
        drop(client);
        wire.ends().await;
        worst = worst.max(clock.now().since(Default::default()));
        proxy.in_flight(0).await;
    }
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "").await, 0.0, "that is nobody's failure");
    worst
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head_cancels_its_request_within_100_ms() {
    let took = cancelled_within(false).await;
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_stream_cancels_its_request_within_100_ms() {
    let took = cancelled_within(true).await;
    assert!(took < Duration::from_millis(100), "{took:?}");
}

#[tokio::test]
async fn a_client_that_leaves_hands_its_permit_to_the_next_in_line() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let first = proxy.chat(&[]).await;
    let _call = upstream.next().await;
    let mut second = proxy.chat(&[]).await;
    proxy.queued(1).await;
    drop(first);
    upstream.next().await.answer(200, &[], b"ok").await;
    assert_eq!(second.response().await.status(), 200);
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn a_client_that_leaves_a_request_without_a_permit_cancels_it_too() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("GET", "/v1/files/f/content", &[], b"")).await;
    let mut call = upstream.next().await;
    drop(client);
    call.wire.ends().await;
    proxy.until("tidegate_unqueued_in_flight", "", |n| n == 0.0).await;
}

#[tokio::test]
async fn a_client_that_left_unseen_behind_a_second_request_is_gone_at_its_deadline() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).set("queue.timeout", "300ms").before(upstream.address);
    let _running = proxy.chat(&[]).await;
    let _call = upstream.next().await;
    let mut client = proxy.chat(&[]).await;
    client.send(request("GET", "/v1/models", &[], b"")).await;
    proxy.queued(1).await;
    drop(client);
    proxy.queued(0).await;
    assert_eq!(proxy.metric("tidegate_in_flight", "").await, 1.0);
}
