//! Everything that is not a request, on a thread of its own: no request ever waits for it.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::app::{Shared, ask};
use crate::proxy::{Group, Routes};
use crate::telemetry::{Admin, serve_connection};
use crate::upstream::follow_dns;

/// Scrapes and probes at once; more than that is a mistake or an attack.
const ADMIN_CONNECTIONS: usize = 64;

pub(super) struct Control {
    pub(super) shared: Shared,
    pub(super) admin: Admin,
    pub(super) admin_socket: TcpListener,
    pub(super) drain_timeout: Duration,
    pub(super) workers: usize,
    pub(super) working: Arc<Semaphore>,
}

impl Control {
    pub(super) fn run(self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "the control thread has no runtime");
                self.shared.force.cancel();
                return;
            }
        };
        runtime.block_on(self.control());
        // what is left are connections of scrapers
        runtime.shutdown_timeout(Duration::ZERO);
    }

    async fn control(self) {
        let tasks = TaskTracker::new();
        tasks.spawn(serve_admin(self.admin, self.admin_socket));
        for group in self.shared.routes.groups() {
            tasks.spawn(group.gate().clone().run_timer());
        }
        tasks.spawn(watch(self.shared.routes.clone()));
        for upstream in self.shared.routes.groups().iter().flat_map(Group::endpoints) {
            tasks.spawn(follow_dns(upstream.clone()));
        }
        for endpoint in ask::everybody(&self.shared.routes) {
            tasks.spawn(endpoint.clone().check());
            tasks.spawn(endpoint.load());
        }
        let stop = self.shared.stop.clone();
        stop.drain.cancelled().await;
        self.shared.begin_drain();
        let all = u32::try_from(self.workers).unwrap_or(u32::MAX);
        let ended = self.working.acquire_many(all);
        tokio::select! {
            _ = ended => tracing::info!("drained"),
            () = tokio::time::sleep(self.drain_timeout) => {
                tracing::warn!(after = ?self.drain_timeout, "drain timed out; what is still in flight is cut off");
            }
            () = stop.now.cancelled() => tracing::warn!("stopped at once"),
        }
        self.shared.tunnels.end();
        self.shared.force.cancel();
    }
}

/// Ticks as well, in case the predictor's thread, which does, should hang or be gone: only so can the engine
/// notice that plans fail to come.
async fn watch(routes: Arc<Routes>) -> Infallible {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        routes.groups().iter().for_each(|group| group.gate().tick());
    }
}

async fn serve_admin(admin: Admin, socket: TcpListener) -> Infallible {
    let socket = loop {
        match socket.try_clone().and_then(tokio::net::TcpListener::from_std) {
            Ok(socket) => break socket,
            Err(error) => {
                tracing::error!(%error, "the admin service cannot listen");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    let places = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        // the semaphore is never closed
        let place = places.clone().acquire_owned().await.ok();
        match socket.accept().await {
            Ok((stream, _)) => {
                let admin = admin.clone();
                tasks.spawn(async move {
                    if let Err(error) = serve_connection(TokioIo::new(stream), admin).await {
                        tracing::debug!(%error, "admin connection");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin service cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
