//! What goes with a request from its first byte to its last: its record, and what the stages made of it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::http::request;
use hyper::upgrade::OnUpgrade;

use crate::clock;
use crate::policy::engine::Arrival;
use crate::policy::units::{MonoTime, Tokens};
use crate::proxy::respond::Trouble;
use crate::proxy::route::Route;
use crate::proxy::usage::{Expected, Reading, Told};
use crate::proxy::{Costs, Permit, Shared};
use crate::telemetry::Record;
use crate::upstream::{Payload, Repeat};

/// One request's record. It is told exactly once, when this is dropped: also when the client left in
/// the middle of anything.
pub(super) struct Exchange {
    pub(super) record: Record,
    /// What it was expected to cost, if it takes a permit.
    pub(super) expected: Option<Expected>,
    /// A 401 would speak of the key, and of nothing that its client chose: an account, or a path that no key opens.
    pub(super) blames_key: bool,
    /// Its answer, where that is read for what it cost.
    pub(super) reading: Option<Reading>,
    shared: Arc<Shared>,
}

impl Exchange {
    pub(super) fn new(record: Record, shared: Arc<Shared>) -> Box<Self> {
        Box::new(Self { record, expected: None, blames_key: false, reading: None, shared })
    }

    /// A piece of the answer goes by: the prompt's tokens, as estimated, if it has the first token of a stream.
    pub(super) fn piece(&mut self, piece: &[u8], now: MonoTime) -> Option<Tokens> {
        let first = self.reading.as_mut()?.piece(piece, now);
        self.expected.filter(|_| first).map(|expected| expected.prompt())
    }

    /// The answer said that it is over, and all of that went to the client.
    pub(super) fn told_all(&self) -> bool {
        self.reading.as_ref().is_some_and(Reading::told_all)
    }

    /// The answer has gone by, as far as it came: tells the record, and what is kept of costs.
    pub(super) fn read(&mut self, costs: &Costs, whole: bool) -> Told {
        let now = self.now();
        match (&self.expected, self.reading.take()) {
            (Some(expected), Some(reading)) => reading.tell(&mut self.record, expected, costs, whole, now),
            _ => Told::default(),
        }
    }

    /// Its upstream has given this kind of trouble: if the log is to hear of it now, how often it has since it last did.
    pub(super) fn seldom(&self, kind: &'static str) -> Option<u64> {
        let upstream = self.record.upstream.as_ref()?;
        self.shared.parts.routes.seldom.again(self.now(), upstream, kind)
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

/// The model a request names, and where in its body the name stands.
#[derive(Clone)]
pub(super) struct Model {
    pub(super) name: Arc<str>,
    pub(super) span: Option<Range<usize>>,
    /// The body is a form, else JSON.
    pub(super) form: bool,
}

/// A request that is understood as far as we need to.
pub(super) struct Classified {
    pub(super) head: request::Parts,
    pub(super) payload: Payload,
    /// Memory its body holds.
    pub(super) memory: Option<super::intake::Held>,
    pub(super) upgrade: Option<OnUpgrade>,
    pub(super) arrival: Arrival,
    /// The number of the group it goes to.
    pub(super) group: usize,
    /// The model it names.
    pub(super) model: Option<Model>,
    /// Inference that leaves nothing behind at the upstream: doing it twice does no harm.
    pub(super) inference: bool,
    /// The moment after which its client does not want the head any more, where it said so to us.
    pub(super) answer_by: Option<MonoTime>,
    pub(super) exchange: Box<Exchange>,
}

/// One try of a request that may go.
pub(super) struct Attempt {
    /// Cleaned of what ends here; the URI is the client's.
    pub(super) head: request::Parts,
    pub(super) payload: Payload,
    pub(super) upgrade: Option<OnUpgrade>,
    pub(super) group: usize,
    pub(super) model: Option<Model>,
    /// Whether a pooled connection that turns out dead may be replaced.
    pub(super) repeat: Repeat,
    /// Becomes true when it is put on a connection, where somebody has to know.
    pub(super) sent: Option<Arc<AtomicBool>>,
    pub(super) answer_by: Option<MonoTime>,
    pub(super) permit: Permit,
    pub(super) waited: Option<Duration>,
    pub(super) exchange: Box<Exchange>,
}

/// A request that may go.
pub(super) struct Admitted {
    pub(super) request: Classified,
    pub(super) permit: Permit,
    /// Time it waited, if it took a permit.
    pub(super) waited: Option<Duration>,
}
