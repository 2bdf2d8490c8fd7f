//! Bodies in both directions: bytes as they are, trailers, `Expect`, and sizes beyond what is kept.

use crate::support::{CHAT_PATH, JSON, Raw, Setup, Upstream, request};

/// Bytes that no text is.
fn binary(n: usize) -> Vec<u8> {
    let mut x = 0x2545_f491_u32;
    let mut next = move || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as u8
    };
    (0..n).map(|_| next()).collect()
}

#[tokio::test]
async fn compressed_bodies_are_the_same_bytes_in_both_directions() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let (up, down) = (binary(70_000), binary(300_000));
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[JSON, "content-encoding: gzip"], &up)).await;
    let call = upstream.next().await;
    assert_eq!(call.request.get("content-encoding"), Some("gzip"));
    assert!(call.request.body == up);
    call.answer(200, &["content-encoding: gzip", "content-type: application/json"], &down).await;
    let response = client.response().await;
    assert_eq!(response.get("content-encoding"), Some("gzip"));
    assert_eq!(response.get("content-length"), Some("300000"));
    assert!(response.body == down);
}

#[tokio::test]
async fn a_multipart_upload_and_a_binary_download_are_the_same_bytes() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let (form, audio) = (binary(200_000), binary(2_000_000));
    let mut client = proxy.connect().await;
    let kind = "content-type: multipart/form-data; boundary=xyz";
    client.send(request("POST", "/v1/audio/transcriptions", &[kind], &form)).await;
    let call = upstream.next().await;
    assert!(call.request.body == form);
    assert_eq!(call.request.get("content-type"), Some("multipart/form-data; boundary=xyz"));
    call.answer(200, &["content-type: audio/mpeg"], &audio).await;
    assert!(client.response().await.body == audio);
}

#[tokio::test]
async fn an_empty_body_stays_an_empty_body() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for path in [CHAT_PATH, "/v1/files", "/v1/batches/b/cancel"] {
        let mut client = proxy.connect().await;
        client.send(request("POST", path, &[JSON], b"")).await;
        let call = upstream.next().await;
        assert_eq!(call.request.get("content-length"), Some("0"), "{path}");
        assert_eq!(call.request.get("transfer-encoding"), None, "{path}");
        call.answer(200, &[], b"").await;
        assert_eq!(client.response().await.get("content-length"), Some("0"));
    }
    let mut client = proxy.connect().await;
    client.send(request("GET", "/v1/models", &[], b"")).await;
    let call = upstream.next().await;
    assert_eq!(call.request.get("content-length"), None, "a GET without a body does not grow one");
    assert_eq!(call.request.get("transfer-encoding"), None);
    call.answer(200, &[], b"").await;
}

#[tokio::test]
async fn a_chunked_request_arrives_whole_whatever_its_chunks() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for path in [CHAT_PATH, "/v1/files"] {
        let mut client = proxy.connect().await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n{JSON}\r\n\r\n");
        client.send(head).await;
        for chunk in ["1;ext=1\r\n{\r\n", "9\r\n\"model\":\"\r\n", "03\r\nm\"}\r\n"] {
            client.send(chunk).await;
        }
        client.send("0\r\n\r\n").await;
        let call = upstream.next().await;
        assert_eq!(call.request.text(), "{\"model\":\"m\"}", "{path}");
        call.answer(200, &[], b"").await;
        assert_eq!(client.response().await.status(), 200);
    }
}

#[tokio::test]
async fn trailers_of_a_request_go_upstream() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for path in [CHAT_PATH, "/v1/files"] {
        let mut client = proxy.connect().await;
        client
            .send(format!(
                "POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                 5\r\nhello\r\n0\r\nx-sum: abc\r\n\r\n"
            ))
            .await;
        let call = upstream.next().await;
        assert_eq!(call.request.text(), "hello");
        assert_eq!(call.request.trailers, [("x-sum".to_owned(), "abc".to_owned())], "{path}");
        call.answer(200, &[], b"").await;
        assert_eq!(client.response().await.status(), 200);
    }
}

#[tokio::test]
async fn trailers_of_a_response_reach_a_client_that_takes_them() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("GET", "/v1/x", &["te: trailers", "connection: te"], b"")).await;
    let call = upstream.next().await;
    assert_eq!(call.request.get("te"), Some("trailers"));
    call.raw(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
         5\r\nhello\r\n0\r\nx-sum: abc\r\n\r\n",
    )
    .await;
    let response = client.response().await;
    assert_eq!(response.text(), "hello");
    assert_eq!(response.trailers, [("x-sum".to_owned(), "abc".to_owned())]);
}

#[tokio::test]
async fn a_client_that_expects_continue_is_told_once_its_body_is_wanted() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for path in [CHAT_PATH, "/v1/files"] {
        let mut client = proxy.connect().await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n{JSON}\r\n\r\n"
        );
        client.send(head).await;
        let interim = client.head().await;
        assert_eq!(interim.status(), 100, "{path}");
        client.send("hello").await;
        let call = upstream.next().await;
        assert_eq!(call.request.get("expect"), None, "{path}");
        assert_eq!(call.request.text(), "hello");
        call.answer(200, &[], b"ok").await;
        let response = client.message().await;
        assert_eq!((response.status(), response.text().as_str()), (200, "ok"), "{path}");
    }
}

#[tokio::test]
async fn a_body_that_is_not_wanted_is_not_asked_for() {
    let upstream = Upstream::start().await;
    let proxy = Setup::default().set("limits.body_bytes", 100).before(upstream.address);
    let mut client = proxy.connect().await;
    client
        .send(format!(
            "POST {CHAT_PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: 101\r\nexpect: 100-continue\r\n\r\n"
        ))
        .await;
    assert_eq!(client.head().await.status(), 413, "the first that comes is the final answer");
}

#[tokio::test]
async fn an_upload_larger_than_what_is_kept_streams_through() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 80;
    let upstream = Raw::start().await;
    let proxy = Setup::default()
        .set("limits.body_bytes", "1MiB")
        .set("limits.body_memory", "1MiB")
        .before(upstream.address);
    let mut client = proxy.connect().await;
    let head = format!(
        "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\ncontent-type: multipart/form-data; boundary=b\r\n\r\n",
        PIECE * PIECES
    );
    let piece = binary(PIECE);
    let sending = async {
        client.send(head).await;
        for _ in 0..PIECES {
            assert!(client.try_send(&piece).await);
        }
        client.response().await
    };
    let receiving = async {
        let mut wire = upstream.accept().await;
        let head = wire.head().await;
        assert_eq!(head.get("content-length"), Some((PIECE * PIECES).to_string().as_str()));
        for _ in 0..PIECES {
            assert!(wire.take(PIECE).await == piece);
        }
        wire.send(crate::support::response(200, &[], b"stored")).await;
        wire
    };
    let (response, _wire) = tokio::join!(sending, receiving);
    assert_eq!(response.text(), "stored");
}

#[tokio::test]
async fn an_upload_waits_for_an_upstream_that_does_not_read_it() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    let size: usize = 200 << 20;
    client.send(format!("POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n")).await;
    let mut wire = upstream.accept().await;
    wire.head().await;
    // what is taken without being read is what the sockets' buffers hold, and a little of our own
    let piece = vec![7; 1 << 20];
    let mut taken = 0;
    while tokio::time::timeout(std::time::Duration::from_millis(300), client.try_send(&piece)).await.is_ok() {
        taken += piece.len();
        assert!(taken < 64 << 20, "the proxy took {taken} bytes that nobody reads");
    }
}

#[tokio::test]
async fn an_answer_before_the_whole_request_is_passed_on() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send("POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nabc").await;
    let mut wire = upstream.accept().await;
    wire.head().await;
    wire.send(crate::support::response(413, &["connection: close"], b"too much")).await;
    let response = client.response().await;
    assert_eq!((response.status(), response.text().as_str()), (413, "too much"));
    // as servers do that close in order: no more to say, and reading on until the other side has understood
    wire.finish().await;
    wire.rest().await;
    // nothing of the rest may be taken for another request
    client.send("GET /v1/smuggled HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.ends().await;
    proxy.until("tidegate_unqueued_in_flight", "", |n| n == 0.0).await;
}

#[tokio::test]
async fn a_response_waits_for_a_client_that_does_not_read_it() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let mut wire = upstream.accept().await;
    wire.message().await;
    wire.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 200 << 20)).await;
    client.head().await;
    let piece = vec![7; 1 << 20];
    let mut taken = 0;
    while tokio::time::timeout(std::time::Duration::from_millis(300), wire.try_send(&piece)).await.is_ok() {
        taken += piece.len();
        assert!(taken < 64 << 20, "the proxy took {taken} bytes that nobody reads");
    }
}

#[tokio::test]
async fn trailers_that_were_not_announced_do_no_harm() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    for _ in 0..3 {
        client.send("POST /v1/files HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
        client.send("2\r\nhi\r\n0\r\nx-a: 1\r\n\r\n").await;
        let call = upstream.next().await;
        assert_eq!(call.request.text(), "hi");
        call.raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nho\r\n0\r\nx-b: 2\r\n\r\n").await;
        assert_eq!(client.response().await.text(), "ho");
    }
}
