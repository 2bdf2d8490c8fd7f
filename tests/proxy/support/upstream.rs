//! Upstreams that do what a test tells them to, byte by byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::wire::{Message, Wire, response, within};

/// Reads requests on every connection; the test answers them in the order they came.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    calls: mpsc::UnboundedReceiver<Call>,
    accepted: Arc<AtomicUsize>,
}

/// A request that came, and the connection it came on. Dropped, it closes the connection.
pub(crate) struct Call {
    pub(crate) request: Message,
    pub(crate) wire: Wire,
    /// Which connection it is, from 1.
    pub(crate) connection: usize,
    desk: Desk,
}

#[derive(Clone)]
struct Desk {
    calls: mpsc::UnboundedSender<Call>,
    tasks: TaskTracker,
}

impl Desk {
    fn serve(&self, mut wire: Wire, connection: usize) {
        let desk = self.clone();
        self.tasks.spawn(async move {
            if !wire.wait().await {
                return;
            }
            let Some(head) = wire.try_head().await else { return };
            let request = wire.body_of(head).await;
            let calls = desk.calls.clone();
            let _ = calls.send(Call { request, wire, connection, desk });
        });
    }
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (calls, received) = mpsc::unbounded_channel();
        let desk = Desk { calls, tasks: TaskTracker::new() };
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        desk.tasks.clone().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                desk.serve(Wire::new(stream), count.fetch_add(1, Ordering::SeqCst) + 1);
            }
        });
        Self { address, calls: received, accepted }
    }

    /// The next request, whichever connection it comes on.
    pub(crate) async fn next(&mut self) -> Call {
        within("a request at the upstream", self.calls.recv()).await.unwrap()
    }

    /// No request has come that `next` has not returned.
    pub(crate) fn is_quiet(&mut self) -> bool {
        self.calls.is_empty()
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Call {
    /// Answers, and waits for the next request on the same connection.
    pub(crate) async fn answer(self, status: u16, fields: &[&str], body: &[u8]) {
        self.raw(response(status, fields, body)).await;
    }

    /// The same with exact bytes.
    pub(crate) async fn raw(mut self, bytes: impl AsRef<[u8]>) {
        self.wire.send(bytes).await;
        self.desk.serve(self.wire, self.connection);
    }
}

/// Accepts connections and leaves the rest to the test.
pub(crate) struct Raw {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
}

impl Raw {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { address: listener.local_addr().unwrap(), listener }
    }

    pub(crate) async fn stream(&self) -> TcpStream {
        let (stream, _) = within("a connection to the upstream", self.listener.accept()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    pub(crate) async fn accept(&self) -> Wire {
        Wire::new(self.stream().await)
    }
}

/// An address nobody listens on.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
