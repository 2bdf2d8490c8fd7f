//! Who is being served: the simulated upstream's slots, and its count of how each request ended.
//!
//! A request owns its [`Visit`] from arrival to the last byte. However it ends, dropping the visit frees
//! the slot and counts it exactly once; a slot freed late would make every measured capacity wrong.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
    /// Refused for want of a slot.
    pub refused_429: u64,
    /// The client vanished before the end.
    pub cancelled: u64,
    /// Ended by a fault of the simulation: a 500, a reset, a cut, a stall, a death.
    pub faulted: u64,
    /// Body bytes sent.
    pub bytes: u64,
}

/// The slots; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    stats: Arc<Mutex<Stats>>,
    queue: Option<Arc<Semaphore>>,
    refuse_beyond: usize,
    law: Arc<Law>,
    clock: Clock,
    start: MonoTime,
}

impl Slots {
    pub(crate) fn new(law: Arc<Law>, clock: Clock) -> Self {
        let queues = law.over_capacity == OverCapacity::QueueInside;
        let refuses = matches!(law.over_capacity, OverCapacity::Refuse429 { .. });
        Self {
            stats: Arc::default(),
            queue: queues.then(|| Arc::new(Semaphore::new(law.capacity.min(Semaphore::MAX_PERMITS)))),
            refuse_beyond: if refuses { law.capacity } else { usize::MAX },
            law,
            clock,
            start: clock.now(),
        }
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

    /// A slot, waited for where the law says so; `None` is a refusal, already counted.
    pub(crate) async fn take(&self) -> Option<Visit> {
        let mut visit = Visit { slots: self.clone(), place: Place::Waiting, permit: None, broken: false };
        self.lock().waiting += 1;
        if let Some(queue) = &self.queue {
            // Never closed, so this cannot fail; if it did, running without a slot is the lesser harm.
            visit.permit = Arc::clone(queue).acquire_owned().await.ok();
        }
        let mut stats = self.lock();
        stats.waiting -= 1;
        if stats.in_flight >= self.refuse_beyond {
            stats.refused_429 += 1;
            visit.place = Place::Gone;
            return None;
        }
        stats.in_flight += 1;
        stats.peak_in_flight = stats.peak_in_flight.max(stats.in_flight);
        visit.place = Place::Running;
        drop(stats);
        Some(visit)
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
        let broken = self.broken || self.slots.law.faults.is_down(self.slots.elapsed());
        self.leave(|stats| if broken { stats.faulted += 1 } else { stats.cancelled += 1 });
    }
}
