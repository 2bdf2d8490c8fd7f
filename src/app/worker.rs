//! One worker: a thread, a runtime, an accept socket and a stack of its own.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tower::Layer;
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::Shared;
use crate::config::Config;
use crate::listener::{Acceptor, Serving};
use crate::proxy::{self, Group, Parts};
use crate::upstream::keep_warm;

pub(super) struct Worker {
    socket: TcpListener,
    parts: Parts,
    serving: Serving,
    shared: Shared,
    /// Gets a permit from each worker that has ended.
    ended: Arc<Semaphore>,
}

impl Worker {
    pub(super) fn new(
        index: usize,
        socket: TcpListener,
        config: &Config,
        shared: &Shared,
        ended: Arc<Semaphore>,
    ) -> Self {
        let parts = Parts {
            worker: index,
            params: config.limits.clone(),
            routes: shared.routes.clone(),
            memory: shared.memory.clone(),
            tunnels: shared.tunnels.clone(),
            telemetry: shared.telemetry.worker(index),
            clock: shared.clock,
        };
        let serving = Serving {
            params: Arc::new(config.listen.clone()),
            clock: shared.clock,
            telemetry: shared.telemetry.clone(),
            drain: shared.drain.child_token(),
            draining: shared.draining.clone(),
            tasks: TaskTracker::new(),
        };
        Self { socket, parts, serving, shared: shared.clone(), ended }
    }

    pub(super) fn run(self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "a worker has no runtime");
                return self.shared.stop.now();
            }
        };
        let Self { socket, parts, serving, shared, ended } = self;
        runtime.block_on(async {
            let socket = match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::error!(%error, "a worker cannot listen");
                    return shared.stop.now();
                }
            };
            for upstream in shared.routes.groups().iter().flat_map(Group::endpoints) {
                let warm = keep_warm(upstream.clone(), parts.worker);
                serving.tasks.spawn(shared.drain.clone().run_until_cancelled_owned(warm));
            }
            let acceptor = Acceptor { socket, connections: shared.connections.clone(), serving };
            let working = async {
                // a fault of ours ends one request with an answer, not a connection without one
                let guarded = CatchPanicLayer::custom(proxy::panicked).layer(proxy::stack(parts));
                acceptor.run(guarded).await;
                shared.tunnels.closed().await;
                ended.add_permits(1);
                // connections to the upstream that other workers use are driven here, until all are done
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = working => {}
                () = shared.force.cancelled() => {}
            }
        });
        // a name look-up that hangs must not hold the process
        runtime.shutdown_timeout(Duration::ZERO);
    }
}
