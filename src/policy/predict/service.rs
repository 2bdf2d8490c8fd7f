//! How long a request keeps the upstream busy: the W of Little's law.
//!
//! ```text
//! W = Σ time in flight / Σ flights ended          both decayed, time constant 300 s
//! ```
//! Time in flight counts from admission, so our own queue is not in it, and it counts as it passes, so
//! requests that are still open count too: a mean over finished ones alone would call a stalled upstream
//! quick. (It is the maximum-likelihood mean under censoring, for exponential times.) Cancelled requests
//! count: they held their permit as well.

/// Decayed sums of time in flight and of flights ended.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceTime {
    busy: f64,
    ended: f64,
}

const TAU: f64 = 300.0;

impl ServiceTime {
    /// One second in which `flight` requests were in flight on average and `ended` ended.
    pub(super) fn second(&mut self, flight: f64, ended: u32) {
        let keep = (-1.0 / TAU).exp();
        self.busy = self.busy * keep + flight;
        self.ended = self.ended * keep + f64::from(ended);
    }

    /// Mean seconds in flight per request; 0 before the first.
    pub(super) fn mean(&self) -> f64 {
        self.busy / self.ended.max(1.0)
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
    fn the_first_long_request_already_counts() {
        let mut w = ServiceTime::default();
        (0..20).for_each(|_| w.second(1.0, 0));
        assert!((19.0..=20.0).contains(&w.mean()), "{}", w.mean());
    }
}
