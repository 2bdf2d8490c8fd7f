//! Several upstreams: which of them a request goes to, and what happens when one of them fails.

use crate::support::{CHAT, CHAT_PATH, JSON, Setup, Upstream, nobody};

fn eager() -> Setup {
    Setup::permits(8).set("retry.budget", 500).set("retry.backoff", "1ms,1ms,1ms,1ms")
}

fn url(address: std::net::SocketAddr) -> String {
    format!("http://{address}/v1")
}

fn body(model: &str) -> Vec<u8> {
    format!(r#"{{"model":"{model}","messages":[]}}"#).into_bytes()
}

#[tokio::test]
async fn the_model_says_where() {
    let (mut first, mut second) = (Upstream::start().await, Upstream::start().await);
    let proxy = eager()
        .set("upstream.0.models", "gpt-*,o1")
        .set("upstream.1.name", "own")
        .set("upstream.1.base_url", url(second.address))
        .set("upstream.1.models", "llama")
        .set("upstream.1.rename", "llama=org/Llama-3")
        .before(first.address);
    for (model, wanted, name) in
        [("gpt-4o", "gpt-4o", "up"), ("o1", "o1", "up"), ("llama", "org/Llama-3", "own")]
    {
        let upstream = if name == "up" { &mut first } else { &mut second };
        let mut client = proxy.connect().await;
        client.send(crate::support::request("POST", CHAT_PATH, &[JSON], &body(model))).await;
        let call = upstream.next().await;
        assert_eq!(call.request.body, body(wanted));
        call.answer(200, &[], b"ok").await;
        let answer = client.response().await;
        assert_eq!((answer.status(), answer.get("x-tidegate-upstream")), (200, Some(name)));
    }
    let unknown = proxy.ask("POST", CHAT_PATH, &[JSON], &body("claude")).await;
    assert_eq!((unknown.status(), unknown.code().as_str()), (404, "model_not_found"));
    // with a second name, or encoded, it could mean anything
    let twice = proxy.ask("POST", CHAT_PATH, &[JSON], br#"{"model":"o1","model":"llama"}"#).await;
    assert_eq!((twice.status(), twice.code().as_str()), (400, "unreadable_body"));
    let encoded = proxy.ask("POST", CHAT_PATH, &[JSON, "content-encoding: gzip"], CHAT).await;
    assert_eq!((encoded.status(), encoded.code().as_str()), (415, "unreadable_body"));
    assert!(proxy.metric("tidegate_permits", "group=\"own\"").await > 0.0);
    assert!(first.is_quiet() && second.is_quiet());
}

#[tokio::test]
async fn one_that_fails_is_replaced_by_its_peer() {
    let mut alive = Upstream::start().await;
    let proxy = eager()
        .set("upstream.1.name", "alive")
        .set("upstream.1.base_url", url(alive.address))
        .set("breaker.failures", 3)
        .before(nobody().await);
    for _ in 0..20 {
        // a key that a client sends is no obstacle: both are servers of one's own
        let mut client = proxy.chat(&["authorization: Bearer EMPTY"]).await;
        alive.next().await.answer(200, &[], b"ok").await;
        assert_eq!(client.response().await.status(), 200);
    }
    assert_eq!(proxy.metric("tidegate_breaker_state", "upstream=\"up\",state=\"open\"").await, 1.0);
    assert_eq!(proxy.metric("tidegate_breaker_state", "upstream=\"alive\",state=\"closed\"").await, 1.0);
    assert_eq!(proxy.metric("tidegate_retries_total", "reason=\"connect\"").await, 3.0);
    assert_eq!(proxy.admin("/readyz").await.status(), 200);
}

#[tokio::test]
async fn a_later_tier_is_used_when_the_first_fails() {
    let (mut first, mut second) = (Upstream::start().await, Upstream::start().await);
    let proxy = eager()
        .set("upstream.1.name", "reserve")
        .set("upstream.1.base_url", url(second.address))
        .set("upstream.1.tier", 1)
        .before(first.address);
    for _ in 0..10 {
        let mut client = proxy.chat(&[]).await;
        first.next().await.answer(200, &[], b"ok").await;
        assert_eq!(client.response().await.get("x-tidegate-upstream"), Some("up"));
    }
    let mut client = proxy.chat(&[]).await;
    first.next().await.answer(503, &["retry-after: 30"], b"no").await;
    second.next().await.answer(200, &[], b"ok").await;
    assert_eq!(client.response().await.get("x-tidegate-upstream"), Some("reserve"));
}

#[tokio::test]
async fn a_form_s_model_says_where_as_well_and_is_renamed() {
    let (mut first, mut second) = (Upstream::start().await, Upstream::start().await);
    let proxy = eager()
        .set("upstream.1.name", "own")
        .set("upstream.1.base_url", url(second.address))
        .set("upstream.1.models", "whisper")
        .set("upstream.1.rename", "whisper=org/Whisper-3")
        .before(first.address);
    let form = |models: &[&str]| {
        let model =
            |name: &&str| format!("--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n{name}\r\n");
        let file = "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n\0\r\n\r\n";
        let models: String = models.iter().map(model).collect();
        format!("{file}{models}--x--\r\n").into_bytes()
    };
    let kind = "content-type: multipart/form-data; boundary=x";
    let path = "/v1/audio/transcriptions";
    for (sent, wanted, upstream) in
        [("other", "other", &mut first), ("whisper", "org/Whisper-3", &mut second)]
    {
        let mut client = proxy.connect().await;
        client.send(crate::support::request("POST", path, &[kind], &form(&[sent]))).await;
        let call = upstream.next().await;
        assert_eq!(call.request.body, form(&[wanted]));
        call.answer(200, &[], b"{}").await;
        assert_eq!(client.response().await.status(), 200);
    }
    let twice = proxy.ask("POST", path, &[kind], &form(&["whisper", "other"])).await;
    assert_eq!((twice.status(), twice.code().as_str()), (400, "unreadable_body"));
    // no encoding is none
    let mut client = proxy.connect().await;
    client
        .send(crate::support::request("POST", CHAT_PATH, &[JSON, "content-encoding: identity"], CHAT))
        .await;
    first.next().await.answer(200, &[], b"ok").await;
    assert_eq!(client.response().await.status(), 200);
}
