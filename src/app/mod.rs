//! Composition: builds every room from the configuration, runs their long-lived tasks, and ends them
//! in order.
//!
//! One thread and current-thread runtime per worker, each with its own accept socket; one more for
//! everything that is not a request: admin, the engine's timer, signals' consequences; and one for the
//! predictor.
//!
//! ```text
//! stop ─▶ /readyz 503, gate drains ─▶ backlogs emptied, sockets closed ─▶ last response out ─▶ joined
//!                                      └───────── drain_timeout at most ─────────┘
//! ```

mod ask;
mod control;
mod pace;
mod routes;
mod worker;

pub use pace::keep_time;
pub use routes::routes;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use prometheus::Registry;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::listener::{self, Connections};
use crate::proxy::{Memory, Routes, Tunnels};
use crate::telemetry::{Admin, Telemetry, TelemetryError};
use crate::upstream::{SetupError, Upstream};

/// Why the proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{section}.address {address}: {source}")]
    Bind {
        /// `listen` or `admin`.
        section: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// An upstream cannot be set up.
    #[error(transparent)]
    Upstream(#[from] SetupError),
    /// Two upstreams want the same models, and are no group. The configuration's check says so with its lines.
    #[error("{0:?} and {1:?} are patterns of different upstreams that want the same models")]
    Models(String, String),
    /// Telemetry cannot be set up.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// A thread or its runtime cannot be made.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// Ends the proxy, from anywhere.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    drain: CancellationToken,
    now: CancellationToken,
}

impl Stop {
    /// Stop accepting, finish what is in flight, then end.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Waits until somebody asked for the end.
    pub async fn asked(&self) {
        self.drain.cancelled().await;
    }

    /// End at once.
    pub fn now(&self) {
        self.drain.cancel();
        self.now.cancel();
    }
}

/// What all threads share.
#[derive(Clone)]
struct Shared {
    routes: Arc<Routes>,
    telemetry: Arc<Telemetry>,
    memory: Memory,
    tunnels: Tunnels,
    connections: Connections,
    clock: Clock,
    stop: Stop,
    /// Connections are to end after what they are doing.
    drain: CancellationToken,
    draining: Arc<AtomicBool>,
    /// What is still going on is to end now.
    force: CancellationToken,
}

/// A proxy that runs.
pub struct Running {
    address: SocketAddr,
    admin: SocketAddr,
    stop: Stop,
    telemetry: Arc<Telemetry>,
    threads: Vec<JoinHandle<()>>,
}

impl Running {
    /// Builds and starts everything. When this returns, both addresses accept connections.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let clock = Clock::start();
        let workers = config.listen.workers;
        let registry = Registry::new();
        let telemetry = Telemetry::new(&config.telemetry, clock, workers, &registry)?;
        let upstreams = config.upstreams.iter().map(|params| Upstream::new(params.clone(), workers, clock));
        let upstreams = upstreams.collect::<Result<Vec<_>, _>>()?;
        let (sockets, address) = bind_all(config.listen.address, workers)?;
        let admin_socket = bind_admin(config.telemetry.admin_address)?;
        let admin = local_address("admin", &admin_socket)?;
        let routes = routes(config, clock, &telemetry, &upstreams, |_, _| {})?;
        let shared = Shared {
            routes,
            telemetry: telemetry.clone(),
            memory: Memory::new(config.limits.body_memory),
            tunnels: Tunnels::default(),
            connections: Connections::new(config.listen.max_connections),
            clock,
            stop: Stop::default(),
            drain: CancellationToken::new(),
            draining: Arc::new(AtomicBool::new(false)),
            force: CancellationToken::new(),
        };
        let stop = shared.stop.clone();
        let mut running = Self { address, admin, stop, telemetry, threads: Vec::new() };
        let working = Arc::new(tokio::sync::Semaphore::new(0));
        for (index, socket) in sockets.into_iter().enumerate() {
            let worker = worker::Worker::new(index, socket, config, &shared, working.clone());
            running.spawn(&format!("worker-{index}"), Some(shared.last_stand()), move || worker.run())?;
        }
        let serving_admin = Admin::new(shared.telemetry.clone(), registry);
        let (paced, scaling) = (shared.clone(), config.scaling.clone());
        // without it the limit is what is configured, and a metric says so
        running.spawn("predictor", None, move || pace::run(paced, scaling))?;
        let last_stand = shared.last_stand();
        let control = control::Control {
            shared,
            admin: serving_admin,
            admin_socket,
            drain_timeout: config.listen.drain_timeout,
            workers,
            working,
        };
        running.spawn("control", Some(last_stand), move || control.run())?;
        let upstreams: Vec<String> = config.upstreams.iter().map(|u| u.base_url.to_string()).collect();
        tracing::info!(%address, %admin, upstream = upstreams.join(" "), workers, "listening");
        Ok(running)
    }

    /// Where the proxy listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where `/metrics`, `/healthz` and `/readyz` are.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// What ends it.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Waits until it has ended and the access log is written. Says whether every thread came to its end.
    pub fn join(mut self) -> bool {
        let mut well = true;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread ended by a panic");
                well = false;
            }
        }
        self.telemetry.close();
        well
    }

    fn spawn(
        &mut self,
        name: &str,
        all: Option<LastStand>,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        let body = move || {
            let _all = all;
            body();
        };
        match std::thread::Builder::new().name(name.to_owned()).spawn(body) {
            Ok(thread) => {
                self.threads.push(thread);
                Ok(())
            }
            Err(error) => {
                self.stop.now();
                Err(StartError::Thread(error))
            }
        }
    }
}

/// Ends everything if its thread panics: what it did nobody else does, and who started the process can start it anew.
struct LastStand {
    stop: Stop,
    force: CancellationToken,
}

impl Drop for LastStand {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.stop.now();
            self.force.cancel();
        }
    }
}

fn bind(section: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    listener::bind(address).map_err(|source| StartError::Bind { section, address, source })
}

/// Without SO_REUSEPORT: two processes must not share out one's scrapes and health checks.
fn bind_admin(address: SocketAddr) -> Result<TcpListener, StartError> {
    let wrong = |source| StartError::Bind { section: "admin", address, source };
    let socket = TcpListener::bind(address).map_err(wrong)?;
    socket.set_nonblocking(true).map_err(wrong)?;
    Ok(socket)
}

fn local_address(section: &'static str, socket: &TcpListener) -> Result<SocketAddr, StartError> {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    socket.local_addr().map_err(|source| StartError::Bind { section, address: unknown, source })
}

/// One socket per worker, all on one port: the one asked for, or one the system picks.
fn bind_all(address: SocketAddr, workers: usize) -> Result<(Vec<TcpListener>, SocketAddr), StartError> {
    // without SO_REUSEPORT first: a port that someone else shares out must not be joined by mistake
    drop(TcpListener::bind(address).map_err(|source| StartError::Bind {
        section: "listen",
        address,
        source,
    })?);
    let first = bind("listen", address)?;
    let address = local_address("listen", &first)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(bind("listen", address)?);
    }
    Ok((sockets, address))
}

impl Shared {
    fn last_stand(&self) -> LastStand {
        LastStand { stop: self.stop.clone(), force: self.force.clone() }
    }

    /// The drain begins: nothing new is admitted, connections end after what they are doing.
    fn begin_drain(&self) {
        tracing::info!("draining");
        self.routes.groups().iter().for_each(|group| group.gate().drain());
        self.draining.store(true, Ordering::Relaxed);
        self.drain.cancel();
    }
}
