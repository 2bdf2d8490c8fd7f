//! How long a wait will be: the two estimates that let a hopeless one end before it begins.
//!
//! Both would rather say nothing than refuse a request that could have been served.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::policy::units::{ModelId, MonoTime, Tokens};

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

/// How soon streams' heads came of late, from their admission.
///
/// A long prompt's takes longer and models differ, so they are kept by model and size of the prompt: the last 64 of each,
/// at most 20 s old. While nobody else waits for a permit the least of them counts: what even that cannot reach, a request
/// would almost surely miss. Where others wait nine in ten have to be quicker: who may well miss its deadline would take
/// the place of one that has more time. It forgets, because a request that is refused can never correct it. Only streams
/// are told of: the head of a whole answer comes when the answer is finished, which says more of its length than of the
/// upstream.
#[derive(Clone, Debug, Default)]
pub struct HeadTime {
    models: BTreeMap<ModelId, [VecDeque<(MonoTime, Duration)>; SIZES]>,
}

/// Prompts of up to 256 tokens, up to twice as many, and so on.
const SIZES: usize = 10;
const KEPT: usize = 64;
/// Of more models than that at once nothing is known.
const MODELS: usize = 32;
const HEAD_SAMPLES: usize = 10;
const HEAD_FRESH: Duration = Duration::from_secs(20);

fn size(prompt: Tokens) -> usize {
    (prompt.0 / 256).checked_ilog2().map_or(0, |n| (n as usize + 1).min(SIZES - 1))
}

/// How many are fresh, and those.
fn fresh(now: MonoTime, of_size: &VecDeque<(MonoTime, Duration)>) -> (usize, [Duration; KEPT]) {
    let mut took = [Duration::MAX; KEPT];
    let seen = of_size.iter().rev().take_while(|(at, _)| now.since(*at) <= HEAD_FRESH);
    let n = took.iter_mut().zip(seen).map(|(place, (_, took))| *place = *took).count();
    (n, took)
}

impl HeadTime {
    /// A stream's head came `took` after its admission, or had not come by then.
    pub fn observe(&mut self, now: MonoTime, model: ModelId, prompt: Tokens, took: Duration) {
        if self.models.len() >= MODELS && !self.models.contains_key(&model) {
            let is_fresh = |(at, _): &(MonoTime, Duration)| now.since(*at) <= HEAD_FRESH;
            self.models.retain(|_, sizes| sizes.iter().filter_map(VecDeque::back).any(is_fresh));
            if self.models.len() >= MODELS {
                return;
            }
        }
        if let Some(of_size) = self.models.entry(model).or_default().get_mut(size(prompt)) {
            if of_size.len() == KEPT {
                of_size.pop_front();
            }
            of_size.push_back((now, took));
        }
    }

    /// The estimate; zero while there is too little to base one on. `others`: somebody else would have its place.
    #[must_use]
    pub fn estimate(&self, now: MonoTime, model: ModelId, prompt: Tokens, others: bool) -> Duration {
        let Some(sizes) = self.models.get(&model) else { return Duration::ZERO };
        let own = size(prompt);
        if let Some((n, mut took)) = sizes.get(own).map(|of_size| fresh(now, of_size))
            && n >= HEAD_SAMPLES
        {
            let rank = if others { n * 9 / 10 } else { 0 };
            return *took.select_nth_unstable(rank).1;
        }
        // no prompt is quicker than the quickest of shorter ones; longer ones say nothing
        let shorter = sizes.iter().take(own + 1).map(|of_size| fresh(now, of_size));
        let (n, least) = shorter.fold((0, Duration::MAX), |(all, least), (n, took)| {
            (all + n, took.into_iter().fold(least, Duration::min))
        });
        if n >= HEAD_SAMPLES { least } else { Duration::ZERO }
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

    const M: ModelId = ModelId(7);

    #[test]
    fn the_head_time_is_the_quickest_of_late_and_is_forgotten() {
        let (mut h, ms) = (HeadTime::default(), Duration::from_millis);
        let at = MonoTime::from_secs;
        (0..9).for_each(|n| h.observe(at(n), M, Tokens(100), ms(1000 - n)));
        assert_eq!(h.estimate(at(9), M, Tokens(100), true), Duration::ZERO, "nine samples are too few");
        h.observe(at(9), M, Tokens(100), ms(2000));
        assert_eq!(h.estimate(at(9), M, Tokens(100), false), ms(992));
        assert_eq!(h.estimate(at(9), M, Tokens(100), true), ms(2000), "nine in ten were quicker");
        assert_eq!(
            h.estimate(at(9), M, Tokens(5000), true),
            ms(992),
            "no prompt is quicker than the quickest"
        );
        assert_eq!(
            h.estimate(at(9), ModelId(8), Tokens(100), true),
            Duration::ZERO,
            "another model is another"
        );
        (10..40).for_each(|n| h.observe(at(n), M, Tokens(100), ms(3000)));
        assert_eq!(h.estimate(at(40), M, Tokens(100), false), ms(3000), "the quick ones are too long ago");
        assert_eq!(h.estimate(at(61), M, Tokens(100), false), Duration::ZERO);
    }

    #[test]
    fn prompts_are_judged_by_those_of_their_size() {
        let (mut h, now) = (HeadTime::default(), MonoTime::from_secs(1));
        for n in 0..20_u64 {
            h.observe(now, M, Tokens(17_000 + 100 * n), Duration::from_millis(4000 + n));
        }
        assert_eq!(
            h.estimate(now, M, Tokens(200), true),
            Duration::ZERO,
            "long ones say nothing of a short one"
        );
        for n in 0..20_u64 {
            h.observe(now, M, Tokens(100 + n), Duration::from_millis(50));
        }
        assert_eq!(h.estimate(now, M, Tokens(200), true), Duration::from_millis(50));
        assert_eq!(h.estimate(now, M, Tokens(17_000), false), Duration::from_millis(4000));
        assert_eq!(h.estimate(now, M, Tokens(17_000), true), Duration::from_millis(4018));
        assert_eq!(h.estimate(now, M, Tokens(u64::MAX), true), Duration::from_millis(50));
        // of too many at once the first are known
        (0..1000).for_each(|m| h.observe(now, ModelId(m), Tokens(1), Duration::from_millis(1)));
        assert_eq!(h.models.len(), MODELS);
        h.observe(now + Duration::from_secs(60), ModelId(2000), Tokens(1), Duration::from_millis(1));
        assert_eq!(h.models.len(), 1);
    }
}
