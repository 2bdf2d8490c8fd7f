//! The cheapest experts: where demand is, and where it is drifting to.
//!
//! ```text
//! EWMA    level += α (y − level)           α = 0.05, 0.15, 0.4
//! trend   level' = level + φ·slope + α e,  slope' = φ·slope + β e,   forecast(h) = level + (φ + … + φʰ) slope
//! ```
//! Both jump: two residuals in a row, on the same side and four times the usual size, are a new level,
//! not noise, and an average would need many minutes to get there.

/// Sees two surprising minutes in a row.
#[derive(Clone, Debug, Default)]
struct Jump {
    usual: f64,
    last: f64,
}

impl Jump {
    /// Whether `residual` is the second in a row that is far out on the same side.
    fn sees(&mut self, residual: f64, level: f64) -> bool {
        let limit = 4.0 * self.usual.max(0.6 * level.max(1.0).sqrt());
        let far = residual.abs() > limit;
        let jumps = far && self.last.abs() > limit && (residual > 0.0) == (self.last > 0.0);
        self.usual += 0.05 * (residual.abs().min(limit) - self.usual);
        self.last = if jumps { 0.0 } else { residual };
        jumps
    }
}

/// Exponentially weighted moving average with a jump.
#[derive(Clone, Debug)]
pub(super) struct Ewma {
    alpha: f64,
    level: Option<f64>,
    last: f64,
    seen: f64,
    jump: Jump,
}

impl Ewma {
    pub(super) fn new(alpha: f64) -> Self {
        Self { alpha, level: None, last: 0.0, seen: 0.0, jump: Jump::default() }
    }

    pub(super) fn learn(&mut self, y: f64) {
        let Some(level) = self.level else {
            (self.level, self.last, self.seen) = (Some(y), y, 1.0);
            return;
        };
        self.seen += 1.0;
        // a young average is a plain mean: the first minute must not weigh 1 / α of them
        let alpha = self.alpha.max(1.0 / self.seen);
        self.level = Some(if self.jump.sees(y - level, level) {
            0.5 * (y + self.last)
        } else {
            level + alpha * (y - level)
        });
        self.last = y;
    }

    pub(super) fn forecast(&self) -> f64 {
        self.level.unwrap_or(0.0)
    }
}

/// Holt's method with a damped slope, on √counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Trend {
    level: Option<f64>,
    slope: f64,
    last: f64,
    jump: Jump,
}

impl Trend {
    const ALPHA: f64 = 0.2;
    const BETA: f64 = 0.02;
    const PHI: f64 = 0.95;
    /// What an unwatched minute leaves of the slope: a long gap must not carry a short climb on.
    const UNWATCHED: f64 = 0.5;

    pub(super) fn learn(&mut self, y: f64) {
        let z = y.max(0.0).sqrt();
        let Some(level) = self.level else {
            (self.level, self.last) = (Some(z), z);
            return;
        };
        let expected = level + Self::PHI * self.slope;
        let e = z - expected;
        if self.jump.sees(e, 0.0) {
            (self.level, self.slope) = (Some(0.5 * (z + self.last)), 0.0);
        } else {
            self.level = Some(expected + Self::ALPHA * e);
            self.slope = Self::PHI * self.slope + Self::BETA * e;
        }
        self.last = z;
    }

    /// Time passes unwatched.
    pub(super) fn skip(&mut self) {
        self.level = self.level.map(|level| (level + Self::PHI * self.slope).max(0.0));
        self.slope *= Self::PHI * Self::UNWATCHED;
    }

    pub(super) fn forecast(&self, ahead: usize) -> f64 {
        let (mut z, mut slope) = (self.level.unwrap_or(0.0), self.slope);
        for _ in 0..ahead {
            slope *= Self::PHI;
            z += slope;
        }
        z.max(0.0).powi(2)
    }
}
