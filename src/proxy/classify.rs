//! What a request asks for: whether it takes a permit, of which class it is, until when it waits.
//!
//! A body is read whole only where admission may depend on it; everything else passes through. What
//! cannot be read is passed on as it is: the upstream judges it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::header::{self, HeaderMap, HeaderName};
use tower::Service;

use crate::policy::engine::{Arrival, Kind};
use crate::policy::units::{ModelId, Priority, Tokens};
use crate::proxy::exchange::{Authed, Classified, Failure};
use crate::proxy::intake;
use crate::proxy::route::TakesPermit;
use crate::proxy::scan::{self, scan};
use crate::proxy::{Parts, Shared};
use crate::upstream::Payload;

static PRIORITY: HeaderName = HeaderName::from_static("x-tidegate-priority");
static DEADLINE: HeaderName = HeaderName::from_static("x-tidegate-deadline-ms");
/// openai-python: seconds, fractional.
static PYTHON_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-read-timeout");
/// openai-node: whole seconds, 0 for less than one.
static NODE_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-timeout");

/// Tokens an answer is reckoned with where the request does not bound it.
const USUAL_ANSWER: u64 = 256;
/// Bytes of a request per token of its prompt, about.
const BYTES_PER_TOKEN: u64 = 4;
/// The longest name of a model that is kept.
const MODEL_NAME: usize = 128;

/// Makes [`Classify`].
pub(super) struct Layer(pub(super) Arc<Shared>);

impl<S> tower::Layer<S> for Layer {
    type Service = Classify<S>;

    fn layer(&self, inner: S) -> Classify<S> {
        Classify { inner, shared: self.0.clone() }
    }
}

/// Reads what needs to be read.
#[derive(Clone)]
pub(super) struct Classify<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Authed> for Classify<S>
where
    S: Service<Classified, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Authed) -> Self::Future {
        let mut inner = self.inner.clone();
        let shared = self.shared.clone();
        Box::pin(async move { inner.call(classify(&shared.parts, request).await?).await })
    }
}

async fn classify(parts: &Parts, Authed(request): Authed) -> Result<Classified, Failure> {
    let mut exchange = request.exchange;
    let headers = &request.head.headers;
    let takes_permit = request.route.permit;
    let read = match takes_permit {
        TakesPermit::Yes => true,
        TakesPermit::IfItNamesAModel => is_json(headers),
        TakesPermit::No => false,
    };
    let mut seen = scan::Head::default();
    let (payload, memory, bytes) = if read && request.upgrade.is_none() {
        let p = &parts.params;
        match intake::read_whole(request.body, p.body_bytes, p.body_timeout, &parts.memory).await {
            Err(trouble) => return Err(Failure::new(trouble, exchange)),
            Ok(whole) => {
                if !headers.contains_key(header::CONTENT_ENCODING) {
                    seen = scan(&whole.bytes).unwrap_or_default();
                }
                let bytes = whole.bytes.len() as u64;
                let (payload, held) = whole.into_payload();
                (payload, Some(held), bytes)
            }
        }
    } else {
        (intake::pass_through(request.body, parts.params.body_timeout, parts.clock), None, 0)
    };
    let kind = if request.upgrade.is_some() {
        Kind::WebSocket
    } else if takes_permit == TakesPermit::Yes || (read && seen.model.is_some()) {
        Kind::Queued
    } else if matches!(payload, Payload::Stream(_)) {
        Kind::Upload
    } else {
        Kind::Unqueued
    };
    let priority = priority(headers);
    let arrived = exchange.record.arrived;
    let wanted = deadline(headers);
    let arrival = Arrival {
        kind,
        tenant: exchange.record.tenant,
        priority,
        model: ModelId::default(),
        cost: Tokens((bytes / BYTES_PER_TOKEN).saturating_add(seen.max_tokens.unwrap_or(USUAL_ANSWER))),
        bytes,
        head_by: wanted.map(|w| arrived + w.within),
        stream: seen.stream,
    };
    let record = &mut exchange.record;
    record.model = seen.model.filter(|m| m.len() <= MODEL_NAME).map(Into::into);
    record.stream = seen.stream;
    record.priority = priority;
    record.request_bytes = bytes;
    Ok(Classified {
        head: request.head,
        payload,
        memory,
        upgrade: request.upgrade,
        arrival,
        inference: takes_permit == TakesPermit::Yes && !seen.lasting,
        answer_by: wanted.filter(|w| w.strict).map(|w| arrived + w.within),
        exchange,
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let essence = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split(';').next())
        .map(str::trim)
        .unwrap_or_default();
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

fn priority(headers: &HeaderMap) -> Priority {
    match headers.get(&PRIORITY).map(|v| v.as_bytes().trim_ascii().to_ascii_lowercase()).as_deref() {
        Some(b"high") => Priority::High,
        Some(b"low") => Priority::Low,
        _ => Priority::Normal,
    }
}

/// How long a client will wait for the response's head.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Wanted {
    within: Duration,
    /// It was said to us, not merely announced by an SDK that will hang up by itself.
    strict: bool,
}

/// What the client told us, else what its SDK announces. Zero, negative, not a number: as if nothing
/// had been said.
fn deadline(headers: &HeaderMap) -> Option<Wanted> {
    let number = |name: &HeaderName, unit: f64, strict| {
        let n: f64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
        let secs = n * unit;
        (secs > 0.0 && secs < 1e9).then(|| Wanted { within: Duration::from_secs_f64(secs), strict })
    };
    number(&DEADLINE, 1e-3, true)
        .or_else(|| number(&PYTHON_TIMEOUT, 1.0, false))
        .or_else(|| number(&NODE_TIMEOUT, 1.0, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn said(fields: &[(&'static str, &'static str)]) -> Option<f64> {
        let headers =
            fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect();
        deadline(&headers).map(|w| w.within.as_secs_f64())
    }

    #[test]
    fn our_header_wins_over_what_the_sdks_announce() {
        assert_eq!(said(&[("x-stainless-read-timeout", "2.5")]), Some(2.5));
        assert_eq!(said(&[("x-stainless-timeout", "600")]), Some(600.0));
        assert_eq!(said(&[("x-stainless-timeout", "600"), ("x-tidegate-deadline-ms", "1500")]), Some(1.5));
    }

    #[test]
    fn nonsense_is_as_good_as_silence() {
        for v in ["0", "-1", "NaN", "inf", "1e300", "soon", ""] {
            assert_eq!(said(&[("x-tidegate-deadline-ms", v)]), None, "{v}");
            assert_eq!(
                said(&[("x-tidegate-deadline-ms", v), ("x-stainless-timeout", "3")]),
                Some(3.0),
                "{v}"
            );
        }
    }

    #[test]
    fn json_has_several_names() {
        let json = |v| is_json(&[(header::CONTENT_TYPE, HeaderValue::from_static(v))].into_iter().collect());
        assert!(
            json("application/json") && json("Application/JSON; charset=utf-8") && json("application/x+json")
        );
        assert!(!json("text/plain") && !json("multipart/form-data; boundary=json"));
    }
}
