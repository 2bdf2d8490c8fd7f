//! The engine's language: what can happen, what can follow, and how it stands. Nothing here decides.

use std::time::Duration;

use crate::policy::admission;
use crate::policy::engine::RetryCause;
use crate::policy::predict::{self, Decision, Reason};
use crate::policy::supply::pace::RateLimits;
use crate::policy::supply::{self, BreakerState, ServerLoad};
use crate::policy::units::{
    EndpointId, ModelId, MonoTime, Outcome, Place, Priority, Refusal, Sample, TenantId, Ticket, Tokens,
};

/// What the engine is built from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    /// Queue and the bounds beside it.
    pub admission: admission::Params,
    /// The rule that moves the permits.
    pub scaling: predict::Params,
    /// The endpoints, and what they are guarded by.
    pub supply: supply::Params,
}

/// How a request takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Inference: takes a permit, may wait for one.
    Queued,
    /// Everything else: no permit, bounded by `max_unqueued`.
    Unqueued,
    /// The same with a body that its client is still sending: the breaker's probe only if nobody else comes.
    Upload,
    /// A tunnel: takes a permit for its life, bounded by `max_websockets` too.
    WebSocket,
}

impl Kind {
    /// Whether it holds one of the permits.
    #[must_use]
    pub const fn takes_permit(self) -> bool {
        matches!(self, Self::Queued | Self::WebSocket)
    }
}

/// Why no head came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The upstream has not seen the request.
    Unsent,
    /// It did not answer in time.
    TimedOut,
}

/// A request as the engine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// How it takes part.
    pub kind: Kind,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its class.
    pub priority: Priority,
    /// What it asks for.
    pub model: ModelId,
    /// Estimated tokens, prompt and output: for fairness, and charged against a rate limit.
    pub cost: Tokens,
    /// The prompt's share of that: a long one's answer begins later.
    pub prompt: Tokens,
    /// Bytes its body holds in memory.
    pub bytes: u64,
    /// Latest moment for its response's head, where its client named one.
    pub head_by: Option<MonoTime>,
    /// It wants a stream.
    pub stream: bool,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A request wants to go upstream.
    Arrive(Ticket, Arrival),
    /// A waiting request's client left. Without effect on one that is admitted: that one finishes.
    Cancel(Ticket),
    /// The response's head arrived. `alive`: it was no sign of failure.
    FirstByte {
        /// Whose.
        ticket: Ticket,
        /// The status was below 500.
        alive: bool,
    },
    /// The headers of an answer that is no 429 told of rate limits. Comes before its [`Event::FirstByte`].
    Limits(Ticket, Box<RateLimits>),
    /// The answer is a 429, with what its headers told. Comes before its [`Event::FirstByte`].
    Refused(Ticket, Box<RateLimits>),
    /// A stream's first token came.
    FirstToken {
        /// Whose.
        ticket: Ticket,
        /// The prompt's tokens, as estimated.
        prompt: Tokens,
    },
    /// What an endpoint's own metrics say of its load.
    Server(EndpointId, ServerLoad),
    /// An active check of an endpoint passed, or failed.
    Checked(EndpointId, bool),
    /// No head came, for a reason that says more than the outcome. Comes before its [`Event::AttemptEnd`].
    Lost(Ticket, Lost),
    /// The attempt is decided before the request is over: a failure before or at the head.
    AttemptEnd(Ticket, Outcome),
    /// The endpoint's own key was refused.
    Unauthorized(Ticket),
    /// The attempt failed before anything went to the client, and the request may be sent again: it wants to.
    Retry {
        /// Which.
        ticket: Ticket,
        /// How the attempt ended.
        outcome: Outcome,
        /// What makes another worth while.
        cause: RetryCause,
        /// The upstream's own wish.
        retry_after: Option<Duration>,
    },
    /// The request is over and its permit comes back. `Outcome` counts unless the attempt was decided; the sample
    /// is what a whole answer says of the upstream's pace.
    Finish(Ticket, Outcome, Option<Sample>),
    /// A timer fired, or a second passed.
    Tick,
    /// The predictor decided.
    Install(Decision),
    /// What the upstream was found to take; `None` while nothing is known.
    Supply(Option<u32>),
    /// The process is shutting down.
    Drain,
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The request may go.
    Admit {
        /// Which.
        ticket: Ticket,
        /// Where.
        place: Place,
        /// It is the one request that tries a broken endpoint.
        probe: bool,
        /// The permit limit at this moment.
        limit: u32,
        /// Permits taken, this one included.
        in_flight: u32,
    },
    /// The request may not go.
    Reject {
        /// Which.
        ticket: Ticket,
        /// Why.
        refusal: Refusal,
        /// When another try makes sense, if there is a basis for saying so.
        retry_after: Option<Duration>,
    },
    /// It waits again, at the head of its class; its permit is back.
    Requeued {
        /// Which.
        ticket: Ticket,
        /// Why.
        cause: RetryCause,
    },
    /// There is no further try: the attempt's answer is the request's. It still holds its permit.
    GivenUp(Ticket),
    /// Send [`Event::Tick`] at this moment.
    SetTimer(MonoTime),
    /// A decision was taken (and, unless in shadow mode, installed).
    Decided(Decision),
    /// The limit moved between two decisions.
    Resized {
        /// The limit before.
        from: u32,
        /// The limit now.
        to: u32,
        /// Why: somebody would have waited below the ceiling, the ceiling moved, or plans fail to come.
        reason: Reason,
    },
    /// A breaker changed state, a key or an endpoint rests.
    Supply(supply::Report),
}

/// The engine's state in numbers, for metrics and readiness.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Permits there are.
    pub limit: u32,
    /// Permits the last decision found necessary.
    pub need: u32,
    /// Permits there can be at most.
    pub ceiling: u32,
    /// Configured least.
    pub min: u32,
    /// Configured most.
    pub max: u32,
    /// Permits taken.
    pub in_flight: u32,
    /// Requests under way without a permit.
    pub unqueued: usize,
    /// Open tunnels.
    pub websockets: usize,
    /// Requests waiting, by [`Priority::index`].
    pub queued: [usize; 3],
    /// Bytes they hold.
    pub queue_bytes: u64,
    /// The best of the breakers' states.
    pub breaker: BreakerState,
    /// With every breaker open: when the first lets its probe pass.
    pub breaker_open_until: Option<MonoTime>,
    /// Each endpoint.
    pub endpoints: Vec<supply::EndpointStatus>,
    /// What is left for retries.
    pub retry_budget: u32,
    /// So many plans failed to come that the static limit stands in.
    pub stale: bool,
    /// A drain has begun.
    pub draining: bool,
}
