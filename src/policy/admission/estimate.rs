//! How long a wait will be: the two estimates that let a hopeless one end before it begins.
//!
//! Both would rather say nothing than refuse a request that could have been served.

use std::time::Duration;

use crate::policy::units::MonoTime;

/// Requests the queue hands out per second while it is not empty.
///
/// Ratio of two exponentially decayed sums (time constant 30 s): permits that came free, and time
/// during which something waited for one. Time without a queue says nothing about its pace, and a pace seen
/// too long ago is forgotten: were it kept, it could refuse the very requests whose queue would correct it.
#[derive(Clone, Debug, Default)]
pub struct DrainRate {
    freed: f64,
    busy: f64,
    last: MonoTime,
    /// When something last waited.
    seen: MonoTime,
}

const DRAIN_TAU: f64 = 30.0;
const DRAIN_FRESH: Duration = Duration::from_secs(30);
/// Decayed count of freed permits below which the ratio is noise.
const DRAIN_SAMPLES: f64 = 3.0;

impl DrainRate {
    /// Time passes up to `now`; `busy` says whether something waited meanwhile.
    pub fn advance(&mut self, now: MonoTime, busy: bool) {
        let since = self.last;
        let dt = now.since(since).as_secs_f64();
        self.last = since.max(now);
        if dt == 0.0 || !busy {
            return;
        }
        if since.since(self.seen) > DRAIN_FRESH {
            (self.freed, self.busy) = (0.0, 0.0);
        }
        self.seen = self.last;
        let keep = (-dt / DRAIN_TAU).exp();
        self.freed *= keep;
        // the integral of the decay over the step itself, so that few long steps equal many short ones
        self.busy = self.busy * keep + DRAIN_TAU * (1.0 - keep);
    }

    /// A permit came free while something waited.
    pub fn freed(&mut self) {
        self.freed += 1.0;
    }

    /// Requests per second, if enough was seen of late to say.
    #[must_use]
    pub fn per_second(&self, now: MonoTime) -> Option<f64> {
        let fresh = now.since(self.seen) <= DRAIN_FRESH;
        (fresh && self.freed >= DRAIN_SAMPLES && self.busy > 0.0).then(|| self.freed / self.busy)
    }

    /// How long until `ahead` requests and then one's own have been handed out.
    #[must_use]
    pub fn wait(&self, now: MonoTime, ahead: usize) -> Option<Duration> {
        let secs = (ahead as f64 + 1.0) / self.per_second(now)?;
        Some(Duration::from_secs_f64(secs.min(86_400.0)))
    }

    /// The least that the wait can be, as far as anyone can tell: what is refused on it is hopeless.
    ///
    /// Requests that were admitted together end together, so the first few permits that come free say
    /// little of the pace. The `in_flight` others count as if theirs came free now; after some turnovers that
    /// makes no difference.
    #[must_use]
    pub fn least_wait(&self, now: MonoTime, ahead: usize, in_flight: u32) -> Option<Duration> {
        self.per_second(now)?;
        let secs = (ahead as f64 + 1.0) * self.busy / (self.freed + f64::from(in_flight));
        Some(Duration::from_secs_f64(secs.min(86_400.0)))
    }
}

/// The quickest that a stream's head came of late, from its admission.
///
/// What even this cannot reach, a request would almost surely miss. It is a minimum, over the last 10 to
/// 20 s and at least ten samples, because the spread of prompts makes any mean refuse requests that would
/// have been served; and it forgets, because a request that is refused can never correct it. Only streams
/// are told of: the head of a whole answer comes when the answer is finished, which says more of its length
/// than of the upstream.
#[derive(Clone, Debug, Default)]
pub struct HeadTime {
    current: Quickest,
    before: Quickest,
    since: MonoTime,
}

#[derive(Clone, Copy, Debug, Default)]
struct Quickest {
    took: Duration,
    samples: u32,
}

const HEAD_SAMPLES: u32 = 10;
const HEAD_WINDOW: Duration = Duration::from_secs(10);

impl HeadTime {
    /// A stream's head came `took` after its admission.
    pub fn observe(&mut self, now: MonoTime, took: Duration) {
        let age = now.since(self.since);
        if age >= HEAD_WINDOW {
            self.before = if age < 2 * HEAD_WINDOW { self.current } else { Quickest::default() };
            self.current = Quickest::default();
            self.since = now;
        }
        let c = &mut self.current;
        c.took = if c.samples == 0 { took } else { c.took.min(took) };
        c.samples = c.samples.saturating_add(1);
    }

    /// The estimate; zero while there is too little to base one on.
    #[must_use]
    pub fn estimate(&self, now: MonoTime) -> Duration {
        let age = now.since(self.since);
        let windows = [(self.current, age < 2 * HEAD_WINDOW), (self.before, age < HEAD_WINDOW)];
        let fresh = || windows.iter().filter(|(w, fresh)| *fresh && w.samples > 0).map(|(w, _)| w);
        if fresh().map(|w| w.samples).sum::<u32>() < HEAD_SAMPLES {
            return Duration::ZERO;
        }
        fresh().map(|w| w.took).min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drain_rate_is_what_was_freed_per_busy_second() {
        let mut d = DrainRate::default();
        let now = MonoTime::from_secs(120);
        assert_eq!(d.wait(now, 10), None);
        for s in 1..=120_u64 {
            d.advance(MonoTime::from_secs(s), true);
            d.freed();
            d.freed();
        }
        let rate = d.per_second(now).unwrap();
        assert!((rate - 2.0).abs() < 0.1, "{rate}");
        // half a minute without a queue changes nothing, an hour makes it silent
        let later = MonoTime::from_secs(150);
        d.advance(later, false);
        assert_eq!(d.per_second(later), Some(rate));
        assert_eq!(d.per_second(MonoTime::from_secs(3720)), None);
        let wait = d.wait(later, 19).unwrap().as_secs_f64();
        assert!((wait - 10.0).abs() < 0.5, "{wait}");
    }

    #[test]
    fn the_first_of_a_wave_do_not_speak_for_the_rest() {
        let mut d = DrainRate::default();
        // 20 admitted together; the first three of them end after 1.1 s
        let now = MonoTime::from_nanos(1_100_000_000);
        d.advance(now, true);
        (0..3).for_each(|_| d.freed());
        assert!(d.wait(now, 30).unwrap() > Duration::from_secs(10), "2.7 a second, it seems");
        let least = d.least_wait(now, 30, 17).unwrap();
        assert!(least < Duration::from_secs(2), "20 in 1.1 s, if the others follow: {least:?}");
        // and in the long run both say the same
        for s in 2..=120 {
            d.advance(MonoTime::from_secs(s), true);
            (0..17).for_each(|_| d.freed());
        }
        let now = MonoTime::from_secs(120);
        let (least, wait) = (d.least_wait(now, 99, 20).unwrap(), d.wait(now, 99).unwrap());
        assert!(least <= wait && least > wait.mul_f64(0.95), "{least:?} {wait:?}");
    }

    #[test]
    fn the_head_time_is_the_quickest_of_late_and_is_forgotten() {
        let (mut h, ms) = (HeadTime::default(), Duration::from_millis);
        for n in 0..9 {
            h.observe(MonoTime::from_secs(n), ms(1000 - n));
        }
        assert_eq!(h.estimate(MonoTime::from_secs(9)), Duration::ZERO, "nine samples are too few");
        h.observe(MonoTime::from_secs(9), ms(2000));
        assert_eq!(h.estimate(MonoTime::from_secs(9)), ms(992));
        for n in 10..40 {
            h.observe(MonoTime::from_secs(n), ms(3000));
        }
        assert_eq!(h.estimate(MonoTime::from_secs(40)), ms(3000), "the quick ones are too long ago");
        assert_eq!(h.estimate(MonoTime::from_secs(60)), Duration::ZERO);
    }
}
