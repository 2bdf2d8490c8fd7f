//! What goes with a request from its first byte to its last: its record, and what the stages made of it.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::http::request;
use hyper::upgrade::OnUpgrade;

use crate::clock;
use crate::policy::engine::Arrival;
use crate::policy::units::MonoTime;
use crate::proxy::respond::Trouble;
use crate::proxy::route::Route;
use crate::proxy::{Permit, Shared};
use crate::telemetry::Record;
use crate::upstream::Payload;

/// One request's record. It is told exactly once, when this is dropped: also when the client left in
/// the middle of anything.
pub(super) struct Exchange {
    pub(super) record: Record,
    shared: Arc<Shared>,
}

impl Exchange {
    pub(super) fn new(record: Record, shared: Arc<Shared>) -> Box<Self> {
        Box::new(Self { record, shared })
    }

    pub(super) fn now(&self) -> MonoTime {
        self.shared.parts.clock.now()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let parts = &self.shared.parts;
        parts.telemetry.finish(parts.clock.now(), clock::wall, &self.record);
    }
}

/// A request that could not be served: why, and its record.
pub(super) struct Failure {
    pub(super) trouble: Trouble,
    pub(super) exchange: Box<Exchange>,
}

impl Failure {
    pub(super) fn new(trouble: Trouble, exchange: Box<Exchange>) -> Self {
        Self { trouble, exchange }
    }
}

/// A request whose head is in order.
pub(super) struct Arrived {
    pub(super) head: request::Parts,
    pub(super) body: Incoming,
    pub(super) route: Route,
    /// The client's side of an upgrade, where it asks for one.
    pub(super) upgrade: Option<OnUpgrade>,
    pub(super) exchange: Box<Exchange>,
}

/// A request whose sender is known.
pub(super) struct Authed(pub(super) Arrived);

/// A request that is understood as far as we need to.
pub(super) struct Classified {
    pub(super) head: request::Parts,
    pub(super) payload: Payload,
    /// Memory its body holds.
    pub(super) memory: Option<super::intake::Held>,
    pub(super) upgrade: Option<OnUpgrade>,
    pub(super) arrival: Arrival,
    /// Inference that leaves nothing behind at the upstream: doing it twice does no harm.
    pub(super) inference: bool,
    /// The moment after which its client does not want the head any more, where it said so to us.
    pub(super) answer_by: Option<MonoTime>,
    pub(super) exchange: Box<Exchange>,
}

/// A request that may go.
pub(super) struct Admitted {
    pub(super) request: Classified,
    pub(super) permit: Permit,
    /// Time it waited, if it took a permit.
    pub(super) waited: Option<Duration>,
}
