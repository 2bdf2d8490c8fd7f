//! What the queue may hold, and how long anything may stay in it.

use std::time::Duration;

use crate::policy::units::{Invalid, checked};

/// `[queue]`, and the two bounds of `[limits]` that the engine keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Requests that may wait at once.
    pub max_requests: usize,
    /// Bytes of request bodies that may wait at once.
    pub max_bytes: u64,
    /// The longest any request waits.
    pub timeout: Duration,
    /// The expected wait past which a request may go to an upstream of a later tier.
    pub failover_wait: Duration,
    /// What happens to waiting requests when the process is told to stop.
    pub on_drain: OnDrain,
    /// Requests outside the queue that may be in flight at once.
    pub max_unqueued: usize,
    /// WebSocket tunnels that may be open at once.
    pub max_websockets: usize,
}

/// What a drain does with requests that still wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDrain {
    /// Answer them 503 `draining` at once, so that clients go elsewhere.
    Reject,
    /// Let them have their turn within `drain_timeout`.
    Finish,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            max_requests: 500,
            max_bytes: 256 << 20,
            timeout: Duration::from_secs(60),
            failover_wait: Duration::from_secs(5),
            on_drain: OnDrain::Reject,
            max_unqueued: 256,
            max_websockets: 256,
        }
    }
}

impl Params {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// Every setting the queue cannot work with.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut faults = Vec::new();
        if self.timeout.is_zero() {
            faults.push(Invalid::new("timeout", "must be longer than 0s: nothing could ever wait"));
        }
        if self.timeout > Duration::from_secs(86_400) {
            faults.push(Invalid::new("timeout", "must be at most 24h"));
        }
        if self.max_requests > 1_000_000 {
            faults.push(Invalid::new("max_requests", "must be at most 1000000"));
        }
        checked(self, faults)
    }
}
