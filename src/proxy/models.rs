//! `GET /v1/models` where different upstreams serve different models: one list made of all of theirs.
//!
//! Each group's list is asked for at once, of an endpoint that its gate names, and what a group answers counts only as
//! far as requests for it would go to that group. A model that an upstream has under another name shows as clients
//! know it. A group that does not answer is left out; only if none does, the client hears of it. With one group the
//! request passes through like any other.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::join_all;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri};
use serde_json::{Map, Value, json};
use tower::Service;

use crate::policy::engine::Arrival;
use crate::policy::units::Outcome;
use crate::proxy::breaker::{of_fault, of_status, tell_lost};
use crate::proxy::exchange::{Classified, Failure};
use crate::proxy::respond::Trouble;
use crate::proxy::{Body, Group, Permit, Shared};
use crate::telemetry::Ended;
use crate::upstream::{Fault, Payload, Repeat, Trace, Upstream, clean_request, set_key};

/// The longest list that is read.
const MAX_LIST: usize = 8 << 20;
/// A list that takes longer is left out.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes [`Models`].
pub(super) struct Layer(pub(super) Arc<Shared>);

impl<S> tower::Layer<S> for Layer {
    type Service = Models<S>;

    fn layer(&self, inner: S) -> Models<S> {
        Models { inner, shared: self.0.clone() }
    }
}

/// Answers for the list of models, and passes everything else on.
#[derive(Clone)]
pub(super) struct Models<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Classified> for Models<S>
where
    S: Service<Classified, Response = Response<Body>, Error = Failure>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Classified) -> Self::Future {
        let several = self.shared.parts.routes.groups().len() > 1;
        if several && request.head.method == Method::GET && request.head.uri.path() == "/v1/models" {
            return Box::pin(all(self.shared.clone(), request));
        }
        Box::pin(self.inner.call(request))
    }
}

async fn all(shared: Arc<Shared>, request: Classified) -> Result<Response<Body>, Failure> {
    let Classified { head, arrival, mut exchange, .. } = request;
    let mut headers = head.headers;
    clean_request(&mut headers, false);
    // one that is compressed could not be read, and one that is unchanged is still wanted
    for name in [header::ACCEPT_ENCODING, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::RANGE] {
        headers.remove(name);
    }
    // whatever body came with it stays here
    for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING, header::TRAILER] {
        headers.remove(name);
    }
    let asked = (0..shared.parts.routes.groups().len()).map(|number| {
        let listing = list_of(&shared, number, arrival, &headers, &head.uri, exchange.blames_key);
        async { tokio::time::timeout(PATIENCE, listing).await.unwrap_or_else(|_| Err("too slow".into())) }
    });
    let answers = join_all(asked).await;
    let (mut models, mut failed) = (BTreeMap::new(), 0);
    for (group, answer) in shared.parts.routes.groups().iter().zip(answers) {
        match answer {
            Ok(of_group) => models.extend(of_group),
            Err(reason) => {
                failed += 1;
                let seldom = &shared.parts.routes.seldom;
                if let Some(times) = seldom.again(exchange.now(), group.name(), "models") {
                    tracing::warn!(
                        group = &**group.name(),
                        reason,
                        times,
                        "its models are left out of the list"
                    );
                }
            }
        }
    }
    if failed == shared.parts.routes.groups().len() {
        let trouble = Trouble::Upstream(Fault::Unacceptable("no upstream listed its models"));
        return Err(Failure::new(trouble, exchange));
    }
    let list = json!({ "object": "list", "data": models.into_values().collect::<Vec<_>>() });
    exchange.record.status = Some(200);
    exchange.record.ended = Ended::Success;
    let body = list.to_string();
    exchange.record.response_bytes = body.len() as u64;
    let mut response = Response::new(Body::own(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// What one group has to offer, by the names that lead to it.
async fn list_of(
    shared: &Shared,
    number: usize,
    arrival: Arrival,
    headers: &HeaderMap,
    uri: &Uri,
    blames_key: bool,
) -> Result<BTreeMap<String, Value>, String> {
    let routes = &shared.parts.routes;
    let group: &Group = routes.groups().get(number).ok_or("there is no such group")?;
    let admitted = group.gate().admit(arrival, || {}).await;
    let permit = admitted.map_err(|refused| format!("{:?}", refused.refusal))?;
    let place = permit.place();
    let upstream = group.endpoint(place.endpoint).ok_or("there is no such endpoint")?;
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = uri.clone();
    *request.headers_mut() = headers.clone();
    if let Some(key) = upstream.authorization(place.key) {
        set_key(request.headers_mut(), key);
    }
    let listed = ask(shared.parts.worker, upstream, request, permit, blames_key).await?;
    let leads_here = |name: &str| routes.group_of(Some(name)) == Some(number);
    let mut models = BTreeMap::new();
    for model in listed {
        let Some(name) = model.get("id").and_then(Value::as_str).map(str::to_owned) else { continue };
        let renamed = &upstream.params().rename;
        for alias in renamed.iter().filter(|(_, own)| **own == name).map(|(alias, _)| alias) {
            let mut shown = model.clone();
            shown.insert("id".into(), Value::from(alias.as_str()));
            models.insert(alias.clone(), Value::Object(shown));
        }
        // a name that stands for another model there would be a lie
        if leads_here(&name) && !renamed.contains_key(&name) {
            models.insert(name, Value::Object(model));
        }
    }
    Ok(models)
}

/// Asks one upstream. The permit goes back with what came of it.
async fn ask(
    worker: usize,
    upstream: &Upstream,
    request: Request<()>,
    permit: Permit,
    blames_key: bool,
) -> Result<Vec<Map<String, Value>>, String> {
    let patience = upstream.params().first_byte_timeout.min(PATIENCE);
    let (head, ()) = request.into_parts();
    let mut trace = Trace::default();
    let sending = upstream.send(worker, head, Payload::Empty, patience, Repeat::Always, &mut trace);
    let response = match sending.await {
        Ok(response) => response,
        Err(fault) => {
            tell_lost(&permit, &fault);
            permit.finish(of_fault(&fault), None);
            return Err(fault.to_string());
        }
    };
    let status = response.status();
    let ours = upstream.authorization(permit.place().key).is_some();
    if status == StatusCode::UNAUTHORIZED && ours && blames_key {
        permit.unauthorized();
    }
    permit.first_byte(status.as_u16() < 500);
    let body = Limited::new(response.into_body(), MAX_LIST).collect().await;
    let body = match body {
        Ok(body) => body,
        // that bound is ours
        Err(error) if error.is::<LengthLimitError>() => {
            permit.finish(Outcome::Ignore, None);
            return Err("its list is too long".into());
        }
        Err(error) => {
            permit.finish(Outcome::Failure, None);
            return Err(format!("its list broke off: {error}"));
        }
    };
    permit.finish(of_status(status), None);
    if !status.is_success() {
        return Err(format!("it answered {status}"));
    }
    let mut list: Value = serde_json::from_slice(&body.to_bytes()).map_err(|e| e.to_string())?;
    let data = list.get_mut("data").map(Value::take);
    let Some(Value::Array(data)) = data else { return Err("it sent no list".into()) };
    Ok(data
        .into_iter()
        .filter_map(|model| if let Value::Object(m) = model { Some(m) } else { None })
        .collect())
}
