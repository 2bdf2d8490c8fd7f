//! The periodic pattern: two periods, found from the data and never assumed.
//!
//! A short one (2 to 240 minutes: batch jobs, polls) by the autocorrelation of single minutes, and a long one
//! (up to half of the history: days, weeks) by that of ten-minute means, refined to the minute.
//!
//! ```text
//! √forecast(t + h) = L(t) + median over the last three periods k of ( z(t + h − kP) − L(t − kP) )
//! ```
//! z is √count, L its mean over the last minutes: the pattern of the past periods, at today's level. The median
//! keeps one odd day out of it. Hedge gives these two experts a say only where their losses earn it.
//!
//! Without it each recurring burst would be a surprise, every time.

use super::minutes::Minutes;

/// Autocorrelation below this is no pattern.
const PATTERN: f64 = 0.2;
/// Longest short period, minutes.
const SHORT: usize = 240;
/// Minutes of history that the short period is sought in.
const RECENT: usize = 2880;
/// Minutes in one bin of the long search.
const BIN: usize = 10;
/// Periods that the pattern is the median of.
const PERIODS: usize = 3;

/// One period and how it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Season {
    period: Option<usize>,
    long: bool,
}

impl Season {
    pub(super) fn short() -> Self {
        Self { period: None, long: false }
    }

    pub(super) fn long() -> Self {
        Self { period: None, long: true }
    }

    /// Seeks the period anew, a short one in the last `whole` minutes, which no step that nobody saw divides.
    pub(super) fn refit(&mut self, minutes: &Minutes, whole: usize) {
        if self.long {
            self.period = long_period(minutes);
            return;
        }
        let recent = minutes.last(RECENT.min(whole));
        // too little has passed since then to disprove what was known
        let known = self.period.filter(|period| recent.len() < (PERIODS + 1) * period);
        self.period = known.or_else(|| short_period(&recent));
    }

    /// Requests in the minute `ahead` minutes after the last; `None` where no pattern is known.
    pub(super) fn forecast(&self, minutes: &Minutes, ahead: usize) -> Option<f64> {
        let period = self.period?;
        // the level over a whole short period, so that its bursts do not pass for a change of level
        let width = if self.long { 15 } else { period };
        let around = usize::from(self.long);
        let first = (ahead + around).div_ceil(period);
        let now = mean(minutes, 0, width)?;
        let mut shapes = [0.0; PERIODS];
        let mut n = 0;
        for k in first..first + PERIODS {
            let back = k * period;
            let Some(at) = back.checked_sub(ahead + around) else { continue };
            if let (Some(z), Some(level)) = (mean(minutes, at, 2 * around + 1), mean(minutes, back, width)) {
                shapes[n] = z - level;
                n += 1;
            }
        }
        let shapes = &mut shapes[..n];
        shapes.sort_by(f64::total_cmp);
        // of two the smaller: one burst is not yet a pattern
        let shape = shapes.get(n.checked_sub(1)? / 2)?;
        Some((now + shape).max(0.0).powi(2))
    }
}

/// Mean √count of `width` minutes that end `ago` minutes before the last; `None` if most were not watched.
fn mean(minutes: &Minutes, ago: usize, width: usize) -> Option<f64> {
    let (sum, n) = (ago..ago + width)
        .filter_map(|ago| minutes.ago(ago))
        .fold((0.0, 0_usize), |(sum, n), count| (sum + count.sqrt(), n + 1));
    (2 * n > width).then(|| sum / n as f64)
}

fn short_period(recent: &[f64]) -> Option<usize> {
    let mut z = roots(recent);
    let n = z.len();
    // only what stands out of the level around it can repeat within minutes
    let width = SHORT / 2;
    let mut sums = vec![0.0; n + 1];
    for (i, v) in z.iter().enumerate() {
        sums[i + 1] = sums[i] + v;
    }
    for (i, v) in z.iter_mut().enumerate() {
        let (from, to) = (i.saturating_sub(width), (i + width).min(n));
        *v -= (sums[to] - sums[from]) / (to - from) as f64;
    }
    // a few bursts must not be the whole of the correlation
    let mut sizes: Vec<f64> = z.iter().map(|v| v.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let most = 4.0 * sizes.get(n * 9 / 10)?;
    z.iter_mut().for_each(|v| *v = v.clamp(-most, most));
    peak(&z, 2, SHORT.min(n / (PERIODS + 1)))
}

fn long_period(minutes: &Minutes) -> Option<usize> {
    let counts = minutes.last(usize::MAX);
    let mut z = roots(&counts);
    center(&mut z);
    // whole bins, so that a lag in bins is a lag in minutes
    let mut bins: Vec<f64> = z.rchunks_exact(BIN).map(|bin| bin.iter().sum::<f64>() / BIN as f64).collect();
    bins.reverse();
    let lag = peak(&bins, SHORT / BIN, bins.len() / 2)? * BIN;
    let near = lag - BIN..=lag + BIN;
    near.map(|lag| (lag, correlation(&z, lag))).max_by(|a, b| a.1.total_cmp(&b.1)).map(|(lag, _)| lag)
}

fn roots(counts: &[f64]) -> Vec<f64> {
    counts.iter().map(|c| c.max(0.0).sqrt()).collect()
}

fn center(z: &mut [f64]) {
    let mean = z.iter().sum::<f64>() / z.len().max(1) as f64;
    z.iter_mut().for_each(|v| *v -= mean);
}

/// Autocorrelation at `lag`, per pair of values.
fn correlation(z: &[f64], lag: usize) -> f64 {
    let n = z.len().saturating_sub(lag);
    let variance = z.iter().map(|v| v * v).sum::<f64>() / z.len().max(1) as f64;
    let pairs: f64 = z.iter().zip(z.iter().skip(lag)).map(|(a, b)| a * b).sum();
    if n > 0 && variance > 0.0 { pairs / n as f64 / variance } else { 0.0 }
}

/// The lag within `from..=to` at which the autocorrelation has its highest local maximum: the first that comes
/// within a tenth of it, since every multiple of a period is a maximum too.
fn peak(z: &[f64], from: usize, to: usize) -> Option<usize> {
    if from >= to {
        return None;
    }
    let r: Vec<f64> = (from - 1..=to + 1).map(|lag| correlation(z, lag)).collect();
    let maxima = || (1..r.len() - 1).filter(|i| r[*i] > PATTERN && r[*i] >= r[i - 1] && r[*i] >= r[i + 1]);
    let best = maxima().map(|i| r[i]).max_by(f64::total_cmp)?;
    maxima().find(|i| r[*i] >= 0.9 * best).map(|i| i + from - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::predict::forecast::minutes::KEEP;

    fn minutes(n: usize, count: impl Fn(usize) -> Option<f64>) -> Minutes {
        let mut m = Minutes::new(KEEP);
        (0..n).for_each(|i| m.push(count(i)));
        m
    }

    /// A deterministic stand-in for noise, −2 to 2.
    fn noise(i: usize) -> f64 {
        ((i * 7919) % 65_537 % 5) as f64 - 2.0
    }

    #[test]
    fn a_burst_every_37_minutes_is_found_and_foretold() {
        let rate = |i: usize| if i.is_multiple_of(37) { 200.0 } else { 20.0 + noise(i) };
        let m = minutes(37 * 20, |i| Some(rate(i)));
        let mut s = Season::short();
        assert_eq!(s.forecast(&m, 1), None, "nothing is assumed");
        s.refit(&m, usize::MAX);
        assert_eq!(s.period, Some(37));
        // the last minute was 739, the next, 740 = 20 · 37, bursts
        assert!(s.forecast(&m, 1).is_some_and(|f| (150.0..260.0).contains(&f)), "{:?}", s.forecast(&m, 1));
        assert!(s.forecast(&m, 5).is_some_and(|f| (12.0..30.0).contains(&f)), "{:?}", s.forecast(&m, 5));
    }

    #[test]
    fn a_short_pattern_is_kept_until_it_is_disproved() {
        let rate = |i: usize| if i.is_multiple_of(37) { 200.0 } else { 20.0 + noise(i) };
        let mut m = minutes(37 * 20, |i| Some(rate(i)));
        let mut s = Season::short();
        s.refit(&m, 37 * 20);
        (0..600).for_each(|i| m.push(Some(20.0 + noise(i))));
        s.refit(&m, 60);
        assert_eq!(s.period, Some(37), "an hour is less than four periods");
        s.refit(&m, 600);
        assert_ne!(s.period, Some(37));
    }

    #[test]
    fn a_day_is_found_to_the_minute_through_gaps() {
        let wave = |i: usize| 100.0 + 80.0 * (i as f64 / 1440.0 * std::f64::consts::TAU).sin();
        let rate = |i: usize| wave(i) + noise(i) + if i % 1440 == 180 { 900.0 } else { 0.0 };
        let m = minutes(1440 * 5 + 180, |i| (i % 331 != 0).then(|| rate(i)));
        let mut s = Season::long();
        s.refit(&m, usize::MAX);
        assert!(s.period.is_some_and(|p| p.abs_diff(1440) <= 2), "{:?}", s.period);
    }

    #[test]
    fn noise_silence_and_a_short_history_have_no_period() {
        for m in [
            minutes(3000, |_| Some(0.0)),
            minutes(3000, |_| None),
            minutes(5, |i| Some(i as f64)),
            minutes(0, |_| None),
            minutes(3000, |i| Some(50.0 + ((i * i * 7919) % 104_729 % 11) as f64)),
        ] {
            for mut s in [Season::short(), Season::long()] {
                s.refit(&m, usize::MAX);
                assert_eq!(s.period, None);
                assert_eq!(s.forecast(&m, 1), None);
            }
        }
    }

    #[test]
    fn a_single_odd_period_is_not_repeated() {
        let rate = |i: usize| if i.is_multiple_of(30) { 200.0 } else { 20.0 };
        let m = minutes(600, |i| Some(if i == 580 { 5000.0 } else { rate(i) }));
        let s = Season { period: Some(30), long: false };
        assert!(s.forecast(&m, 11).is_some_and(|f| f < 60.0), "{:?}", s.forecast(&m, 11));
    }
}
