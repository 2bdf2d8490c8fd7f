//! Connections opened ahead of need, on real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tidegate::clock::Clock;
use tidegate::telemetry::ConnectReason;
use tidegate::upstream::{Params, Upstream as Endpoint};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::support::{Client, Setup, Upstream, Wire, nobody, response, within};

fn params(base_url: String) -> Params {
    Params { base_url: base_url.parse().unwrap(), ..Params::default() }
}

fn client(params: Params, workers: usize) -> Client {
    Client::new(Endpoint::new(params, workers, Clock::start()).unwrap(), workers)
}

/// Waits until so many connections wait for a request.
async fn ready(client: &Client, n: usize) {
    within("connections to be ready", async {
        while client.idle() < n {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// An upstream that answers every request, over TLS or without, and counts connections.
struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    /// The certificate to trust, where it speaks TLS.
    pem: Option<String>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(tls: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (acceptor, pem) = if tls { acceptor() } else { (None, None) };
        let count = accepted.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream, acceptor.clone()));
            }
        });
        Self { address, accepted, pem, _tasks: tasks }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    fn params(&self) -> Params {
        match &self.pem {
            None => params(format!("http://{}/v1", self.address)),
            Some(_) => params(format!("https://localhost:{}/v1", self.address.port())),
        }
    }

    fn client(&self, params: Params, workers: usize) -> Client {
        let Some(pem) = &self.pem else { return client(params, workers) };
        let name = format!("tidegate-warm-{}-{}.pem", std::process::id(), self.address.port());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, pem).unwrap();
        let client = client(Params { ca_file: Some(file.clone()), ..params }, workers);
        std::fs::remove_file(&file).unwrap();
        client
    }
}

fn acceptor() -> (Option<tokio_rustls::TlsAcceptor>, Option<String>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Some(tokio_rustls::TlsAcceptor::from(Arc::new(config))), Some(made.cert.pem()))
}

async fn serve(stream: TcpStream, tls: Option<tokio_rustls::TlsAcceptor>) {
    let mut wire = match tls {
        None => Wire::new(stream),
        Some(tls) => match tls.accept(stream).await {
            Ok(stream) => Wire::new(stream),
            Err(_) => return,
        },
    };
    // for as long as it takes until the first request comes
    while wire.wait().await {
        let Some(head) = wire.try_head().await else { return };
        wire.body_of(head).await;
        wire.send(response(200, &[], b"hello")).await;
    }
}

#[tokio::test]
async fn connections_are_open_before_the_first_request_and_a_burst_makes_none() {
    let mut upstream = Upstream::start().await;
    let client = client(params(format!("http://{}/v1", upstream.address)), 1);
    client.aim(30);
    ready(&client, 30).await;
    assert!(upstream.is_quiet(), "no request has been made");
    let answering = async {
        // all are there before the first is answered
        let mut calls = Vec::new();
        while calls.len() < 30 {
            calls.push(upstream.next().await);
        }
        for call in calls {
            call.answer(200, &[], b"ok").await;
        }
    };
    let (answers, ()) = tokio::join!(join_all((0..30).map(|_| client.ask(0))), answering);
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|body| body == "ok")));
    assert_eq!((upstream.connections(), client.on_demand()), (30, 0));
}

#[tokio::test]
async fn over_tls_the_handshakes_are_done_as_well() {
    let server = Server::start(true).await;
    let client = server.client(server.params(), 2);
    client.aim(12);
    ready(&client, 12).await;
    // the second worker's are as good as its own to the first
    let answers = join_all((0..12).map(|_| client.ask(0))).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|body| body == "hello")));
    assert_eq!((server.accepted(), client.on_demand()), (12, 0));
}

#[tokio::test]
async fn over_tls_under_load_every_connection_is_replaced_and_no_request_fails_or_makes_one() {
    let server = Server::start(true).await;
    let settings = Params { refresh: Duration::from_millis(500), ..server.params() };
    let client = server.client(settings, 1);
    client.aim(8);
    ready(&client, 8).await;
    let done = AtomicBool::new(false);
    let one = async || {
        let mut answered = 0;
        while !done.load(Ordering::Relaxed) {
            assert_eq!(client.ask(0).await.unwrap(), "hello");
            answered += 1;
        }
        answered
    };
    let watch = async {
        within("each connection to be replaced three times", async {
            while client.made(ConnectReason::Refresh) < 24 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        done.store(true, Ordering::Relaxed);
    };
    let (answered, ()) = tokio::join!(join_all((0..6).map(|_| one())), watch);
    let answered: usize = answered.iter().sum();
    assert!(answered > 100, "{answered}");
    assert_eq!(client.on_demand(), 0, "of {answered} requests");
    let (idle, active) = client.upstream.connections();
    assert!(idle + active <= 17, "{idle} {active}");
}

#[tokio::test]
async fn a_refused_connection_is_not_asked_for_again_and_again() {
    let address = nobody().await;
    let client = client(params(format!("http://{address}/v1")), 2);
    client.aim(50);
    let failures = || client.upstream.connects().count(ConnectReason::Prewarm).1;
    within("an attempt of each worker", async {
        while failures() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // whoever asks again at once gets no further attempt
    for _ in 0..1000 {
        client.aim(50);
        tokio::task::yield_now().await;
    }
    assert!(failures() <= 4, "{}", failures());
}

#[tokio::test]
async fn the_pages_say_what_was_opened_and_why() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default().before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    upstream.next().await.answer(200, &[], b"ok").await;
    assert_eq!(client.response().await.status(), 200);
    let connects = "tidegate_upstream_connects_total";
    assert_eq!(proxy.metric(connects, "reason=\"demand\"").await, 1.0);
    assert_eq!(proxy.metric(connects, "").await, 1.0);
    assert_eq!(proxy.metric("tidegate_upstream_connect_seconds_count", "").await, 1.0);
    assert_eq!(proxy.metric("tidegate_upstream_connect_failures_total", "").await, 0.0);
    let dead = Setup::default().before(nobody().await);
    assert_eq!(dead.ask("GET", "/v1/models", &[], b"").await.status(), 502);
    assert_eq!(dead.metric("tidegate_upstream_connect_failures_total", "reason=\"demand\"").await, 1.0);
    assert_eq!(dead.metric("tidegate_upstream_connect_seconds_count", "").await, 0.0);
}

/// A burst of 12, after which the upstream hangs up, and another one; then a drain. Says how many connections
/// requests had made for themselves before and after the second burst.
async fn two_bursts(workers: usize) -> (f64, f64) {
    let demand = "tidegate_upstream_connects_total";
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("upstream.0.prewarm", true)
        .set("listen.workers", workers as i64)
        .before(upstream.address);
    let mut clients = Vec::new();
    for _ in 0..12 {
        clients.push(proxy.chat(&[]).await);
    }
    let mut calls = Vec::new();
    while calls.len() < 12 {
        calls.push(upstream.next().await);
    }
    proxy.until("tidegate_upstream_connections_target", "", |n| n >= 12.0).await;
    for call in &mut calls {
        call.wire.send(response(200, &[], b"ok")).await;
    }
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
    drop(calls);
    // only then are those that it closed no longer counted as open
    proxy.until(demand, "reason=\"prewarm\"", |n| n >= 12.0).await;
    proxy.until("tidegate_upstream_connections", "idle", |n| n >= 12.0).await;
    let before = proxy.metric(demand, "demand").await;
    let mut more = Vec::new();
    for _ in 0..12 {
        more.push(proxy.chat(&[]).await);
    }
    for _ in 0..12 {
        upstream.next().await.answer(200, &[], b"ok").await;
    }
    for client in &mut more {
        assert_eq!(client.response().await.status(), 200);
    }
    let after = proxy.metric(demand, "demand").await;
    proxy.until("tidegate_upstream_connections", "idle", |n| n >= 12.0).await;
    let clock = Clock::start();
    proxy.stop().drain();
    proxy.join().await;
    assert!(clock.now().since(Default::default()) < Duration::from_secs(2), "idle ones hold up nothing");
    (before, after)
}

#[tokio::test]
async fn what_a_burst_needed_stays_ready_even_if_the_upstream_hangs_up() {
    let (before, after) = two_bursts(1).await;
    assert_eq!(before, after);
}

#[tokio::test]
async fn idle_connections_of_several_workers_hold_up_no_drain() {
    // each worker has a third of them, and nobody knows which clients it gets
    let (before, after) = two_bursts(3).await;
    assert!(after - before <= 8.0, "{before} {after}");
}

#[tokio::test]
async fn while_the_breaker_is_open_nothing_is_opened() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(50)
        .set("scaling.policy", "predictive")
        .set("upstream.0.prewarm", true)
        .set("breaker.failures", 1)
        .before(upstream.address);
    let mut client = proxy.chat(&[]).await;
    let call = upstream.next().await;
    proxy.until("tidegate_upstream_connections", "idle", |n| n >= 1.0).await;
    call.answer(500, &[], b"broken").await;
    assert_eq!(client.response().await.status(), 500);
    proxy.breaker("open").await;
    proxy.until("tidegate_upstream_connections_target", "", |n| n == 0.0).await;
}

#[tokio::test]
async fn while_a_drain_goes_on_nothing_is_opened() {
    let mut upstream = Upstream::start().await;
    let proxy = Setup::default()
        .set("upstream.0.prewarm", true)
        .set("listen.drain_timeout", "1200ms")
        .before(upstream.address);
    let _client = proxy.chat(&[]).await;
    let _unanswered = upstream.next().await;
    proxy.until("tidegate_upstream_connections", "idle", |n| n >= 1.0).await;
    proxy.stop().drain();
    // the next look
    proxy.until("tidegate_upstream_connections_target", "", |n| n == 0.0).await;
    let before = upstream.connections();
    proxy.join().await;
    assert_eq!(upstream.connections(), before);
}
