//! The list of models: one upstream's passes as it is, several are made into one.

use std::collections::BTreeSet;

use crate::support::{Proxy, Setup, Upstream, nobody};

async fn before(first: std::net::SocketAddr, second: std::net::SocketAddr) -> Proxy {
    Setup::permits(4)
        .variable("A", "sk-a")
        .set("upstream.0.models", "gpt-*")
        .set("upstream.0.api_keys", "env:A")
        .set("upstream.1.name", "own")
        .set("upstream.1.base_url", format!("http://{second}/v1"))
        .set("upstream.1.models", "llama,*")
        .set("upstream.1.rename", "llama=org/Llama-3")
        .before(first)
}

fn ids(answer: &crate::support::Message) -> BTreeSet<String> {
    let json: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(json["object"], "list");
    json["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap().to_owned()).collect()
}

const GPTS: &[u8] =
    br#"{"object":"list","data":[{"id":"gpt-4o","object":"model","owned_by":"o"},{"id":"dall-e-3"}]}"#;
const OWN: &[u8] = br#"{"object":"list","data":[{"id":"org/Llama-3","object":"model"},{"id":"gpt-oss"}]}"#;

#[tokio::test]
async fn it_shows_what_can_be_asked_for_under_the_names_that_lead_there() {
    let (mut first, mut second) = (Upstream::start().await, Upstream::start().await);
    let proxy = before(first.address, second.address).await;
    let mut client = proxy.connect().await;
    client.send(crate::support::request("GET", "/v1/models", &["authorization: Bearer c"], b"")).await;
    let (a, b) = (first.next().await, second.next().await);
    assert_eq!((a.request.head.method(), a.request.head.target()), ("GET", "/v1/models"));
    assert_eq!(a.request.get("authorization"), Some("Bearer sk-a"));
    assert_eq!(b.request.get("authorization"), Some("Bearer c"));
    a.answer(200, &[], GPTS).await;
    b.answer(200, &[], OWN).await;
    let answer = client.response().await;
    assert_eq!(answer.status(), 200);
    // dall-e-3 would go to the second, which has none; gpt-oss to the first
    let wanted = ["gpt-4o", "llama", "org/Llama-3"].map(str::to_owned);
    assert_eq!(ids(&answer), wanted.into());
    assert!(answer.text().contains(r#""owned_by":"o""#), "{}", answer.text());
    assert_eq!(proxy.metric("tidegate_unqueued_in_flight", "").await, 0.0);
}

#[tokio::test]
async fn who_does_not_answer_is_left_out_and_only_if_nobody_does_it_is_a_fault() {
    let mut second = Upstream::start().await;
    let proxy = before(nobody().await, second.address).await;
    for (status, body, wanted) in
        [(200, OWN, 200), (500, b"{}", 502), (200, b"not a list", 502), (200, b"{}", 502)]
    {
        let mut client = proxy.connect().await;
        client.send(crate::support::request("GET", "/v1/models", &[], b"")).await;
        second.next().await.answer(status, &[], body).await;
        let answer = client.response().await;
        assert_eq!(answer.status(), wanted);
        if wanted == 200 {
            assert_eq!(ids(&answer), ["llama", "org/Llama-3"].map(str::to_owned).into());
        } else {
            assert_eq!(answer.code(), "upstream_error");
        }
    }
}

#[tokio::test]
async fn one_upstream_s_list_passes_as_it_is_and_one_model_is_asked_of_who_serves_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4).before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(crate::support::request("GET", "/v1/models", &[], b"")).await;
    upstream.next().await.answer(200, &["etag: x"], b"{ \"data\" : [] }").await;
    let answer = client.response().await;
    assert_eq!((answer.text().as_str(), answer.get("etag")), ("{ \"data\" : [] }", Some("x")));
    let mut own = Upstream::start().await;
    let proxy = before(upstream.address, own.address).await;
    for (path, there) in [
        ("/v1/models/gpt-4o", "/v1/models/gpt-4o"),
        ("/v1/models/org%2FLlama-3", "/v1/models/org%2FLlama-3"),
        ("/v1/models/llama", "/v1/models/org%2FLlama-3"),
    ] {
        let upstream = if path.contains("gpt") { &mut upstream } else { &mut own };
        let mut client = proxy.connect().await;
        client.send(crate::support::request("GET", path, &[], b"")).await;
        let call = upstream.next().await;
        assert_eq!(call.request.head.target(), there);
        call.answer(200, &[], b"{}").await;
        assert_eq!(client.response().await.status(), 200);
    }
}

#[tokio::test]
async fn a_body_that_comes_with_it_is_dropped_with_all_that_the_head_says_of_it() {
    let (mut first, mut second) = (Upstream::start().await, Upstream::start().await);
    let proxy = before(first.address, second.address).await;
    let mut client = proxy.connect().await;
    let fields = [crate::support::JSON, "content-encoding: identity", "trailer: x-sum"];
    client
        .send(crate::support::request("GET", "/v1/models", &fields, b"GET /v1/stolen HTTP/1.1\r\n\r\n"))
        .await;
    for (upstream, list) in [(&mut first, GPTS), (&mut second, OWN)] {
        let call = upstream.next().await;
        assert_eq!(call.request.body, b"");
        for name in ["content-length", "content-type", "content-encoding", "trailer"] {
            assert_eq!(call.request.get(name), None, "{name}");
        }
        call.answer(200, &[], list).await;
    }
    assert_eq!(client.response().await.status(), 200);
    // the next request on the same connections is what it is
    let mut next = proxy.connect().await;
    next.send(crate::support::request("GET", "/v1/models/gpt-4o", &[], b"")).await;
    let call = first.next().await;
    assert_eq!((call.connection, call.request.head.target()), (1, "/v1/models/gpt-4o"));
    call.answer(200, &[], b"{}").await;
    assert_eq!(next.response().await.status(), 200);
}

#[tokio::test]
async fn a_list_that_is_too_long_is_left_out_and_says_nothing_of_its_upstream() {
    let (mut first, mut second) = (Upstream::start().await, Upstream::start().await);
    let proxy = before(first.address, second.address).await;
    let long = vec![b' '; (8 << 20) + 1];
    for _ in 0..6 {
        let mut client = proxy.connect().await;
        client.send(crate::support::request("GET", "/v1/models", &[], b"")).await;
        let (a, b) = (first.next().await, second.next().await);
        let (_, _) = tokio::join!(a.answer(200, &["connection: close"], &long), b.answer(200, &[], OWN));
        assert_eq!(ids(&client.response().await), ["llama", "org/Llama-3"].map(str::to_owned).into());
    }
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "").await, 0.0);
}
