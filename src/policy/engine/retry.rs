//! Another try: the permit goes back, the ticket waits again, and the budget pays.
//!
//! A try that sleeps while it holds a permit is a metastable failure: the sleepers take the places of those who
//! could be served, and the upstream's recovery finds everybody asleep. So the ticket returns to the head of its
//! class, with its first deadline, and takes a permit again when its wait is over and an endpoint has room.
//!
//! ```text
//! back there not before = now                    with another key, where that helps
//!                       = now + Retry-After      as the upstream said
//!                       = now + jitter(backoff)  else
//! ```
//! The pause is the endpoint's that failed. Another one may take it at any time, as soon as it has room.

use crate::policy::engine::dispatch::want;
use crate::policy::engine::{Effect, Engine, Kind};
use crate::policy::supply::Choice;
use crate::policy::supply::retry::{Budget, wait};
use crate::policy::units::{MonoTime, Outcome, Ticket};
use crate::policy::{admission::OnDrain, admission::Waiting};
use std::time::Duration;

/// Why a request is to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCause {
    /// The upstream's answer.
    Status,
    /// No connection.
    Connect,
    /// A connection that broke before the head.
    Reset,
    /// No head in time.
    Timeout,
    /// The endpoint's own key was refused: only another one can help.
    Key,
}

impl RetryCause {
    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Key => "key",
        }
    }
}

impl Engine {
    /// The attempt of `ticket` failed, and it may be sent again as far as its sender is concerned.
    pub(super) fn retry(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        outcome: Outcome,
        cause: RetryCause,
        retry_after: Option<Duration>,
        effects: &mut Vec<Effect>,
    ) {
        self.attempt_ended(now, ticket, outcome, effects);
        let Some(request) = self.again(now, ticket, outcome, cause, retry_after) else {
            return effects.push(Effect::GivenUp(ticket));
        };
        if let Some(flight) = self.flights.remove(&ticket) {
            self.fleet.release(now, &flight.attempt, None);
            if flight.kind.takes_permit() {
                self.permits.give_back();
            } else {
                self.unqueued -= 1;
            }
        }
        self.queue.put_back(request);
        effects.push(Effect::Requeued { ticket, cause });
    }

    /// The request as it waits for its next try; `None` if there is none.
    fn again(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        outcome: Outcome,
        cause: RetryCause,
        retry_after: Option<Duration>,
    ) -> Option<Waiting> {
        let flight = self.flights.get(&ticket)?;
        let rejects = self.draining && self.params.admission.on_drain == OnDrain::Reject;
        // a tunnel has its client's first words in it, an upload's body is gone
        if matches!(flight.kind, Kind::WebSocket | Kind::Upload) || rejects {
            return None;
        }
        let (failed, mut request) = (flight.attempt.place, flight.request);
        let supply = &self.params.supply;
        // a probe that met nobody has not been tried: else an outage would cost one request for every few probes
        let untried = flight.attempt.probe && cause == RetryCause::Connect;
        let tries = if untried { 0 } else { request.tries };
        let pause = wait(&supply.retry, tries.into(), supply.seed, ticket, retry_after)?;
        request.tries += u8::from(!untried);
        let avoiding = |until| Waiting { avoid: Some((failed.endpoint, until)), ..request };
        let asked = |request: Waiting| {
            let choice = self.fleet.choose(now, &want(&request));
            let in_vain = matches!(choice, Choice::Wait(hold) if self.in_vain(now, hold, &request).is_some());
            (!in_vain).then_some((request, choice))
        };
        // another key helps against what was said of the key
        let of_key = outcome == Outcome::Refused || cause == RetryCause::Key;
        let has_another = || of_key && self.fleet.another_key(now, &want(&request), failed);
        let request = match asked(avoiding(now))? {
            (request, Choice::Go(place))
                if place.endpoint == failed.endpoint && of_key && place.key != failed.key =>
            {
                request
            }
            (request, _) if has_another() => request,
            // should that one be taken meanwhile, the one that failed is still not due
            (_, Choice::Go(place)) if place.endpoint != failed.endpoint => avoiding(now + pause),
            _ if cause == RetryCause::Key => return None,
            _ => asked(avoiding(now + pause))?.0,
        };
        (untried || self.retry_budget.take(&supply.retry, cause == RetryCause::Timeout)).then_some(request)
    }

    /// What is left of the budget for retries.
    pub(super) fn retry_budget(&self) -> &Budget {
        &self.retry_budget
    }
}
