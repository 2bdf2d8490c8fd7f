//! WebSocket tunnels.

use crate::support::{Proxy, Raw, Setup, Upstream, Wire, request};

const ASK: &[&str] = &[
    "connection: keep-alive, Upgrade",
    "upgrade: websocket",
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    "sec-websocket-version: 13",
    "sec-websocket-protocol: realtime",
];
const AGREE: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                     sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nsec-websocket-protocol: realtime\r\n\r\n";

async fn open(proxy: &Proxy, upstream: &Raw) -> (Wire, Wire) {
    let mut client = proxy.connect().await;
    client.send(request("GET", "/v1/realtime?model=m", ASK, b"")).await;
    let mut wire = upstream.accept().await;
    let head = wire.head().await;
    assert_eq!(head.target(), "/v1/realtime?model=m");
    assert_eq!(head.get("upgrade"), Some("websocket"));
    assert!(head.get("connection").is_some_and(|v| v.eq_ignore_ascii_case("upgrade")));
    assert_eq!(head.get("sec-websocket-protocol"), Some("realtime"));
    wire.send(AGREE).await;
    let head = client.head().await;
    assert_eq!(head.status(), 101);
    assert_eq!(head.get("upgrade"), Some("websocket"));
    assert_eq!(head.get("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(head.get("transfer-encoding"), None);
    (client, wire)
}

#[tokio::test]
async fn a_tunnel_carries_bytes_both_ways_holds_its_permit_and_gives_it_back() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let (mut client, mut wire) = open(&proxy, &upstream).await;
    for n in 0..20_u8 {
        client.send([n, 0x81, 0, 255]).await;
        assert_eq!(wire.take(4).await, [n, 0x81, 0, 255]);
        wire.send([n; 1000]).await;
        assert_eq!(client.take(1000).await, [n; 1000]);
    }
    proxy.in_flight(1).await;
    assert_eq!(proxy.metric("tidegate_websockets", "").await, 1.0);
    let mut waits = proxy.chat(&[]).await;
    proxy.queued(1).await;
    drop(client);
    wire.ends().await;
    let mut chat = upstream.accept().await;
    chat.message().await;
    chat.send(crate::support::response(200, &[], b"ok")).await;
    assert_eq!(waits.response().await.status(), 200);
    proxy.in_flight(0).await;
    assert_eq!(proxy.metric("tidegate_websockets", "").await, 0.0);
}

#[tokio::test]
async fn a_tunnel_that_the_upstream_closes_closes_for_the_client() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let (mut client, mut wire) = open(&proxy, &upstream).await;
    wire.send("bye").await;
    drop(wire);
    assert_eq!(client.rest().await, b"bye");
    drop(client);
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn what_either_side_sends_right_behind_its_head_is_not_lost() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.connect().await;
    client.send([&request("GET", "/v1/realtime", ASK, b"")[..], b"early"].concat()).await;
    let mut wire = upstream.accept().await;
    wire.head().await;
    wire.send(format!("{AGREE}hello")).await;
    assert_eq!(client.head().await.status(), 101);
    assert_eq!(client.take(5).await, b"hello");
    assert_eq!(wire.take(5).await, b"early");
}

#[tokio::test]
async fn an_upstream_that_does_not_switch_answers_as_always() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let mut client = proxy.connect().await;
    client.send(request("GET", "/v1/realtime", ASK, b"")).await;
    let mut wire = upstream.accept().await;
    wire.head().await;
    wire.send(crate::support::response(401, &[], b"no")).await;
    let response = client.response().await;
    assert_eq!((response.status(), response.text().as_str()), (401, "no"));
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn more_tunnels_than_there_may_be_are_503() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(9).set("limits.max_websockets", 1).before(upstream.address);
    let (_client, _wire) = open(&proxy, &upstream).await;
    let mut more = proxy.connect().await;
    more.send(request("GET", "/v1/realtime", ASK, b"")).await;
    let response = more.response().await;
    assert_eq!((response.status(), response.code().as_str()), (503, "overloaded"));
}

#[tokio::test]
async fn an_upgrade_to_another_protocol_is_not_passed_on_and_the_request_is_served_without_it() {
    // with h2c a client would reach the upstream behind the queue's back, as often as it likes
    let mut upstream = crate::support::Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let mut client = proxy.connect().await;
    let fields =
        ["connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA"];
    client.send(request("POST", "/v1/chat/completions", &fields, crate::support::CHAT)).await;
    let call = upstream.next().await;
    assert_eq!(call.request.get("upgrade"), None);
    assert_eq!(call.request.get("http2-settings"), None);
    assert_eq!(proxy.metric("tidegate_websockets", "").await, 0.0);
    call.answer(200, &[], b"ok").await;
    assert_eq!(client.response().await.text(), "ok");
}

#[tokio::test]
async fn a_tunnel_is_not_held_to_the_timeouts_of_requests() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(4)
        .set("limits.header_timeout", "100ms")
        .set("limits.keep_alive_idle", "100ms")
        .before(upstream.address);
    let (mut client, mut wire) = open(&proxy, &upstream).await;
    client.send("one").await;
    assert_eq!(wire.take(3).await, b"one");
    let quiet = tokio::time::timeout(std::time::Duration::from_millis(400), wire.take(1)).await;
    assert!(quiet.is_err(), "it was ended though it only paused");
    client.send("two").await;
    assert_eq!(wire.take(3).await, b"two");
}

#[tokio::test]
async fn a_request_with_a_body_is_no_tunnel_whatever_it_says() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4).before(upstream.address);
    let mut client = proxy.connect().await;
    let fields = ["connection: upgrade", "upgrade: websocket", "content-type: application/json"];
    client.send(request("POST", "/v1/chat/completions", &fields, b"{\"model\":\"m\"}")).await;
    let call = upstream.next().await;
    assert!(call.request.head.get("upgrade").is_none());
    call.answer(200, &[], b"ok").await;
    assert_eq!(client.response().await.status(), 200);
}
