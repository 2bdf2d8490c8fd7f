//! The request pipeline: a tower stack, one file per layer.
//!
//! ```text
//! respond → auth → classify → admit ─ waits in the gate ─→ meter → breaker → forward → upstream
//! ```
//! Each stage takes what the one before it made ([`Incoming`] → `Arrived` →
//! `Authed` → `Classified` → `Admitted` → `Answer`), so a layer in the wrong place does not compile.
//!
//! | file | what it does |
//! |---|---|
//! | `respond` | request id, faults of the head, every answer of our own |
//! | `auth` | whose request it is, which key goes up |
//! | `classify` | what it asks for; reads its body (`intake`, `scan`, `route`) |
//! | `admit` | waits for a permit |
//! | `meter` | wraps the response's body and lets go of everything exactly once |
//! | `breaker` | the gate's verdict is the permit; reports how the attempt ended |
//! | `forward` | sends it upstream |
//! | `gate` | the door to the engine |
//! | `detach` | tunnels, the one kind of request that outlives its response |

mod admit;
mod auth;
mod body;
mod breaker;
mod classify;
mod detach;
mod exchange;
mod forward;
mod gate;
mod intake;
mod meter;
mod params;
mod respond;
mod route;
mod scan;

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
pub use scan::{Head, scan};

use crate::clock::Clock;
use crate::telemetry::WorkerTelemetry;
use crate::upstream::Upstream;

/// What the stack of one worker is made of.
#[derive(Clone)]
pub struct Parts {
    /// Which worker it is.
    pub worker: usize,
    /// Limits on bodies.
    pub params: Params,
    /// The door to the engine, shared by all workers.
    pub gate: Arc<Gate>,
    /// Where requests go, shared by all workers.
    pub upstream: Arc<Upstream>,
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
    /// The upstream's name: this worker's own copy, because its count changes with every request.
    upstream_label: Arc<str>,
    /// The upstream's name as a header's value.
    upstream_name: HeaderValue,
}

impl Shared {
    fn new(parts: Parts) -> Self {
        // a checked name is a valid header value
        let upstream_name = HeaderValue::from_str(parts.upstream.name());
        Self {
            ids: respond::Ids::new(parts.worker),
            upstream_label: Arc::from(&**parts.upstream.name()),
            upstream_name: upstream_name.unwrap_or(HeaderValue::from_static("upstream")),
            parts,
        }
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
        .layer(auth::Layer(shared.clone()))
        .layer(classify::Layer(shared.clone()))
        .layer(admit::Layer(shared.clone()))
        .layer(meter::Layer(shared.clone()))
        .layer(breaker::Layer)
        .service(forward::Forward(shared))
}
