//! Permits, the queue, and whose turn it is.

use std::time::Duration;

use tidegate::clock::Clock;
use tidegate::demo::{Faults, Law, OverCapacity, SimulatedLlm};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::{CHAT, CHAT_PATH, JSON, Setup, Upstream, Wire, request};

const TAG: &str = "x-tag";

/// Sends requests of which each names itself, and waits until each is in the queue.
async fn line_up(proxy: &crate::support::Proxy, requests: &[(&str, &[&str])]) -> Vec<Wire> {
    let before = proxy.metric("tidegate_queue_requests", "").await as u32;
    let mut clients = Vec::new();
    for (n, (tag, fields)) in requests.iter().enumerate() {
        let tag = format!("{TAG}: {tag}");
        clients.push(proxy.chat(&[&[tag.as_str()], *fields].concat()).await);
        proxy.queued(before + n as u32 + 1).await;
    }
    clients
}

/// Answers `n` requests one by one and says in which order they came.
async fn order(upstream: &mut Upstream, n: usize) -> Vec<String> {
    let mut order = Vec::new();
    for _ in 0..n {
        let call = upstream.next().await;
        order.push(call.request.get(TAG).unwrap_or("first").to_owned());
        call.answer(200, &[], b"").await;
    }
    order
}

/// 120 clients at once against 7 permits; every `leaver`th leaves after the head. The most at the upstream.
async fn peak(leaver: usize) -> usize {
    let law = Law {
        capacity: 1000,
        over_capacity: OverCapacity::QueueInside,
        prefill: Duration::from_millis(5),
        prefill_per_1k_tokens: Duration::ZERO,
        per_token: Duration::from_millis(1),
        output_tokens: 10,
        jitter: 0.5,
        faults: Faults::default(),
    };
    let llm = SimulatedLlm::new(law, 1, Clock::start());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    let serving = llm.clone();
    tasks.spawn(async move { serving.listen(listener, std::future::pending()).await.unwrap() });
    let proxy = Setup::permits(7).set("listen.workers", 2).before(address);
    let mut clients = JoinSet::new();
    for n in 1..=120 {
        let address = proxy.address;
        clients.spawn(async move {
            let mut client = Wire::connect(address).await;
            let body: &[u8] = if n % 2 == 0 {
                br#"{"model":"tide-1","stream":true,"messages":[{"role":"user","content":"hi"}]}"#
            } else {
                br#"{"model":"tide-1","messages":[{"role":"user","content":"hi"}]}"#
            };
            client.send(request("POST", CHAT_PATH, &[JSON], body)).await;
            let head = client.head().await;
            if n % leaver != 0 {
                client.body_of(head.clone()).await;
            }
            head.status()
        });
    }
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    proxy.in_flight(0).await;
    proxy.queued(0).await;
    llm.stats().peak_in_flight
}

#[tokio::test]
async fn no_more_than_the_permits_are_ever_at_the_upstream() {
    assert_eq!(peak(usize::MAX).await, 7);
}

#[tokio::test]
async fn clients_that_leave_lose_no_permit_and_invent_none() {
    // the upstream hears of a client that left a moment after its permit is free: as many may overlap as leave
    let peak = peak(10).await;
    assert!((7..=19).contains(&peak), "{peak}");
}

#[tokio::test]
async fn those_who_wait_are_served_in_the_order_they_came() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let _first = proxy.chat(&[]).await;
    proxy.in_flight(1).await;
    let _clients = line_up(&proxy, &[("a", &[]), ("b", &[]), ("c", &[]), ("d", &[])]).await;
    assert_eq!(order(&mut upstream, 5).await, ["first", "a", "b", "c", "d"]);
}

#[tokio::test]
async fn the_more_urgent_go_first_and_the_least_urgent_still_go() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let _first = proxy.chat(&[]).await;
    proxy.in_flight(1).await;
    let (high, low) = (&["x-tidegate-priority: HIGH"][..], &["x-tidegate-priority: low"][..]);
    let odd = &["x-tidegate-priority: whatever"][..];
    let requests = [("l", low), ("n1", &[][..]), ("n2", odd), ("h1", high), ("h2", high)];
    let _clients = line_up(&proxy, &requests).await;
    let mut queue = order(&mut upstream, 6).await;
    assert_eq!(queue.pop().as_deref(), Some("l"));
    assert_eq!(queue[..3], ["first", "h1", "h2"]);
}

#[tokio::test]
async fn a_tenant_with_many_requests_does_not_bury_one_with_few() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let _first = proxy.chat(&[]).await;
    proxy.in_flight(1).await;
    let (many, few) = (&["authorization: Bearer many"][..], &["authorization: Bearer few"][..]);
    // long answers, so that a turn is one request
    let mut clients = Vec::new();
    let body = br#"{"model":"m","messages":[],"max_tokens":4000}"#;
    for (n, who) in (0..12).map(|_| many).chain([few, few]).enumerate() {
        let tag = format!("{TAG}: {}", if n < 12 { "many" } else { "few" });
        let mut client = proxy.connect().await;
        client.send(request("POST", CHAT_PATH, &[who, &[tag.as_str(), JSON]].concat(), body)).await;
        proxy.queued(n as u32 + 1).await;
        clients.push(client);
    }
    let order = order(&mut upstream, 15).await;
    let last_of_few = order.iter().rposition(|tag| tag == "few").unwrap();
    assert!(last_of_few <= 5, "{order:?}");
}

#[tokio::test]
async fn what_bypasses_the_queue_is_not_held_up_by_a_full_one() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).set("queue.max_requests", 1).before(upstream.address);
    let _running = proxy.chat(&[]).await;
    let _held = upstream.next().await;
    let _waiting = proxy.chat(&[]).await;
    proxy.queued(1).await;
    for (method, path) in [
        ("GET", "/v1/models"),
        ("POST", "/v1/files"),
        ("GET", "/v1/batches/b"),
        ("GET", CHAT_PATH),
        ("POST", "/tokenize"),
    ] {
        let mut client = proxy.connect().await;
        client.send(request(method, path, &[JSON], b"{}")).await;
        upstream.next().await.answer(200, &[], b"ok").await;
        let response = client.response().await;
        assert_eq!(response.status(), 200, "{method} {path}");
        assert_eq!(response.get("x-tidegate-queue-ms"), None, "it did not pass the queue");
    }
}

#[tokio::test]
async fn a_post_to_an_unknown_path_takes_a_permit_if_its_json_names_a_model() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    for (path, kind, body, takes) in [
        ("/v1/score", JSON, CHAT, true),
        ("/api/generate", "content-type: application/json; charset=utf-8", CHAT, true),
        ("/v1/score", JSON, b"{\"models\":\"m\"}", false),
        ("/v1/score", JSON, b"not json", false),
        ("/v1/score", "content-type: text/plain", CHAT, false),
        ("/v1/files", JSON, CHAT, false),
    ] {
        let mut client = proxy.connect().await;
        client.send(request("POST", path, &[kind], body)).await;
        let call = upstream.next().await;
        assert_eq!(call.request.body, body);
        let in_flight = proxy.metric("tidegate_in_flight", "").await;
        assert_eq!(in_flight, f64::from(u8::from(takes)), "{path} {kind} {}", String::from_utf8_lossy(body));
        call.answer(200, &[], b"").await;
        client.response().await;
        proxy.in_flight(0).await;
    }
}

#[tokio::test]
async fn each_of_the_three_deadline_fields_ends_the_wait() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let _running = proxy.chat(&[]).await;
    let _held = upstream.next().await;
    for (field, least, most) in [
        ("x-tidegate-deadline-ms: 150", 150, 900),
        ("x-stainless-read-timeout: 0.2", 200, 900),
        ("x-stainless-timeout: 1", 1000, 1900),
    ] {
        let clock = Clock::start();
        let response = proxy.chat(&[field]).await.response().await;
        let took = clock.now().since(Default::default()).as_millis();
        assert_eq!((response.status(), response.code().as_str()), (429, "queue_timeout"), "{field}");
        assert!((least..most).contains(&took), "{field}: {took} ms");
    }
}

#[tokio::test]
async fn a_deadline_that_is_nonsense_is_none() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let _running = proxy.chat(&[]).await;
    let held = upstream.next().await;
    let fields = ["x-stainless-timeout: 0", "x-tidegate-deadline-ms: -5", "x-stainless-read-timeout: NaN"];
    let mut waiting = Vec::new();
    for field in fields {
        waiting.push(proxy.chat(&[field]).await);
    }
    proxy.queued(3).await;
    held.answer(200, &[], b"").await;
    for mut client in waiting {
        upstream.next().await.answer(200, &[], b"").await;
        assert_eq!(client.response().await.status(), 200);
    }
}

#[tokio::test]
async fn a_deadline_that_passes_at_the_upstream_is_504_and_lets_go_of_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).set("breaker.failures", 1).before(upstream.address);
    let mut client = proxy.chat(&["x-tidegate-deadline-ms: 200"]).await;
    let mut call = upstream.next().await;
    let response = client.response().await;
    assert_eq!((response.status(), response.code().as_str()), (504, "upstream_timeout"));
    call.wire.ends().await;
    proxy.in_flight(0).await;
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "").await, 0.0, "the client chose it");
}
