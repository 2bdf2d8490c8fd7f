//! The quantiles: six calibrators, mixed by how well each has done of late.
//!
//! Each keeps its residuals divided by its own idea of their scale in a window of its own, and answers
//! centre + scale · quantile of the window. Adaptive conformal inference (Gibbs & Candès 2021, eq. 2)
//! moves the probability it looks up until its coverage is right:
//!
//! ```text
//! p' = p' + γ (1{y > q} − (1 − p))
//! ```
//! The mixture weighs them, for each probability, by discounted pinball loss.

use super::distribution::{LEVELS, N};
use super::window::Window;

/// What the residuals of a calibrator are divided by.
#[derive(Clone, Copy, Debug)]
enum Scale {
    /// Mean |residual| of late, by the constant of [`RECENT`] with this index.
    Recent(usize),
    /// √centre: a count's own noise.
    Root,
    /// Centre: noise in proportion.
    Level,
    /// One.
    Absolute,
}

const KINDS: [(Scale, usize); 6] = [
    (Scale::Recent(0), 300),
    (Scale::Recent(1), 1000),
    (Scale::Root, 400),
    (Scale::Root, 1000),
    (Scale::Level, 600),
    (Scale::Absolute, 150),
];
const CALIBRATORS: usize = KINDS.len();
/// EWMA constants of the recent scales.
const RECENT: [f64; 2] = [0.06, 0.015];
/// Step of the adaptive conformal level.
const GAMMA: f64 = 0.004;
/// Losses of this many minutes ago count 1/e.
const DISCOUNT: f64 = 1.0 - 1.0 / 1000.0;
/// How sharply the mixture prefers the best.
const RATE: f64 = 30.0;
/// Deviation of the residuals over their scale that is assumed before any was seen.
const PRIOR_SPREAD: f32 = 1.5;

#[derive(Clone, Debug)]
struct Calibrator {
    scale: Scale,
    window: Window,
    levels: [f64; N],
}

/// What was answered for one minute, kept until its count is known.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    centre: f64,
    scales: [f64; CALIBRATORS],
    each: [[f64; N]; CALIBRATORS],
    /// The mixture, for each of [`LEVELS`].
    pub(super) mixed: [f64; N],
}

/// All calibrators of one horizon.
#[derive(Clone, Debug)]
pub(super) struct Calibrators {
    each: Vec<Calibrator>,
    /// Discounted pinball loss, by probability and calibrator.
    loss: [[f64; CALIBRATORS]; N],
    recent: [f64; 2],
    seen: u64,
}

impl Calibrators {
    pub(super) fn new() -> Self {
        let each = KINDS.map(|(scale, keep)| Calibrator {
            scale,
            window: Window::new(keep, PRIOR_SPREAD),
            levels: LEVELS,
        });
        Self { each: each.to_vec(), loss: [[0.0; CALIBRATORS]; N], recent: [0.0; 2], seen: 0 }
    }

    fn scale(&self, kind: Scale, centre: f64) -> f64 {
        let root = (centre + 1.0).sqrt();
        match kind {
            Scale::Recent(_) if self.seen == 0 => root,
            Scale::Recent(i) => self.recent[i] + 0.1 * root,
            Scale::Root => root,
            Scale::Level => centre + 1.0,
            Scale::Absolute => 1.0,
        }
    }

    /// The quantiles around `centre`, none above `most`.
    pub(super) fn answer(&self, centre: f64, most: f64) -> Answer {
        let mut answer =
            Answer { centre, scales: [1.0; CALIBRATORS], each: [[0.0; N]; CALIBRATORS], mixed: [0.0; N] };
        for (c, calibrator) in self.each.iter().enumerate() {
            let scale = self.scale(calibrator.scale, centre);
            answer.scales[c] = scale;
            for (level, q) in calibrator.levels.iter().zip(&mut answer.each[c]) {
                *q = (centre + scale * calibrator.window.quantile(*level)).min(most).max(0.0);
            }
        }
        for (p, mixed) in answer.mixed.iter_mut().enumerate() {
            let weights = self.weights(p);
            *mixed = answer.each.iter().zip(weights).map(|(q, w)| q[p] * w).sum();
        }
        answer
    }

    fn weights(&self, p: usize) -> [f64; CALIBRATORS] {
        let loss = &self.loss[p];
        let best = loss.iter().copied().fold(f64::INFINITY, f64::min);
        // where the best has no loss yet, a little slack keeps the ratio finite
        let weights = loss.map(|loss| (-RATE * (loss - best) / best.max(1e-3)).exp());
        let sum: f64 = weights.iter().sum();
        weights.map(|w| w / sum)
    }

    /// The count that `answer` was about.
    pub(super) fn learn(&mut self, answer: &Answer, y: f64) {
        let residual = y - answer.centre;
        for (c, calibrator) in self.each.iter_mut().enumerate() {
            for (p, level) in LEVELS.into_iter().enumerate() {
                let q = answer.each[c][p];
                let loss = pinball(level, q, y);
                self.loss[p][c] = DISCOUNT * self.loss[p][c] + loss;
                let missed = if y > q { 1.0 } else { 0.0 };
                let adapted = calibrator.levels[p] + GAMMA * (missed - (1.0 - level));
                calibrator.levels[p] = adapted.clamp(0.5 * level, 0.5 + 0.5 * level);
            }
            calibrator.window.push(residual / answer.scales[c]);
        }
        self.seen += 1;
        for (recent, alpha) in self.recent.iter_mut().zip(RECENT) {
            *recent += (residual.abs() - *recent) * alpha.max(1.0 / self.seen as f64);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.each.iter().map(|c| size_of::<Calibrator>() + c.window.bytes()).sum()
    }
}

/// Pinball loss of quantile `q` at probability `p` (Koenker & Bassett 1978).
pub(super) fn pinball(p: f64, q: f64, y: f64) -> f64 {
    if y >= q { p * (y - q) } else { (1.0 - p) * (q - y) }
}
