//! A circuit breaker as a value: no lock, no clock, no task.
//!
//! ```text
//!            failures in a row, or failure rate
//!   Closed ────────────────────────────────────▶ Open ◀──────────┐
//!     ▲                                           │ recovery      │ probe failed
//!     │            probe answered                 ▼               │
//!     └───────────────────────────────────── HalfOpen ────────────┘
//! ```
//! Half-open lets exactly one probe pass. An attempt belongs to the *generation* (the count of
//! transitions) it started in, so the late failures of a burst that hung before the breaker opened
//! cannot open it again after it has recovered.
//!
//! Without it every request of a dead upstream would wait for its own timeout, holding a permit.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::supply::BreakerParams;
use crate::policy::units::{MonoTime, Outcome, Ticket};

/// The three states, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Requests pass.
    Closed,
    /// Nothing passes until the recovery time is over.
    Open,
    /// One probe decides.
    HalfOpen,
}

impl BreakerState {
    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// May an attempt start now?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, as one of many.
    Pass,
    /// Yes, and everyone waits for how it ends.
    Probe,
    /// Not before this moment.
    OpenUntil(MonoTime),
    /// A probe is under way.
    Probing,
}

/// A change of state, to be counted and logged, with what it was decided from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state left.
    pub from: BreakerState,
    /// The state entered.
    pub to: BreakerState,
    /// Failures since the last success, those of probes included.
    pub in_a_row: u32,
    /// Answers within the window while it was closed last.
    pub answers: u64,
    /// Those of them that failed.
    pub failures: u64,
    /// When one request may try; `None` unless it opened.
    pub retry_at: Option<MonoTime>,
}

#[derive(Clone, Debug)]
enum State {
    Closed,
    Open {
        until: MonoTime,
    },
    /// `since`: when the probe began, or became due again because it said nothing.
    HalfOpen {
        probe: Option<Ticket>,
        since: MonoTime,
    },
}

/// Answers seen within one tenth of the window.
#[derive(Clone, Copy, Debug)]
struct Slot {
    start: MonoTime,
    answers: u32,
    failures: u32,
}

/// The breaker of one upstream.
#[derive(Clone, Debug)]
pub struct Breaker {
    params: BreakerParams,
    state: State,
    generation: u32,
    /// Failures since the last success.
    in_a_row: u32,
    slots: VecDeque<Slot>,
}

const SLOTS: u32 = 10;

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(params: BreakerParams) -> Self {
        Self { params, state: State::Closed, generation: 0, in_a_row: 0, slots: VecDeque::new() }
    }

    /// The state as of the last event; an open breaker whose time is over is still `Open` until asked.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Which stretch between two transitions this is; an attempt remembers the one it started in.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// What an attempt would be told, without starting one.
    #[must_use]
    pub fn peek(&self, now: MonoTime) -> Verdict {
        match self.state {
            State::Closed => Verdict::Pass,
            State::Open { until } if now < until => Verdict::OpenUntil(until),
            State::Open { .. } | State::HalfOpen { probe: None, .. } => Verdict::Probe,
            State::HalfOpen { probe: Some(_), .. } => Verdict::Probing,
        }
    }

    /// When an open breaker will let its probe pass; `None` when it is not open.
    #[must_use]
    pub fn open_until(&self) -> Option<MonoTime> {
        match self.state {
            State::Open { until } => Some(until),
            _ => None,
        }
    }

    /// Since when a probe has been wanted; `None` while none is, or one is under way.
    #[must_use]
    pub fn due_since(&self) -> Option<MonoTime> {
        match self.state {
            State::Open { until } => Some(until),
            State::HalfOpen { probe: None, since } => Some(since),
            _ => None,
        }
    }

    /// Starts an attempt for `ticket` if one may start. A verdict of `Probe` makes it the probe.
    pub fn start(&mut self, now: MonoTime, ticket: Ticket) -> (Verdict, Option<Transition>) {
        let verdict = self.peek(now);
        let transition = match verdict {
            Verdict::Probe => {
                let from = self.state();
                self.state = State::HalfOpen { probe: Some(ticket), since: now };
                (from == BreakerState::Open).then(|| self.turned(from))
            }
            _ => None,
        };
        (verdict, transition)
    }

    /// Takes note of how the attempt of `ticket`, started in `generation`, ended.
    ///
    /// `Ignore` says nothing, but a probe that ends so gives its place to the next one. A `Refused`
    /// (429) proves the upstream alive: it closes a half-open breaker and is otherwise not counted.
    pub fn ended(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        generation: u32,
        outcome: Outcome,
    ) -> Option<Transition> {
        match self.state {
            State::HalfOpen { probe, .. } if probe == Some(ticket) => match outcome {
                Outcome::Success | Outcome::Refused => Some(self.close()),
                Outcome::Overload | Outcome::Failure => {
                    self.in_a_row = self.in_a_row.saturating_add(1);
                    Some(self.open(now))
                }
                Outcome::Ignore => {
                    self.state = State::HalfOpen { probe: None, since: now };
                    None
                }
            },
            State::Closed if generation == self.generation => {
                let failed = match outcome {
                    Outcome::Success => false,
                    Outcome::Overload | Outcome::Failure => true,
                    Outcome::Refused | Outcome::Ignore => return None,
                };
                self.count(now, failed);
                self.in_a_row = if failed { self.in_a_row.saturating_add(1) } else { 0 };
                (failed && (self.in_a_row >= self.params.failures || self.rate_exceeded()))
                    .then(|| self.open(now))
            }
            _ => None,
        }
    }

    /// The half-open probe is answered by anything that shows the upstream alive, a 4xx included.
    pub fn alive(&mut self, ticket: Ticket) -> Option<Transition> {
        match self.state {
            State::HalfOpen { probe, .. } if probe == Some(ticket) => Some(self.close()),
            _ => None,
        }
    }

    fn open(&mut self, now: MonoTime) -> Transition {
        let from = self.state();
        self.state = State::Open { until: now + self.params.recovery };
        self.turned(from)
    }

    fn close(&mut self) -> Transition {
        let from = self.state();
        self.state = State::Closed;
        let turned = self.turned(from);
        self.in_a_row = 0;
        self.slots.clear();
        turned
    }

    fn turned(&mut self, from: BreakerState) -> Transition {
        self.generation = self.generation.wrapping_add(1);
        let (answers, failures) = self.window();
        let (to, retry_at) = (self.state(), self.open_until());
        Transition { from, to, in_a_row: self.in_a_row, answers, failures, retry_at }
    }

    fn count(&mut self, now: MonoTime, failed: bool) {
        let width = (self.params.window / SLOTS).max(Duration::from_millis(1));
        while self.slots.front().is_some_and(|s| now.since(s.start) > self.params.window) {
            self.slots.pop_front();
        }
        let fresh = self.slots.back().is_none_or(|s| now.since(s.start) >= width);
        if fresh {
            self.slots.push_back(Slot { start: now, answers: 0, failures: 0 });
        }
        if let Some(slot) = self.slots.back_mut() {
            slot.answers = slot.answers.saturating_add(1);
            slot.failures = slot.failures.saturating_add(u32::from(failed));
        }
    }

    /// Answers in the window as of the last one, and how many of them failed.
    fn window(&self) -> (u64, u64) {
        let add = |(a, f): (u64, u64), s: &Slot| (a + u64::from(s.answers), f + u64::from(s.failures));
        self.slots.iter().fold((0, 0), add)
    }

    fn rate_exceeded(&self) -> bool {
        let (answers, failures) = self.window();
        answers >= u64::from(self.params.min_samples)
            && failures as f64 >= self.params.failure_rate * answers as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(BreakerParams::default())
    }

    fn fail(b: &mut Breaker, now: MonoTime, n: u64) -> Option<Transition> {
        let g = b.generation();
        b.ended(now, Ticket(n), g, Outcome::Overload)
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let (mut b, t) = (breaker(), MonoTime::from_secs(1));
        for n in 0..4 {
            assert_eq!(fail(&mut b, t, n), None);
        }
        assert_eq!(b.ended(t, Ticket(4), 0, Outcome::Success), None);
        for n in 5..9 {
            assert_eq!(fail(&mut b, t, n), None);
        }
        assert_eq!(
            fail(&mut b, t, 9),
            Some(Transition {
                from: BreakerState::Closed,
                to: BreakerState::Open,
                in_a_row: 5,
                answers: 10,
                failures: 9,
                retry_at: Some(MonoTime::from_secs(31)),
            })
        );
        assert_eq!(b.peek(t), Verdict::OpenUntil(MonoTime::from_secs(31)));
    }

    #[test]
    fn a_probe_that_fails_is_one_more_failure_and_one_that_does_not_ends_the_row() {
        let (mut b, at) = (breaker(), MonoTime::from_secs);
        for n in 0..5 {
            fail(&mut b, at(0), n);
        }
        let (_, half) = b.start(at(30), Ticket(5));
        assert_eq!(half.map(|t| (t.to, t.in_a_row, t.retry_at)), Some((BreakerState::HalfOpen, 5, None)));
        let again = fail(&mut b, at(31), 5).unwrap();
        assert_eq!((again.in_a_row, again.failures, again.retry_at), (6, 5, Some(at(61))));
        b.start(at(61), Ticket(6));
        let closed = b.alive(Ticket(6)).unwrap();
        assert_eq!((closed.to, closed.in_a_row, closed.retry_at), (BreakerState::Closed, 6, None));
        assert_eq!(fail(&mut b, at(62), 7), None, "the row began anew");
    }

    #[test]
    fn refusals_and_departed_clients_never_count() {
        let (mut b, t) = (breaker(), MonoTime::ZERO);
        for n in 0..100 {
            assert_eq!(b.ended(t, Ticket(n), 0, Outcome::Ignore), None);
            assert_eq!(b.ended(t, Ticket(n), 0, Outcome::Refused), None);
        }
        assert_eq!(b.state(), BreakerState::Closed);
    }

    #[test]
    fn half_of_twenty_answers_failing_opens_it_though_never_five_in_a_row() {
        let mut b = breaker();
        let mut opened_at = None;
        for n in 0..40_u64 {
            let outcome = if n % 2 == 0 { Outcome::Failure } else { Outcome::Success };
            if b.ended(MonoTime::from_secs(n / 4), Ticket(n), 0, outcome).is_some() {
                opened_at = Some(n);
                break;
            }
        }
        assert_eq!(opened_at, Some(20), "the 21st answer is the first failure at which there are 20 samples");
    }

    #[test]
    fn old_failures_leave_the_window() {
        let mut b = breaker();
        for n in 0..19_u64 {
            let outcome = if n % 4 == 3 { Outcome::Success } else { Outcome::Failure };
            assert_eq!(b.ended(MonoTime::from_secs(1), Ticket(n), 0, outcome), None);
        }
        let later = MonoTime::from_secs(100);
        assert_eq!(b.ended(later, Ticket(99), 0, Outcome::Success), None);
        assert_eq!(b.ended(later, Ticket(100), 0, Outcome::Failure), None);
    }

    #[test]
    fn exactly_one_probe_passes_and_it_decides() {
        let mut b = breaker();
        for n in 0..5 {
            fail(&mut b, MonoTime::ZERO, n);
        }
        let t = MonoTime::from_secs(30);
        assert_eq!(b.start(t, Ticket(10)).0, Verdict::Probe);
        assert_eq!(b.start(t, Ticket(11)).0, Verdict::Probing);
        // a late failure from before the trip decides nothing
        assert_eq!(b.ended(t, Ticket(3), 0, Outcome::Overload), None);
        // the probe's client leaves: the next one probes
        assert_eq!(b.ended(t, Ticket(10), b.generation(), Outcome::Ignore), None);
        assert_eq!(b.start(t, Ticket(12)).0, Verdict::Probe);
        assert!(b.ended(t, Ticket(12), b.generation(), Outcome::Overload).is_some());
        assert_eq!(b.peek(t), Verdict::OpenUntil(MonoTime::from_secs(60)));
        assert_eq!(b.start(MonoTime::from_secs(60), Ticket(13)).0, Verdict::Probe);
        assert!(b.alive(Ticket(13)).is_some());
        assert_eq!(b.state(), BreakerState::Closed);
        // the hung burst from before the trip times out now: another generation, not counted
        for n in 0..10 {
            assert_eq!(b.ended(MonoTime::from_secs(61), Ticket(n), 0, Outcome::Overload), None);
        }
        assert_eq!(b.state(), BreakerState::Closed);
    }
}
