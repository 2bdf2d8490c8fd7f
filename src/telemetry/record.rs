//! What is remembered of one request until it is told.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;

use crate::policy::units::{MonoTime, Priority, TenantId};
use crate::telemetry::{Cost, Ended, Endpoint};

/// Our name for one request: `x-tidegate-request-id`, 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// One request, as the pipeline saw it. Its end is the `now` given to
/// [`WorkerTelemetry::finish`](crate::telemetry::WorkerTelemetry::finish).
///
/// ```text
/// arrived ── body read ── asked ── waits ── admitted/dispatched ── connected ── first_byte ── end
///                           └──── queue ────┘     └── connect ──┘                              │
///    └───────────────────────────── ttft ────────────────────────────────────────┘             │
///                                                 └───────────────── upstream ─────────────────┘
///    └────────────────────────────────────── total ────────────────────────────────────────────┘
/// ```
#[derive(Clone, Debug)]
pub struct Record {
    /// Our id.
    pub request_id: RequestId,
    /// The upstream's own `x-request-id`.
    pub upstream_request_id: Option<HeaderValue>,
    /// Who sent it.
    pub tenant: TenantId,
    /// Which API.
    pub endpoint: Endpoint,
    /// The model it names.
    pub model: Option<Arc<str>>,
    /// The upstream group it belongs to.
    pub group: Arc<str>,
    /// The upstream that was tried last.
    pub upstream: Option<Arc<str>>,
    /// The status the client was given; `None` if it left before there was one.
    pub status: Option<u16>,
    /// Our error code, when the answer is ours.
    pub reason: Option<&'static str>,
    /// How it ended.
    pub ended: Ended,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// Whether it had to wait for a permit.
    pub queued: bool,
    /// The class it queued in.
    pub priority: Priority,
    /// What the answer was found to cost.
    pub cost: Cost,
    /// When its head had been read.
    pub arrived: MonoTime,
    /// When it asked for a permit; `None` if it takes none or was refused before.
    pub asked: Option<MonoTime>,
    /// When it got its first permit.
    pub admitted: Option<MonoTime>,
    /// How long it waited for the permits of further tries.
    pub waited_again: Duration,
    /// When the last attempt went for a connection.
    pub dispatched: Option<MonoTime>,
    /// When it had the connection that was used last.
    pub connected: Option<MonoTime>,
    /// When the upstream's response head was there.
    pub first_byte: Option<MonoTime>,
    /// Attempts at the upstream.
    pub attempts: u32,
    /// Permits of its group when it was admitted.
    pub permits: u32,
    /// Requests in flight when it was admitted, itself included.
    pub in_flight: u32,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the response's body.
    pub response_bytes: u64,
}

impl Record {
    /// The record of a request that has just arrived: nothing has happened to it yet.
    #[must_use]
    pub fn new(
        request_id: RequestId,
        endpoint: Endpoint,
        group: impl Into<Arc<str>>,
        arrived: MonoTime,
    ) -> Self {
        Self {
            request_id,
            upstream_request_id: None,
            tenant: TenantId::default(),
            endpoint,
            model: None,
            group: group.into(),
            upstream: None,
            status: None,
            reason: None,
            ended: Ended::Cancelled,
            stream: false,
            queued: false,
            priority: Priority::default(),
            cost: Cost::default(),
            arrived,
            asked: None,
            admitted: None,
            waited_again: Duration::ZERO,
            dispatched: None,
            connected: None,
            first_byte: None,
            attempts: 0,
            permits: 0,
            in_flight: 0,
            request_bytes: 0,
            response_bytes: 0,
        }
    }

    /// What the attempt that failed left here is not the next one's.
    pub fn another_try(&mut self) {
        self.queued = true;
        (self.status, self.upstream_request_id) = (None, None);
        (self.dispatched, self.connected, self.first_byte) = (None, None, None);
    }

    /// The spans between the moments, for a request that ended at `end`.
    #[must_use]
    pub(super) fn spans(&self, end: MonoTime) -> Spans {
        let queue = match (self.asked, self.admitted) {
            (Some(asked), Some(admitted)) => Some(admitted.since(asked) + self.waited_again),
            // Those who waited in vain count as well: else the worst queue looks like the best.
            (Some(asked), None) if self.queued => Some(end.since(asked)),
            _ => None,
        };
        let connect = self.dispatched.zip(self.connected).map(|(from, to)| to.since(from));
        // An instant refusal is no latency: a flood of them would make an overload look fast.
        let at_once = self.ended == Ended::Refused && !self.queued;
        Spans {
            queue,
            connect,
            ttft: self.first_byte.map(|at| at.since(self.arrived)),
            upstream: self.dispatched.map(|from| end.since(from)),
            total: end.since(self.arrived),
            turned_away_at_once: at_once,
        }
    }
}

/// How long the parts of one request took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spans {
    pub(super) queue: Option<Duration>,
    pub(super) connect: Option<Duration>,
    pub(super) ttft: Option<Duration>,
    pub(super) upstream: Option<Duration>,
    pub(super) total: Duration,
    pub(super) turned_away_at_once: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lie_between_the_moments_that_bound_them() {
        let s = MonoTime::from_secs;
        let mut r = Record::new(RequestId(1), Endpoint::Chat, "default", s(10));
        r.asked = Some(s(11));
        r.queued = true;
        assert_eq!(r.spans(s(20)).queue, Some(Duration::from_secs(9)), "it left while it waited");
        r.admitted = Some(s(14));
        r.dispatched = Some(s(14));
        r.connected = Some(s(15));
        r.first_byte = Some(s(17));
        let spans = r.spans(s(20));
        assert_eq!(spans.queue, Some(Duration::from_secs(3)));
        assert_eq!(spans.connect, Some(Duration::from_secs(1)));
        assert_eq!(spans.ttft, Some(Duration::from_secs(7)));
        assert_eq!(spans.upstream, Some(Duration::from_secs(6)));
        assert_eq!(spans.total, Duration::from_secs(10));
    }

    #[test]
    fn only_a_refusal_that_never_waited_is_at_once() {
        let mut r = Record::new(RequestId(1), Endpoint::Chat, "default", MonoTime::ZERO);
        r.ended = Ended::Refused;
        r.asked = Some(MonoTime::ZERO);
        assert!(r.spans(MonoTime::ZERO).turned_away_at_once);
        assert_eq!(r.spans(MonoTime::ZERO).queue, None);
        r.queued = true;
        assert!(!r.spans(MonoTime::ZERO).turned_away_at_once);
    }
}
