//! What the upstream can take: whether it can take anything at all (`breaker`), how much per minute (`pace`), what is
//! tried again (`retry`), which models go where (`routing`), and which of several endpoints takes what (`fleet`).

mod breaker;
mod endpoint;
mod fleet;
pub mod pace;
mod params;
pub mod retry;
pub mod routing;

pub use breaker::{Breaker, BreakerState, Transition, Verdict};
pub use endpoint::{ConcurrencyMode, EndpointParams};
pub use fleet::{Choice, EndpointStatus, Fleet, Hold, Report, Want};
pub use params::{BreakerParams, Member, Params};
pub use retry::RetryParams;
pub use routing::{Overlap, Routing};
