//! The last 14 days, minute by minute.
//!
//! A minute that nobody watched is a gap, not a zero: averaging it in would teach every model that
//! demand stops whenever the proxy is restarted. Stored as `f32`, 4 bytes a minute, 79 KiB in all.

use std::collections::VecDeque;

/// Minutes kept: 14 days.
pub(super) const KEEP: usize = 14 * 24 * 60;

/// Counts by minute, oldest first; `NaN` inside marks a gap.
#[derive(Clone, Debug)]
pub(super) struct Minutes {
    keep: usize,
    counts: VecDeque<f32>,
    observed: usize,
}

impl Minutes {
    /// A ring of the last `keep` minutes.
    pub(super) fn new(keep: usize) -> Self {
        Self { keep, counts: VecDeque::new(), observed: 0 }
    }

    pub(super) fn push(&mut self, count: Option<f64>) {
        if self.counts.len() >= self.keep && self.counts.pop_front().is_some_and(|old| !old.is_nan()) {
            self.observed -= 1;
        }
        self.observed += usize::from(count.is_some());
        self.counts.push_back(count.map_or(f32::NAN, |c| c as f32));
    }

    /// Minutes held that were watched.
    pub(super) fn observed(&self) -> usize {
        self.observed
    }

    /// The count `ago` minutes before the last closed one (0: the last).
    pub(super) fn ago(&self, ago: usize) -> Option<f64> {
        let at = self.counts.len().checked_sub(ago + 1)?;
        self.counts.get(at).filter(|c| !c.is_nan()).map(|c| f64::from(*c))
    }

    /// The last `n`, oldest first; a gap is filled with what came before it.
    pub(super) fn last(&self, n: usize) -> Vec<f64> {
        let skip = self.counts.len().saturating_sub(n);
        let mut held = self.counts.iter().skip(skip).copied().find(|c| !c.is_nan()).unwrap_or(0.0);
        let fill = |c: &f32| {
            held = if c.is_nan() { held } else { *c };
            f64::from(held)
        };
        self.counts.iter().skip(skip).map(fill).collect()
    }

    pub(super) fn bytes(&self) -> usize {
        self.counts.capacity() * size_of::<f32>()
    }
}
