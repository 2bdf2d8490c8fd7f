//! What the upstream can take: whether it can take anything at all (`breaker`), which models go where (`routing`),
//! and which of several endpoints takes what (`fleet`).

mod breaker;
mod endpoint;
mod fleet;
mod params;
pub mod routing;

pub use breaker::{Breaker, BreakerState, Transition, Verdict};
pub use endpoint::{ConcurrencyMode, EndpointParams};
pub use fleet::{Choice, EndpointStatus, Fleet, Hold, Report, Want};
pub use params::{BreakerParams, Member, Params};
pub use routing::{Overlap, Routing};
