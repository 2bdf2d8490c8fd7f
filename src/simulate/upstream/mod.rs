//! Simulated upstreams: what happens to a request once it has its permit.
//!
//! | model | where |
//! |---|---|
//! | `constant` `lognormal` `llm` | `service.rs`: a time per request, no limit to how many at once |
//! | `hosted` | `hosted.rs`: requests and tokens per minute from buckets, 429 beyond |
//! | `batch` | `batch.rs`: all share one server, whose throughput has a knee |
//! | `replicas` | `replicas.rs`: several such servers, which take time to start |
//! | `slots` | `slots.rs`: a server that does one request at a time, many of them, with the same start |
//! | `handshake` | `handshake.rs`: a connection that is not warm costs time |
//!
//! Without them the loop would have nothing to wait for. They are deterministic: chance is drawn by request number.

mod batch;
mod handshake;
mod hosted;
mod parse;
mod replicas;
mod service;
mod sharing;
mod slots;

use std::time::Duration;

pub use batch::Batch;
pub use handshake::Handshake;
pub use hosted::{Hosted, Tell};
pub use parse::{HELP, parse};
pub use replicas::Replicas;
pub use service::{Service, Time};
pub use sharing::Law;
pub use slots::Slots;

use crate::policy::units::{MonoTime, Outcome};
use crate::simulate::request::Request;

/// A request's number: its place in the workload.
pub type Id = u32;

/// What the upstream did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The response's head and its first token left.
    FirstToken(Id),
    /// The last byte left.
    Done(Id),
    /// 429. Nothing more comes of this attempt.
    Refused {
        /// Whose attempt.
        id: Id,
        /// What its `Retry-After` says, if it has one.
        retry_after: Option<Duration>,
    },
    /// Another failure, before the head (`answered` false) or as an answer.
    Failed {
        /// Whose attempt.
        id: Id,
        /// What a breaker makes of it.
        outcome: Outcome,
        /// There was a head with a failing status.
        answered: bool,
    },
}

/// Headers of an answer that say something of the limits: lower-case names, and values as they are sent.
pub type Told = Vec<(&'static str, String)>;

/// What a policy wants made ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Warm connections, those in use included.
    pub connections: Option<u32>,
    /// Replicas, those that start included.
    pub replicas: Option<u32>,
}

/// A simulated upstream. Time never runs backwards.
pub trait Upstream {
    /// An attempt begins. True if it has to wait for a new connection.
    fn begin(&mut self, now: MonoTime, id: Id, request: &Request) -> bool;
    /// The client of a request that is under way left: no more signs of it.
    fn cancel(&mut self, now: MonoTime, id: Id);
    /// When something happens next, if nobody interferes.
    fn next(&self) -> Option<MonoTime>;
    /// Time has come to `now`: what happened, in its order.
    fn advance(&mut self, now: MonoTime, signs: &mut Vec<Sign>);
    /// What the head of the answer to this request's last attempt says of the limits.
    fn told(&self, _id: Id) -> Told {
        Told::new()
    }
    /// From when on an attempt would pass, for who knows the upstream from inside: `now` if it would at once,
    /// [`MonoTime::MAX`] if that takes somebody's end.
    fn passes(&mut self, now: MonoTime, _request: &Request) -> MonoTime {
        now
    }
    /// Makes things ready.
    fn prepare(&mut self, _now: MonoTime, _wanted: Wanted) {}
    /// Requests it can be given at once, where that is known and moves.
    fn supply(&self) -> Option<u32> {
        None
    }
    /// Replicas that serve, and replicas that are paid for.
    fn replicas(&self) -> (u32, u32) {
        (0, 0)
    }
}

/// A model with its numbers, from which a run builds its upstream.
#[derive(Clone, Debug, PartialEq)]
pub enum Model {
    /// See [`Service`].
    Service(Time),
    /// See [`Hosted`].
    Hosted(hosted::Params),
    /// See [`Batch`].
    Batch(Law),
    /// See [`Replicas`].
    Replicas(replicas::Params),
    /// See [`Slots`].
    Slots(slots::Params),
    /// See [`Handshake`].
    Handshake(handshake::Params),
}

pub use handshake::Params as HandshakeParams;
pub use hosted::Params as HostedParams;
pub use replicas::Params as ReplicasParams;
pub use slots::Params as SlotsParams;

impl Model {
    /// An idle upstream. `first` is how many replicas the policy wants at the beginning.
    #[must_use]
    pub fn build(&self, seed: u64, first: Option<u32>) -> Box<dyn Upstream> {
        match self {
            Self::Service(time) => Box::new(Service::new(*time, seed)),
            Self::Hosted(params) => Box::new(Hosted::new(params.clone())),
            Self::Batch(law) => Box::new(Batch::new(*law)),
            Self::Replicas(params) => Box::new(Replicas::new(params.clone())),
            Self::Slots(params) => Box::new(Slots::new(*params, seed, first.unwrap_or(1))),
            Self::Handshake(params) => Box::new(Handshake::new(*params, seed)),
        }
    }

    /// How long `request` takes when nobody is in its way, the connection included only if `Handshake` were warm.
    #[must_use]
    pub fn nominal(&self, seed: u64, id: Id, request: &Request) -> Duration {
        match self {
            Self::Service(time) => time.of(seed, id, request),
            Self::Hosted(p) => p.time.of(seed, id, request),
            Self::Batch(law) => law.alone(request),
            Self::Replicas(p) => p.law.alone(request),
            Self::Slots(p) => p.time.of(seed, id, request),
            Self::Handshake(p) => p.time.of(seed, id, request),
        }
    }

    /// Answers come token by token, so that a request is a stream with a first token of its own.
    #[must_use]
    pub fn streams(&self) -> bool {
        match self {
            Self::Service(time) => time.streams(),
            Self::Hosted(p) => p.time.streams(),
            Self::Batch(_) | Self::Replicas(_) => true,
            Self::Slots(p) => p.time.streams(),
            Self::Handshake(p) => p.time.streams(),
        }
    }

    /// Requests at once beyond which it gets slower rather than faster; `None` where there is no such number.
    #[must_use]
    pub fn knee(&self) -> Option<u32> {
        match self {
            Self::Batch(law) => Some(law.knee),
            _ => None,
        }
    }

    /// Where it has replicas: requests that one is given at most, those it serves at full speed, and its start-up time.
    #[must_use]
    pub fn replica(&self) -> Option<ReplicaShape> {
        match self {
            Self::Replicas(p) => Some(ReplicaShape {
                per: p.per,
                full_speed: p.law.slots,
                start: p.start,
                first: Some(p.first),
            }),
            Self::Slots(p) => Some(ReplicaShape { per: 1, full_speed: 1, start: p.start, first: None }),
            _ => None,
        }
    }

    /// How long it keeps idle connections, where a new one costs something.
    #[must_use]
    pub fn idle_timeout(&self) -> Option<Duration> {
        match self {
            Self::Handshake(p) => Some(p.idle),
            _ => None,
        }
    }
}

/// What there is to know of one replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaShape {
    /// Requests that it is given at once at most.
    pub per: u32,
    /// Requests that it serves side by side at full speed.
    pub full_speed: u32,
    /// From the request for it until it serves.
    pub start: Duration,
    /// Replicas at the beginning; `None`: as many as the policy wants.
    pub first: Option<u32>,
}
