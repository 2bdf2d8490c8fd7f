//! An attempt's life after its admission: its head, its end, and what that says of the endpoint.

use crate::policy::engine::{Effect, Engine, Kind, Lost};
use crate::policy::units::{MonoTime, Outcome, Refusal, Sample, Ticket};

impl Engine {
    pub(super) fn first_byte(&mut self, now: MonoTime, ticket: Ticket, alive: bool) {
        let Some(flight) = self.flights.get_mut(&ticket) else { return };
        if flight.kind == Kind::Queued && flight.request.stream && alive && flight.alive.is_none() {
            self.head_time.observe(
                now,
                flight.request.model,
                flight.request.prompt,
                now.since(flight.admitted),
            );
        }
        flight.alive.get_or_insert(alive);
        self.fleet.head(now, &flight.attempt, alive, flight.refused, &mut self.reports);
    }

    pub(super) fn lost(&mut self, now: MonoTime, ticket: Ticket, lost: Lost) {
        let Some(flight) = self.flights.get(&ticket) else { return };
        match lost {
            Lost::Unsent => self.fleet.never_sent(now, &flight.attempt),
            Lost::TimedOut => self.fleet.timed_out(now, &flight.attempt),
        }
    }

    pub(super) fn attempt_ended(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        let Some(flight) = self.flights.get_mut(&ticket) else { return };
        if std::mem::replace(&mut flight.decided, true) {
            return;
        }
        let turned = self.fleet.ended(now, &flight.attempt, outcome, flight.alive, &mut self.reports);
        self.report(effects);
        if turned.is_some() {
            self.tripped(now, effects);
        }
    }

    pub(super) fn finish(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        outcome: Outcome,
        sample: Option<Sample>,
        effects: &mut Vec<Effect>,
    ) {
        let decided = self.flights.get(&ticket).is_some_and(|flight| flight.decided);
        self.attempt_ended(now, ticket, outcome, effects);
        let Some(flight) = self.flights.remove(&ticket) else { return };
        self.fleet.release(now, &flight.attempt, sample.as_ref());
        // cut off at its client's deadline: its head would have taken longer still
        if flight.request.stream
            && flight.alive.is_none()
            && flight.request.head_by.is_some_and(|by| by <= now)
        {
            self.head_time.observe(
                now,
                flight.request.model,
                flight.request.prompt,
                now.since(flight.admitted),
            );
        }
        if outcome == Outcome::Success && !decided {
            self.retry_budget.succeeded(&self.params.supply.retry);
        }
        match flight.kind {
            Kind::Unqueued | Kind::Upload => self.unqueued -= 1,
            Kind::Queued | Kind::WebSocket => {
                self.permits.give_back();
                if flight.kind == Kind::Queued {
                    self.history.finished();
                }
                self.websockets -= usize::from(flight.kind == Kind::WebSocket);
                if self.moves {
                    self.drain_rate.freed();
                }
            }
        }
    }

    /// The last breaker opened: who cannot wait that long is told at once.
    fn tripped(&mut self, now: MonoTime, effects: &mut Vec<Effect>) {
        let Some(until) = self.fleet.open_until() else { return };
        let retry_after = self.recovery(now);
        for ticket in self.queue.expiring(until) {
            self.queue.remove(ticket);
            effects.push(Effect::Reject { ticket, refusal: Refusal::UpstreamUnavailable, retry_after });
        }
    }
}
