//! What becomes of an answer whose client has left.

use std::time::Duration;

use crate::support::{Proxy, Setup, Upstream, response};

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
