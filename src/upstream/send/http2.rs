//! One request over HTTP/2, where many share a connection.
//!
//! ```text
//! a connection of this worker's has room   →  that one
//! somebody makes one                       →  that one, once it is there; if it is full by then, one makes the next
//! else                                     →  a new one, which others may share unless it is for one request only
//! ```
//! One that fails is left at once, not when it has ended: until then it would be given to everybody who comes, and each
//! of them would make a connection of its own to replace it.

use hyper::client::conn::http2::SendRequest;
use hyper::{Request, Response};
use tokio::time::timeout;

use crate::policy::units::MonoTime;
use crate::upstream::pool::{Lease, Purpose};
use crate::upstream::send::judge;
use crate::upstream::{Fault, Payload, ReplyBody, Trace, Upstream};

/// A place on a connection, and whether it had been there before.
struct Placed {
    handle: SendRequest<Payload>,
    lease: Lease,
    reused: bool,
}

impl Upstream {
    /// With an error: whether it came of a connection that had been there before and is of no more use. `made_since`: on a connection that is
    /// at least as young; `None`: on one of its own.
    pub(super) async fn over_http2(
        &self,
        worker: usize,
        request: Request<Payload>,
        made_since: Option<MonoTime>,
        trace: &mut Trace,
    ) -> Result<Response<ReplyBody>, (Fault, bool)> {
        let limit = self.params.connect_timeout;
        // waiting for another's connection and then making one of its own take no longer together
        let placed = timeout(limit, self.place(worker, made_since, trace)).await;
        let placed = placed.unwrap_or(Err(Fault::ConnectTimeout(limit)));
        let Placed { mut handle, lease, reused } = placed.map_err(|fault| (fault, false))?;
        trace.put(self.clock.now());
        let sent = match handle.ready().await {
            Ok(()) => handle.send_request(request).await,
            Err(closed) => Err(closed),
        };
        match sent {
            Ok(response) => judge(response, false, lease).map_err(|fault| (fault, reused)),
            Err(error) => {
                let dead = !Fault::is_of_one_stream(&error);
                if dead {
                    self.pool.leave(&lease);
                }
                Err((Fault::before_head(error), reused && dead))
            }
        }
    }

    async fn place(
        &self,
        worker: usize,
        made_since: Option<MonoTime>,
        trace: &mut Trace,
    ) -> Result<Placed, Fault> {
        let share = || {
            let (handle, lease) = self.pool.share(worker, made_since?)?;
            Some(Placed { handle, lease, reused: true })
        };
        if let Some(placed) = share() {
            return Ok(placed);
        }
        let opening = made_since.and_then(|_| self.opening.get(worker));
        let mut first = opening.and_then(|opening| opening.try_lock().ok());
        if let (Some(opening), None) = (opening, &first) {
            // somebody else is at it: wait for that one, and if it failed, for nobody
            let made = self.pool.made();
            first = Some(opening.lock().await);
            if let Some(placed) = share() {
                return Ok(placed);
            }
            // else it is there, and full: the others wait for the next one
            if self.pool.made() == made {
                first = None;
            }
        }
        let io = self.connect_now(&*self.dial, trace).await?;
        let purpose = if made_since.is_some() { Purpose::All } else { Purpose::One };
        let (handle, lease) = self.pool.open_http2(worker, io, purpose).await.map_err(Fault::before_head)?;
        drop(first);
        Ok(Placed { handle, lease, reused: false })
    }
}
