//! What repeats: a period found in the arrivals, and the rate it says will come back.
//!
//! A replica needs its start-up time before it serves, so a recurring burst is only met by something
//! that knows of it beforehand. Nothing here assumes a period. Arrivals are kept in 5 s bins for a day;
//! the [`search`] looks for periods from one minute to eight hours in their autocorrelation, and
//! [`backtest`] lets a candidate forecast the periods that have passed:
//!
//! ```text
//! forecast(t) = 0.75-quantile over the last 8 periods j of  max { rate(s − j·P) : |s − t| ≤ widening }
//! leads       ⇔ pinball loss of that < 0.7 × the best non-seasonal forecast's, over the last 3 periods
//! ```
//! The widening is the spread of the onsets: the one with the least loss, so that a burst which comes
//! twenty seconds early or late is still covered, and is not waited for once it has come and gone. A burst
//! that fails to come changes one value in eight.
//! Daily and weekly patterns are the minute forecaster's.
//!
//! Called by the predictor once a second; the search runs once a minute.

use std::collections::VecDeque;

mod backtest;
mod search;

/// Length of a bin, seconds.
pub(in crate::policy::predict) const BIN: f64 = 5.0;
/// Bins kept: one day.
const KEEP: usize = 17_280;
/// A season leads while its loss is below this share of the best non-seasonal forecast's.
const EARNED: f64 = 0.7;
/// From here on a candidate is not tested again soon.
const HOPELESS: f64 = 1.0;
/// Failed candidates remembered.
const FAILED: usize = 12;
/// Bins over which a rate is smoothed.
const SMOOTHED: usize = 4;
/// Bins between two searches.
const LOOK_EVERY: u64 = 12;

/// A period that was found, and how far what recurs strays from it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Model {
    /// Bins; need not be a whole number.
    period: f64,
    /// Bins by which a forecast looks before and after its moment.
    widening: usize,
    /// Loss over the best non-seasonal forecast's, in the last 3 periods.
    ratio: f64,
    /// The same in the last 8.
    long: f64,
    /// Mean rate over the last periods, requests per second.
    mean: f64,
    /// Bins of a period, in the mean, that are clearly above that.
    busy: f64,
}

/// What has come of the burst that is due now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Due {
    /// Bins in which it was here.
    seen: u32,
    /// Bins since then.
    since: u32,
    /// It came and went: no reason to wait for it any longer.
    over: bool,
}

/// The recurring part of demand. At most about 270 KiB.
#[derive(Clone, Debug, Default)]
pub struct Season {
    /// Requests per second in each closed bin, oldest first; NaN where nobody watched.
    bins: VecDeque<f32>,
    /// The same with less noise; the newest are not known yet.
    smooth: VecDeque<f32>,
    /// Bins closed since the beginning.
    closed: u64,
    /// The open bin: seconds that passed, seconds watched, arrivals.
    open: (u32, u32, f64),
    model: Option<Model>,
    due: Due,
    /// Periods (in bins) that failed the test, and until when (bins closed) they are not tested again.
    failed: VecDeque<(f64, u64)>,
}

impl Season {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One second has closed, with so many arrivals; `None` if nobody watched it.
    pub fn second(&mut self, arrivals: Option<f64>) {
        self.open.0 += 1;
        if let Some(n) = arrivals.filter(|n| n.is_finite() && *n >= 0.0) {
            self.open.1 += 1;
            self.open.2 += n;
        }
        if f64::from(self.open.0) < BIN {
            return;
        }
        let (_, watched, sum) = std::mem::take(&mut self.open);
        let rate = if watched >= 3 { (sum / f64::from(watched)) as f32 } else { f32::NAN };
        self.push(rate);
        self.follow();
        if self.closed.is_multiple_of(LOOK_EVERY) {
            self.look();
        }
    }

    fn push(&mut self, rate: f32) {
        if self.bins.len() >= KEEP {
            self.bins.pop_front();
            self.smooth.pop_front();
        }
        self.bins.push_back(rate);
        self.closed += 1;
        // a bin's neighbours on both sides are known only now
        if let Some(i) = self.bins.len().checked_sub(SMOOTHED) {
            let bin = |k: usize| self.bins.get(k).map_or(f64::NAN, |v| f64::from(*v));
            self.smooth.push_back(backtest::smooth_at(&bin, i, SMOOTHED) as f32);
        }
    }

    /// Whether it has earned its place.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.model.is_some()
    }

    /// The period in seconds, if there is one that leads.
    #[must_use]
    pub fn period(&self) -> Option<f64> {
        self.model.map(|m| m.period * BIN)
    }

    /// How far around its moment a forecast looks, in seconds: the spread of what recurs.
    #[must_use]
    pub fn spread(&self) -> Option<f64> {
        self.model.map(|m| m.widening as f64 * BIN)
    }

    /// The highest rate (requests per second) expected between `from` and `to` seconds from now.
    /// `None` unless the season leads.
    #[must_use]
    pub fn peak(&self, from: f64, to: f64) -> Option<f64> {
        let model = self.model?;
        let expected = self.expected(&model, from, to)?;
        Some(if self.due.over { expected.min(model.mean) } else { expected })
    }

    /// Whether the burst that is due has come and gone. The widening keeps its place ready for as long as it
    /// may still come; once it is over that is waste.
    fn follow(&mut self) {
        let Some(model) = self.model else { return };
        let expected = self.expected(&model, 0.0, 0.0).unwrap_or(0.0);
        if expected < 1.5 * model.mean {
            self.due = Due::default();
            return;
        }
        let recent =
            self.bins.range(self.bins.len().saturating_sub(2)..).map(|v| f64::from(*v)).sum::<f64>() / 2.0;
        if recent > (expected + model.mean) / 2.0 {
            self.due = Due { seen: self.due.seen + 1, since: 0, over: false };
        } else {
            self.due.since += 1;
            self.due.over = self.due.since >= 2 && f64::from(self.due.seen) >= 0.6 * model.busy;
        }
    }

    fn expected(&self, model: &Model, from: f64, to: f64) -> Option<f64> {
        if !(from.is_finite() && to.is_finite() && from <= to) {
            return None;
        }
        let wide = model.widening as f64;
        let part = f64::from(self.open.0) / BIN;
        let (first, last) = (part + from / BIN - wide, part + to / BIN + wide);
        let known = self.bins.len() as f64;
        let mut seen = backtest::Upper::new();
        let mut back = (last.max(0.0) / model.period).ceil().max(1.0);
        while seen.count() < backtest::PERIODS {
            let start = known + (first - back * model.period).floor();
            if start < 0.0 {
                break;
            }
            let end = known + (last - back * model.period).floor();
            if let Some(peak) = self.highest(start as usize, end as usize) {
                seen.add(peak);
            }
            back += 1.0;
        }
        seen.get()
    }

    /// The highest smoothed rate of the bins `start..=end`; `None` if none was watched.
    fn highest(&self, start: usize, end: usize) -> Option<f64> {
        let end = (end + 1).min(self.smooth.len());
        let known = self.smooth.range(start.min(end)..end).filter(|v| !v.is_nan());
        known
            .fold(None, |peak: Option<f32>, v| Some(peak.map_or(*v, |p| if *v > p { *v } else { p })))
            .map(f64::from)
    }

    /// Bins of `each` bins' mean, over at most the last `count` of them, oldest first.
    fn decimated(&self, each: usize, count: usize) -> Vec<f64> {
        let groups = (self.bins.len() / each).min(count);
        let skip = self.bins.len() - groups * each;
        let mut out = Vec::with_capacity(groups);
        let (mut sum, mut watched) = (0.0, 0_u32);
        for (i, v) in self.bins.range(skip..).enumerate() {
            if !v.is_nan() {
                sum += f64::from(*v);
                watched += 1;
            }
            if (i + 1) % each == 0 {
                out.push(if watched > 0 { sum / f64::from(watched) } else { f64::NAN });
                (sum, watched) = (0.0, 0);
            }
        }
        out
    }

    /// Searches on one of the scales, in turn, and puts every candidate to the test.
    fn look(&mut self) {
        let turn = self.closed / LOOK_EVERY;
        if let Some(model) = self.model
            && turn.is_multiple_of(5)
        {
            self.model = self.tested(model.period).filter(|m| m.ratio.min(m.long) < EARNED);
        }
        // what leads needs no quick rival
        if self.model.is_some() && !(turn / 3).is_multiple_of(4) {
            return;
        }
        let scale = search::due(turn);
        let signal = self.decimated(scale, search::POINTS);
        for period in search::candidates(&signal) {
            let period = period * scale as f64;
            if self.failed.iter().any(|(p, until)| self.closed < *until && (p / period - 1.0).abs() < 0.01) {
                continue;
            }
            match self.tested(period) {
                Some(found) if found.ratio < EARNED && self.model.is_none_or(|now| better(&found, &now)) => {
                    self.model = Some(found);
                }
                Some(found) if found.ratio > HOPELESS => self.fail(period),
                _ => {}
            }
        }
    }

    /// Half a period without another test.
    fn fail(&mut self, period: f64) {
        if self.failed.len() >= FAILED {
            self.failed.pop_front();
        }
        self.failed.push_back((period, self.closed + (period / 2.0) as u64));
    }

    /// Lets a period (in bins) forecast what has passed.
    fn tested(&self, period: f64) -> Option<Model> {
        let each = backtest::grain(period);
        let known = self.decimated(each, backtest::reach(period / each as f64));
        let verdict = backtest::judge(&known, period / each as f64, each as f64 * BIN)?;
        let recent = &known[known.len().saturating_sub((8.0 * period / each as f64) as usize)..];
        let (mean, busy) = busy(recent);
        Some(Model {
            mean,
            busy: busy * period,
            period,
            widening: careful(verdict.widening * each),
            ratio: verdict.ratio,
            long: verdict.long,
        })
    }
}

/// Whether a new candidate takes the place of the one that leads: the same period seen again, a shorter one
/// of which it is a multiple, or one that is clearly better. A multiple of the one that leads knows no more.
fn better(found: &Model, now: &Model) -> bool {
    let near = |x: f64| x > 0.5 && (x / x.round() - 1.0).abs() < 0.03;
    let times = found.period / now.period;
    let enough = if (times - 1.0).abs() < 0.03 {
        1.05
    } else if near(1.0 / times) {
        1.3
    } else if near(times) {
        0.5
    } else {
        0.9
    };
    found.ratio < now.ratio.min(now.long) * enough
}

/// Mean of the rates, and the share of them that is clearly above it: half way to a high one.
fn busy(rates: &[f64]) -> (f64, f64) {
    let mut known: Vec<f64> = rates.iter().copied().filter(|v| v.is_finite()).collect();
    if known.is_empty() {
        return (0.0, 1.0);
    }
    let n = known.len();
    let mean = known.iter().sum::<f64>() / n as f64;
    let (_, high, _) = known.select_nth_unstable_by(n - 1 - n / 50, f64::total_cmp);
    let clear = (mean + *high) / 2.0;
    (mean, rates.iter().filter(|v| **v > clear).count() as f64 / n as f64)
}

/// The widening to act on: the past shows few onsets, and the next may stray further than any of them.
fn careful(seen: usize) -> usize {
    seen + seen.div_ceil(2) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64: the same chance in every run.
    struct Chance(u64);

    impl Chance {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
        }

        fn normal(&mut self) -> f64 {
            (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
        }
    }

    /// Poisson counts, one a second.
    fn feed(season: &mut Season, seed: u64, seconds: usize, rate: impl Fn(f64) -> f64) {
        let mut chance = Chance(seed);
        for t in 0..seconds {
            season.second(Some(poisson(&mut chance, rate(t as f64))));
        }
    }

    fn poisson(chance: &mut Chance, rate: f64) -> f64 {
        if rate > 30.0 {
            return (rate + rate.sqrt() * chance.normal()).max(0.0).round();
        }
        let (least, mut product, mut n) = ((-rate).exp(), chance.uniform(), 0.0);
        while product > least {
            product *= chance.uniform();
            n += 1.0;
        }
        n
    }

    #[test]
    fn a_recurring_spike_is_found_and_foreseen() {
        let mut s = Season::new();
        let spike = |t: f64| if t % 900.0 >= 450.0 && t % 900.0 < 540.0 { 16.0 } else { 4.0 };
        feed(&mut s, 1, 3_900, spike);
        let period = s.period().unwrap();
        assert!((period - 900.0).abs() < 8.0, "{period}");
        // 150 s before the next: nothing within 60 s, all of it within 200 s
        let (quiet, loud) = (s.peak(0.0, 60.0).unwrap(), s.peak(100.0, 200.0).unwrap());
        assert!((3.0..8.0).contains(&quiet), "{quiet}");
        assert!((14.0..20.0).contains(&loud), "{loud}");
        // it came and went, and is not waited for any longer
        feed(&mut s, 4, 255, |t| spike(t + 3_900.0));
        assert!(s.due.over && s.peak(0.0, 33.0).unwrap() < 8.0, "{:?}", s.due);
        feed(&mut s, 5, 700, |t| spike(t + 4_155.0));
        assert!(!s.due.over && s.peak(90.0, 120.0).unwrap() > 14.0, "the next is due at 4950");
    }

    #[test]
    fn a_period_that_is_no_whole_number_of_bins() {
        let mut s = Season::new();
        let spike = |t: f64| if t % 307.3 < 20.0 { 500.0 / 60.0 } else { 100.0 / 60.0 };
        feed(&mut s, 2, 1_800, spike);
        let period = s.period().unwrap();
        assert!((period - 307.3).abs() < 2.0, "{period}");
    }

    #[test]
    fn two_harmonics_are_found() {
        let mut s = Season::new();
        let wave = |t: f64| {
            let x = std::f64::consts::TAU * t / 600.0;
            10.0 + 6.0 * x.sin() + 3.0 * (2.0 * x).cos()
        };
        feed(&mut s, 3, 2_700, wave);
        let period = s.period().unwrap();
        assert!((period / 600.0 - 1.0).abs() < 0.05, "{period}");
    }

    #[test]
    fn neither_noise_nor_one_burst_is_a_season() {
        for seed in 0..3 {
            let mut s = Season::new();
            feed(&mut s, seed, 3_600, |_| 4.0);
            assert!(!s.leads(), "seed {seed}");
            feed(&mut s, seed, 100, |_| 200.0);
            feed(&mut s, seed, 1_800, |_| 4.0);
            assert!(!s.leads(), "seed {seed}");
        }
    }

    #[test]
    fn gaps_silence_and_nonsense_give_nothing() {
        let mut s = Season::new();
        for t in 0..5_000 {
            s.second(match t % 4 {
                0 => Some(f64::NAN),
                1 => Some(f64::INFINITY),
                2 => Some(-5.0),
                _ => None,
            });
        }
        assert_eq!((s.leads(), s.peak(0.0, 33.0)), (false, None));
        for _ in 0..5_000 {
            s.second(Some(0.0));
        }
        assert!(!s.leads());
    }

    #[test]
    fn memory_is_bounded() {
        let mut s = Season::new();
        for t in 0..KEEP + 2_000 {
            s.push((t % 17 % 7) as f32 * 3333.0);
        }
        s.look();
        assert_eq!(s.bins.len(), KEEP);
        let bytes = (s.bins.capacity() + s.smooth.capacity()) * 4;
        assert!(bytes <= 280 << 10, "{bytes} bytes");
        if let Some(peak) = s.peak(0.0, 33.0) {
            assert!(peak.is_finite());
        }
    }
}
