//! The outermost layer: gives a request its id and record, refuses heads that are out of order, and
//! turns every trouble into the answer that clients understand.
//!
//! This is the one place where a trouble gets its HTTP meaning (RFC 9110 §15, OpenAI's error shape).

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body as _;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request;
use hyper::{Method, Request, Response, StatusCode, Version};
use tower::Service;

use crate::policy::units::Refusal;
use crate::proxy::exchange::{Arrived, Exchange, Failure};
use crate::proxy::gate::Refused;
use crate::proxy::route::route;
use crate::proxy::{Body, Shared};
use crate::telemetry::{Ended, Record, RequestId};
use crate::upstream::{self, Fault};

pub(super) static REQUEST_ID: HeaderName = HeaderName::from_static("x-tidegate-request-id");
static UPSTREAM_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static REASON: HeaderName = HeaderName::from_static("x-tidegate-reason");
static SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Why a request gets an answer of our own.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("{}", refusal_text(&.0.refusal))]
    Refused(Refused),
    #[error("The request's body is larger than {limit} bytes, the most this proxy reads.")]
    BodyTooLarge { limit: u64 },
    #[error("The proxy holds as many bytes of request bodies as it may.")]
    BodyMemory,
    #[error("The request's body paused for longer than {pause:?}.")]
    BodyTimeout { pause: Duration },
    #[error("The request's body broke off: {0}")]
    ClientBody(String),
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("No upstream serves the model that the request names.")]
    NoSuchModel,
    #[error(
        "The request's body is neither JSON nor a form that names one model, by which this proxy has to choose."
    )]
    UnreadableBody,
    #[error("The request's body is encoded, and this proxy has to read the model that it names.")]
    EncodedBody,
    #[error("The upstream gave no usable answer: {0}")]
    Upstream(#[source] Fault),
    #[error("The deadline that the request named has passed, and the upstream had not answered.")]
    DeadlinePassed,
}

fn refusal_text(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::QueueFull => "The queue in front of the upstream is full.",
        Refusal::QueueTimeout => "The request waited as long as it may for its turn at the upstream.",
        Refusal::DeadlineUnreachable => "The request's turn would come after its deadline.",
        Refusal::UpstreamUnavailable => "The upstream is failing; the proxy waits before it tries again.",
        Refusal::Draining => "The proxy is shutting down.",
        Refusal::Overloaded => "The proxy has as many requests outside its queue as it may.",
    }
}

/// A trouble in HTTP.
struct Meaning {
    status: StatusCode,
    code: &'static str,
    kind: &'static str,
    retry_after: Option<Duration>,
    retry: Option<bool>,
    ended: Ended,
}

impl Trouble {
    fn meaning(&self) -> Meaning {
        const LIMIT: &str = "rate_limit_error";
        const SERVER: &str = "server_error";
        const CLIENT: &str = "invalid_request_error";
        let wait = |status, code, kind, retry_after: Option<Duration>| {
            let retry_after = retry_after.unwrap_or(Duration::from_secs(1));
            // openai-node sleeps for any time it is told, openai-python for none above two minutes
            let retry = Some(whole_seconds(retry_after) <= 60);
            Meaning { status, code, kind, retry_after: Some(retry_after), retry, ended: Ended::Refused }
        };
        let client = |status, code| Meaning {
            status,
            code,
            kind: CLIENT,
            retry_after: None,
            retry: Some(false),
            ended: Ended::Refused,
        };
        let fault = |status, code| Meaning {
            status,
            code,
            kind: SERVER,
            retry_after: None,
            retry: None,
            ended: Ended::UpstreamFault,
        };
        let (busy, unavailable) = (StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE);
        match self {
            Self::Refused(Refused { refusal, retry_after }) => match refusal {
                Refusal::QueueFull => wait(busy, "queue_full", LIMIT, *retry_after),
                Refusal::QueueTimeout => wait(busy, "queue_timeout", LIMIT, *retry_after),
                Refusal::DeadlineUnreachable => wait(busy, "deadline_unreachable", LIMIT, *retry_after),
                Refusal::UpstreamUnavailable => {
                    wait(unavailable, "upstream_unavailable", SERVER, *retry_after)
                }
                Refusal::Draining => wait(unavailable, "draining", SERVER, *retry_after),
                Refusal::Overloaded => wait(unavailable, "overloaded", SERVER, *retry_after),
            },
            Self::BodyMemory => wait(unavailable, "overloaded", SERVER, None),
            Self::BodyTooLarge { .. } => client(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyTimeout { .. } => client(StatusCode::REQUEST_TIMEOUT, "bad_request"),
            Self::ClientBody(_) | Self::BadRequest(_) => client(StatusCode::BAD_REQUEST, "bad_request"),
            Self::NoSuchModel => client(StatusCode::NOT_FOUND, "model_not_found"),
            Self::UnreadableBody => client(StatusCode::BAD_REQUEST, "unreadable_body"),
            Self::EncodedBody => client(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unreadable_body"),
            Self::Upstream(f) if f.is_timeout() => fault(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"),
            Self::Upstream(_) => fault(StatusCode::BAD_GATEWAY, "upstream_error"),
            Self::DeadlinePassed => fault(StatusCode::GATEWAY_TIMEOUT, "upstream_timeout"),
        }
    }
}

/// `Retry-After` counts whole seconds, at least one (RFC 9110 §10.2.3; openai-python ignores 0).
fn whole_seconds(d: Duration) -> u64 {
    (d.as_secs() + u64::from(d.subsec_nanos() > 0)).max(1)
}

/// An OpenAI error object, as `text/event-stream` data or a body.
pub(super) fn error_json(message: &str, kind: &str, code: &str) -> String {
    serde_json::json!({ "error": { "message": message, "type": kind, "param": null, "code": code } })
        .to_string()
}

/// What a stream that breaks says of it.
pub(super) fn broken_stream(fault: &Fault) -> (&'static str, String) {
    let code = if fault.is_timeout() { "upstream_timeout" } else { "upstream_error" };
    (code, error_json(&format!("The upstream's answer broke off: {fault}"), "server_error", code))
}

/// The answer to a request in whose service something of ours panicked. Its permit and record have been let
/// go of on the way here.
#[must_use]
pub fn panicked(_: Box<dyn Any + Send>) -> Response<Full<Bytes>> {
    let text = error_json("The proxy failed to serve this request.", "server_error", "internal_error");
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(&REASON, HeaderValue::from_static("internal_error"));
    response
}

fn answer(failure: Failure) -> Response<Body> {
    let Failure { trouble, mut exchange } = failure;
    let meaning = trouble.meaning();
    let mut response = Response::new(Body::own(
        error_json(&trouble.to_string(), meaning.kind, meaning.code).into_bytes().into(),
    ));
    *response.status_mut() = meaning.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(&REASON, HeaderValue::from_static(meaning.code));
    if let Some(after) = meaning.retry_after {
        headers.insert(header::RETRY_AFTER, whole_seconds(after).into());
    }
    if let Some(retry) = meaning.retry {
        headers.insert(&SHOULD_RETRY, HeaderValue::from_static(if retry { "true" } else { "false" }));
    }
    exchange.record.status = Some(meaning.status.as_u16());
    exchange.record.reason = Some(meaning.code);
    exchange.record.ended = meaning.ended;
    response
}

/// Request ids: a count, mixed with the process's own random key so that nobody can guess another's.
pub(super) struct Ids {
    key: RandomState,
    count: AtomicU64,
    worker: u64,
}

impl Ids {
    pub(super) fn new(worker: usize) -> Self {
        Self { key: RandomState::new(), count: AtomicU64::new(0), worker: worker as u64 }
    }

    fn next(&self) -> RequestId {
        let n = self.count.fetch_add(1, Ordering::Relaxed);
        let high = self.key.hash_one((self.worker, n));
        RequestId((u128::from(high) << 64) | u128::from(self.key.hash_one((high, n))))
    }
}

/// Makes [`Respond`].
pub(super) struct Layer(pub(super) Arc<Shared>);

impl<S> tower::Layer<S> for Layer {
    type Service = Respond<S>;

    fn layer(&self, inner: S) -> Respond<S> {
        Respond { inner, shared: self.0.clone() }
    }
}

/// Answers every request, one way or another.
#[derive(Clone)]
pub(super) struct Respond<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Incoming>> for Respond<S>
where
    S: Service<Arrived, Response = Response<Body>, Error = Failure>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        let id = self.shared.ids.next();
        let parts = &self.shared.parts;
        let route = route(request.method(), request.uri().path());
        let record = Record::new(id, route.endpoint, self.shared.default_label(), parts.clock.now());
        let exchange = Exchange::new(record, self.shared.clone());
        let upgrade = (request.version() == Version::HTTP_11
            && request.method() == Method::GET
            && request.body().is_end_stream()
            && upstream::is_upgrade(request.headers()))
        .then(|| hyper::upgrade::on(&mut request));
        let (head, body) = request.into_parts();
        let serving = match fault_of_head(&head) {
            Some(fault) => Err(Failure::new(Trouble::BadRequest(fault), exchange)),
            None => Ok(self.inner.call(Arrived { head, body, route, upgrade, exchange })),
        };
        Box::pin(async move {
            let mut response = match serving {
                Ok(serving) => serving.await.unwrap_or_else(answer),
                Err(failure) => answer(failure),
            };
            let mut text = [0; 32];
            if let Ok(value) = HeaderValue::from_bytes(hex(id, &mut text)) {
                let headers = response.headers_mut();
                if !headers.contains_key(&UPSTREAM_REQUEST_ID) {
                    headers.insert(&UPSTREAM_REQUEST_ID, value.clone());
                }
                headers.insert(&REQUEST_ID, value);
            }
            Ok(response)
        })
    }
}

fn hex(id: RequestId, text: &mut [u8; 32]) -> &[u8] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (place, digit) in text.iter_mut().rev().enumerate() {
        *digit = DIGITS[(id.0 >> (4 * place)) as usize & 0xf];
    }
    text
}

/// What is wrong with a request's head that hyper lets pass (RFC 9112 §3.2, §6.1; RFC 9110 §7.2).
fn fault_of_head(head: &request::Parts) -> Option<&'static str> {
    if head.method == Method::CONNECT {
        return Some("CONNECT is not served: this is a reverse proxy.");
    }
    if head.version > Version::HTTP_11 {
        return None;
    }
    let mut hosts = head.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version == Version::HTTP_11 => return Some("The Host header is missing."),
        (Some(_), Some(_)) => return Some("There is more than one Host header."),
        (Some(host), None) if !is_host(host.as_bytes()) => return Some("The Host header is malformed."),
        _ => {}
    }
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => None,
        (Some(one), None) if one.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => None,
        _ => Some("The only transfer coding that is understood is `chunked`."),
    }
}

/// A host and perhaps a port, no user (RFC 3986 §3.2). Empty is allowed where the target has no authority.
fn is_host(host: &[u8]) -> bool {
    host.is_empty()
        || (!host.contains(&b'@')
            && std::str::from_utf8(host).is_ok_and(|h| h.parse::<hyper::http::uri::Authority>().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_whole_and_at_least_one() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1001)), 2);
        assert_eq!(whole_seconds(Duration::from_secs(61)), 61);
    }

    #[tokio::test]
    async fn a_panic_of_ours_is_a_500_that_says_whose_it_is() {
        use http_body_util::BodyExt as _;
        use tower::{ServiceBuilder, ServiceExt as _};

        let broken = ServiceBuilder::new()
            .layer(tower_http::catch_panic::CatchPanicLayer::custom(panicked))
            .service_fn(|_: Request<()>| async {
                let nothing: Vec<Response<Full<Bytes>>> = Vec::new();
                Ok::<_, Infallible>(nothing.into_iter().next().unwrap())
            });
        let response = broken.oneshot(Request::new(())).await.unwrap();
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["x-tidegate-reason"], "internal_error");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!String::from_utf8_lossy(&body).contains("unwrap"), "what went wrong inside stays inside");
    }

    #[test]
    fn long_waits_are_not_to_be_retried() {
        let trouble = |secs| {
            let retry_after = Some(Duration::from_secs(secs));
            Trouble::Refused(Refused { refusal: Refusal::QueueFull, retry_after }).meaning().retry
        };
        assert_eq!((trouble(60), trouble(61)), (Some(true), Some(false)));
    }

    #[test]
    fn hosts() {
        for good in ["a", "a.b:8080", "[::1]:80", "127.0.0.1"] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in ["a b", "u@h", "a/b", "a:b:c", "[::1"] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn ids_are_32_hexadecimal_digits() {
        assert_eq!(hex(RequestId(0x1f), &mut [0; 32]), b"0000000000000000000000000000001f");
    }
}
