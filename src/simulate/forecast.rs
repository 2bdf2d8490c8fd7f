//! `simulate forecast`: how good are the forecasts on a trace, next to simpler ones?
//!
//! Rolling origins: at every 17th minute of the last third of the trace each method forecasts the count of the
//! next minute and of the fifth, knowing only what came before. 17 is coprime to 5, 10, 60 and 1440, so that no
//! pattern of the hour or the day is always met at the same place. Methods:
//!
//! | name | centre | 95 % quantile |
//! |---|---|---|
//! | `blend` | [`Forecaster`], closed minute by minute, refitted when due | its own |
//! | `last_minute`, `ewma_slow`, … | each expert of the blend | centre + the 95 % quantile of its last 200 errors |
//! | `article` | the source article's rule over the last five minutes (`article.window = "5m"`) | the same number: it has no other |
//! | `auto_ets` | AutoETS (`augurs-ets`), fitted anew at each origin to the last 1,440 minutes | as the experts', over the fitted day |
//!
//! The article's factor for office hours needs the hour: the trace is taken to begin at midnight.
//! Without this, "the forecast is good" would be an opinion. Called by `tidegate simulate forecast`.

mod anchor;
mod scores;

use std::collections::VecDeque;

use crate::policy::predict::article_rpm;
use crate::policy::predict::forecast::{Forecast, Forecaster};

pub use scores::{HorizonScore, MethodScore, Reliability, Scores};

use anchor::Anchor;
use scores::{Confidence, Tally};

/// Minutes between two origins.
const EVERY: usize = 17;
/// Minutes ahead that are scored.
const AHEAD: [usize; 2] = [1, 5];
/// Errors that plain conformal prediction looks at (Lei et al. 2018).
const RESIDUALS: usize = 200;
/// The quantile that is scored.
const P: f64 = 0.95;

/// What a method says about one minute.
#[derive(Clone, Copy, Debug)]
struct Point {
    centre: f64,
    quantile: f64,
}

/// Scores the forecaster on `counts`, requests by minute with `None` for minutes nobody watched.
/// `progress` is told the origins done and their total; the AutoETS fits take most of the time.
pub fn score(counts: &[Option<f64>], progress: &mut dyn FnMut(usize, usize)) -> Scores {
    let first = (counts.len() * 2 / 3).max(1);
    let total = counts.len().saturating_sub(first).div_ceil(EVERY);
    let mut forecaster = Forecaster::new();
    let names: Vec<&'static str> = forecaster.experts(1).map(|(name, _)| name).collect();
    let mut rivals = AHEAD.map(|ahead| Rivals::new(ahead, names.len()));
    let mut horizons = AHEAD.map(|_| Tallies::new(&names));
    let mut confidence = Confidence::default();
    for (minute, count) in counts.iter().enumerate() {
        if minute >= first && (minute - first).is_multiple_of(EVERY) {
            progress((minute - first) / EVERY, total);
            origin(&forecaster, &rivals, &counts[..minute], &counts[minute..], &mut horizons);
        }
        if minute >= first {
            let recent = mean(&counts[minute.saturating_sub(60)..minute]);
            for ahead in AHEAD {
                if let (Some(recent), Some(Some(y))) = (recent, counts.get(minute + ahead - 1)) {
                    confidence.add(&forecaster.forecast(ahead), recent, *y);
                }
            }
        }
        forecaster.close(*count);
        if forecaster.refit_due() {
            forecaster.refit();
        }
        for (rival, ahead) in rivals.iter_mut().zip(AHEAD) {
            rival.learn(*count, forecaster.experts(ahead).map(|(_, said)| said).collect());
        }
    }
    progress(total, total);
    let naive = naive_error(&counts[..first.min(counts.len())]);
    Scores::new(total, AHEAD.into_iter().zip(horizons.map(|h| h.0)), naive, confidence)
}

/// Scores of all methods at one horizon, by name, in the order of the report.
struct Tallies(Vec<(&'static str, Tally)>);

impl Tallies {
    fn new(experts: &[&'static str]) -> Self {
        let names = ["blend"].into_iter().chain(experts.iter().copied()).chain(["article", "auto_ets"]);
        Self(names.map(|name| (name, Tally::default())).collect())
    }

    fn add(&mut self, y: f64, points: impl Iterator<Item = Point>) {
        for ((_, tally), point) in self.0.iter_mut().zip(points) {
            tally.add(y, point);
        }
    }
}

/// One origin: everything before it is `past`, the minutes to be forecast begin `future`.
fn origin(
    forecaster: &Forecaster,
    rivals: &[Rivals; 2],
    past: &[Option<f64>],
    future: &[Option<f64>],
    horizons: &mut [Tallies; 2],
) {
    let anchor = Anchor::fit(past);
    let article = article(past);
    for ((horizon, rivals), ahead) in horizons.iter_mut().zip(rivals).zip(AHEAD) {
        let Some(Some(y)) = future.get(ahead - 1) else { continue };
        let blend = of(&forecaster.forecast(ahead));
        let experts = forecaster.experts(ahead).zip(&rivals.errors).map(|((_, centre), errors)| Point {
            centre,
            quantile: conformal(centre, errors.iter().copied()),
        });
        let rest = [article, anchor.point(ahead)];
        horizon.add(*y, [blend].into_iter().chain(experts).chain(rest));
    }
}

fn of(forecast: &Forecast) -> Point {
    Point { centre: forecast.mean, quantile: forecast.quantile(P) }
}

/// The article's rule on the last five minutes; it looks no further ahead for five minutes than for one.
fn article(past: &[Option<f64>]) -> Point {
    let window = &past[past.len().saturating_sub(5)..];
    // its counts are a dictionary by minute: a minute without a request is not in it
    let counts: Vec<u32> = window.iter().flatten().map(|c| *c as u32).filter(|c| *c > 0).collect();
    let rpm = article_rpm(&counts, (past.len() / 60 % 24) as u8);
    Point { centre: rpm, quantile: rpm }
}

/// `centre` plus the 95 % quantile of `errors`: the ⌈0.95 (n + 1)⌉-th smallest.
fn conformal(centre: f64, errors: impl Iterator<Item = f64>) -> f64 {
    let mut errors: Vec<f64> = errors.collect();
    errors.sort_by(f64::total_cmp);
    let rank = (P * (errors.len() as f64 + 1.0)).ceil() as usize;
    let error = errors.get(rank.min(errors.len()).saturating_sub(1)).copied().unwrap_or(0.0);
    (centre + error).max(0.0)
}

/// The last errors of each expert at one horizon.
struct Rivals {
    ahead: usize,
    waiting: VecDeque<Vec<f64>>,
    errors: Vec<VecDeque<f64>>,
}

impl Rivals {
    fn new(ahead: usize, experts: usize) -> Self {
        Self { ahead, waiting: VecDeque::new(), errors: vec![VecDeque::new(); experts] }
    }

    /// A minute closed, after which `said` was said.
    fn learn(&mut self, count: Option<f64>, said: Vec<f64>) {
        if self.waiting.len() >= self.ahead
            && let (Some(then), Some(y)) = (self.waiting.pop_front(), count)
        {
            for (errors, said) in self.errors.iter_mut().zip(then) {
                errors.push_back(y - said);
                if errors.len() > RESIDUALS {
                    errors.pop_front();
                }
            }
        }
        self.waiting.push_back(said);
    }
}

fn mean(counts: &[Option<f64>]) -> Option<f64> {
    let n = counts.iter().flatten().count();
    (n > 0).then(|| counts.iter().flatten().sum::<f64>() / n as f64)
}

/// Mean absolute change from minute to minute: the unit of MASE (Hyndman & Koehler 2006).
fn naive_error(counts: &[Option<f64>]) -> f64 {
    let changes = counts.windows(2).filter_map(|pair| Some((pair[1]? - pair[0]?).abs()));
    let (sum, n) = changes.fold((0.0, 0), |(sum, n), change| (sum + change, n + 1));
    if n > 0 { sum / f64::from(n) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A load with a daily wave and noise that grows with it.
    fn trace(minutes: usize) -> Vec<Option<f64>> {
        let mut state = 3_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24) - 0.5
        };
        let count = |i: usize| {
            let rate = 100.0 + 60.0 * (i as f64 / 1440.0 * std::f64::consts::TAU).sin();
            (!i.is_multiple_of(97)).then(|| (rate + 3.4 * rate.sqrt() * draw()).round())
        };
        (0..minutes).map(count).collect()
    }

    #[test]
    fn every_method_is_scored_at_every_origin_and_the_blend_is_calibrated() {
        let counts = trace(720);
        let mut told = Vec::new();
        let scores = score(&counts, &mut |done, total| told.push((done, total)));
        assert_eq!(scores.origins, 15);
        assert_eq!((told[0], told[told.len() - 1]), ((0, 15), (15, 15)));
        for horizon in &scores.horizons {
            let names: Vec<_> = horizon.methods.iter().map(|m| m.name).collect();
            assert_eq!((names[0], names[1]), ("blend", "last_minute"));
            assert_eq!(names[names.len() - 2..], ["article", "auto_ets"]);
            let of = |name| horizon.methods.iter().find(|m| m.name == name).unwrap();
            assert!(of("blend").wape < of("article").wape, "{horizon:?}");
            assert!(of("blend").wape < 1.2 * of("auto_ets").wape, "{horizon:?}");
            assert!((0.8..=1.0).contains(&of("blend").coverage95), "{horizon:?}");
            assert!(of("blend").mase > 0.0 && of("blend").pinball95 > 0.0);
        }
        let sure: Vec<_> = scores.reliability.iter().filter(|r| r.said > 0.85).collect();
        assert!(!sure.is_empty() && sure.iter().all(|r| r.was > 0.75), "{sure:?}");
        assert!(scores.table().contains("auto_ets"));
        let json: serde_json::Value = serde_json::from_str(&scores.json("t.csv")).unwrap();
        assert_eq!(json["trace"], "t.csv");
        assert_eq!(json["horizons"][1]["minutes"], 5);
        assert!(json["horizons"][0]["methods"][0]["q95_over_mean"].as_f64().unwrap() > 1.0);
    }

    #[test]
    fn nothing_peeks_ahead() {
        let counts = trace(165);
        let mut other = counts.clone();
        // the last origin is at 110 + 3 · 17 = 161, and no origin forecasts the minutes 162 and 163
        other[162] = Some(1e6);
        other[163] = None;
        let quiet = &mut |_: usize, _: usize| {};
        assert_eq!(score(&counts, quiet).horizons, score(&other, quiet).horizons);
    }

    #[test]
    fn a_trace_too_short_or_empty_is_no_trouble() {
        for n in [0, 1, 2, 3, 40] {
            let scores = score(&trace(n), &mut |_, _| {});
            assert!(scores.table().lines().count() > 3);
            assert!(!scores.json("x").contains("NaN"));
        }
        let silent = score(&vec![Some(0.0); 120], &mut |_, _| {});
        assert!(
            silent.horizons[0].methods.iter().all(|m| m.wape == 0.0),
            "nothing was asked, nothing is relative"
        );
    }

    #[test]
    fn conformal_is_the_rank_that_covers() {
        let errors = (1..=199).map(f64::from);
        assert_eq!(conformal(0.0, errors), 190.0);
        assert_eq!(conformal(7.0, std::iter::empty()), 7.0);
    }
}
