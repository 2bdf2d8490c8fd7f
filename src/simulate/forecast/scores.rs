//! The figures, as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{P, Point};
use crate::policy::predict::forecast::Forecast;

/// How one method did at one horizon.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MethodScore {
    /// Its name.
    pub name: &'static str,
    /// Sum of absolute errors over the sum of demand.
    pub wape: f64,
    /// Mean absolute error over the mean change from one minute to the next before the first origin
    /// (Hyndman & Koehler 2006).
    pub mase: f64,
    /// Mean pinball loss of the 95 % quantile, requests per minute.
    pub pinball95: f64,
    /// Share of minutes whose demand stayed at or below the 95 % quantile.
    pub coverage95: f64,
    /// Mean 95 % quantile over mean demand: the capacity that is paid for.
    pub q95_over_mean: f64,
}

/// All methods at one horizon.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HorizonScore {
    /// Minutes ahead.
    pub minutes: usize,
    /// One row each: the blend first, AutoETS last.
    pub methods: Vec<MethodScore>,
}

/// How often the blend was right when it was this sure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Reliability {
    /// Mean probability it gave.
    pub said: f64,
    /// Share of the cases in which it came true.
    pub was: f64,
    /// Cases.
    pub n: usize,
}

/// The result of [`super::score`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Origins from which was forecast.
    pub origins: usize,
    /// By minutes ahead.
    pub horizons: Vec<HorizonScore>,
    /// By confidence, rising.
    pub reliability: Vec<Reliability>,
}

impl Scores {
    pub(super) fn new(
        origins: usize,
        horizons: impl Iterator<Item = (usize, Vec<(&'static str, Tally)>)>,
        naive: f64,
        confidence: Confidence,
    ) -> Self {
        let horizon = |(minutes, tallies): (usize, Vec<(&'static str, Tally)>)| HorizonScore {
            minutes,
            methods: tallies.into_iter().map(|(name, tally)| tally.score(name, naive)).collect(),
        };
        Self { origins, horizons: horizons.map(horizon).collect(), reliability: confidence.table() }
    }

    /// For people: one block each horizon, then the reliability of the blend's confidence.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::new();
        for horizon in &self.horizons {
            let anchor = horizon.methods.last().map_or(0.0, |m| m.pinball95);
            let unit = if horizon.minutes == 1 { "minute" } else { "minutes" };
            let _ = writeln!(out, "{} {unit} ahead, {} origins", horizon.minutes, self.origins);
            let _ = writeln!(
                out,
                "{:<14}{:>8}{:>8}{:>12}{:>12}{:>12}{:>15}",
                "method", "WAPE", "MASE", "pinball95", "vs auto_ets", "coverage95", "q95/mean"
            );
            for m in &horizon.methods {
                let _ = writeln!(
                    out,
                    "{:<14}{:>8.4}{:>8.3}{:>12.3}{:>12.3}{:>11.1}%{:>15.3}",
                    m.name,
                    m.wape,
                    m.mase,
                    m.pinball95,
                    over(m.pinball95, anchor),
                    100.0 * m.coverage95,
                    m.q95_over_mean
                );
            }
            out.push('\n');
        }
        let _ = writeln!(out, "confidence of the blend: said, was right, cases");
        for r in &self.reliability {
            let _ = writeln!(out, "{:>7.1}%{:>9.1}%{:>9}", 100.0 * r.said, 100.0 * r.was, r.n);
        }
        out
    }

    /// For programs: the same figures.
    #[must_use]
    pub fn json(&self, trace: &str) -> String {
        #[derive(Serialize)]
        struct Document<'a> {
            trace: &'a str,
            #[serde(flatten)]
            scores: &'a Scores,
        }
        serde_json::to_string(&Document { trace, scores: self }).unwrap_or_default()
    }
}

/// Sums over the origins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    n: usize,
    demand: f64,
    error: f64,
    pinball: f64,
    covered: usize,
    quantile: f64,
}

impl Tally {
    pub(super) fn add(&mut self, y: f64, point: Point) {
        let over = y - point.quantile;
        self.n += 1;
        self.demand += y;
        self.error += (y - point.centre).abs();
        self.pinball += if over > 0.0 { P * over } else { (P - 1.0) * over };
        self.covered += usize::from(over <= 0.0);
        self.quantile += point.quantile;
    }

    fn score(&self, name: &'static str, naive: f64) -> MethodScore {
        let n = self.n as f64;
        MethodScore {
            name,
            wape: over(self.error, self.demand),
            mase: over(over(self.error, n), naive),
            pinball95: over(self.pinball, n),
            coverage95: over(self.covered as f64, n),
            q95_over_mean: over(self.quantile, self.demand),
        }
    }
}

/// A ratio that is 0 where there is nothing to relate to.
fn over(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// Lower edges of the classes of confidence.
const EDGES: [f64; 9] = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99];
/// Demand is compared with these multiples of the last hour's mean, as with a number of permits.
const MULTIPLES: [f64; 10] = [0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.7, 2.0];

/// Cases by how sure the blend was: "demand will exceed x", or "will not", whichever it held likelier.
#[derive(Clone, Debug, Default)]
pub(super) struct Confidence {
    classes: [(f64, usize, usize); EDGES.len()],
}

impl Confidence {
    pub(super) fn add(&mut self, forecast: &Forecast, recent: f64, y: f64) {
        for x in MULTIPLES.map(|multiple| multiple * recent) {
            let exceeds = forecast.exceeds(x);
            let (said, right) = if exceeds >= 0.5 { (exceeds, y > x) } else { (1.0 - exceeds, y <= x) };
            let class = EDGES.partition_point(|edge| *edge <= said).max(1) - 1;
            let (sum, was, n) = &mut self.classes[class];
            *sum += said;
            *was += usize::from(right);
            *n += 1;
        }
    }

    fn table(&self) -> Vec<Reliability> {
        let filled = self.classes.iter().filter(|(_, _, n)| *n > 0);
        filled
            .map(|(sum, was, n)| Reliability { said: sum / *n as f64, was: *was as f64 / *n as f64, n: *n })
            .collect()
    }
}
