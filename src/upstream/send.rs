//! One request, one answer: connect or reuse, send, wait for the head, and judge it.

mod http2;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{Method, Request, Response, StatusCode, Version};
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::policy::units::MonoTime;
use crate::telemetry::Connects;
use crate::upstream::body::Progress;
use crate::upstream::card::Lifetime;
use crate::upstream::connect::KEEP_ALIVE;
use crate::upstream::fault::timed_out;
use crate::upstream::headers::join_cookies;
use crate::upstream::keys::authorizations;
use crate::upstream::pool::{Lease, Pool, Rules};
use crate::upstream::{
    Dial, Fault, Network, Params, Payload, ReplyBody, Resolve, SetupError, System, Target, clean_response,
};

/// Interim (1xx) responses to one request that are put up with.
const MAX_INTERIM: u8 = 8;
static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A pooled connection that was dead when it was taken shows within this time, unless its peer vanished without a word:
/// then the kernel gives up on what nobody acknowledges, before it asks whether the peer is alive.
const FOUND_DEAD: Duration = Duration::from_secs(1);

/// What happened on the way, for the log.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Time it took to make a connection, where one was made.
    pub connect: Option<Duration>,
    /// Times the request was put on a connection.
    pub attempts: u32,
    /// When it was, last.
    pub put_at: MonoTime,
    /// For who may drop the request in the middle, and has to know whether it ever was.
    pub sent: Option<Arc<AtomicBool>>,
}

impl Trace {
    /// The request is put on a connection.
    pub(super) fn put(&mut self, now: MonoTime) {
        self.attempts += 1;
        self.put_at = now;
        if let Some(sent) = &self.sent {
            sent.store(true, Ordering::Relaxed);
        }
    }
}

/// Whether a request may go on a connection that may turn out dead, and so be sent twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// No: it is too large to be kept, say.
    Never,
    /// If its method is idempotent, or its sender gave it an `Idempotency-Key`.
    IfIdempotent,
    /// Yes.
    Always,
}

/// One upstream: where it is, how to reach it, and its open connections.
pub struct Upstream {
    name: Arc<str>,
    pub(super) target: Target,
    pub(super) keys: Vec<HeaderValue>,
    pub(super) params: Params,
    pub(super) dial: Box<dyn Dial>,
    /// For upgrades, where they cannot go over what `dial` makes.
    pub(super) dial_tunnels: Option<Box<dyn Dial>>,
    pub(super) pool: Arc<Pool>,
    pub(super) clock: Clock,
    /// Held by whoever makes an HTTP/2 connection of a worker's, so that a burst does not make a hundred.
    pub(super) opening: Vec<tokio::sync::Mutex<()>>,
    /// Has each worker look at its connections.
    pub(super) word: Vec<Notify>,
    pub(super) connects: Arc<Connects>,
}

impl Upstream {
    /// An upstream over the network.
    ///
    /// # Errors
    /// When its TLS settings or host cannot be used.
    pub fn new(params: Params, workers: usize, clock: Clock) -> Result<Arc<Self>, SetupError> {
        Self::with_resolver(params, Arc::new(System), workers, clock)
    }

    /// An upstream over the network whose name `resolver` knows.
    ///
    /// # Errors
    /// When its TLS settings or host cannot be used.
    pub fn with_resolver(
        params: Params,
        resolver: Arc<dyn Resolve>,
        workers: usize,
        clock: Clock,
    ) -> Result<Arc<Self>, SetupError> {
        let dial = Network::new(&params, resolver)?;
        let tls = params.base_url.scheme_str() == Some("https");
        let tunnels = if params.http2 && tls {
            // where TLS settles on HTTP/2, a WebSocket needs a connection that did not
            Some(Box::new(dial.for_tunnels(&params)?) as Box<dyn Dial>)
        } else {
            None
        };
        Self::with_dials(params, Box::new(dial), tunnels, workers, clock)
    }

    /// An upstream reached by `dial`.
    ///
    /// # Errors
    /// When its host or key cannot be used.
    pub fn with_dial(
        params: Params,
        dial: Box<dyn Dial>,
        workers: usize,
        clock: Clock,
    ) -> Result<Arc<Self>, SetupError> {
        Self::with_dials(params, dial, None, workers, clock)
    }

    fn with_dials(
        params: Params,
        dial: Box<dyn Dial>,
        dial_tunnels: Option<Box<dyn Dial>>,
        workers: usize,
        clock: Clock,
    ) -> Result<Arc<Self>, SetupError> {
        let rules = Rules {
            lifetime: Lifetime { idle_timeout: params.idle_timeout, refresh: params.refresh },
            // a new TCP connection is cheaper than waking another thread for every chunk
            steal: params.base_url.scheme_str() == Some("https") && !params.http2,
            http2: params.http2,
        };
        Ok(Arc::new(Self {
            name: params.name.as_str().into(),
            target: Target::new(&params.base_url)?,
            keys: authorizations(&params)?,
            pool: Pool::new(workers, rules, clock),
            params,
            dial,
            dial_tunnels,
            clock,
            opening: (0..workers).map(|_| tokio::sync::Mutex::new(())).collect(),
            word: (0..workers).map(|_| Notify::new()).collect(),
            connects: Arc::default(),
        }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its settings.
    #[must_use]
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Sends a request and waits for its response's head.
    ///
    /// `head` has been through [`crate::upstream::clean_request`]; its URI is the client's. `worker`
    /// says whose connections to prefer. Dropping the future closes the connection, which is how a
    /// client that leaves cancels its request.
    ///
    /// A reused connection that was found dead, before the first response byte, is replaced by a new one, once; over
    /// HTTP/2 by one that all whom it failed share, and not where only its stream was reset. Because such a request may
    /// be sent twice, only one that may be repeated is put on a reused connection at all (`may_reuse`).
    ///
    /// # Errors
    /// [`Fault`], when there is no head that can be passed on.
    pub async fn send(
        &self,
        worker: usize,
        head: request::Parts,
        payload: Payload,
        first_byte: Duration,
        repeat: Repeat,
        trace: &mut Trace,
    ) -> Result<Response<ReplyBody>, Fault> {
        let progress = match &payload {
            Payload::Stream(upload) => Some(upload.progress()),
            _ => None,
        };
        let sending = self.send_untimed(worker, head, payload, repeat, trace);
        let mut sending = std::pin::pin!(sending);
        let mut seen = progress.as_ref().map(|_| 0);
        loop {
            if let Ok(result) = tokio::time::timeout(first_byte, sending.as_mut()).await {
                // of a client that broke off nobody else is to blame, whatever became of the connection
                let of_upload = || progress.as_deref().and_then(Progress::fault);
                return result.map_err(|fault| of_upload().unwrap_or(fault));
            }
            // a long upload that still moves has not begun to wait for its answer; one that has just ended
            // has waited for less than the whole time
            let sent = progress.as_deref().and_then(Progress::bytes);
            if sent == seen {
                return Err(Fault::FirstByteTimeout(first_byte));
            }
            seen = sent;
        }
    }

    /// Whether a request may be put on a connection that may turn out dead: it can be sent again, and
    /// doing so does no harm (RFC 9110 §9.2.2), or its sender said so with an `Idempotency-Key`.
    fn may_reuse(head: &request::Parts, payload: &Payload, repeat: Repeat) -> bool {
        use Method as M;
        let idempotent = || {
            matches!(head.method, M::GET | M::HEAD | M::OPTIONS | M::TRACE | M::PUT | M::DELETE)
                || head.headers.contains_key(&IDEMPOTENCY_KEY)
        };
        !matches!(payload, Payload::Stream(_))
            && match repeat {
                Repeat::Never => false,
                Repeat::IfIdempotent => idempotent(),
                Repeat::Always => true,
            }
    }

    async fn send_untimed(
        &self,
        worker: usize,
        mut head: request::Parts,
        payload: Payload,
        repeat: Repeat,
        trace: &mut Trace,
    ) -> Result<Response<ReplyBody>, Fault> {
        let upgrade = head.headers.contains_key(header::UPGRADE);
        let http2 = self.params.http2 && !upgrade;
        head.uri = self.target.uri(&head.uri, http2)?;
        if http2 {
            head.version = Version::HTTP_2;
            head.headers.remove(header::CONNECTION);
            head.headers.remove(header::HOST);
        } else {
            if head.version == Version::HTTP_2 {
                join_cookies(&mut head.headers);
            }
            head.version = Version::HTTP_11;
            head.headers.insert(header::HOST, self.target.host().clone());
        }
        payload.measure(&mut head.headers);
        let reuse = Self::may_reuse(&head, &payload, repeat) && !upgrade;
        if !reuse && !upgrade && !http2 {
            // its own new connection comes back to the pool: without this they would pile up there
            drop(self.pool.checkout(worker));
        }
        let mut request = Request::from_parts(head, payload);
        let (mut first, mut made_since) = (reuse, MonoTime::ZERO);
        loop {
            let spare = if first { again(&request) } else { None };
            let began = self.clock.now();
            let sent = if http2 {
                let made_since = reuse.then_some(made_since);
                // boxed: its state is twice the size of the usual path's, which would carry it along
                Box::pin(self.over_http2(worker, request, made_since, trace)).await
            } else {
                self.over_http1(worker, request, first, upgrade, trace).await
            };
            // what breaks later had been at work on it: another try is the gate's to allow
            let dead = |fault: &Fault| match fault {
                Fault::Closed(error) => {
                    let within = if timed_out(error) { KEEP_ALIVE.0 } else { FOUND_DEAD };
                    self.clock.now().since(trace.put_at) < within
                }
                Fault::Unsent(_) => true,
                _ => false,
            };
            match (sent, spare) {
                (Ok(response), _) => return Ok(response),
                // a dead connection from the pool: once more, on a new one
                (Err((fault, true)), Some(same)) if dead(&fault) => {
                    request = same;
                    (first, made_since) = (false, began);
                }
                (Err((fault, _)), _) => return Err(fault),
            }
        }
    }

    async fn over_http1(
        &self,
        worker: usize,
        mut request: Request<Payload>,
        reuse: bool,
        upgrade: bool,
        trace: &mut Trace,
    ) -> Result<Response<ReplyBody>, (Fault, bool)> {
        let pooled = if reuse { self.pool.checkout(worker) } else { None };
        let reused = pooled.is_some();
        let fail = |fault| (fault, reused);
        let (mut handle, card) = match pooled {
            Some(pooled) => pooled,
            None => {
                let dial = self.dial_tunnels.as_ref().filter(|_| upgrade).unwrap_or(&self.dial);
                let io = self.connect_now(&**dial, trace).await.map_err(fail)?;
                let opened = self.pool.open_http1(worker, io).await;
                let (handle, card) = opened.map_err(|e| fail(Fault::before_head(e)))?;
                card.set_used();
                (handle, card)
            }
        };
        trace.put(self.clock.now());
        let interim = Arc::new((AtomicU8::new(0), Notify::new()));
        let count = interim.clone();
        hyper::ext::on_informational(&mut request, move |_| {
            if count.0.fetch_add(1, Ordering::Relaxed) >= MAX_INTERIM {
                count.1.notify_one();
            }
        });
        let response = tokio::select! {
            biased;
            sent = handle.send_request(request) => sent.map_err(|e| fail(Fault::before_head(e)))?,
            () = interim.1.notified() => return Err(fail(Fault::Unacceptable("too many interim responses"))),
        };
        // they may all have come in one piece with the response
        if interim.0.load(Ordering::Relaxed) > MAX_INTERIM {
            return Err(fail(Fault::Unacceptable("too many interim responses")));
        }
        let lease = Lease::Http1 { pool: self.pool.clone(), handle, card };
        judge(response, upgrade, lease).map_err(fail)
    }
}

/// The same request once more. Only its head's extensions stay behind: they belong to one connection.
fn again(request: &Request<Payload>) -> Option<Request<Payload>> {
    let mut copy = Request::new(request.body().again()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Refuses what parses as HTTP but cannot be passed on.
fn judge(response: Response<Incoming>, upgrade: bool, lease: Lease) -> Result<Response<ReplyBody>, Fault> {
    let (mut head, body) = response.into_parts();
    let switching = head.status == StatusCode::SWITCHING_PROTOCOLS;
    if switching && !upgrade {
        return Err(Fault::Unacceptable("it switches protocols without being asked to"));
    }
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    let only_chunked = match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(one), None) => one.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    };
    if !only_chunked {
        return Err(Fault::Unacceptable("its transfer coding is not `chunked`"));
    }
    clean_response(&mut head.headers, switching);
    // ours, not the upstream's (RFC 9112 §2.3): hyper would answer in HTTP/1.0 where the upstream did, and an
    // end without chunks cannot be told from a break
    head.version = Version::HTTP_11;
    let lease = if switching { None } else { Some(lease) };
    Ok(Response::from_parts(head, ReplyBody::new(body, lease)))
}
