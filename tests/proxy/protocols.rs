//! HTTP/2 on either side, and TLS to the upstream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{CHAT, CHAT_PATH, CHAT_STREAM, JSON, Proxy, Raw, Setup, Upstream, within};

type Body = Full<Bytes>;

/// An HTTP/2 client of the proxy; the set drives its connection.
async fn h2(proxy: &Proxy, tasks: &mut JoinSet<()>, window: u32) -> SendRequest<Body> {
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (handle, driver) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(window)
        .handshake::<_, Body>(TokioIo::new(stream))
        .await
        .unwrap();
    tasks.spawn(async move { drop(driver.await) });
    handle
}

fn post(body: &'static [u8]) -> Request<Body> {
    Request::post(format!("http://tidegate{CHAT_PATH}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from_static(body)))
        .unwrap()
}

async fn answer(handle: &mut SendRequest<Body>, request: Request<Body>) -> Response<Incoming> {
    within("a response over HTTP/2", handle.send_request(request)).await.unwrap()
}

#[tokio::test]
async fn a_client_may_speak_http_2_from_the_start() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut tasks = JoinSet::new();
    let mut handle = h2(&proxy, &mut tasks, 1 << 20).await;
    let (response, ()) = tokio::join!(answer(&mut handle, post(CHAT)), async {
        let call = upstream.next().await;
        assert!(call.request.head.line.ends_with("HTTP/1.1"));
        assert_eq!(call.request.body, CHAT);
        assert_eq!(call.request.head.all("host"), [upstream.address.to_string()]);
        let trailers = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: 1\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n";
        call.raw(trailers).await;
    });
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    assert!(
        !response.headers().contains_key("x-hop") && !response.headers().contains_key("transfer-encoding")
    );
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().and_then(|t| t.get("x-sum")).map(|v| v.as_bytes()), Some(&b"1"[..]));
    assert_eq!(body.to_bytes(), "ok");
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn a_get_over_http_2_grows_no_body_and_split_cookies_become_one() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut tasks = JoinSet::new();
    let mut handle = h2(&proxy, &mut tasks, 1 << 20).await;
    let mut request = Request::get("http://tidegate/v1/models?a=%2F").body(Full::default()).unwrap();
    request.headers_mut().append("cookie", "a=1".parse().unwrap());
    request.headers_mut().append("cookie", "b=2".parse().unwrap());
    let (response, ()) = tokio::join!(answer(&mut handle, request), async {
        let call = upstream.next().await;
        assert_eq!(call.request.head.line, "GET /v1/models?a=%2F HTTP/1.1");
        assert_eq!(call.request.get("transfer-encoding"), None);
        assert_eq!(call.request.get("content-length"), None);
        // RFC 9113 §8.2.3
        assert_eq!(call.request.head.all("cookie"), ["a=1; b=2"]);
        call.answer(200, &[], b"ok").await;
    });
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
}

#[tokio::test]
async fn a_reset_stream_of_http_2_cancels_its_request_and_the_others_go_on() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(9).before(upstream.address);
    let mut tasks = JoinSet::new();
    let mut handle = h2(&proxy, &mut tasks, 1 << 20).await;
    let mut wires = Vec::new();
    let mut responses = Vec::new();
    for _ in 0..2 {
        let sent = handle.send_request(post(CHAT_STREAM));
        let (response, wire) = tokio::join!(sent, async {
            let mut wire = upstream.accept().await;
            wire.message().await;
            wire.send(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
            )
            .await;
            wire
        });
        responses.push(response.unwrap());
        wires.push(wire);
    }
    proxy.in_flight(2).await;
    drop(responses.remove(0));
    let mut cancelled = wires.remove(0);
    cancelled.ends().await;
    proxy.in_flight(1).await;
    wires[0].send("2\r\nok\r\n0\r\n\r\n").await;
    let body = responses.remove(0).into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "ok");
}

#[tokio::test]
async fn a_stream_of_http_2_whose_window_stays_shut_gives_its_permit_back() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(1).set("limits.write_timeout", "300ms").before(upstream.address);
    let mut tasks = JoinSet::new();
    let mut handle = h2(&proxy, &mut tasks, 0).await;
    let (response, mut wire) = tokio::join!(answer(&mut handle, post(CHAT_STREAM)), async {
        let mut wire = upstream.accept().await;
        wire.message().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        wire
    });
    for _ in 0..4 {
        wire.send("5\r\nhello\r\n").await;
    }
    wire.rest().await;
    proxy.in_flight(0).await;
    drop(response);
}

#[tokio::test]
async fn a_drain_lets_http_2_streams_finish() {
    let upstream = Raw::start().await;
    let proxy = Setup::permits(4).before(upstream.address);
    let mut tasks = JoinSet::new();
    let mut handle = h2(&proxy, &mut tasks, 1 << 20).await;
    let (response, mut wire) = tokio::join!(answer(&mut handle, post(CHAT_STREAM)), async {
        let mut wire = upstream.accept().await;
        wire.message().await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        wire
    });
    proxy.stop().drain();
    proxy.until("tidegate_in_flight", "", |n| n == 1.0).await;
    wire.send("2\r\nok\r\n0\r\n\r\n").await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    proxy.join().await;
}

/// An address that answers `hello` over TLS, and the certificate to trust.
async fn tls_upstream(tasks: &mut JoinSet<()>) -> (std::net::SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let mut wire = crate::support::Wire::new(stream);
            while let Some(head) = wire.try_head().await {
                wire.body_of(head).await;
                wire.send(crate::support::response(200, &[], b"hello")).await;
            }
        }
    });
    (address, made.cert.pem())
}

#[tokio::test]
async fn the_upstream_may_be_behind_tls_with_a_certificate_of_ones_own() {
    let mut tasks = JoinSet::new();
    let (address, pem) = tls_upstream(&mut tasks).await;
    let file =
        std::env::temp_dir().join(format!("tidegate-ca-{}-{}.pem", std::process::id(), address.port()));
    std::fs::write(&file, pem).unwrap();
    let url = format!("https://localhost:{}/v1", address.port());
    let proxy = Setup::default().set("upstream.0.ca_file", file.display()).at(&url);
    std::fs::remove_file(&file).unwrap();
    for _ in 0..2 {
        let response = proxy.ask("POST", CHAT_PATH, &[JSON], CHAT).await;
        assert_eq!((response.status(), response.text().as_str()), (200, "hello"));
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_is_a_502() {
    let mut tasks = JoinSet::new();
    let (address, _) = tls_upstream(&mut tasks).await;
    let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap().cert.pem();
    let file =
        std::env::temp_dir().join(format!("tidegate-ca-{}-{}.pem", std::process::id(), address.port()));
    std::fs::write(&file, other).unwrap();
    let url = format!("https://localhost:{}/v1", address.port());
    let proxy = Setup::default().set("upstream.0.ca_file", file.display()).at(&url);
    std::fs::remove_file(&file).unwrap();
    let response = proxy.ask("POST", CHAT_PATH, &[JSON], CHAT).await;
    assert_eq!((response.status(), response.code().as_str()), (502, "upstream_error"));
}

#[tokio::test]
async fn a_connection_that_does_not_come_up_is_504() {
    // it accepts TCP and never says anything, so TLS does not come up
    let silent = Raw::start().await;
    let url = format!("https://localhost:{}/v1", silent.address.port());
    let pem = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap().cert.pem();
    let file = std::env::temp_dir().join(format!(
        "tidegate-ca-{}-{}.pem",
        std::process::id(),
        silent.address.port()
    ));
    std::fs::write(&file, pem).unwrap();
    let proxy = Setup::default()
        .set("upstream.0.ca_file", file.display())
        .set("upstream.0.connect_timeout", "200ms")
        .at(&url);
    std::fs::remove_file(&file).unwrap();
    let response =
        tokio::time::timeout(Duration::from_secs(5), proxy.ask("POST", CHAT_PATH, &[JSON], CHAT)).await;
    let response = response.unwrap();
    assert_eq!((response.status(), response.code().as_str()), (504, "upstream_timeout"));
}

#[tokio::test]
async fn a_stream_of_http_2_that_is_reset_while_queued_takes_its_ticket_with_it() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let _running = proxy.chat(&[]).await;
    let _call = upstream.next().await;
    let mut tasks = JoinSet::new();
    let mut handle = h2(&proxy, &mut tasks, 1 << 20).await;
    let mut waiting = Box::pin(handle.send_request(post(CHAT)));
    tokio::select! {
        _ = &mut waiting => panic!("there is no permit for it"),
        () = proxy.queued(1) => {}
    }
    drop(waiting);
    proxy.queued(0).await;
}

#[tokio::test]
async fn an_idle_connection_of_http_2_does_not_hold_up_a_drain() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(1).before(upstream.address);
    let mut tasks = JoinSet::new();
    let mut handle = h2(&proxy, &mut tasks, 1 << 20).await;
    let (response, ()) = tokio::join!(answer(&mut handle, post(CHAT)), async {
        upstream.next().await.answer(200, &[], b"ok").await;
    });
    response.into_body().collect().await.unwrap();
    let clock = tidegate::clock::Clock::start();
    proxy.stop().drain();
    proxy.join().await;
    assert!(clock.now().since(Default::default()) < Duration::from_secs(3));
}
