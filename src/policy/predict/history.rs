//! What was asked of us, second by second.
//!
//! Arrivals are counted, not completions: a queue must not hide the demand it was built for.
//! Memory is bounded: 600 seconds and the times of the last few hundred arrivals.

use std::collections::VecDeque;
use std::time::Duration;

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
    /// Mean of requests waiting.
    pub waiting_mean: f64,
    /// Mean of requests in flight, tunnels left out: what Little's law calls the number in service.
    pub flight_mean: f64,
    /// The most requests in flight at one moment, tunnels left out.
    pub flight_peak: u32,
    /// Requests whose flight ended, tunnels left out.
    pub finished: u32,
    /// Nobody watched: the process stood still. Its zeros are not zeros.
    pub gap: bool,
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
/// The engine is ticked each second; a pause as long as this means that the process did not run.
const GAP: Duration = Duration::from_secs(5);
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

    /// Time passes up to `now`, during which so many requests waited and were in flight, and so many tunnels
    /// were open.
    pub fn advance(&mut self, now: MonoTime, waiting: u32, flight: u32, tunnels: u32) {
        if now <= self.upto {
            return;
        }
        let gap = now.since(self.upto) >= GAP;
        self.open.gap |= gap;
        // after a long silence only what the ring holds is worth writing
        let oldest = now.as_secs().saturating_sub(KEEP_SECONDS as u64 + 1);
        if self.index < oldest {
            self.seconds.clear();
            self.open = Second { gap, ..Second::default() };
            self.index = oldest;
            self.upto = MonoTime::from_secs(oldest);
        }
        while self.index < now.as_secs() {
            let end = MonoTime::from_nanos((self.index + 1).saturating_mul(SECOND));
            self.integrate(end, waiting, flight, tunnels);
            let next = Second { gap, ..Second::default() };
            self.seconds.push_back(std::mem::replace(&mut self.open, next));
            if self.seconds.len() > KEEP_SECONDS {
                self.seconds.pop_front();
            }
            self.index += 1;
        }
        self.integrate(now, waiting, flight, tunnels);
        // the second in which the process came back is watched from here on
        self.open.gap = false;
    }

    /// A request's flight ended; call after [`History::advance`].
    pub fn finished(&mut self) {
        self.open.finished = self.open.finished.saturating_add(1);
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

    /// Index of the second after the last closed one.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.index
    }

    /// The last `n` closed seconds, oldest first, each with its index since the beginning.
    pub fn last(&self, n: usize) -> impl Iterator<Item = (u64, Second)> + '_ {
        let len = self.seconds.len();
        let skip = len.saturating_sub(n);
        let first = self.index.saturating_sub((len - skip) as u64);
        (first..).zip(self.seconds.iter().skip(skip).copied())
    }

    fn integrate(&mut self, to: MonoTime, waiting: u32, flight: u32, tunnels: u32) {
        let dt = to.since(self.upto).as_secs_f64();
        let demand = waiting.saturating_add(flight).saturating_add(tunnels);
        self.open.waiting_mean += f64::from(waiting) * dt;
        self.open.demand_mean += f64::from(demand) * dt;
        self.open.flight_mean += f64::from(flight) * dt;
        self.open.flight_peak = self.open.flight_peak.max(flight);
        self.open.demand_peak = self.open.demand_peak.max(demand);
        self.upto = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_in_which_the_process_stood_still_are_gaps() {
        let mut h = History::new(MonoTime::ZERO, 0);
        h.advance(MonoTime::from_secs(2), 0, 1, 0);
        // stopped for a minute, then back at its ticks
        h.advance(MonoTime::from_secs(62), 0, 1, 0);
        h.advance(MonoTime::from_secs(63), 0, 1, 0);
        h.advance(MonoTime::from_secs(64), 0, 1, 0);
        let gaps: Vec<_> = h.last(100).filter(|(_, s)| s.gap).map(|(i, _)| i).collect();
        assert_eq!(gaps, (2..62).collect::<Vec<_>>());
    }

    #[test]
    fn demand_is_averaged_over_time_and_arrivals_are_counted_where_they_fell() {
        let mut h = History::new(MonoTime::ZERO, 300);
        let t = MonoTime::ZERO + Duration::from_millis(500);
        h.advance(t, 0, 0, 0);
        h.arrived(t);
        h.advance(MonoTime::from_secs(2), 4, 4, 2);
        let seconds: Vec<_> = h.last(10).collect();
        assert_eq!(seconds.len(), 2);
        let first = Second {
            arrivals: 1,
            demand_mean: 5.0,
            demand_peak: 10,
            waiting_mean: 2.0,
            flight_mean: 2.0,
            flight_peak: 4,
            ..Second::default()
        };
        assert_eq!(seconds[0], (0, first));
        assert_eq!(seconds[1].1.demand_mean, 10.0);
    }

    #[test]
    fn memory_is_bounded_through_silence_and_storm() {
        let mut h = History::new(MonoTime::ZERO, 300);
        for n in 0..10_000 {
            h.advance(MonoTime::from_secs(n / 10), 0, 1, 0);
            h.arrived(MonoTime::from_secs(n / 10));
        }
        h.advance(MonoTime::from_secs(10_000_000), 0, 1, 0);
        assert_eq!(h.last(usize::MAX).count(), KEEP_SECONDS);
        assert_eq!(h.arrivals().len(), 300);
        assert_eq!(h.last(1).next().map(|(i, _)| i), Some(9_999_999));
    }
}
