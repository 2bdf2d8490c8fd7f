//! What the fleet is asked, what it answers, and what it tells besides. Nothing here decides.

use crate::policy::supply::Transition;
use crate::policy::supply::concurrency::Change;
use crate::policy::supply::pace::{PacerStatus, RateLimits};
use crate::policy::units::{EndpointId, ModelId, MonoTime, Place, TenantId, Ticket, Tokens};

/// What a request wants of an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    /// Its number, which chance is drawn from.
    pub ticket: Ticket,
    /// Whose it is: where clients bring their own keys, each key has its own limits.
    pub tenant: TenantId,
    /// The model.
    pub model: ModelId,
    /// What it will be charged for.
    pub cost: Tokens,
    /// It counts against learned limits and rates; what takes no permit does not.
    pub paced: bool,
    /// It failed there: elsewhere if at all possible, and nowhere else before that moment.
    pub avoid: Option<(EndpointId, MonoTime)>,
    /// Until when it waits for the first tier rather than go to a later one.
    pub patience: MonoTime,
    /// It may be the one that tries a broken endpoint.
    pub may_probe: bool,
}

/// An attempt that was started: what its end is told with.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub(super) ticket: Ticket,
    pub(super) tenant: TenantId,
    pub(super) model: ModelId,
    /// Where it went.
    pub place: Place,
    /// It is the probe of a broken endpoint.
    pub probe: bool,
    pub(super) generation: u32,
    pub(super) paced: bool,
    /// In flight at its endpoint when it left, itself included.
    pub(super) level: u32,
    /// What its endpoint had answered by then.
    pub(super) taken: u64,
}

/// Where a request may go, or what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// There, at once.
    Go(Place),
    /// Nowhere yet.
    Wait(Hold),
}

/// What is being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The first thing that is to happen.
    pub until: Until,
    /// When something changes by itself; `MAX`: only when somebody finishes.
    pub at: MonoTime,
}

/// What ends a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Somebody finishes: every endpoint carries what it takes.
    Room,
    /// A probe that is under way ends.
    Probed,
    /// This model's rate comes back. `stopped`: the upstream refused, nothing of it goes before then.
    Rate {
        /// The upstream said so.
        stopped: bool,
    },
    /// A broken or refusing upstream is worth another try.
    Up,
}

impl Hold {
    /// The wait for somebody to finish.
    pub(super) const ROOM: Self = Self { until: Until::Room, at: MonoTime::MAX };

    /// Either of two: what ends sooner, as far as can be told.
    pub(super) fn or(self, other: Self) -> Self {
        let rank = |h: Self| match h.until {
            Until::Room => (0, MonoTime::ZERO),
            Until::Probed => (1, MonoTime::ZERO),
            Until::Rate { .. } | Until::Up => (2, h.at),
        };
        let first = if rank(other) < rank(self) { other } else { self };
        Self { at: self.at.min(other.at), ..first }
    }
}

/// What the fleet has to tell besides its answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Report {
    /// A breaker changed state.
    Breaker(EndpointId, Transition),
    /// What an endpoint was found to take moved by more than a tenth.
    Limit(EndpointId, Change),
    /// The upstream refused a model's rate, or said that a window of it is used up: nothing of it goes with this key
    /// before then.
    Stopped {
        /// Where.
        place: Place,
        /// Of what.
        model: ModelId,
        /// Until when.
        until: MonoTime,
        /// Who says so.
        said_by: SaidBy,
        /// What was known of the rate before.
        known: PacerStatus,
        /// Attempts in flight there.
        in_flight: u32,
    },
    /// What was stopped goes on.
    GoesOn {
        /// Where.
        place: Place,
        /// Of what.
        model: ModelId,
    },
    /// The upstream refused although no rate was used up: it takes fewer at once than it was given.
    HiddenCap {
        /// Which.
        endpoint: EndpointId,
        /// Attempts in flight there when the refused one left.
        in_flight: u32,
    },
    /// The upstream refuses a share of a model's requests, however many it is sent: only those wait from now on.
    Unrelated {
        /// Where.
        place: Place,
        /// Of what.
        model: ModelId,
    },
    /// A key was refused: it rests.
    KeyRests {
        /// Whose.
        place: Place,
        /// Until when.
        until: MonoTime,
    },
    /// A key has rested.
    KeyIsBack {
        /// Whose.
        place: Place,
    },
    /// An endpoint is far slower than its peers: it rests.
    Ejected {
        /// Which.
        endpoint: EndpointId,
        /// How many times slower.
        factor: f64,
        /// What was compared.
        paces: Paces,
        /// Until when.
        until: MonoTime,
    },
    /// An endpoint that was far slower has rested.
    IsBack {
        /// Which.
        endpoint: EndpointId,
    },
}

/// Where the end of a stop comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaidBy {
    /// The refusal's `retry-after`.
    RetryAfter,
    /// What its headers say of the limits.
    Limits,
    /// Nobody: it is longer with each refusal in a row.
    Nobody,
}

impl SaidBy {
    /// Who named `until`, of an answer with these headers.
    pub(super) fn of(limits: &RateLimits, until: MonoTime) -> Self {
        // a stop is never longer than some minutes
        if limits.retry_at.is_some_and(|at| at >= until) {
            Self::RetryAfter
        } else if limits.requests.is_empty() && limits.tokens.is_empty() {
            Self::Nobody
        } else {
            Self::Limits
        }
    }

    /// The word for logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RetryAfter => "retry_after",
            Self::Limits => "limit_headers",
            Self::Nobody => "nobody",
        }
    }
}

/// What outliers are found by: an endpoint's own pace, and the median of its peers'.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Paces {
    /// Seconds to the first token; each is `None` while too little is known of it.
    pub first: Option<f64>,
    /// The peers'.
    pub first_of_peers: Option<f64>,
    /// Seconds per token after it.
    pub token: Option<f64>,
    /// The peers'.
    pub token_of_peers: Option<f64>,
}
