//! Keeping to what a hosted API sells: so many requests and tokens per minute.
//!
//! [`RateLimits`] is what an answer's headers say of it; [`Pacer`] decides from that, from the configured limits
//! and from every 429 when the next request may go. One pacer serves one model of one endpoint with one key.

mod bucket;
mod errors;
mod guess;
mod headers;
mod lane;
mod learned;
mod pacer;
mod unrelated;
mod when;
mod window;

pub use headers::{Fault, Faults, RateLimits, Reading};
pub use lane::LaneStatus;
pub use pacer::{Pace, PaceParams, Pacer, PacerStatus, Refusal429};
