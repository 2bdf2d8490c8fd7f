//! The oracle: it knows every arrival and how long each request takes, and makes ready exactly that, just in time.
//!
//! From the workload it computes how many requests would be under way in each second if nobody ever waited. Slots and
//! connections follow the peak, replicas the mean of ten seconds with the square root that any crowd needs:
//!
//! ```text
//! slots(t)    = ⌈headroom · max of peak over [t, t + start + 2 s]⌉
//! replicas(t) = ⌈headroom · (a + √a) / full speed⌉, a = max of the mean over the same time
//! warm(t)     = max of peak over [t, t + 3 s]
//! ```
//! It is a yardstick and no bound: at headroom 1 hardly anybody ever waits, and who lets requests wait a little, as an
//! objective may allow, does with less. What is compared with it has to search its headroom too, as the suite does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::policy::units::MonoTime;

const SMOOTH: usize = 10;

#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    /// Most requests under way at once, by second.
    peak: Vec<u32>,
    /// Their mean over the ten seconds that begin there.
    mean: Vec<f64>,
}

impl Oracle {
    /// From every request's arrival and undisturbed end.
    pub(super) fn new(spans: impl Iterator<Item = (MonoTime, MonoTime)>) -> Self {
        let mut oracle = Self::default();
        let mut means: Vec<f64> = Vec::new();
        let mut ends = BinaryHeap::new();
        let mut upto = MonoTime::ZERO;
        let mut pass = |to: MonoTime, open: usize, peak: &mut Vec<u32>| {
            while upto < to {
                let second = upto.as_secs() as usize;
                let end = MonoTime::from_secs(upto.as_secs() + 1).min(to);
                if peak.len() <= second {
                    peak.resize(second + 1, 0);
                    means.resize(second + 1, 0.0);
                }
                peak[second] = peak[second].max(open as u32);
                means[second] += open as f64 * end.since(upto).as_secs_f64();
                upto = end;
            }
        };
        for (at, end) in spans {
            while let Some(Reverse(first)) = ends.peek().copied()
                && first <= at
            {
                pass(first, ends.len(), &mut oracle.peak);
                ends.pop();
            }
            pass(at, ends.len(), &mut oracle.peak);
            ends.push(Reverse(end));
        }
        while let Some(Reverse(first)) = ends.peek().copied() {
            pass(first, ends.len(), &mut oracle.peak);
            ends.pop();
        }
        oracle.mean = (0..means.len())
            .map(|n| {
                let span = &means[n..means.len().min(n + SMOOTH)];
                span.iter().sum::<f64>() / span.len() as f64
            })
            .collect();
        oracle
    }

    /// Most requests under way at once from `second` for `ahead`.
    pub(super) fn peak(&self, second: u64, ahead: Duration) -> u32 {
        slice(&self.peak, second, ahead).iter().copied().max().unwrap_or_default()
    }

    /// Highest ten-second mean in that time.
    pub(super) fn mean(&self, second: u64, ahead: Duration) -> f64 {
        slice(&self.mean, second, ahead).iter().copied().fold(0.0, f64::max)
    }
}

fn slice<T>(all: &[T], second: u64, ahead: Duration) -> &[T] {
    let from = usize::try_from(second).unwrap_or(usize::MAX).min(all.len());
    let seconds = usize::try_from(ahead.as_secs()).unwrap_or(usize::MAX);
    &all[from..from.saturating_add(seconds).saturating_add(1).min(all.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_what_would_be_under_way() {
        let ms = |n: u64| MonoTime::from_nanos(n * 1_000_000);
        let o = Oracle::new([(ms(500), ms(2500)), (ms(1000), ms(1500)), (ms(5000), ms(6000))].into_iter());
        assert_eq!(o.peak, vec![1, 2, 1, 0, 0, 1]);
        assert_eq!(
            (
                o.peak(2, Duration::from_secs(1)),
                o.peak(3, Duration::from_secs(9)),
                o.peak(99, Duration::ZERO)
            ),
            (1, 1, 0)
        );
        // (0.5 + 1.5 + 0.5 + 0 + 0 + 1) / 6
        assert!((o.mean[0] - 3.5 / 6.0).abs() < 1e-9);
    }
}
