//! One kind of limit, requests or tokens: what may be spent of it, and what the upstream says is left.
//!
//! Three buckets, each only where it is known; an amount passes when all of them let it:
//! ```text
//! configured  rate = buffer · limit / 60      what the operator allows
//! own         rate = buffer · limit / window  what the headers' limit allows; as large as `remaining` was ever seen
//! estimate    rate = limit / window − leak    what the upstream has left, by what it last said
//! ```
//! `remaining` was true when the request reached the upstream, a first token ago. So each request keeps what the
//! estimate was when it left; the difference to what its answer says corrects the estimate of now, less what was
//! corrected in between:
//! ```text
//! e = remaining − (estimate when it left) − (corrections since)
//! estimate += e       leak −= e / 10 s, within [0, 0.95 · limit / window]
//! ```
//! The leak is what others take from the same key; without it the estimate would be too high by a first token's
//! worth of it, and every moment at the limit would end in a 429. The estimate keeps a reserve, which
//! costs nothing while the rate is the limit: it only decides at which level the bucket stands.
//!
//! The buffer is 0.98 until what remains has moved, and as foreseen, a dozen times, and again for some answers after a
//! refusal; what 2 % give away is a fifth of what drains a queue at 90 % load. In between `own` refills at 1.05 of the
//! limit: the estimate bounds the rate then, and `own` catches up with what it gave away.
//!
//! `own` is never raised by headers, except when its size grows: a `remaining` that is stuck (Azure's is cached) can
//! not lift the rate above the limit, because what does not move proves nothing.
//!
//! A debt is not told of: `remaining` is 0 then, and the reset as much later as the debt takes to pay. Neither corrects
//! an estimate that is below zero already, and neither is a window that has ended.
//!
//! Called by `pacer` only.

use crate::policy::supply::pace::bucket::Bucket;
use crate::policy::supply::pace::errors::Errors;
use crate::policy::supply::pace::headers::Reading;
use crate::policy::supply::pace::learned::{BURST, Learned, SEEN};
use crate::policy::units::MonoTime;

/// The estimate of the leak forgets what is older, in seconds.
const LEAK: f64 = 10.0;
/// Where answers stop to say anything, the leak is forgotten within this many seconds, and then the limit.
const FORGET: f64 = 600.0;
/// The share of the operator's number that is used, where no buffer is configured.
const BLIND: f64 = 0.85;
/// What remains is foreseen if it is off by no more than so many usual charges.
const AGREES: f64 = 1.5;
/// The reserve's largest share of the bucket.
const RESERVE: f64 = 0.4;

/// A charge, and what the estimate was when its request left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    amount: f64,
    /// Level after its charge and corrections so far; `None`: nothing was known.
    known: Option<(f64, f64)>,
    spent: f64,
    unsure: f64,
}

impl Mark {
    /// A charge that was made after this one came back: the level that this one knows had nothing of it.
    pub(super) fn came_back(&mut self, later: f64) {
        if let Some((_, corrected)) = &mut self.known {
            *corrected += later;
        }
    }
}

/// One kind of limit.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    buffer: Option<f64>,
    configured: Option<(f64, Bucket)>,
    learned: Option<Learned>,
    /// Everything charged so far.
    spent: f64,
    /// Mean charge.
    usual: f64,
    errors: Errors,
    /// A charge's size without what it is measured in: the reserve of one request.
    grain: f64,
    /// When an answer last said what remains, and when one last named the limit.
    said: MonoTime,
    named: MonoTime,
    /// The corrections up to when the limit was last forgotten: marks of before may still come.
    corrected: f64,
}

/// What is known of one kind of limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LaneStatus {
    /// Per minute: what the headers say, else what is configured.
    pub limit: Option<f64>,
    /// What is thought to be left; below zero while a debt is paid.
    pub remaining: Option<f64>,
    /// The limit is from headers.
    pub learned: bool,
    /// What others take of it, per minute.
    pub others: f64,
}

fn usable(x: Option<f64>) -> Option<f64> {
    x.filter(|v| v.is_finite() && *v > 0.0)
}

impl Lane {
    /// `grain`: the least a request takes, 1 for requests and 0 for tokens.
    pub(super) fn new(per_minute: Option<f64>, buffer: Option<f64>, grain: f64, now: MonoTime) -> Self {
        let buffer = usable(buffer).map(|b| b.min(1.0));
        let configured = usable(per_minute).map(|limit| {
            let rate = limit / 60.0 * buffer.unwrap_or(BLIND);
            (limit, Bucket::new(rate, (rate * BURST).max(1.0), now))
        });
        Self {
            buffer,
            configured,
            learned: None,
            spent: 0.0,
            usual: grain,
            errors: Errors::default(),
            grain,
            said: now,
            named: now,
            corrected: 0.0,
        }
    }

    /// What stays in the estimate: against rounding and the others' next request, and for tokens against charges
    /// that were too low.
    fn reserve(&self, amount: f64) -> f64 {
        let size = self.learned.as_ref().map_or(0.0, |l| l.estimate.capacity());
        (self.grain + self.errors.reserve(amount)).min(RESERVE * size)
    }

    /// The upstream's own figure has this charge in it: its truth is in the estimate.
    pub(super) fn told(&mut self, mark: &mut Mark) {
        self.errors.told(&mut mark.unsure);
    }

    /// A charge is over, however it ended.
    pub(super) fn over(&mut self, mark: &mut Mark) {
        self.errors.over(&mut mark.unsure);
    }

    /// What is larger than the limit is a guess that went wrong, or will be refused: it waits for half of it, and takes
    /// that, so that it does not hold up everybody for a whole window.
    fn bounded(&self, amount: f64) -> f64 {
        self.limit().filter(|limit| amount > *limit).map_or(amount, |limit| limit / 2.0)
    }

    /// The limit, where one is known.
    pub(super) fn limit(&self) -> Option<f64> {
        self.learned.as_ref().map(|l| l.limit).or(self.configured.as_ref().map(|(limit, _)| *limit))
    }

    /// When `amount` may go.
    pub(super) fn due(&self, now: MonoTime, amount: f64) -> MonoTime {
        let amount = self.bounded(amount);
        let configured = self.configured.as_ref().map_or(now, |(_, b)| b.due(now, amount, 0.0));
        let learned = self.learned.as_ref().map_or(now, |l| {
            let back = self.errors.excess().clamp(-l.own.capacity(), l.own.capacity());
            // what is larger than the bucket does not wait for what settling will bring back either
            let own = l.own.due(now, amount.min(l.own.capacity()), -back);
            own.max(l.estimate.due(now, amount, self.reserve(amount)))
        });
        configured.max(learned).max(now)
    }

    fn each(&mut self, mut act: impl FnMut(&mut Bucket)) {
        if let Some((_, bucket)) = &mut self.configured {
            act(bucket);
        }
        if let Some(l) = &mut self.learned {
            act(&mut l.own);
            act(&mut l.estimate);
        }
    }

    pub(super) fn charge(&mut self, now: MonoTime, amount: f64) -> Mark {
        let amount = self.bounded(amount);
        self.spent += amount;
        self.usual += 0.02 * (amount.min(1e9) - self.usual);
        self.each(|b| b.add(now, -amount));
        let known = self.learned.as_ref().map(|l| (l.estimate.level(now), l.corrected));
        Mark { amount, known, spent: self.spent, unsure: self.errors.charged(amount) }
    }

    /// The charge was for nothing. `sent`: the upstream refused it, and what knocks is counted there, too. Says what of
    /// that corrects the estimate: marks made before have to be told.
    pub(super) fn give_back(&mut self, now: MonoTime, mark: &Mark, sent: bool) -> f64 {
        let amount = mark.amount;
        self.spent -= amount;
        let corrects = if self.learned.is_some() { amount } else { 0.0 };
        let keep = if sent { self.grain } else { 0.0 };
        if let Some((_, bucket)) = &mut self.configured {
            bucket.add(now, amount - keep);
        }
        if let Some(l) = &mut self.learned {
            l.own.add(now, amount - keep);
            l.estimate.add(now, amount);
            l.corrected += amount;
        }
        corrects
    }

    /// The truth of a charge. `told`: the upstream's own figure has corrected the estimate already. Says what corrects
    /// the estimate, as [`Lane::give_back`] does.
    pub(super) fn settle(&mut self, now: MonoTime, mark: &Mark, used: f64, told: bool) -> f64 {
        self.errors.settled(mark.amount, used);
        let difference = mark.amount - used;
        if let Some((_, bucket)) = &mut self.configured {
            bucket.add(now, difference);
        }
        if let Some(l) = &mut self.learned {
            l.own.add(now, difference);
            if !told {
                l.estimate.add(now, difference);
                l.corrected += difference;
                return difference;
            }
        }
        0.0
    }

    /// An answer came that says nothing of this limit.
    pub(super) fn silent(&mut self, now: MonoTime) {
        let quiet = now.since(self.said).as_secs_f64();
        if now.since(self.named).as_secs_f64() > FORGET {
            if let Some(l) = self.learned.take() {
                self.corrected = l.corrected;
            }
            if let Some((limit, bucket)) = &mut self.configured {
                bucket.set_rate(now, *limit / 60.0 * self.buffer.unwrap_or(BLIND));
            }
        } else if let Some(l) = &mut self.learned {
            l.estimate.set_rate(now, l.rate() - l.leak * (-quiet / FORGET).exp());
        }
    }

    /// The upstream refused though something was thought to be left, and does not say what is.
    pub(super) fn emptied(&mut self, now: MonoTime) {
        self.each(|b| b.add(now, -b.level(now).max(0.0)));
    }

    /// A limit is known, and this much would not pass just now, or only just.
    pub(super) fn is_empty(&self, now: MonoTime, amount: f64) -> bool {
        let lacks = |b: &Bucket| b.due(now, amount, self.grain) > now;
        self.configured.as_ref().is_some_and(|(_, b)| lacks(b))
            || self.learned.as_ref().is_some_and(|l| lacks(&l.own) || lacks(&l.estimate))
    }

    /// Headers of the answer to a request that left with `mark`. `taken`: it passed, so what remains is less its part.
    pub(super) fn seen(&mut self, now: MonoTime, mark: Mark, taken: bool, reading: &Reading) {
        if let Some(limit) = usable(reading.limit) {
            self.named = now;
            self.limited(now, limit, taken, reading);
        }
        let spent = self.spent - mark.spent;
        let grain = self.grain;
        let quiet = now.since(self.said).as_secs_f64();
        let (Some(l), Some(remaining)) = (&mut self.learned, usable_or_zero(reading.remaining)) else {
            return;
        };
        self.said = now;
        l.leak *= (-quiet / FORGET).exp();
        let largest = (remaining + if taken { grain } else { 0.0 }).min(l.limit);
        if largest > l.own.capacity() {
            let more = largest - l.own.capacity();
            l.own.set_capacity(now, largest);
            l.own.add(now, more);
        }
        if largest > l.estimate.capacity() {
            l.estimate.set_capacity(now, largest);
        }
        if let Some((limit, bucket)) = &mut self.configured
            && l.window.is_minute()
            && largest.min(*limit) > bucket.capacity()
        {
            let more = largest.min(*limit) - bucket.capacity();
            bucket.set_capacity(now, largest.min(*limit));
            bucket.add(now, more);
        }
        let debt = mark.known.map_or(0.0, |(level, since)| -(level + l.corrected - since)).max(0.0);
        let e = match mark.known {
            Some(_) if remaining < 1.0 && debt > 0.0 => 0.0,
            Some((level, corrected)) => remaining - level - (l.corrected - corrected),
            // nothing was known when it left: what left since is not in it yet
            None => remaining - spent - l.estimate.level(now),
        };
        l.estimate.add(now, e);
        l.corrected += e;
        l.judge(taken, mark.known.is_some() && e.abs() <= AGREES * self.usual, remaining);
        if mark.known.is_some() {
            l.leaks(now, l.leak - e / LEAK);
        }
        if self.buffer.is_none() {
            let share = l.share();
            l.own.set_rate(now, l.rate() * share);
            if let Some((limit, bucket)) = &mut self.configured {
                bucket.set_rate(now, *limit / 60.0 * share.min(1.0));
            }
        }
        // used up, and the reset is not the moment at which a steady refill would be through: nothing before it
        if remaining < 1.0
            && let Some(reset) = reading.reset
        {
            let full = |size: f64| (size + debt - remaining) / l.rate();
            let said = reset.since(now).as_secs_f64();
            let steady = |size: f64| (0.8..=1.25).contains(&(said / full(size)));
            if !steady(l.limit) && !steady(l.estimate.capacity()) {
                l.hold = reset;
            }
        } else {
            l.hold = MonoTime::ZERO;
        }
    }

    fn limited(&mut self, now: MonoTime, limit: f64, taken: bool, reading: &Reading) {
        if let Some(l) = &mut self.learned {
            return l.told(now, limit, self.buffer, taken, reading);
        }
        let mut learned = Learned::new(now, limit, self.buffer, reading);
        learned.corrected = self.corrected;
        self.learned = Some(learned);
        // the operator's number was a guess at this one; from here on the buffer is the smaller of the two
        if self.buffer.is_none()
            && let Some((limit, bucket)) = &mut self.configured
        {
            bucket.set_rate(now, *limit / 60.0 * SEEN);
        }
    }

    /// When a window that was used up ends, by the last answer; in the past where there is none.
    pub(super) fn hold(&self) -> MonoTime {
        self.learned.as_ref().map_or(MonoTime::ZERO, |l| l.hold)
    }

    /// How long until `amount` is there, by the limit alone, once nothing is left.
    pub(super) fn refill_seconds(&self, amount: f64) -> Option<f64> {
        let rate = match (&self.learned, &self.configured) {
            (Some(l), _) => l.estimate.rate(),
            (None, Some((_, b))) => b.rate(),
            (None, None) => return None,
        };
        Some(amount / rate)
    }

    pub(super) fn status(&self, now: MonoTime) -> LaneStatus {
        match (&self.learned, &self.configured) {
            (Some(l), _) => LaneStatus {
                limit: Some(l.rate() * 60.0),
                remaining: Some(l.estimate.level(now)),
                learned: true,
                others: l.leak * 60.0,
            },
            (None, Some((limit, b))) => {
                LaneStatus { limit: Some(*limit), remaining: Some(b.level(now)), learned: false, others: 0.0 }
            }
            (None, None) => LaneStatus::default(),
        }
    }
}

fn usable_or_zero(x: Option<f64>) -> Option<f64> {
    x.filter(|v| v.is_finite() && *v >= 0.0)
}
