//! Questions of our own to the upstreams, each on its timer: whether one is well (`check_path`), and what its own
//! metrics say of its load (`server_metrics`). The answers go to its group's gate.
//!
//! Without them a broken endpoint would be found by requests that fail, and a queue inside a server by first tokens
//! that come late: both are found anyway, only later.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::policy::supply::ServerLoad;
use crate::policy::units::EndpointId;
use crate::proxy::Routes;
use crate::upstream::{ServerMetrics, Upstream};

/// Checks in a row that fail before an endpoint counts as unwell: one alone may be the network's fault.
const FAILED: u32 = 2;
/// How often a server's metrics are read.
const LOAD_EVERY: Duration = Duration::from_secs(2);
/// How often it is tried whether there are any, where there were none.
const LOAD_AGAIN: Duration = Duration::from_secs(60);
/// Pages in a row that say nothing before a server counts as one that has none.
const SILENT: u32 = 3;
/// Where self-hosted servers have their metrics.
const METRICS: &str = "/metrics";

/// One endpoint, and where to find it.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) routes: Arc<Routes>,
    pub(super) group: usize,
    pub(super) endpoint: EndpointId,
}

/// Every endpoint of every group.
pub(super) fn everybody(routes: &Arc<Routes>) -> Vec<Asked> {
    let of = |(group, endpoints): (usize, usize)| {
        let numbers = (0..endpoints).filter_map(|n| u16::try_from(n).ok());
        numbers.map(move |n| Asked { routes: routes.clone(), group, endpoint: EndpointId(n) })
    };
    routes.groups().iter().map(|group| group.endpoints().len()).enumerate().flat_map(of).collect()
}

impl Asked {
    fn upstream(&self) -> Option<&Arc<Upstream>> {
        self.routes.groups().get(self.group)?.endpoints().get(usize::from(self.endpoint.0))
    }

    /// Asks whether it is well.
    pub(super) async fn check(self) -> Infallible {
        let (Some(upstream), Some(group)) = (self.upstream(), self.routes.groups().get(self.group)) else {
            return pending().await;
        };
        let Some(path) = &upstream.params().check_path else { return pending().await };
        let mut turns = interval(upstream.params().check_interval);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failed = 0_u32;
        loop {
            turns.tick().await;
            let reason = upstream.check(path).await.err();
            let was = failed;
            failed = if reason.is_some() { failed.saturating_add(1) } else { 0 };
            match reason {
                Some(reason) if failed == FAILED => {
                    tracing::warn!(upstream = &**upstream.name(), path, %reason, "unwell, says its check");
                    group.gate().checked(self.endpoint, false);
                }
                None if was >= FAILED => {
                    tracing::info!(upstream = &**upstream.name(), path, "well again, says its check");
                    group.gate().checked(self.endpoint, true);
                }
                _ => {}
            }
        }
    }

    /// Reads its metrics.
    pub(super) async fn load(self) -> Infallible {
        let (Some(upstream), Some(group)) = (self.upstream(), self.routes.groups().get(self.group)) else {
            return pending().await;
        };
        let params = upstream.params();
        let path = match &params.server_metrics {
            ServerMetrics::Path(path) => path,
            ServerMetrics::Auto if params.looks_self_hosted() => METRICS,
            ServerMetrics::Auto | ServerMetrics::Off => return pending().await,
        };
        let (mut silent, mut told, mut spoke) = (0_u32, None, false);
        loop {
            let load = match upstream.fetch_metrics(path).await {
                Ok(page) => ServerLoad::parse(&page),
                Err(_) => ServerLoad::default(),
            };
            let known = !load.is_empty();
            silent = if known { 0 } else { silent.saturating_add(1) };
            if known && told != Some(true) {
                told = Some(true);
                tracing::info!(upstream = &**upstream.name(), path, "its metrics say how busy it is");
            } else if silent >= SILENT && told != Some(false) {
                told = Some(false);
                tracing::info!(upstream = &**upstream.name(), path, "no metrics there that are known");
            }
            if known {
                group.gate().server(self.endpoint, load);
            }
            // one that has them is asked again soon: it may be starting anew, with other limits
            spoke |= known || matches!(params.server_metrics, ServerMetrics::Path(_));
            let pause = if silent >= SILENT && !spoke { LOAD_AGAIN } else { LOAD_EVERY };
            tokio::time::sleep(pause).await;
        }
    }
}
