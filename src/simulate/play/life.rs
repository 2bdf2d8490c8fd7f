//! A request's life after its admission: what the upstream made of it, and what its client does then.

use std::cmp::Reverse;
use std::time::Duration;

use crate::policy::engine::Event;
use crate::policy::units::{self, MonoTime, Outcome, Ticket};
use crate::simulate::client::Retry;
use crate::simulate::play::{Phase, Play, State};
use crate::simulate::policy::Sample;
use crate::simulate::upstream::{Id, Sign};

impl Play<'_> {
    pub(super) fn signs(&mut self, now: MonoTime) {
        let mut signs = std::mem::take(&mut self.signs);
        self.upstream.advance(now, &mut signs);
        for sign in signs.drain(..) {
            match sign {
                Sign::FirstToken(id) => self.head(now, id),
                Sign::Done(id) => self.done(now, id),
                Sign::Refused { id, retry_after } => self.turned_away(now, id, retry_after),
                Sign::Failed { id, outcome, answered } => self.failed(now, id, outcome, answered),
            }
        }
        self.signs = signs;
        self.supply(now);
    }

    fn head(&mut self, now: MonoTime, id: Id) {
        let state = &mut self.states[id as usize];
        (state.has_head, state.first) = (true, now);
        self.read(now, id, 200, true);
        self.first_token(now, id);
    }

    fn done(&mut self, now: MonoTime, id: Id) {
        if !self.states[id as usize].has_head {
            self.head(now, id);
        }
        let state = &mut self.states[id as usize];
        state.phase = Phase::Over;
        let (first, admitted) = (state.first, state.admitted);
        self.open -= 1;
        self.figures.served(&self.setup.requests[id as usize], first, now);
        let sample = self.sample(now, id);
        self.finish(now, id, Outcome::Success, sample);
        self.learn(now, now.since(admitted), false);
    }

    fn finish(&mut self, now: MonoTime, id: Id, outcome: Outcome, sample: Option<units::Sample>) {
        self.level.in_flight -= 1;
        let ticket = Ticket(self.states[id as usize].ticket);
        self.event(now, Event::Finish(ticket, outcome, sample));
    }

    fn learn(&mut self, now: MonoTime, latency: Duration, refused: bool) {
        if !self.learns {
            return;
        }
        let sample = Sample { latency, in_flight: self.level.in_flight + 1, refused };
        if let Some(order) = self.pilot.sample(sample) {
            self.obey(now, order);
        }
    }

    /// 429.
    fn turned_away(&mut self, now: MonoTime, id: Id, retry_after: Option<Duration>) {
        match self.policy.retry {
            Retry::Gate => self.refused_to_the_gate(now, id),
            retry => self.refused_to_the_client(now, id, retry, retry_after),
        }
        self.learn(now, Duration::ZERO, true);
    }

    /// The gate sees the 429 first; only if it has no other try, the client does, and that is the last word.
    fn refused_to_the_gate(&mut self, now: MonoTime, id: Id) {
        let retry_after = self.read(now, id, 429, true);
        let again = self.retries(now, id, retry_after);
        self.figures.refused(&self.setup.requests[id as usize], true, !again);
        if !again {
            self.lost(id);
            self.finish(now, id, Outcome::Refused, None);
        }
    }

    fn refused_to_the_client(&mut self, now: MonoTime, id: Id, retry: Retry, retry_after: Option<Duration>) {
        let tries = usize::from(self.states[id as usize].tries);
        let wait = self.setup.clients.backoff.get(tries).copied();
        let retry = if wait.is_some() { retry } else { Retry::Never };
        let told = retry != Retry::Hold;
        self.figures.refused(&self.setup.requests[id as usize], true, told);
        self.states[id as usize].tries += 1;
        let at = now + wait.unwrap_or_default();
        match retry {
            Retry::Hold => {
                self.states[id as usize].phase = Phase::Holds;
                self.again.push(Reverse((at, id)));
            }
            Retry::Return => {
                self.states[id as usize].phase = Phase::Away;
                // the header counts whole seconds
                let after = retry_after
                    .map_or(Duration::ZERO, |d| Duration::from_secs(d.as_secs_f64().ceil() as u64));
                self.again.push(Reverse((at.max(now + after), id)));
            }
            Retry::Gate | Retry::Never => self.lost(id),
        }
        if told {
            self.read(now, id, 429, true);
            // a baseline's gate draws no conclusion
            let outcome = if self.policy.learned { Outcome::Refused } else { Outcome::Ignore };
            self.finish(now, id, outcome, None);
        }
    }

    fn failed(&mut self, now: MonoTime, id: Id, outcome: Outcome, answered: bool) {
        let ticket = Ticket(self.states[id as usize].ticket);
        if answered {
            self.event(now, Event::FirstByte { ticket, alive: false });
            self.event(now, Event::AttemptEnd(ticket, outcome));
        }
        self.lost(id);
        self.finish(now, id, outcome, None);
    }

    /// A client's patience is over.
    pub(super) fn leave(&mut self, now: MonoTime) {
        let Some((_, id)) = self.leaving.pop_front() else { return };
        let State { phase, ticket, .. } = self.states[id as usize];
        self.lost(id);
        match phase {
            Phase::Waits => {
                self.level.queued -= 1;
                self.event(now, Event::Cancel(Ticket(ticket)));
            }
            Phase::Runs | Phase::Holds => {
                if phase == Phase::Runs {
                    self.upstream.cancel(now, id);
                }
                self.finish(now, id, Outcome::Ignore, None);
                self.supply(now);
            }
            Phase::Away | Phase::Over => {}
        }
    }

    /// A wait between two tries is over.
    pub(super) fn retry(&mut self, now: MonoTime) {
        let Some(Reverse((_, id))) = self.again.pop() else { return };
        match self.states[id as usize].phase {
            Phase::Holds => {
                self.states[id as usize].phase = Phase::Runs;
                self.attempt(now, id);
            }
            Phase::Away => self.arrive(now, id),
            _ => {}
        }
    }
}
