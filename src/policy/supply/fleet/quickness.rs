//! How quick an endpoint is, by what does not depend on length: what outliers are found by.

use crate::policy::units::Sample;

/// Weight of the newest response in the averages.
const NEWEST: f64 = 0.1;

/// How quick it is, normalised by length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Quickness {
    /// Seconds to a stream's first token.
    pub(super) first: Average,
    /// Seconds per output token after it; of a whole answer, which has no first one, per token of all.
    pub(super) token: Average,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Average {
    pub(super) mean: f64,
    pub(super) samples: u32,
}

impl Quickness {
    /// A whole answer came.
    pub(super) fn observe(&mut self, s: &Sample) {
        if s.output.0 == 0 {
            return;
        }
        let tokens = s.output.0 as f64;
        if s.stream {
            let rest = s.last.saturating_sub(s.first).as_secs_f64();
            self.first.observe(s.first.as_secs_f64());
            self.token.observe(rest / (tokens - 1.0).max(1.0));
        } else {
            self.token.observe(s.last.as_secs_f64() / tokens);
        }
    }
}

impl Average {
    fn observe(&mut self, new: f64) {
        self.mean = if self.samples == 0 { new } else { self.mean + NEWEST * (new - self.mean) };
        self.samples = self.samples.saturating_add(1);
    }
}
