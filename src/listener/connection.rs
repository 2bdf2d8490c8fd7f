//! HTTP/1.1 and HTTP/2 (prior knowledge) on one byte stream, until it ends or a drain does.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
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

/// How often an HTTP/2 client is asked whether it is still there.
const PING: Duration = Duration::from_secs(30);
/// How long a drain waits for the first request of a connection that has none yet.
const LAST_REQUEST: Duration = Duration::from_secs(1);
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
    let mut io = Patient::new(io, activity.clone(), with.params.clone(), with.clock);
    let service =
        Watched { service, activity: activity.clone(), streams: streams.clone(), clock: with.clock };
    let mut drain = pin!(with.drain.cancelled());
    let http2 = {
        let mut sniffing = pin!(io.sniff());
        tokio::select! {
            biased;
            sniffed = sniffing.as_mut() => sniffed,
            // it may have come out of the backlog with its request on the way
            () = drain.as_mut() => match tokio::time::timeout(LAST_REQUEST, sniffing).await {
                Ok(sniffed) => sniffed,
                Err(_) => return,
            },
        }
    };
    let connection = match http2 {
        Err(error) => return count(&with.telemetry, &error),
        Ok(false) => {
            let mut http1 = http1::Builder::new();
            // its own timer would end what `Patient` lets live
            http1.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD);
            Connection::Http1(http1.serve_connection(TokioIo::new(io), service).with_upgrades())
        }
        Ok(true) => {
            let mut http2 = http2::Builder::new(Tracked(with.tasks.clone()));
            http2
                .keep_alive_interval(PING)
                .timer(TokioTimer::new())
                .max_header_list_size(MAX_HEAD as u32)
                .max_concurrent_streams(256);
            Connection::Http2(Box::pin(http2.serve_connection(TokioIo::new(io), service)))
        }
    };
    let mut connection = pin!(connection);
    let mut draining = false;
    let mut registered = false;
    let mut watch: Option<Pin<Box<Sleep>>> = None;
    let patience = with.params.write_timeout;
    let mut nudge: Option<Pin<Box<Sleep>>> = None;
    let idle = with.params.keep_alive_idle;
    let mut tell = |connection: Pin<&mut Connection<_, _>>, cx: &mut Context<'_>| {
        // the token is asked once to be woken by it and again when its flag is up: asking takes a lock
        if draining || (registered && !with.draining.load(Ordering::Relaxed)) {
            return;
        }
        registered = true;
        if drain.as_mut().poll(cx).is_ready() {
            draining = true;
            activity.last.store(true, Ordering::Relaxed);
            connection.drain();
            cx.waker().wake_by_ref();
        }
    };
    let ended = poll_fn(|cx| {
        // a response that is ready now is to say that it is the last; where none is on its way, a request may have come, and
        // is read first
        if activity.busy.load(Ordering::Relaxed) > 0 {
            tell(connection.as_mut(), cx);
        }
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        tell(connection.as_mut(), cx);
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
    if let Err(error) = ended {
        count(&with.telemetry, &error);
    }
}

fn count(telemetry: &Telemetry, error: &(dyn StdError + 'static)) {
    tracing::debug!(%error, "client connection");
    if let Some(fault) = fault_of(error) {
        telemetry.connection_fault(fault);
    }
}

/// A connection once its protocol is known. HTTP/2's state is boxed: it is three times the size.
enum Connection<A, B> {
    Http1(A),
    Http2(Pin<Box<B>>),
}

/// The two of hyper's connections have this in common, but no trait for it.
trait Drain: Future<Output = hyper::Result<()>> {
    /// Ends the connection after what it is doing.
    fn drain(self: Pin<&mut Self>);
}

impl<IO, S, B> Drain for http1::UpgradeableConnection<IO, S>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<IO, S, B, E> Drain for http2::Connection<IO, S, E>
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<S::Future, B>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<A: Drain + Unpin, B: Drain> Connection<A, B> {
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        match self.get_mut() {
            Self::Http1(connection) => Pin::new(connection).poll(cx),
            Self::Http2(connection) => connection.as_mut().poll(cx),
        }
    }

    fn drain(self: Pin<&mut Self>) {
        match self.get_mut() {
            Self::Http1(connection) => Pin::new(connection).drain(),
            Self::Http2(connection) => connection.as_mut().drain(),
        }
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
        let agreed = request.version() == Version::HTTP_10 || says_close(request.headers());
        if agreed && request.body().is_end_stream() {
            self.activity.last.store(true, Ordering::Relaxed);
        }
        let busy = Some(Busy::new(&self.activity, self.clock));
        let streams = multiplexed.then(|| self.streams.clone());
        // the stack is always ready: it waits in its futures
        let answering = self.service.clone().call(request);
        let activity = self.activity.clone();
        Answering { answering: Box::pin(answering), activity, streams, clock: self.clock, busy }
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    let said = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    said.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case("close"))
}

/// The stack's future; its response's body is guarded.
struct Answering<F, B> {
    answering: Pin<Box<F>>,
    activity: Arc<Activity>,
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
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            this.activity.upgraded.store(true, Ordering::Relaxed);
        }
        let busy = match this.busy.take() {
            Some(busy) => busy,
            None => return Poll::Pending,
        };
        Poll::Ready(Ok(response.map(|body| Guarded::new(body, this.streams.as_ref(), this.clock, busy))))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};
    use prometheus::Registry;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_is_ready_when_the_drain_begins_says_that_it_is_the_last() {
        let clock = Clock::start();
        let telemetry = Telemetry::new(&Default::default(), clock, 1, &Registry::new()).unwrap();
        let with = Serving {
            params: Arc::default(),
            clock,
            telemetry,
            drain: CancellationToken::new(),
            draining: Arc::default(),
            tasks: TaskTracker::new(),
        };
        let (came, comes) = oneshot::channel();
        let (answer, answered) = oneshot::channel::<()>();
        let parts = Arc::new(std::sync::Mutex::new(Some((came, answered))));
        let service = tower::service_fn(move |_: Request<Incoming>| {
            let parts = parts.lock().unwrap().take();
            async move {
                let (came, answered) = parts.unwrap();
                came.send(()).unwrap();
                answered.await.unwrap();
                Ok(Response::new(Full::new(Bytes::from("x")).boxed()))
            }
        });
        let (mut client, server) = tokio::io::duplex(4096);
        let asks = async {
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            comes.await.unwrap();
            // both before the connection is looked at again
            with.draining.store(true, Ordering::Relaxed);
            with.drain.cancel();
            answer.send(()).unwrap();
            let mut response = String::new();
            client.read_to_string(&mut response).await.unwrap();
            response
        };
        let ((), response) = tokio::join!(serve(server, service, with.clone()), asks);
        assert!(response.contains("connection: close\r\n"), "{response}");
    }
}
