//! The request pipeline: a tower stack, one file per layer.
//!
//! ```text
//! respond → auth → classify → admit ─ waits in the gate ─→ meter → retry → breaker → forward → upstream
//! ```
//! Each stage takes what the one before it made ([`Incoming`] → `Arrived` →
//! `Authed` → `Classified` → `Admitted` → `Attempt` → `Answer`), so a layer in the wrong place does not compile.
//!
//! | file | what it does |
//! |---|---|
//! | `respond` | request id, faults of the head, every answer of our own |
//! | `auth` | whose request it is |
//! | `classify` | what it asks for; reads its body (`intake`, `scan`, `form`, `route`) |
//! | `models` | makes one list of models of several upstreams' |
//! | `admit` | waits for a permit |
//! | `meter` | wraps the response's body and lets go of everything exactly once |
//! | `retry` | tries again what may be tried again |
//! | `breaker` | the gate's verdict is the permit; reports how the attempt ended |
//! | `limits` | what an answer's headers say of rate limits |
//! | `forward` | sends it upstream |
//! | `routes` | the upstream groups, and which serves a model |
//! | `gate` | the door to the engine |
//! | `seldom` | how often the log hears of one kind of trouble |
//! | `usage` | what requests cost: expected, and read from their answers |
//! | `detach` | tunnels, the one kind of request that outlives its response |

mod admit;
mod auth;
mod body;
mod breaker;
mod classify;
mod detach;
mod exchange;
mod form;
mod forward;
mod gate;
mod intake;
mod limits;
mod meter;
mod models;
mod params;
mod respond;
mod retry;
mod route;
mod routes;
mod scan;
mod seldom;
mod usage;

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, Response};
use tower::{Service, ServiceBuilder};

pub use body::Body;
pub use detach::Tunnels;
pub use gate::{Gate, Pending, Permit, Refused, Report};
pub use intake::Memory;
pub use params::Params;
pub use respond::panicked;
pub use routes::{Group, Routes};
pub use scan::{Head, scan};
pub use usage::Costs;

use crate::clock::Clock;
use crate::policy::units::{EndpointId, Place};
use crate::telemetry::WorkerTelemetry;
use crate::upstream::Upstream;

/// What the stack of one worker is made of.
#[derive(Clone)]
pub struct Parts {
    /// Which worker it is.
    pub worker: usize,
    /// Limits on bodies.
    pub params: Params,
    /// Where requests go, and the doors on the way, shared by all workers.
    pub routes: Arc<Routes>,
    /// Memory for bodies, shared by all workers.
    pub memory: Memory,
    /// Where tunnels live on.
    pub tunnels: Tunnels,
    /// Where requests are told of.
    pub telemetry: WorkerTelemetry,
    /// The clock.
    pub clock: Clock,
}

/// What the layers of one stack share. They hold one pointer each, because a stack is cloned for every
/// connection and every request.
struct Shared {
    parts: Parts,
    ids: respond::Ids,
    /// Of each group, by number.
    labels: Vec<GroupLabels>,
}

/// The names in one group: this worker's own copies, because their counts change with every request.
struct GroupLabels {
    group: Arc<str>,
    /// Of each endpoint, by number.
    upstreams: Vec<UpstreamLabels>,
}

struct UpstreamLabels {
    name: Arc<str>,
    header: HeaderValue,
}

impl Shared {
    fn new(parts: Parts) -> Self {
        let upstream = |name: &str| UpstreamLabels {
            name: name.into(),
            // a checked name is a valid header value
            header: HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("upstream")),
        };
        let labels = parts.routes.groups().iter().map(|group| GroupLabels {
            group: Arc::from(&**group.name()),
            upstreams: group.endpoints().iter().map(|endpoint| upstream(endpoint.name())).collect(),
        });
        Self { ids: respond::Ids::new(parts.worker), labels: labels.collect(), parts }
    }

    /// The group of a request of which nothing more is known yet.
    fn default_label(&self) -> Arc<str> {
        let group = self.parts.routes.group_of(None).unwrap_or_default();
        self.labels.get(group).map_or_else(|| "default".into(), |labels| labels.group.clone())
    }

    fn endpoint(&self, group: usize, id: EndpointId) -> Option<&Arc<Upstream>> {
        self.parts.routes.groups().get(group)?.endpoint(id)
    }

    /// The key of such an attempt is the endpoint's own, not its client's.
    fn is_ours(&self, group: usize, place: Place) -> bool {
        self.endpoint(group, place.endpoint).is_some_and(|e| e.authorization(place.key).is_some())
    }

    fn upstream_labels(&self, group: usize, id: EndpointId) -> Option<&UpstreamLabels> {
        self.labels.get(group)?.upstreams.get(usize::from(id.0))
    }
}

/// The whole pipeline of one worker.
#[must_use]
pub fn stack(
    parts: Parts,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Body>,
    Error = Infallible,
    Future: Future<Output = Result<Response<Body>, Infallible>> + Send,
> + Clone
+ Send
+ 'static {
    let shared = Arc::new(Shared::new(parts));
    ServiceBuilder::new()
        .layer(respond::Layer(shared.clone()))
        .layer(auth::Layer)
        .layer(classify::Layer(shared.clone()))
        .layer(models::Layer(shared.clone()))
        .layer(admit::Layer(shared.clone()))
        .layer(meter::Layer(shared.clone()))
        .layer(retry::Layer(shared.clone()))
        .layer(breaker::Layer(shared.clone()))
        .service(forward::Forward(shared))
}
