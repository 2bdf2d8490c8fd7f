//! `[listen]` and the peers' side of `[limits]`.

use std::net::SocketAddr;
use std::time::Duration;

use crate::policy::units::{Invalid, checked};

/// Where to listen, and how patient to be with the other side.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Address and port of the proxy.
    pub address: SocketAddr,
    /// Worker threads, each with its own runtime and accept socket.
    pub workers: usize,
    /// How long a drain waits for what is in flight.
    pub drain_timeout: Duration,
    /// Connections open at once, over all workers.
    pub max_connections: usize,
    /// From accept, and from each request's first byte, to the end of its head.
    pub header_timeout: Duration,
    /// How long a connection may idle between requests.
    pub keep_alive_idle: Duration,
    /// How long a client may take no byte of what is written to it.
    pub write_timeout: Duration,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            workers: 2,
            drain_timeout: Duration::from_secs(30),
            max_connections: 10_000,
            header_timeout: Duration::from_secs(10),
            keep_alive_idle: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
        }
    }
}

impl Params {
    /// Checks the settings.
    ///
    /// # Errors
    /// Every setting the listener cannot work with.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut faults = Vec::new();
        if self.workers == 0 || self.workers > 256 {
            faults.push(Invalid::new("workers", format!("must be 1 to 256, is {}", self.workers)));
        }
        if self.max_connections == 0 {
            faults.push(Invalid::new("max_connections", "must be at least 1"));
        }
        for (key, value) in [
            ("header_timeout", self.header_timeout),
            ("keep_alive_idle", self.keep_alive_idle),
            ("write_timeout", self.write_timeout),
        ] {
            if value.is_zero() {
                faults.push(Invalid::new(key, "must be longer than 0s"));
            }
        }
        checked(self, faults)
    }
}
