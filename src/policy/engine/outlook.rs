//! What a wait is worth: how long it will be, who would wait in vain, and what those are told.

use std::time::Duration;

use crate::policy::admission::Waiting;
use crate::policy::engine::{Effect, Engine};
use crate::policy::supply::{Hold, Until};
use crate::policy::units::{MonoTime, Priority, Refusal, TenantId};

impl Engine {
    /// The queue has no place for one of so many bytes.
    pub(super) fn crowded(&self, bytes: u64) -> bool {
        let limits = &self.params.admission;
        self.queue.len() >= limits.max_requests || self.queue.bytes().saturating_add(bytes) > limits.max_bytes
    }

    /// Until when a newcomer waits for the first tier: not at all if it could not, or that would be too long, and no
    /// more than half of the time it has, for the later tier needs some of it.
    pub(super) fn patience(&self, now: MonoTime, w: &Waiting) -> MonoTime {
        let patience = now + self.params.admission.failover_wait.min(w.deadline.since(now) / 2);
        let wait = self.wait_of(now, w.priority, w.tenant);
        let too_long = self.crowded(w.bytes) || wait.is_some_and(|wait| now + wait >= patience);
        if too_long { now } else { patience }
    }

    /// The refusal of a request that would wait for `hold` in vain.
    pub(super) fn in_vain(&self, now: MonoTime, hold: Hold, w: &Waiting) -> Option<Effect> {
        let (refusal, retry_after) = match hold.until {
            Until::Up if hold.at >= w.deadline => (Refusal::UpstreamUnavailable, self.recovery(now)),
            Until::Rate { .. } if hold.at >= w.deadline => {
                (Refusal::DeadlineUnreachable, Some(hold.at.since(now).max(Duration::from_secs(1))))
            }
            _ => return None,
        };
        Some(Effect::Reject { ticket: w.ticket, refusal, retry_after })
    }

    pub(super) fn too_late(&self, now: MonoTime, w: &Waiting) -> Effect {
        let (refusal, retry_after) = if self.fleet.serves() {
            (Refusal::QueueTimeout, self.wait_of(now, w.priority, w.tenant))
        } else {
            (Refusal::UpstreamUnavailable, self.recovery(now))
        };
        Effect::Reject { ticket: w.ticket, refusal, retry_after }
    }

    /// Somebody waits for a permit, not for a rate, a backoff or a broken upstream.
    fn others_wait(&self) -> bool {
        self.moves && !self.queue.wants_no_permit()
    }

    /// Admitted `at` some moment, its head would come after its client's own deadline.
    pub(super) fn hopeless(&self, at: MonoTime, w: &Waiting) -> bool {
        let Some(by) = w.head_by else { return false };
        let head_time = || self.head_time.estimate(self.latest, w.model, w.prompt, self.others_wait());
        at + if w.stream { head_time() } else { Duration::ZERO } >= by
    }

    pub(super) fn wait_of(&self, now: MonoTime, priority: Priority, tenant: TenantId) -> Option<Duration> {
        self.drain_rate.wait(now, self.queue.ahead_of(priority, tenant))
    }

    /// The breaker has been waiting for a probe for less than its recovery time.
    pub(super) fn probe_just_due(&self, now: MonoTime) -> bool {
        self.fleet.due_since().is_some_and(|due| now.since(due) < self.fleet.recovery())
    }

    /// Until the breaker lets a probe pass, at least a second.
    pub(super) fn recovery(&self, now: MonoTime) -> Option<Duration> {
        let left = self.fleet.open_until().map_or(Duration::ZERO, |until| until.since(now));
        Some(left.max(Duration::from_secs(1)))
    }
}
