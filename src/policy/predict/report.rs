//! What a decision was and why: the same words in the log, on the metrics and in a simulation.

use std::time::Duration;

use crate::policy::predict::Desired;
use crate::policy::predict::forecast::Errors;
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
    /// The way from `from` to `to`.
    #[must_use]
    pub const fn of(from: u32, to: u32) -> Self {
        if to > from {
            Self::Up
        } else if to < from {
            Self::Down
        } else {
            Self::Hold
        }
    }

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
    /// Somebody would have waited although the upstream could take more.
    WorkConserving,
    /// The upstream was found to take more or less than it was thought to.
    Supply,
    /// So many plans failed to come that the static limit stands in.
    Stale,
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
            Self::WorkConserving => "work_conserving",
            Self::Supply => "supply",
            Self::Stale => "stale",
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
    /// What the predictor knew, if the policy has one.
    pub outlook: Option<Box<Outlook>>,
}

/// What should be ready before it is needed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ready {
    /// Connections to the upstream, those in use included; 0: none are kept for their own sake.
    pub connections: u32,
    /// Replicas of the model server; `None` under a policy that does not forecast.
    pub replicas: Option<Desired>,
}

/// What the predictor knows about the minute that is running.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// 5 % quantile of its demand, requests per minute.
    pub low: f64,
    /// Its centre.
    pub centre: f64,
    /// The quantile that is provided for.
    pub high: f64,
    /// Which one that is.
    pub quantile: f64,
    /// The last decision's confidence.
    pub confidence: f64,
    /// The confidence above which a decision is acted on, now.
    pub threshold: f64,
    /// Mean seconds a request is in flight.
    pub service: f64,
    /// How the forecasts have done.
    pub errors: Errors,
    /// The experts' weights.
    pub weights: Vec<(&'static str, f64)>,
    /// Robust z-score of the last minute.
    pub anomaly: f64,
    /// Minutes of history.
    pub minutes: usize,
    /// The period, in seconds, of a season that leads.
    pub season: Option<f64>,
    /// What should be ready.
    pub ready: Ready,
}
