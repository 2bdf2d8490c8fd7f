//! How many permits there should be.
//!
//! [`History`] remembers demand, [`plan`] turns a [`Snapshot`] of it into a [`Decision`] by the rule
//! that `scaling.policy` names. The engine installs it. Planning is pure and runs off the engine's
//! lock, so that no rule, however heavy, can hold up a request.

mod article;
mod decide;
mod history;
mod params;
mod report;

pub use decide::{Snapshot, interval, plan};
pub use history::{History, Second};
pub use params::{ArticleWindow, Mode, Params, PolicyKind};
pub use report::{Decision, Direction, Reason};
