//! The source article's rule, to the letter, kept so that its table can be reproduced and beaten.
//!
//! ```text
//! < 60 requests in the window   → baseline RPM by hour (2–9: 10; 9–12, 14–18: 200; else 80), confidence 0.5
//! ≥ 5 minutes in the window     → int(last + 3·slope) · (1.5 in office hours), confidence min(0.95, 0.7 + |slope| / max(last, 1))
//! else                          → mean per minute, confidence 0.6
//! required = int(rpm / 60 · 0.150 · (800 / 150) · 1.3), within [min, max]
//! ```
//! Its reasons keep their names: `cooldown`, `low_confidence`, `scale_up`, `scale_down`, `stable`.
//! Minutes without a request do not appear in its counts, as in a dictionary keyed by minute.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::policy::predict::{ArticleWindow, Params, Reason, Snapshot};

/// What the rule predicts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Prediction {
    pub(super) rpm: f64,
    pub(super) confidence: f64,
}

/// What the rule wants to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) prediction: Prediction,
    pub(super) required: u32,
    pub(super) to: u32,
    pub(super) reason: Reason,
}

const MIN_REQUESTS: u32 = 60;
const MIN_MINUTES: usize = 5;
const EMERGENCY_QUEUE: usize = 50;
/// The article looks at its queue this often; its rule runs at the same pace, held by its cooldown.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Requests per minute of the window, by minute, oldest first.
fn minutes(s: &Snapshot<'_>, window: ArticleWindow) -> Vec<u32> {
    let mut counts = BTreeMap::<u64, u32>::new();
    match window {
        ArticleWindow::Requests(_) => {
            for at in s.history.arrivals() {
                *counts.entry(at.as_secs() / 60).or_default() += 1;
            }
        }
        ArticleWindow::Time(span) => {
            let n = usize::try_from(span.as_secs()).unwrap_or(usize::MAX);
            for (index, second) in s.history.last(n).filter(|(_, second)| second.arrivals > 0) {
                *counts.entry(index / 60).or_default() += second.arrivals;
            }
        }
    }
    counts.into_values().collect()
}

/// Least-squares slope of the counts over 0, 1, 2, …
fn slope(counts: &[u32]) -> f64 {
    let n = counts.len() as f64;
    let mean_x = (n - 1.0) / 2.0;
    let mean_y = counts.iter().copied().map(f64::from).sum::<f64>() / n;
    let (mut num, mut den) = (0.0, 0.0);
    for (i, y) in counts.iter().enumerate() {
        let dx = i as f64 - mean_x;
        num += dx * (f64::from(*y) - mean_y);
        den += dx * dx;
    }
    if den > 0.0 { num / den } else { 0.0 }
}

/// Requests per minute that the rule predicts from the counts of the last minutes (those without a request left
/// out, oldest first) at this hour of the day: what its forecast is scored by.
#[must_use]
pub fn article_rpm(counts: &[u32], hour: u8) -> f64 {
    predict(counts, hour).rpm
}

pub(super) fn predict(counts: &[u32], hour: u8) -> Prediction {
    let total: u32 = counts.iter().sum();
    if total < MIN_REQUESTS {
        let rpm = match hour {
            2..9 => 10.0,
            9..12 | 14..18 => 200.0,
            _ => 80.0,
        };
        return Prediction { rpm, confidence: 0.5 };
    }
    let last = counts.last().copied().map_or(0.0, f64::from);
    if counts.len() >= MIN_MINUTES {
        let slope = slope(counts);
        let factor = if matches!(hour, 9..=11 | 14..=17) { 1.5 } else { 1.0 };
        let rpm = (last + 3.0 * slope).trunc() * factor;
        let confidence = (0.7 + slope.abs() / last.max(1.0)).min(0.95);
        Prediction { rpm: rpm.max(5.0), confidence }
    } else {
        let mean = f64::from(total) / counts.len() as f64;
        Prediction { rpm: mean.max(5.0), confidence: 0.6 }
    }
}

pub(super) fn required(rpm: f64, params: &Params) -> u32 {
    let slots = rpm / 60.0 * 0.150 * (800.0 / 150.0) * 1.3;
    // a float cast saturates and turns NaN into 0
    (slots as u32).clamp(params.min_permits, params.max_permits)
}

pub(super) fn decide(s: &Snapshot<'_>, params: &Params) -> Verdict {
    let prediction = predict(&minutes(s, params.article_window), s.wall.hour);
    let required = required(prediction.rpm, params);
    let current = f64::from(s.limit);
    let hold = |reason| Verdict { prediction, required, to: s.limit, reason };
    if s.queued > EMERGENCY_QUEUE && s.limit < params.article_emergency {
        return Verdict { prediction, required, to: params.article_emergency, reason: Reason::Emergency };
    }
    // to the nearest second: it looks every five, and a look that comes a moment early is not another five late
    if s.since_change.is_some_and(|d| d + Duration::from_millis(500) < params.cooldown) {
        return hold(Reason::Cooldown);
    }
    if prediction.confidence < 0.7 {
        return hold(Reason::LowConfidence);
    }
    if f64::from(required) > 1.2 * current {
        return Verdict { prediction, required, to: required, reason: Reason::ScaleUp };
    }
    if f64::from(required) < 0.7 * current {
        return Verdict { prediction, required, to: required, reason: Reason::ScaleDown };
    }
    hold(Reason::Stable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_requests_give_the_baseline_of_the_hour() {
        for (hour, rpm) in [(0, 80.0), (2, 10.0), (8, 10.0), (9, 200.0), (12, 80.0), (14, 200.0), (18, 80.0)]
        {
            assert_eq!(predict(&[59], hour), Prediction { rpm, confidence: 0.5 }, "hour {hour}");
        }
    }

    #[test]
    fn a_trend_of_ten_a_minute_is_carried_three_minutes_on() {
        let counts = [40, 50, 60, 70, 80];
        let p = predict(&counts, 20);
        assert_eq!(p.rpm, 110.0);
        assert!((p.confidence - (0.7 + 10.0 / 80.0)).abs() < 1e-9);
        assert_eq!(predict(&counts, 10).rpm, 165.0);
        assert_eq!(predict(&[20, 20, 20, 20], 10), Prediction { rpm: 20.0, confidence: 0.6 });
        assert_eq!(predict(&[90, 60, 30, 10, 1], 20).rpm, 5.0, "never below five");
    }

    #[test]
    fn required_permits_are_the_article_s_arithmetic() {
        let params = Params::of(crate::policy::predict::PolicyKind::Article);
        assert_eq!(required(80.0, &params), 10);
        // 1000 / 60 · 0.15 · 5.333 · 1.3 = 17.33
        assert_eq!(required(1000.0, &params), 17);
        assert_eq!(required(1e9, &params), 100);
    }
}
