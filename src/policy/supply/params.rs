//! What the endpoints of a group are guarded by: `[breaker]`, when one counts as broken, and for how long.

use std::time::Duration;

use crate::policy::supply::{EndpointParams, RetryParams};
use crate::policy::units::{Invalid, checked};

/// One endpoint of a group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Member {
    /// Its settings.
    pub endpoint: EndpointParams,
    /// Keys of its own; 0: each client brings its own.
    pub keys: u16,
    /// It is somebody's hosted API: with `concurrency = "auto"`, only its refusals bound it.
    pub hosted: bool,
}

/// A group's endpoints, and what holds for all of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    /// `[breaker]`.
    pub breaker: BreakerParams,
    /// `[retry]`.
    pub retry: RetryParams,
    /// The endpoints, in the order of the configuration; none stands for one with the default settings.
    pub members: Vec<Member>,
    /// The most any endpoint is trusted with, whatever was learned; 0 stands for no such bound.
    pub most: u32,
    /// `concurrency = "auto"` learns; without, the operator's number of permits is the only limit.
    pub learn: bool,
    /// What chance is drawn from.
    pub seed: u64,
}

/// `[breaker]`.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerParams {
    /// Failures in a row that open it.
    pub failures: u32,
    /// Share of failures within `window` that opens it, in (0, 1].
    pub failure_rate: f64,
    /// Answers within `window` below which the share says nothing.
    pub min_samples: u32,
    /// How far back the share looks.
    pub window: Duration,
    /// How long it stays open before one probe may try.
    pub recovery: Duration,
}

impl Default for BreakerParams {
    fn default() -> Self {
        Self {
            failures: 5,
            failure_rate: 0.5,
            min_samples: 20,
            window: Duration::from_secs(30),
            recovery: Duration::from_secs(30),
        }
    }
}

impl BreakerParams {
    /// Checks the settings.
    ///
    /// # Errors
    /// Every setting the breaker cannot work with.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut faults = Vec::new();
        let mut bad = |key, message: &str| faults.push(Invalid::new(key, message));
        if self.failures == 0 {
            bad("failures", "must be at least 1");
        }
        if !(self.failure_rate > 0.0 && self.failure_rate <= 1.0) {
            bad("failure_rate", "must be above 0 and at most 1");
        }
        if self.min_samples == 0 {
            bad("min_samples", "must be at least 1");
        }
        if self.window < Duration::from_secs(1) || self.window > Duration::from_secs(3600) {
            bad("window", "must be between 1s and 1h");
        }
        if self.recovery.is_zero() || self.recovery > Duration::from_secs(3600) {
            bad("recovery", "must be above 0s and at most 1h");
        }
        checked(self, faults)
    }
}
