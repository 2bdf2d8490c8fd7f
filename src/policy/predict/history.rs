//! What was asked of us, second by second.
//!
//! Arrivals are counted, not completions: a queue must not hide the demand it was built for.
//! Memory is bounded: 600 seconds and the times of the last few hundred arrivals.

use std::collections::VecDeque;

use crate::policy::units::MonoTime;

/// One closed second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Second {
    /// Requests that arrived in it.
    pub arrivals: u32,
    /// Mean of requests in flight plus waiting.
    pub demand_mean: f64,
    /// The most of them at one moment.
    pub demand_peak: u32,
}

/// Ten minutes of seconds, and the last arrivals.
#[derive(Clone, Debug)]
pub struct History {
    seconds: VecDeque<Second>,
    open: Second,
    /// Index of the open second since the beginning.
    index: u64,
    /// Up to when the open second's demand has been integrated.
    upto: MonoTime,
    arrivals: VecDeque<MonoTime>,
    keep_arrivals: usize,
}

const KEEP_SECONDS: usize = 600;
const SECOND: u64 = 1_000_000_000;

impl History {
    /// An empty history that begins at `now` and remembers `keep_arrivals` arrival times.
    #[must_use]
    pub fn new(now: MonoTime, keep_arrivals: usize) -> Self {
        Self {
            seconds: VecDeque::new(),
            open: Second::default(),
            index: now.as_secs(),
            upto: now,
            arrivals: VecDeque::new(),
            keep_arrivals,
        }
    }

    /// Time passes up to `now`, during which `demand` requests were in flight or waiting.
    pub fn advance(&mut self, now: MonoTime, demand: u32) {
        if now <= self.upto {
            return;
        }
        // after a long silence only what the ring holds is worth writing
        let oldest = now.as_secs().saturating_sub(KEEP_SECONDS as u64 + 1);
        if self.index < oldest {
            self.seconds.clear();
            self.open = Second::default();
            self.index = oldest;
            self.upto = MonoTime::from_secs(oldest);
        }
        while self.index < now.as_secs() {
            let end = MonoTime::from_nanos((self.index + 1).saturating_mul(SECOND));
            self.integrate(end, demand);
            self.seconds.push_back(std::mem::take(&mut self.open));
            if self.seconds.len() > KEEP_SECONDS {
                self.seconds.pop_front();
            }
            self.index += 1;
        }
        self.integrate(now, demand);
    }

    /// A request arrived; call after [`History::advance`].
    pub fn arrived(&mut self, now: MonoTime) {
        self.open.arrivals = self.open.arrivals.saturating_add(1);
        if self.keep_arrivals > 0 {
            if self.arrivals.len() >= self.keep_arrivals {
                self.arrivals.pop_front();
            }
            self.arrivals.push_back(now);
        }
    }

    /// Times of the last arrivals, oldest first.
    pub fn arrivals(&self) -> impl ExactSizeIterator<Item = MonoTime> + '_ {
        self.arrivals.iter().copied()
    }

    /// The last `n` closed seconds, oldest first, each with its index since the beginning.
    pub fn last(&self, n: usize) -> impl Iterator<Item = (u64, Second)> + '_ {
        let len = self.seconds.len();
        let skip = len.saturating_sub(n);
        let first = self.index.saturating_sub((len - skip) as u64);
        (first..).zip(self.seconds.iter().skip(skip).copied())
    }

    fn integrate(&mut self, to: MonoTime, demand: u32) {
        self.open.demand_mean += f64::from(demand) * to.since(self.upto).as_secs_f64();
        self.open.demand_peak = self.open.demand_peak.max(demand);
        self.upto = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn demand_is_averaged_over_time_and_arrivals_are_counted_where_they_fell() {
        let mut h = History::new(MonoTime::ZERO, 300);
        let t = MonoTime::ZERO + Duration::from_millis(500);
        h.advance(t, 0);
        h.arrived(t);
        h.advance(MonoTime::from_secs(2), 10);
        let seconds: Vec<_> = h.last(10).collect();
        assert_eq!(seconds.len(), 2);
        assert_eq!(seconds[0], (0, Second { arrivals: 1, demand_mean: 5.0, demand_peak: 10 }));
        assert_eq!(seconds[1].1.demand_mean, 10.0);
    }

    #[test]
    fn memory_is_bounded_through_silence_and_storm() {
        let mut h = History::new(MonoTime::ZERO, 300);
        for n in 0..10_000 {
            h.advance(MonoTime::from_secs(n / 10), 1);
            h.arrived(MonoTime::from_secs(n / 10));
        }
        h.advance(MonoTime::from_secs(10_000_000), 1);
        assert_eq!(h.last(usize::MAX).count(), KEEP_SECONDS);
        assert_eq!(h.arrivals().len(), 300);
        assert_eq!(h.last(1).next().map(|(i, _)| i), Some(9_999_999));
    }
}
