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
//! A rate found so is searched by AIMD, from the second refusal within a minute on, and not where nothing was accepted
//! between the two:
//! ```text
//! cut     × (1 − 2 · share refused of the last 64 answers), within [0.7, 0.98]
//! growth  1 % a second, and 1 % more for each half minute that nothing was refused
//! ```
//! So a rare refusal costs little, and what a bad minute took is back in three. Given up when it no longer binds,
//! or when it has nothing to do with the refusals (see `unrelated`).
//!
//! Without it an API with no headers would be knocked at for ever. Called by `pacer` only.

use crate::policy::supply::pace::bucket::Bucket;
use crate::policy::supply::pace::unrelated::Unrelated;
use crate::policy::units::MonoTime;

/// Length of the two windows whose maximum is "lately", in seconds.
const WINDOW: f64 = 30.0;
/// The rate of dispatches is averaged over this many seconds.
const MEAN: f64 = 10.0;
/// The deepest cut, the least, and how much of the share that is refused it takes.
const CUT: f64 = 0.7;
const LEAST: f64 = 0.98;
const TWICE: f64 = 2.0;
/// What was sent while it was not stopped may be this many times the mean.
const GOING: f64 = 2.0;
/// Growth per second, and after how many seconds it is twice as much.
const GROWTH: f64 = 0.01;
const FASTER: f64 = 30.0;
/// Slowest rate that is tried, per second.
const SLOWEST: f64 = 0.05;
/// A refusal within this many seconds of another is not the first.
const AGAIN: f64 = 60.0;
/// A limit this many times what is being sent binds nobody.
const LOOSE: f64 = 4.0;

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
    unrelated: Unrelated,
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
            unrelated: Unrelated::new(now),
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
        let grown = |at: MonoTime| {
            let t = at.since(self.cut).as_secs_f64().min(3600.0);
            GROWTH * (t + t * t / (2.0 * FASTER))
        };
        let rate = bucket.rate() * (grown(now) - grown(self.grown)).exp();
        self.grown = self.grown.max(now);
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
        self.unrelated.accepted();
    }

    /// One was refused; `hinted`: until a time that was named. Says whether that has nothing to do with the rate, as far
    /// as is known.
    pub(super) fn refused(&mut self, now: MonoTime, hinted: bool) -> bool {
        self.unrelated.refused(now, hinted);
        self.unrelated.is_so()
    }

    /// Why one was refused that left while `others` were in flight.
    pub(super) fn is_rate(&mut self, now: MonoTime, others: usize) -> bool {
        self.turn(now);
        let most = self.most[0].max(self.most[1]) as f64;
        let unlike = (others as f64) < 0.9 * most;
        self.evidence += 0.25 * (f64::from(u8::from(unlike)) - self.evidence);
        self.evidence > 0.5 || others < 2
    }

    /// Hardly any is refused: this one may be chance, and what is no chance comes again at once.
    pub(super) fn is_rare(&self) -> bool {
        self.unrelated.is_rare()
    }

    /// It is the rate: less of it from the second refusal within a minute on, for the stop alone may do. Once for
    /// all that left before the last cut. Says whether it turns out to have nothing to do with the rate, which is let
    /// go then.
    pub(super) fn cut(&mut self, now: MonoTime, sent: MonoTime) -> bool {
        if sent < self.cut {
            return false;
        }
        // a try that failed after a stop says that the stop was too short, and nothing of a rate
        let accepted = self.unrelated.anything_accepted();
        if self.unrelated.blames(now) {
            self.limit = None;
            return true;
        }
        if !accepted && self.last.is_some() {
            return false;
        }
        let again = self.last.is_some_and(|last| now.since(last).as_secs_f64() < AGAIN);
        self.last = Some(now);
        (self.cut, self.grown) = (now, now);
        if !again && self.limit.is_none() {
            return false;
        }
        // the mean has the stops in it
        let was = self.limit().unwrap_or(f64::INFINITY).min(GOING * self.mean(now));
        let cut = (1.0 - TWICE * self.unrelated.share()).clamp(CUT, LEAST);
        let rate = (was * cut).max(SLOWEST);
        // the stop comes first, and after it one may go
        let mut bucket = Bucket::new(rate, rate.max(1.0), now);
        bucket.add(now, 1.0 - bucket.level(now));
        self.limit = Some(bucket);
        false
    }

    /// Per second, where a rate is being searched.
    pub(super) fn limit(&self) -> Option<f64> {
        self.limit.as_ref().map(Bucket::rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An upstream asked as often as the search allows, at most `per_second` times, for ten minutes; `accepts` is
    /// told the time in seconds. What was accepted, and when the rate was cleared first.
    fn search(per_second: u64, mut accepts: impl FnMut(f64) -> bool) -> (u32, Option<f64>) {
        let mut guess = Guess::new(MonoTime::ZERO);
        let (mut accepted, mut cleared, mut stopped) = (0, None, 0);
        for tick in 0..600 * per_second {
            let now = MonoTime::from_nanos(1_000_000_000 / per_second * tick);
            let at = tick as f64 / per_second as f64;
            if tick < stopped || guess.due(now) > now {
                continue;
            }
            guess.charge(now);
            if accepts(at) {
                guess.accepted(now, 0);
                accepted += 1;
                continue;
            }
            if guess.refused(now, false) {
                cleared = cleared.or(Some(at));
            } else if guess.is_rate(now, 0) && !guess.cut(now, now) {
                stopped = tick + per_second;
            }
        }
        (accepted, cleared)
    }

    #[test]
    fn a_share_refused_whatever_is_sent_does_not_end_in_a_standstill() {
        for (per_second, every) in [(20, 5), (75, 89), (75, 20), (400, 500)] {
            for by_lot in [false, true] {
                let (mut n, mut lot) = (0_u64, 1_u64);
                let (accepted, cleared) = search(per_second, |_| {
                    n += 1;
                    lot = lot.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    if by_lot { !(lot >> 33).is_multiple_of(every) } else { !n.is_multiple_of(every) }
                });
                let what = format!("1 of {every} at {per_second}, by lot: {by_lot}");
                // a rare refusal costs little but its stop, and is not told from a rate's
                assert!(every > 20 || cleared.is_some_and(|at| at < 60.0), "{what}: {cleared:?}");
                let all = (600 * per_second) as f64 * (1.0 - 1.0 / every as f64);
                let least = if every > 20 { 0.3 } else { 0.85 };
                assert!(f64::from(accepted) > least * all, "{what}: {accepted} of {all}");
            }
        }
    }

    #[test]
    fn a_rate_is_blamed_for_as_long_as_it_is_the_limit() {
        for per_second in [20, 200, 1000] {
            for (limit, later) in
                [(0.2, 1.0), (1.0, 1.0), (5.0, 1.0), (15.0, 1.0), (15.0, 0.25), (2.0, 5.0), (15.0, 0.5)]
            {
                let rate = |at: f64| if (200.0..400.0).contains(&at) { limit * later } else { limit };
                let mut bucket = Bucket::new(limit, f64::max(limit, 1.0), MonoTime::ZERO);
                let (accepted, cleared) = search(per_second, |at| {
                    let now = MonoTime::from_nanos((1e9 * at) as u64);
                    bucket.set_rate(now, rate(at));
                    let fits = bucket.due(now, 1.0, 0.0) <= now;
                    if fits {
                        bucket.add(now, -1.0);
                    }
                    fits
                });
                let what = format!("{limit} a second, then {later} times that, asked {per_second} times");
                assert_eq!(cleared, None, "{what}");
                let all = limit * 400.0 + limit * later * 200.0;
                let least = if later > 1.0 { 0.5 } else { 0.8 };
                assert!(f64::from(accepted) > least * all, "{what}: {accepted} of {all}");
            }
        }
    }
}
