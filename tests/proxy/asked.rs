//! What the proxy asks of its upstreams by itself: whether they are well, and how busy they are.

use crate::support::{Setup, Upstream, request};

#[tokio::test]
async fn an_upstream_that_fails_its_check_twice_gets_nothing_until_it_passes() {
    let (mut sick, mut well) = (Upstream::start().await, Upstream::start().await);
    let proxy = Setup::permits(8)
        .set("upstream.0.check_path", "/health")
        .set("upstream.0.check_interval", "1s")
        .set("upstream.0.slow_start", "0s")
        .set("upstream.1.name", "well")
        .set("upstream.1.base_url", format!("http://{}/v1", well.address))
        .before(sick.address);
    for _ in 0..2 {
        let call = sick.next().await;
        assert_eq!((call.request.head.method(), call.request.head.target()), ("GET", "/health"));
        call.answer(503, &[], b"loading").await;
    }
    proxy.until("tidegate_upstream_unhealthy", "upstream=\"up\"", |n| n == 1.0).await;
    for _ in 0..8 {
        let mut client = proxy.chat(&[]).await;
        well.next().await.answer(200, &[], b"ok").await;
        assert_eq!(client.response().await.get("x-tidegate-upstream"), Some("well"));
    }
    sick.next().await.answer(204, &[], b"").await;
    proxy.until("tidegate_upstream_unhealthy", "upstream=\"up\"", |n| n == 0.0).await;
    // both are loaded alike now: with the one held, the next goes to the other
    let (_first, _second) = (proxy.chat(&[]).await, proxy.chat(&[]).await);
    let seen = loop {
        let call = sick.next().await;
        if call.request.head.target() != "/health" {
            break call;
        }
        call.answer(204, &[], b"").await;
    };
    assert_eq!(seen.request.head.method(), "POST");
}

#[tokio::test]
async fn what_a_server_says_of_its_queue_bounds_what_it_is_sent() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().set("upstream.0.server_metrics", "auto").before(upstream.address);
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = proxy.connect().await;
        client
            .send(request("POST", crate::support::CHAT_PATH, &[crate::support::JSON], crate::support::CHAT))
            .await;
        clients.push(client);
    }
    let (mut held, mut asked) = (Vec::new(), 0);
    while held.len() < 4 || asked < 3 {
        let call = upstream.next().await;
        if call.request.head.target() == "/metrics" {
            asked += 1;
            let page = if held.len() < 4 {
                "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
            } else {
                "vllm:num_requests_running 1\nvllm:num_requests_waiting 3\n"
            };
            call.answer(200, &["content-type: text/plain"], page.as_bytes()).await;
        } else {
            held.push(call);
        }
    }
    // it began at 32, and falls by steps: one page may have caught a bad moment
    proxy.until("tidegate_upstream_limit", "", |n| n <= 23.0).await;
}
