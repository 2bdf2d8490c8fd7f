//! A hosted API: it always has room, but only so many requests and tokens per minute are paid for.
//!
//! Two buckets that refill continuously. A request passes if both hold enough; a refused attempt takes `refuse` and
//! still costs `cost` of a request, which is why clients that knock again and again starve themselves. The
//! 429 says when the buckets will have refilled, unless `headers` is off.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::policy::units::MonoTime;
use crate::simulate::request::Request;
use crate::simulate::upstream::service::{FIRST, LAST, NO, Schedule, Time, seconds};
use crate::simulate::upstream::{Id, Sign, Upstream};

/// The numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// How long a request takes once it passed.
    pub time: Time,
    /// Requests per minute.
    pub rpm: f64,
    /// Requests that pass at once after a rest.
    pub burst: f64,
    /// Tokens per minute, prompt and answer; `None`: unlimited.
    pub tpm: Option<f64>,
    /// Share of both that another client takes, 0 to 1.
    pub other: f64,
    /// Requests at once beyond which it answers 429, whatever the buckets hold: a limit that no header names.
    pub hidden: Option<u32>,
    /// How long a refusal takes.
    pub refuse: Duration,
    /// What it costs, in requests.
    pub cost: f64,
    /// Refusals carry `Retry-After`.
    pub headers: bool,
}

impl Params {
    /// The reference: bursts of 20, refusals of 50 ms that cost a quarter; 20 ms a token, prefill 20,000 tokens/s.
    #[must_use]
    pub const fn reference(rpm: f64) -> Self {
        Self {
            time: Time::Tokens { token: 0.020, prefill: 20_000.0 },
            rpm,
            burst: 20.0,
            tpm: None,
            other: 0.0,
            hidden: None,
            refuse: Duration::from_millis(50),
            cost: 0.25,
            headers: true,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    size: f64,
    per_second: f64,
}

impl Bucket {
    fn new(per_minute: f64, size: f64, other: f64) -> Self {
        Self { level: size, size, per_second: per_minute / 60.0 * (1.0 - other) }
    }

    /// Seconds until `amount` would pass. What is larger than the bucket passes when that is full.
    fn lacks(&self, amount: f64) -> f64 {
        (amount.min(self.size) - self.level).max(0.0) / self.per_second.max(1e-9)
    }
}

/// The upstream.
#[derive(Debug)]
pub struct Hosted {
    params: Params,
    requests: Bucket,
    tokens: Option<Bucket>,
    at: MonoTime,
    /// Those that passed and are under way.
    running: BTreeSet<Id>,
    /// What the refusals under way will say.
    waits: Vec<Duration>,
    schedule: Schedule,
}

impl Hosted {
    /// Rested: its buckets are full.
    #[must_use]
    pub fn new(params: Params) -> Self {
        let requests = Bucket::new(params.rpm, params.burst, params.other);
        // "TPM alike": as many seconds' worth of tokens as of requests
        let tokens = params.tpm.map(|tpm| Bucket::new(tpm, tpm * params.burst / params.rpm, params.other));
        Self {
            params,
            requests,
            tokens,
            at: MonoTime::ZERO,
            running: BTreeSet::new(),
            waits: Vec::new(),
            schedule: Schedule::default(),
        }
    }

    fn refill(&mut self, now: MonoTime) {
        let dt = now.since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        for bucket in [Some(&mut self.requests), self.tokens.as_mut()].into_iter().flatten() {
            bucket.level = (bucket.level + dt * bucket.per_second).min(bucket.size);
        }
    }
}

impl Upstream for Hosted {
    fn begin(&mut self, now: MonoTime, id: Id, request: &Request) -> bool {
        self.refill(now);
        self.schedule.open(id);
        let tokens = f64::from(request.prompt) + f64::from(request.output);
        let lacks = self.requests.lacks(1.0).max(self.tokens.map_or(0.0, |b| b.lacks(tokens)));
        if lacks > 0.0 || self.params.hidden.is_some_and(|cap| self.running.len() >= cap as usize) {
            self.requests.level = (self.requests.level - self.params.cost).max(0.0);
            let at = id as usize;
            if self.waits.len() <= at {
                self.waits.resize(at + 1, Duration::ZERO);
            }
            self.waits[at] = seconds(lacks);
            self.schedule.push(now + self.params.refuse, NO, id);
            return false;
        }
        self.requests.level -= 1.0;
        if let Some(bucket) = &mut self.tokens {
            bucket.level -= tokens;
        }
        self.running.insert(id);
        // chance is of the workload, not of the upstream: tokens say it all
        let whole = self.params.time.of(0, id, request);
        if self.params.time.streams() {
            self.schedule.push(now + self.params.time.first(whole, request), FIRST, id);
        }
        self.schedule.push(now + whole, LAST, id);
        false
    }

    fn cancel(&mut self, _: MonoTime, id: Id) {
        self.schedule.close(id);
        // one that is being refused is none of them: its client frees nothing by leaving
        self.running.remove(&id);
    }

    fn next(&self) -> Option<MonoTime> {
        self.schedule.next()
    }

    fn advance(&mut self, now: MonoTime, signs: &mut Vec<Sign>) {
        while let Some((kind, id)) = self.schedule.pop(now) {
            signs.push(match kind {
                FIRST => Sign::FirstToken(id),
                LAST => {
                    self.running.remove(&id);
                    Sign::Done(id)
                }
                _ => {
                    let wait = self.waits.get(id as usize).copied().filter(|_| self.params.headers);
                    Sign::Refused { id, retry_after: wait }
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_burst_passes_then_the_rate_and_refusals_cost_budget() {
        let mut h = Hosted::new(Params::reference(600.0));
        let request = Request { at: MonoTime::ZERO, prompt: 1000, output: 1 };
        let mut signs = Vec::new();
        (0..24).for_each(|id| {
            h.begin(MonoTime::ZERO, id, &request);
        });
        h.advance(MonoTime::from_secs(1), &mut signs);
        let refused: Vec<_> = signs.iter().filter(|s| matches!(s, Sign::Refused { .. })).collect();
        assert_eq!(refused.len(), 4);
        assert_eq!(*refused[0], Sign::Refused { id: 20, retry_after: Some(Duration::from_millis(100)) });
        // a second refills ten; eight refusals would have cost two of them
        signs.clear();
        (30..42).for_each(|id| {
            h.begin(MonoTime::from_secs(1), id, &request);
        });
        h.advance(MonoTime::from_secs(2), &mut signs);
        assert_eq!(signs.iter().filter(|s| matches!(s, Sign::Done(_))).count(), 10);
    }

    #[test]
    fn tokens_bind_and_one_larger_than_the_bucket_passes_when_it_is_full() {
        let mut h = Hosted::new(Params { tpm: Some(60_000.0), ..Params::reference(600.0) });
        let large = Request { at: MonoTime::ZERO, prompt: 5000, output: 0 };
        let mut signs = Vec::new();
        h.begin(MonoTime::ZERO, 0, &large);
        h.begin(MonoTime::ZERO, 1, &large);
        h.advance(MonoTime::from_secs(1), &mut signs);
        assert!(signs.contains(&Sign::Done(0)));
        // bucket of 2,000 tokens, 5,000 taken: 5 s until it is full again
        assert!(signs.contains(&Sign::Refused { id: 1, retry_after: Some(Duration::from_secs(5)) }));
    }

    #[test]
    fn a_client_that_leaves_while_it_is_refused_frees_no_hidden_slot() {
        let mut h = Hosted::new(Params { hidden: Some(2), ..Params::reference(60_000.0) });
        let request = Request { at: MonoTime::ZERO, prompt: 1000, output: 100 };
        (0..3).for_each(|id| {
            h.begin(MonoTime::ZERO, id, &request);
        });
        // the third is being refused, and its client does not wait for it
        h.cancel(MonoTime::from_nanos(1_000_000), 2);
        let second = MonoTime::from_secs(1);
        h.begin(second, 3, &request);
        let mut signs = Vec::new();
        h.advance(second + Duration::from_millis(50), &mut signs);
        assert!(signs.contains(&Sign::Refused { id: 3, retry_after: Some(Duration::ZERO) }), "{signs:?}");
        // one that is served frees its own
        h.cancel(second + Duration::from_millis(60), 1);
        h.begin(second + Duration::from_millis(70), 4, &request);
        signs.clear();
        h.advance(second + Duration::from_millis(120), &mut signs);
        assert!(!signs.iter().any(|s| matches!(s, Sign::Refused { .. })), "{signs:?}");
    }
}
