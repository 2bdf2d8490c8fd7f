//! Lets a period forecast the periods that have passed, beside forecasts that know no season.
//!
//! Every forecast is made `LEAD` ahead from nothing later, and scored by the pinball loss at 0.9: capacity
//! is asked for at a high quantile, so coming short costs nine times what being over does. The forecasts
//! without a season are the last 10 s, the last minute, and a constant, each shifted by the best shift in hindsight.

/// Past periods that a forecast looks at.
pub(super) const PERIODS: usize = 8;
/// The quantile over them: a quarter of them may miss what recurs.
const QUANTILE: f64 = 0.75;
/// Periods over which forecasts are compared.
const JUDGED: f64 = 3.0;
/// Periods over which the widening is chosen, and over which a season that leads may defend its place.
const DEFENDED: f64 = 8.0;
/// The quantile that the loss asks for.
const TAU: f64 = 0.9;
/// And when the widening is chosen: capacity that comes late is what hurts.
const TAU_WIDENING: f64 = 0.97;
/// Deviations of a count that are taken for noise.
const NOISE: f64 = 1.5;
/// Fewer arrivals in three periods repeat by chance.
const LEAST_ARRIVALS: f64 = 60.0;
/// Least time ahead, seconds: about one cold start.
const LEAD: f64 = 30.0;
/// Widenings tried, in points.
const WIDENINGS: [usize; 10] = [0, 1, 2, 3, 4, 6, 8, 11, 15, 20];

/// What the comparison found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    /// Points to look around the moment.
    pub(super) widening: usize,
    /// Loss over the best non-seasonal forecast's, in the last 3 periods.
    pub(super) ratio: f64,
    /// The same in the last 8, or as many as there are.
    pub(super) long: f64,
}

/// Bins per point for a period of so many bins: about 240 points a period at most.
pub(super) fn grain(period: f64) -> usize {
    (period / 240.0).ceil().max(1.0) as usize
}

/// Points of the past that the test of a period (in points) looks at.
pub(super) fn reach(period: f64) -> usize {
    ((DEFENDED + PERIODS as f64) * period).ceil() as usize
}

/// The upper quantile of at most [`PERIODS`] values, from the three largest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upper {
    largest: [f64; 3],
    count: usize,
}

impl Upper {
    pub(super) const fn new() -> Self {
        Self { largest: [f64::NEG_INFINITY; 3], count: 0 }
    }

    pub(super) fn add(&mut self, v: f64) {
        let [a, b, c] = self.largest;
        self.count += 1;
        self.largest = if v > a {
            [v, a, b]
        } else if v > b {
            [a, v, b]
        } else {
            [a, b, v.max(c)]
        };
    }

    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// `None` if nothing was added.
    pub(super) fn get(&self) -> Option<f64> {
        let last = self.count.checked_sub(1)?;
        // distance from the largest: at most 1.75 for eight values
        let from_top = (1.0 - QUANTILE) * last as f64;
        let rank = from_top.floor() as usize;
        let (a, b) =
            (self.largest.get(rank)?, self.largest.get((rank + 1).min(last)).or(self.largest.get(rank))?);
        Some(a + (b - a) * from_top.fract())
    }
}

/// Rate at `i`, with less noise but sharp edges: the median of the point itself, the mean of the `width`
/// points that begin with it, and of those that end with it.
pub(super) fn smooth_at(y: &dyn Fn(usize) -> f64, i: usize, width: usize) -> f64 {
    let here = y(i);
    let mean = |points: &mut dyn Iterator<Item = usize>| {
        let (sum, n) = points.map(y).filter(|v| v.is_finite()).fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
        if n > 0.0 { sum / n } else { f64::NAN }
    };
    let ahead = mean(&mut (i..i + width));
    let behind = mean(&mut ((i + 1).saturating_sub(width)..=i));
    if here.is_nan() {
        return f64::NAN;
    }
    here.max(ahead.min(behind)).min(ahead.max(behind))
}

/// Compares the season of `period` points with forecasts that know none. `seconds` is a point's length.
/// `None` where too little was seen.
pub(super) fn judge(y: &[f64], period: f64, seconds: f64) -> Option<Verdict> {
    let n = y.len();
    let known = n as f64 - period;
    if known < 2.5 * period || period < 6.0 {
        return None;
    }
    let width = ((20.0 / seconds).round() as usize).max(1);
    let raw = |i: usize| y.get(i).copied().unwrap_or(f64::NAN);
    let smooth: Vec<f64> = (0..n).map(|i| smooth_at(&raw, i, width)).collect();
    let all = n - (DEFENDED * period).min(known) as usize..n;
    let last = n - (JUDGED * period).min(known) as usize;
    let arrivals = smooth[last..].iter().filter(|v| v.is_finite()).sum::<f64>() * seconds;
    if arrivals < LEAST_ARRIVALS {
        return None;
    }
    // what is left when the noise of counting is taken off: the widening is for onsets, not for that
    let span = width as f64 * seconds;
    let firm: Vec<f64> = smooth.iter().map(|v| (v - NOISE * (v / span).sqrt()).max(0.0)).collect();
    let (mut best, mut widening, mut forecast) = (f64::INFINITY, 0, Vec::new());
    let (mut highest, mut reached) = (smooth.clone(), 0);
    for wide in WIDENINGS {
        if wide as f64 > period / 8.0 {
            break;
        }
        highest = widened(&highest, wide - reached);
        reached = wide;
        let tried = with_season(&highest, all.clone(), period, wide);
        let late = pinball(&firm[all.clone()], &tried, TAU_WIDENING)?;
        if late < best {
            (best, widening, forecast) = (late, wide, tried);
        } else if late > 1.3 * best {
            break;
        }
    }
    let lead = ((LEAD / seconds).max(period / 30.0)).ceil() as usize;
    let ratio = |from: usize| {
        let loss = pinball(&smooth[from..], &forecast[from - all.start..], TAU)?;
        let ratio = loss / without_season(y, &smooth, from..n, lead, seconds)?.max(1e-9);
        ratio.is_finite().then_some(ratio)
    };
    Some(Verdict { widening, ratio: ratio(last)?, long: ratio(all.start)? })
}

/// Highest value within `wide` points of each; NaN where none is known.
fn widened(y: &[f64], wide: usize) -> Vec<f64> {
    let at = |i: usize| {
        y[i.saturating_sub(wide)..(i + wide + 1).min(y.len())]
            .iter()
            .copied()
            .fold(f64::NAN, |a, b| if a >= b || b.is_nan() { a } else { b })
    };
    (0..y.len()).map(at).collect()
}

/// What the season would have said of each point, from the periods before it.
fn with_season(highest: &[f64], test: std::ops::Range<usize>, period: f64, wide: usize) -> Vec<f64> {
    let backs: [usize; PERIODS] = std::array::from_fn(|j| (period * (j + 1) as f64).round() as usize);
    let at = |i: usize| {
        let mut seen = Upper::new();
        for back in backs {
            if back > i {
                break;
            }
            if back > wide && highest[i - back].is_finite() {
                seen.add(highest[i - back]);
            }
        }
        seen.get().unwrap_or(f64::NAN)
    };
    test.map(at).collect()
}

/// The least loss among forecasts without a season.
fn without_season(
    y: &[f64],
    target: &[f64],
    test: std::ops::Range<usize>,
    lead: usize,
    seconds: f64,
) -> Option<f64> {
    let trailing = |points: usize| {
        let at = |i: usize| {
            let end = (i + 1).saturating_sub(lead);
            let seen = y[end.saturating_sub(points)..end].iter().filter(|v| v.is_finite());
            let (sum, n) = seen.fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
            if n > 0.0 { sum / n } else { f64::NAN }
        };
        test.clone().map(at).collect::<Vec<_>>()
    };
    let short = ((10.0 / seconds).round() as usize).max(1);
    let long = ((60.0 / seconds).round() as usize).max(1);
    let constant = vec![0.0; test.len()];
    [constant, trailing(short), trailing(long)]
        .into_iter()
        .filter_map(|mut f| {
            let mut rest: Vec<f64> =
                test.clone().zip(&f).map(|(i, f)| target[i] - f).filter(|v| v.is_finite()).collect();
            if rest.is_empty() {
                return None;
            }
            let at = ((rest.len() - 1) as f64 * TAU) as usize;
            let (_, shift, _) = rest.select_nth_unstable_by(at, f64::total_cmp);
            let shift = *shift;
            f.iter_mut().for_each(|f| *f += shift);
            pinball(&target[test.clone()], &f, TAU)
        })
        .min_by(f64::total_cmp)
}

/// Mean pinball loss of a forecast; `None` if less than half of it can be judged.
fn pinball(target: &[f64], forecast: &[f64], tau: f64) -> Option<f64> {
    let (mut sum, mut n) = (0.0, 0_u32);
    for (y, f) in target.iter().zip(forecast) {
        let e = y - f;
        if e.is_finite() {
            sum += if e > 0.0 { tau * e } else { (tau - 1.0) * e };
            n += 1;
        }
    }
    (n as usize * 2 >= forecast.len() && n > 0).then(|| sum / f64::from(n))
}
