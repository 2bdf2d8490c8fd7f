//! stub
use std::process::ExitCode;
#[derive(clap::Args)]
pub(super) struct Options {}
pub(super) fn probe(_: &Options) -> ExitCode {
    ExitCode::FAILURE
}
