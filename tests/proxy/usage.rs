//! What answers cost is read while they pass: nothing of them changes, nothing of them waits.

use std::fs;

use serde_json::Value;

use crate::support::{CHAT, CHAT_PATH, CHAT_STREAM, JSON, Proxy, Raw, Setup, Upstream, Wire, request};

const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const STREAM: &[u8] = include_bytes!("../usage/chat.sse");
const ANSWER: &[u8] = include_bytes!("../usage/chat.json");

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

async fn tokens(proxy: &Proxy, kind: &str) -> f64 {
    proxy.metric("tidegate_tokens_total", &format!("kind=\"{kind}\"")).await
}

async fn unread(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric("tidegate_usage_unread_total", &format!("reason=\"{reason}\"")).await
}

/// A streamed request whose answer's head is out.
async fn streaming(upstream: &Raw, proxy: &Proxy) -> (Wire, Wire) {
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[JSON], CHAT_STREAM)).await;
    let mut wire = upstream.accept().await;
    assert_eq!(wire.message().await.body, CHAT_STREAM);
    wire.send(SSE).await;
    client.head().await;
    (client, wire)
}

#[tokio::test]
async fn a_stream_in_any_pieces_passes_as_it_came_and_is_read() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut asked = 0.0;
    for size in [1, 2, 3, 7, 64, 333, 1000, STREAM.len()] {
        let (mut client, mut wire) = streaming(&upstream, &proxy).await;
        for piece in STREAM.chunks(size) {
            wire.send(chunk(piece)).await;
            // the next is only sent once this one is here, as it was
            assert_eq!(client.chunk().await, piece, "pieces of {size}");
        }
        wire.send("0\r\n\r\n").await;
        assert_eq!(client.chunk().await, b"");
        proxy.in_flight(0).await;
        asked += 1.0;
        for (kind, n) in [("prompt", 1117.0), ("cached", 1024.0), ("output", 46.0), ("reasoning", 21.0)] {
            assert_eq!(tokens(&proxy, kind).await, asked * n, "{kind} in pieces of {size}");
        }
    }
    assert_eq!(tokens(&proxy, "audio_in").await, asked * 7.0);
    assert_eq!(proxy.metric("tidegate_time_per_output_token_seconds_count", "").await, asked);
    for why in ["absent", "encoded", "form", "cut_short"] {
        assert_eq!(unread(&proxy, why).await, 0.0, "{why}");
    }
}

#[tokio::test]
async fn a_whole_answer_is_read_and_the_next_estimate_knows_of_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for _ in 0..20 {
        let client = proxy.chat(&["accept-encoding: gzip, br"]).await;
        let call = upstream.next().await;
        assert_eq!(call.request.get("accept-encoding"), Some("identity"), "so that it can be read");
        call.answer(200, &[JSON], ANSWER).await;
        let mut client = client;
        assert_eq!(client.response().await.body, ANSWER);
    }
    proxy.in_flight(0).await;
    assert_eq!((tokens(&proxy, "prompt").await, tokens(&proxy, "output").await), (380.0, 4200.0));
    for kind in ["prompt", "output"] {
        let of = |measure: &str| format!("kind=\"{kind}\",measure=\"{measure}\"");
        let relative = proxy.metric("tidegate_token_estimate_error", &of("relative")).await;
        assert!(relative < 0.5, "the same cost each time: {kind} {relative}");
        let bias = proxy.metric("tidegate_token_estimate_error", &of("bias")).await;
        assert!(bias.abs() <= relative, "{kind} {bias}");
    }
}

#[tokio::test]
async fn what_takes_no_permit_keeps_its_encodings_and_is_not_read() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("GET", "/v1/models", &["accept-encoding: gzip"], b"")).await;
    let call = upstream.next().await;
    assert_eq!(call.request.get("accept-encoding"), Some("gzip"));
    call.answer(200, &[JSON, "content-encoding: gzip"], b"\x1f\x8b").await;
    assert_eq!(client.response().await.body, b"\x1f\x8b");
    assert_eq!(unread(&proxy, "encoded").await, 0.0);
}

#[tokio::test]
async fn what_cannot_be_read_passes_as_it_is_and_is_counted() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let odd: [(&str, &[&str], &[u8]); 4] = [
        ("encoded", &[JSON, "content-encoding: gzip"], b"\x1f\x8b\x08"),
        ("form", &["content-type: audio/mpeg"], b"ID3"),
        ("absent", &[JSON], b"{\"choices\":[]}"),
        ("absent", &[JSON], b"{\"usage\":{\"prompt_tokens\":"),
    ];
    let mut seen = 0.0;
    for (why, fields, body) in odd {
        let mut client = proxy.chat(&[]).await;
        upstream.next().await.answer(200, fields, body).await;
        assert_eq!(client.response().await.body, body, "{why}");
        proxy.in_flight(0).await;
        seen += 1.0;
        assert_eq!(proxy.metric("tidegate_usage_unread_total", "").await, seen, "{why}");
        assert!(unread(&proxy, why).await > 0.0, "{why}");
    }
    assert_eq!(tokens(&proxy, "prompt").await, 0.0);
}

#[tokio::test]
async fn a_stream_that_is_cut_short_is_counted_as_that_and_keeps_what_it_said() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    // broken off by the upstream, before any word of usage
    let (mut client, mut wire) = streaming(&upstream, &proxy).await;
    let half = &STREAM[..STREAM.len() / 2];
    wire.send(chunk(half)).await;
    assert_eq!(client.chunk().await, half);
    drop(wire);
    while client.try_chunk().await.is_some_and(|data| !data.is_empty()) {}
    proxy.in_flight(0).await;
    assert_eq!(unread(&proxy, "cut_short").await, 1.0);
    // left by its client, after it
    let (mut client, mut wire) = streaming(&upstream, &proxy).await;
    let nearly = &STREAM[..STREAM.len() - 4];
    wire.send(chunk(nearly)).await;
    assert_eq!(client.chunk().await, nearly);
    drop(client);
    proxy.in_flight(0).await;
    proxy.until("tidegate_tokens_total", "kind=\"output\"", |n| n == 46.0).await;
    assert_eq!(unread(&proxy, "cut_short").await, 1.0);
}

#[tokio::test]
async fn an_error_behind_a_good_status_is_no_success_and_no_fault_of_the_breaker() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("breaker.failures", 3).before(upstream.address);
    let error = br#"{"error":{"message":"overloaded","code":"overloaded"}}"#;
    for _ in 0..5 {
        let mut client = proxy.chat(&[]).await;
        upstream.next().await.answer(200, &[JSON], error).await;
        let answer = client.response().await;
        assert_eq!((answer.status(), &answer.body[..]), (200, &error[..]), "it passes as it is");
    }
    proxy.in_flight(0).await;
    assert_eq!(proxy.metric("tidegate_requests_total", "outcome=\"upstream_error\"").await, 5.0);
    proxy.breaker("closed").await;
}

#[tokio::test]
async fn the_access_log_says_what_it_cost() {
    let directory = std::env::temp_dir().join(format!("tidegate-usage-{}", std::process::id()));
    let mut upstream = Upstream::start().await;
    let log = format!("\"{}\"", directory.display());
    let proxy = Setup::default().set("telemetry.access_log", log.trim_matches('"')).before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let call = upstream.next().await;
    assert_eq!(call.request.body, CHAT);
    call.answer(200, &[JSON], ANSWER).await;
    client.response().await;
    drop(client);
    proxy.stop().drain();
    proxy.join().await;
    let line: Value = serde_json::from_str(fs::read_to_string(&directory).unwrap().trim()).unwrap();
    fs::remove_file(&directory).unwrap();
    let of = |key: &str| line[key].as_u64();
    assert_eq!((of("prompt_tokens"), of("cached_tokens")), (Some(19), Some(0)));
    assert_eq!((of("output_tokens"), of("reasoning_tokens")), (Some(210), Some(192)));
}

async fn asked(proxy: &Proxy, upstream: &mut Upstream, model: &str, status: u16, fields: &[&str]) {
    let mut client = proxy.connect().await;
    let body = format!(r#"{{"model":"{model}","messages":[]}}"#);
    client.send(request("POST", CHAT_PATH, &[JSON], body.as_bytes())).await;
    let call = upstream.next().await;
    assert_eq!(call.request.text(), body);
    call.answer(status, fields, b"{}").await;
    assert_eq!(client.response().await.status(), status);
}

#[tokio::test]
async fn invented_names_do_not_make_models_share_one_rate() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4).before(upstream.address);
    for n in 0..300 {
        asked(&proxy, &mut upstream, &format!("junk{n}"), 404, &[]).await;
    }
    for model in ["one", "other"] {
        asked(&proxy, &mut upstream, model, 200, &["content-type: application/json"]).await;
    }
    asked(&proxy, &mut upstream, "one", 429, &["retry-after: 30"]).await;
    // what stops the one is none of the other's business
    asked(&proxy, &mut upstream, "other", 200, &[]).await;
}
