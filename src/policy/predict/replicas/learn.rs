//! What one replica carries, learned from how answers slow down.
//!
//! ```text
//! each    = requests in flight / replicas              the minute's mean; replicas asked for a start ago
//! slowed    slowdown > 1.25 + 3 · 1.2 / √n             n flights ended in it: more than chance can do
//! learned = max(each / slowdown, carried)              carried: the highest each at full speed
//! ```
//! `each ÷ slowdown` is exact for a server that shares its speed. What is learned decides how many are asked
//! for, and more replicas make `each` smaller: whoever believes every sample learns ever less and asks for
//! ever more. So it learns downwards only
//! - after two slowed minutes in a row, at no less than 0.8 of what was carried at full speed,
//! - never below that, unless five minutes in a row contradict it,
//! - while the number asked for has stood still for two start-up times.
//!
//! If more replicas then come and neither speed nor throughput rises, they were not what was wanting (or do not
//! exist): the step is undone, and nothing is learned downwards for an hour. By then the unhindered mean has
//! taken in what else made answers slower.
//!
//! Called by [`super::Replicas`] once a second; it acts once per measured minute.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::units::MonoTime;

/// In-flight requests of a replica of which nothing is known; the learned limit of one upstream starts there too.
const UNKNOWN: f64 = 64.0;
/// What is learned lies within.
const RANGE: (f64, f64) = (0.5, 1e6);
/// Answers slower than this share of the best count as slowed down.
const SLOWED: f64 = 1.25;
/// Standard deviations that chance is granted.
const SURE: f64 = 3.0;
/// Coefficient of variation of service times: that of output lengths, rounded up.
const CV: f64 = 1.2;
/// Slowed minutes in a row that count.
const IN_A_ROW: u32 = 2;
/// And so many that what was carried before counts no more.
const CONTRADICTED: u32 = 5;
/// Share of what was carried at full speed from which a slowdown can be due to load.
const LOADED: f64 = 0.8;
/// Growth in a minute that was not slowed though `each` was near what is learned.
const GROWTH: f64 = 1.03;
/// Share by which the number asked for may vary and still stand still.
const STILL: f64 = 0.1;
/// How long nothing is learned downwards after more replicas did not help.
const UNHELPED: Duration = Duration::from_secs(3_600);

/// How quick the upstream was in a minute in which enough ended to say so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Which: counts up with each such minute.
    pub minute: u64,
    /// Mean of the requests at the upstream.
    pub in_flight: f64,
    /// Requests that ended.
    pub ended: f64,
    /// How many times longer a request took than unhindered, 1 or more.
    pub slowdown: f64,
}

impl Pace {
    /// More than chance can do.
    fn slowed(&self) -> bool {
        self.slowdown > SLOWED + SURE * CV / self.ended.max(1.0).sqrt()
    }

    /// Ended requests per second, in units of the unhindered service time (Little's law).
    fn throughput(&self) -> f64 {
        self.in_flight / self.slowdown
    }
}

/// A step downwards whose effect has not been seen.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// What was known before.
    learned: f64,
    carried: f64,
    pace: Pace,
    replicas: f64,
}

impl Step {
    /// Whether answers got quicker, or more of them came, by at least half of what the added replicas promise.
    fn helped(&self, pace: &Pace, replicas: f64) -> bool {
        let share = (1.0 + self.replicas / replicas) / 2.0;
        !pace.slowed()
            || pace.slowdown <= self.pace.slowdown * share
            || pace.throughput() * share >= self.pace.throughput()
    }
}

/// The rule, with what it has to remember.
#[derive(Clone, Debug)]
pub(super) struct Learned {
    learned: f64,
    /// Highest `each` of a minute that was not slowed.
    carried: f64,
    /// What was asked for, by when it changed, back to two start-up times and a minute ago.
    asked: VecDeque<(MonoTime, u32)>,
    /// The minute judged last.
    minute: u64,
    /// Slowed minutes in a row.
    row: u32,
    step: Option<Step>,
    /// Nothing is learned downwards until then.
    until: MonoTime,
}

impl Learned {
    pub(super) fn new() -> Self {
        Self {
            learned: UNKNOWN,
            carried: 0.0,
            asked: VecDeque::new(),
            minute: 0,
            row: 0,
            step: None,
            until: MonoTime::ZERO,
        }
    }

    /// Requests in flight that one replica is reckoned to carry.
    pub(super) fn get(&self) -> f64 {
        self.learned
    }

    /// Remembers what is asked for from now on.
    pub(super) fn asked(&mut self, now: MonoTime, replicas: u32, start: Duration) {
        if self.asked.back().is_none_or(|(_, n)| *n != replicas) {
            self.asked.push_back((now, replicas));
        }
        self.forget(now, start);
    }

    fn forget(&mut self, now: MonoTime, start: Duration) {
        let settled = now - settling(start);
        while self.asked.get(1).is_some_and(|(at, _)| *at <= settled) {
            self.asked.pop_front();
        }
    }

    /// Takes in the minute that was measured last, once.
    pub(super) fn learn(&mut self, now: MonoTime, pace: &Pace, ready: Option<u32>, start: Duration) {
        if pace.minute == self.minute {
            return;
        }
        self.minute = pace.minute;
        self.forget(now, start);
        let replicas = f64::from(ready.or(self.serving(now - start)).unwrap_or(1).max(1));
        let each = (pace.in_flight / replicas).min(RANGE.1);
        if !(pace.in_flight.is_finite()
            && each >= RANGE.0
            && pace.slowdown >= 1.0
            && pace.slowdown.is_finite())
        {
            return;
        }
        if !self.stands_still(now, start) {
            self.row = 0;
        } else if pace.slowed() {
            self.slower(now, pace, each, replicas);
        } else {
            self.row = 0;
            self.step = self.step.filter(|step| replicas <= step.replicas);
            if pace.slowdown <= SLOWED {
                self.carries(each);
            }
        }
        self.learned = self.learned.clamp(RANGE.0, RANGE.1);
    }

    fn carries(&mut self, each: f64) {
        self.carried = self.carried.max(each);
        if each > LOADED * self.learned {
            self.learned = (self.learned * GROWTH).max(each);
        }
        self.learned = self.learned.max(self.carried);
    }

    fn slower(&mut self, now: MonoTime, pace: &Pace, each: f64, replicas: f64) {
        if let Some(step) = self.step.take_if(|step| replicas > step.replicas)
            && !step.helped(pace, replicas)
        {
            (self.learned, self.carried) = (step.learned, step.carried);
            self.until = now + UNHELPED;
        }
        if now < self.until || each < LOADED * self.carried {
            self.row = 0;
            return;
        }
        self.row += 1;
        let before = Step { learned: self.learned, carried: self.carried, pace: *pace, replicas };
        if self.row >= CONTRADICTED {
            self.carried = self.carried.min(each / pace.slowdown);
        }
        let learned = (each / pace.slowdown).max(self.carried);
        if self.row >= IN_A_ROW && learned < self.learned {
            self.learned = learned;
            self.step = Some(before);
        }
    }

    /// What had been asked for at `then`.
    fn serving(&self, then: MonoTime) -> Option<u32> {
        let before = self.asked.iter().rev().find(|(at, _)| *at <= then);
        before.or(self.asked.front()).map(|(_, n)| *n)
    }

    fn stands_still(&self, now: MonoTime, start: Duration) -> bool {
        let settled = now - settling(start);
        // the first is what was asked for when that time began
        let known = self.asked.front().is_some_and(|(at, _)| *at <= settled);
        let (few, most) =
            self.asked.iter().fold((u32::MAX, 0), |(few, most), (_, n)| (few.min(*n), most.max(*n)));
        known && f64::from(most.saturating_sub(few)) <= STILL * f64::from(most)
    }
}

/// So long must what is asked for have stood still: two start-up times, and at least so long that the
/// measured minute began after the last replica came.
fn settling(start: Duration) -> Duration {
    (2 * start).max(start + Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Duration = Duration::from_secs(30);

    /// Minutes, each with what is asked for in it, what is in flight and the slowdown; what is learned after each.
    fn after(l: &mut Learned, first: u64, minutes: &[(u32, f64, f64)]) -> Vec<f64> {
        let minute = |(i, &(asked, in_flight, slowdown)): (usize, &(u32, f64, f64))| {
            let minute = first + i as u64;
            l.asked(MonoTime::from_secs(60 * minute - 59), asked, START);
            let pace = Pace { minute, in_flight, ended: 100.0, slowdown };
            l.learn(MonoTime::from_secs(60 * minute), &pace, None, START);
            l.get()
        };
        minutes.iter().enumerate().map(minute).collect()
    }

    #[test]
    fn one_slow_minute_is_chance_and_so_is_a_slight_slowdown() {
        let mut l = Learned::new();
        let minutes =
            [(1, 8.0, 1.0), (1, 9.0, 1.0), (1, 9.0, 2.5), (1, 8.0, 1.0), (1, 9.0, 1.6), (1, 9.0, 1.6)];
        assert_eq!(after(&mut l, 1, &minutes), [64.0; 6]);
    }

    #[test]
    fn what_was_carried_at_full_speed_is_carried_until_it_is_contradicted() {
        let mut l = Learned::new();
        after(&mut l, 1, &[(1, 20.0, 1.0); 4]);
        let learned = after(&mut l, 5, &[(1, 30.0, 3.0); 5]);
        assert_eq!(learned, [64.0, 20.0, 20.0, 20.0, 10.0]);
        // fewer than were carried: load cannot be what slows them down
        let mut l = Learned::new();
        after(&mut l, 1, &[(1, 20.0, 1.0); 4]);
        assert_eq!(after(&mut l, 5, &[(1, 15.0, 3.0); 9]), [64.0; 9]);
    }

    #[test]
    fn nothing_is_learned_downwards_while_the_number_asked_for_changes() {
        let mut l = Learned::new();
        let minutes: Vec<_> = (0..20).map(|m| (1 + m % 2, 60.0, 3.0)).collect();
        assert_eq!(after(&mut l, 1, &minutes), [64.0; 20]);
    }

    #[test]
    fn a_step_that_did_not_help_is_undone_and_not_repeated_for_an_hour() {
        let mut l = Learned::new();
        assert_eq!(after(&mut l, 1, &[(1, 60.0, 3.0); 3])[2], 20.0);
        // three are asked for now, and nothing gets better
        let learned = after(&mut l, 4, &[(3, 60.0, 3.0); 50]);
        assert_eq!((learned[0], learned[1], learned[2], learned[49]), (20.0, 64.0, 64.0, 64.0));
        // they help: each has a third of it
        let mut l = Learned::new();
        after(&mut l, 1, &[(1, 60.0, 3.0); 3]);
        assert_eq!(after(&mut l, 4, &[(3, 60.0, 1.0); 9])[1], 20.6, "a minute at full speed: a little more");
    }

    proptest! {
        #[test]
        fn what_is_learned_stays_within_its_range(
            minutes in prop::collection::vec((0_u32..2_000_000, -1.0..1e3_f64, 0.5..50.0_f64, 0.0..1e4_f64), 1..200),
        ) {
            let mut l = Learned::new();
            for (i, (asked, in_flight, slowdown, ended)) in minutes.into_iter().enumerate() {
                let now = MonoTime::from_secs(60 * i as u64);
                l.asked(now, asked, START);
                l.learn(now, &Pace { minute: i as u64 + 1, in_flight, ended, slowdown }, None, START);
                prop_assert!((RANGE.0..=RANGE.1).contains(&l.get()) && l.asked.len() <= 3, "{:?}", l);
            }
        }
    }
}
