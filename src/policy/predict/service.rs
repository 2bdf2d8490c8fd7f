//! How long a request keeps the upstream busy: the W of Little's law.
//!
//! ```text
//! W = Σ time in flight / max(Σ flights ended, flights open)          sums decayed, time constant 300 s
//! ```
//! Time in flight counts from admission, so our own queue is not in it, and it counts as it passes, so
//! requests that are still open count too: a mean over finished ones alone would call a stalled upstream
//! quick. While fewer have ended than are open, it is the mean age of those: a dozen that have just begun do
//! not make one very long request. (It is the maximum-likelihood mean under censoring, for exponential times.) Cancelled requests
//! count: they held their permit as well.

use std::collections::VecDeque;

use crate::policy::predict::Pace;

/// Decayed sums of time in flight and of flights ended, and the means of single minutes.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceTime {
    busy: f64,
    ended: f64,
    /// Flights open in the last second.
    open: f64,
    /// Time in flight, flights ended and seconds of the minute that is running.
    minute: (f64, f64, u32),
    /// Means of the last minutes in which enough ended.
    minutes: VecDeque<f64>,
    /// Which the last of them was, its mean of flights open and the flights ended in it.
    last: (u64, f64, f64),
}

const TAU: f64 = 300.0;
/// Flights that must end in a minute before its mean says something.
const ENOUGH: f64 = 20.0;
/// Minutes remembered.
const MINUTES: usize = 60;
/// The share of them that is quicker than what counts as unhindered.
const QUICK: f64 = 0.25;

impl ServiceTime {
    /// One second in which `flight` requests were in flight on average and `ended` ended.
    pub(super) fn second(&mut self, flight: f64, ended: u32) {
        let keep = (-1.0 / TAU).exp();
        self.busy = self.busy * keep + flight;
        self.open = flight;
        self.ended = self.ended * keep + f64::from(ended);
        let m = &mut self.minute;
        *m = (m.0 + flight, m.1 + f64::from(ended), m.2 + 1);
        if m.2 == 60 {
            let (busy, ended, _) = std::mem::take(m);
            if ended >= ENOUGH {
                self.minutes.push_back(busy / ended);
                self.last = (self.last.0 + 1, busy / 60.0, ended);
                if self.minutes.len() > MINUTES {
                    self.minutes.pop_front();
                }
            }
        }
    }

    /// What the mean is while the upstream is not hindered by load: the quicker quarter of the last minutes.
    /// `None` before there are four.
    pub(super) fn unhindered(&self) -> Option<f64> {
        let mut means: Vec<f64> = self.minutes.iter().copied().collect();
        means.sort_by(f64::total_cmp);
        (means.len() >= 4).then(|| means.get((means.len() as f64 * QUICK) as usize).copied()).flatten()
    }

    /// How many times longer a request took than unhindered, at least 1, in the last minute in which enough ended.
    pub(super) fn slowdown(&self) -> Option<Pace> {
        let mean = self.minutes.back()?;
        let slowdown = (mean / self.unhindered()?.max(1e-9)).max(1.0);
        let (minute, in_flight, ended) = self.last;
        Some(Pace { minute, in_flight, ended, slowdown })
    }

    /// Mean seconds in flight per request; 0 before the first.
    pub(super) fn mean(&self) -> f64 {
        self.busy / self.ended.max(self.open).max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_little_s_law_and_open_requests_count() {
        let mut w = ServiceTime::default();
        // 2 a second, 4 s each
        (0..600).for_each(|_| w.second(8.0, 2));
        assert!((w.mean() - 4.0).abs() < 0.01, "{}", w.mean());
        // the upstream stalls: nothing ends, and every second in flight shows
        (0..30).for_each(|s| w.second(8.0 + 2.0 * f64::from(s), 0));
        assert!(w.mean() > 6.0, "{}", w.mean());
        assert_eq!(ServiceTime::default().mean(), 0.0);
    }

    #[test]
    fn a_slowdown_is_seen_against_the_quicker_minutes() {
        let mut w = ServiceTime::default();
        (0..600).for_each(|_| w.second(8.0, 2));
        let pace = |minute, in_flight, slowdown| Some(Pace { minute, in_flight, ended: 120.0, slowdown });
        assert_eq!((w.unhindered(), w.slowdown()), (Some(4.0), pace(10, 8.0, 1.0)));
        (0..60).for_each(|_| w.second(24.0, 2));
        assert_eq!((w.unhindered(), w.slowdown()), (Some(4.0), pace(11, 24.0, 3.0)));
        assert_eq!(ServiceTime::default().slowdown(), None);
    }

    #[test]
    fn the_first_long_request_already_counts() {
        let mut w = ServiceTime::default();
        (0..20).for_each(|_| w.second(1.0, 0));
        assert!((19.0..=20.0).contains(&w.mean()), "{}", w.mean());
        let mut w = ServiceTime::default();
        (0..20).for_each(|_| w.second(12.0, 0));
        assert!((19.0..=20.0).contains(&w.mean()), "a dozen that began together: {}", w.mean());
    }
}
