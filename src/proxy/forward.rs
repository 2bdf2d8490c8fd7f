//! Sends a request upstream. The innermost service of the stack.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::header::HeaderValue;
use hyper::http::response;
use hyper::upgrade::OnUpgrade;
use hyper::{Response, StatusCode};
use tower::Service;

use crate::proxy::exchange::{Admitted, Exchange};
use crate::proxy::respond::Trouble;
use crate::proxy::{Parts, Permit, Shared};
use crate::upstream::{Fault, Paused, Repeat, ReplyBody, Trace, clean_request};

/// The upstream's answer, with everything that must be let go of when it is over.
pub(super) struct Answer {
    pub(super) head: response::Parts,
    pub(super) body: ReplyBody,
    /// Both sides of a tunnel, when the upstream agreed to switch protocols.
    pub(super) tunnel: Option<Tunnel>,
    pub(super) permit: Permit,
    pub(super) waited: Option<Duration>,
    pub(super) exchange: Box<Exchange>,
}

/// The client's side and the upstream's.
pub(super) type Tunnel = (OnUpgrade, OnUpgrade);

/// An attempt without an answer.
pub(super) struct Unanswered {
    pub(super) trouble: Trouble,
    pub(super) permit: Permit,
    pub(super) exchange: Box<Exchange>,
}

/// Sends requests.
#[derive(Clone)]
pub(super) struct Forward(pub(super) Arc<Shared>);

impl Service<Admitted> for Forward {
    type Response = Answer;
    type Error = Unanswered;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Unanswered>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unanswered>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, admitted: Admitted) -> Self::Future {
        Box::pin(forward(self.0.clone(), admitted))
    }
}

async fn forward(shared: Arc<Shared>, admitted: Admitted) -> Result<Answer, Unanswered> {
    let Parts { upstream, clock, .. } = &shared.parts;
    let Admitted { request, permit, waited } = admitted;
    let mut head = request.head;
    let mut exchange = request.exchange;
    let upgrade = request.upgrade;
    clean_request(&mut head.headers, upgrade.is_some());
    let began = clock.now();
    exchange.record.upstream = Some(shared.upstream_label.clone());
    exchange.record.dispatched = Some(began);
    let mut trace = Trace::default();
    let sent = {
        let repeat = if request.arrival.bytes > shared.parts.params.replay_bytes {
            Repeat::Never
        } else if request.inference {
            // beyond RFC 9110 §9.2.2: the worst that can come of it is an answer that nobody reads
            Repeat::Always
        } else {
            Repeat::IfIdempotent
        };
        let patience = upstream.params().first_byte_timeout;
        let sending = upstream.send(shared.parts.worker, head, request.payload, patience, repeat, &mut trace);
        match request.answer_by {
            None => sending.await.map_err(trouble),
            Some(by) => match tokio::time::timeout_at(clock.instant(by), sending).await {
                Ok(sent) => sent.map_err(trouble),
                Err(_) => Err(Trouble::DeadlinePassed),
            },
        }
    };
    drop(request.memory);
    let record = &mut exchange.record;
    record.attempts = trace.attempts;
    record.connected = trace.connect.map(|took| began + took);
    match sent.and_then(|response| open(response, upgrade)) {
        Ok((head, body, tunnel)) => {
            record.first_byte = Some(clock.now());
            record.status = Some(head.status.as_u16());
            // a copy: a clone would keep the whole buffer it was read into for as long as the stream lives
            record.upstream_request_id =
                head.headers.get("x-request-id").and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok());
            Ok(Answer { head, body, tunnel, permit, waited, exchange })
        }
        Err(trouble) => {
            if let Trouble::Upstream(fault) = &trouble {
                tracing::warn!(upstream = %upstream.name(), %fault, "no answer");
            }
            Err(Unanswered { trouble, permit, exchange })
        }
    }
}

fn open(
    mut response: Response<ReplyBody>,
    upgrade: Option<OnUpgrade>,
) -> Result<(response::Parts, ReplyBody, Option<Tunnel>), Trouble> {
    let tunnel = if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let client = upgrade.ok_or(Trouble::Upstream(Fault::Unacceptable("it switches protocols")))?;
        Some((client, hyper::upgrade::on(&mut response)))
    } else {
        None
    };
    let (head, body) = response.into_parts();
    Ok((head, body, tunnel))
}

/// Whose fault it is: an upload that broke off is its client's.
fn trouble(fault: Fault) -> Trouble {
    match fault {
        Fault::Upload(error) => Trouble::ClientBody(error.to_string()),
        Fault::UploadPaused(Paused(pause)) => Trouble::BodyTimeout { pause },
        fault => Trouble::Upstream(fault),
    }
}
