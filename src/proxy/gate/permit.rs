//! The permit: what its holder tells the engine, and that it is given back exactly once.

use std::sync::Arc;
use std::time::Duration;

use super::{After, Gate, Refused, Verdict, Wait};
use crate::policy::engine::{Event, Lost, RetryCause};
use crate::policy::supply::pace::RateLimits;
use crate::policy::units::{Outcome, Place, Refusal, Sample, Ticket, Tokens};
use crate::proxy::usage::Costs;

/// The right to have one request at the upstream. Dropping it gives it back.
pub struct Permit {
    pub(super) gate: Arc<Gate>,
    pub(super) ticket: Ticket,
    pub(super) place: Place,
    pub(super) probe: bool,
    pub(super) limit: u32,
    pub(super) in_flight: u32,
    pub(super) outcome: Outcome,
    pub(super) sample: Option<Sample>,
    /// It went back for another try.
    pub(super) spent: bool,
}

impl Permit {
    /// Which endpoint it is for, and which of its keys.
    #[must_use]
    pub fn place(&self) -> Place {
        self.place
    }

    /// This request tries a broken upstream for all others.
    #[must_use]
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// Permits there were at admission, and how many were taken, this one included.
    #[must_use]
    pub fn at_admission(&self) -> (u32, u32) {
        (self.limit, self.in_flight)
    }

    /// What the requests of its group cost.
    pub(in crate::proxy) fn costs(&self) -> &Costs {
        &self.gate.costs
    }

    /// The response's head is there.
    pub fn first_byte(&self, alive: bool) {
        self.gate.event(Event::FirstByte { ticket: self.ticket, alive });
    }

    /// No head came, for a reason that is known.
    pub fn lost(&self, lost: Lost) {
        self.gate.event(Event::Lost(self.ticket, lost));
    }

    /// The attempt is decided, though the request is not over.
    pub fn attempt_ended(&self, outcome: Outcome) {
        self.gate.event(Event::AttemptEnd(self.ticket, outcome));
    }

    /// The headers of its answer, which is no 429, told of rate limits.
    pub fn limits(&self, limits: RateLimits) {
        self.gate.event(Event::Limits(self.ticket, Box::new(limits)));
    }

    /// Its answer is a 429, with what the headers told.
    pub fn refused(&self, limits: RateLimits) {
        self.gate.event(Event::Refused(self.ticket, Box::new(limits)));
    }

    /// A stream's first token came.
    pub fn first_token(&self, prompt: Tokens) {
        self.gate.event(Event::FirstToken { ticket: self.ticket, prompt });
    }

    /// The endpoint's own key was refused.
    pub fn unauthorized(&self) {
        self.gate.event(Event::Unauthorized(self.ticket));
    }

    /// Asks for another try: the permit goes back, and a new one is waited for. When and where is the engine's to
    /// say; with the error the permit is still held, and the attempt's answer stands.
    ///
    /// # Errors
    /// The permit, when there is no further try.
    pub fn retry(
        mut self,
        outcome: Outcome,
        cause: RetryCause,
        retry_after: Option<Duration>,
    ) -> Result<Pending, Self> {
        let mut after = After::default();
        let event = Event::Retry { ticket: self.ticket, outcome, cause, retry_after };
        self.gate.step(&mut self.gate.lock(), event, None, &mut after);
        let again = after.again.take();
        self.gate.after(after);
        match again {
            None => Err(self),
            Some(wait) => {
                self.spent = true;
                Ok(Pending(wait))
            }
        }
    }

    /// Gives it back with what the upstream made of it, and what a whole answer says of its pace. Without this
    /// call, nothing is said of either.
    pub fn finish(mut self, outcome: Outcome, sample: Option<Sample>) {
        (self.outcome, self.sample) = (outcome, sample);
    }
}

/// A request between two tries. Dropped, it leaves the queue.
pub struct Pending(Wait);

impl Pending {
    /// Waits for the permit of the next try.
    ///
    /// # Errors
    /// The engine's refusal.
    pub async fn admitted(mut self) -> Verdict {
        (&mut self.0.told).await.unwrap_or(Err(Refused { refusal: Refusal::Draining, retry_after: None }))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.spent {
            self.gate.event(Event::Finish(self.ticket, self.outcome, self.sample));
        }
    }
}
