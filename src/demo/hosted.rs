//! The law of a hosted API: it always has room, but only so many requests and tokens a minute are paid for.
//!
//! Two buckets for each API key and model, which refill continuously. A call passes if both hold enough; what
//! is larger than a bucket passes when that is full. A refused attempt still costs a part of a request, which
//! is why clients that knock again and again starve themselves. `simulate` has the same law in virtual time;
//! `tests/scenarios/laws.rs` holds the two against each other. Called by the simulated upstream's slots.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::policy::units::Invalid;

/// Keys and models with buckets of their own; what comes beyond shares one pair.
const MAX_ACCOUNTS: usize = 1000;

/// The budget of each API key and model, and what is said of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hosted {
    /// Requests per minute.
    pub rpm: f64,
    /// Requests that pass at once after a rest.
    pub burst: f64,
    /// Tokens per minute, prompt and answer; `None`: unlimited. Its bucket holds as many seconds' worth as
    /// that of the requests.
    pub tpm: Option<f64>,
    /// Share of both that another client takes, evenly, 0 to 1.
    pub other: f64,
    /// How long a refusal takes.
    pub refuse: Duration,
    /// What it costs, in requests.
    pub cost: f64,
    /// What the answers tell.
    pub tell: Tell,
}

/// Which headers a hosted API sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// `x-ratelimit-limit|remaining|reset-requests|tokens` on every answer; on a 429 `retry-after-ms` and
    /// `retry-after`, in whole seconds rounded up.
    All,
    /// Only `retry-after` on a 429.
    RetryAfter,
    /// Nothing.
    Nothing,
}

impl Hosted {
    /// Bursts of two seconds' worth, refusals of 50 ms that cost a quarter, all headers.
    #[must_use]
    pub fn new(rpm: f64) -> Self {
        Self {
            rpm,
            burst: (rpm / 30.0).max(1.0),
            tpm: None,
            other: 0.0,
            refuse: Duration::from_millis(50),
            cost: 0.25,
            tell: Tell::All,
        }
    }

    pub(crate) fn check(&self, bad: &mut Vec<Invalid>) {
        let above = |x: f64| x.is_finite() && x > 0.0;
        if !above(self.rpm) || !self.tpm.is_none_or(above) {
            bad.push(Invalid::new("hosted", "the limits must be numbers above 0"));
        }
        if !(self.burst.is_finite() && self.burst >= 1.0) {
            bad.push(Invalid::new("hosted.burst", "must be at least 1"));
        }
        if !(0.0..1.0).contains(&self.other) {
            bad.push(Invalid::new("hosted.other", "must be at least 0 and less than 1"));
        }
        if !(self.cost.is_finite() && self.cost >= 0.0) {
            bad.push(Invalid::new("hosted.cost", "must be at least 0"));
        }
    }
}

/// One kind of budget.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    size: f64,
    /// As sold.
    per_second: f64,
    /// What the other client leaves of it.
    left: f64,
}

impl Bucket {
    fn new(per_minute: f64, size: f64, other: f64) -> Self {
        let per_second = per_minute / 60.0;
        Self { level: size, size, per_second, left: per_second * (1.0 - other) }
    }

    fn refill(&mut self, seconds: f64) {
        self.level = (self.level + seconds * self.left).min(self.size);
    }

    /// What is missing until `amount` passes.
    fn lacks(&self, amount: f64) -> f64 {
        (amount.min(self.size) - self.level).max(0.0)
    }

    /// How long `amount` takes to come. The server does not know what the other client is going to do.
    fn wait(&self, amount: f64) -> Duration {
        Duration::try_from_secs_f64(amount / self.per_second).unwrap_or(Duration::MAX)
    }
}

#[derive(Clone, Debug)]
struct Account {
    requests: Bucket,
    tokens: Option<Bucket>,
    at: Duration,
}

/// The budgets of all keys.
#[derive(Debug)]
pub(crate) struct Accounts {
    law: Hosted,
    by_key: BTreeMap<(String, String), Account>,
}

/// Who asks for how much.
#[derive(Clone, Debug, Default)]
pub(crate) struct Demand {
    pub(crate) key: String,
    pub(crate) model: String,
    pub(crate) tokens: u64,
}

/// How an account stands: what the headers of an answer say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    headers: Vec<(&'static str, String)>,
}

/// A call that did not pass.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused {
    /// How long the refusal takes.
    pub(crate) takes: Duration,
    /// The headers beside the standing.
    pub(crate) standing: Standing,
}

impl Accounts {
    pub(crate) const fn new(law: Hosted) -> Self {
        Self { law, by_key: BTreeMap::new() }
    }

    /// Takes from the buckets. `crowded` is a limit that no header names: the answer names none either.
    pub(crate) fn charge(
        &mut self,
        now: Duration,
        demand: &Demand,
        crowded: bool,
    ) -> Result<Standing, Refused> {
        let law = self.law;
        let account = self.account(demand);
        let seconds = now.saturating_sub(account.at).as_secs_f64();
        account.at = account.at.max(now);
        for bucket in [Some(&mut account.requests), account.tokens.as_mut()].into_iter().flatten() {
            bucket.refill(seconds);
        }
        let amount = demand.tokens as f64;
        let requests = account.requests.lacks(1.0);
        let tokens = account.tokens.map_or(0.0, |b| b.lacks(amount));
        if crowded || requests > 0.0 || tokens > 0.0 {
            account.requests.level = (account.requests.level - law.cost).max(0.0);
            let mut standing = if crowded { Standing::default() } else { account.standing(law.tell) };
            if !crowded && law.tell != Tell::Nothing {
                let later = account.tokens.map_or(Duration::ZERO, |b| b.wait(tokens));
                standing.retry_after(law.tell, account.requests.wait(requests).max(later));
            }
            return Err(Refused { takes: law.refuse, standing });
        }
        account.requests.level -= 1.0;
        if let Some(bucket) = &mut account.tokens {
            bucket.level -= amount;
        }
        Ok(account.standing(law.tell))
    }

    fn account(&mut self, demand: &Demand) -> &mut Account {
        let mut name = (demand.key.clone(), demand.model.clone());
        if self.by_key.len() >= MAX_ACCOUNTS && !self.by_key.contains_key(&name) {
            name = Default::default();
        }
        let Hosted { rpm, burst, tpm, other, .. } = self.law;
        self.by_key.entry(name).or_insert_with(|| Account {
            requests: Bucket::new(rpm, burst, other),
            tokens: tpm.map(|tpm| Bucket::new(tpm, tpm * burst / rpm, other)),
            at: Duration::ZERO,
        })
    }
}

impl Account {
    fn standing(&self, tell: Tell) -> Standing {
        let mut headers = Vec::new();
        if tell == Tell::All {
            let mut put = |names: [&'static str; 3], bucket: &Bucket| {
                headers.push((names[0], format!("{:.0}", bucket.per_second * 60.0)));
                headers.push((names[1], format!("{:.0}", bucket.level.max(0.0).floor())));
                headers.push((names[2], go_duration(bucket.wait(bucket.size - bucket.level))));
            };
            put(
                [
                    "x-ratelimit-limit-requests",
                    "x-ratelimit-remaining-requests",
                    "x-ratelimit-reset-requests",
                ],
                &self.requests,
            );
            if let Some(tokens) = &self.tokens {
                put(
                    ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
                    tokens,
                );
            }
        }
        Standing { headers }
    }
}

impl Standing {
    fn retry_after(&mut self, tell: Tell, wait: Duration) {
        if tell == Tell::All {
            self.headers.push(("retry-after-ms", wait.as_nanos().div_ceil(1_000_000).max(1).to_string()));
        }
        self.headers.push(("retry-after", whole_seconds(wait).to_string()));
    }

    pub(crate) fn write(&self, into: &mut HeaderMap) {
        for (name, value) in &self.headers {
            if let Ok(value) = HeaderValue::from_str(value) {
                into.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

/// Rounded up; a client that is told 0 would come back at once.
pub(crate) fn whole_seconds(d: Duration) -> u64 {
    (d.as_secs() + u64::from(d.subsec_nanos() > 0)).max(1)
}

/// `17ms`, `1.34s`, `6m0s`, `1h0m0s`: the form of OpenAI's reset headers, in whole milliseconds rounded up.
fn go_duration(d: Duration) -> String {
    let ms = d.as_nanos().div_ceil(1_000_000);
    let (minutes, rest) = (ms / 60_000, ms % 60_000);
    let seconds = format!("{}s", rest as f64 / 1000.0);
    match (minutes / 60, minutes % 60) {
        (0, 0) if rest < 1000 => format!("{rest}ms"),
        (0, 0) => seconds,
        (0, m) => format!("{m}m{seconds}"),
        (h, m) => format!("{h}h{m}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(tokens: u64) -> Demand {
        Demand { key: "k".into(), model: "m".into(), tokens }
    }

    fn said(refused: &Refused, name: &str) -> Option<String> {
        refused.standing.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone())
    }

    #[test]
    fn the_burst_passes_then_the_rate_and_refusals_cost_budget() {
        let mut accounts = Accounts::new(Hosted::new(600.0));
        let mut passed = |at: u64, n: usize| {
            let at = Duration::from_secs(at);
            (0..n).filter(|_| accounts.charge(at, &ask(0), false).is_ok()).count()
        };
        assert_eq!(passed(0, 24), 20);
        // a second refills ten
        assert_eq!(passed(1, 12), 10);
        // the one after it finds what ten knocks have left of ten: 7.5
        assert_eq!(passed(2, 10), 10);
        assert_eq!(passed(2, 10), 0);
    }

    #[test]
    fn a_refusal_on_empty_buckets_takes_nothing_and_one_before_a_whole_request_does() {
        let mut accounts = Accounts::new(Hosted { burst: 1.0, ..Hosted::new(60.0) });
        let at = |ms| Duration::from_millis(ms);
        assert!(accounts.charge(at(0), &ask(0), false).is_ok());
        let refused = accounts.charge(at(500), &ask(0), false).unwrap_err();
        assert_eq!(refused.takes, at(50));
        assert_eq!(said(&refused, "retry-after-ms").unwrap(), "500");
        assert_eq!(said(&refused, "retry-after").unwrap(), "1");
        // half a request was there and a quarter is gone: three quarters of a second are missing, not a half
        let refused = accounts.charge(at(500), &ask(0), false).unwrap_err();
        assert_eq!(said(&refused, "retry-after-ms").unwrap(), "750");
        assert!(accounts.charge(at(1500), &ask(0), false).is_ok());
    }

    #[test]
    fn tokens_bind_and_one_larger_than_the_bucket_passes_when_it_is_full() {
        let mut accounts = Accounts::new(Hosted { tpm: Some(60_000.0), ..Hosted::new(600.0) });
        assert!(accounts.charge(Duration::ZERO, &ask(5000), false).is_ok());
        let refused = accounts.charge(Duration::ZERO, &ask(5000), false).unwrap_err();
        // a bucket of 2,000 tokens, 5,000 taken: 5 s until it is full again
        assert_eq!(said(&refused, "retry-after-ms").unwrap(), "5000");
        assert_eq!(said(&refused, "x-ratelimit-remaining-tokens").unwrap(), "0");
        assert_eq!(said(&refused, "x-ratelimit-reset-tokens").unwrap(), "5s");
    }

    #[test]
    fn another_client_takes_its_share_and_no_header_knows_it() {
        let mut accounts = Accounts::new(Hosted { other: 0.5, burst: 2.0, ..Hosted::new(60.0) });
        let mut passed = 0;
        for second in 0..100 {
            passed += usize::from(accounts.charge(Duration::from_secs(second), &ask(0), false).is_ok());
        }
        // 2 at once and half of 99, less what the refusals cost
        assert!((35..=52).contains(&passed), "{passed}");
        let standing = accounts.charge(Duration::from_secs(200), &ask(0), false).unwrap();
        assert_eq!(
            standing.headers,
            [
                ("x-ratelimit-limit-requests", "60".to_owned()),
                ("x-ratelimit-remaining-requests", "1".to_owned()),
                ("x-ratelimit-reset-requests", "1s".to_owned())
            ]
        );
    }

    #[test]
    fn each_key_and_model_has_its_own_and_a_crowd_is_refused_without_a_word() {
        let mut accounts = Accounts::new(Hosted { burst: 1.0, ..Hosted::new(60.0) });
        for (key, model) in [("a", "m"), ("b", "m"), ("a", "n")] {
            let demand = Demand { key: key.into(), model: model.into(), tokens: 1 };
            assert!(accounts.charge(Duration::ZERO, &demand, false).is_ok());
            assert!(accounts.charge(Duration::ZERO, &demand, false).is_err());
        }
        let refused = accounts.charge(Duration::from_secs(9), &ask(1), true).unwrap_err();
        assert!(refused.standing.headers.is_empty());
        for n in 0..3000 {
            let demand = Demand { key: n.to_string(), ..Demand::default() };
            let _ = accounts.charge(Duration::ZERO, &demand, false);
        }
        assert_eq!(accounts.by_key.len(), MAX_ACCOUNTS + 1);
    }

    #[test]
    fn what_is_told_can_be_chosen() {
        for (tell, names) in [(Tell::RetryAfter, vec!["retry-after"]), (Tell::Nothing, vec![])] {
            let mut accounts = Accounts::new(Hosted { burst: 1.0, tell, ..Hosted::new(60.0) });
            let passed = accounts.charge(Duration::ZERO, &ask(1), false).unwrap();
            assert!(passed.headers.is_empty());
            let refused = accounts.charge(Duration::ZERO, &ask(1), false).unwrap_err();
            assert_eq!(refused.standing.headers.iter().map(|(n, _)| *n).collect::<Vec<_>>(), names);
        }
    }

    #[test]
    fn resets_have_openai_s_forms() {
        let form = |ms| go_duration(Duration::from_millis(ms));
        let all = [0, 17, 1000, 1340, 60_000, 360_000, 363_250, 3_600_000].map(form);
        assert_eq!(all, ["0ms", "17ms", "1s", "1.34s", "1m0s", "6m0s", "6m3.25s", "1h0m0s"]);
        assert_eq!(go_duration(Duration::from_nanos(1)), "1ms");
        assert!(go_duration(Duration::MAX).ends_with('s'));
    }
}
