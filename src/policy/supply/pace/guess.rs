//! A 429 that explains nothing: too many per minute, or too many at once?
//!
//! Where only so many may run at once, a request is refused exactly when so many run: never while fewer run than
//! ran when another was accepted. Where a rate is the limit, what is running has nothing to do with it. So a refusal
//! with clearly fewer in flight than the most that were accepted with lately speaks for a rate:
//! ```text
//! evidence ← evidence + 0.25 · ([in flight at the refused < 0.9 · most at an accepted, 30 to 60 s] − evidence)
//! a rate, when evidence > 0.5; too many at once, until then
//! ```
//! In doubt it is the cap: lowering S by a tenth also lowers a rate, and as S falls the evidence comes. With fewer
//! than two in flight it cannot be the cap.
//!
//! A rate found so is searched by AIMD: × 0.7 of what was being sent at the second refusal within a minute,
//! then + 1 % a second, given up when it no longer binds.
//!
//! Without it an API with no headers would be knocked at for ever. Called by `pacer` only.

use crate::policy::supply::pace::bucket::Bucket;
use crate::policy::units::MonoTime;

/// Length of the two windows whose maximum is "lately", in seconds.
const WINDOW: f64 = 30.0;
/// The rate of dispatches is averaged over this many seconds.
const MEAN: f64 = 10.0;
const CUT: f64 = 0.7;
const GROWTH: f64 = 0.01;
/// Slowest rate that is tried, per second.
const SLOWEST: f64 = 0.05;
/// A refusal within this many seconds of another is not the first.
const AGAIN: f64 = 60.0;
/// A limit this many times what is being sent binds nobody.
const LOOSE: f64 = 4.0;

/// Why it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Rate,
    Concurrency,
}

#[derive(Clone, Debug)]
pub(super) struct Guess {
    evidence: f64,
    /// Most in flight at an accepted request, in this window and in the one before.
    most: [usize; 2],
    window: MonoTime,
    /// Dispatches per second, and when the mean was last moved.
    rate: f64,
    at: MonoTime,
    limit: Option<Bucket>,
    grown: MonoTime,
    cut: MonoTime,
    /// The last refusal that was for the rate.
    last: Option<MonoTime>,
}

impl Guess {
    pub(super) fn new(now: MonoTime) -> Self {
        Self {
            evidence: 0.0,
            most: [0, 0],
            window: now,
            rate: 0.0,
            at: now,
            limit: None,
            grown: now,
            cut: MonoTime::ZERO,
            last: None,
        }
    }

    fn turn(&mut self, now: MonoTime) {
        let passed = now.since(self.window).as_secs_f64();
        if passed >= WINDOW {
            self.most = [0, if passed < 2.0 * WINDOW { self.most[0] } else { 0 }];
            self.window = now;
        }
    }

    fn mean(&self, now: MonoTime) -> f64 {
        self.rate * (-now.since(self.at).as_secs_f64() / MEAN).exp()
    }

    pub(super) fn due(&self, now: MonoTime) -> MonoTime {
        self.limit.as_ref().map_or(now, |b| b.due(now, 1.0, 0.0))
    }

    pub(super) fn charge(&mut self, now: MonoTime) {
        self.rate = self.mean(now) + 1.0 / MEAN;
        self.at = self.at.max(now);
        let sending = self.rate;
        let Some(bucket) = &mut self.limit else { return };
        let seconds = now.since(self.grown).as_secs_f64();
        self.grown = self.grown.max(now);
        let rate = bucket.rate() * (1.0 + GROWTH * seconds.min(60.0));
        bucket.set_rate(now, rate);
        bucket.set_capacity(now, rate.max(1.0));
        bucket.add(now, -1.0);
        if rate > LOOSE * sending && now.since(self.cut).as_secs_f64() > 60.0 {
            self.limit = None;
        }
    }

    /// It never went: not counted.
    pub(super) fn give_back(&mut self, now: MonoTime) {
        self.rate = (self.mean(now) - 1.0 / MEAN).max(0.0);
        self.at = self.at.max(now);
        if let Some(bucket) = &mut self.limit {
            bucket.add(now, 1.0);
        }
    }

    /// One was accepted that left while `others` were in flight.
    pub(super) fn accepted(&mut self, now: MonoTime, others: usize) {
        self.turn(now);
        self.most[0] = self.most[0].max(others);
    }

    /// One was refused that left while `others` were in flight.
    pub(super) fn refused(&mut self, now: MonoTime, others: usize) -> Cause {
        self.turn(now);
        let most = self.most[0].max(self.most[1]) as f64;
        let unlike = (others as f64) < 0.9 * most;
        self.evidence += 0.25 * (f64::from(u8::from(unlike)) - self.evidence);
        if self.evidence > 0.5 || others < 2 { Cause::Rate } else { Cause::Concurrency }
    }

    /// It is the rate: less of it from the second refusal within a minute on, for the stop alone may do. Once for
    /// all that left before the last cut.
    pub(super) fn cut(&mut self, now: MonoTime, sent: MonoTime) {
        if sent < self.cut {
            return;
        }
        let again = self.last.is_some_and(|last| now.since(last).as_secs_f64() < AGAIN);
        self.last = Some(now);
        if !again && self.limit.is_none() {
            self.cut = now;
            return;
        }
        self.cut = now;
        self.grown = now;
        let was = self.limit.as_ref().map_or(f64::INFINITY, Bucket::rate).min(self.mean(now));
        let rate = (was * CUT).max(SLOWEST);
        // the stop comes first, and after it one may go
        let mut bucket = Bucket::new(rate, rate.max(1.0), now);
        bucket.add(now, 1.0 - bucket.level(now));
        self.limit = Some(bucket);
    }

    /// Per second, where a rate is being searched.
    pub(super) fn limit(&self) -> Option<f64> {
        self.limit.as_ref().map(Bucket::rate)
    }
}
