//! `[retry]`: what is tried again, after how long, and how much of it the upstream is made to bear.
//!
//! ```text
//! wait    = Retry-After, if not 0, else uniform in [0, backoff[attempt]]        (full jitter)
//! budget: a retry −5 (after a timeout −10), a success +1, at most 500; below the price there is no retry
//! ```
//! The budget is that of the AWS SDKs' standard mode: while most requests succeed it never matters, and when the
//! upstream is down the retries end after a hundred instead of multiplying its load. The jitter is a hash of
//! (seed, ticket, attempt), so that a run can be repeated.
//!
//! Without it every failure would be the client's, or every client's retries would arrive at once. Called by the
//! engine; which requests may be sent twice at all is the proxy's to know.

use std::time::Duration;

use crate::policy::units::{Invalid, Ticket, checked};

/// `[retry]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryParams {
    /// Statuses after which another attempt makes sense.
    pub statuses: Vec<u16>,
    /// Try again when no connection came about.
    pub on_connect: bool,
    /// Try again when the connection broke before the response's head.
    pub on_reset: bool,
    /// Upper end of the wait before each retry; as many retries as there are entries, none for an empty list.
    pub backoff: Vec<Duration>,
    /// What the budget holds at most, and at the start. 0: no retries.
    pub budget: u32,
    /// What a retry takes from it.
    pub retry_cost: u32,
    /// What a retry after a timeout takes from it.
    pub timeout_cost: u32,
    /// What a success puts back.
    pub success_refund: u32,
}

impl Default for RetryParams {
    fn default() -> Self {
        Self {
            statuses: vec![408, 429, 500, 502, 503, 504, 529],
            on_connect: true,
            on_reset: true,
            backoff: [1, 2, 4, 8].map(Duration::from_secs).to_vec(),
            budget: 500,
            retry_cost: 5,
            timeout_cost: 10,
            success_refund: 1,
        }
    }
}

impl RetryParams {
    /// Checks the settings.
    ///
    /// # Errors
    /// Every setting retries cannot work with.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        const HOUR: Duration = Duration::from_secs(3600);
        let mut faults = Vec::new();
        let mut bad = |key, message: &str| faults.push(Invalid::new(key, message));
        let budget = self.budget;
        if self.statuses.iter().any(|s| !(400..=599).contains(s)) {
            bad("statuses", "must be between 400 and 599");
        }
        if self.backoff.len() > 16 {
            bad("backoff", "must be at most 16 waits");
        }
        if self.backoff.iter().any(|d| *d > HOUR) {
            bad("backoff", "each wait must be at most 1h");
        }
        if self.budget > 1_000_000 {
            bad("budget", "must be at most 1000000");
        }
        for (key, cost) in [("retry_cost", self.retry_cost), ("timeout_cost", self.timeout_cost)] {
            if cost == 0 {
                bad(key, "must be at least 1: free retries have no bound");
            } else if self.budget > 0 && cost > self.budget {
                bad(key, &format!("{cost} is more than budget = {budget}: nothing would ever be retried"));
            }
        }
        if self.budget > 0 && self.success_refund > self.budget {
            bad("success_refund", &format!("{} is more than budget = {budget}", self.success_refund));
        }
        checked(self, faults)
    }

    /// Whether an answer with this status may be tried again.
    #[must_use]
    pub fn covers(&self, status: u16) -> bool {
        self.statuses.contains(&status)
    }

    /// How long to wait before retry number `attempt` (from 0), at most; `None` when there are no more.
    #[must_use]
    pub fn base(&self, attempt: u32) -> Option<Duration> {
        self.backoff.get(usize::try_from(attempt).ok()?).copied()
    }
}

/// What is left for retries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    left: u32,
}

impl Budget {
    /// A full one.
    #[must_use]
    pub const fn new(params: &RetryParams) -> Self {
        Self { left: params.budget }
    }

    /// Takes the price of a retry, if there is as much.
    pub const fn take(&mut self, params: &RetryParams, after_timeout: bool) -> bool {
        let cost = if after_timeout { params.timeout_cost } else { params.retry_cost };
        let enough = self.left >= cost && params.budget > 0;
        if enough {
            self.left -= cost;
        }
        enough
    }

    /// A request succeeded.
    pub fn succeeded(&mut self, params: &RetryParams) {
        self.left = self.left.saturating_add(params.success_refund).min(params.budget);
    }

    /// What is left.
    #[must_use]
    pub const fn left(&self) -> u32 {
        self.left
    }
}

/// SplitMix64's output function (Steele, Lea and Flood, OOPSLA 2014): a hash good enough to spread retries.
const fn mixed(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The wait before retry number `attempt` (from 0) of `ticket`, uniform in `[0, base]`: always the same for the
/// same four. `None` when there are no more retries.
#[must_use]
pub fn backoff(params: &RetryParams, attempt: u32, seed: u64, ticket: Ticket) -> Option<Duration> {
    let bits = mixed(mixed(mixed(seed) ^ ticket.0) ^ u64::from(attempt));
    let share = (bits >> 11) as f64 / ((1_u64 << 53) - 1) as f64;
    Some(params.base(attempt)?.mul_f64(share))
}

/// The same, but what the upstream asked for wins, also where it is shorter. Nothing is no time to ask for: all would
/// come back at once.
#[must_use]
pub fn wait(
    params: &RetryParams,
    attempt: u32,
    seed: u64,
    ticket: Ticket,
    retry_after: Option<Duration>,
) -> Option<Duration> {
    let own = backoff(params, attempt, seed, ticket)?;
    Some(retry_after.filter(|asked| !asked.is_zero()).unwrap_or(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_of_nothing_turns_retries_off() {
        let params = RetryParams { budget: 0, ..RetryParams::default() }.try_new().unwrap();
        let mut budget = Budget::new(&params);
        budget.succeeded(&params);
        assert!(!budget.take(&params, false));
    }

    #[test]
    fn the_waits_are_uniform_below_their_base_and_repeatable() {
        let params = RetryParams::default();
        for (attempt, base) in [(0, 1.0), (1, 2.0), (2, 4.0), (3, 8.0)] {
            let waits: Vec<f64> = (0..10_000)
                .filter_map(|n| backoff(&params, attempt, 7, Ticket(n)))
                .map(|d| d.as_secs_f64())
                .collect();
            assert_eq!(waits.len(), 10_000);
            assert!(waits.iter().all(|w| (0.0..=base).contains(w)));
            let mean = waits.iter().sum::<f64>() / 1e4;
            let below = waits.iter().filter(|w| **w < base / 4.0).count();
            assert!((mean / base - 0.5).abs() < 0.02 && (2300..2700).contains(&below), "{mean} {below}");
        }
        assert_eq!(backoff(&params, 2, 7, Ticket(3)), backoff(&params, 2, 7, Ticket(3)));
        assert_ne!(backoff(&params, 2, 7, Ticket(3)), backoff(&params, 2, 8, Ticket(3)));
        assert_eq!(backoff(&params, 4, 7, Ticket(3)), None);
        assert_eq!(backoff(&params, u32::MAX, 7, Ticket(3)), None);
    }

    #[test]
    fn what_the_upstream_asks_for_wins() {
        let params = RetryParams::default();
        for asked in [Duration::from_millis(1), Duration::from_secs(3600)] {
            assert_eq!(wait(&params, 0, 7, Ticket(1), Some(asked)), Some(asked));
        }
        assert_eq!(wait(&params, 4, 7, Ticket(1), Some(Duration::from_secs(1))), None);
        for nothing in [None, Some(Duration::ZERO)] {
            assert_eq!(wait(&params, 1, 7, Ticket(1), nothing), backoff(&params, 1, 7, Ticket(1)));
        }
    }

    #[test]
    fn a_dead_upstream_bears_a_hundred_retries_and_successes_earn_new_ones() {
        let params = RetryParams::default();
        let mut budget = Budget::new(&params);
        assert_eq!((0..1000).filter(|_| budget.take(&params, false)).count(), 100);
        assert_eq!(budget.left(), 0);
        for _ in 0..9 {
            budget.succeeded(&params);
        }
        assert!(!budget.take(&params, true));
        assert!(budget.take(&params, false));
        for _ in 0..10_000 {
            budget.succeeded(&params);
        }
        assert_eq!(budget.left(), 500);
        let none = RetryParams { budget: 0, ..params };
        assert!(!Budget::new(&none).take(&none, false));
    }

    #[test]
    fn what_cannot_work_is_named() {
        assert!(RetryParams::default().try_new().is_ok());
        let none = RetryParams { budget: 0, backoff: vec![], success_refund: 0, ..RetryParams::default() };
        assert!(none.try_new().is_ok());
        let keys = |params: RetryParams| {
            let faults = params.try_new().err().unwrap_or_default();
            faults.into_iter().map(|f| f.key).collect::<Vec<_>>()
        };
        let d = RetryParams::default;
        assert_eq!(keys(RetryParams { statuses: vec![200], ..d() }), ["statuses"]);
        assert_eq!(keys(RetryParams { backoff: vec![Duration::ZERO; 17], ..d() }), ["backoff"]);
        assert_eq!(keys(RetryParams { backoff: vec![Duration::from_secs(4000)], ..d() }), ["backoff"]);
        assert_eq!(
            keys(RetryParams { retry_cost: 0, timeout_cost: 501, ..d() }),
            ["retry_cost", "timeout_cost"]
        );
        assert_eq!(keys(RetryParams { budget: 2_000_000, ..d() }), ["budget"]);
        assert_eq!(keys(RetryParams { success_refund: 501, ..d() }), ["success_refund"]);
    }
}
