//! Exponential smoothing whose parameters are fitted by maximum likelihood, hourly, by `augurs-ets`.
//!
//! The crate fits but does not filter on: a forecast made 59 minutes after a fit would be 59 minutes old.
//! So its parameters are read back from what it publishes, the fitted values f and the residuals e, and the
//! smoothing runs on here. With an additive (damped) trend and d(t) = f(t+1) − f(t), exactly
//!
//! ```text
//! d(t) = φ d(t−1) + (α + φβ) e(t) − φα e(t−1)        (additive and multiplicative error alike)
//! ```
//! so that least squares gives α and β for each φ, and the φ without a remainder is the right one.

use augurs_core::Predict;
use augurs_ets::model::{ErrorComponent, Model, ModelType, SeasonalComponent, TrendComponent, Unfit};

/// Points a fit looks at: one day.
pub(super) const POINTS: usize = 1440;
const FEWEST: usize = 60;
/// What an unwatched minute leaves of the slope: a long gap must not carry a short climb on.
const UNWATCHED: f64 = 0.5;
/// Nelder–Mead stops here: the likelihood is flat by then.
const ITERATIONS: usize = 400;

/// Level and damped slope, with the parameters of the last fit.
#[derive(Clone, Debug)]
pub struct Smoothing {
    alpha: f64,
    beta: f64,
    phi: f64,
    level: Option<f64>,
    slope: f64,
}

impl Smoothing {
    pub(super) fn new() -> Self {
        Self { alpha: 0.25, beta: 0.0, phi: 0.9, level: None, slope: 0.0 }
    }

    /// One more minute, by the smoothing equations.
    pub fn learn(&mut self, y: f64) {
        let Some(level) = self.level else {
            self.level = Some(y);
            return;
        };
        let expected = level + self.phi * self.slope;
        let e = y - expected;
        self.level = Some(expected + self.alpha * e);
        self.slope = self.phi * self.slope + self.beta * e;
    }

    /// Time passes unwatched.
    pub(super) fn skip(&mut self) {
        self.level = self.level.map(|level| (level + self.phi * self.slope).max(0.0));
        self.slope *= self.phi * UNWATCHED;
    }

    /// Requests in the minute `ahead` minutes on.
    #[must_use]
    pub fn forecast(&self, ahead: usize) -> f64 {
        let (mut level, mut slope) = (self.level.unwrap_or(0.0), self.slope);
        for _ in 0..ahead {
            slope *= self.phi;
            level += slope;
        }
        level.max(0.0)
    }

    /// The same parameters at the beginning of a series whose first value is `first`.
    #[must_use]
    pub fn restarted(&self, first: f64) -> Self {
        Self { level: Some(first), slope: 0.0, ..self.clone() }
    }

    /// Fits anew to the last day, newest last. Keeps the old parameters if nothing could be fitted.
    pub(super) fn refit(&mut self, y: &[f64]) {
        if y.len() < FEWEST || y.iter().all(|v| *v == y[0]) {
            return;
        }
        let fit = |trend, damped| {
            let error = ErrorComponent::Additive;
            let model = ModelType { error, trend, season: SeasonalComponent::None };
            Unfit::new(model).damped(damped).max_iterations(ITERATIONS).fit(y).ok()
        };
        let fits = [fit(TrendComponent::None, false), fit(TrendComponent::Additive, true)];
        let best = fits
            .into_iter()
            .flatten()
            .filter(|m| m.aicc().is_finite())
            .min_by(|a, b| a.aicc().total_cmp(&b.aicc()));
        if let Some(fitted) = best.and_then(|model| Self::read(&model, y)) {
            *self = fitted;
        }
    }

    /// Parameters and state of a fitted model, from its fitted values.
    /// `y` is the series it was fitted to. `None` if the fit is degenerate.
    #[must_use]
    pub fn read(model: &Model, y: &[f64]) -> Option<Self> {
        let fitted = model.predict_in_sample(None).ok()?.point;
        let ahead = model.predict(2, None).ok()?.point;
        let (first, second) = (*ahead.first()?, *ahead.get(1)?);
        let f: Vec<f64> = fitted.iter().copied().chain([first]).collect();
        let gram = Gram::of(&f, y)?;
        let trend = model.model_type().trend != TrendComponent::None;
        let (alpha, beta, phi) = match (trend, model.damped()) {
            (false, _) => (gram.level()?, 0.0, 0.9),
            (true, false) => gram.trend(1.0).map(|(a, b, _)| (a, b, 1.0))?,
            (true, true) => gram.damped()?,
        };
        // one step ahead is level + φ·slope, two steps add φ²·slope
        let slope = if trend { (second - first) / (phi * phi) } else { 0.0 };
        let it = Self { alpha, beta, phi, level: Some(first - phi * slope), slope };
        [alpha, beta, phi, first, slope].iter().all(|v| v.is_finite()).then_some(it)
    }
}

/// Sums of products of d(t), d(t−1), e(t), e(t−1): all that the regressions need.
struct Gram([[f64; 4]; 4]);

impl Gram {
    fn of(f: &[f64], y: &[f64]) -> Option<Self> {
        let mut g = [[0.0; 4]; 4];
        for t in 1..y.len() {
            let x = [f.get(t + 1)? - f[t], f[t] - f[t - 1], y[t] - f[t], y[t - 1] - f[t - 1]];
            for (row, a) in g.iter_mut().zip(x) {
                for (cell, b) in row.iter_mut().zip(x) {
                    *cell += a * b;
                }
            }
        }
        g.iter().flatten().all(|v| v.is_finite()).then_some(Self(g))
    }

    /// α where there is no trend: d(t) = α e(t).
    fn level(&self) -> Option<f64> {
        let g = &self.0;
        (g[2][2] > 0.0).then(|| (g[0][2] / g[2][2]).clamp(0.0, 1.0))
    }

    /// α, β and the squared error that is left, if φ is `phi`.
    fn trend(&self, phi: f64) -> Option<(f64, f64, f64)> {
        let g = &self.0;
        let (now, before) = (g[0][2] - phi * g[1][2], g[0][3] - phi * g[1][3]);
        let det = g[2][2] * g[3][3] - g[2][3] * g[2][3];
        if det.is_nan() || det <= 1e-9 * g[2][2] * g[3][3] {
            return None;
        }
        let a = (now * g[3][3] - before * g[2][3]) / det;
        let b = (before * g[2][2] - now * g[2][3]) / det;
        let left = g[0][0] - 2.0 * phi * g[0][1] + phi * phi * g[1][1] - a * now - b * before;
        let alpha = (-b / phi).clamp(0.0, 1.0);
        Some((alpha, ((a - alpha) / phi).clamp(0.0, 1.0), left))
    }

    /// α, β, φ of a damped trend; the crate keeps φ within 0.8 and 0.98.
    fn damped(&self) -> Option<(f64, f64, f64)> {
        let tries = (0..=180).map(|i| 0.8 + f64::from(i) / 1000.0);
        let fits =
            tries.filter_map(|phi| self.trend(phi).map(|(alpha, beta, left)| (alpha, beta, phi, left)));
        fits.min_by(|a, b| a.3.total_cmp(&b.3)).map(|(alpha, beta, phi, _)| (alpha, beta, phi))
    }
}

#[cfg(test)]
mod tests {
    use augurs_core::Predict;
    use augurs_ets::model::{ErrorComponent, ModelType, SeasonalComponent, TrendComponent, Unfit};

    use super::*;

    /// A wandering level, so that there is something to smooth.
    fn series(n: usize) -> Vec<f64> {
        let mut state = 7_u64;
        let mut level = 200.0;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24) - 0.5
        };
        (0..n)
            .map(|_| {
                level += 6.0 * draw();
                level + 40.0 * draw()
            })
            .collect()
    }

    #[test]
    fn the_smoothing_goes_on_exactly_where_the_fitted_model_stopped() {
        let y = series(400);
        let kinds = [
            (ErrorComponent::Additive, TrendComponent::None, false),
            (ErrorComponent::Additive, TrendComponent::Additive, false),
            (ErrorComponent::Additive, TrendComponent::Additive, true),
            (ErrorComponent::Multiplicative, TrendComponent::Additive, true),
        ];
        for (error, trend, damped) in kinds {
            let model = ModelType { error, trend, season: SeasonalComponent::None };
            let fitted = Unfit::new(model).damped(damped).fit(&y).unwrap();
            let read = Smoothing::read(&fitted, &y).unwrap();
            let said = fitted.predict(5, None).unwrap().point;
            for (ahead, said) in (1..).zip(&said) {
                assert!((read.forecast(ahead) - said).abs() < 0.05, "{model} {ahead}: {read:?} {said}");
            }
            // run again from the beginning: the transient of the unknown first state dies out
            let inside = fitted.predict_in_sample(None).unwrap().point;
            let mut again = read.restarted(y[0]);
            for (t, y) in y.iter().enumerate() {
                if t > 350 {
                    assert!((again.forecast(1) - inside[t]).abs() < 1.0, "{model} at {t}: {read:?}");
                }
                again.learn(*y);
            }
        }
    }

    #[test]
    fn nothing_to_fit_keeps_what_was_known() {
        let mut s = Smoothing::new();
        s.learn(5.0);
        s.refit(&[5.0; 1440]);
        s.refit(&[1.0, 2.0]);
        s.refit(&[f64::MAX; 100]);
        assert_eq!(s.forecast(1), 5.0);
        s.refit(&[0.0, 1e12].repeat(40));
        assert!(s.forecast(5).is_finite());
    }
}
