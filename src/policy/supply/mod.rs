//! What the upstream can take. Today that is the breaker: whether it can take anything at all.

mod breaker;
mod endpoint;
mod params;
pub mod routing;

pub use breaker::{Breaker, BreakerState, Transition, Verdict};
pub use endpoint::{ConcurrencyMode, EndpointParams};
pub use params::BreakerParams;
pub use routing::{Overlap, Routing};
