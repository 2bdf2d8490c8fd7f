//! How many requests were in flight on average while a response was made.
//!
//! A response says how fast it was, not how many it shared the server with; that number moved meanwhile. The
//! integral of the requests in flight, kept four times a second for two minutes, gives the mean over any
//! span in O(log n). Without it a slow response that began under a heavy load would be held against the light
//! load it ended under.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::units::MonoTime;

/// The integral of the requests in flight over time.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    marks: VecDeque<(MonoTime, f64)>,
    at: MonoTime,
    area: f64,
    now: u32,
}

const STEP: Duration = Duration::from_millis(250);
const MARKS: usize = 480;
const SILENCE: Duration = Duration::from_secs(1);

impl Load {
    /// `in_flight` is the number from now on; until now it was the one told before.
    pub(super) fn set(&mut self, now: MonoTime, in_flight: u32) {
        self.area += now.since(self.at).as_secs_f64() * f64::from(self.now);
        self.at = self.at.max(now);
        self.now = in_flight;
        if self.marks.back().is_none_or(|(at, _)| self.at.since(*at) >= STEP) {
            self.marks.push_back((self.at, self.area));
            if self.marks.len() > MARKS {
                self.marks.pop_front();
            }
        }
    }

    /// The same, if nothing was told for a second.
    pub(super) fn set_if_silent(&mut self, now: MonoTime, in_flight: u32) {
        if now.since(self.at) >= SILENCE {
            self.set(now, in_flight);
        }
    }

    /// In flight as last told.
    pub(super) const fn in_flight(&self) -> u32 {
        self.now
    }

    /// The mean over the last `span`, as of the last [`Load::set`]; at least 1.
    pub(super) fn mean(&self, span: Duration) -> f64 {
        let begin = self.at - span;
        let next = self.marks.partition_point(|(at, _)| *at <= begin);
        let (from, area) = match (next.checked_sub(1).and_then(|i| self.marks.get(i)), self.marks.get(next)) {
            (Some(&(a, before)), Some(&(b, after))) => {
                let share = begin.since(a).as_secs_f64() / b.since(a).as_secs_f64().max(1e-9);
                (begin, before + (after - before) * share)
            }
            // after the last mark, or before the first: from the mark on
            (Some(&mark), None) | (None, Some(&mark)) => mark,
            (None, None) => (self.at, self.area),
        };
        let secs = self.at.since(from).as_secs_f64();
        let mean = if secs > 1e-6 { (self.area - area) / secs } else { f64::from(self.now) };
        mean.max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_that_of_the_span() {
        let mut load = Load::default();
        assert_eq!(load.mean(Duration::from_secs(5)), 1.0);
        for s in 0..=60_u64 {
            load.set(MonoTime::from_secs(s), if s < 50 { 10 } else { 30 });
        }
        for (span, mean) in [(5, 30.0), (10, 30.0), (20, 20.0), (40, 15.0), (0, 30.0)] {
            let got = load.mean(Duration::from_secs(span));
            assert!((got - mean).abs() < 0.01, "{span} s: {got}");
        }
        // a silent second
        load.set_if_silent(MonoTime::from_secs(60), 99);
        assert_eq!(load.in_flight(), 30);
        load.set_if_silent(MonoTime::from_secs(61), 99);
        assert_eq!(load.in_flight(), 99);
        // a span longer than what is kept, and a clock that stands still
        assert!(load.mean(Duration::from_secs(86_400)) > 10.0);
        (0..1000).for_each(|_| load.set(MonoTime::from_secs(61), 7));
        assert!(load.mean(Duration::from_secs(1)).is_finite() && load.marks.len() <= MARKS);
    }
}
