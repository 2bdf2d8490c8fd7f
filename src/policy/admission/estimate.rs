//! How long a wait will be: the two estimates that let a hopeless one end before it begins.
//!
//! Both would rather say nothing than refuse a request that could have been served.

use std::time::Duration;

use crate::policy::units::MonoTime;

/// Requests the queue hands out per second while it is not empty.
///
/// Ratio of two exponentially decayed sums (time constant 30 s): permits that came free, and time
/// during which something waited for one. Time without a queue says nothing about its pace.
#[derive(Clone, Debug, Default)]
pub struct DrainRate {
    freed: f64,
    busy: f64,
    last: MonoTime,
}

const DRAIN_TAU: f64 = 30.0;
/// Decayed count of freed permits below which the ratio is noise.
const DRAIN_SAMPLES: f64 = 3.0;

impl DrainRate {
    /// Time passes up to `now`; `busy` says whether something waited meanwhile.
    pub fn advance(&mut self, now: MonoTime, busy: bool) {
        let dt = now.since(self.last).as_secs_f64();
        self.last = self.last.max(now);
        if dt == 0.0 || !busy {
            return;
        }
        let keep = (-dt / DRAIN_TAU).exp();
        self.freed *= keep;
        // the integral of the decay over the step itself, so that few long steps equal many short ones
        self.busy = self.busy * keep + DRAIN_TAU * (1.0 - keep);
    }

    /// A permit came free while something waited.
    pub fn freed(&mut self) {
        self.freed += 1.0;
    }

    /// Requests per second, if enough was seen to say.
    #[must_use]
    pub fn per_second(&self) -> Option<f64> {
        (self.freed >= DRAIN_SAMPLES && self.busy > 0.0).then(|| self.freed / self.busy)
    }

    /// How long until `ahead` requests and then one's own have been handed out.
    #[must_use]
    pub fn wait(&self, ahead: usize) -> Option<Duration> {
        let secs = (ahead as f64 + 1.0) / self.per_second()?;
        Some(Duration::from_secs_f64(secs.min(86_400.0)))
    }

    /// The least that the wait can be, as far as anyone can tell: what is refused on it is hopeless.
    ///
    /// Requests that were admitted together end together, so the first few permits that come free say
    /// little of the pace. The `in_flight` others count as if theirs came free now; after some turnovers that
    /// makes no difference.
    #[must_use]
    pub fn least_wait(&self, ahead: usize, in_flight: u32) -> Option<Duration> {
        self.per_second()?;
        let secs = (ahead as f64 + 1.0) * self.busy / (self.freed + f64::from(in_flight));
        Some(Duration::from_secs_f64(secs.min(86_400.0)))
    }
}

/// A low estimate of the time from admission to the response's head.
///
/// It follows fast answers quickly and slow ones slowly, which settles near the 10th percentile: what
/// even this cannot reach, a request would almost surely miss. Without a fresh sample it falls silent,
/// so that a bad minute cannot keep refusing requests whose success would have corrected it.
#[derive(Clone, Debug, Default)]
pub struct HeadTime {
    nanos: f64,
    samples: u32,
    last: MonoTime,
}

const HEAD_DOWN: f64 = 0.3;
const HEAD_UP: f64 = 0.03;
const HEAD_SAMPLES: u32 = 10;
const HEAD_FRESH: Duration = Duration::from_secs(10);

impl HeadTime {
    /// A head came `took` after its admission.
    pub fn observe(&mut self, now: MonoTime, took: Duration) {
        let x = took.as_nanos() as f64;
        if self.samples == 0 {
            self.nanos = x;
        } else {
            let gain = if x < self.nanos { HEAD_DOWN } else { HEAD_UP };
            self.nanos += gain * (x - self.nanos);
        }
        self.samples = self.samples.saturating_add(1);
        self.last = now;
    }

    /// The estimate; zero while there is nothing to base one on.
    #[must_use]
    pub fn estimate(&self, now: MonoTime) -> Duration {
        if self.samples < HEAD_SAMPLES || now.since(self.last) > HEAD_FRESH {
            return Duration::ZERO;
        }
        Duration::from_nanos(self.nanos as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drain_rate_is_what_was_freed_per_busy_second() {
        let mut d = DrainRate::default();
        assert_eq!(d.wait(10), None);
        for s in 1..=120_u64 {
            d.advance(MonoTime::from_secs(s), true);
            d.freed();
            d.freed();
        }
        let rate = d.per_second().unwrap();
        assert!((rate - 2.0).abs() < 0.1, "{rate}");
        // an hour without a queue changes nothing
        d.advance(MonoTime::from_secs(3720), false);
        assert_eq!(d.per_second(), Some(rate));
        let wait = d.wait(19).unwrap().as_secs_f64();
        assert!((wait - 10.0).abs() < 0.5, "{wait}");
    }

    #[test]
    fn the_first_of_a_wave_do_not_speak_for_the_rest() {
        let mut d = DrainRate::default();
        // 20 admitted together; the first three of them end after 1.1 s
        d.advance(MonoTime::from_nanos(1_100_000_000), true);
        (0..3).for_each(|_| d.freed());
        assert!(d.wait(30).unwrap() > Duration::from_secs(10), "2.7 a second, it seems");
        let least = d.least_wait(30, 17).unwrap();
        assert!(least < Duration::from_secs(2), "20 in 1.1 s, if the others follow: {least:?}");
        // and in the long run both say the same
        for s in 2..=120 {
            d.advance(MonoTime::from_secs(s), true);
            (0..17).for_each(|_| d.freed());
        }
        let (least, wait) = (d.least_wait(99, 20).unwrap(), d.wait(99).unwrap());
        assert!(least <= wait && least > wait.mul_f64(0.95), "{least:?} {wait:?}");
    }

    #[test]
    fn the_head_time_leans_low_and_forgets() {
        let mut h = HeadTime::default();
        for n in 0..1000_u64 {
            let took = Duration::from_millis(if n % 10 == 0 { 100 } else { 1000 });
            h.observe(MonoTime::from_secs(n / 100), took);
        }
        let e = h.estimate(MonoTime::from_secs(10));
        assert!(e < Duration::from_millis(700) && e > Duration::from_millis(50), "{e:?}");
        assert_eq!(h.estimate(MonoTime::from_secs(30)), Duration::ZERO);
    }
}
