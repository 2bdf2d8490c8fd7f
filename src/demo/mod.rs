//! The demo: a simulated LLM upstream over real HTTP, and an open-loop load driver.
//!
//! Without it nobody could see the proxy work without a key and a model server, and no scenario could be
//! repeated. `tidegate demo`, the scenario tests and the trace replay of CI use it.
//!
//! - [`model`]: how the upstream behaves; [`hosted`] is the law of one that sells requests and tokens a minute.
//! - [`faults`]: what goes wrong with it.
//! - [`server`]: the upstream, [`SimulatedLlm`]: HTTP/1.1 and HTTP/2 over any byte stream.
//! - [`workload`]: which request comes when: traces and seeded generators.
//! - [`load`]: fires a workload at a base URL; [`report`] is what came of it.
//! - [`wire`]: the driver's connections in memory, for a paused clock.
//! - [`live`]: the proxy's metrics as one line on a terminal.

mod ask;
mod connections;
mod dialect;
mod embed;
pub mod faults;
pub mod hosted;
pub mod live;
pub mod load;
pub mod model;
mod paced;
pub mod report;
mod respond;
pub mod server;
mod slots;
mod tasks;
pub mod wire;
pub mod workload;

pub use faults::{Errors, Faults, Lie, Slow, Window};
pub use hosted::{Hosted, Tell};
pub use load::Load;
pub use model::{Law, OverCapacity};
pub use paced::{Hangup, SimulatedBody};
pub use report::{LoadReport, Slo};
pub use server::SimulatedLlm;
pub use slots::Stats;
pub use workload::Workload;
