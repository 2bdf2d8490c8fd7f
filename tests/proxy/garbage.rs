//! Upstreams that break HTTP: a 502, never a hang, and never anything left over for the next request.

use crate::support::{CHAT_PATH, Message, Proxy, Raw, Setup, Upstream, Wire, request};

fn patient() -> Setup {
    Setup::default().set("breaker.failures", 1000).set("breaker.min_samples", 1000)
}

/// What the client gets when the upstream answers with `bytes` and goes on to wait.
async fn answered(proxy: &Proxy, upstream: &Raw, bytes: &[u8]) -> (Message, Wire) {
    let mut client = proxy.chat(&[]).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    wire.send(bytes).await;
    (client.response().await, wire)
}

#[tokio::test]
async fn what_is_not_http_is_a_502_and_its_connection_is_closed() {
    let upstream = Raw::start().await;
    let proxy = patient().before(upstream.address);
    for bytes in [
        &b"hello\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16 not http at all \r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20x OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad name: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
    ] {
        let (response, mut wire) = answered(&proxy, &upstream, bytes).await;
        let what = String::from_utf8_lossy(bytes).into_owned();
        assert_eq!((response.status(), response.code().as_str()), (502, "upstream_error"), "{what:?}");
        assert_eq!(response.get("x-tidegate-reason"), Some("upstream_error"));
        wire.rest().await;
    }
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn framing_that_could_be_read_in_two_ways_is_a_502() {
    let upstream = Raw::start().await;
    let proxy = patient().before(upstream.address);
    for fields in [
        "content-length: 2\r\ncontent-length: 3",
        "content-length: 2, 3",
        "content-length: x",
        "content-length: +2",
        "content-length: -2",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: gzip",
        "transfer-encoding: identity",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked, gzip",
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n2\r\nab\r\n0\r\n\r\n");
        let (response, mut wire) = answered(&proxy, &upstream, bytes.as_bytes()).await;
        assert_eq!((response.status(), response.code().as_str()), (502, "upstream_error"), "{fields}");
        wire.rest().await;
    }
}

#[tokio::test]
async fn a_response_with_both_framings_loses_its_length() {
    let upstream = Raw::start().await;
    let proxy = patient().before(upstream.address);
    for fields in [
        "content-length: 99\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 1",
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n2\r\nab\r\n0\r\n\r\n");
        let (response, _wire) = answered(&proxy, &upstream, bytes.as_bytes()).await;
        assert_eq!((response.status(), response.text().as_str()), (200, "ab"), "{fields}");
        assert_eq!(response.get("content-length"), None);
    }
}

#[tokio::test]
async fn a_head_too_large_is_a_502() {
    let upstream = Raw::start().await;
    let proxy = patient().before(upstream.address);
    let large = format!("HTTP/1.1 200 OK\r\nx-large: {}\r\ncontent-length: 0\r\n\r\n", "x".repeat(1 << 20));
    let (response, _wire) = answered(&proxy, &upstream, large.as_bytes()).await;
    assert_eq!(response.status(), 502);
    let many: String = (0..5000).map(|n| format!("x-{n}: 1\r\n")).collect();
    let many = format!("HTTP/1.1 200 OK\r\n{many}content-length: 0\r\n\r\n");
    let (response, _wire) = answered(&proxy, &upstream, many.as_bytes()).await;
    assert_eq!(response.status(), 502);
}

#[tokio::test]
async fn a_switch_of_protocols_that_nobody_asked_for_is_a_502() {
    let upstream = Raw::start().await;
    let proxy = patient().before(upstream.address);
    let bytes = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let (response, mut wire) = answered(&proxy, &upstream, bytes).await;
    assert_eq!((response.status(), response.code().as_str()), (502, "upstream_error"));
    wire.rest().await;
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn eight_interim_responses_are_fine() {
    let upstream = Raw::start().await;
    let proxy = patient().before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    for n in 0..8 {
        wire.send(format!("HTTP/1.1 103 Early Hints\r\nlink: </{n}>\r\n\r\n")).await;
    }
    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(client.response().await.text(), "ok");
}

#[tokio::test]
async fn nine_interim_responses_are_a_502_even_if_they_come_at_once() {
    let upstream = Raw::start().await;
    let proxy = patient().before(upstream.address);
    let one = "HTTP/1.1 103 Early Hints\r\n\r\n";
    let (response, _wire) = answered(&proxy, &upstream, one.repeat(9).as_bytes()).await;
    assert_eq!((response.status(), response.code().as_str()), (502, "upstream_error"));
    let with_answer = format!("{}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", one.repeat(9));
    let (response, _wire) = answered(&proxy, &upstream, with_answer.as_bytes()).await;
    assert_eq!((response.status(), response.code().as_str()), (502, "upstream_error"));
}

#[tokio::test]
async fn an_endless_run_of_interim_responses_ends_in_a_502() {
    let upstream = Raw::start().await;
    let proxy = patient().before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    let pouring = async { while wire.try_send(b"HTTP/1.1 102 Processing\r\n\r\n").await {} };
    let ((), response) = tokio::join!(pouring, client.response());
    assert_eq!(response.status(), 502);
}

#[tokio::test]
async fn a_body_shorter_than_its_length_is_cut_off_and_its_connection_not_used_again() {
    let mut upstream = Upstream::start().await;
    let proxy = patient().before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let mut call = upstream.next().await;
    call.wire
        .send("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n12345")
        .await;
    let head = client.head().await;
    assert_eq!((head.status(), head.get("content-length")), (200, Some("10")));
    assert_eq!(client.take(5).await, b"12345");
    let first = call.connection;
    drop(call);
    client.ends().await;
    let mut next = proxy.chat(&[]).await;
    let call = upstream.next().await;
    assert_ne!(call.connection, first);
    call.answer(200, &[], b"fresh").await;
    assert_eq!(next.response().await.text(), "fresh");
}

#[tokio::test]
async fn bytes_after_a_response_never_reach_the_next_request() {
    let mut upstream = Upstream::start().await;
    let proxy = patient().before(upstream.address);
    let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    for round in 0..20 {
        let mut client = proxy.chat(&[]).await;
        let mut call = upstream.next().await;
        // in one packet with the answer, and right behind it
        let (with, behind) = if round % 2 == 0 { (poison, "") } else { ("", poison) };
        call.wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmine{with}")).await;
        call.wire.send(behind).await;
        assert_eq!(client.response().await.text(), "mine");
        let first = call.connection;
        let mut next = proxy.chat(&[]).await;
        let other = upstream.next();
        let call = tokio::select! {
            biased;
            response = next.response() => panic!("round {round}: answered {:?} from what was left over", response.text()),
            other = other => other,
        };
        assert_ne!(call.connection, first, "round {round}");
        call.answer(200, &["connection: close"], b"good").await;
        assert_eq!(next.response().await.text(), "good");
    }
}

#[tokio::test]
async fn a_response_that_a_client_read_half_of_leaves_nothing_for_the_next() {
    let mut upstream = Upstream::start().await;
    let proxy = patient().before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let mut call = upstream.next().await;
    call.wire.send("HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nhalf").await;
    client.head().await;
    client.take(4).await;
    drop(client);
    call.wire.ends().await;
    proxy.in_flight(0).await;
    let mut next = proxy.chat(&[]).await;
    let other = upstream.next().await;
    assert_ne!(other.connection, call.connection);
    other.answer(200, &[], b"own").await;
    assert_eq!(next.response().await.text(), "own");
}

#[tokio::test]
async fn a_response_before_the_request_was_read_does_not_leave_its_rest_behind() {
    let upstream = Raw::start().await;
    let proxy = patient().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[], &vec![b'x'; 8 << 20])).await;
    let mut wire = upstream.accept().await;
    wire.head().await;
    wire.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 3\r\n\r\nbad").await;
    let response = client.response().await;
    assert_eq!((response.status(), response.text().as_str()), (400, "bad"));
    let mut next = proxy.chat(&[]).await;
    let mut fresh = upstream.accept().await;
    fresh.message().await;
    fresh.send("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nown").await;
    assert_eq!(next.response().await.text(), "own");
}

#[tokio::test]
async fn a_connection_that_the_upstream_closes_after_its_answer_is_not_used_again() {
    let mut upstream = Upstream::start().await;
    let proxy = patient().before(upstream.address);
    for round in 1..=10 {
        let mut client = proxy.chat(&[]).await;
        let mut call = upstream.next().await;
        assert_eq!(call.connection, round);
        call.wire.send(crate::support::response(200, &["connection: close"], b"ok")).await;
        assert_eq!(client.response().await.text(), "ok");
    }
}
