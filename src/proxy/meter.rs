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
use crate::proxy::breaker::of_status;
use crate::proxy::exchange::{Admitted, Exchange, Failure};
use crate::proxy::forward::Answer;
use crate::proxy::respond::broken_stream;
use crate::proxy::{Body, Parts, Permit, Shared};
use crate::telemetry::Ended;
use crate::upstream::{BoxError, Fault, ReplyBody};

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

fn meter(shared: &Shared, answer: Answer) -> Response<Body> {
    let Answer { mut head, body, tunnel, permit, waited, exchange } = answer;
    if let Some(waited) = waited {
        let ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        head.headers.insert(&QUEUE_MS, ms.into());
        head.headers.insert(&UPSTREAM, shared.upstream_name.clone());
    }
    if let Some(sides) = tunnel {
        shared.parts.tunnels.open(sides, permit, exchange);
        return Response::from_parts(head, Body::own(Bytes::new()));
    }
    let metered = Metered::new(&head, body, permit, exchange, &shared.parts);
    Response::from_parts(head, Body::metered(metered))
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
        exchange: Box<Exchange>,
        parts: &Parts,
    ) -> Self {
        let mut this = Self {
            events: is_event_stream(head) && body.size_hint().exact().is_none(),
            body,
            held: Some((permit, exchange)),
            status: head.status,
            stage: Stage::Passing,
            idle: parts.upstream.params().stream_idle_timeout,
            timer: None,
            last: parts.clock.now(),
            clock: parts.clock,
        };
        if this.body.is_end_stream() {
            this.over();
        }
        this
    }

    /// The body is whole: everything goes back now, not when the client has read it.
    fn over(&mut self) {
        self.stage = Stage::Over;
        if let Some((permit, mut exchange)) = self.held.take() {
            exchange.record.ended =
                if self.status.as_u16() < 400 { Ended::Success } else { Ended::UpstreamError };
            permit.finish(of_status(self.status), None);
        }
    }

    fn broke(&mut self, fault: Fault) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let (code, event) = broken_stream(&fault);
        if let Some((permit, mut exchange)) = self.held.take() {
            exchange.record.ended = Ended::Aborted;
            exchange.record.reason = Some(code);
            permit.finish(Outcome::Overload, None);
        }
        tracing::debug!(%fault, "response broke off");
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
                if let (Some((_, exchange)), Some(data)) = (&mut self.held, frame.data_ref()) {
                    exchange.record.response_bytes += data.len() as u64;
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
                ready!(self.poll_idle(cx));
                self.broke(Fault::IdleTimeout(self.idle))
            }
        }
    }

    /// One timer per stream, moved only when it fires: a stream of a thousand events arms it a few times.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // an armed timer wakes the task that armed it: while that is this one, asking it is enough
        let task = cx.waker().data() as usize;
        if self.timer.as_ref().is_some_and(|(armed_by, timer)| *armed_by == task && !timer.is_elapsed()) {
            return Poll::Pending;
        }
        loop {
            let until = self.last + self.idle;
            let at = self.clock.instant(until);
            let (armed_by, timer) =
                self.timer.get_or_insert_with(|| (task, Box::pin(tokio::time::sleep_until(at))));
            *armed_by = task;
            ready!(timer.as_mut().poll(cx));
            if self.clock.now() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(at);
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
