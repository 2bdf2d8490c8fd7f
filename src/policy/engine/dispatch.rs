//! Whose turn it is: free permits go to those who wait, past lines of which nobody can go at the moment.
//!
//! A line is a model's, and one tenant's where clients bring their own keys: rates are per key and model. Nobody
//! overtakes within a line, and no line waits for another one's rate.

use std::time::Duration;

use crate::policy::admission::Waiting;
use crate::policy::engine::{Effect, Engine, Kind};
use crate::policy::supply::{Choice, Hold};
use crate::policy::units::{ModelId, MonoTime, Refusal, TenantId};

impl Engine {
    /// Hands free permits to whoever's turn it is.
    pub(super) fn dispatch(&mut self, now: MonoTime, effects: &mut Vec<Effect>) {
        self.wake = None;
        // lines of which nobody can go now, by model, and by tenant where clients bring their own keys
        let mut held: Vec<(TenantId, ModelId)> = Vec::new();
        while !self.queue.is_empty() {
            let by_tenant = self.fleet.keys_are_clients();
            let next = self.queue.next(&|w: &Waiting| {
                let line = |(tenant, model): &(TenantId, ModelId)| {
                    *model == w.model && (!by_tenant || *tenant == w.tenant)
                };
                w.not_before <= now && !held.iter().any(line)
            });
            let Some(w) = next else { break };
            let place = match self.fleet.choose(now, &self.want(now, &w)) {
                Choice::Go(place) => place,
                Choice::Wait(Hold::Rate { until, stopped }) => {
                    held.push((w.tenant, w.model));
                    self.wake = Some(self.wake.map_or(until, |at| at.min(until)));
                    if stopped {
                        self.stopped(now, until, &w, by_tenant, effects);
                    }
                    continue;
                }
                // another model may have a rate left where there is room
                Choice::Wait(_) if self.fleet.has_room() => {
                    held.push((w.tenant, w.model));
                    continue;
                }
                // nobody else could go either
                Choice::Wait(_) => break,
            };
            if !w.unqueued && !self.free(now, effects) {
                break;
            }
            self.queue.take(w.ticket);
            if self.hopeless(now, w.head_by, w.stream) {
                effects.push(Effect::Reject {
                    ticket: w.ticket,
                    refusal: Refusal::DeadlineUnreachable,
                    retry_after: self.wait_of(now, w.priority, w.tenant),
                });
                continue;
            }
            // what waited may find that others have taken the places meanwhile
            let limits = &self.params.admission;
            if (w.websocket && self.websockets >= limits.max_websockets)
                || (w.unqueued && self.unqueued >= limits.max_unqueued)
            {
                let retry_after = Some(Duration::from_secs(1));
                effects.push(Effect::Reject { ticket: w.ticket, refusal: Refusal::Overloaded, retry_after });
                continue;
            }
            let kind = match w {
                Waiting { unqueued: true, .. } => Kind::Unqueued,
                Waiting { websocket: true, .. } => Kind::WebSocket,
                _ => Kind::Queued,
            };
            self.admit(now, kind, w, place, effects);
        }
    }

    /// A newcomer whose endpoint is free may pass those who wait, if another model's rate is all they wait for: then
    /// neither their number nor their pace says anything of it. Says whether it is dealt with.
    pub(super) fn passes(&mut self, now: MonoTime, newcomer: &Waiting, effects: &mut Vec<Effect>) -> bool {
        if self.permits.free() == 0 {
            return false;
        }
        self.queue.push(*newcomer);
        self.dispatch(now, effects);
        let waits = self.queue.contains(newcomer.ticket);
        if waits {
            self.queue.remove(newcomer.ticket);
        }
        !waits
    }

    /// The upstream refuses a line's requests until a moment that some of them cannot wait for: they are told at
    /// once, so that their clients can go elsewhere.
    fn stopped(
        &mut self,
        now: MonoTime,
        until: MonoTime,
        first: &Waiting,
        by_tenant: bool,
        effects: &mut Vec<Effect>,
    ) {
        let retry_after = Some(until.since(now).max(Duration::from_secs(1)));
        for ticket in self.queue.expiring(until) {
            let of_line = |w: &Waiting| w.model == first.model && (!by_tenant || w.tenant == first.tenant);
            if self.queue.get(ticket).is_some_and(of_line) {
                self.queue.remove(ticket);
                let refusal = Refusal::DeadlineUnreachable;
                effects.push(Effect::Reject { ticket, refusal, retry_after });
            }
        }
    }

    pub(super) fn set_timer(&mut self, now: MonoTime, effects: &mut Vec<Effect>) {
        let Some(mut next) = self.queue.next_deadline() else { return };
        if let Some(until) = self.fleet.next_probe(now) {
            next = next.min(until);
        }
        for at in [self.wake, self.queue.next_due(now), self.next_overflow(now)].into_iter().flatten() {
            next = next.min(at.max(now + Duration::from_millis(1)));
        }
        if self.timer.is_none_or(|at| next < at) {
            self.timer = Some(next);
            effects.push(Effect::SetTimer(next));
        }
    }

    /// When the one that waits longest may go to a lower tier.
    fn next_overflow(&self, now: MonoTime) -> Option<MonoTime> {
        if !self.fleet.has_tiers() {
            return None;
        }
        let patience = self.params.admission.failover_wait;
        self.queue.oldest().map(|at| at + patience).filter(|at| *at > now)
    }
}
