//! The load driver's connections in memory: each one is a pipe to whoever serves the other end.
//!
//! A paused clock jumps while the runtime waits for the kernel, so a scenario on virtual time cannot use
//! sockets. Called by the scenario tests, with the proxy or the simulated upstream at the other end.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;

use super::tasks::Tasks;

/// Bytes in flight in each direction before a writer waits: about a socket's buffer.
const BUFFER: usize = 64 << 10;

/// Connects to a server in memory, whatever the address.
#[derive(Clone)]
pub struct InMemory {
    serve: Arc<dyn Fn(DuplexStream) -> Served + Send + Sync>,
    tasks: Arc<Tasks>,
}

type Served = Pin<Box<dyn Future<Output = ()> + Send>>;

impl InMemory {
    /// Every connection is served by `serve`; those still open end with the last clone.
    pub fn new<F, S>(serve: F) -> Self
    where
        F: Fn(DuplexStream) -> S + Send + Sync + 'static,
        S: Future<Output = ()> + Send + 'static,
    {
        Self { serve: Arc::new(move |io| Box::pin(serve(io))), tasks: Arc::new(Tasks::new()) }
    }

    /// One connection.
    #[must_use]
    pub fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(BUFFER);
        self.tasks.spawner().spawn((self.serve)(far));
        near
    }
}

impl std::fmt::Debug for InMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InMemory")
    }
}

impl tower::Service<Uri> for InMemory {
    type Response = Pipe;
    type Error = std::io::Error;
    type Future = Ready<Result<Pipe, std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(Ok(Pipe(TokioIo::new(self.connect()))))
    }
}

/// The client's end of an in-memory connection.
#[derive(Debug)]
pub struct Pipe(TokioIo<DuplexStream>);

impl Connection for Pipe {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Pipe {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
