//! What outlives its response or its client: tunnels, and answers that are read to their end for nobody.
//!
//! After a 101 the connection carries another protocol (RFC 9110 §7.8). Both sides are copied to each
//! other until one closes, the drain ends, or the process does. The permit is held for all of it.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::policy::units::Outcome;
use crate::proxy::breaker::of_trouble;
use crate::proxy::exchange::Exchange;
use crate::proxy::forward::{Answer, Tunnel, Unanswered};
use crate::proxy::intake::Held;
use crate::proxy::meter::{Metered, abandoned};
use crate::proxy::{Permit, Shared};
use crate::telemetry::Ended;

/// How long one side of a tunnel may go on after the other has closed.
const LAST_WORDS: Duration = Duration::from_secs(1);

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> std::io::Result<u64> {
    let bytes = tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await?;
    Ok(bytes)
}

/// Where tunnels and what clients left behind run, so that a drain can wait for them and at last end them.
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
    pub(super) fn open(&self, (client, upstream): Tunnel, permit: Permit, mut exchange: Box<Exchange>) {
        let end = self.end.clone();
        self.tracker.spawn(async move {
            let switched = tokio::select! {
                switched = async { tokio::try_join!(client, upstream) } => switched,
                () = end.cancelled() => return,
            };
            // a side that went before the switch was made: nothing is known but that it went
            let Ok((client, upstream)) = switched else { return };
            let copying = async {
                let (client, upstream) = (TokioIo::new(client), TokioIo::new(upstream));
                let (client, upstream) = (tokio::io::split(client), tokio::io::split(upstream));
                let record = &mut exchange.record;
                let (mut up, mut down) = (pin!(copy(client.0, upstream.1)), pin!(copy(upstream.0, client.1)));
                // one side closed: the other has a moment to finish what it was saying, and no more, since
                // nothing in WebSocket goes one way only
                tokio::select! {
                    copied = &mut up => {
                        record.request_bytes = copied?;
                        record.response_bytes = timeout(LAST_WORDS, down).await??;
                    }
                    copied = &mut down => {
                        record.response_bytes = copied?;
                        record.request_bytes = timeout(LAST_WORDS, up).await??;
                    }
                }
                Ok::<_, std::io::Error>(())
            };
            tokio::select! {
                _ = copying => {}
                () = end.cancelled() => {}
            }
            exchange.record.ended = Ended::Success;
            permit.finish(Outcome::Success, None);
        });
    }

    /// Reads an answer that its client has left to its end, for at most `limit`: for its `usage`, and because some
    /// upstreams charge for it all the same. Its permit is held for as long.
    pub(super) fn read_out(&self, metered: Metered, limit: Duration) {
        self.leave_behind(limit, async move {
            let mut body = pin!(metered);
            while let Some(Ok(_)) = body.frame().await {}
        });
    }

    /// Sees an attempt through whose client left before there was an answer, and reads that one to its end. The
    /// memory of its body is held for as long.
    pub(super) fn see_through(
        &self,
        shared: Arc<Shared>,
        limit: Duration,
        memory: Option<Held>,
        attempt: impl Future<Output = Result<Answer, Unanswered>> + Send + 'static,
    ) {
        self.leave_behind(limit, async move {
            let _memory = memory;
            match attempt.await {
                Ok(answer) => {
                    if let Some(metered) = abandoned(&shared, answer) {
                        let mut body = pin!(metered);
                        while let Some(Ok(_)) = body.frame().await {}
                    }
                }
                Err(Unanswered { trouble, permit, .. }) => permit.finish(of_trouble(&trouble), None),
            }
        });
    }

    fn leave_behind(&self, limit: Duration, work: impl Future<Output = ()> + Send + 'static) {
        // while the process ends nobody is there to run it
        if self.end.is_cancelled() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let end = self.end.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                _ = timeout(limit, work) => {}
                () = end.cancelled() => {}
            }
        });
    }
}
