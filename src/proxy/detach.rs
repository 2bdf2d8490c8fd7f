//! Tunnels: the one kind of request that outlives its response.
//!
//! After a 101 the connection carries another protocol (RFC 9110 §7.8). Both sides are copied to each
//! other until one closes, the drain ends, or the process does. The permit is held for all of it.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::policy::units::Outcome;
use crate::proxy::Permit;
use crate::proxy::exchange::Exchange;
use crate::proxy::forward::Tunnel;
use crate::telemetry::Ended;

/// Where tunnels run, so that a drain can wait for them and at last end them.
#[derive(Clone, Debug, Default)]
pub struct Tunnels {
    tracker: TaskTracker,
    end: Arc<CancellationToken>,
}

impl Tunnels {
    /// Waits until no tunnel is open. New ones may still open until the listeners are closed.
    pub async fn closed(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Ends every tunnel.
    pub fn end(&self) {
        self.end.cancel();
    }

    /// Opens one. It starts when both sides have switched.
    #[allow(clippy::disallowed_methods, reason = "tracked: the drain waits for it")]
    pub(super) fn open(&self, (client, upstream): Tunnel, permit: Permit, mut exchange: Box<Exchange>) {
        let end = self.end.clone();
        self.tracker.spawn(async move {
            let copying = async {
                let (client, upstream) = tokio::try_join!(client, upstream).map_err(std::io::Error::other)?;
                let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
                tokio::io::copy_bidirectional(&mut client, &mut upstream).await
            };
            tokio::select! {
                copied = copying => {
                    if let Ok((up, down)) = copied {
                        exchange.record.request_bytes = up;
                        exchange.record.response_bytes = down;
                    }
                }
                () = end.cancelled() => {}
            }
            exchange.record.ended = Ended::Success;
            permit.finish(Outcome::Success);
        });
    }
}
