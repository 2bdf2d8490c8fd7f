//! Every method and path goes through, known or not.

use crate::support::{CHAT, JSON, Proxy, Setup, Upstream};

/// Sends a request and returns method and target as the upstream saw them.
async fn seen(proxy: &Proxy, upstream: &mut Upstream, method: &str, target: &str, body: &[u8]) -> String {
    let mut client = proxy.connect().await;
    client.send(crate::support::request(method, target, &[JSON], body)).await;
    let call = upstream.next().await;
    let line = format!("{} {}", call.request.head.method(), call.request.head.target());
    assert_eq!(call.request.body, body, "{line}");
    call.answer(200, &[], b"").await;
    // a response to HEAD has no body, and here no other has one either
    assert_eq!(client.head().await.status(), 200, "{line}");
    line
}

#[tokio::test]
async fn every_inference_path_goes_through_with_its_body() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/audio/speech",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/moderations",
        "/v1/rerank",
    ] {
        assert_eq!(seen(&proxy, &mut upstream, "POST", path, CHAT).await, format!("POST {path}"));
    }
}

#[tokio::test]
async fn unknown_paths_prefixes_and_methods_go_through() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for line in [
        "GET /v1/models",
        "GET /",
        "GET /health",
        "GET /metrics",
        "DELETE /v1/files/file-1",
        "PUT /v1/anything",
        "PATCH /v1/x",
        "POST /v1/batches",
        "POST /openai/deployments/gpt/chat/completions?api-version=2024-02-01",
        "POST /api/v3/tenant/x/v1/chat/completions",
        "GET /v1beta/models/gemini:generateContent",
        "PROPFIND /dav",
        "BREW /coffee",
        "x-lower!#$%&'*+.^_`|~ /custom",
        "OPTIONS /v1/chat/completions",
        "TRACE /v1/x",
        "HEAD /v1/models",
    ] {
        let (method, target) = line.split_once(' ').unwrap();
        assert_eq!(seen(&proxy, &mut upstream, method, target, b"").await, line);
    }
}

#[tokio::test]
async fn options_asterisk_goes_through() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    assert_eq!(seen(&proxy, &mut upstream, "OPTIONS", "*", b"").await, "OPTIONS *");
}

#[tokio::test]
async fn queries_and_percent_encodings_are_not_touched() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for target in [
        "/v1/models?limit=10&after=a%20b&x=%2F+%zz",
        "/v1/models/org%2Fmodel%3A7b",
        "/v1/files/%E2%82%AC/content?",
        "/v1/a//b/./c/../d",
        "/v1/models?a=b?c=d&&",
        "/v1/x;y=1,2'(3)!*~$@:",
        "/v1/%7Euser?q=[1]{2}|\\^`",
        "//double",
    ] {
        assert_eq!(seen(&proxy, &mut upstream, "GET", target, b"").await, format!("GET {target}"));
    }
}

#[tokio::test]
async fn a_base_url_with_a_path_of_its_own_takes_the_place_of_v1() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().at(&format!("http://{}/openai/v1/", upstream.address));
    for (asked, came) in [
        ("/v1/models?a=%2F", "/openai/v1/models?a=%2F"),
        ("/v1", "/openai/v1"),
        ("/v1x/models", "/v1x/models"),
        ("/health", "/health"),
    ] {
        assert_eq!(seen(&proxy, &mut upstream, "GET", asked, b"").await, format!("GET {came}"));
    }
}

#[tokio::test]
async fn an_absolute_target_is_taken_as_its_path() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let line = seen(&proxy, &mut upstream, "GET", "http://elsewhere.example/v1/models?x=1", b"").await;
    assert_eq!(line, "GET /v1/models?x=1");
}

#[tokio::test]
async fn connect_is_refused_because_this_is_no_forward_proxy() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send("CONNECT elsewhere.example:443 HTTP/1.1\r\nhost: elsewhere.example:443\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 400);
    assert!(upstream.is_quiet());
}

#[tokio::test]
async fn head_keeps_the_length_that_get_would_have_and_has_no_body() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(crate::support::request("HEAD", "/v1/models", &[], b"")).await;
    let call = upstream.next().await;
    call.raw("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\netag: \"x\"\r\n\r\n").await;
    let head = client.head().await;
    assert_eq!(
        (head.status(), head.get("content-length"), head.get("etag")),
        (200, Some("1234"), Some("\"x\""))
    );
    // and both connections serve another request
    client.send(crate::support::request("GET", "/v1/models", &[], b"")).await;
    let call = upstream.next().await;
    assert_eq!((call.request.head.method(), call.connection), ("GET", 1));
    call.answer(200, &[], b"list").await;
    assert_eq!(client.message().await.text(), "list");
}

#[tokio::test]
async fn responses_without_a_body_stay_without_one() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    for (bytes, status) in [
        ("HTTP/1.1 204 No Content\r\nx-a: 1\r\n\r\n", 204),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\netag: \"y\"\r\n\r\n", 304),
        ("HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n", 205),
    ] {
        client.send(crate::support::request("GET", "/v1/x", &[], b"")).await;
        upstream.next().await.raw(bytes).await;
        let head = client.head().await;
        assert_eq!(head.status(), status);
        assert_eq!(head.get("transfer-encoding"), None, "{status}");
    }
    assert!(client.is_silent().await);
}

#[tokio::test]
async fn every_status_of_the_upstream_is_its_own() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("breaker.failures", 100)
        .set("breaker.min_samples", 1000)
        .before(upstream.address);
    let mut client = proxy.connect().await;
    for status in [200, 201, 302, 400, 401, 404, 409, 418, 422, 429, 500, 502, 503, 504, 529, 599, 799] {
        client.send(crate::support::request("POST", "/v1/chat/completions", &[JSON], CHAT)).await;
        upstream.next().await.answer(status, &["retry-after: 7", "x-own: yes"], b"{\"mine\":1}").await;
        let response = client.response().await;
        assert_eq!(response.status(), status);
        assert_eq!(response.text(), "{\"mine\":1}");
        assert_eq!(response.get("retry-after"), Some("7"));
        assert_eq!(response.get("x-own"), Some("yes"));
        assert_eq!(response.get("x-tidegate-reason"), None, "whose {status} it is must be plain");
        assert_eq!(response.get("x-should-retry"), None);
    }
}
