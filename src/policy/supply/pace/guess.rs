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
//! Some upstreams refuse a share of everything, whatever they are sent. Where a rate is the limit, half of what was
//! sent has all of it accepted, if half was before. Where as large a share is refused as before, the rate is not the
//! reason and is let go: less of it would only be less.
//! ```text
//! q accepted share at r, q' at r' ≤ r / 2:     not the rate, when 0.5 ≤ q and 0.9 q ≤ q' < (1 + q) / 2
//! ```
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
/// Weight of one answer in the share accepted, and how many it takes to compare two shares.
const RECENT: f64 = 1.0 / 16.0;
const ENOUGH: u32 = 12;
/// Below this, per second, growth alone refuses one of some: nothing is concluded from it.
const SLOW: f64 = 0.1;
/// Seconds for which a rate that was not the reason is not blamed again.
const CLEARED: f64 = 120.0;
/// A limit this many times what is being sent binds nobody.
const LOOSE: f64 = 4.0;

/// Why it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Rate,
    Concurrency,
    /// It refuses a share of everything.
    Neither,
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
    /// Share of the last answers that was accepted.
    share: f64,
    /// Answers since the last look, and what was sent per second and accepted of it at that look.
    answers: u32,
    before: Option<(f64, f64)>,
    /// When refusals turned out to have nothing to do with the rate.
    cleared: Option<MonoTime>,
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
            share: 1.0,
            answers: 0,
            before: None,
            cleared: None,
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
            self.let_go();
        }
    }

    fn let_go(&mut self) {
        (self.limit, self.before) = (None, None);
    }

    /// Whether refusals have nothing to do with the rate; looked at whenever half as much is sent as at the last look.
    fn is_unrelated(&mut self) -> bool {
        let (Some((rate, share)), Some(limit)) = (self.before, self.limit()) else { return false };
        if self.answers < ENOUGH || limit > 0.5 * rate || limit < SLOW {
            return false;
        }
        let now = self.share;
        (self.before, self.answers) = (Some((limit, now)), 0);
        share >= 0.5 && now >= 0.9 * share && now < 0.5 * (1.0 + share)
    }

    fn answer(&mut self, accepted: bool) {
        self.answers = self.answers.saturating_add(1);
        self.share += RECENT * (f64::from(u8::from(accepted)) - self.share);
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
        self.answer(true);
    }

    /// One was refused that left while `others` were in flight.
    pub(super) fn refused(&mut self, now: MonoTime, others: usize) -> Cause {
        self.turn(now);
        self.answer(false);
        if self.is_unrelated() {
            self.let_go();
            self.cleared = Some(now);
        }
        if self.cleared.is_some_and(|at| now.since(at).as_secs_f64() < CLEARED) {
            return Cause::Neither;
        }
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
        if self.limit.is_none() {
            (self.before, self.answers) = (Some((self.mean(now), self.share)), 0);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// An upstream asked as often as the search allows, at most 20 times a second, for ten minutes; `accepts` is
    /// told the time in seconds. What was accepted, and when the rate was cleared first.
    fn search(mut accepts: impl FnMut(f64) -> bool) -> (u32, Option<f64>) {
        let mut guess = Guess::new(MonoTime::ZERO);
        let (mut accepted, mut cleared, mut stopped) = (0, None, 0);
        for tick in 0..12_000 {
            let now = MonoTime::from_nanos(50_000_000 * tick);
            if tick < stopped || guess.due(now) > now {
                continue;
            }
            guess.charge(now);
            if accepts(0.05 * tick as f64) {
                guess.accepted(now, 0);
                accepted += 1;
                continue;
            }
            match guess.refused(now, 0) {
                Cause::Rate => {
                    guess.cut(now, now);
                    stopped = tick + 20;
                }
                Cause::Neither => cleared = cleared.or(Some(0.05 * tick as f64)),
                Cause::Concurrency => {}
            }
        }
        (accepted, cleared)
    }

    #[test]
    fn a_share_refused_whatever_is_sent_does_not_end_in_a_standstill() {
        let mut n = 0;
        let (accepted, cleared) = search(|_| {
            n += 1;
            n % 5 != 0
        });
        assert!(cleared.is_some_and(|at| at < 60.0), "{cleared:?}");
        // 20 a second for ten minutes, a fifth of it refused: 9,600
        assert!(accepted > 6_000, "{accepted}");
    }

    #[test]
    fn a_rate_is_blamed_for_as_long_as_it_is_the_limit() {
        for limit in [0.2, 1.0, 5.0, 15.0] {
            let mut bucket = Bucket::new(limit, limit.max(1.0), MonoTime::ZERO);
            let (accepted, cleared) = search(|at| {
                let now = MonoTime::from_nanos((1e9 * at) as u64);
                let fits = bucket.due(now, 1.0, 0.0) <= now;
                if fits {
                    bucket.add(now, -1.0);
                }
                fits
            });
            assert_eq!(cleared, None, "{limit}");
            assert!(f64::from(accepted) > 0.6 * 600.0 * limit, "{limit}: {accepted}");
        }
    }
}
