//! Additive increase, multiplicative decrease (Chiu and Jain, 1989), per answer, as Netflix's `AIMDLimit` does it.
//!
//! ```text
//! refused:                         limit ← 0.9 · limit
//! served, and half of it in use:   limit ← limit + 1        20 at the beginning, never outside 1 … max
//! ```
//! Its original also takes a slow answer (5 s) for a refusal; an LLM's length says nothing of its load, so that is left out.

use crate::simulate::policy::Sample;

#[derive(Clone, Debug)]
pub(super) struct Aimd {
    limit: u32,
    max: u32,
}

const BACKOFF: f64 = 0.9;

impl Aimd {
    pub(super) fn new(max: u32) -> Self {
        Self { limit: 20.min(max), max }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    pub(super) fn sample(&mut self, s: Sample) {
        if s.refused {
            self.limit = ((f64::from(self.limit) * BACKOFF) as u32).max(1);
        } else if s.in_flight.saturating_mul(2) >= self.limit {
            self.limit = (self.limit + 1).min(self.max);
        }
    }
}
