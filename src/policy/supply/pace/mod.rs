//! Keeping to what a hosted API sells: so many requests and tokens per minute.
//!
//! [`RateLimits`] is what an answer's headers say of it.

mod headers;
mod when;

pub use headers::{Fault, Faults, RateLimits, Reading};
