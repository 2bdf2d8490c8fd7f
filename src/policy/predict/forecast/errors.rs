//! How well the forecasts have done: the figures on the metrics.

use super::calibrate::pinball;
use super::distribution::Forecast;

/// How well the forecasts of one minute ahead have done of late.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Errors {
    /// Sum of absolute errors over the sum of demand.
    pub wape: f64,
    /// Mean pinball loss of the 95 % quantile, requests per minute.
    pub pinball95: f64,
    /// Share of minutes whose demand stayed at or below the 95 % quantile.
    pub coverage95: f64,
}

/// Discounted sums; a minute's weight halves in about 16 hours.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Running {
    weight: f64,
    demand: f64,
    error: f64,
    pinball: f64,
    covered: f64,
}

const DISCOUNT: f64 = 1.0 - 1.0 / 1440.0;
const P: f64 = 0.95;

impl Running {
    /// One minute of which `forecast` had been made.
    pub(super) fn learn(&mut self, forecast: &Forecast, y: f64) {
        let q = forecast.quantile(P);
        let add = |sum: &mut f64, value: f64| *sum = DISCOUNT * *sum + value;
        add(&mut self.weight, 1.0);
        add(&mut self.demand, y);
        add(&mut self.error, (y - forecast.mean).abs());
        add(&mut self.pinball, pinball(P, q, y));
        add(&mut self.covered, if y <= q { 1.0 } else { 0.0 });
    }

    pub(super) fn get(&self) -> Errors {
        let per = |sum: f64, of: f64| if of > 1e-9 { sum / of } else { 0.0 };
        Errors {
            wape: per(self.error, self.demand),
            pinball95: per(self.pinball, self.weight),
            coverage95: per(self.covered, self.weight),
        }
    }
}
