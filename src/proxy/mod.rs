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
//! | `breaker` | asks the gate's verdict, reports how the attempt ended |
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
use hyper::{Request, Response};
use tower::{Service, ServiceBuilder};

pub use body::Body;
pub use detach::Tunnels;
pub use gate::{Gate, Permit, Refused, Report};
pub use intake::Memory;
pub use params::Params;
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
    ServiceBuilder::new()
        .layer(respond::Layer::new(&parts))
        .layer(auth::Layer::new(&parts))
        .layer(classify::Layer::new(&parts))
        .layer(admit::Layer::new(&parts))
        .layer(meter::Layer::new(&parts))
        .layer(breaker::Layer)
        .service(forward::Forward::new(&parts))
}
