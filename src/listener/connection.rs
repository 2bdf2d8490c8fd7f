//! HTTP/1.1 and HTTP/2 (prior knowledge) on one byte stream, until it ends or a drain does.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::{Request, Response, Version};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use crate::clock::Clock;
use crate::listener::Params;
use crate::listener::patience::{Activity, Impatience, Patient};
use crate::listener::response::{Busy, Guarded, Streams};
use crate::telemetry::{ConnectionFault, Telemetry};

/// Largest head of a request: hyper answers 431 above.
const MAX_HEAD: usize = 64 << 10;

/// What every connection of a worker shares.
#[derive(Clone)]
pub struct Serving {
    /// Timeouts.
    pub params: Arc<Params>,
    /// The clock.
    pub clock: Clock,
    /// Where faults are counted.
    pub telemetry: Arc<Telemetry>,
    /// Cancelled when connections are to end after what they are doing.
    pub drain: CancellationToken,
    /// The same as a flag, raised before `drain` is cancelled.
    pub draining: Arc<AtomicBool>,
    /// Tracks the tasks of HTTP/2 streams.
    pub tasks: TaskTracker,
}

/// Runs HTTP/2 streams so that a drain knows of them.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tracked {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// Serves one connection to its end.
///
/// A drain lets it finish the requests it has, and no more.
pub async fn serve<IO, S, B>(io: IO, service: S, with: Serving)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let activity = Arc::new(Activity::default());
    let streams = Streams::default();
    let io = Patient::new(io, activity.clone(), with.params.clone(), with.clock);
    let service =
        Watched { service, activity: activity.clone(), streams: streams.clone(), clock: with.clock };
    let mut builder = auto::Builder::new(Tracked(with.tasks.clone()));
    // its own timer would end what `Patient` lets live
    builder.http1().header_read_timeout(None).max_buf_size(MAX_HEAD);
    builder.http2().max_header_list_size(MAX_HEAD as u32).max_concurrent_streams(256);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
    let (mut connection, mut drain) = (pin!(connection), pin!(with.drain.cancelled()));
    let mut draining = false;
    let mut registered = false;
    let mut watch: Option<Pin<Box<Sleep>>> = None;
    let patience = with.params.write_timeout;
    let mut nudge: Option<Pin<Box<Sleep>>> = None;
    let idle = with.params.keep_alive_idle;
    let ended = poll_fn(|cx| {
        // the token is asked once to be woken by it and again when its flag is up: asking takes a lock
        if !draining && (!registered || with.draining.load(Ordering::Relaxed)) {
            registered = true;
            if drain.as_mut().poll(cx).is_ready() {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        // hyper does not read again when a response is over, so nothing below it would notice that the
        // connection idles: it is nudged once its time may be over
        if activity.busy.load(Ordering::Relaxed) == 0 && activity.begun.load(Ordering::Relaxed) > 0 {
            let nudge = nudge.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
            while nudge.as_mut().poll(cx).is_ready() {
                let next = with.clock.instant(with.clock.now() + idle);
                nudge.as_mut().reset(next);
                cx.waker().wake_by_ref();
            }
        }
        if activity.multiplexed.load(Ordering::Relaxed) {
            let watch = watch.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience / 2)));
            while watch.as_mut().poll(cx).is_ready() {
                for _ in 0..streams.free_stuck(with.clock.now(), patience) {
                    with.telemetry.connection_fault(ConnectionFault::WriteTimeout);
                }
                let next = watch.deadline() + patience / 2;
                watch.as_mut().reset(next);
            }
        }
        Poll::Pending
    })
    .await;
    if let Err(error) = ended
        && let Some(fault) = fault_of(error.as_ref())
    {
        tracing::debug!(%error, "client connection");
        with.telemetry.connection_fault(fault);
    }
}

/// What a connection's end is counted as. Clients that just go are no fault.
fn fault_of(error: &(dyn StdError + 'static)) -> Option<ConnectionFault> {
    let mut source = Some(error);
    while let Some(e) = source {
        if let Some(io) = e.downcast_ref::<std::io::Error>()
            && let Some(impatience) = io.get_ref().and_then(|inner| inner.downcast_ref::<Impatience>())
        {
            return impatience.fault();
        }
        if let Some(h) = e.downcast_ref::<hyper::Error>() {
            if h.is_parse() {
                return Some(ConnectionFault::MalformedHead);
            }
            if h.is_incomplete_message() || h.is_closed() || h.is_canceled() {
                return None;
            }
        }
        source = e.source();
    }
    Some(ConnectionFault::Broken)
}

/// The service, watched for when its responses are over.
#[derive(Clone)]
struct Watched<S, B> {
    service: S,
    activity: Arc<Activity>,
    streams: Streams<B>,
    clock: Clock,
}

impl<S, B> hyper::service::Service<Request<Incoming>> for Watched<S, B>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Response = Response<Guarded<B>>;
    type Error = Infallible;
    type Future = Answering<S::Future, B>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let multiplexed = request.version() == Version::HTTP_2;
        if multiplexed {
            self.activity.multiplexed.store(true, Ordering::Relaxed);
        }
        let busy = Some(Busy::new(&self.activity, self.clock));
        let streams = multiplexed.then(|| self.streams.clone());
        // the stack is always ready: it waits in its futures
        let answering = self.service.clone().call(request);
        Answering { answering: Box::pin(answering), streams, clock: self.clock, busy }
    }
}

/// The stack's future; its response's body is guarded.
struct Answering<F, B> {
    answering: Pin<Box<F>>,
    streams: Option<Streams<B>>,
    clock: Clock,
    busy: Option<Busy>,
}

impl<F, B> Future for Answering<F, B>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
    B: Body,
{
    type Output = Result<Response<Guarded<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let response = ready!(this.answering.as_mut().poll(cx))?;
        let busy = match this.busy.take() {
            Some(busy) => busy,
            None => return Poll::Pending,
        };
        Poll::Ready(Ok(response.map(|body| Guarded::new(body, this.streams.as_ref(), this.clock, busy))))
    }
}
