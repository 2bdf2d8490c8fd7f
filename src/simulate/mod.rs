//! Virtual time: a workload, a simulated upstream, and the very engine and predictor that run live.
//!
//! ```text
//! trace / workload ─▶ requests ─▶ client ─▶ engine (policy::engine) ─▶ upstream model ─▶ outcome, report
//!                                             ▲ seconds, plans
//!                                         predictor (policy::predict)
//! ```
//! Nothing here decides anything that the live proxy decides: it plays the client, the upstream and the
//! clock. `tests/equivalence.rs` holds it to the live stack's effects. Called by `tidegate simulate`.

mod client;
mod estimate;
mod figures;
pub mod forecast;
pub mod options;
mod outcome;
mod play;
pub mod policy;
pub mod report;
mod request;
mod setup;
pub mod suite;
pub mod trace;
pub mod upstream;
pub mod workload;

pub use client::{Clients, Measure, Retry, Slo};
pub use outcome::{Point, Run, Summary};
pub use play::{run, watch};
pub use request::Request;
pub use setup::Setup;
pub use workload::Workload;
