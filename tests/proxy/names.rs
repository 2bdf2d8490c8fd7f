//! A host with several addresses, of which some are dead, and a name that gets other addresses. All on loopback:
//! Linux answers on every address of 127.0.0.0/8, and a listener whose backlog is full answers nobody.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tidegate::clock::Clock;
use tidegate::upstream::{Params, Payload, Repeat, Resolve, Resolving, Trace, Upstream};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use crate::support::within;

const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// A resolver that says what it was told to say.
struct Book(Mutex<Vec<IpAddr>>);

impl Book {
    fn with(addresses: &[IpAddr]) -> Arc<Self> {
        Arc::new(Self(Mutex::new(addresses.to_vec())))
    }

    fn say(&self, addresses: &[IpAddr]) {
        *self.0.lock().unwrap() = addresses.to_vec();
    }
}

impl Resolve for Book {
    fn resolve<'a>(&'a self, host: &'a str, port: u16) -> Resolving<'a> {
        assert_eq!(host, "model.test");
        let found = self.0.lock().unwrap().iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        Box::pin(async move { Ok(found) })
    }
}

/// Nobody accepts there and its backlog is full, so that a further handshake is never answered.
struct BlackHole {
    port: u16,
    _sockets: Vec<socket2::Socket>,
}

impl BlackHole {
    fn at(ip: IpAddr) -> Self {
        let socket =
            || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let listener = socket();
        listener.bind(&SocketAddr::new(ip, 0).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut sockets = vec![listener];
        for _ in 0..4 {
            let client = socket();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&address);
            sockets.push(client);
        }
        let port = address.as_socket().unwrap().port();
        Self { port, _sockets: sockets }
    }
}

/// Answers each request with its own address, `/slow` only when it may.
struct Server {
    /// A connection ended.
    ended: mpsc::UnboundedReceiver<()>,
    may: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Server {
    async fn at(address: SocketAddr) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (told, ended) = mpsc::unbounded_channel();
        let may = Arc::new(Semaphore::new(0));
        let tasks = TaskTracker::new();
        let (free, all) = (may.clone(), tasks.clone());
        tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (told, free) = (told.clone(), free.clone());
                all.spawn(async move {
                    let answer =
                        hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                            let free = free.clone();
                            async move {
                                if request.uri().path() == "/slow" {
                                    free.acquire().await.unwrap().forget();
                                }
                                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(
                                    address.ip().to_string(),
                                ))))
                            }
                        });
                    let builder = auto::Builder::new(TokioExecutor::new());
                    drop(builder.serve_connection(TokioIo::new(stream), answer).await);
                    let _ = told.send(());
                });
            }
        });
        Ok((Self { ended, may, tasks }, address))
    }
}

fn upstream(book: &Arc<Book>, port: u16, more: Params) -> Arc<Upstream> {
    let base_url = format!("http://model.test:{port}/v1").parse().unwrap();
    let params = Params { base_url, ..more }.try_new().unwrap();
    Upstream::with_resolver(params, book.clone(), 1, Clock::start()).unwrap()
}

/// Who answered, and how long it took to connect where a connection was made.
async fn ask(upstream: &Upstream, path: &str) -> (String, Option<Duration>) {
    let (head, ()) = Request::get(path).body(()).unwrap().into_parts();
    let mut trace = Trace::default();
    let patience = Duration::from_secs(30);
    let sent = upstream.send(0, head, Payload::Empty, patience, Repeat::Always, &mut trace);
    let body = within("an answer", sent).await.unwrap().into_body();
    let text = body.collect().await.unwrap().to_bytes();
    (String::from_utf8_lossy(&text).into_owned(), trace.connect)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_dead_address_of_the_same_family_costs_a_quarter_of_a_second_and_that_once() {
    let dead = BlackHole::at(SECOND);
    let (server, _) = Server::at(SocketAddr::new(FIRST, dead.port)).await.unwrap();
    let book = Book::with(&[SECOND, FIRST]);
    let upstream =
        upstream(&book, dead.port, Params { connect_timeout: Duration::from_secs(5), ..Params::default() });
    let (who, took) = ask(&upstream, "/").await;
    let took = took.unwrap();
    assert_eq!(who, "127.0.0.1");
    assert!(took >= Duration::from_millis(245) && took < Duration::from_millis(1500), "{took:?}");
    println!("with a dead first address: connected after {took:?}");
    drop(server.tasks);
}

#[tokio::test]
async fn a_name_without_any_living_address_fails_with_the_reason() {
    let dead = Server::at(SocketAddr::new(FIRST, 0)).await.unwrap().1;
    let book = Book::with(&[SECOND]);
    // nobody listens on that port of the second address
    let upstream = upstream(&book, dead.port(), Params::default());
    let (head, ()) = Request::get("/").body(()).unwrap().into_parts();
    let mut trace = Trace::default();
    let sent =
        upstream.send(0, head, Payload::Empty, Duration::from_secs(30), Repeat::Always, &mut trace).await;
    let told = sent.err().unwrap().to_string();
    assert!(told.starts_with("cannot connect: 127.0.0.2:") && told.contains("refused"), "{told}");
    book.say(&[FIRST]);
    assert_eq!(ask(&upstream, "/").await.0, "127.0.0.1", "the answer that was of no use is not kept");
}

#[tokio::test]
async fn connections_leave_an_address_that_has_left_the_name_and_lose_nothing() {
    for http2 in [false, true] {
        let (mut old, address) = Server::at(SocketAddr::new(FIRST, 0)).await.unwrap();
        let port = address.port();
        let Ok((new, _)) = Server::at(SocketAddr::new(SECOND, port)).await else { continue };
        let book = Book::with(&[FIRST]);
        let upstream = upstream(&book, port, Params { http2, ..Params::default() });
        // one in use; over HTTP/1.1 an idle one beside it
        let mut slow = Box::pin(ask(&upstream, "/slow"));
        assert!(futures_util::poll!(slow.as_mut()).is_pending());
        assert_eq!(
            tokio::select! { a = ask(&upstream, "/") => a.0, _ = &mut slow => unreachable!() },
            "127.0.0.1"
        );
        assert_eq!(upstream.look_again().await, 0);
        book.say(&[SECOND]);
        assert_eq!(upstream.look_again().await, 0, "one answer without it is no proof");
        let leaving = upstream.look_again().await;
        assert_eq!(leaving, if http2 { 1 } else { 2 });
        let (idle, active) = upstream.connections();
        assert_eq!((idle, active), (0, leaving), "the idle one ends as soon as its driver runs");
        let (who, took) = tokio::select! { a = ask(&upstream, "/") => a, _ = &mut slow => unreachable!() };
        assert!(who == "127.0.0.2" && took.is_some(), "{who}");
        old.may.add_permits(1);
        assert_eq!(slow.await.0, "127.0.0.1", "what was in flight is answered");
        for _ in 0..leaving {
            within("the old server's connections end", old.ended.recv()).await.unwrap();
        }
        assert_eq!(upstream.look_again().await, 0, "told once");
        assert_eq!(ask(&upstream, "/").await, ("127.0.0.2".to_owned(), None), "the new one is used again");
        drop(new.tasks);
    }
}
