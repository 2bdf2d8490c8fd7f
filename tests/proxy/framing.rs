//! Requests whose framing is wrong, or could be read in two ways.

use crate::support::{CHAT_PATH, Message, Proxy, Setup, Upstream};

async fn refused(proxy: &Proxy, upstream: &mut Upstream, head: &str) -> Message {
    let mut client = proxy.connect().await;
    client.send(head).await;
    tokio::select! {
        response = client.response() => response,
        call = upstream.next() => panic!("{head:?} went upstream as {:?}", call.request.head),
    }
}

#[tokio::test]
async fn a_host_that_is_missing_repeated_or_malformed_is_400() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for fields in [
        "",
        "host: a\r\nhost: a\r\n",
        "host: a b\r\n",
        "host: user@a\r\n",
        "host: a/b\r\n",
        "host: [::1\r\n",
        "host: a?b\r\n",
        "host: a#b\r\n",
    ] {
        let response =
            refused(&proxy, &mut upstream, &format!("GET /v1/models HTTP/1.1\r\n{fields}\r\n")).await;
        assert_eq!(response.status(), 400, "{fields:?}");
        assert_eq!(response.code(), "bad_request", "{fields:?}");
        assert_eq!(response.get("x-should-retry"), Some("false"));
    }
    assert!(upstream.is_quiet());
}

#[tokio::test]
async fn a_host_that_is_in_order_passes_whatever_it_is() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for host in ["a", "A.example:8080", "[::1]:80", "127.0.0.1", "", "xn--bcher-kva.example", "a_b-c"] {
        let mut client = proxy.connect().await;
        client.send(format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        let call = upstream.next().await;
        call.answer(200, &[], b"").await;
        assert_eq!(client.response().await.status(), 200, "{host}");
    }
}

#[tokio::test]
async fn a_transfer_coding_other_than_chunked_is_400() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for coding in [
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked, gzip",
        "transfer-encoding: identity",
        "transfer-encoding: xchunked",
        "transfer-encoding: \"chunked\"",
    ] {
        for path in [CHAT_PATH, "/v1/files"] {
            let mut client = proxy.connect().await;
            client.send(format!("POST {path} HTTP/1.1\r\nhost: a\r\n{coding}\r\n\r\n0\r\n\r\n")).await;
            assert_eq!(client.head().await.status(), 400, "{coding}");
        }
    }
    assert!(upstream.is_quiet());
}

#[tokio::test]
async fn where_length_and_coding_disagree_the_coding_wins_and_the_connection_closes() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for fields in [
        "content-length: 6\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 6",
        "transfer-encoding: Chunked\r\ncontent-length: 0",
    ] {
        for path in [CHAT_PATH, "/v1/files"] {
            let mut client = proxy.connect().await;
            let smuggled = "GET /v1/smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
            client
                .send(format!(
                    "POST {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{smuggled}"
                ))
                .await;
            let call = upstream.next().await;
            assert_eq!(call.request.text(), "abc", "{fields}");
            let (length, coding) =
                (call.request.get("content-length"), call.request.get("transfer-encoding"));
            assert!(length.is_none() || coding.is_none(), "one framing goes up: {:?}", call.request.head);
            call.answer(200, &[], b"ok").await;
            assert_eq!(client.response().await.text(), "ok");
            client.ends().await;
        }
    }
    assert!(upstream.is_quiet(), "nothing after such a request is another one");
}

#[tokio::test]
async fn heads_that_are_none_are_answered_400_and_counted() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let heads = [
        "GARBAGE\r\n\r\n",
        "GET /v1/models HTTP/9.9\r\nhost: a\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: a\r\nx y: 1\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost : a\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: a\r\nx: 1\r\n folded\r\n\r\n",
        "GET /v1/models HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n",
        "GET /v1/\u{1}models HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\na",
        "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 2\r\n\r\na",
        "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\na",
        "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\na",
    ];
    for head in heads {
        let mut client = proxy.connect().await;
        client.send(head).await;
        assert_eq!(client.head().await.status(), 400, "{head:?}");
        client.rest().await;
    }
    let counted = proxy.metric("tidegate_connection_faults_total", "malformed_head").await;
    assert_eq!(counted, heads.len() as f64);
    assert!(upstream.is_quiet());
}

#[tokio::test]
async fn a_head_too_large_is_431() {
    let upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    let large = "x".repeat(100 << 10);
    client.send(format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nx-large: {large}\r\n\r\n")).await;
    assert_eq!(client.head().await.status(), 431);
}

#[tokio::test]
async fn a_chunk_size_that_is_none_is_400_and_never_reaches_the_upstream_as_a_whole_body() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for chunks in ["zz\r\nabc\r\n", "3\r\nabcX\r\n0\r\n\r\n", "-1\r\n", "fffffffffffffffff\r\nabc", "\r\nabc"]
    {
        let mut client = proxy.connect().await;
        client
            .send(format!(
                "POST {CHAT_PATH} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"
            ))
            .await;
        let response = client.response().await;
        assert_eq!((response.status(), response.code().as_str()), (400, "bad_request"), "{chunks:?}");
        client.ends().await;
    }
    assert!(upstream.is_quiet());
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn http_1_0_is_answered_in_kind() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send("GET /v1/models HTTP/1.0\r\n\r\n").await;
    let call = upstream.next().await;
    assert!(call.request.head.line.ends_with("HTTP/1.1"));
    call.raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(head.get("transfer-encoding"), None, "HTTP/1.0 has no chunks");
    assert_eq!(client.rest().await, b"abc");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    let get = |n: u32| format!("GET /v1/models/{n} HTTP/1.1\r\nhost: a\r\n\r\n");
    client.send((0..5).map(get).collect::<String>()).await;
    for n in 0..5 {
        let call = upstream.next().await;
        assert_eq!(call.request.head.target(), format!("/v1/models/{n}"));
        call.answer(200, &[], n.to_string().as_bytes()).await;
        assert_eq!(client.response().await.text(), n.to_string());
    }
}
