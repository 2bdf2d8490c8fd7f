//! How connections to an upstream came about, and how long that took.
//!
//! The pool counts here when a connection is made or cannot be, never per request; the collector of
//! `gate.rs` reads it. Without it nobody could tell a pre-warmed pool from one that each burst pays for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::telemetry::shard::Buckets;

/// Why a connection to the upstream was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnectReason {
    /// A request had none to go on, and waited for it.
    Demand,
    /// There were fewer than are to be ready.
    Prewarm,
    /// In place of one that has been unused for almost as long as the upstream keeps it.
    Renew,
    /// In place of one that is as old as `upstream.refresh` lets it become.
    Refresh,
}

impl ConnectReason {
    /// How many there are.
    pub const COUNT: usize = 4;

    /// All of them, in order.
    pub const ALL: [Self; Self::COUNT] = [Self::Demand, Self::Prewarm, Self::Renew, Self::Refresh];

    /// The value of the label `reason`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Prewarm => "prewarm",
            Self::Renew => "renew",
            Self::Refresh => "refresh",
        }
    }
}

/// Connections made to one upstream, and those that could not be made.
#[derive(Debug, Default)]
pub struct Connects {
    opened: [AtomicU64; ConnectReason::COUNT],
    failed: [AtomicU64; ConnectReason::COUNT],
    took: Mutex<Buckets>,
}

impl Connects {
    /// One was made: name look-up, TCP and TLS took this long together.
    pub fn opened(&self, reason: ConnectReason, took: Duration) {
        self.opened[reason as usize].fetch_add(1, Ordering::Relaxed);
        self.took.lock().unwrap_or_else(PoisonError::into_inner).observe(took);
    }

    /// One could not be made.
    pub fn failed(&self, reason: ConnectReason) {
        self.failed[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Connections made for this reason: so many, and so many that could not be.
    #[must_use]
    pub fn count(&self, reason: ConnectReason) -> (u64, u64) {
        let of = |counts: &[AtomicU64]| counts[reason as usize].load(Ordering::Relaxed);
        (of(&self.opened), of(&self.failed))
    }

    pub(super) fn took(&self) -> Buckets {
        *self.took.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
