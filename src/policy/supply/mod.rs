//! What the upstream can take. Today that is the breaker: whether it can take anything at all.

mod breaker;
mod params;

pub use breaker::{Breaker, BreakerState, Transition, Verdict};
pub use params::BreakerParams;
