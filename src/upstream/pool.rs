//! Connections that are open, and who may use them next.
//!
//! HTTP/1.1: one process-wide list of idle handles, a stack per worker. A worker takes its own first
//! (no wake-up across threads), then, where a new one would cost a TLS handshake, another's; then it
//! makes a new one. So no core keeps a cold pool of its own. HTTP/2: a few shared connections per worker,
//! up to [`H2_STREAMS`] requests on each.
//!
//! How many are to be open before anybody asks, and in place of which: `prewarm.rs`.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use crate::clock::Clock;
use crate::policy::units::MonoTime;
use crate::upstream::card::{Card, Lifetime};
use crate::upstream::connect::Joined;
use crate::upstream::pace::YOUNG;
use crate::upstream::{Dialled, Io, Payload};

/// Requests on one HTTP/2 connection: what servers commonly allow.
pub(super) const H2_STREAMS: usize = 100;
/// Heads larger than this are refused.
const MAX_HEAD: usize = 64 << 10;

/// What the pool is to know of its upstream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) lifetime: Lifetime,
    /// Take another worker's idle connection before making a new one.
    pub(super) steal: bool,
    /// Requests share HTTP/2 connections.
    pub(super) http2: bool,
}

pub(super) struct Idle {
    pub(super) handle: http1::SendRequest<Payload>,
    pub(super) since: MonoTime,
    pub(super) card: Arc<Card>,
}

pub(super) struct Shared {
    handle: http2::SendRequest<Payload>,
    streams: Arc<AtomicUsize>,
    /// When it was last seen in use.
    pub(super) used: MonoTime,
    pub(super) card: Arc<Card>,
}

/// What one worker drives.
#[derive(Default)]
pub(super) struct Home {
    pub(super) idle: Vec<Idle>,
    pub(super) shared: Vec<Shared>,
    /// Every connection whose driver runs.
    pub(super) cards: Vec<Arc<Card>>,
    /// Connections in the making, ahead of need.
    pub(super) opening: usize,
    /// Unused ones that the upstream closed young, since somebody last asked.
    pub(super) lost: u32,
}

/// Whom an HTTP/2 connection is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// One request; it ends with it.
    One,
    /// One request, and others may share it.
    All,
    /// Whoever comes.
    Ahead,
}

/// The connections of one upstream.
pub(super) struct Pool {
    pub(super) homes: Mutex<Vec<Home>>,
    pub(super) rules: Rules,
    /// How many requests there are to be connections for, over all workers.
    pub(super) target: AtomicUsize,
    /// Counts connections.
    numbers: AtomicU64,
    pub(super) clock: Clock,
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

/// A connection's place on its worker's list, until its driver has ended.
struct Listed {
    // weak: the pool's handles keep the driver going, so the driver must not keep the pool
    pool: Weak<Pool>,
    card: Arc<Card>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        let young = pool.clock.now().since(self.card.made) < YOUNG;
        let mut homes = lock(&pool.homes);
        let Some(home) = homes.get_mut(self.card.home) else { return };
        home.cards.retain(|card| !Arc::ptr_eq(card, &self.card));
        if young && !self.card.was_used() && !self.card.is_retired() {
            home.lost += 1;
        }
    }
}

/// A connection in use by one request. Dropped, it is closed (HTTP/1.1) or its stream ends (HTTP/2).
pub(super) enum Lease {
    Http1 { pool: Arc<Pool>, handle: http1::SendRequest<Payload>, card: Arc<Card> },
    Http2 { card: Arc<Card>, _stream: Counted },
}

impl Lease {
    /// The answer was read to its end: the connection may serve another request.
    pub(super) fn give_back(self) {
        if let Self::Http1 { pool, handle, card } = self
            && !handle.is_closed()
        {
            pool.put(handle, card);
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // nothing under this lock can stop half-way; the list behind a poisoned lock is still a list
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn is_unused(&self) -> bool {
        !self.handle.is_closed() && self.streams.load(Ordering::Relaxed) == 0
    }
}

impl Pool {
    pub(super) fn new(workers: usize, rules: Rules, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            homes: Mutex::new((0..workers).map(|_| Home::default()).collect()),
            rules,
            target: AtomicUsize::new(0),
            numbers: AtomicU64::new(0),
            clock,
        })
    }

    /// An idle HTTP/1.1 connection that was alive when last looked at.
    pub(super) fn checkout(&self, worker: usize) -> Option<(http1::SendRequest<Payload>, Arc<Card>)> {
        let oldest = self.clock.now() - self.rules.lifetime.idle_timeout;
        let mut homes = lock(&self.homes);
        let workers = homes.len();
        for offset in 0..if self.rules.steal { workers } else { 1 } {
            let stack = &mut homes.get_mut((worker + offset) % workers)?.idle;
            let mut at = stack.len();
            while at > 0 {
                at -= 1;
                let entry = stack.get(at)?;
                if entry.handle.is_closed() {
                    stack.remove(at);
                } else if entry.since < oldest {
                    stack.remove(at).card.retire();
                } else if entry.handle.is_ready() {
                    let taken = stack.remove(at);
                    taken.card.set_used();
                    return Some((taken.handle, taken.card));
                }
                // not ready: its driver has not yet run since the last answer ended
            }
        }
        None
    }

    /// An HTTP/1.1 connection that waits for a request from now on: on the stack of the worker that drives
    /// it, whoever used it. One that is old is closed instead, if there are enough without it.
    pub(super) fn put(&self, handle: http1::SendRequest<Payload>, card: Arc<Card>) {
        let since = self.clock.now();
        let mut homes = lock(&self.homes);
        if card.is_retired() || (card.is_old(since) && self.spare(&homes, card.home) > 0) {
            card.retire();
        } else if let Some(home) = homes.get_mut(card.home) {
            home.idle.push(Idle { handle, since, card });
        }
    }

    /// A place on an open HTTP/2 connection of this worker that was made then or later.
    pub(super) fn share(
        &self,
        worker: usize,
        made_since: MonoTime,
    ) -> Option<(http2::SendRequest<Payload>, Lease)> {
        let now = self.clock.now();
        let mut homes = lock(&self.homes);
        let list = &mut homes.get_mut(worker)?.shared;
        list.retain(|c| !c.handle.is_closed());
        // the newest first, as with a stack: the older ones become unused and may end
        let fits =
            |c: &&mut Shared| c.streams.load(Ordering::Relaxed) < H2_STREAMS && c.card.made >= made_since;
        let c = list.iter_mut().rev().find(fits)?;
        c.used = now;
        c.card.set_used();
        let lease = Lease::Http2 { card: c.card.clone(), _stream: Counted::new(&c.streams) };
        Some((c.handle.clone(), lease))
    }

    /// Nobody else gets a place on this HTTP/2 connection; its streams go on to their ends.
    pub(super) fn leave(&self, lease: &Lease) {
        let Lease::Http2 { card, .. } = lease else { return };
        card.retire();
        let mut homes = lock(&self.homes);
        let list = homes.get_mut(card.home).map(|home| &mut home.shared);
        let left = list.and_then(|list| list.extract_if(.., |c| Arc::ptr_eq(&c.card, card)).next());
        drop(homes);
        // after the lock is gone: it wakes a driver
        drop(left);
    }

    /// Makes an HTTP/1.1 connection of `io` and drives it on this worker.
    pub(super) async fn open_http1(
        self: &Arc<Self>,
        worker: usize,
        dialled: Dialled,
    ) -> Result<(http1::SendRequest<Payload>, Arc<Card>), hyper::Error> {
        let (handle, driver) = http1::Builder::new()
            .max_header_size(MAX_HEAD)
            .handshake::<_, Payload>(TokioIo::new(Joined(dialled.io)))
            .await?;
        // beside an HTTP/2 upstream it is a tunnel's, and nobody else's
        let card = self.list(worker, dialled.address, !self.rules.http2);
        drive(driver.with_upgrades(), Listed { pool: Arc::downgrade(self), card: card.clone() });
        Ok((handle, card))
    }

    /// Makes an HTTP/2 connection of `io` and drives it on this worker.
    pub(super) async fn open_http2(
        self: &Arc<Self>,
        worker: usize,
        dialled: Dialled,
        purpose: Purpose,
    ) -> Result<(http2::SendRequest<Payload>, Lease), hyper::Error> {
        let (handle, driver) = handshake_http2(dialled.io).await?;
        let offer = purpose != Purpose::One;
        let card = self.list(worker, dialled.address, offer);
        if purpose != Purpose::Ahead {
            card.set_used();
        }
        drive(driver, Listed { pool: Arc::downgrade(self), card: card.clone() });
        let streams = Arc::new(AtomicUsize::new(0));
        let lease = Lease::Http2 { card: card.clone(), _stream: Counted::new(&streams) };
        if offer && let Some(home) = lock(&self.homes).get_mut(worker) {
            home.shared.push(Shared { handle: handle.clone(), streams, used: self.clock.now(), card });
        }
        Ok((handle, lease))
    }

    /// Lists a new connection of this worker. One that nobody is to use again does not count as ready.
    fn list(&self, worker: usize, address: Option<IpAddr>, ready: bool) -> Arc<Card> {
        let card = Card::new(worker, address, &self.rules.lifetime, &self.numbers, self.clock.now());
        if !ready {
            card.retire();
        }
        if let Some(home) = lock(&self.homes).get_mut(worker) {
            home.cards.push(card.clone());
        }
        card
    }

    /// Closes what has been idle for too long, and what is old and no longer needed.
    pub(super) fn prune(&self) {
        let now = self.clock.now();
        let oldest = now - self.rules.lifetime.idle_timeout;
        // dropped after the lock is gone: each wakes a driver
        let mut ended = (Vec::new(), Vec::new());
        let mut homes = lock(&self.homes);
        let late = |closed: bool, since: MonoTime, card: &Card| {
            if !closed && since < oldest {
                card.retire();
            }
            closed || since < oldest
        };
        for worker in 0..homes.len() {
            let Some(home) = homes.get_mut(worker) else { continue };
            ended.0.extend(home.idle.extract_if(.., |c| late(c.handle.is_closed(), c.since, &c.card)));
            for c in home.shared.iter_mut().filter(|c| c.streams.load(Ordering::Relaxed) > 0) {
                c.used = now;
            }
            ended.1.extend(home.shared.extract_if(.., |c| late(c.handle.is_closed(), c.used, &c.card)));
            let mut spare = self.spare(&homes, worker);
            let mut goes = |card: &Card| {
                let goes = spare > 0 && card.is_old(now);
                if goes {
                    spare -= 1;
                    card.retire();
                }
                goes
            };
            let Some(home) = homes.get_mut(worker) else { continue };
            ended.0.extend(home.idle.extract_if(.., |c| goes(&c.card)));
            // its streams go on to their ends
            ended.1.extend(home.shared.extract_if(.., |c| goes(&c.card)));
        }
        drop(homes);
    }

    /// Connections that lead elsewhere take no new request: idle ones end now, the others after what they serve.
    /// How many there are.
    pub(super) fn leave_all_but(&self, present: &[IpAddr]) -> usize {
        let mut leaving = 0;
        // dropped after the lock is gone: each wakes a driver
        let mut ended = (Vec::new(), Vec::new());
        let mut homes = lock(&self.homes);
        for home in homes.iter_mut() {
            for card in home.cards.iter().filter(|card| card.is_elsewhere(present) && !card.is_retired()) {
                card.retire();
                leaving += 1;
            }
            ended.0.extend(home.idle.extract_if(.., |c| c.card.is_retired()));
            // its streams go on to their ends
            ended.1.extend(home.shared.extract_if(.., |c| c.card.is_retired()));
        }
        drop(homes);
        leaving
    }

    /// Connections that came up so far.
    pub(super) fn made(&self) -> u64 {
        self.numbers.load(Ordering::Relaxed)
    }

    /// Open connections: idle and in use.
    pub(super) fn counts(&self) -> (usize, usize) {
        let homes = lock(&self.homes);
        let idle = |home: &Home| {
            home.idle.iter().filter(|c| !c.handle.is_closed()).count()
                + home.shared.iter().filter(|c| c.is_unused()).count()
        };
        let idle = homes.iter().map(idle).sum::<usize>();
        let open = homes.iter().map(|home| home.cards.len()).sum::<usize>();
        (idle, open.saturating_sub(idle))
    }
}

/// Its tasks end with its handles, as the driver does.
pub(super) async fn handshake_http2(
    io: Box<dyn Io>,
) -> hyper::Result<(http2::SendRequest<Payload>, http2::Connection<TokioIo<Joined>, Payload, TokioExecutor>)>
{
    http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_while_idle(false)
        .adaptive_window(true)
        .max_header_list_size(MAX_HEAD as u32)
        .handshake(TokioIo::new(Joined(io)))
        .await
}

/// Runs a connection until it ends. It ends with its handles, so the drain need not wait for it.
#[allow(
    clippy::disallowed_methods,
    reason = "the pool's connection driver is one of the four that may spawn"
)]
fn drive(driver: impl Future<Output = hyper::Result<()>> + Send + 'static, listed: Listed) {
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "upstream connection ended");
        }
        drop(listed);
    });
}
