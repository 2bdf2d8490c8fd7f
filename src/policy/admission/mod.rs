//! Who may run now, who waits, and in which order.
//!
//! [`Permits`] bounds what is in flight, [`Queue`] orders what waits, [`DrainRate`] and [`HeadTime`]
//! say how long a wait will be, so that hopeless waits end before they begin.

mod estimate;
mod params;
mod permits;
mod queue;
mod turns;

pub use estimate::{DrainRate, HeadTime};
pub use params::{OnDrain, Params};
pub use permits::Permits;
pub use queue::{Queue, Waiting};
