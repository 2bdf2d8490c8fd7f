//! Sends a request upstream. The innermost service of the stack.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::header::{self, HeaderValue};
use hyper::http::response;
use hyper::upgrade::OnUpgrade;
use hyper::{Response, StatusCode, Uri};
use tower::Service;

use crate::policy::units::MonoTime;
use crate::proxy::exchange::{Attempt, Exchange, Model};
use crate::proxy::respond::Trouble;
use crate::proxy::{Permit, Shared};
use crate::upstream::{
    Fault, Paused, Payload, ReplyBody, Trace, Upstream, rename_in_form, rename_in_path, rename_model, set_key,
};

/// The upstream's answer, with everything that must be let go of when it is over.
pub(super) struct Answer {
    pub(super) head: response::Parts,
    pub(super) body: ReplyBody,
    /// Both sides of a tunnel, when the upstream agreed to switch protocols.
    pub(super) tunnel: Option<Tunnel>,
    /// The number of the group it came from; the endpoint is the permit's.
    pub(super) group: usize,
    pub(super) permit: Permit,
    /// When the upstream wants a refused request to come again.
    pub(super) retry_at: Option<MonoTime>,
    pub(super) waited: Option<Duration>,
    pub(super) exchange: Box<Exchange>,
}

/// The client's side and the upstream's.
pub(super) type Tunnel = (OnUpgrade, OnUpgrade);

/// An attempt without an answer.
pub(super) struct Unanswered {
    pub(super) trouble: Trouble,
    pub(super) permit: Permit,
    pub(super) waited: Option<Duration>,
    pub(super) exchange: Box<Exchange>,
}

const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// Sends requests.
#[derive(Clone)]
pub(super) struct Forward(pub(super) Arc<Shared>);

impl Service<Attempt> for Forward {
    type Response = Answer;
    type Error = Unanswered;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Unanswered>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unanswered>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        Box::pin(forward(self.0.clone(), attempt))
    }
}

async fn forward(shared: Arc<Shared>, attempt: Attempt) -> Result<Answer, Unanswered> {
    let clock = shared.parts.clock;
    let Attempt { mut head, mut payload, upgrade, group, model, repeat, sent, answer_by, .. } = attempt;
    let (permit, waited, mut exchange) = (attempt.permit, attempt.waited, attempt.exchange);
    let place = permit.place();
    let Some(upstream) = shared.endpoint(group, place.endpoint) else {
        // the gate's endpoints and the group's are made from one list
        let trouble = Trouble::Upstream(Fault::Request("there is no such endpoint".into()));
        return Err(Unanswered { trouble, permit, waited, exchange });
    };
    if let Some(key) = upstream.authorization(place.key) {
        set_key(&mut head.headers, key);
    }
    if exchange.expected.is_some() {
        // what is compressed cannot be read for its usage
        head.headers.insert(header::ACCEPT_ENCODING, IDENTITY);
    }
    if let Some(model) = &model {
        rename(upstream, model, &mut head.uri, &mut payload);
    }
    let began = clock.now();
    exchange.record.upstream =
        shared.upstream_labels(group, place.endpoint).map(|labels| labels.name.clone());
    exchange.record.dispatched = Some(began);
    let mut trace = Trace { sent, ..Trace::default() };
    let sent = {
        let params = upstream.params();
        let patience = params.first_byte_timeout;
        let sending = upstream.send(shared.parts.worker, head, payload, patience, repeat, &mut trace);
        match latest(began, params.total_timeout, exchange.record.stream, answer_by) {
            None => sending.await.map_err(trouble),
            Some((at, late)) => match tokio::time::timeout_at(clock.instant(at), sending).await {
                Ok(sent) => sent.map_err(trouble),
                Err(_) => Err(late),
            },
        }
    };
    let record = &mut exchange.record;
    record.attempts += trace.attempts;
    record.connected = trace.connect.map(|took| began + took);
    match sent.and_then(|response| open(response, upgrade)) {
        Ok((head, body, tunnel)) => {
            record.first_byte = Some(clock.now());
            record.status = Some(head.status.as_u16());
            // a copy: a clone would keep the whole buffer it was read into for as long as the stream lives
            record.upstream_request_id =
                head.headers.get("x-request-id").and_then(|id| HeaderValue::from_bytes(id.as_bytes()).ok());
            Ok(Answer { head, body, tunnel, group, permit, retry_at: None, waited, exchange })
        }
        Err(trouble) => {
            if let Trouble::Upstream(fault) = &trouble
                && let Some(times) = exchange.seldom(fault.kind())
            {
                tracing::warn!(upstream = %upstream.name(), %fault, times, "no answer");
            }
            Err(Unanswered { trouble, permit, waited, exchange })
        }
    }
}

/// The moment after which no head is wanted any more, however the request's body still moves, and whose word that is.
fn latest(
    began: MonoTime,
    total: Duration,
    stream: bool,
    answer_by: Option<MonoTime>,
) -> Option<(MonoTime, Trouble)> {
    // a stream's head does not wait for the whole answer: without it, it is the upstream that is late
    let late = if stream { Fault::FirstByteTimeout } else { Fault::TotalTimeout };
    let total = (!total.is_zero()).then(|| (began + total, Trouble::Upstream(late(total))));
    let by = answer_by.map(|by| (by, Trouble::DeadlinePassed));
    total.into_iter().chain(by).min_by_key(|(at, _)| *at)
}

/// Asks for the model by the name that this upstream knows it under.
fn rename(upstream: &Upstream, model: &Model, uri: &mut Uri, payload: &mut Payload) {
    let Some(name) = upstream.renamed(&model.name) else { return };
    let Some(span) = &model.span else {
        if let Some(renamed) = rename_in_path(uri, name) {
            *uri = renamed;
        }
        return;
    };
    let bytes = match payload {
        Payload::Whole(bytes) => bytes,
        Payload::WithTrailers(both) => match &mut both.bytes {
            Some(bytes) => bytes,
            None => return,
        },
        Payload::Empty | Payload::Stream(_) => return,
    };
    let rename = if model.form { rename_in_form } else { rename_model };
    if let Some(renamed) = rename(bytes, span.clone(), name) {
        *bytes = renamed;
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
