//! What is forecast of one minute: not a number but a distribution.

/// Probabilities at which the calibrators answer; everything between is interpolated.
pub(super) const LEVELS: [f64; 11] = [0.05, 0.15, 0.25, 0.5, 0.65, 0.75, 0.85, 0.9, 0.95, 0.975, 0.99];
/// How many of them.
pub(super) const N: usize = LEVELS.len();

/// Predictive distribution of the number of requests in one minute.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// The blended point forecast, requests per minute. It minimises the absolute error: a median rather than a mean.
    pub mean: f64,
    quantiles: [f64; N],
}

impl Forecast {
    /// Makes a proper distribution of what the calibrators said: finite, not negative, rising
    /// (rearrangement, Chernozhukov et al. 2010, never makes a quantile forecast worse).
    pub(super) fn new(mean: f64, mut quantiles: [f64; N]) -> Self {
        let tame = |v: f64| if v.is_finite() { v.clamp(0.0, 1e15) } else { 0.0 };
        quantiles = quantiles.map(tame);
        quantiles.sort_by(f64::total_cmp);
        Self { mean: tame(mean), quantiles }
    }

    /// Between two forecasts, `share` of the way from `self` to `other`.
    pub(super) fn towards(&self, other: &Self, share: f64) -> Self {
        let mix = |a: f64, b: f64| a + share * (b - a);
        let quantiles = std::array::from_fn(|i| mix(self.quantiles[i], other.quantiles[i]));
        Self::new(mix(self.mean, other.mean), quantiles)
    }

    /// Requests per minute that demand stays at or below with probability `p`. Linear between the calibrated
    /// levels; an exponential tail beyond the last, as deep as the 0.90-to-0.99 span implies.
    #[must_use]
    pub fn quantile(&self, p: f64) -> f64 {
        let p = if p.is_finite() { p.clamp(0.0, 1.0) } else { 0.5 };
        let (first, last) = (LEVELS[0], LEVELS[N - 1]);
        if p <= first {
            return self.quantiles[0] * p / first;
        }
        if p >= last {
            // an exponential tail has quantiles linear in −ln(1 − p)
            let depth = ((1.0 - last) / (1.0 - p).max(1e-6)).ln();
            return self.quantiles[N - 1] + depth * self.tail();
        }
        let i = LEVELS.partition_point(|level| *level <= p).min(N - 1);
        let share = (p - LEVELS[i - 1]) / (LEVELS[i] - LEVELS[i - 1]);
        // rounding must not lift it above its upper neighbour
        (self.quantiles[i - 1] + share * (self.quantiles[i] - self.quantiles[i - 1])).min(self.quantiles[i])
    }

    /// Probability that demand exceeds `x` requests per minute: the inverse of [`Forecast::quantile`].
    #[must_use]
    pub fn exceeds(&self, x: f64) -> f64 {
        if x.is_nan() || x < 0.0 {
            return 1.0;
        }
        let (q, last) = (&self.quantiles, LEVELS[N - 1]);
        if x < q[0] {
            return 1.0 - LEVELS[0] * x / q[0];
        }
        if x >= q[N - 1] {
            let tail = self.tail();
            return if tail > 0.0 {
                ((1.0 - last) * (-(x - q[N - 1]) / tail).exp()).max(1e-6)
            } else {
                1.0 - last
            };
        }
        let i = q.partition_point(|v| *v <= x).clamp(1, N - 1);
        let width = q[i] - q[i - 1];
        let share = if width > 0.0 { ((x - q[i - 1]) / width).clamp(0.0, 1.0) } else { 1.0 };
        1.0 - (LEVELS[i - 1] + share * (LEVELS[i] - LEVELS[i - 1]))
    }

    /// Requests per minute for each factor of e in 1 − p.
    fn tail(&self) -> f64 {
        let from = 7;
        let span = ((1.0 - LEVELS[from]) / (1.0 - LEVELS[N - 1])).ln();
        (self.quantiles[N - 1] - self.quantiles[from]) / span
    }
}
