//! The pipeline's side of `[limits]`.

use std::time::Duration;

use crate::policy::units::{Invalid, checked};

/// What a request may weigh, and how slowly its body may come.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// The largest body that is read before queueing.
    pub body_bytes: u64,
    /// The largest body that is kept so that it can be sent again.
    pub replay_bytes: u64,
    /// Memory for all request bodies together.
    pub body_memory: u64,
    /// How long a body may pause.
    pub body_timeout: Duration,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            body_bytes: 64 << 20,
            replay_bytes: 1 << 20,
            body_memory: 512 << 20,
            body_timeout: Duration::from_secs(30),
        }
    }
}

impl Params {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// Every setting the pipeline cannot work with.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut faults = Vec::new();
        if self.body_bytes == 0 {
            faults.push(Invalid::new("body_bytes", "must be at least 1"));
        }
        if self.body_memory < self.body_bytes {
            faults.push(Invalid::new(
                "body_memory",
                "must be at least body_bytes: one request of the permitted size has to fit",
            ));
        }
        if self.body_timeout.is_zero() {
            faults.push(Invalid::new("body_timeout", "must be longer than 0s"));
        }
        checked(self, faults)
    }
}
