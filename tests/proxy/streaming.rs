//! Streams: each event leaves when it came, and a stream that breaks says so.

use crate::support::{CHAT_PATH, CHAT_STREAM, JSON, Proxy, Raw, Setup, Wire, request};

const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// A client and the upstream's end of its request, the head of the answer not yet sent.
async fn begun(upstream: &Raw, proxy: &Proxy) -> (Wire, Wire) {
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[JSON], CHAT_STREAM)).await;
    let mut wire = upstream.accept().await;
    let seen = wire.message().await;
    assert_eq!(seen.body, CHAT_STREAM);
    (client, wire)
}

fn chunk(data: &str) -> String {
    format!("{:x}\r\n{data}\r\n", data.len())
}

#[tokio::test]
async fn the_head_leaves_before_the_first_event_and_each_event_when_it_came() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let (mut client, mut wire) = begun(&upstream, &proxy).await;
    wire.send(SSE).await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("content-type")), (200, Some("text/event-stream")));
    for n in 0..50 {
        let event = format!("data: {{\"n\":{n}}}\n\n");
        wire.send(chunk(&event)).await;
        // the next is only sent once this one is here
        assert_eq!(String::from_utf8_lossy(&client.chunk().await), event);
    }
    // half an event too: nothing waits for the rest
    wire.send(chunk("data: ha")).await;
    assert_eq!(client.chunk().await, b"data: ha");
    wire.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"");
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn the_permit_is_held_to_the_last_byte() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(4).before(upstream.address);
    let (mut client, mut wire) = begun(&upstream, &proxy).await;
    wire.send(SSE).await;
    client.head().await;
    wire.send(chunk("data: 1\n\n")).await;
    client.chunk().await;
    assert_eq!(proxy.metric("tidegate_in_flight", "").await, 1.0);
    wire.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"");
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn a_stream_that_ends_with_the_connection_is_whole() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let (mut client, mut wire) = begun(&upstream, &proxy).await;
    wire.send("HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n").await;
    client.head().await;
    assert_eq!(client.chunk().await, b"data: 1\n\n");
    drop(wire);
    assert_eq!(client.chunk().await, b"", "the end is an end");
}

/// What a client reads of a stream until it ends, and whether its end chunk came.
async fn read_out(client: &mut Wire) -> (String, bool) {
    let mut text = String::new();
    loop {
        match client.try_chunk().await {
            None => return (text, false),
            Some(data) if data.is_empty() => return (text, true),
            Some(data) => text.push_str(&String::from_utf8_lossy(&data)),
        }
    }
}

#[tokio::test]
async fn an_event_stream_that_breaks_ends_with_an_error_event_and_without_its_end_chunk() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let (mut client, mut wire) = begun(&upstream, &proxy).await;
    wire.send(SSE).await;
    client.head().await;
    wire.send(chunk("data: {\"open")).await;
    assert_eq!(client.chunk().await, b"data: {\"open");
    drop(wire);
    let (text, whole) = read_out(&mut client).await;
    let event = text.strip_prefix("\n\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
    let json: serde_json::Value = serde_json::from_str(event).unwrap();
    assert_eq!(json["error"]["code"], "upstream_error");
    assert_eq!(json["error"]["type"], "server_error");
    assert!(!whole, "a client must be able to tell that it was cut off");
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn a_compressed_event_stream_that_breaks_is_only_cut_off() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let (mut client, mut wire) = begun(&upstream, &proxy).await;
    wire.send(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-encoding: gzip\r\n\
         transfer-encoding: chunked\r\n\r\n",
    )
    .await;
    client.head().await;
    wire.send(chunk("\u{1}\u{2}")).await;
    client.chunk().await;
    drop(wire);
    assert_eq!(read_out(&mut client).await, (String::new(), false));
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn another_body_that_breaks_is_only_cut_off() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let (mut client, mut wire) = begun(&upstream, &proxy).await;
    wire.send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client.head().await;
    wire.send(chunk("{\"a\":")).await;
    client.chunk().await;
    drop(wire);
    assert_eq!(read_out(&mut client).await, (String::new(), false));
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_ended_as_a_timeout() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().set("upstream.0.stream_idle_timeout", "200ms").before(upstream.address);
    let (mut client, mut wire) = begun(&upstream, &proxy).await;
    wire.send(SSE).await;
    client.head().await;
    wire.send(chunk("data: 1\n\n")).await;
    client.chunk().await;
    let (text, whole) = read_out(&mut client).await;
    assert!(text.contains("\"upstream_timeout\""), "{text}");
    assert!(!whole);
    assert_eq!(wire.rest().await, b"", "the upstream is let go of");
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn a_stream_slower_than_the_idle_timeout_in_all_but_never_silent_goes_on() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().set("upstream.0.stream_idle_timeout", "300ms").before(upstream.address);
    let (mut client, mut wire) = begun(&upstream, &proxy).await;
    wire.send(SSE).await;
    client.head().await;
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(100));
    for _ in 0..8 {
        pace.tick().await;
        wire.send(chunk(": ping\n\n")).await;
        assert_eq!(client.chunk().await, b": ping\n\n");
    }
    wire.send("0\r\n\r\n").await;
    assert_eq!(client.chunk().await, b"");
}

#[tokio::test]
async fn a_chunk_size_that_is_none_breaks_the_stream() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let (mut client, mut wire) = begun(&upstream, &proxy).await;
    wire.send(SSE).await;
    client.head().await;
    wire.send(chunk("data: 1\n\n")).await;
    client.chunk().await;
    wire.send("zz\r\ndata: 2\n\n\r\n").await;
    let (text, whole) = read_out(&mut client).await;
    assert!(text.starts_with("\n\ndata: {\"error\""), "{text}");
    assert!(!whole && !text.contains("data: 2"));
    wire.ends().await;
}
