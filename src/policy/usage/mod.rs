//! What requests cost: read from every answer, and estimated before it.
//!
//! Without it the token buckets of [`supply`](super::supply) would be charged with guesses that nobody corrects,
//! and the inter-token time that the concurrency law learns from would be missing its number of tokens.
//!
//! [`UsageScan`] reads `usage` out of a response while it passes, [`Estimator`] learns from it what the next
//! request of the same model will cost, [`Names`] gives models the numbers by which all of it is kept. Called by
//! the proxy's meter and by its classification; a simulation calls the estimator alone.

mod estimate;
mod find;
mod json;
mod learned;
mod names;
mod places;
mod scan;
mod tokens;

pub use estimate::{Ask, Estimate, EstimateError, Estimator};
pub use names::{LONGEST_NAME, MODELS, Names};
pub use scan::{Form, Scanned, Seen, UsageScan};
pub use tokens::Usage;
