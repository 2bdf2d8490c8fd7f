//! Connections that are open, and who may use them next.
//!
//! HTTP/1.1: one process-wide list of idle handles, a stack per worker. A worker takes its own first
//! (no wake-up across threads), then, where a new one would cost a TLS handshake, another's; then it
//! makes a new one. So no core keeps a cold pool of its own. HTTP/2: a few shared connections per worker, up to [`H2_STREAMS`] requests on each.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use crate::clock::Clock;
use crate::policy::units::MonoTime;
use crate::upstream::connect::Joined;
use crate::upstream::{Io, Payload};

/// Requests on one HTTP/2 connection: what servers commonly allow.
const H2_STREAMS: usize = 100;
/// Heads larger than this are refused.
const MAX_HEAD: usize = 64 << 10;

struct Idle {
    handle: http1::SendRequest<Payload>,
    since: MonoTime,
}

struct Shared {
    handle: http2::SendRequest<Payload>,
    streams: Arc<AtomicUsize>,
    /// When it was last seen in use.
    used: MonoTime,
}

/// The connections of one upstream.
pub(super) struct Pool {
    idle: Mutex<Vec<Vec<Idle>>>,
    shared: Mutex<Vec<Vec<Shared>>>,
    /// Connections whose driver runs.
    open: Arc<AtomicUsize>,
    idle_timeout: Duration,
    /// Take another worker's idle connection before making a new one.
    steal: bool,
    clock: Clock,
}

/// Adds one to a count for as long as it lives.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection in use by one request. Dropped, it is closed (HTTP/1.1) or its stream ends (HTTP/2).
pub(super) enum Lease {
    Http1 { pool: Arc<Pool>, worker: usize, handle: http1::SendRequest<Payload> },
    Http2 { _stream: Counted },
}

impl Lease {
    /// The answer was read to its end: the connection may serve another request.
    pub(super) fn give_back(self) {
        if let Self::Http1 { pool, worker, handle } = self
            && !handle.is_closed()
        {
            let since = pool.clock.now();
            if let Some(stack) = lock(&pool.idle).get_mut(worker) {
                stack.push(Idle { handle, since });
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // nothing under these locks can stop half-way; the list behind a poisoned lock is still a list
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    pub(super) fn new(workers: usize, idle_timeout: Duration, steal: bool, clock: Clock) -> Arc<Self> {
        let empty = |_| Vec::new();
        Arc::new(Self {
            idle: Mutex::new((0..workers).map(empty).collect()),
            shared: Mutex::new((0..workers).map(|_| Vec::new()).collect()),
            open: Arc::default(),
            idle_timeout,
            steal,
            clock,
        })
    }

    /// An idle HTTP/1.1 connection that was alive when last looked at.
    pub(super) fn checkout(&self, worker: usize) -> Option<http1::SendRequest<Payload>> {
        let oldest = self.clock.now() - self.idle_timeout;
        let mut idle = lock(&self.idle);
        let workers = idle.len();
        for offset in 0..if self.steal { workers } else { 1 } {
            let stack = idle.get_mut((worker + offset) % workers)?;
            let mut at = stack.len();
            while at > 0 {
                at -= 1;
                let entry = stack.get(at)?;
                if entry.handle.is_closed() || entry.since < oldest {
                    stack.remove(at);
                } else if entry.handle.is_ready() {
                    return Some(stack.remove(at).handle);
                }
                // not ready: its driver has not yet run since the last answer ended
            }
        }
        None
    }

    /// A place on an open HTTP/2 connection of this worker.
    pub(super) fn share(&self, worker: usize) -> Option<(http2::SendRequest<Payload>, Lease)> {
        let mut shared = lock(&self.shared);
        let list = shared.get_mut(worker)?;
        list.retain(|c| !c.handle.is_closed());
        let c = list.iter().find(|c| c.streams.load(Ordering::Relaxed) < H2_STREAMS)?;
        Some((c.handle.clone(), Lease::Http2 { _stream: Counted::new(&c.streams) }))
    }

    /// Makes an HTTP/1.1 connection of `io` and drives it on this worker.
    pub(super) async fn open_http1(
        &self,
        io: Box<dyn Io>,
    ) -> Result<http1::SendRequest<Payload>, hyper::Error> {
        let (handle, driver) = http1::Builder::new()
            .max_header_size(MAX_HEAD)
            .handshake::<_, Payload>(TokioIo::new(Joined(io)))
            .await?;
        drive(driver.with_upgrades(), Counted::new(&self.open));
        Ok(handle)
    }

    /// Makes an HTTP/2 connection of `io` and drives it on this worker. With `offer` others may share it;
    /// without, it ends with its one request.
    pub(super) async fn open_http2(
        &self,
        worker: usize,
        io: Box<dyn Io>,
        offer: bool,
    ) -> Result<(http2::SendRequest<Payload>, Lease), hyper::Error> {
        let (handle, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_while_idle(false)
            .adaptive_window(true)
            .max_header_list_size(MAX_HEAD as u32)
            .handshake::<_, Payload>(TokioIo::new(Joined(io)))
            .await?;
        drive(driver, Counted::new(&self.open));
        let streams = Arc::new(AtomicUsize::new(0));
        let lease = Lease::Http2 { _stream: Counted::new(&streams) };
        if offer && let Some(list) = lock(&self.shared).get_mut(worker) {
            list.push(Shared { handle: handle.clone(), streams, used: self.clock.now() });
        }
        Ok((handle, lease))
    }

    /// Closes what has been idle for too long.
    pub(super) fn prune(&self) {
        let oldest = self.clock.now() - self.idle_timeout;
        for stack in lock(&self.idle).iter_mut() {
            stack.retain(|entry| !entry.handle.is_closed() && entry.since >= oldest);
        }
        let now = self.clock.now();
        for list in lock(&self.shared).iter_mut() {
            list.retain_mut(|c| {
                if c.streams.load(Ordering::Relaxed) > 0 {
                    c.used = now;
                }
                !c.handle.is_closed() && c.used >= oldest
            });
        }
    }

    /// Open connections: idle and in use.
    pub(super) fn counts(&self) -> (usize, usize) {
        let unused = |c: &&Shared| c.streams.load(Ordering::Relaxed) == 0;
        let idle = lock(&self.idle).iter().map(Vec::len).sum::<usize>()
            + lock(&self.shared).iter().flatten().filter(unused).count();
        (idle, self.open.load(Ordering::Relaxed).saturating_sub(idle))
    }
}

/// Runs a connection until it ends. It ends with its handles, so the drain need not wait for it.
#[allow(
    clippy::disallowed_methods,
    reason = "the pool's connection driver is one of the four that may spawn"
)]
fn drive(driver: impl Future<Output = hyper::Result<()>> + Send + 'static, open: Counted) {
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "upstream connection ended");
        }
        drop(open);
    });
}
