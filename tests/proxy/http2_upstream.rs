//! The upstream asked over HTTP/2.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate::clock::Clock;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::support::{CHAT, CHAT_PATH, CHAT_STREAM, JSON, Proxy, Raw, Setup, request, within};

fn over_http2() -> Setup {
    Setup::default().set("upstream.0.http2", true)
}

/// An upstream that speaks HTTP/2 and echoes what it got; counts connections.
async fn h2_upstream(tasks: &mut JoinSet<()>) -> (std::net::SocketAddr, mpsc::UnboundedReceiver<HeaderMap>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let tell = tell.clone();
                async move {
                    assert_eq!(request.version(), Version::HTTP_2);
                    let mut seen = request.headers().clone();
                    seen.insert("x-uri", request.uri().to_string().parse().unwrap());
                    let _ = tell.send(seen);
                    let frames = vec![
                        Ok::<_, Infallible>(Frame::data(
                            request.into_body().collect().await.unwrap().to_bytes(),
                        )),
                        Ok(Frame::trailers(
                            [("x-sum".parse().unwrap(), "1".parse().unwrap())].into_iter().collect(),
                        )),
                    ];
                    Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames))))
                }
            });
            connections.spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    (address, told)
}

#[tokio::test]
async fn the_upstream_may_be_asked_over_http_2() {
    let mut tasks = JoinSet::new();
    let (address, mut told) = h2_upstream(&mut tasks).await;
    let proxy = Setup::default().set("upstream.0.http2", true).before(address);
    for _ in 0..3 {
        let response = proxy.ask("POST", CHAT_PATH, &[JSON, "connection: x-hop", "x-hop: 1"], CHAT).await;
        assert_eq!((response.status(), response.body.as_slice()), (200, CHAT));
        let seen = told.recv().await.unwrap();
        assert_eq!(seen["x-uri"], format!("http://{address}{CHAT_PATH}"));
        assert!(
            !seen.contains_key("x-hop") && !seen.contains_key("host") && !seen.contains_key("connection")
        );
    }
    proxy.in_flight(0).await;
    let open = proxy.metric("tidegate_upstream_connections", "").await;
    assert_eq!(open, 1.0, "requests share a connection");
}

#[tokio::test]
async fn http_2_connections_for_requests_that_may_not_share_one_do_not_pile_up() {
    let mut tasks = JoinSet::new();
    let (address, _told) = h2_upstream(&mut tasks).await;
    let proxy = Setup::default().set("upstream.0.http2", true).before(address);
    for _ in 0..20 {
        assert_eq!(proxy.ask("POST", "/v1/batches", &[JSON], b"{}").await.status(), 200);
    }
    let open = proxy.metric("tidegate_upstream_connections", "").await;
    assert!(open <= 3.0, "one request at a time left {open} connections open");
}

#[tokio::test]
async fn a_websocket_goes_over_http_1_1_even_where_the_upstream_is_asked_over_http_2() {
    let upstream = Raw::start().await;
    let proxy = Setup::default().set("upstream.0.http2", true).before(upstream.address);
    let mut client = proxy.connect().await;
    let fields = ["connection: upgrade", "upgrade: websocket"];
    client.send(crate::support::request("GET", "/v1/realtime", &fields, b"")).await;
    let mut wire = upstream.accept().await;
    assert_eq!(wire.head().await.line, "GET /v1/realtime HTTP/1.1");
    wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(client.head().await.status(), 101);
    client.send("ping").await;
    assert_eq!(wire.take(4).await, b"ping");
}

/// Accepts one HTTP/2 connection at a time and hands each request's response over to the test.
struct Scripted {
    address: std::net::SocketAddr,
    calls: mpsc::UnboundedReceiver<Frames>,
    connections: JoinSet<()>,
    accepted: mpsc::UnboundedReceiver<tokio::net::TcpStream>,
    tell: mpsc::UnboundedSender<Frames>,
    /// Requests wait here for their answers' heads.
    gate: std::sync::Arc<Semaphore>,
    held: (mpsc::UnboundedSender<()>, mpsc::UnboundedReceiver<()>),
    _accepting: JoinSet<()>,
}

const ALL: usize = 1000;

type Frames = mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

impl Scripted {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, calls) = mpsc::unbounded_channel();
        let (hand_over, accepted) = mpsc::unbounded_channel();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = hand_over.send(stream);
            }
        });
        Self {
            address,
            calls,
            connections: JoinSet::new(),
            accepted,
            tell,
            gate: std::sync::Arc::new(Semaphore::new(ALL)),
            held: mpsc::unbounded_channel(),
            _accepting: accepting,
        }
    }

    /// Serves the next connection: every request is answered 200 with what the test sends as its body.
    async fn connection(&mut self) -> tokio::task::AbortHandle {
        let stream = within("a connection", self.accepted.recv()).await.unwrap();
        let tell = self.tell.clone();
        let (gate, held) = (self.gate.clone(), self.held.0.clone());
        let service = hyper::service::service_fn(move |_: Request<Incoming>| {
            let (tell, gate, held) = (tell.clone(), gate.clone(), held.clone());
            async move {
                if gate.available_permits() == 0 {
                    let _ = held.send(());
                }
                drop(gate.acquire().await);
                let (frames, body) = mpsc::channel(1);
                let _ = tell.send(frames);
                let body = futures_util::stream::unfold(body, |mut body| async {
                    body.recv().await.map(|f| (f, body))
                });
                Ok::<_, Infallible>(Response::new(StreamBody::new(body)))
            }
        });
        self.connections.spawn(async move {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            drop(builder.serve_connection(TokioIo::new(stream), service).await);
        })
    }

    /// No request is answered from now on.
    fn hold(&self) {
        self.gate.forget_permits(ALL);
    }

    /// Requests of connections that come from now on are.
    fn release(&mut self) {
        self.gate = std::sync::Arc::new(Semaphore::new(ALL));
    }

    /// A request has come that is not answered.
    async fn held(&mut self) {
        within("a request", self.held.1.recv()).await.unwrap();
    }

    async fn call(&mut self) -> Frames {
        within("a request over HTTP/2", self.calls.recv()).await.unwrap()
    }
}

async fn ask(proxy: &Proxy) -> crate::support::Wire {
    let mut client = proxy.connect().await;
    client.send(request("POST", CHAT_PATH, &[JSON], CHAT_STREAM)).await;
    client
}

#[tokio::test]
async fn a_client_that_leaves_resets_its_stream_within_100_ms_and_the_connection_goes_on() {
    let mut upstream = Scripted::start().await;
    let proxy = over_http2().before(upstream.address);
    let mut stays = ask(&proxy).await;
    upstream.connection().await;
    let other = upstream.call().await;
    let mut leaves = ask(&proxy).await;
    let frames = upstream.call().await;
    frames.send(Ok(Frame::data("a".into()))).await.unwrap();
    leaves.head().await;
    assert_eq!(leaves.chunk().await, b"a");
    let clock = Clock::start();
    drop(leaves);
    within("the stream's reset", frames.closed()).await;
    let took = clock.now().since(Default::default());
    assert!(took < Duration::from_millis(100), "{took:?}");
    proxy.in_flight(1).await;
    other.send(Ok(Frame::data("b".into()))).await.unwrap();
    drop(other);
    assert_eq!(stays.response().await.text(), "b");
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn a_connection_that_breaks_fails_its_streams_and_the_next_request_gets_a_new_one() {
    let mut upstream = Scripted::start().await;
    let proxy = over_http2().before(upstream.address);
    for _ in 0..3 {
        let mut client = ask(&proxy).await;
        let connection = upstream.connection().await;
        let frames = upstream.call().await;
        frames.send(Ok(Frame::data("a".into()))).await.unwrap();
        client.head().await;
        assert_eq!(client.chunk().await, b"a");
        connection.abort();
        assert_eq!(client.try_chunk().await, None, "cut off, not ended");
        proxy.in_flight(0).await;
    }
}

#[tokio::test]
async fn a_connection_that_closed_while_idle_is_never_shown_to_a_client() {
    let mut upstream = Scripted::start().await;
    let proxy = over_http2().set("breaker.failures", 1).before(upstream.address);
    for round in 0..30 {
        let mut client = ask(&proxy).await;
        let connection = upstream.connection().await;
        let frames = upstream.call().await;
        frames.send(Ok(Frame::data("ok".into()))).await.unwrap();
        drop(frames);
        assert_eq!(client.response().await.text(), "ok", "round {round}");
        connection.abort();
    }
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "").await, 0.0);
}

#[tokio::test]
async fn a_body_that_fails_is_cut_off() {
    let mut upstream = Scripted::start().await;
    let proxy = over_http2().before(upstream.address);
    let mut client = ask(&proxy).await;
    upstream.connection().await;
    let frames = upstream.call().await;
    frames.send(Ok(Frame::data("a".into()))).await.unwrap();
    client.head().await;
    assert_eq!(client.chunk().await, b"a");
    frames.send(Err(std::io::Error::other("broken"))).await.unwrap();
    assert_eq!(client.try_chunk().await, None);
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn an_upstream_that_speaks_only_http_1_is_a_502() {
    let upstream = Raw::start().await;
    let proxy = over_http2().before(upstream.address);
    let mut client = ask(&proxy).await;
    let mut wire = upstream.accept().await;
    wire.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    drop(wire);
    let response = client.response().await;
    assert_eq!((response.status(), response.code().as_str()), (502, "upstream_error"));
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn an_upstream_that_never_says_a_word_is_504() {
    let upstream = Raw::start().await;
    let proxy = over_http2()
        .set("upstream.0.first_byte_timeout", "300ms")
        .set("upstream.0.connect_timeout", "300ms")
        .before(upstream.address);
    let mut client = ask(&proxy).await;
    let _wire = upstream.accept().await;
    let response = client.response().await;
    assert_eq!((response.status(), response.code().as_str()), (504, "upstream_timeout"));
    proxy.in_flight(0).await;
}

#[tokio::test]
async fn a_connection_that_dies_with_many_streams_is_replaced_by_one() {
    let mut upstream = Scripted::start().await;
    let proxy = over_http2().set("limits.max_connections", 1000).before(upstream.address);
    let mut first = ask(&proxy).await;
    let connection = upstream.connection().await;
    let frames = upstream.call().await;
    frames.send(Ok(Frame::data("first".into()))).await.unwrap();
    drop(frames);
    assert_eq!(first.response().await.text(), "first");
    // the answer's head must not be out when the connection ends: nothing is answered yet
    let mut waiting = Vec::new();
    upstream.hold();
    for _ in 0..50 {
        waiting.push(ask(&proxy).await);
        upstream.held().await;
    }
    upstream.release();
    connection.abort();
    let _second = upstream.connection().await;
    for _ in 0..50 {
        let frames = upstream.call().await;
        frames.send(Ok(Frame::data("again".into()))).await.unwrap();
    }
    for mut client in waiting {
        assert_eq!(client.response().await.text(), "again");
    }
    assert!(upstream.accepted.is_empty(), "one connection serves them all");
}

/// Accepts HTTP/2 connections, and refuses one request, by its number, without looking at it. Tells of each the number
/// of its connection.
async fn refusing(
    tasks: &mut JoinSet<()>,
    refused: usize,
) -> (std::net::SocketAddr, mpsc::UnboundedReceiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tasks.spawn(async move {
        let requests = Arc::new(AtomicUsize::new(0));
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (tell, requests, number) = (tell.clone(), requests.clone(), connections.len() + 1);
            connections.spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if requests.fetch_add(1, Ordering::Relaxed) + 1 == refused {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    } else {
                        respond.send_response(Response::new(()), true).unwrap();
                    }
                    let _ = tell.send(number);
                }
            });
        }
    });
    (address, told)
}

#[tokio::test]
async fn a_request_that_was_refused_unseen_goes_again_whatever_it_is() {
    let mut tasks = JoinSet::new();
    let (address, mut told) = refusing(&mut tasks, 1).await;
    let proxy = over_http2()
        .set("retry.budget", 500)
        .set("retry.backoff", "1ms")
        .set("breaker.failures", 1)
        .before(address);
    let answer = proxy.ask("POST", "/v1/batches", &[JSON], b"{}").await;
    assert_eq!(answer.status(), 200);
    assert_eq!((told.recv().await, told.recv().await), (Some(1), Some(2)));
    assert!(told.is_empty());
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "").await, 0.0);
}

#[tokio::test]
async fn a_stream_that_is_reset_leaves_its_connection_alone_and_costs_a_retry() {
    let mut tasks = JoinSet::new();
    let (address, mut told) = refusing(&mut tasks, 2).await;
    let proxy = over_http2().set("retry.budget", 500).set("retry.backoff", "1ms").before(address);
    for _ in 0..2 {
        assert_eq!(proxy.ask("POST", CHAT_PATH, &[JSON], CHAT).await.status(), 200);
    }
    assert_eq!((told.recv().await, told.recv().await, told.recv().await), (Some(1), Some(1), Some(1)));
    assert!(told.is_empty());
    assert_eq!(proxy.metric("tidegate_retries_total", "reason=\"reset\"").await, 1.0);
}

#[tokio::test]
async fn an_upload_that_its_client_breaks_off_is_the_client_s_fault_here_too() {
    let mut upstream = Scripted::start().await;
    upstream.hold();
    let proxy = over_http2().set("breaker.failures", 1).before(upstream.address);
    for round in 0..3 {
        let mut client = proxy.connect().await;
        client
            .send("POST /v1/files HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await;
        upstream.connection().await;
        upstream.held().await;
        client.send("not a chunk size\r\n").await;
        let response = client.response().await;
        assert_eq!((response.status(), response.code().as_str()), (400, "bad_request"), "round {round}");
    }
    assert_eq!(proxy.metric("tidegate_breaker_transitions_total", "").await, 0.0);
}
