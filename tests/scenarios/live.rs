//! The live stack on virtual time: the listener, the whole pipeline, the gate with its timer and its
//! rule, the pool, and the simulated upstream at the far end. Only sockets and threads are missing.

use std::collections::BTreeMap;
use std::future::ready;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use prometheus::{Registry, TextEncoder};
use tidegate::app;
use tidegate::clock::Clock;
use tidegate::config::Config;
use tidegate::demo::load::Progress;
use tidegate::demo::report::Record;
use tidegate::demo::wire::InMemory;
use tidegate::demo::{Law, Load, SimulatedLlm, Stats, Workload};
use tidegate::listener::{self, Serving};
use tidegate::policy::engine::{Effect, Status};
use tidegate::policy::predict::{Decision, Reason, Wall};
use tidegate::policy::supply::{self, Transition};
use tidegate::policy::units::MonoTime;
use tidegate::proxy::{self, Memory, Parts, Report, Tunnels};
use tidegate::telemetry::Telemetry;
use tidegate::upstream::{Dial, Dialled, Upstream, keep_warm};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceBuilder;

/// Requests of one client, and from when on.
pub(crate) struct Traffic {
    pub(crate) client: String,
    pub(crate) from: Duration,
    pub(crate) workload: Workload,
    pub(crate) load: Load,
    /// Sent with each request.
    pub(crate) headers: BTreeMap<String, String>,
}

/// How a run is to go.
pub(crate) struct Plan {
    pub(crate) law: Law,
    pub(crate) config: Config,
    pub(crate) seed: u64,
    pub(crate) hour: u8,
    pub(crate) traffic: Vec<Traffic>,
    pub(crate) after: Duration,
    pub(crate) drain_at: Option<Duration>,
}

/// What came of it.
pub(crate) struct Run {
    /// Every client's requests.
    pub(crate) records: BTreeMap<String, Vec<Record>>,
    pub(crate) upstream: Stats,
    /// Connections made to the upstream.
    pub(crate) dialled: usize,
    /// Of them, still in use at the end.
    pub(crate) busy_connections: usize,
    pub(crate) initial_permits: u32,
    pub(crate) decisions: Vec<Decision>,
    /// Moves of the limit between two decisions: to where, and why.
    pub(crate) moves: Vec<(u32, Reason)>,
    pub(crate) transitions: Vec<Transition>,
    pub(crate) status: Status,
    /// The page that Prometheus would scrape at the end.
    pub(crate) metrics: String,
    /// Every effect of the engine, and when.
    #[allow(dead_code, reason = "the equivalence test reads it, the scenarios do not")]
    pub(crate) effects: Vec<(MonoTime, Effect)>,
    /// From the drain's begin to the last connection's end.
    pub(crate) drained: Option<Duration>,
}

/// Everything of the proxy that its connections share.
#[derive(Clone)]
struct Proxy {
    parts: Parts,
    serving: Serving,
    /// Ends what a drain did not finish in time.
    force: CancellationToken,
}

struct ToSimulation {
    wire: InMemory,
    dialled: Arc<AtomicUsize>,
}

impl Dial for ToSimulation {
    fn dial(&self) -> Pin<Box<dyn Future<Output = std::io::Result<Dialled>> + Send + '_>> {
        self.dialled.fetch_add(1, Ordering::Relaxed);
        Box::pin(ready(Ok(Dialled::new(self.wire.connect()))))
    }
}

/// Runs it to the end.
pub(crate) async fn run(plan: Plan) -> Run {
    let Plan { law, config, seed, hour, traffic, after, drain_at } = plan;
    let clock = Clock::start();
    let llm = SimulatedLlm::new(law, seed, clock);
    let dialled = Arc::new(AtomicUsize::new(0));
    let served = llm.clone();
    let wire = InMemory::new(move |io| {
        let served = served.clone();
        async move { served.serve(io).await }
    });
    let dial = Box::new(ToSimulation { wire, dialled: dialled.clone() });
    let upstream = Upstream::with_dial(config.first_upstream(), dial, 1, clock).expect("upstream");
    let upstreams = [upstream.clone()];
    let registry = Registry::new();
    let telemetry = Telemetry::new(&config.telemetry, clock, 1, &registry).expect("telemetry");

    let decisions = Arc::new(Mutex::new(Vec::new()));
    let transitions = Arc::new(Mutex::new(Vec::new()));
    let moves = Arc::new(Mutex::new(Vec::new()));
    let (decided, turned, moved) = (decisions.clone(), transitions.clone(), moves.clone());
    let routes = app::routes(&config, clock, &telemetry, &upstreams, move |_, report| match report {
        Report::Decided(decision) => decided.lock().expect("no panic under it").push(decision.clone()),
        Report::Supply(supply::Report::Breaker(_, transition)) => {
            turned.lock().expect("no panic under it").push(*transition)
        }
        Report::Supply(_) | Report::Requeued(_) => {}
        Report::Resized { to, reason, .. } => {
            moved.lock().expect("no panic under it").push((*to, *reason));
        }
    });
    let routes = routes.expect("one upstream is one group");
    let gate = routes.groups()[0].gate().clone();
    let effects = Arc::new(Mutex::new(Vec::new()));
    let heard = effects.clone();
    gate.watch(move |now, effect| heard.lock().expect("no panic under it").push((now, effect.clone())));
    let initial_permits = gate.status().limit;

    let proxy = Proxy {
        parts: Parts {
            worker: 0,
            params: config.limits.clone(),
            routes: routes.clone(),
            memory: Memory::new(config.limits.body_memory),
            tunnels: Tunnels::default(),
            telemetry: telemetry.worker(0),
            clock,
        },
        serving: Serving {
            params: Arc::new(config.listen.clone()),
            clock,
            telemetry: telemetry.clone(),
            drain: CancellationToken::new(),
            draining: Arc::new(AtomicBool::new(false)),
            tasks: TaskTracker::new(),
        },
        force: CancellationToken::new(),
    };

    let mut background = JoinSet::new();
    let drain = proxy.serving.drain.clone();
    background.spawn(gate.clone().run_timer());
    let wall = move || {
        let unix = i64::from(hour) * 3600;
        Wall { unix: unix.saturating_add_unsigned(clock.now().as_secs()), hour }
    };
    background.spawn(app::keep_time(routes.clone(), 0, telemetry.clone(), config.scaling.clone(), wall));
    let warm = keep_warm(upstream.clone(), 0);
    background.spawn(async move {
        drain.run_until_cancelled_owned(warm).await;
    });
    let draining = async {
        match drain_at {
            None => None,
            Some(at) => {
                tokio::time::sleep(at).await;
                Some(proxy.drain(config.listen.drain_timeout).await)
            }
        }
    };
    let clients = async {
        let mut running = JoinSet::new();
        for traffic in traffic {
            let wire = proxy.wire(&traffic.headers);
            running.spawn(traffic.drive(wire, clock));
        }
        let mut records: BTreeMap<String, Vec<Record>> = BTreeMap::new();
        while let Some(ended) = running.join_next().await {
            let (client, part) = ended.expect("the load driver runs to its end");
            records.entry(client).or_default().extend(part);
        }
        records
    };
    let (records, drained) = tokio::join!(clients, draining);
    tokio::time::sleep(after).await;

    let metrics = TextEncoder::new().encode_to_string(&registry.gather()).expect("metrics are text");
    let decisions = std::mem::take(&mut *decisions.lock().expect("no panic under it"));
    let transitions = std::mem::take(&mut *transitions.lock().expect("no panic under it"));
    Run {
        records,
        upstream: llm.stats(),
        dialled: dialled.load(Ordering::Relaxed),
        busy_connections: upstream.connections().1,
        initial_permits,
        decisions,
        moves: std::mem::take(&mut *moves.lock().expect("no panic under it")),
        transitions,
        effects: std::mem::take(&mut *effects.lock().expect("no panic under it")),
        status: gate.status(),
        metrics,
        drained,
    }
}

impl Proxy {
    /// Connections of a client that sends `headers` with each request.
    fn wire(&self, headers: &BTreeMap<String, String>) -> InMemory {
        let extra: Vec<(HeaderName, HeaderValue)> = headers
            .iter()
            .map(|(n, v)| (n.parse().expect("a header's name"), v.parse().expect("a header's value")))
            .collect();
        let service = ServiceBuilder::new()
            .map_request(move |mut request: Request<Incoming>| {
                request.headers_mut().extend(extra.iter().cloned());
                request
            })
            .service(proxy::stack(self.parts.clone()));
        let with = self.clone();
        InMemory::new(move |io| {
            let (with, service) = (with.clone(), service.clone());
            async move {
                // the socket is closed by then
                if with.serving.draining.load(Ordering::Relaxed) {
                    return;
                }
                let connection =
                    with.serving.tasks.clone().track_future(listener::serve(io, service, with.serving));
                with.force.run_until_cancelled(connection).await;
            }
        })
    }

    /// Drains as `app` does, and says how long that took.
    async fn drain(&self, timeout: Duration) -> Duration {
        let began = self.parts.clock.now();
        self.parts.routes.groups().iter().for_each(|group| group.gate().drain());
        self.serving.draining.store(true, Ordering::Relaxed);
        self.serving.drain.cancel();
        self.serving.tasks.close();
        if tokio::time::timeout(timeout, self.serving.tasks.wait()).await.is_err() {
            self.force.cancel();
        }
        self.parts.clock.now().since(began)
    }
}

impl Traffic {
    async fn drive(self, wire: InMemory, clock: Clock) -> (String, Vec<Record>) {
        tokio::time::sleep_until(clock.instant(MonoTime::ZERO + self.from)).await;
        let report = self.load.run_over(wire, &self.workload, clock, &Progress::default()).await;
        (self.client, report.expect("a load that can be driven").records)
    }
}
