//! A hosted API: it always has room, but only so many requests and tokens per minute are paid for.
//!
//! Two buckets that refill continuously. A request passes if both hold enough; a refused attempt takes `refuse` and
//! still costs `cost` of a request, which is why clients that knock again and again starve themselves. Each answer's
//! head says what was left when its request was looked at, as text, so that whoever reads it reads what a proxy
//! would; the 429 says when the buckets will have refilled; `tell` may leave out either.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::policy::units::MonoTime;
use crate::simulate::request::Request;
use crate::simulate::upstream::service::{FIRST, LAST, NO, Schedule, Time, seconds};
use crate::simulate::upstream::{Id, Sign, Told, Upstream};

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
    /// What the answers say of the limits.
    pub tell: Tell,
}

/// Which headers a hosted API sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// `x-ratelimit-limit|remaining|reset-requests|tokens` with every answer, `retry-after` and `retry-after-ms` with
    /// a 429. A hidden cap is named by none of them.
    All,
    /// Only `retry-after` with a 429.
    RetryAfter,
    /// Nothing.
    Nothing,
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
            tell: Tell::All,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    size: f64,
    /// As sold.
    sold: f64,
    /// What another client leaves of it.
    per_second: f64,
}

impl Bucket {
    fn new(per_minute: f64, size: f64, other: f64) -> Self {
        let sold = per_minute / 60.0;
        Self { level: size, size, sold, per_second: sold * (1.0 - other) }
    }

    /// Until `amount` has come, at the rate that was sold: the server does not know what another client is going to do.
    fn wait(&self, amount: f64) -> Duration {
        seconds(amount.max(0.0) / self.sold.max(1e-9))
    }

    /// Seconds until `amount` would pass. What is larger than the bucket passes when that is full.
    fn lacks(&self, amount: f64) -> f64 {
        (amount.min(self.size) - self.level).max(0.0) / self.per_second.max(1e-9)
    }
}

/// What an answer will say, when its head comes.
#[derive(Clone, Copy, Debug)]
struct Standing {
    requests: Bucket,
    tokens: Option<Bucket>,
    /// Seconds until the attempt would have passed, as far as the buckets go; `None`: it passed, or what refused it
    /// is not told.
    lacks: Option<f64>,
    /// A cap refused it that no header names.
    hidden: bool,
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
    /// What the answers under way will say, by request.
    standing: Vec<Option<Standing>>,
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
            standing: Vec::new(),
            schedule: Schedule::default(),
        }
    }

    fn lacks(&self, tokens: f64) -> f64 {
        self.requests.lacks(1.0).max(self.tokens.map_or(0.0, |b| b.lacks(tokens)))
    }

    fn crowded(&self) -> bool {
        self.params.hidden.is_some_and(|cap| self.running.len() >= cap as usize)
    }

    fn note(&mut self, id: Id, lacks: Option<f64>, hidden: bool) {
        let at = id as usize;
        if self.standing.len() <= at {
            self.standing.resize(at + 1, None);
        }
        self.standing[at] = Some(Standing { requests: self.requests, tokens: self.tokens, lacks, hidden });
    }

    fn retry_after(&self, id: Id) -> Option<Duration> {
        let standing = (*self.standing.get(id as usize)?)?;
        let tells = self.params.tell != Tell::Nothing && !standing.hidden;
        standing.lacks.filter(|_| tells).map(seconds)
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
        let tokens = tokens_of(request);
        let lacks = self.lacks(tokens);
        let hidden = self.crowded();
        if lacks > 0.0 || hidden {
            self.requests.level = (self.requests.level - self.params.cost).max(0.0);
            self.note(id, Some(lacks), hidden);
            self.schedule.push(now + self.params.refuse, NO, id);
            return false;
        }
        self.requests.level -= 1.0;
        if let Some(bucket) = &mut self.tokens {
            bucket.level -= tokens;
        }
        self.running.insert(id);
        self.note(id, None, false);
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
                _ => Sign::Refused { id, retry_after: self.retry_after(id) },
            });
        }
    }

    fn told(&self, id: Id) -> Told {
        let Some(Some(standing)) = self.standing.get(id as usize) else { return Told::new() };
        let mut told = Told::new();
        if standing.hidden || self.params.tell == Tell::Nothing {
            return told;
        }
        if self.params.tell == Tell::All {
            let kinds = [(&REQUESTS, Some(standing.requests)), (&TOKENS, standing.tokens)];
            for (names, bucket) in kinds.into_iter().filter_map(|(names, b)| Some((names, b?))) {
                told.push((names[0], format!("{:.0}", bucket.sold * 60.0)));
                told.push((names[1], format!("{:.0}", bucket.level.max(0.0).floor())));
                told.push((names[2], go_duration(bucket.wait(bucket.size - bucket.level))));
            }
        }
        if let Some(wait) = self.retry_after(id) {
            if self.params.tell == Tell::All {
                told.push(("retry-after-ms", wait.as_nanos().div_ceil(1_000_000).max(1).to_string()));
            }
            told.push(("retry-after", (wait.as_nanos().div_ceil(1_000_000_000)).max(1).to_string()));
        }
        told
    }

    fn passes(&mut self, now: MonoTime, request: &Request) -> MonoTime {
        self.refill(now);
        match self.lacks(tokens_of(request)) {
            // until one ends
            _ if self.crowded() => MonoTime::MAX,
            lacks if lacks > 0.0 => now + seconds(lacks).max(Duration::from_nanos(1)),
            _ => now,
        }
    }
}

const REQUESTS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKENS: [&str; 3] =
    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

fn tokens_of(request: &Request) -> f64 {
    f64::from(request.prompt) + f64::from(request.output)
}

/// `17ms`, `1.34s`, `6m0s`: as `OpenAI`'s reset headers have it, in whole milliseconds rounded up.
fn go_duration(d: Duration) -> String {
    let ms = d.as_nanos().div_ceil(1_000_000);
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let mut text = String::new();
    if minutes >= 60 {
        let _ = write!(text, "{}h", minutes / 60);
    }
    if minutes > 0 {
        let _ = write!(text, "{}m", minutes % 60);
    }
    let _ = if minutes == 0 && rest < 1000 {
        write!(text, "{rest}ms")
    } else {
        write!(text, "{}s", rest as f64 / 1000.0)
    };
    text
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
        assert!(signs.contains(&Sign::Refused { id: 3, retry_after: None }), "{signs:?}");
        // one that is served frees its own
        h.cancel(second + Duration::from_millis(60), 1);
        h.begin(second + Duration::from_millis(70), 4, &request);
        signs.clear();
        h.advance(second + Duration::from_millis(120), &mut signs);
        assert!(!signs.iter().any(|s| matches!(s, Sign::Refused { .. })), "{signs:?}");
    }

    #[test]
    fn the_headers_are_those_a_proxy_would_read() {
        let params = Params { tpm: Some(60_000.0), ..Params::reference(600.0) };
        let mut h = Hosted::new(params.clone());
        let request = Request { at: MonoTime::ZERO, prompt: 1500, output: 100 };
        (0..2).for_each(|id| {
            h.begin(MonoTime::ZERO, id, &request);
        });
        // of 20 requests and 2,000 tokens: the second finds 400 tokens, and 1,200 more come in 1.2 s
        let said = |told: &Told, name: &str| told.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
        let (passed, refused) = (h.told(0), h.told(1));
        assert_eq!(passed.len(), 6);
        assert_eq!(said(&passed, "x-ratelimit-limit-tokens").as_deref(), Some("60000"));
        assert_eq!(said(&passed, "x-ratelimit-remaining-requests").as_deref(), Some("19"));
        assert_eq!(said(&passed, "x-ratelimit-reset-tokens").as_deref(), Some("1.6s"));
        assert_eq!(said(&refused, "x-ratelimit-remaining-tokens").as_deref(), Some("400"));
        assert_eq!(said(&refused, "retry-after-ms").as_deref(), Some("1200"));
        assert_eq!(said(&refused, "retry-after").as_deref(), Some("2"));
        assert_eq!(h.passes(MonoTime::from_secs(1), &request), MonoTime::from_nanos(1_200_000_000));
        // some say less
        for (tell, count) in [(Tell::RetryAfter, 1), (Tell::Nothing, 0)] {
            let mut h = Hosted::new(Params { tell, ..params.clone() });
            (0..2).for_each(|id| {
                h.begin(MonoTime::ZERO, id, &request);
            });
            assert_eq!((h.told(0).len(), h.told(1).len()), (0, count), "{tell:?}");
        }
    }

    #[test]
    fn durations_are_spelled_as_go_does() {
        let of = |ms| go_duration(Duration::from_millis(ms));
        assert_eq!(
            [of(0), of(17), of(1340), of(60_000), of(366_500), of(3_600_000)],
            ["0ms", "17ms", "1.34s", "1m0s", "6m6.5s", "1h0m0s"]
        );
    }
}
