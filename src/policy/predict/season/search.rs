//! Looks for periods: peaks of the autocorrelation, on three time scales.
//!
//! Rates are compressed (square root: the noise of a count then no longer grows with it) and freed of
//! their trend. A period P shows as peaks at P, 2P, 3P, …; their mean is the score, and because the later
//! ones move by a multiple, the grid of P is finer than a bin.

/// Points in one look.
pub(super) const POINTS: usize = 1_440;
/// Candidates handed to the back-test, at most.
const CANDIDATES: usize = 3;
/// Least score of a candidate.
const LEAST: f64 = 0.12;
/// And in standard deviations of the correlation of noise, 1/√points.
const LEAST_SIGMA: f64 = 4.0;
/// Shortest period, in points.
const SHORTEST: usize = 8;

/// Which scale (in bins) to search on this turn: 5 s bins over two hours, 20 s over eight, 60 s over a day.
pub(super) fn due(turn: u64) -> usize {
    match turn % 4 {
        0 | 2 => 1,
        1 => 4,
        _ => 12,
    }
}

/// Periods worth testing, in points of the signal, the most promising first.
pub(super) fn candidates(signal: &[f64]) -> Vec<f64> {
    let n = signal.len();
    if n < 4 * SHORTEST {
        return Vec::new();
    }
    let Some(mut r) = Correlation::of(signal) else { return Vec::new() };
    // three and a half periods must have passed
    let longest = (n as f64 / 3.6) as usize;
    let near: Vec<f64> = (0..=longest + 2).map(|lag| r.at(lag)).collect();
    let mut found = Vec::<(f64, f64)>::new();
    let least = LEAST.max(LEAST_SIGMA / (n as f64).sqrt());
    let mut lowest = f64::INFINITY;
    for lag in 2..=longest {
        lowest = lowest.min(near[lag]);
        let top = near[lag - 2..=lag + 2].iter().all(|v| *v <= near[lag]);
        if lag < SHORTEST || !top || near[lag] < 0.5 * least || near[lag] - lowest < least {
            continue;
        }
        let (period, score) = refined(&mut r, lag as f64, longest as f64);
        if score >= 0.7 * least
            && score - lowest >= least
            && found.iter().all(|(p, _)| (p / period - 1.0).abs() > 0.02)
        {
            found.push((period, score));
        }
    }
    let best = found.iter().map(|(_, s)| *s).fold(0.0, f64::max);
    // multiples of a period score as well as the period: the shortest good one comes first
    found.retain(|(_, s)| *s >= 0.5 * best);
    found.sort_by(|a, b| (b.1 >= 0.85 * best).cmp(&(a.1 >= 0.85 * best)).then(a.0.total_cmp(&b.0)));
    found.truncate(CANDIDATES);
    found.into_iter().map(|(p, _)| p).collect()
}

/// Autocorrelation up to a lag of 3/4 of the signal, each lag computed once, when it is asked for.
struct Correlation {
    y: Vec<f32>,
    variance: f64,
    known: Vec<f64>,
}

impl Correlation {
    /// `None` if the signal does not vary.
    fn of(signal: &[f64]) -> Option<Self> {
        let y: Vec<f32> = centred(signal)?.into_iter().map(|v| v as f32).collect();
        let variance = f64::from(dot(&y, &y)) / y.len() as f64;
        let known = vec![f64::NAN; y.len() * 3 / 4 + 1];
        (variance.is_finite() && variance > 1e-9).then_some(Self { y, variance, known })
    }

    /// At a whole lag; 0 beyond the last.
    fn at(&mut self, lag: usize) -> f64 {
        let Some(known) = self.known.get_mut(lag) else { return 0.0 };
        if known.is_nan() {
            let pairs = self.y.len() - lag;
            *known = f64::from(dot(&self.y[..pairs], &self.y[lag..])) / (pairs as f64 * self.variance);
        }
        *known
    }

    /// At a lag that is no whole number.
    fn between(&mut self, lag: f64) -> f64 {
        let low = lag.floor() as usize;
        let (a, b) = (self.at(low), self.at(low + 1));
        a + (b - a) * lag.fract()
    }

    /// The largest lag.
    fn last(&self) -> f64 {
        (self.known.len() - 1) as f64
    }
}

/// Sum of products, in eight strands so that the compiler can use vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Square roots, less their straight line; 0 where nobody watched.
fn centred(signal: &[f64]) -> Option<Vec<f64>> {
    let (mut n, mut sx, mut sy, mut sxx, mut sxy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    let half = signal.len() as f64 / 2.0;
    let points = || signal.iter().enumerate().filter(|(_, v)| v.is_finite());
    for (i, v) in points() {
        let (x, y) = (i as f64 - half, v.max(0.0).sqrt());
        n += 1.0;
        sx += x;
        sy += y;
        sxx += x * x;
        sxy += x * y;
    }
    if n < signal.len() as f64 / 2.0 {
        return None;
    }
    let spread = n * sxx - sx * sx;
    let slope = if spread > 0.0 { (n * sxy - sx * sy) / spread } else { 0.0 };
    let base = (sy - slope * sx) / n;
    let rest = |(i, v): (usize, &f64)| {
        if v.is_finite() { v.max(0.0).sqrt() - base - slope * (i as f64 - half) } else { 0.0 }
    };
    Some(signal.iter().enumerate().map(rest).collect())
}

/// The best period near `lag`, and its score: the mean correlation at its first multiples.
fn refined(r: &mut Correlation, lag: f64, longest: f64) -> (f64, f64) {
    let reach = (lag * 0.04).max(1.0);
    let multiples = (r.last() / (lag + reach)).floor().clamp(1.0, 8.0);
    let step = 0.5 / multiples;
    let mut best = (lag, f64::NEG_INFINITY);
    let mut period = (lag - reach).max(2.0);
    while period <= (lag + reach).min(longest) {
        let score = (1..=multiples as usize).map(|k| r.between(period * k as f64)).sum::<f64>() / multiples;
        if score > best.1 {
            best = (period, score);
        }
        period += step;
    }
    best
}
