//! The proxy's own log, on standard error.

use tracing_subscriber::EnvFilter;

use crate::telemetry::Params;

/// Sends what the program says of itself to standard error, as text or as one JSON object per line.
///
/// Returns false when the process already has a log: the first one stays.
pub fn init_logging(params: &Params, json: bool) -> bool {
    let filter = EnvFilter::try_new(&params.log).unwrap_or_else(|_| EnvFilter::new("info"));
    // where standard error is gone there is nobody to tell, and telling it there would be a panic
    let log = tracing_subscriber::fmt().log_internal_errors(false).with_writer(std::io::stderr);
    let log = log.with_env_filter(filter);
    if json { log.json().flatten_event(true).try_init().is_ok() } else { log.try_init().is_ok() }
}
