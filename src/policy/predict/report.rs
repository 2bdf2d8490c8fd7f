//! What a decision was and why: the same words in the log, on the metrics and in a simulation.

use std::time::Duration;

use crate::policy::units::MonoTime;

/// Which way a decision moves the permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// More permits.
    Up,
    /// Fewer permits.
    Down,
    /// As many as before.
    Hold,
}

impl Direction {
    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Hold => "hold",
        }
    }
}

/// Why a decision came out as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The last change is too recent.
    Cooldown,
    /// The prediction does not trust itself.
    LowConfidence,
    /// Clearly more is needed.
    ScaleUp,
    /// Clearly less is needed.
    ScaleDown,
    /// Neither.
    Stable,
    /// The load has not been watched for long enough.
    WarmUp,
    /// The queue is so long that the rule does not wait for a prediction.
    Emergency,
    /// The policy never moves.
    Fixed,
}

impl Reason {
    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cooldown => "cooldown",
            Self::LowConfidence => "low_confidence",
            Self::ScaleUp => "scale_up",
            Self::ScaleDown => "scale_down",
            Self::Stable => "stable",
            Self::WarmUp => "warm_up",
            Self::Emergency => "emergency",
            Self::Fixed => "fixed",
        }
    }
}

/// One decision with everything it was made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// When it was made.
    pub at: MonoTime,
    /// Which way.
    pub direction: Direction,
    /// Why.
    pub reason: Reason,
    /// Permits before.
    pub from: u32,
    /// Permits it asks for (what `shadow` would have set).
    pub to: u32,
    /// Permits that the demand needs, before hysteresis and bounds.
    pub need: u32,
    /// Demand it reckons with, requests per minute.
    pub requests_per_minute: f64,
    /// The prediction's own trust in itself, 0 to 1.
    pub confidence: f64,
    /// Requests waiting when it was made.
    pub queued: usize,
    /// Mean of in-flight plus waiting requests per permit over the watched window.
    pub utilisation: f64,
    /// False in shadow mode.
    pub applied: bool,
    /// Time since the previous change of the permits.
    pub since_change: Duration,
}
