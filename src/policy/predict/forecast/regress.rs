//! Autoregression by recursive least squares on √counts.
//!
//! √ makes the noise of a count nearly independent of its level, so that a busy hour does not outvote
//! a quiet one. One regression per horizon forecasts it directly: iterating a one-minute model five
//! times compounds its errors.
//!
//! ```text
//! RLS, forgetting λ:  k = P x / (λ + xᵀ P x),  w += k (y − wᵀ x),  P = (P − k xᵀ P) / λ
//! ```

use std::collections::VecDeque;

/// Recursive least squares with `N` inputs.
#[derive(Clone, Debug)]
struct Rls<const N: usize> {
    weights: [f64; N],
    covariance: [[f64; N]; N],
    start: f64,
}

impl<const N: usize> Rls<N> {
    const FORGET: f64 = 0.9995;

    fn new(weights: [f64; N], start: f64) -> Self {
        Self { weights, covariance: Self::diagonal(start), start }
    }

    fn diagonal(value: f64) -> [[f64; N]; N] {
        let mut p = [[0.0; N]; N];
        for (i, row) in p.iter_mut().enumerate() {
            row[i] = value;
        }
        p
    }

    fn predict(&self, x: &[f64; N]) -> f64 {
        self.weights.iter().zip(x).map(|(w, x)| w * x).sum()
    }

    fn learn(&mut self, x: &[f64; N], y: f64) {
        let mut px = [0.0; N];
        for (out, row) in px.iter_mut().zip(&self.covariance) {
            *out = row.iter().zip(x).map(|(p, x)| p * x).sum();
        }
        let denominator = Self::FORGET + px.iter().zip(x).map(|(p, x)| p * x).sum::<f64>();
        let error = y - self.predict(x);
        if !(error.is_finite() && denominator.is_finite() && denominator > 0.0) {
            self.covariance = Self::diagonal(self.start);
            return;
        }
        for (w, p) in self.weights.iter_mut().zip(&px) {
            *w += p / denominator * error;
        }
        let mut trace = 0.0;
        for i in 0..N {
            for j in 0..=i {
                let p = (self.covariance[i][j] - px[i] * px[j] / denominator) / Self::FORGET;
                (self.covariance[i][j], self.covariance[j][i]) = (p, p);
            }
            trace += self.covariance[i][i];
        }
        // without excitation forgetting inflates the covariance for ever; start it afresh instead
        if !(trace.is_finite() && trace < 1e6 * N as f64)
            || self.covariance.iter().enumerate().any(|(i, r)| r[i] <= 0.0)
        {
            self.covariance = Self::diagonal(self.start);
        }
        if self.weights.iter().any(|w| !w.is_finite() || w.abs() > 1e3) {
            self.weights = [0.0; N];
        }
    }
}

const LAGS: usize = 6;
const MEANS: [usize; 3] = [5, 15, 60];
const AR: usize = LAGS + MEANS.len() + 1;
const ARIMA: usize = 6;

/// AR(6) with the means of the last 5, 15 and 60 minutes (heterogeneous autoregression, Corsi 2009), and ARIMA(6,1,0).
#[derive(Clone, Debug)]
pub(super) struct Regressions {
    /// √counts, newest last; a gap or an outlier is replaced by what was expected.
    recent: VecDeque<f64>,
    /// The same, watched minutes only. What was put into a gap must not widen the bound of what is put there
    /// next: an unstable fit would double it every minute.
    watched: VecDeque<f64>,
    /// Slow level of √counts, the origin of AR's inputs.
    level: f64,
    seen: usize,
    horizons: [Pair; 2],
}

#[derive(Clone, Debug)]
struct Pair {
    ahead: usize,
    ar: Rls<AR>,
    arima: Rls<ARIMA>,
    /// Inputs that still wait for their outcome, oldest first.
    waiting: VecDeque<(f64, [f64; AR], f64, [f64; ARIMA])>,
}

impl Pair {
    fn new(ahead: usize) -> Self {
        let mut w = [0.0; AR];
        w[LAGS] = 0.5;
        w[LAGS + 1] = 0.5;
        Self { ahead, ar: Rls::new(w, 1.0), arima: Rls::new([-0.3; ARIMA], 1.0), waiting: VecDeque::new() }
    }
}

impl Regressions {
    pub(super) fn new(horizons: [usize; 2]) -> Self {
        Self {
            recent: VecDeque::new(),
            watched: VecDeque::new(),
            level: 0.0,
            seen: 0,
            horizons: horizons.map(Pair::new),
        }
    }

    /// One minute passed; `None` was not watched, or is not to be learned from.
    pub(super) fn learn(&mut self, y: Option<f64>) {
        if y.is_none() && self.recent.is_empty() {
            return;
        }
        let z = y.map_or_else(|| self.unwatched(), |y| y.max(0.0).sqrt());
        if y.is_some() {
            push(&mut self.watched, z);
        }
        for pair in &mut self.horizons {
            if pair.waiting.len() >= pair.ahead
                && let Some((level, x, last, d)) = pair.waiting.pop_front()
                && y.is_some()
            {
                pair.ar.learn(&x, z - level);
                pair.arima.learn(&d, z - last);
            }
        }
        self.seen += 1;
        self.level += (z - self.level) * (1.0 / self.seen as f64).max(0.004);
        push(&mut self.recent, z);
        let (x, d) = (self.inputs(), self.differences());
        for pair in &mut self.horizons {
            pair.waiting.push_back((self.level, x, z, d));
        }
    }

    /// What stands in for a minute that nobody watched: AR's word, within what was counted in the hour before.
    fn unwatched(&self) -> f64 {
        let (least, most) = self.bounds();
        // not `clamp`: it panics where the bounds are out of order
        self.forecast_root(0, Kind::Ar).min(most).max(least)
    }

    /// Smallest and largest √count of the last hour that was watched.
    fn bounds(&self) -> (f64, f64) {
        let least = self.watched.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.watched.iter().copied().fold(0.0, f64::max);
        (least.min(most), most)
    }

    fn lag(&self, ago: usize) -> f64 {
        let at = self.recent.len().saturating_sub(ago + 1);
        self.recent.get(at).copied().unwrap_or(0.0)
    }

    fn inputs(&self) -> [f64; AR] {
        let mut x = [0.0; AR];
        for (ago, x) in x.iter_mut().take(LAGS).enumerate() {
            *x = self.lag(ago) - self.level;
        }
        for (i, width) in MEANS.into_iter().enumerate() {
            let n = width.min(self.recent.len()).max(1);
            x[LAGS + i] = self.recent.iter().rev().take(n).sum::<f64>() / n as f64 - self.level;
        }
        x[AR - 1] = 1.0;
        x
    }

    fn differences(&self) -> [f64; ARIMA] {
        std::array::from_fn(|ago| self.lag(ago) - self.lag(ago + 1))
    }

    fn forecast_root(&self, horizon: usize, kind: Kind) -> f64 {
        let pair = &self.horizons[horizon];
        let z = match (pair.waiting.back(), kind) {
            (None, _) => 0.0,
            (Some((level, x, ..)), Kind::Ar) => level + pair.ar.predict(x),
            (Some((_, _, last, d)), Kind::Arima) => last + pair.arima.predict(d),
        };
        // twice what was seen within the hour: an unstable fit must not run away
        let (_, most) = self.bounds();
        if z.is_finite() { z.clamp(0.0, 2.0 * most) } else { self.lag(0) }
    }

    /// Requests in the minute that `horizon` (its index) lies ahead.
    pub(super) fn forecast(&self, horizon: usize, kind: Kind) -> f64 {
        self.forecast_root(horizon, kind).powi(2)
    }
}

/// Keeps the last hour.
fn push(roots: &mut VecDeque<f64>, z: f64) {
    roots.push_back(z);
    if roots.len() > MEANS[2] {
        roots.pop_front();
    }
}

/// Which of the two regressions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Ar,
    Arima,
}
