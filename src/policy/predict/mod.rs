//! How many permits there should be, and what should be ready before it is needed.
//!
//! [`History`] remembers demand by the second, a [`Predictor`] turns [`Snapshot`]s of it into a [`Decision`]
//! by the rule that `scaling.policy` names, and into what should be [`Ready`]. The engine installs the
//! decision. Planning is pure and runs off the engine's lock, so that no rule, however heavy, can hold up a
//! request.

mod article;
mod calendar;
mod confidence;
mod decide;
pub mod forecast;
mod history;
mod params;
mod predictor;
mod replicas;
mod report;
mod season;
mod service;

pub use article::article_rpm;
pub use calendar::{Baseline, Calendar, Foreseen, Window, WindowParams};
pub use decide::{Snapshot, Wall, interval};
pub use history::{History, Second};
pub use params::{ArticleWindow, Mode, Params, PolicyKind};
pub use predictor::{Predictor, STABLE_WINDOW};
pub use replicas::{Desired, Load, Pace, ReplicaParams, Replicas, slots_for};
pub use report::{Decision, Direction, Outlook, Ready, Reason};
pub use season::Season;
