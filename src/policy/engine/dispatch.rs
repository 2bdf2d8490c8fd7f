//! Whose turn it is: free permits go to those who wait, past lines of which nobody can go at the moment.
//!
//! A line is a model's, and one tenant's where clients bring their own keys: rates are per key and model. Nobody
//! overtakes within a line, and no line waits for another one's rate.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use crate::policy::admission::Waiting;
use crate::policy::engine::{Effect, Engine, Kind};
use crate::policy::supply::{Choice, Hold, Until, Want};
use crate::policy::units::{EndpointId, ModelId, MonoTime, Place, Refusal, TenantId};

/// All that decides whether a request may go, but for what it costs: who was found to wait makes the others of its
/// line wait as well, so that a small one does not go past a large one for ever. The last two: where it may not go
/// again yet, or would rather not, and whether it waits for the first tier.
type Line = (TenantId, ModelId, Option<(EndpointId, bool)>, bool);

const STOPPED: Until = Until::Rate { stopped: true };

impl Engine {
    /// Hands free permits to whoever's turn it is.
    pub(super) fn dispatch(&mut self, now: MonoTime, effects: &mut Vec<Effect>) {
        self.wake = None;
        self.beside(now, effects);
        let by_tenant = self.fleet.keys_are_clients();
        // lines of which nobody can go now: each is asked once
        let mut held: BTreeMap<Line, (Waiting, Hold)> = BTreeMap::new();
        // until the end of this look, what the one before it found
        let mut moves = false;
        while !self.queue.wants_no_permit() {
            if !self.may_free() {
                moves = true;
                break;
            }
            let fleet = &self.fleet;
            let next = self.queue.next(&mut |w: &Waiting| {
                let Entry::Vacant(unknown) = held.entry(line(now, w, by_tenant)) else { return false };
                match fleet.choose(now, &want(w)) {
                    Choice::Go(_) => true,
                    Choice::Wait(hold) => {
                        unknown.insert((*w, hold));
                        // one that may go back where it failed was asked about everything that a fresh one is
                        if w.avoid.is_some_and(|(_, until)| until <= now) {
                            let fresh = line(now, &Waiting { avoid: None, ..*w }, by_tenant);
                            held.entry(fresh).or_insert((*w, hold));
                        }
                        false
                    }
                }
            });
            let Some(w) = next else { break };
            let Choice::Go(place) = self.fleet.choose(now, &want(&w)) else { break };
            if !self.free(now, effects) {
                break;
            }
            self.go(now, w, place, effects);
        }
        for (first, hold) in held.into_values() {
            moves |= matches!(hold.until, Until::Room | Until::Rate { stopped: false });
            self.wake = self.wake.into_iter().chain([hold.at]).min();
            self.stopped(now, hold, &first, effects);
        }
        self.moves = moves;
    }

    /// What takes no permit waits for its backoff and an endpoint, and for nobody's turn.
    fn beside(&mut self, now: MonoTime, effects: &mut Vec<Effect>) {
        let fleet = &self.fleet;
        let may = |w: &&Waiting| matches!(fleet.choose(now, &want(w)), Choice::Go(_));
        let may_go: Vec<Waiting> = self.queue.beside().filter(may).copied().collect();
        for w in may_go {
            // the first of them may be the probe that the others wait for
            if let Choice::Go(place) = self.fleet.choose(now, &want(&w)) {
                self.go(now, w, place, effects);
            }
        }
    }

    /// Takes one out of the queue and lets it go, unless it is too late for it.
    fn go(&mut self, now: MonoTime, w: Waiting, place: Place, effects: &mut Vec<Effect>) {
        self.queue.take(w.ticket);
        if self.hopeless(now, &w) {
            return effects.push(Effect::Reject {
                ticket: w.ticket,
                refusal: Refusal::DeadlineUnreachable,
                retry_after: self.wait_of(now, w.priority, w.tenant),
            });
        }
        // what waited may find that others have taken the places meanwhile
        let limits = &self.params.admission;
        if (w.websocket && self.websockets >= limits.max_websockets)
            || (w.unqueued && self.unqueued >= limits.max_unqueued)
        {
            let retry_after = Some(Duration::from_secs(1));
            return effects.push(Effect::Reject {
                ticket: w.ticket,
                refusal: Refusal::Overloaded,
                retry_after,
            });
        }
        let kind = match w {
            Waiting { unqueued: true, .. } => Kind::Unqueued,
            Waiting { websocket: true, .. } => Kind::WebSocket,
            _ => Kind::Queued,
        };
        self.admit(now, kind, w, place, effects);
    }

    /// A newcomer whose endpoint is free may pass those who wait, if another model's rate is all they wait for: then
    /// neither their number nor their pace says anything of it. Says whether it is dealt with.
    pub(super) fn passes(&mut self, now: MonoTime, newcomer: &Waiting, effects: &mut Vec<Effect>) -> bool {
        if !self.may_free() {
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

    /// A 429 may have stopped the rate of those who wait behind it.
    pub(super) fn refused(&mut self, now: MonoTime, request: &Waiting, effects: &mut Vec<Effect>) {
        if let Choice::Wait(hold) = self.fleet.choose(now, &want(request)) {
            self.stopped(now, hold, request, effects);
        }
    }

    /// Where the upstream refuses a line's requests until a moment that some of them cannot wait for, they are told at
    /// once, so that their clients can go elsewhere.
    fn stopped(&mut self, now: MonoTime, hold: Hold, first: &Waiting, effects: &mut Vec<Effect>) {
        if hold.until != STOPPED {
            return;
        }
        let by_tenant = self.fleet.keys_are_clients();
        let firsts = line(now, first, by_tenant);
        for ticket in self.queue.expiring(hold.at) {
            let of_rate = |w: &&Waiting| {
                !w.unqueued && w.model == first.model && (!by_tenant || w.tenant == first.tenant)
            };
            let Some(w) = self.queue.get(ticket).filter(of_rate) else { continue };
            // where one must not go again yet, the others may
            let own = if line(now, w, by_tenant) == firsts {
                Choice::Wait(hold)
            } else {
                self.fleet.choose(now, &want(w))
            };
            if let Choice::Wait(hold) = own
                && hold.until == STOPPED
                && w.deadline <= hold.at
            {
                self.queue.remove(ticket);
                let refusal = Refusal::DeadlineUnreachable;
                let retry_after = Some(hold.at.since(now).max(Duration::from_secs(1)));
                effects.push(Effect::Reject { ticket, refusal, retry_after });
            }
        }
    }

    pub(super) fn set_timer(&mut self, now: MonoTime, effects: &mut Vec<Effect>) {
        let Some(mut next) = self.queue.next_deadline() else { return };
        if let Some(until) = self.fleet.next_probe(now) {
            next = next.min(until);
        }
        for at in [self.wake, self.queue.next_due(now)].into_iter().flatten() {
            next = next.min(at.max(now + Duration::from_millis(1)));
        }
        if self.timer.is_none_or(|at| next < at) {
            self.timer = Some(next);
            effects.push(Effect::SetTimer(next));
        }
    }
}

/// What the fleet has to know of a request.
pub(super) fn want(w: &Waiting) -> Want {
    Want {
        ticket: w.ticket,
        tenant: w.tenant,
        model: w.model,
        cost: w.cost,
        paced: !w.unqueued,
        avoid: w.avoid,
        patience: w.patience,
        may_probe: true,
    }
}

fn line(now: MonoTime, w: &Waiting, by_tenant: bool) -> Line {
    let tenant = if by_tenant { w.tenant } else { TenantId::default() };
    (tenant, w.model, w.avoid.map(|(id, until)| (id, now < until)), now < w.patience)
}
