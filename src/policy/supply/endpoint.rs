//! The policy's side of one `[[upstream]]`: which models it serves, its share, and what is known of its limits.

use std::time::Duration;

use crate::policy::supply::routing;
use crate::policy::units::{Invalid, checked};

/// How many requests at once an endpoint is trusted with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConcurrencyMode {
    /// Learned where the endpoint names no rate limits, unlimited where it does: a hosted model is held by its
    /// buckets.
    #[default]
    Auto,
    /// Learned from its pace, whatever it says of rate limits.
    Learn,
    /// Not limited by the endpoint.
    Unlimited,
    /// So many, always.
    Fixed(u32),
}

/// What the choice of an endpoint has to know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointParams {
    /// Patterns of the models it serves, as `routing.rs` reads them.
    pub models: Vec<String>,
    /// Its share of the requests beside the others of its tier.
    pub weight: u32,
    /// 0: first choice; a higher one is used when no lower one can.
    pub tier: u32,
    /// Where the limit of requests in flight comes from.
    pub concurrency: ConcurrencyMode,
    /// Requests per minute of each of its keys, where the operator knows it.
    pub requests_per_minute: Option<u64>,
    /// Tokens per minute of each of its keys, where the operator knows it.
    pub tokens_per_minute: Option<u64>,
    /// The share of the limits that is used, in (0, 1]; absent: the pacer's own two.
    pub rate_limit_buffer: Option<f64>,
    /// How long an endpoint that comes back takes to have its whole share; zero: at once.
    pub slow_start: Duration,
}

impl Default for EndpointParams {
    fn default() -> Self {
        Self {
            models: vec!["*".into()],
            weight: 1,
            tier: 0,
            concurrency: ConcurrencyMode::Auto,
            requests_per_minute: None,
            tokens_per_minute: None,
            rate_limit_buffer: None,
            slow_start: Duration::from_secs(30),
        }
    }
}

impl EndpointParams {
    /// Checks the settings.
    ///
    /// # Errors
    /// Every setting the choice of an endpoint cannot work with.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut faults = Vec::new();
        let mut bad = |key, message: String| faults.push(Invalid::new(key, message));
        for message in routing::faults_of(&self.models) {
            bad("models", message);
        }
        if self.weight == 0 {
            bad(
                "weight",
                "must be at least 1: nothing would be sent there; remove the upstream instead".into(),
            );
        }
        if self.weight > 1000 {
            bad("weight", format!("must be at most 1000, is {}", self.weight));
        }
        if let ConcurrencyMode::Fixed(n) = self.concurrency
            && !(1..=100_000).contains(&n)
        {
            bad("concurrency", format!("must be 1 to 100000, is {n}"));
        }
        if self.requests_per_minute == Some(0) {
            bad("requests_per_minute", "must be at least 1".into());
        }
        if self.tokens_per_minute == Some(0) {
            bad("tokens_per_minute", "must be at least 1".into());
        }
        if self.rate_limit_buffer.is_some_and(|share| !(share > 0.0 && share <= 1.0)) {
            bad("rate_limit_buffer", "must be above 0 and at most 1".into());
        }
        if self.slow_start > Duration::from_secs(3600) {
            bad("slow_start", "must be at most 1h".into());
        }
        checked(self, faults)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_worked_with_is_named() {
        let keys = |p: EndpointParams| -> Vec<&str> {
            p.try_new().err().unwrap_or_default().iter().map(|i| i.key).collect()
        };
        let d = EndpointParams::default;
        assert_eq!(keys(d()), [""; 0]);
        assert_eq!(keys(EndpointParams { weight: 0, ..d() }), ["weight"]);
        assert_eq!(keys(EndpointParams { weight: 1001, ..d() }), ["weight"]);
        assert_eq!(keys(EndpointParams { concurrency: ConcurrencyMode::Fixed(0), ..d() }), ["concurrency"]);
        assert_eq!(keys(EndpointParams { requests_per_minute: Some(0), ..d() }), ["requests_per_minute"]);
        assert_eq!(keys(EndpointParams { tokens_per_minute: Some(0), ..d() }), ["tokens_per_minute"]);
        for share in [0.0, -1.0, 1.01, f64::NAN, f64::INFINITY] {
            let p = EndpointParams { rate_limit_buffer: Some(share), ..d() };
            assert_eq!(keys(p), ["rate_limit_buffer"], "{share}");
        }
        assert_eq!(keys(EndpointParams { models: vec![], ..d() }), ["models"]);
    }
}
