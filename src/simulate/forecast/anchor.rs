//! What the blend is measured against: AutoETS, and plain conformal prediction on its last 200 errors.

use augurs_core::Fit;
use augurs_ets::AutoETS;

use super::{AHEAD, Point, RESIDUALS, conformal};
use crate::policy::predict::forecast::Smoothing;

/// Minutes a fit looks at.
const WINDOW: usize = 1440;

/// AutoETS as fitted at one origin.
pub(super) struct Anchor {
    points: [Point; AHEAD.len()],
}

impl Anchor {
    /// Fits the best of the non-seasonal models (by corrected AIC) to the end of `past`; the last minute alone
    /// speaks where none can be fitted.
    pub(super) fn fit(past: &[Option<f64>]) -> Self {
        let day = filled(&past[past.len().saturating_sub(WINDOW)..]);
        let fitted = AutoETS::non_seasonal().fit(&day).ok();
        let model = fitted.and_then(|fitted| Smoothing::read(fitted.model(), &day));
        let model = model.filter(|m| AHEAD.iter().all(|ahead| m.forecast(*ahead).is_finite()));
        Self {
            points: AHEAD.map(|ahead| {
                let Some(model) = &model else { return naive(&day, ahead) };
                let centre = model.forecast(ahead);
                Point { centre, quantile: conformal(centre, errors(model, &day, ahead).into_iter()) }
            }),
        }
    }

    pub(super) fn point(&self, ahead: usize) -> Point {
        let at = AHEAD.iter().position(|h| *h == ahead).unwrap_or(0);
        self.points[at]
    }
}

/// A gap holds what came before it: AutoETS knows no gaps.
fn filled(day: &[Option<f64>]) -> Vec<f64> {
    let mut held = day.iter().flatten().next().copied().unwrap_or(0.0);
    let fill = |count: &Option<f64>| {
        held = count.unwrap_or(held);
        held
    };
    day.iter().map(fill).collect()
}

/// The last errors that this very model makes `ahead` minutes ahead, run over the day it was fitted to.
fn errors(model: &Smoothing, day: &[f64], ahead: usize) -> Vec<f64> {
    let Some(first) = day.first() else { return Vec::new() };
    let mut state = model.restarted(*first);
    let said: Vec<f64> = day
        .iter()
        .map(|y| {
            state.learn(*y);
            state.forecast(ahead)
        })
        .collect();
    let all: Vec<f64> = day.iter().skip(ahead).zip(&said).map(|(y, said)| y - said).collect();
    all[all.len().saturating_sub(RESIDUALS)..].to_vec()
}

fn naive(day: &[f64], ahead: usize) -> Point {
    let centre = day.last().copied().unwrap_or(0.0);
    let errors: Vec<f64> = day.iter().skip(ahead).zip(day).map(|(y, then)| y - then).collect();
    let recent = errors[errors.len().saturating_sub(RESIDUALS)..].iter().copied();
    Point { centre, quantile: conformal(centre, recent) }
}
