//! Several keys of one upstream: used in turn; one that is refused rests, and the others go on.

use crate::support::{JSON, Setup, Upstream, request};

fn two() -> Setup {
    Setup::permits(4)
        .variable("A", "sk-a")
        .variable("B", "sk-b")
        .set("upstream.0.api_keys", "env:A,env:B")
        .set("retry.budget", 500)
        .set("retry.backoff", "1ms,1ms,1ms,1ms")
}

#[tokio::test]
async fn they_are_used_in_turn_and_one_that_is_refused_rests() {
    let mut upstream = Upstream::start().await;
    let proxy = two().before(upstream.address);
    let mut used = Vec::new();
    for _ in 0..4 {
        let mut client = proxy.chat(&["authorization: Bearer client"]).await;
        let call = upstream.next().await;
        used.push(call.request.get("authorization").unwrap().to_owned());
        call.answer(200, &[], b"ok").await;
        client.response().await;
    }
    assert_eq!(used, ["Bearer sk-a", "Bearer sk-b", "Bearer sk-a", "Bearer sk-b"]);
    let mut client = proxy.chat(&[]).await;
    let call = upstream.next().await;
    assert_eq!(call.request.get("authorization"), Some("Bearer sk-a"));
    call.answer(401, &[], b"revoked").await;
    for _ in 0..3 {
        let call = upstream.next().await;
        assert_eq!(call.request.get("authorization"), Some("Bearer sk-b"));
        call.answer(200, &[], b"ok").await;
        assert_eq!(client.response().await.status(), 200);
        client = proxy.chat(&[]).await;
    }
    assert_eq!(proxy.metric("tidegate_upstream_keys_resting", "").await, 1.0);
    assert_eq!(proxy.metric("tidegate_retries_total", "reason=\"key\"").await, 1.0);
}

#[tokio::test]
async fn a_single_key_that_is_refused_and_a_client_s_own_pass_untouched() {
    let mut upstream = Upstream::start().await;
    let single = Setup::permits(4).variable("A", "sk-a").set("upstream.0.api_keys", "env:A");
    for setup in [single.set("retry.budget", 500), Setup::permits(4).set("retry.budget", 500)] {
        let proxy = setup.before(upstream.address);
        let mut client = proxy.chat(&["authorization: Bearer client"]).await;
        upstream.next().await.answer(401, &[], b"who are you").await;
        let answer = client.response().await;
        assert_eq!((answer.status(), answer.text().as_str()), (401, "who are you"));
        assert!(upstream.is_quiet());
    }
}

#[tokio::test]
async fn a_refused_key_rests_also_where_the_request_cannot_go_again() {
    let mut upstream = Upstream::start().await;
    for no_retries in [("limits.replay_bytes", "1"), ("retry.backoff", "")] {
        let proxy = two().set(no_retries.0, no_retries.1).before(upstream.address);
        for (key, status) in [("a", 401), ("b", 200), ("b", 200), ("b", 200)] {
            let mut client = proxy.chat(&[]).await;
            let call = upstream.next().await;
            assert_eq!(call.request.get("authorization"), Some(&*format!("Bearer sk-{key}")));
            call.answer(status, &[], b"").await;
            assert_eq!(client.response().await.status(), status);
        }
    }
}

#[tokio::test]
async fn a_key_that_is_refused_the_list_of_models_rests_too() {
    let (mut upstream, mut other) = (Upstream::start().await, Upstream::start().await);
    let proxy = two()
        .set("upstream.1.name", "other")
        .set("upstream.1.base_url", format!("http://{}/v1", other.address))
        .set("upstream.1.models", "llama")
        .before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(crate::support::request("GET", "/v1/models", &[], b"")).await;
    let call = upstream.next().await;
    assert_eq!(call.request.get("authorization"), Some("Bearer sk-a"));
    call.answer(401, &[], b"{}").await;
    other.next().await.answer(200, &[], br#"{"data":[]}"#).await;
    assert_eq!(client.response().await.status(), 200);
    assert_eq!(proxy.metric("tidegate_upstream_keys_resting", "").await, 1.0);
}

#[tokio::test]
async fn what_a_client_chose_makes_no_key_rest() {
    let mut upstream = Upstream::start().await;
    let proxy = two().before(upstream.address);
    let account = ["openai-organization: org-of-another", "openai-project: proj-of-another"];
    let mut clients = Vec::new();
    for header in account {
        clients.push(proxy.chat(&[header]).await);
    }
    let mut nowhere = proxy.connect().await;
    nowhere.send(request("POST", "/nowhere", &[JSON], br#"{"model":"tide-1"}"#)).await;
    clients.push(nowhere);
    let mut deletes = proxy.connect().await;
    deletes.send(request("DELETE", "/v1/models/mine", &[], b"")).await;
    clients.push(deletes);
    for mut client in clients {
        upstream.next().await.answer(401, &[], b"not yours").await;
        assert_eq!(client.response().await.status(), 401);
    }
    assert!(upstream.is_quiet());
    assert_eq!(proxy.metric("tidegate_upstream_keys_resting", "").await, 0.0);
}
