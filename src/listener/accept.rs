//! Sockets: one per worker on the same port, so that the kernel spreads connections and no worker
//! wakes another.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper::{Request, Response};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tower::Service;

use crate::listener::{Serving, serve};
use crate::telemetry::ConnectionFault;

/// Connections the kernel may hold ready for us.
const BACKLOG: i32 = 4096;
/// Silence after which the kernel asks a peer whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What a connection too many is told before it is closed. It has an id like every answer of ours, so that
/// whoever shows it to us can be helped.
fn too_many(id: u128) -> String {
    const BODY: &str = "{\"error\":{\"message\":\"The proxy has as many connections as it may.\",\
        \"type\":\"server_error\",\"param\":null,\"code\":\"overloaded\"}}";
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\n\
         retry-after: 1\r\nx-should-retry: true\r\nx-tidegate-reason: overloaded\r\n\
         x-tidegate-request-id: {id:032x}\r\nx-request-id: {id:032x}\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
}

/// A listening socket that others may share the port of.
///
/// # Errors
/// When the address cannot be had.
pub fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Open connections over all workers, and how many there may be.
#[derive(Clone, Debug)]
pub struct Connections {
    open: Arc<AtomicUsize>,
    limit: usize,
    /// What ids of refusals are made with.
    key: RandomState,
    refused: Arc<AtomicUsize>,
}

/// One of them.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    /// None open, `limit` allowed.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { open: Arc::default(), limit, key: RandomState::new(), refused: Arc::default() }
    }

    fn id(&self) -> u128 {
        let n = self.refused.fetch_add(1, Ordering::Relaxed);
        (u128::from(self.key.hash_one(n)) << 64) | u128::from(self.key.hash_one((n, n)))
    }

    fn take(&self) -> Option<Place> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.open.clone());
        (before < self.limit).then_some(place)
    }
}

/// The accept loop of one worker.
pub struct Acceptor {
    /// Its socket.
    pub socket: TcpListener,
    /// The bound it shares with the others.
    pub connections: Connections,
    /// What its connections share.
    pub serving: Serving,
}

impl Acceptor {
    /// Accepts until the drain begins, empties the backlog, closes the socket, and returns when the
    /// last connection has ended.
    pub async fn run<S, B>(self, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let tasks = self.serving.tasks.clone();
        {
            let mut drain = pin!(self.serving.drain.cancelled());
            loop {
                tokio::select! {
                    biased;
                    () = drain.as_mut() => break,
                    accepted = self.socket.accept() => match accepted {
                        Ok((stream, _)) => self.welcome(stream, &service),
                        Err(error) => pause_after(&error).await,
                    },
                }
            }
        }
        // who is in the backlog was told by the kernel that we are here: answer, then close
        while let Poll::Ready(Ok((stream, _))) = futures_util::poll!(pin!(self.socket.accept())) {
            self.welcome(stream, &service);
        }
        drop(self.socket);
        tasks.close();
        tasks.wait().await;
    }

    fn welcome<S, B>(&self, stream: TcpStream, service: &S)
    where
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Unpin + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        // without it, a peer that delays its acknowledgements adds 40 ms to the first token
        let _ = stream.set_nodelay(true);
        // a client that vanished without a word would hold its tunnel's permit for ever
        let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
        let Some(place) = self.connections.take() else {
            self.serving.telemetry.connection_fault(ConnectionFault::TooMany);
            // a fresh socket's buffer takes this much at once
            let _ = stream.try_write(too_many(self.connections.id()).as_bytes());
            return;
        };
        let serving = self.serving.clone();
        let service = service.clone();
        self.serving.tasks.spawn(async move {
            serve(stream, service, serving).await;
            drop(place);
        });
    }
}

/// Out of file descriptors, most likely: without a pause the loop would spin until there are some.
async fn pause_after(error: &io::Error) {
    let about_one_connection =
        matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
    if !about_one_connection {
        tracing::warn!(%error, "cannot accept connections");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
