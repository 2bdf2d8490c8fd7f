//! Which fields travel along, which end here, and which are ours.

use crate::support::{CHAT, CHAT_PATH, Head, JSON, Message, Proxy, Setup, Upstream};

async fn exchange(
    proxy: &Proxy,
    upstream: &mut Upstream,
    fields: &[&str],
    answer: &[&str],
) -> (Message, Message) {
    let mut client = proxy.connect().await;
    client.send(crate::support::request("POST", CHAT_PATH, &[&[JSON], fields].concat(), CHAT)).await;
    let call = upstream.next().await;
    let seen = call.request.clone();
    call.answer(200, answer, b"ok").await;
    (seen, client.response().await)
}

fn absent(head: &Head, names: &[&str]) {
    for name in names {
        assert_eq!(head.all(name), Vec::<&str>::new(), "{name}");
    }
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_request_end_here() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let fields = [
        "connection: x-private, keep-alive",
        "connection: X-Other",
        "x-private: 1",
        "x-other: 2",
        "keep-alive: timeout=5",
        "proxy-connection: keep-alive",
        "proxy-authorization: Basic eA==",
        "te: gzip",
        "x-kept: 3",
        "x-stainless-retry-count: 0",
        "openai-organization: o",
        "user-agent: me",
        "accept-encoding: gzip, br",
    ];
    let (seen, _) = exchange(&proxy, &mut upstream, &fields, &[]).await;
    absent(
        &seen.head,
        &[
            "x-private",
            "x-other",
            "keep-alive",
            "proxy-connection",
            "proxy-authorization",
            "te",
            "connection",
        ],
    );
    for (name, value) in [
        ("x-kept", "3"),
        ("x-stainless-retry-count", "0"),
        ("openai-organization", "o"),
        ("user-agent", "me"),
        // its answer is read for its usage
        ("accept-encoding", "identity"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(seen.head.all(name), [value], "{name}");
    }
    assert_eq!(seen.head.all("host"), [upstream.address.to_string()]);
    assert_eq!(seen.head.all("content-length"), [CHAT.len().to_string()]);
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_response_end_here() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let fields = [
        "connection: x-private",
        "x-private: 1",
        "keep-alive: timeout=5",
        "proxy-authenticate: Basic",
        "set-cookie: a=1",
        "set-cookie: b=2",
        "openai-processing-ms: 12",
        "x-ratelimit-remaining-requests: 99",
        "date: Tue, 15 Nov 1994 08:12:31 GMT",
        "server: theirs",
    ];
    let (_, response) = exchange(&proxy, &mut upstream, &[], &fields).await;
    absent(&response.head, &["x-private", "keep-alive", "proxy-authenticate", "connection"]);
    for (name, values) in [
        ("set-cookie", vec!["a=1", "b=2"]),
        ("openai-processing-ms", vec!["12"]),
        ("x-ratelimit-remaining-requests", vec!["99"]),
        ("date", vec!["Tue, 15 Nov 1994 08:12:31 GMT"]),
        ("server", vec!["theirs"]),
    ] {
        assert_eq!(response.head.all(name), values, "{name}");
    }
}

#[tokio::test]
async fn fields_for_the_proxy_do_not_go_upstream() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let fields = ["x-tidegate-priority: high", "X-Tidegate-Deadline-Ms: 5000", "x-tidegate-unheard-of: 1"];
    let (seen, _) = exchange(&proxy, &mut upstream, &fields, &[]).await;
    let ours: Vec<_> = seen.head.fields.iter().filter(|(n, _)| n.starts_with("x-tidegate")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[tokio::test]
async fn odd_values_and_repeated_fields_arrive_as_they_were_sent() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let fields = ["x-twice: 1", "x-between: a", "x-twice: 2", "x-empty:", "x-utf8: sn\u{f6}", "x-tab: a\tb"];
    let (seen, response) = exchange(&proxy, &mut upstream, &fields, &fields).await;
    for head in [seen.head, response.head] {
        assert_eq!(head.all("x-twice"), ["1", "2"]);
        assert_eq!(head.all("x-empty"), [""]);
        assert_eq!(head.all("x-utf8"), ["sn\u{f6}"]);
        assert_eq!(head.all("x-tab"), ["a\tb"]);
    }
}

#[tokio::test]
async fn the_upstreams_request_id_is_kept_and_ours_stands_beside_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let (_, response) = exchange(&proxy, &mut upstream, &[], &["x-request-id: req_theirs"]).await;
    assert_eq!(response.head.all("x-request-id"), ["req_theirs"]);
    let ours = response.get("x-tidegate-request-id").unwrap().to_owned();
    assert_eq!(ours.len(), 32);
    let (_, response) = exchange(&proxy, &mut upstream, &[], &[]).await;
    assert_eq!(response.get("x-request-id"), response.get("x-tidegate-request-id"));
    assert_ne!(response.get("x-tidegate-request-id"), Some(ours.as_str()));
}

#[tokio::test]
async fn answers_that_passed_the_queue_say_how_long_it_was_and_where_they_come_from() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let theirs = [
        "x-tidegate-queue-ms: 99999",
        "x-tidegate-upstream: forged",
        "x-tidegate-request-id: forged",
        "x-tidegate-reason: queue_full",
    ];
    let (_, response) = exchange(&proxy, &mut upstream, &[], &theirs).await;
    assert_eq!(response.head.all("x-tidegate-upstream"), ["up"]);
    assert!(response.get("x-tidegate-queue-ms").unwrap().parse::<u64>().unwrap() < 5000);
    assert_eq!(response.head.all("x-tidegate-request-id").len(), 1);
    assert_ne!(response.get("x-tidegate-request-id"), Some("forged"));
    assert_eq!(response.get("x-tidegate-reason"), None);
}

#[tokio::test]
async fn a_key_without_its_scheme_is_repaired_and_others_pass() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    for (sent, came) in [
        ("authorization: sk-abc", "Bearer sk-abc"),
        ("authorization: Bearer sk-abc", "Bearer sk-abc"),
        ("authorization: Basic dTpw", "Basic dTpw"),
    ] {
        let (seen, _) = exchange(&proxy, &mut upstream, &[sent], &[]).await;
        assert_eq!(seen.head.all("authorization"), [came]);
    }
    let (seen, _) = exchange(&proxy, &mut upstream, &["x-api-key: sk-ant"], &[]).await;
    assert_eq!((seen.get("x-api-key"), seen.get("authorization")), (Some("sk-ant"), None));
}

#[tokio::test]
async fn the_upstreams_own_key_takes_the_place_of_the_clients() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("upstream.0.api_key", "env:UP_KEY")
        .variable("UP_KEY", "sk-up")
        .before(upstream.address);
    for sent in [&["authorization: Bearer sk-client"][..], &["authorization: sk-client"], &[]] {
        let (seen, _) = exchange(&proxy, &mut upstream, sent, &[]).await;
        assert_eq!(seen.head.all("authorization"), ["Bearer sk-up"]);
    }
    let (seen, _) = exchange(&proxy, &mut upstream, &["x-api-key: client"], &[]).await;
    assert_eq!(seen.get("x-api-key"), Some("sk-up"));
    assert_eq!(seen.get("authorization"), None);
}

#[tokio::test]
async fn a_client_cannot_strip_the_upstreams_key_by_naming_it_in_connection() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("upstream.0.api_key", "env:UP_KEY")
        .variable("UP_KEY", "sk-up")
        .before(upstream.address);
    let fields = ["connection: authorization, host, content-length"];
    let (seen, _) = exchange(&proxy, &mut upstream, &fields, &[]).await;
    assert_eq!(seen.head.all("authorization"), ["Bearer sk-up"]);
    assert_eq!(seen.head.all("host").len(), 1);
    assert_eq!(seen.body, CHAT);
}

#[tokio::test]
async fn the_upstreams_key_leaves_none_of_the_clients_keys_beside_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("upstream.0.api_key", "env:UP_KEY")
        .variable("UP_KEY", "sk-up")
        .before(upstream.address);
    let fields = [
        "authorization: Bearer client-1",
        "authorization: Bearer client-2",
        "x-api-key: client-3",
        "x-api-key: client-4",
        "api-key: client-5",
    ];
    let (seen, _) = exchange(&proxy, &mut upstream, &fields, &[]).await;
    let all = format!("{:?}", seen.head);
    assert!(!all.contains("client-"), "{all}");
    assert_eq!(seen.head.all("authorization"), ["Bearer sk-up"]);
}
