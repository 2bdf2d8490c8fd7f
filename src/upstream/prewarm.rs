//! Connections that are open and TLS-handshaken before the requests come that need them.
//!
//! Without it the first requests of every burst wait for handshakes, each as long as some round trips to a
//! provider. [`Upstream::prepare`] is called each second with the predictor's number; [`keep_warm`] runs on
//! each worker, because a connection is driven by the runtime that made it, and opens that worker's part.
//!
//! ```text
//! live     = connections that run and are not to end, idle and in use
//! due      = live ones that are old (refresh) or have been unused for long (renew): dates in `card.rs`
//! missing  = part − (live − due) − opening             opened at the pace of `pace.rs`
//! spare    = live − part                               so many of the old ones may go
//! ```
//!
//! So the replacement is there before the old one goes, and the old one goes only while it is idle or when
//! its request is done: no request waits for a renewal, and none loses its connection to one. Over HTTP/2 a
//! part is its requests / [`H2_STREAMS`], rounded up.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::policy::units::MonoTime;
use crate::telemetry::{ConnectReason, Connects};
use crate::upstream::card::Card;
use crate::upstream::pace::{Pace, Turn};
use crate::upstream::pool::{H2_STREAMS, Home, Pool, Purpose, lock};
use crate::upstream::{Fault, Upstream};

/// Connections are kept ready for at most so many requests, whatever is asked for: file descriptors are finite.
const MAX_TARGET: usize = 4096;

/// A connection in the making, ahead of need.
struct Opening {
    pool: Arc<Pool>,
    worker: usize,
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(home) = lock(&self.pool.homes).get_mut(self.worker) {
            home.opening = home.opening.saturating_sub(1);
        }
    }
}

/// Connections that are to be made, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Order {
    /// There are too few.
    prewarm: usize,
    /// To replace old ones.
    refresh: usize,
    /// To replace unused ones before the upstream closes them.
    renew: usize,
}

impl Iterator for Order {
    type Item = ConnectReason;

    fn next(&mut self) -> Option<ConnectReason> {
        for (n, reason) in [
            (&mut self.prewarm, ConnectReason::Prewarm),
            (&mut self.refresh, ConnectReason::Refresh),
            (&mut self.renew, ConnectReason::Renew),
        ] {
            if *n > 0 {
                *n -= 1;
                return Some(reason);
            }
        }
        None
    }
}

impl Home {
    fn live(&self) -> impl Iterator<Item = &Arc<Card>> {
        self.cards.iter().filter(|card| !card.is_retired())
    }

    /// Connections that are ready or will be; of them those that are old; and others unused for long.
    fn standing(&self, now: MonoTime) -> (usize, usize, usize) {
        let stale = |card: &Card, since| !card.is_old(now) && card.is_stale(since, now);
        let stale = self.idle.iter().filter(|c| !c.handle.is_closed() && stale(&c.card, c.since)).count()
            + self.shared.iter().filter(|c| c.is_unused() && stale(&c.card, c.used)).count();
        (self.live().count() + self.opening, self.live().filter(|card| card.is_old(now)).count(), stale)
    }
}

impl Pool {
    /// How many connections are to be open, over all workers.
    fn wanted(&self) -> usize {
        let workers = lock(&self.homes).len();
        (0..workers).map(|worker| self.part(worker, workers)).sum()
    }

    /// This worker's part of it: an even one, since nobody knows whom the next client will reach.
    fn part(&self, worker: usize, workers: usize) -> usize {
        let target = self.target.load(Ordering::Relaxed);
        let requests = target / workers + usize::from(worker < target % workers);
        if self.rules.http2 { requests.div_ceil(H2_STREAMS) } else { requests }
    }

    /// Connections of this worker beyond those that are to be open.
    pub(super) fn spare(&self, homes: &[Home], worker: usize) -> usize {
        let live = |home: &Home| home.live().count();
        if self.rules.steal {
            let target = self.target.load(Ordering::Relaxed);
            return homes.iter().map(live).sum::<usize>().saturating_sub(target);
        }
        homes.get(worker).map_or(0, live).saturating_sub(self.part(worker, homes.len()))
    }

    /// What this worker is to open now. Those that are due do not count as ready, so that another is there
    /// before they go.
    fn order(&self, worker: usize) -> Order {
        let target = self.target.load(Ordering::Relaxed);
        let now = self.clock.now();
        let homes = lock(&self.homes);
        let Some(home) = homes.get(worker).filter(|_| target > 0) else { return Order::default() };
        let part = self.part(worker, homes.len());
        let (have, old, stale) = home.standing(now);
        let mut missing = (part + old + stale).saturating_sub(have);
        if self.rules.steal {
            // what another worker has too many of is as good
            let all = homes.iter().map(|home| home.standing(now));
            let (have, due) = all.fold((0, 0), |sum, (h, o, s)| (sum.0 + h, sum.1 + o + s));
            missing = missing.min((target + due).saturating_sub(have));
        }
        let prewarm = part.saturating_sub(have).min(missing);
        let refresh = (missing - prewarm).min(old);
        Order { prewarm, refresh, renew: missing - prewarm - refresh }
    }

    /// Announces a connection in the making, so that nobody else makes one in its stead.
    fn opening(self: &Arc<Self>, worker: usize) -> Opening {
        if let Some(home) = lock(&self.homes).get_mut(worker) {
            home.opening += 1;
        }
        Opening { pool: self.clone(), worker }
    }

    /// Connections of this worker that the upstream closed young and unused since the last call.
    fn lost(&self, worker: usize) -> u32 {
        lock(&self.homes).get_mut(worker).map_or(0, |home| std::mem::take(&mut home.lost))
    }
}

impl Upstream {
    /// Called every second: closes connections that have been idle for too long or are too old, and has the
    /// workers open what is missing for `warm` requests at once, idle connections and those in use together.
    ///
    /// 0 means that none are opened ahead: no forecast, a breaker that is open, a drain.
    pub fn prepare(&self, warm: usize) {
        let warm = if self.params.prewarm { warm.min(MAX_TARGET) } else { 0 };
        self.pool.target.store(warm, Ordering::Relaxed);
        self.pool.prune();
        if warm > 0 {
            self.word.iter().for_each(tokio::sync::Notify::notify_one);
        }
    }

    /// Connections that are to be open, idle and in use together; 0: as many as come about.
    #[must_use]
    pub fn warm(&self) -> usize {
        self.pool.wanted()
    }

    /// Open connections: idle and in use.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        self.pool.counts()
    }

    /// How its connections came about.
    #[must_use]
    pub fn connects(&self) -> &Arc<Connects> {
        &self.connects
    }

    /// Waits for the next look at this worker's connections.
    async fn next_look(&self, worker: usize) {
        let Some(word) = self.word.get(worker) else { return std::future::pending().await };
        match self.pool.rules.lifetime.glance() {
            Some(glance) if self.pool.target.load(Ordering::Relaxed) > 0 => {
                // nothing is missed if the word comes at that moment: it is kept
                let _ = tokio::time::timeout(glance, word.notified()).await;
                self.pool.prune();
            }
            _ => word.notified().await,
        }
    }

    /// Opens one connection that nobody waits for.
    fn open_ahead(
        &self,
        worker: usize,
        reason: ConnectReason,
    ) -> impl Future<Output = Result<(), Fault>> + Send {
        let opening = (!self.params.http2).then(|| self.pool.opening(worker));
        async move {
            if self.params.http2 {
                return self.open_ahead_http2(worker, reason).await;
            }
            let (io, _) = self.connect(&*self.dial, reason).await?;
            let opened = self.pool.open_http1(worker, io).await;
            let (mut handle, card) = opened.map_err(Fault::before_head)?;
            // its driver has to run once before it can be used
            handle.ready().await.map_err(Fault::before_head)?;
            self.pool.put(handle, card);
            drop(opening);
            self.let_go(reason);
            Ok(())
        }
    }

    async fn open_ahead_http2(&self, worker: usize, reason: ConnectReason) -> Result<(), Fault> {
        // requests that come now wait for this one instead of making their own
        let _first = match self.opening.get(worker) {
            Some(opening) => Some(opening.lock().await),
            None => None,
        };
        if self.pool.order(worker) == Order::default() {
            return Ok(());
        }
        let (io, _) = self.connect(&*self.dial, reason).await?;
        let opened = self.pool.open_http2(worker, io, Purpose::Ahead).await;
        opened.map(drop).map_err(Fault::before_head)?;
        self.let_go(reason);
        Ok(())
    }

    /// A replacement is there: what it replaces may go at once, before another old one does in its stead.
    fn let_go(&self, reason: ConnectReason) {
        if reason == ConnectReason::Refresh {
            self.pool.prune();
        }
    }
}

/// Keeps one worker's part of the connections open. Runs on that worker's runtime until it is dropped, which
/// ends the handshakes it has begun and leaves the connections alone.
pub async fn keep_warm(upstream: Arc<Upstream>, worker: usize) {
    let mut opening = FuturesUnordered::new();
    let (mut pace, mut order) = (Pace::default(), Order::default());
    let mut look = std::pin::pin!(upstream.next_look(worker));
    loop {
        tokio::select! {
            () = look.as_mut() => {
                look.set(upstream.next_look(worker));
                order = upstream.pool.order(worker);
                let lost = upstream.pool.lost(worker);
                tell(&upstream, pace.look(upstream.clock.now(), lost), None)
            }
            Some(opened) = opening.next() => match opened {
                Ok(()) => tell(&upstream, pace.opened(upstream.clock.now()), None),
                Err(fault) => tell(&upstream, pace.failed(upstream.clock.now()), Some(&fault)),
            },
        }
        let room = if upstream.params.http2 { 1 } else { usize::MAX };
        let now = upstream.clock.now();
        while pace.room(now, opening.len()) > 0 && opening.len() < room {
            let Some(reason) = order.next() else { break };
            opening.push(upstream.open_ahead(worker, reason));
        }
    }
}

fn tell(upstream: &Upstream, turn: Option<Turn>, fault: Option<&Fault>) {
    let name = &**upstream.name();
    match (turn, fault) {
        (Some(Turn::Trouble), Some(error)) => {
            tracing::warn!(upstream = name, %error, "connections cannot be opened ahead; trying again at growing intervals");
        }
        (Some(Turn::Trouble), None) => tracing::warn!(
            upstream = name,
            "the upstream closes connections before they are used; opening fewer ahead of need"
        ),
        (Some(Turn::Over), _) => {
            tracing::info!(upstream = name, "connections can be opened ahead again");
        }
        (None, _) => {}
    }
}
