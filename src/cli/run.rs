//! `tidegate run`.

use std::process::ExitCode;

use crate::app::Running;
use crate::cli::{Settings, signals};
use crate::config;
use crate::telemetry::init_logging;

pub(super) fn run(settings: &Settings) -> ExitCode {
    let loaded = match config::load(&settings.sources()) {
        Ok(loaded) => loaded,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(2);
        }
    };
    init_logging(&loaded.config.telemetry, false);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    match Running::start(&loaded.config) {
        Ok(running) => {
            if let Err(error) = signals::drain_on_signal(running.stop()) {
                tracing::warn!(%error, "signals are not handled: the process ends without a drain");
            }
            if running.join() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("tidegate: {error}");
            ExitCode::FAILURE
        }
    }
}
