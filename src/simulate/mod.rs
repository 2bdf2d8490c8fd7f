//! Virtual time: a workload, a simulated upstream, and the very engine and predictor that run live.
//!
//! ```text
//! trace / workload ─▶ requests ─▶ client ─▶ engine (policy::engine) ─▶ upstream model ─▶ outcome, report
//!                                             ▲ seconds, plans
//!                                         predictor (policy::predict)
//! ```
//! Nothing here decides anything that the live proxy decides: it plays the client, the upstream and the
//! clock. `tests/equivalence.rs` holds it to the live stack's effects. Called by `tidegate simulate`.

pub mod options;
mod outcome;
mod request;
pub mod trace;
pub mod workload;

pub use outcome::{Point, Run, Summary};
pub use request::Request;
