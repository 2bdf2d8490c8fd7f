//! What passes between the gate and the upstream besides requests: limits that answers tell of, how quick they were, and
//! requests that go back for another try.
//!
//! A policy that learns gives the engine all that the live proxy gives it, from the same bytes: the limit headers of each
//! answer through [`RateLimits::parse`], a [`Sample`] of each whole one, and an estimate of each request's tokens.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::engine::{Event, RetryCause};
use crate::policy::supply::pace::RateLimits;
use crate::policy::supply::{ConcurrencyMode, EndpointParams, Member, Params};
use crate::policy::units::{MonoTime, Outcome, Sample, Ticket, Tokens};
use crate::simulate::play::{Phase, Play};
use crate::simulate::policy::{Order, Policy};
use crate::simulate::setup::Setup;
use crate::simulate::upstream::{Id, Model};

/// What the engine knows of the upstream beforehand.
pub(super) fn params(setup: &Setup<'_>, policy: &Policy) -> Params {
    let known = setup.endpoint.clone();
    let endpoint = match setup.model {
        _ if !policy.learned => EndpointParams {
            concurrency: ConcurrencyMode::Unlimited,
            requests_per_minute: None,
            tokens_per_minute: None,
            ..known
        },
        // what the replicas that are ready take is told, not learned
        Model::Replicas(_) | Model::Slots(_) => {
            EndpointParams { concurrency: ConcurrencyMode::Unlimited, ..known }
        }
        _ => known,
    };
    Params {
        breaker: setup.breaker.clone(),
        retry: setup.retry.clone(),
        members: vec![Member { endpoint, keys: 1, hosted: matches!(setup.model, Model::Hosted(_)) }],
        // under a fixed limit, too, if it is asked for
        learn: policy.learned,
        ..Params::default()
    }
}

/// Requests that were admitted and that the upstream would refuse: `paced` holds them back until it would not.
#[derive(Debug)]
pub(super) struct Pacing {
    on: bool,
    held: VecDeque<Id>,
    next: MonoTime,
}

impl Pacing {
    pub(super) const fn new(on: bool) -> Self {
        Self { on, held: VecDeque::new(), next: MonoTime::MAX }
    }

    /// When the first of them would pass.
    pub(super) const fn next(&self) -> MonoTime {
        self.next
    }
}

impl Play<'_> {
    /// Keeps an admitted request from the upstream while that would refuse it.
    pub(super) fn holds_back(&mut self, now: MonoTime, id: Id) -> bool {
        if !self.pacing.on {
            return false;
        }
        let request = &self.setup.requests[id as usize];
        let holds = !self.pacing.held.is_empty() || self.upstream.passes(now, request) > now;
        if holds {
            self.pacing.held.push_back(id);
        }
        holds
    }

    /// Lets go who passes now, and one more out of the queue once nobody is held back: so the queue keeps its order and
    /// its deadlines until the last moment.
    pub(super) fn pace(&mut self, now: MonoTime) {
        if !self.pacing.on {
            return;
        }
        loop {
            self.pacing.next = MonoTime::MAX;
            while let Some(&id) = self.pacing.held.front() {
                if self.states[id as usize].phase == Phase::Runs {
                    let request = &self.setup.requests[id as usize];
                    let at = self.upstream.passes(now, request);
                    if at > now {
                        self.pacing.next = at;
                        break;
                    }
                    self.upstream.begin(now, id, request);
                }
                self.pacing.held.pop_front();
            }
            let limit = (self.level.in_flight + u32::from(self.pacing.held.is_empty())).max(1);
            if limit == self.level.limit {
                return;
            }
            let before = (self.level.in_flight, self.pacing.held.len());
            self.obey(now, Order::Permits(limit));
            // nobody came
            if before == (self.level.in_flight, self.pacing.held.len()) {
                return;
            }
        }
    }

    /// The head of an answer comes: the gate reads what it says of the limits. When the upstream wants to be asked
    /// again, if it refused.
    pub(super) fn read(&mut self, now: MonoTime, id: Id, status: u16, alive: bool) -> Option<Duration> {
        let ticket = Ticket(self.states[id as usize].ticket);
        let mut retry_after = None;
        if self.policy.learned {
            let told = self.upstream.told(id);
            let headers = told.iter().map(|(name, value)| (*name, value.as_bytes()));
            let unix = self.setup.unix as f64 + now.as_nanos() as f64 * 1e-9;
            let limits = RateLimits::parse(status, headers, now, unix);
            retry_after = limits.retry_at.map(|at| at.since(now));
            if status == 429 {
                self.event(now, Event::Refused(ticket, Box::new(limits)));
            } else if !told.is_empty() {
                self.event(now, Event::Limits(ticket, Box::new(limits)));
            }
        }
        self.event(now, Event::FirstByte { ticket, alive });
        retry_after
    }

    /// The first token of a stream.
    pub(super) fn first_token(&mut self, now: MonoTime, id: Id) {
        if self.policy.learned && self.streams {
            let state = &self.states[id as usize];
            let (ticket, prompt) = (Ticket(state.ticket), state.estimated.prompt);
            self.event(now, Event::FirstToken { ticket, prompt });
        }
    }

    /// What a whole answer says of the upstream's pace.
    pub(super) fn sample(&mut self, now: MonoTime, id: Id) -> Option<Sample> {
        let request = &self.setup.requests[id as usize];
        let state = &self.states[id as usize];
        self.estimates.observe(id, request, state.estimated);
        self.policy.learned.then(|| Sample {
            prompt: Tokens(request.prompt.into()),
            uncounted: Tokens(0),
            output: Tokens(if self.setup.tokens { request.output.into() } else { 0 }),
            first: state.first.since(state.admitted),
            last: now.since(state.admitted),
            stream: self.streams,
        })
    }

    /// A refused attempt goes back to the gate for another. False: there is none, and its answer is the client's.
    pub(super) fn retries(&mut self, now: MonoTime, id: Id, retry_after: Option<Duration>) -> bool {
        let ticket = Ticket(self.states[id as usize].ticket);
        let (outcome, cause) = (Outcome::Refused, RetryCause::Status);
        self.given_up = None;
        self.event(now, Event::Retry { ticket, outcome, cause, retry_after });
        self.given_up.take() != Some(ticket)
    }

    pub(super) fn requeued(&mut self, ticket: Ticket) {
        let id = self.owner(ticket);
        self.states[id as usize].phase = Phase::Waits;
        self.level.in_flight -= 1;
        self.level.queued += 1;
    }
}
