//! `[telemetry]` and `[admin]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::policy::units::{Invalid, checked};

/// Where the access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

/// What is told, and to whom.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Address of `/metrics`, `/healthz` and `/readyz`.
    pub admin_address: SocketAddr,
    /// Where one JSON line per request goes.
    pub access_log: AccessLog,
    /// What the program says of itself on standard error: a `tracing` filter such as `info`.
    pub log: String,
    /// How far back the p50, p95 and p99 of `tidegate_latency_seconds` look.
    pub quantile_window: Duration,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            admin_address: SocketAddr::from(([127, 0, 0, 1], 9900)),
            access_log: AccessLog::Stdout,
            log: "info".into(),
            quantile_window: Duration::from_secs(60),
        }
    }
}

impl Params {
    /// Checks the settings.
    ///
    /// # Errors
    /// Every setting telemetry cannot work with.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut faults = Vec::new();
        if self.quantile_window < Duration::from_secs(5) || self.quantile_window > Duration::from_secs(3600) {
            faults.push(Invalid::new("quantile_window", "must be between 5s and 1h"));
        }
        if let Err(e) = self.log.parse::<tracing_subscriber::EnvFilter>() {
            faults.push(Invalid::new("log", format!("is not a log filter ({e}); try \"info\" or \"debug\"")));
        }
        checked(self, faults)
    }
}
