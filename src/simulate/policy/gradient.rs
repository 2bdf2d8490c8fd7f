//! Netflix's Gradient2 limit, from its published description: the long average latency over the last one.
//!
//! ```text
//! long  ← exponential average of latency over 600 samples (the first 10: their plain mean)
//! long  ← 0.95 · long             if it is more than twice the sample: it must be able to come down again
//! g      = clamp(1.5 · long / sample, 0.5, 1)
//! limit ← 0.8 · limit + 0.2 · (g · limit + 4)       within 20 … 200, and only if half of it is in use
//! ```
//! It samples whole responses, which is what fails on LLM traffic: a hundredfold spread of lengths is no load.

use crate::simulate::policy::Sample;

#[derive(Clone, Debug)]
pub(super) struct Gradient {
    limit: f64,
    long: f64,
    samples: u32,
    warm_up_sum: f64,
}

const LEAST: f64 = 20.0;
const MOST: f64 = 200.0;
const QUEUE: f64 = 4.0;
const WINDOW: f64 = 600.0;
const WARM_UP: u32 = 10;
const TOLERANCE: f64 = 1.5;
const SMOOTHING: f64 = 0.2;

impl Gradient {
    pub(super) fn new() -> Self {
        Self { limit: LEAST, long: 0.0, samples: 0, warm_up_sum: 0.0 }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit as u32
    }

    pub(super) fn sample(&mut self, s: Sample) {
        let short = s.latency.as_secs_f64();
        if s.refused || short <= 0.0 {
            return;
        }
        if self.samples < WARM_UP {
            self.samples += 1;
            self.warm_up_sum += short;
            self.long = self.warm_up_sum / f64::from(self.samples);
        } else {
            self.long += (short - self.long) * 2.0 / (WINDOW + 1.0);
        }
        if self.long / short > 2.0 {
            self.long *= 0.95;
        }
        if f64::from(s.in_flight) < self.limit / 2.0 {
            return;
        }
        let gradient = (TOLERANCE * self.long / short).clamp(0.5, 1.0);
        let next = gradient * self.limit + QUEUE;
        self.limit = (self.limit * (1.0 - SMOOTHING) + next * SMOOTHING).clamp(LEAST, MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_grows_while_latency_is_flat_and_shrinks_when_it_doubles() {
        let mut g = Gradient::new();
        let sample = |ms, in_flight| Sample { latency: Duration::from_millis(ms), in_flight, refused: false };
        (0..100).for_each(|_| g.sample(sample(100, 200)));
        let grown = g.limit();
        assert!(grown > 80, "{grown}");
        (0..20).for_each(|_| g.sample(sample(400, 200)));
        assert!(g.limit() < grown / 2, "{}", g.limit());
        let before = g.limit();
        (0..20).for_each(|_| g.sample(sample(100, 1)));
        assert_eq!(g.limit(), before, "a limit that nobody reaches says nothing");
    }
}
