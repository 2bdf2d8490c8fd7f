//! The only reader of the clock.
//!
//! Everything else takes `now`, so that the live proxy, a simulation and a test on a paused clock run
//! the same code. The monotonic clock is tokio's: a paused runtime pauses it too.

use std::time::Duration;

use tokio::time::Instant;

use crate::policy::units::MonoTime;

/// The process's clock; clones agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that starts at [`MonoTime::ZERO`] now.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn start() -> Self {
        Self { origin: Instant::now() }
    }

    /// Now.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn now(&self) -> MonoTime {
        let nanos = Instant::now().saturating_duration_since(self.origin).as_nanos();
        MonoTime::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The runtime's name for `at`, to sleep until.
    #[must_use]
    pub fn instant(&self, at: MonoTime) -> Instant {
        // A deadline of "never" must stay addable: 30 years is tokio's own far future.
        self.origin + Duration::from_nanos(at.as_nanos()).min(Duration::from_secs(86_400 * 365 * 30))
    }
}

/// The calendar's time, for log lines and the hour of the day. It may jump; nothing measures with it.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "this is the one place")]
pub fn wall() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
