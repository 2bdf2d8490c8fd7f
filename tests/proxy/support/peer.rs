//! The pool of one upstream by itself, and an upstream at the other end of pipes: time is virtual, so a
//! latency is exact and minutes pass at once.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate::clock::Clock;
use tidegate::policy::units::MonoTime;
use tidegate::telemetry::ConnectReason;
use tidegate::upstream::{Dial, Dialled, Fault, Params, Payload, Repeat, Trace, Upstream, keep_warm};
use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

/// What an upstream is like.
#[derive(Clone, Copy)]
pub(crate) struct Habits {
    pub(crate) http2: bool,
    /// How long TCP and TLS take.
    pub(crate) handshake: Duration,
    /// How long an answer takes.
    pub(crate) service: Duration,
    /// How long it keeps a connection without a request.
    pub(crate) keeps: Duration,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            http2: false,
            handshake: Duration::from_millis(100),
            service: Duration::from_millis(150),
            keeps: Duration::from_secs(3600),
        }
    }
}

/// One connection as the upstream saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) made: MonoTime,
    pub(crate) ended: Option<MonoTime>,
    pub(crate) requests: usize,
    /// The upstream closed it, not we.
    pub(crate) closed_by_upstream: bool,
}

/// An upstream that is reached through pipes.
pub(crate) struct Peer {
    pub(crate) clock: Clock,
    habits: Mutex<Habits>,
    seen: Mutex<Vec<Seen>>,
    /// `None`: nobody listens.
    open: watch::Sender<Option<usize>>,
    attempts: AtomicUsize,
    dialling: AtomicUsize,
    most: AtomicUsize,
    tasks: TaskTracker,
}

struct Dialler(Arc<Peer>);

impl Dial for Dialler {
    fn dial(&self) -> Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send + '_>> {
        Box::pin(async move {
            let peer = &self.0;
            peer.attempts.fetch_add(1, Ordering::Relaxed);
            let now = peer.dialling.fetch_add(1, Ordering::Relaxed) + 1;
            peer.most.fetch_max(now, Ordering::Relaxed);
            let handshake = peer.habits.lock().unwrap().handshake;
            tokio::time::sleep(handshake).await;
            peer.dialling.fetch_sub(1, Ordering::Relaxed);
            if peer.open.borrow().is_none() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let (near, far) = tokio::io::duplex(64 << 10);
            peer.tasks.spawn(peer.clone().serve(far));
            Ok(Dialled::new(near))
        })
    }
}

impl Peer {
    pub(crate) fn new(habits: Habits) -> Arc<Self> {
        Arc::new(Self {
            clock: Clock::start(),
            habits: Mutex::new(habits),
            seen: Mutex::default(),
            open: watch::channel(Some(0)).0,
            attempts: AtomicUsize::new(0),
            dialling: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
        })
    }

    /// Changes its habits; connections that are open keep the old ones.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Habits)) {
        change(&mut self.habits.lock().unwrap());
    }

    /// Nobody listens from now on, or somebody does again. Open connections stay.
    pub(crate) fn listens(&self, yes: bool) {
        let generation = self.seen.lock().unwrap().len();
        self.open.send_replace(yes.then_some(generation));
    }

    /// Closes every connection that is open now.
    pub(crate) fn close_all(&self) {
        let generation = self.seen.lock().unwrap().len();
        self.open.send_replace(Some(generation));
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Attempts to connect so far.
    pub(crate) fn attempts(&self) -> usize {
        self.attempts.load(Ordering::Relaxed)
    }

    /// The most handshakes there were at a time.
    pub(crate) fn most_at_once(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    async fn serve(self: Arc<Self>, io: DuplexStream) {
        let habits = *self.habits.lock().unwrap();
        let number = {
            let mut seen = self.seen.lock().unwrap();
            let made = self.clock.now();
            seen.push(Seen { made, ended: None, requests: 0, closed_by_upstream: false });
            seen.len() - 1
        };
        // requests that run, and when it last had one
        let (busy, watch) = watch::channel((0, self.clock.now()));
        let busy = Arc::new(busy);
        let service = {
            let peer = self.clone();
            hyper::service::service_fn(move |request: Request<Incoming>| {
                let (peer, busy) = (peer.clone(), busy.clone());
                async move {
                    peer.seen.lock().unwrap()[number].requests += 1;
                    busy.send_modify(|(n, _)| *n += 1);
                    let body = request.into_body().collect().await;
                    tokio::time::sleep(habits.service).await;
                    let now = peer.clock.now();
                    busy.send_modify(|(n, last)| (*n, *last) = (*n - 1, now));
                    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
                    Ok::<_, Infallible>(Response::new(Full::new(body)))
                }
            })
        };
        let connection = async {
            let io = TokioIo::new(io);
            if habits.http2 {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection(io, service).await);
            } else {
                drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
            }
        };
        let mut open = self.open.subscribe();
        let closed_by_upstream = tokio::select! {
            () = connection => false,
            () = idle_for(self.clock, watch, habits.keeps) => true,
            _ = open.wait_for(|generation| generation.is_some_and(|n| n > number)) => true,
        };
        let ended = Some(self.clock.now());
        let seen = &mut self.seen.lock().unwrap()[number];
        *seen = Seen { ended, closed_by_upstream, ..*seen };
    }
}

async fn idle_for(clock: Clock, mut busy: watch::Receiver<(usize, MonoTime)>, keeps: Duration) {
    loop {
        let (n, last) = *busy.borrow_and_update();
        let end = clock.instant(last + keeps);
        tokio::select! {
            () = tokio::time::sleep_until(end), if n == 0 => return,
            changed = busy.changed() => if changed.is_err() { return std::future::pending().await },
        }
    }
}

/// The pool, kept as `app` keeps it: a look each second, and each worker's task.
pub(crate) struct Client {
    pub(crate) upstream: Arc<Upstream>,
    target: watch::Sender<usize>,
    _tasks: JoinSet<()>,
}

impl Client {
    /// A client of `peer`.
    pub(crate) fn of(peer: &Arc<Peer>, params: Params, workers: usize) -> Self {
        let dial = Box::new(Dialler(peer.clone()));
        Self::new(Upstream::with_dial(params, dial, workers, peer.clock).unwrap(), workers)
    }

    pub(crate) fn new(upstream: Arc<Upstream>, workers: usize) -> Self {
        let (target, watch) = watch::channel(0);
        let mut tasks = JoinSet::new();
        for worker in 0..workers {
            tasks.spawn(keep_warm(upstream.clone(), worker));
        }
        let kept = upstream.clone();
        tasks.spawn(async move {
            let mut seconds = tokio::time::interval(Duration::from_secs(1));
            loop {
                seconds.tick().await;
                let target = *watch.borrow();
                kept.prepare(target);
            }
        });
        Self { upstream, target, _tasks: tasks }
    }

    /// Wants connections for that many requests, from now on.
    pub(crate) fn aim(&self, target: usize) {
        self.target.send_replace(target);
        self.upstream.prepare(target);
    }

    /// Sends one request and reads its answer.
    pub(crate) async fn ask(&self, worker: usize) -> Result<Bytes, Fault> {
        let request = Request::post("http://tidegate/v1/chat/completions").body(()).unwrap();
        let payload = Payload::Whole(Bytes::from_static(b"body"));
        let patience = Duration::from_secs(300);
        let (head, ()) = request.into_parts();
        let mut trace = Trace::default();
        let sent = self.upstream.send(worker, head, payload, patience, Repeat::Always, &mut trace);
        let body = sent.await?.into_body();
        Ok(body.collect().await.map_err(Fault::Broken)?.to_bytes())
    }

    pub(crate) fn idle(&self) -> usize {
        self.upstream.connections().0
    }

    /// Connections made for this reason.
    pub(crate) fn made(&self, reason: ConnectReason) -> u64 {
        self.upstream.connects().count(reason).0
    }

    /// Connections that a request had to wait for.
    pub(crate) fn on_demand(&self) -> u64 {
        self.made(ConnectReason::Demand)
    }
}
