//! The breaker again, the slow way: it keeps every answer of its stretch and works everything out anew.

use std::time::Duration;

use tidegate::policy::supply::{BreakerParams, BreakerState, Transition, Verdict};
use tidegate::policy::units::{MonoTime, Outcome, Ticket};

/// The state left and the one entered.
pub(crate) type Turn = (BreakerState, BreakerState);

/// Of a report the part that is held against it.
pub(crate) fn turn(transition: Option<Transition>) -> Option<Turn> {
    transition.map(|t| (t.from, t.to))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open(MonoTime),
    HalfOpen(Option<Ticket>),
}

/// What the breaker is held against.
#[derive(Clone, Debug)]
pub(crate) struct PlainBreaker {
    params: BreakerParams,
    state: State,
    answers: Vec<(MonoTime, bool)>,
    pub(crate) generation: u32,
}

impl PlainBreaker {
    pub(crate) fn new(params: BreakerParams) -> Self {
        Self { params, state: State::Closed, answers: Vec::new(), generation: 0 }
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open(_) => BreakerState::Open,
            State::HalfOpen(_) => BreakerState::HalfOpen,
        }
    }

    pub(crate) fn verdict(&self, now: MonoTime) -> Verdict {
        match self.state {
            State::Closed => Verdict::Pass,
            State::Open(until) if until > now => Verdict::OpenUntil(until),
            State::Open(_) | State::HalfOpen(None) => Verdict::Probe,
            State::HalfOpen(Some(_)) => Verdict::Probing,
        }
    }

    pub(crate) fn passes(&self, now: MonoTime) -> bool {
        matches!(self.verdict(now), Verdict::Pass | Verdict::Probe)
    }

    pub(crate) fn start(&mut self, now: MonoTime, ticket: Ticket) -> (Verdict, Option<Turn>) {
        let verdict = self.verdict(now);
        let turned =
            if verdict == Verdict::Probe { self.become_(State::HalfOpen(Some(ticket))) } else { None };
        (verdict, turned)
    }

    pub(crate) fn alive(&mut self, ticket: Ticket) -> Option<Turn> {
        if self.state == State::HalfOpen(Some(ticket)) { self.become_(State::Closed) } else { None }
    }

    pub(crate) fn ended(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        generation: u32,
        outcome: Outcome,
    ) -> Option<Turn> {
        let failed = matches!(outcome, Outcome::Overload | Outcome::Failure);
        if self.state == State::HalfOpen(Some(ticket)) {
            return match outcome {
                Outcome::Ignore => self.become_(State::HalfOpen(None)),
                _ if failed => self.become_(State::Open(now + self.params.recovery)),
                _ => self.become_(State::Closed),
            };
        }
        let counts = failed || outcome == Outcome::Success;
        if self.state != State::Closed || generation != self.generation || !counts {
            return None;
        }
        self.answers.push((now, failed));
        let in_a_row = self.answers.iter().rev().take_while(|(_, failed)| *failed).count();
        let broken = failed && (in_a_row >= self.params.failures as usize || self.rate_exceeded(now));
        if broken { self.become_(State::Open(now + self.params.recovery)) } else { None }
    }

    /// The window moves in tenths: an answer leaves it together with the first one of its tenth.
    fn rate_exceeded(&self, now: MonoTime) -> bool {
        let width = (self.params.window / 10).max(Duration::from_millis(1));
        let (mut tenth, mut answers, mut failures) = (None, 0_u32, 0_u32);
        for (at, failed) in &self.answers {
            let start = tenth.filter(|start| at.since(*start) < width).unwrap_or(*at);
            tenth = Some(start);
            if now.since(start) <= self.params.window {
                answers += 1;
                failures += u32::from(*failed);
            }
        }
        answers >= self.params.min_samples
            && f64::from(failures) >= self.params.failure_rate * f64::from(answers)
    }

    fn become_(&mut self, next: State) -> Option<Turn> {
        let from = self.state();
        self.state = next;
        let to = self.state();
        if from == to {
            return None;
        }
        self.generation = self.generation.wrapping_add(1);
        self.answers.clear();
        Some((from, to))
    }
}
