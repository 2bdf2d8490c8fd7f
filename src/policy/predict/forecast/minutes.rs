//! The last 14 days, minute by minute.
//!
//! A minute that nobody watched is a gap, not a zero: averaging it in would teach every model that
//! demand stops whenever the proxy is restarted. Stored as `f32`, 4 bytes a minute, 79 KiB in all.

use std::collections::VecDeque;

/// Minutes kept: 14 days.
pub(super) const KEEP: usize = 14 * 24 * 60;
/// Unwatched minutes in a row after which what came before says little of what follows: models of the last
/// minutes start afresh. (A pattern over days goes on.)
pub(super) const LONG_GAP: usize = 15;

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

    /// As [`Minutes::last`], from the last long gap on: a fit to both sides of one would take the step across it,
    /// which nobody saw, for a slope.
    pub(super) fn since_gap(&self, n: usize) -> Vec<f64> {
        let (mut kept, mut missed) = (0, 0);
        for (held, count) in (1..=n).zip(self.counts.iter().rev()) {
            missed = if count.is_nan() { missed + 1 } else { 0 };
            if missed == LONG_GAP {
                break;
            }
            if missed == 0 {
                kept = held;
            }
        }
        self.last(kept)
    }

    pub(super) fn bytes(&self) -> usize {
        self.counts.capacity() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_gap_ends_what_is_held_together_and_a_short_one_is_filled() {
        let mut m = Minutes::new(100);
        let mut push = |count, times| (0..times).for_each(|_| m.push(count));
        push(Some(9.0), 10);
        push(None, LONG_GAP);
        push(Some(1.0), 2);
        push(None, LONG_GAP - 1);
        push(Some(2.0), 3);
        let filled = [vec![1.0; 2 + LONG_GAP - 1], vec![2.0; 3]].concat();
        assert_eq!(m.since_gap(100), filled);
        assert_eq!(m.since_gap(3), [2.0; 3]);
        assert_eq!(m.last(100).len(), 10 + LONG_GAP + filled.len());
        (0..LONG_GAP).for_each(|_| m.push(None));
        assert_eq!(m.since_gap(100), [0.0; 0], "in the gap");
        assert_eq!(Minutes::new(5).since_gap(5), [0.0; 0]);
    }
}
