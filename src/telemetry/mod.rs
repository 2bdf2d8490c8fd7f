//! What the proxy tells about itself: metrics, one access-log line per request, its own log, and the
//! admin service that serves them.
//!
//! Without this room nobody can see why a request waited, and no number the proxy acts on could be
//! checked. It only listens: nothing here decides, and nothing here may slow a request down. Each
//! worker counts into a shard of its own ([`WorkerTelemetry`]); the shards are added up when somebody
//! asks. Gauges are read from their owners at that moment too ([`GateStatus`]).
//!
//! `app` builds [`Telemetry`] and serves [`Admin`]; the pipeline hands in one [`Record`] per request.

mod access_log;
mod admin;
mod connects;
mod estimates;
mod families;
mod forecast;
mod gate;
mod hub;
mod labels;
mod logging;
mod params;
mod process;
mod record;
mod requests;
mod shard;
mod supply;
mod tokens;
mod window;
mod writer;

pub use admin::{Admin, serve_connection};
pub use connects::{ConnectReason, Connects};
pub use estimates::EstimateErrors;
pub use gate::{GateStatus, Readiness, UpstreamStatus};
pub use hub::{Telemetry, TelemetryError, WorkerTelemetry};
pub use labels::{ConnectionFault, Ended, Endpoint, REASONS};
pub use logging::init_logging;
pub use params::{AccessLog, Params};
pub use record::{Record, RequestId};
pub use tokens::{Cost, Unread};
