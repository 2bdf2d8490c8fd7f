//! What can be read of an engine without telling it anything: the rule's snapshot, and the numbers on the metrics.

use crate::policy::engine::{Engine, Status};
use crate::policy::predict::{self, History, PolicyKind, Snapshot, Wall};
use crate::policy::units::MonoTime;

impl Engine {
    /// Demand so far. Whoever holds a lock clones it, and asks the predictor without the lock.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The snapshot around a `history` taken from this engine.
    #[must_use]
    pub fn snapshot<'a>(&self, now: MonoTime, wall: Wall, history: &'a History) -> Snapshot<'a> {
        Snapshot {
            at: now,
            wall,
            limit: self.permits.limit(),
            queued: self.queue.len(),
            in_flight: self.permits.in_flight(),
            ceiling: self.ceiling(),
            held: if now < self.held.1 { self.held.0 } else { 0 },
            since_change: self.changed.map(|at| now.since(at)),
            age: now.since(self.began),
            history,
        }
    }

    /// The rule's settings.
    #[must_use]
    pub fn scaling(&self) -> &predict::Params {
        &self.params.scaling
    }

    /// The state in numbers.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            limit: self.permits.limit(),
            need: self.need,
            ceiling: self.ceiling(),
            min: self.floor(),
            max: self.params.scaling.max_permits,
            in_flight: self.permits.in_flight(),
            unqueued: self.unqueued,
            websockets: self.websockets,
            queued: self.queue.by_priority(),
            queue_bytes: self.queue.bytes(),
            breaker: self.fleet.state(),
            breaker_open_until: self.fleet.open_until(),
            endpoints: self.fleet.status(self.latest),
            retry_budget: self.retry_budget().left(),
            stale: self.stale,
            draining: self.draining,
        }
    }

    /// Nothing passes it. The article's rule brings its own emergency count, which the configuration
    /// bounds by `max_permits` wherever the operator set that.
    pub(super) fn ceiling(&self) -> u32 {
        let s = &self.params.scaling;
        let most = match s.policy {
            PolicyKind::Article => s.max_permits.max(s.article_emergency),
            PolicyKind::Predictive | PolicyKind::Fixed | PolicyKind::Reactive => s.max_permits,
        };
        // with no permit at all nothing could ever show that the upstream takes more again
        [self.supply, self.learned].into_iter().flatten().fold(most, |most, limit| most.min(limit.max(1)))
    }

    pub(super) fn floor(&self) -> u32 {
        match self.params.scaling.policy {
            PolicyKind::Fixed => self.params.scaling.max_permits,
            PolicyKind::Predictive | PolicyKind::Article | PolicyKind::Reactive => {
                self.params.scaling.min_permits
            }
        }
    }
}
