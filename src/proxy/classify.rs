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
use hyper::http::request;
use hyper::{Method, Uri};
use tower::Service;

use crate::policy::engine::{Arrival, Kind};
use crate::policy::units::Priority;
use crate::policy::usage::{Ask, LONGEST_NAME};
use crate::proxy::exchange::{Authed, Classified, Failure, Model};
use crate::proxy::respond::Trouble;
use crate::proxy::route::{Route, TakesPermit, decoded};
use crate::proxy::scan::{self, scan};
use crate::proxy::usage::{Expected, bound};
use crate::proxy::{Parts, Shared};
use crate::proxy::{form, intake};
use crate::telemetry::Endpoint;
use crate::upstream::Payload;

static PRIORITY: HeaderName = HeaderName::from_static("x-tidegate-priority");
static DEADLINE: HeaderName = HeaderName::from_static("x-tidegate-deadline-ms");
/// openai-python: seconds, fractional.
static PYTHON_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-read-timeout");
/// openai-node: whole seconds, 0 for less than one.
static NODE_TIMEOUT: HeaderName = HeaderName::from_static("x-stainless-timeout");

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
        Box::pin(async move { inner.call(classify(&shared, request).await?).await })
    }
}

async fn classify(shared: &Shared, Authed(request): Authed) -> Result<Classified, Failure> {
    let parts = &shared.parts;
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
                match look(parts, headers, &whole.bytes) {
                    Ok(head) => seen = head,
                    Err(trouble) => return Err(Failure::new(trouble, exchange)),
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
    let model = named(parts, &mut seen, request.route.endpoint, &request.head.uri);
    let Some(number) = parts.routes.group_of(model.as_ref().map(|model| &*model.name)) else {
        exchange.record.model = model.map(|model| model.name).filter(|name| name.len() <= LONGEST_NAME);
        return Err(Failure::new(Trouble::NoSuchModel, exchange));
    };
    let priority = priority(headers);
    let arrived = exchange.record.arrived;
    let wanted = deadline(headers);
    let ask = Ask { body_bytes: bytes, max_tokens: bound(request.route.endpoint, seen.max_tokens) };
    let expected = match (kind, parts.routes.groups().get(number)) {
        (Kind::Queued | Kind::WebSocket, Some(group)) => {
            group.gate().costs().expect(model.as_ref().map(|model| &*model.name), ask)
        }
        _ => Expected::default(),
    };
    // a tunnel's answers are not read
    exchange.expected = (kind == Kind::Queued).then_some(expected);
    let tunnel = request.upgrade.is_some();
    exchange.blames_key = tells_of_key(&request.head, request.route, tunnel) && !names_account(headers);
    let arrival = Arrival {
        kind,
        tenant: exchange.record.tenant,
        priority,
        model: expected.model,
        cost: expected.cost(),
        prompt: expected.prompt(),
        bytes,
        head_by: wanted.map(|w| arrived + w.within),
        stream: seen.stream,
    };
    let record = &mut exchange.record;
    if let Some(labels) = shared.labels.get(number) {
        record.group = labels.group.clone();
    }
    record.model = model.as_ref().map(|model| model.name.clone()).filter(|name| name.len() <= LONGEST_NAME);
    record.stream = seen.stream;
    record.priority = priority;
    record.request_bytes = bytes;
    Ok(Classified {
        head: request.head,
        payload,
        memory,
        upgrade: request.upgrade,
        arrival,
        group: number,
        model,
        inference: takes_permit == TakesPermit::Yes && !seen.lasting,
        answer_by: wanted.filter(|w| w.strict).map(|w| arrived + w.within),
        exchange,
    })
}

/// What the body says. Where the way depends on the model, it must say so in a way that has one reading: else a
/// second name, or an encoding, would be a way around limits.
fn look(parts: &Parts, headers: &HeaderMap, body: &[u8]) -> Result<scan::Head, Trouble> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let multipart = is_multipart(headers);
    let strict = parts.routes.depend_on_model() && !body.is_empty();
    if is_encoded(headers) {
        return if strict && !multipart { Err(Trouble::EncodedBody) } else { Ok(scan::Head::default()) };
    }
    let read = match form::boundary(content_type) {
        Some(boundary) => Some(form::scan(body, boundary)),
        None if multipart => Some(scan::Head::default()),
        None => scan(body),
    };
    match read {
        Some(head) if strict && head.ambiguous => Err(Trouble::UnreadableBody),
        Some(head) => Ok(head),
        None if strict => Err(Trouble::UnreadableBody),
        None => Ok(scan::Head::default()),
    }
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let encodings = headers.get_all(header::CONTENT_ENCODING);
    encodings.iter().any(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"))
}

/// The model a request names: in its body; a realtime session in its query; a look at one model in its path.
fn named(parts: &Parts, seen: &mut scan::Head, endpoint: Endpoint, uri: &Uri) -> Option<Model> {
    let elsewhere = || match endpoint {
        _ if !parts.routes.depend_on_model() => None,
        Endpoint::Realtime => uri.query()?.split('&').find_map(|pair| pair.strip_prefix("model=")),
        Endpoint::Models => uri.path().split_once("/models/").map(|(_, name)| name),
        _ => None,
    };
    let name = match seen.model.take() {
        Some(name) => name,
        None => decoded(elsewhere()?),
    };
    (!name.is_empty()).then(|| Model { name: name.into(), span: seen.model_span.take(), form: seen.form })
}

fn is_json(headers: &HeaderMap) -> bool {
    let essence = essence(headers);
    essence.eq_ignore_ascii_case("application/json") || essence.to_ascii_lowercase().ends_with("+json")
}

fn is_multipart(headers: &HeaderMap) -> bool {
    essence(headers).get(..10).is_some_and(|kind| kind.eq_ignore_ascii_case("multipart/"))
}

/// `Content-Type` without its parameters.
fn essence(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.split(';').next())
        .map(str::trim)
        .unwrap_or_default()
}

/// Whether a client says which account a request is for: OpenAI answers 401 to a good key that is not that account's.
fn names_account(headers: &HeaderMap) -> bool {
    headers.contains_key("openai-organization") || headers.contains_key("openai-project")
}

/// Whether every key that is good opens this. Of other paths and methods a 401 may be all there is.
fn tells_of_key(head: &request::Parts, route: Route, tunnel: bool) -> bool {
    let lists = || head.method == Method::GET && head.uri.path().ends_with("/models");
    match route.endpoint {
        Endpoint::Models => lists(),
        Endpoint::Realtime if tunnel => true,
        _ => route.permit == TakesPermit::Yes,
    }
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
