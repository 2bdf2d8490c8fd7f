//! What the upstream can take: whether it can take anything at all (`breaker`), how much per minute (`pace`), how much
//! at once (`concurrency`, `server_load`), what is tried again (`retry`), which models go where (`routing`), and which of
//! several endpoints takes what (`fleet`).

mod breaker;
pub mod concurrency;
mod endpoint;
mod fleet;
pub mod pace;
mod params;
pub mod retry;
pub mod routing;
mod server_load;

pub use breaker::{Breaker, BreakerState, Transition, Verdict};

pub use endpoint::{ConcurrencyMode, EndpointParams};
pub use fleet::{Attempt, Choice, EndpointStatus, Fleet, Hold, Paces, Report, SaidBy, Until, Want};
pub use params::{BreakerParams, Member, Params};
pub use retry::RetryParams;
pub use routing::{Overlap, Routing};
pub use server_load::ServerLoad;
