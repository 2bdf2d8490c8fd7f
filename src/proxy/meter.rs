//! Wraps a response's body and owns everything that must be let go of exactly once: the permit, the
//! record, the connection. Whichever way the body ends (its end, an error, a client that left), that
//! is when they go.
//!
//! A stream that breaks in the middle has already been given its status. An event stream can still say
//! so in its own language: the open event is closed, an error event follows, and then the body fails,
//! so that the missing end chunk tells the rest. Other bodies can only be cut off.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{self, HeaderName};
use hyper::http::response;
use hyper::{Response, StatusCode};
use tokio::time::Sleep;
use tower::Service;

use crate::clock::Clock;
use crate::policy::units::{MonoTime, Outcome};
use crate::proxy::breaker::{of_fault, of_status};
use crate::proxy::exchange::{Admitted, Exchange, Failure};
use crate::proxy::forward::Answer;
use crate::proxy::respond::broken_stream;
use crate::proxy::usage::Reading;
use crate::proxy::{Body, Permit, Shared, Tunnels};
use crate::telemetry::Ended;
use crate::upstream::{BoxError, Fault, OnDisconnect, Params, ReplyBody};

static QUEUE_MS: HeaderName = HeaderName::from_static("x-tidegate-queue-ms");
static UPSTREAM: HeaderName = HeaderName::from_static("x-tidegate-upstream");

/// Makes [`Meter`].
pub(super) struct Layer(pub(super) Arc<Shared>);

impl<S> tower::Layer<S> for Layer {
    type Service = Meter<S>;

    fn layer(&self, inner: S) -> Meter<S> {
        Meter { inner, shared: self.0.clone() }
    }
}

/// Turns answers into responses that let go of what they hold.
#[derive(Clone)]
pub(super) struct Meter<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Admitted> for Meter<S>
where
    S: Service<Admitted, Response = Answer, Error = Failure>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Admitted) -> Self::Future {
        let answering = self.inner.call(request);
        let shared = self.shared.clone();
        Box::pin(async move { Ok(meter(&shared, answering.await?)) })
    }
}

pub(super) fn meter(shared: &Shared, answer: Answer) -> Response<Body> {
    let Answer { mut head, body, tunnel, group, permit, waited, exchange, .. } = answer;
    let place = permit.place();
    if let Some(waited) = waited {
        let ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        head.headers.insert(&QUEUE_MS, ms.into());
        if let Some(labels) = shared.upstream_labels(group, place.endpoint) {
            head.headers.insert(&UPSTREAM, labels.header.clone());
        }
    }
    if let Some(sides) = tunnel {
        shared.parts.tunnels.open(sides, permit, exchange);
        return Response::from_parts(head, Body::own(Bytes::new()));
    }
    let mut metered = Metered::new(&head, body, permit, exchange, shared.parts.clock, false);
    if let Some(upstream) = shared.endpoint(group, place.endpoint) {
        metered.limit(upstream.params(), &shared.parts.tunnels);
    }
    Response::from_parts(head, Body::metered(metered))
}

/// An answer whose client has left, to be read to its end.
pub(super) fn abandoned(shared: &Shared, answer: Answer) -> Option<Metered> {
    let Answer { head, body, tunnel: None, group, permit, exchange, .. } = answer else { return None };
    let place = permit.place();
    let mut metered = Metered::new(&head, body, permit, exchange, shared.parts.clock, true);
    metered.limit(shared.endpoint(group, place.endpoint)?.params(), &shared.parts.tunnels);
    Some(metered)
}

/// The upstream's body on its way to the client.
pub(super) struct Metered {
    body: ReplyBody,
    /// Gone once the body has ended, one way or another.
    held: Option<(Permit, Box<Exchange>)>,
    status: StatusCode,
    events: bool,
    stage: Stage,
    idle: Duration,
    /// When the whole must be over, and how long it may take.
    total: Option<(MonoTime, Duration)>,
    /// Where it is read to its end if its client leaves, and for how long at most.
    drain: Option<(Tunnels, Duration)>,
    /// Its client has left.
    alone: bool,
    timer: Option<(usize, Pin<Box<Sleep>>)>,
    last: MonoTime,
    clock: Clock,
}

enum Stage {
    Passing,
    /// The error event is out; hyper must be given the chance to write it before the body fails.
    Flushing(BoxError),
    Failing(BoxError),
    Over,
}

impl Metered {
    fn new(
        head: &response::Parts,
        body: ReplyBody,
        permit: Permit,
        mut exchange: Box<Exchange>,
        clock: Clock,
        alone: bool,
    ) -> Self {
        let now = clock.now();
        exchange.reading = exchange.expected.and_then(|_| Reading::new(head, now));
        let mut this = Self {
            events: is_event_stream(head) && body.size_hint().exact().is_none(),
            body,
            held: Some((permit, exchange)),
            status: head.status,
            stage: Stage::Passing,
            idle: Duration::MAX,
            total: None,
            drain: None,
            alone,
            timer: None,
            last: now,
            clock,
        };
        if this.body.is_end_stream() {
            this.over();
        }
        this
    }

    /// Sets how patient to be with it.
    fn limit(&mut self, params: &Params, tunnels: &Tunnels) {
        self.idle = params.stream_idle_timeout;
        let began = self.held.as_ref().and_then(|(_, exchange)| exchange.record.dispatched);
        if !params.total_timeout.is_zero() {
            self.total = began.map(|began| (began + params.total_timeout, params.total_timeout));
        }
        let tells = self.held.as_ref().is_some_and(|(_, exchange)| exchange.reading.is_some());
        if tells && params.on_disconnect == OnDisconnect::Drain {
            self.drain = Some((tunnels.clone(), params.drain_limit));
        }
    }

    /// Its client has left: whether there is something to read, and where and how long that may be done.
    pub(super) fn left(&mut self) -> Option<(Tunnels, Duration)> {
        if self.held.is_none() || !matches!(self.stage, Stage::Passing) {
            return None;
        }
        // many clients close at the last event, before the body's end is there
        if self.held.as_ref().is_some_and(|(_, exchange)| exchange.told_all()) {
            self.over();
            return None;
        }
        self.alone = true;
        self.drain.take()
    }

    /// The body is whole: everything goes back now, not when the client has read it.
    fn over(&mut self) {
        self.stage = Stage::Over;
        if let Some((permit, mut exchange)) = self.held.take() {
            let told = exchange.read(permit.costs(), true);
            if told.error
                && let Some(times) = exchange.seldom("error_in_answer")
            {
                let upstream = exchange.record.upstream.as_deref();
                tracing::warn!(
                    upstream,
                    status = self.status.as_u16(),
                    times,
                    "its answer tells of an error"
                );
            }
            exchange.record.ended = match self.status.as_u16() {
                _ if self.alone => Ended::Cancelled,
                ..400 if !told.error => Ended::Success,
                _ => Ended::UpstreamError,
            };
            // an error behind a good status may be the client's doing: it says nothing of the upstream
            let outcome = if told.error { Outcome::Ignore } else { of_status(self.status) };
            permit.finish(outcome, told.sample);
        }
    }

    fn broke(&mut self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let (code, event) = broken_stream(&fault);
        if let Some((permit, mut exchange)) = self.held.take() {
            exchange.read(permit.costs(), false);
            exchange.record.ended = if self.alone { Ended::Cancelled } else { Ended::Aborted };
            exchange.record.reason = Some(code);
            permit.finish(of_fault(&fault), None);
            if let Some(times) = exchange.seldom(fault.kind()) {
                let upstream = exchange.record.upstream.as_deref();
                tracing::warn!(upstream, %fault, times, "its answer broke off");
            }
        }
        if self.events {
            self.stage = Stage::Flushing(Box::new(fault));
            return Poll::Ready(Some(Ok(Frame::data(format!("\n\ndata: {event}\n\n").into()))));
        }
        self.stage = Stage::Over;
        Poll::Ready(Some(Err(Box::new(fault))))
    }

    fn poll_passing(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.last = self.clock.now();
                if let Some((until, whole)) = self.total
                    && self.last >= until
                    && !self.body.is_end_stream()
                {
                    return self.broke(Fault::TotalTimeout(whole));
                }
                if let (Some((permit, exchange)), Some(data)) = (&mut self.held, frame.data_ref()) {
                    exchange.record.response_bytes += data.len() as u64;
                    if let Some(prompt) = exchange.piece(data, self.last) {
                        permit.first_token(prompt);
                    }
                }
                // hyper's server does not ask again once the end is known
                if self.body.is_end_stream() {
                    self.over();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => self.broke(Fault::Broken(error)),
            Poll::Ready(None) => {
                self.over();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let fault = ready!(self.poll_late(cx));
                self.broke(fault)
            }
        }
    }

    /// One timer per stream, moved only when it fires: a stream of a thousand events arms it a few times.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Fault> {
        // an armed timer wakes the task that armed it: while that is this one, asking it is enough
        let task = cx.waker().data() as usize;
        if self.timer.as_ref().is_some_and(|(armed_by, timer)| *armed_by == task && !timer.is_elapsed()) {
            return Poll::Pending;
        }
        loop {
            let idle = (self.last + self.idle, Fault::IdleTimeout(self.idle));
            let (until, fault) = match self.total {
                Some((until, whole)) if until <= idle.0 => (until, Fault::TotalTimeout(whole)),
                _ => idle,
            };
            let at = self.clock.instant(until);
            let (armed_by, timer) =
                self.timer.get_or_insert_with(|| (task, Box::pin(tokio::time::sleep_until(at))));
            *armed_by = task;
            ready!(timer.as_mut().poll(cx));
            if self.clock.now() >= until {
                return Poll::Ready(fault);
            }
            timer.as_mut().reset(at);
        }
    }
}

impl Drop for Metered {
    /// The client left: what was said until then is still worth knowing.
    fn drop(&mut self) {
        if let Some((permit, exchange)) = &mut self.held {
            exchange.read(permit.costs(), false);
        }
    }
}

fn is_event_stream(head: &response::Parts) -> bool {
    !head.headers.contains_key(header::CONTENT_ENCODING)
        && head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|v| v.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream"))
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match std::mem::replace(&mut this.stage, Stage::Over) {
            Stage::Passing => {
                this.stage = Stage::Passing;
                this.poll_passing(cx)
            }
            Stage::Flushing(error) => {
                this.stage = Stage::Failing(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Stage::Failing(error) => Poll::Ready(Some(Err(error))),
            Stage::Over => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self.stage {
            Stage::Passing => self.body.is_end_stream(),
            Stage::Flushing(_) | Stage::Failing(_) => false,
            Stage::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
