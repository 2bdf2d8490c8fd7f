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
use crate::policy::units::MonoTime;

/// The windows limits are sold for, in seconds, the usual one first.
const WINDOWS: [f64; 3] = [60.0, 3600.0, 86_400.0];
/// A reset may be this much later than its window is long, for clocks and rounding.
const SLACK: f64 = 1.1;
/// Where nobody knows how much may go at once: what this many seconds refill.
const BURST: f64 = 1.0;
/// The estimate of the leak forgets what is older, in seconds.
const LEAK: f64 = 10.0;
/// The leak is forgotten within this many seconds where nothing is said any more.
const FORGET: f64 = 600.0;
/// Buffers where none is configured: by the operator's number alone, and with headers to go by.
const BLIND: f64 = 0.85;
const SEEN: f64 = 0.98;
/// The same where headers have proved right.
const PROVED: f64 = 1.05;
/// With less doubt than that, headers are trusted with the whole limit. An answer moves doubt by a step, a refusal by its
/// own; what remains is foreseen if it is off by no more than so many usual charges.
const SURE: f64 = 0.1;
const STEP: f64 = 1.0 / 8.0;
const REFUSED: f64 = 0.2;
const AGREES: f64 = 1.5;
/// The reserve's largest share of the bucket.
const RESERVE: f64 = 0.4;

/// What the estimate was when a request left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// Level after its charge and corrections so far; `None`: nothing was known.
    known: Option<(f64, f64)>,
    spent: f64,
    unsure: f64,
}

#[derive(Clone, Debug)]
struct Learned {
    limit: f64,
    window: f64,
    own: Bucket,
    estimate: Bucket,
    leak: f64,
    corrected: f64,
    /// What was last said to remain, and how little such words have proved worth, 0 to 1.
    said: f64,
    doubt: f64,
    /// A window that is used up ends then.
    hold: MonoTime,
}

impl Learned {
    /// The share of the limit at which `own` refills where the operator names none.
    fn share(&self) -> f64 {
        if self.doubt < SURE { PROVED } else { SEEN }
    }

    /// What remains was foreseen, or was not; a request was taken, or refused.
    fn judge(&mut self, taken: bool, foreseen: bool, remaining: f64) {
        match (taken, foreseen) {
            (false, _) => self.doubt += REFUSED * (1.0 - self.doubt),
            (true, false) => self.doubt += STEP * (1.0 - self.doubt),
            // a figure that stands still may be one that nobody keeps
            (true, true) if remaining != self.said => self.doubt -= STEP * self.doubt,
            (true, true) => {}
        }
        self.said = remaining;
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
    said: MonoTime,
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

    /// When `amount` may go.
    pub(super) fn due(&self, now: MonoTime, amount: f64) -> MonoTime {
        let configured = self.configured.as_ref().map_or(now, |(_, b)| b.due(now, amount, 0.0));
        let learned = self.learned.as_ref().map_or(now, |l| {
            let back = self.errors.excess().clamp(-l.own.capacity(), l.own.capacity());
            // what is larger than the bucket does not wait for what settling will bring back either
            let own = l.own.due(now, amount.min(l.own.capacity()), -back);
            own.max(l.estimate.due(now, amount, self.reserve(amount))).max(l.hold)
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
        self.spent += amount;
        self.usual += 0.02 * (amount.min(1e9) - self.usual);
        self.each(|b| b.add(now, -amount));
        let known = self.learned.as_ref().map(|l| (l.estimate.level(now), l.corrected));
        Mark { known, spent: self.spent, unsure: self.errors.charged(amount) }
    }

    /// The charge was for nothing. `sent`: the upstream refused it, and what knocks is counted there, too.
    pub(super) fn give_back(&mut self, now: MonoTime, amount: f64, sent: bool) {
        self.spent -= amount;
        let keep = if sent { self.grain } else { 0.0 };
        if let Some((_, bucket)) = &mut self.configured {
            bucket.add(now, amount - keep);
        }
        if let Some(l) = &mut self.learned {
            l.own.add(now, amount - keep);
            l.estimate.add(now, amount);
            l.corrected += amount;
        }
    }

    /// The truth of a charge. `told`: the upstream's own figure has corrected the estimate already.
    pub(super) fn settle(&mut self, now: MonoTime, charged: f64, used: f64, told: bool) {
        self.errors.settled(charged, used);
        let difference = charged - used;
        if let Some((_, bucket)) = &mut self.configured {
            bucket.add(now, difference);
        }
        if let Some(l) = &mut self.learned {
            l.own.add(now, difference);
            if !told {
                l.estimate.add(now, difference);
                l.corrected += difference;
            }
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
        self.size(now, reading);
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
            && l.window == WINDOWS[0]
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
            let rate = l.limit / l.window;
            l.leak = (l.leak - e / LEAK).clamp(0.0, 0.95 * rate);
            l.estimate.set_rate(now, rate - l.leak);
        }
        if self.buffer.is_none() {
            let share = l.share();
            l.own.set_rate(now, l.limit / l.window * share);
            if let Some((limit, bucket)) = &mut self.configured {
                bucket.set_rate(now, *limit / 60.0 * share.min(1.0));
            }
        }
        // used up, and the reset is not the moment at which a steady refill would be through: nothing before it
        if remaining < 1.0
            && let Some(reset) = reading.reset
        {
            let full = |size: f64| (size + debt - remaining) / l.limit * l.window;
            let said = reset.since(now).as_secs_f64();
            let steady = |size: f64| (0.8..=1.25).contains(&(said / full(size)));
            if !steady(l.limit) && !steady(l.estimate.capacity()) {
                l.hold = reset;
            }
        } else {
            l.hold = MonoTime::ZERO;
        }
    }

    /// Takes over the limit and the length of its window.
    fn size(&mut self, now: MonoTime, reading: &Reading) {
        let Some(limit) = usable(reading.limit) else { return };
        let said = reading.reset.map_or(0.0, |r| r.since(now).as_secs_f64());
        let window = WINDOWS.into_iter().find(|w| said <= w * SLACK).unwrap_or(WINDOWS[2]);
        let buffer = self.buffer;
        let Some(l) = &mut self.learned else {
            let rate = limit / window;
            let size = (rate * BURST).max(1.0).min(limit);
            self.learned = Some(Learned {
                limit,
                window,
                own: Bucket::new(rate * buffer.unwrap_or(SEEN), size, now),
                estimate: Bucket::new(rate, size, now),
                leak: 0.0,
                corrected: 0.0,
                said: -1.0,
                doubt: 0.5,
                hold: MonoTime::ZERO,
            });
            // the operator's number was a guess at this one; from here on the buffer is the smaller of the two
            if self.buffer.is_none()
                && let Some((limit, bucket)) = &mut self.configured
            {
                bucket.set_rate(now, *limit / 60.0 * SEEN);
            }
            return;
        };
        if limit != l.limit || window > l.window {
            l.limit = limit;
            l.window = window.max(l.window);
            let rate = limit / l.window;
            l.leak = l.leak.min(0.95 * rate);
            l.own.set_rate(now, rate * buffer.unwrap_or(l.share()));
            l.estimate.set_rate(now, rate - l.leak);
            let size = l.own.capacity().min(limit);
            l.own.set_capacity(now, size);
            l.estimate.set_capacity(now, size);
        }
    }

    /// When a window that was used up ends; in the past where there is none.
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
                limit: Some(l.limit * 60.0 / l.window),
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
