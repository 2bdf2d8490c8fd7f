//! Who is being served: the simulated upstream's slots, and its count of how each request ended.
//!
//! A request owns its [`Visit`] from arrival to the last byte. However it ends, dropping the visit frees
//! the slot and counts it exactly once; a slot freed late would make every measured capacity wrong.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::hosted::{Accounts, Demand, Refused, Standing};
use super::model::{Law, OverCapacity};
use crate::clock::Clock;
use crate::policy::units::MonoTime;

/// What the simulated upstream has seen. `GET /sim/stats` answers with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests that hold a slot now.
    pub in_flight: usize,
    /// The most that ever did.
    pub peak_in_flight: usize,
    /// Requests that wait inside for a slot now.
    pub waiting: usize,
    /// Answered in full.
    pub served: u64,
    /// Refused for want of a slot, or of budget.
    pub refused_429: u64,
    /// The client vanished before the end.
    pub cancelled: u64,
    /// Ended by a fault of the simulation: a 500, a reset, a cut, a stall, a death.
    pub faulted: u64,
    /// Body bytes sent.
    pub bytes: u64,
    /// Connections that were taken.
    pub connections: u64,
}

/// The slots; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    stats: Arc<Mutex<Stats>>,
    accounts: Option<Arc<Mutex<Accounts>>>,
    queue: Option<Arc<Semaphore>>,
    refuse_beyond: usize,
    law: Arc<Law>,
    clock: Clock,
    start: MonoTime,
    /// Killed by hand, beside what the faults say.
    killed: Arc<watch::Sender<bool>>,
}

impl Slots {
    pub(crate) fn new(law: Arc<Law>, clock: Clock) -> Self {
        let accounts = match law.over_capacity {
            OverCapacity::Hosted(hosted) => Some(Arc::new(Mutex::new(Accounts::new(hosted)))),
            _ => None,
        };
        let room = |n: usize| Arc::new(Semaphore::new(n.min(Semaphore::MAX_PERMITS)));
        Self {
            stats: Arc::default(),
            accounts,
            queue: law.run_at_most().map(room),
            refuse_beyond: law.refuse_beyond().unwrap_or(usize::MAX),
            law,
            clock,
            start: clock.now(),
            killed: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Ends whatever is open, until told otherwise.
    pub(crate) fn kill(&self, dead: bool) {
        self.killed.send_replace(dead);
    }

    pub(crate) fn is_down(&self) -> bool {
        *self.killed.borrow() || self.law.faults.is_down(self.elapsed())
    }

    /// Waits until the upstream dies; at once where it is dead.
    pub(crate) async fn death(&self) {
        let mut killed = self.killed.subscribe();
        while !self.is_down() {
            let next = self.law.faults.next_down(self.elapsed());
            tokio::select! {
                _ = killed.changed() => {}
                () = self.until(next) => {}
            }
        }
    }

    /// Waits until the upstream lives; at once where it does.
    pub(crate) async fn life(&self) {
        let mut killed = self.killed.subscribe();
        while self.is_down() {
            let next = self.law.faults.next_up(self.elapsed());
            tokio::select! {
                _ = killed.changed() => {}
                () = self.until(next) => {}
            }
        }
    }

    async fn until(&self, at: Option<Duration>) {
        match at {
            Some(at) => tokio::time::sleep_until(self.instant(at)).await,
            None => std::future::pending().await,
        }
    }

    /// One more connection; its number, from 1.
    pub(crate) fn connected(&self) -> u64 {
        let mut stats = self.lock();
        stats.connections += 1;
        stats.connections
    }

    /// Time since the upstream's start: what the fault windows are measured in.
    pub(crate) fn elapsed(&self) -> Duration {
        self.clock.now().since(self.start)
    }

    /// The timer's name for a time since the start.
    pub(crate) fn instant(&self, elapsed: Duration) -> tokio::time::Instant {
        self.clock.instant(self.start + elapsed)
    }

    pub(crate) fn stats(&self) -> Stats {
        *self.lock()
    }

    pub(crate) fn running(&self) -> usize {
        self.lock().in_flight
    }

    pub(crate) fn sent(&self, bytes: usize) {
        self.lock().bytes += bytes as u64;
    }

    pub(crate) fn faulted(&self) {
        self.lock().faulted += 1;
    }

    /// A slot, waited for where the law says so; a refusal is already counted.
    pub(crate) async fn take(&self, demand: &Demand) -> Result<Visit, Refused> {
        let mut visit = Visit {
            slots: self.clone(),
            place: Place::Waiting,
            permit: None,
            broken: false,
            standing: Standing::default(),
        };
        self.lock().waiting += 1;
        if let Some(queue) = &self.queue {
            // Never closed, so this cannot fail; if it did, running without a slot is the lesser harm.
            visit.permit = Arc::clone(queue).acquire_owned().await.ok();
        }
        let now = self.elapsed();
        let mut stats = self.lock();
        stats.waiting -= 1;
        let crowded = stats.in_flight >= self.refuse_beyond;
        let passed = match &self.accounts {
            Some(accounts) => {
                let mut accounts = accounts.lock().unwrap_or_else(PoisonError::into_inner);
                accounts.charge(now, demand, crowded)
            }
            None if crowded => Err(Refused::default()),
            None => Ok(Standing::default()),
        };
        match passed {
            Ok(standing) => visit.standing = standing,
            Err(refused) => {
                stats.refused_429 += 1;
                visit.place = Place::Gone;
                return Err(refused);
            }
        }
        stats.in_flight += 1;
        stats.peak_in_flight = stats.peak_in_flight.max(stats.in_flight);
        visit.place = Place::Running;
        drop(stats);
        Ok(visit)
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        // Plain counters: a panic elsewhere leaves them whole.
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    Running,
    Gone,
}

/// One request's stay. Dropped before [`Visit::finish`], it counts as left by the client, or as broken.
#[derive(Debug)]
pub(crate) struct Visit {
    slots: Slots,
    place: Place,
    permit: Option<OwnedSemaphorePermit>,
    broken: bool,
    /// What its answer's headers say of the budgets.
    pub(crate) standing: Standing,
}

impl Visit {
    /// From here on, an early end is the simulation's doing.
    pub(crate) const fn will_break(&mut self) {
        self.broken = true;
    }

    /// Served in full; the slot is free.
    pub(crate) fn finish(&mut self) {
        self.leave(|stats| stats.served += 1);
    }

    fn leave(&mut self, count: impl FnOnce(&mut Stats)) {
        let mut stats = self.slots.lock();
        match self.place {
            Place::Gone => return,
            Place::Waiting => stats.waiting -= 1,
            Place::Running => stats.in_flight -= 1,
        }
        count(&mut stats);
        drop(stats);
        self.place = Place::Gone;
        self.permit = None;
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // A death of the upstream drops the visits of its connections, as a client that leaves does.
        let broken = self.broken || self.slots.is_down();
        self.leave(|stats| if broken { stats.faulted += 1 } else { stats.cancelled += 1 });
    }
}
