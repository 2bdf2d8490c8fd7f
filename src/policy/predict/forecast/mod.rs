//! The minute forecaster: how many requests the next minutes will bring, and how sure that is.
//!
//! ```text
//! count ─▶ anomaly ─▶ experts ─▶ Hedge, by mood ─▶ centre ─▶ calibrators ─▶ Forecast (a distribution)
//!             └ what the experts may learn          └ each minute ahead, judged once it has passed
//! ```
//! Most of the worth is in the calibrators: nobody forecasts a count much better than exponential smoothing
//! does, but how far it may be off can be known much better than from one fixed spread.
//! Without it the policy could only react. The predictor closes a minute each minute and asks for the next
//! five; [`Forecaster::refit`] is heavy and runs hourly, off the I/O threads.
//!
//! Memory is bounded: [`Forecaster::bytes`], below [`Forecaster::MOST_BYTES`]. No chance, no clock: the same
//! counts give the same forecasts.

mod anomaly;
mod calibrate;
mod distribution;
mod errors;
mod ets;
mod experts;
mod hedge;
mod level;
mod minutes;
mod outlook;
mod regress;
mod season;
mod window;

pub use distribution::Forecast;
pub use errors::Errors;
pub use ets::Smoothing;

use anomaly::Anomaly;
use errors::Running;
use experts::{Experts, HORIZONS, NAMES};
use minutes::Minutes;
use outlook::Outlook;

/// Minutes between two refits once there is a day of history.
const REFIT_EVERY: usize = 60;
/// The same before that: a young fit ages faster.
const REFIT_YOUNG: usize = 15;
const YOUNG: usize = 240;
/// Unwatched minutes in a row after which what came before says little of the next.
const LONG_GAP: usize = 15;
/// The first count after a shorter gap that is this many times the forecast, or as small a share of it, tells of a
/// step that nobody saw.
const STEP: f64 = 2.0;
/// No upstream is asked more per minute; anything above is a fault of the counter.
const MOST: f64 = 1e12;

/// Forecasts the requests of the next minutes from those of the last two weeks.
#[derive(Clone, Debug)]
pub struct Forecaster {
    /// What was counted, for the seasons.
    minutes: Minutes,
    /// What was learnt of it, for the fits: outliers tamed.
    learnt: Minutes,
    anomaly: Anomaly,
    experts: Experts,
    outlooks: [Outlook; HORIZONS.len()],
    errors: Running,
    since_refit: usize,
    /// Minutes since the last that was watched.
    gap: usize,
    /// Minutes since the last gap across which demand may have changed. A fit to both sides of one would take the step,
    /// which nobody saw, for a slope.
    whole: usize,
}

impl Default for Forecaster {
    fn default() -> Self {
        Self::new()
    }
}

impl Forecaster {
    /// What one may occupy at most, bytes.
    pub const MOST_BYTES: usize = 3 << 20;

    /// One that has seen nothing: it forecasts zero until the first minute is closed.
    #[must_use]
    pub fn new() -> Self {
        Self {
            minutes: Minutes::new(minutes::KEEP),
            learnt: Minutes::new(ets::POINTS),
            anomaly: Anomaly::new(),
            experts: Experts::new(),
            outlooks: std::array::from_fn(Outlook::new),
            errors: Running::default(),
            since_refit: 0,
            gap: 0,
            whole: 0,
        }
    }

    /// Closes one minute: the requests that arrived in it, or `None` where nobody watched (a gap is not a zero).
    pub fn close(&mut self, count: Option<f64>) {
        let y = count.filter(|c| c.is_finite()).map(|c| c.clamp(0.0, MOST));
        let known = self.outlooks[0].said().is_some();
        let anew = y.is_some_and(|y| self.stepped(y));
        self.gap = if y.is_some() { 0 } else { self.gap + 1 };
        self.whole = if anew { 1 } else { self.whole + 1 };
        if let Some(y) = y.filter(|_| known) {
            self.errors.learn(self.outlooks[0].now(), y);
        }
        let learnt = match y {
            Some(y) if known && !anew => Some((y, self.anomaly.judge(self.outlooks[0].now().mean, y))),
            Some(y) => Some((y, y)),
            None => {
                self.anomaly.skip();
                None
            }
        };
        // the record shows what was said before such a gap; no expert is blamed for it
        if anew {
            self.experts.afresh();
            self.outlooks.iter_mut().for_each(Outlook::afresh);
        }
        self.outlooks.iter_mut().for_each(|outlook| outlook.judge(y));
        self.minutes.push(y);
        self.learnt.push(learnt.map(|(_, learnt)| learnt));
        self.experts.learn(learnt);
        let known = known || y.is_some();
        let most = self.experts.most();
        for (horizon, outlook) in self.outlooks.iter_mut().enumerate() {
            outlook.look(
                self.anomaly.mood(),
                known.then(|| self.experts.forecast(horizon, &self.minutes)),
                most,
            );
        }
        self.since_refit += 1;
    }

    /// Whether demand may have changed in the gap that ends with this count.
    fn stepped(&self, y: f64) -> bool {
        let expected = self.outlooks[0].now().mean;
        let (low, high) = (y.min(expected), y.max(expected));
        self.gap >= LONG_GAP || self.gap > 0 && high > STEP * low
    }

    /// Whether [`Forecaster::refit`] is due: an hour has passed, or a quarter of one while history is short.
    #[must_use]
    pub fn refit_due(&self) -> bool {
        let every = if self.minutes.observed() < YOUNG { REFIT_YOUNG } else { REFIT_EVERY };
        self.since_refit >= every
    }

    /// The heavy fits. Forecasts before the first call work, only worse.
    pub fn refit(&mut self) {
        self.since_refit = 0;
        self.experts.refit(&self.minutes, self.whole, &self.learnt.last(ets::POINTS.min(self.whole)));
    }

    /// Predictive distribution of the requests in the minute `ahead` minutes after the last closed one: 1 to 5,
    /// 0 counts as 1 and anything above as 5.
    #[must_use]
    pub fn forecast(&self, ahead: usize) -> Forecast {
        let [near, far] = &self.outlooks;
        let span = HORIZONS[1] - HORIZONS[0];
        let share = ahead.clamp(HORIZONS[0], HORIZONS[1]).abs_diff(HORIZONS[0]) as f64 / span as f64;
        near.now().towards(far.now(), share)
    }

    /// What each expert forecasts for the minute that follows the last closed one, or (`ahead` above 1) for the
    /// fifth, requests per minute.
    pub fn experts(&self, ahead: usize) -> impl Iterator<Item = (&'static str, f64)> + use<> {
        let said = self.outlooks[usize::from(ahead > HORIZONS[0])].said();
        NAMES.into_iter().zip(said.unwrap_or_default())
    }

    /// The experts' weights in the blend for the next minute; they sum to one.
    #[must_use]
    pub fn weights(&self) -> Vec<(&'static str, f64)> {
        NAMES.into_iter().zip(self.outlooks[0].weights()).collect()
    }

    /// How surprising the last minute was: robust deviations between its count and its forecast.
    #[must_use]
    pub fn anomaly_score(&self) -> f64 {
        self.anomaly.score()
    }

    /// How the forecasts of one minute ahead have done over about the last day.
    #[must_use]
    pub fn errors(&self) -> Errors {
        self.errors.get()
    }

    /// Minutes of history, gaps left out.
    #[must_use]
    pub fn minutes(&self) -> usize {
        self.minutes.observed()
    }

    /// What this occupies, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let heap = self.minutes.bytes() + self.learnt.bytes() + self.anomaly.bytes();
        size_of::<Self>() + heap + self.outlooks.iter().map(Outlook::bytes).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    //! The cases that are easy to get wrong, and properties over any sequence.

    use proptest::prelude::*;

    use super::*;

    /// A deterministic stand-in for noise, uniform in ±1.
    fn noise(i: usize) -> f64 {
        let x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let x = (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((x >> 11) as f64 / (1_u64 << 53) as f64) * 2.0 - 1.0
    }

    fn run(counts: impl IntoIterator<Item = f64>) -> Forecaster {
        let mut f = Forecaster::new();
        counts.into_iter().for_each(|c| f.close(Some(c)));
        f
    }

    /// Finite, not negative, rising in p; and `exceeds` is its inverse.
    fn is_proper(f: &Forecast) -> Result<(), String> {
        let mut last = 0.0;
        for p in (0..=100).map(|p| f64::from(p) / 100.0) {
            let q = f.quantile(p);
            if !q.is_finite() || q < last {
                return Err(format!("q({p}) = {q} after {last} in {f:?}"));
            }
            last = q;
        }
        let mut last = 1.0;
        for x in (0..60).map(|e| 1.7_f64.powi(e) - 1.0) {
            let p = f.exceeds(x);
            if !(0.0..=last).contains(&p) {
                return Err(format!("P(> {x}) = {p} after {last} in {f:?}"));
            }
            last = p;
        }
        if f.mean.is_finite() && f.mean >= 0.0 { Ok(()) } else { Err(format!("{f:?}")) }
    }

    #[test]
    fn nothing_seen_is_nothing_forecast() {
        let mut f = Forecaster::new();
        f.refit();
        is_proper(&f.forecast(1)).unwrap();
        assert_eq!(f.forecast(1).mean, 0.0);
        f.close(None);
        assert_eq!((f.minutes(), f.forecast(5).mean, f.anomaly_score()), (0, 0.0, 0.0));
        f.close(Some(60.0));
        assert_eq!((f.minutes(), f.forecast(1).mean), (1, 60.0));
        assert!(f.forecast(1).quantile(0.95) > 65.0, "one minute proves little: {:?}", f.forecast(1));
    }

    #[test]
    fn a_steady_load_is_known_within_its_own_noise() {
        let f = run((0..600).map(|i| (100.0 + 20.0 * noise(i)).round()));
        for ahead in 1..=5 {
            let f = f.forecast(ahead);
            assert!((f.mean - 100.0).abs() < 4.0, "{f:?}");
            assert!((112.0..125.0).contains(&f.quantile(0.95)), "{}", f.quantile(0.95));
            assert!((f.exceeds(100.0) - 0.5).abs() < 0.15, "{}", f.exceeds(100.0));
            assert!(f.exceeds(150.0) < 0.02 && f.exceeds(60.0) > 0.95);
        }
        let e = f.errors();
        assert!(e.wape < 0.13 && (0.92..=0.99).contains(&e.coverage95), "{e:?}");
        assert!((f.weights().iter().map(|w| w.1).sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_gap_is_not_a_zero() {
        let mut f = run((0..300).map(|i| (80.0 + 9.0 * noise(i)).round()));
        for _ in 0..600 {
            f.close(None);
        }
        assert!((f.forecast(1).mean - 80.0).abs() < 8.0, "{:?}", f.forecast(1));
        assert_eq!(f.minutes(), 300);
    }

    /// How traffic may run up to a gap.
    fn before_a_gap() -> impl Strategy<Value = Vec<f64>> {
        let noisy = |len: usize, level: f64| (0..len).map(move |i| (level * (1.0 + 0.2 * noise(i))).round());
        prop_oneof![
            (3_i32..14).prop_map(|n| (0..n).map(|i| 2_f64.powi(i)).collect()),
            (10_usize..400, 0.2..8.0).prop_map(|(n, s)| (0..n).map(|i| s * i as f64).collect()),
            (10_usize..400, 0.2..8.0).prop_map(|(n, s)| (0..n).rev().map(|i| s * i as f64).collect()),
            (60_usize..200, 1.0..50.0_f64).prop_map(move |(n, level)| {
                noisy(n, level).chain((0..9).map(|i| level * 2_f64.powi(i))).collect()
            }),
            prop::collection::vec((1_usize..30, 0.0..9.0_f64), 1..12).prop_map(move |runs| {
                runs.into_iter().flat_map(|(n, level)| noisy(n, level.exp())).collect()
            }),
        ]
    }

    /// An hour at `level` after a gap: no forecast may be above what was ever seen supports, and few of those of
    /// the second half hour far from the level.
    fn runs_through(before: &[f64], gap: usize, level: f64, refits: bool) -> Result<(), String> {
        let mut f = Forecaster::new();
        let after = (0..60).map(|i| Some((level * (1.0 + 0.15 * noise(i))).round()));
        let counts = before.iter().map(|c| Some(*c)).chain(std::iter::repeat_n(None, gap)).chain(after);
        let (mut largest, mut strays, back) = (0.0_f64, 0, before.len() + gap + 30);
        for (i, count) in counts.enumerate() {
            f.close(count);
            largest = largest.max(count.unwrap_or(0.0));
            if f.refit_due() && refits && (i < 120 || i >= back - 30) {
                f.refit();
            }
            for ahead in [1, 5] {
                let said = f.forecast(ahead);
                let most = said.mean.max(said.quantile(0.95));
                if most > 4.0 * largest + 10.0 {
                    return Err(format!("minute {i}: {said:?}, at most {largest} seen"));
                }
                strays += usize::from(i >= back && !(0.5..2.0).contains(&(said.mean / level)));
            }
        }
        // where no step shows at once the blend may still believe, after a minute that surprises, what was so before
        if strays <= 3 { Ok(()) } else { Err(format!("{strays} forecasts of 60 are far from {level}")) }
    }

    #[test]
    fn what_was_fitted_before_a_long_gap_says_nothing_after_it() {
        // doubling each minute, then 15 hours of nothing: a fit to both sides takes the step for a slope
        for n in [148, 160, 191] {
            let steady = (0..n).map(|i| (34.6 * (1.0 + 0.2 * noise(i))).round());
            let before: Vec<f64> = steady.chain((0..9).map(|i| 34.6 * 2_f64.powi(i))).collect();
            assert_eq!(runs_through(&before, 897, 100.0, true), Ok(()));
        }
    }

    #[test]
    fn a_step_in_a_short_gap_begins_anew_too() {
        // flips between 1 and thousands: what was so is of no use at 100, and losses of thousands would be remembered
        let runs = [(22.0, 4), (1.0, 15), (3000.0, 10), (1.0, 13), (4000.0, 6)];
        let flat =
            runs.iter().flat_map(|(level, n)| (0..*n).map(move |i| (level * (1.0 + 0.2 * noise(i))).round()));
        assert_eq!(runs_through(&flat.collect::<Vec<_>>(), 2, 100.0, false), Ok(()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn nothing_runs_away_in_a_gap(
            before in before_a_gap(),
            gap in prop_oneof![1_usize..60, 60_usize..2880],
            level in 100.0..300.0_f64,
            refits in prop::bool::weighted(0.3),
        ) {
            prop_assert_eq!(runs_through(&before, gap, level, refits), Ok(()));
        }
    }

    #[test]
    fn one_spike_passes_and_a_step_stays() {
        let steady = |i: usize| (100.0 + 10.0 * noise(i)).round();
        let mut f = run((0..300).map(steady));
        f.close(Some(5000.0));
        assert!(f.anomaly_score() > 50.0);
        (301..306).for_each(|i| f.close(Some(steady(i))));
        assert!(f.forecast(1).mean < 150.0, "five minutes after: {:?}", f.forecast(1));
        assert!(f.forecast(1).quantile(0.95) < 400.0, "{}", f.forecast(1).quantile(0.95));

        let mut f = run((0..300).map(steady));
        (0..3).for_each(|_| f.close(Some(1000.0)));
        assert!(f.forecast(1).mean > 500.0, "three minutes after: {:?}", f.forecast(1));
        (0..3).for_each(|_| f.close(Some(0.0)));
        assert!(f.forecast(1).mean < 500.0, "three silent minutes: {:?}", f.forecast(1));
        (0..57).for_each(|_| f.close(Some(0.0)));
        assert!(f.forecast(5).mean < 2.0 && f.forecast(5).quantile(0.95) < 20.0, "{:?}", f.forecast(5));
    }

    #[test]
    fn a_day_of_silence_a_trickle_and_a_flood() {
        let mut f = run((0..200).map(|_| 300.0));
        (0..1440).for_each(|_| f.close(Some(0.0)));
        f.refit();
        assert!(f.forecast(1).quantile(0.99) < 1.0, "{:?}", f.forecast(1));
        f.close(Some(300.0));
        f.close(Some(300.0));
        assert!(f.forecast(1).mean > 100.0, "back after two minutes: {:?}", f.forecast(1));

        let f = run((0..300).map(|_| 1.0));
        assert!((f.forecast(1).mean - 1.0).abs() < 0.05 && f.forecast(1).quantile(0.95) < 2.0);

        let mut f = run((0..600).map(|i| (200_000.0 + 900.0 * noise(i)).round()));
        f.refit();
        assert!((f.forecast(1).mean - 2e5).abs() < 500.0);
        assert!((200_300.0..202_000.0).contains(&f.forecast(1).quantile(0.95)));
    }

    #[test]
    fn two_weeks_fit_into_three_mebibytes() {
        let mut f = Forecaster::new();
        (0..20_500).for_each(|i| f.close((i % 500 != 0).then(|| (50.0 + 30.0 * noise(i)).round())));
        assert!(f.bytes() <= Forecaster::MOST_BYTES, "{}", f.bytes());
        let before = f.bytes();
        (0..500).for_each(|i| f.close(Some(50.0 + 30.0 * noise(i))));
        assert_eq!(f.bytes(), before);
        assert!(f.minutes() <= minutes::KEEP);
    }

    #[test]
    fn refits_come_hourly_and_sooner_at_first() {
        let mut f = Forecaster::new();
        let mut due = Vec::new();
        for i in 0..400 {
            f.close(Some(100.0 + 40.0 * noise(i)));
            if f.refit_due() {
                due.push(i + 1);
                f.refit();
                is_proper(&f.forecast(1)).unwrap();
            }
        }
        assert_eq!(due[..3], [15, 30, 45]);
        assert_eq!(due[due.len() - 1] - due[due.len() - 2], 60, "{due:?}");
    }

    /// Counts of every size, absurd ones too, in runs, with gaps.
    fn sequences() -> impl Strategy<Value = Vec<(Option<f64>, usize)>> {
        let count = prop_oneof![
            4 => (0_u32..300).prop_map(|c| Some(f64::from(c))),
            1 => Just(Some(0.0)),
            1 => Just(None),
            1 => prop::sample::select(vec![1e-300, 200_000.0, 1e12, f64::MAX, f64::INFINITY, f64::NAN, -5.0]).prop_map(Some),
            1 => (0.0_f64..1e9).prop_map(Some),
        ];
        prop::collection::vec((count, prop_oneof![3 => Just(1_usize), 1 => 1_usize..40]), 1..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_sequence_gives_proper_distributions(runs in sequences()) {
            let mut f = Forecaster::new();
            for (count, times) in &runs {
                for _ in 0..*times {
                    f.close(*count);
                }
                if f.refit_due() && f.minutes() < 120 {
                    f.refit();
                }
                for ahead in [0, 1, 3, 5, 9] {
                    prop_assert_eq!(is_proper(&f.forecast(ahead)), Ok(()));
                }
                prop_assert!(f.weights().iter().all(|(_, w)| (0.0..=1.0).contains(w)));
                prop_assert!(f.anomaly_score().is_finite() && f.errors().wape.is_finite());
            }
            let mut again = Forecaster::new();
            runs.iter().for_each(|(count, times)| (0..*times).for_each(|_| again.close(*count)));
            let mut twice = Forecaster::new();
            runs.iter().for_each(|(count, times)| (0..*times).for_each(|_| twice.close(*count)));
            prop_assert_eq!(again.forecast(1), twice.forecast(1));
        }
    }
}
