//! stub
use std::process::ExitCode;
#[derive(clap::Args)]
pub(super) struct Options {}
pub(super) fn demo(_: &Options) -> ExitCode {
    ExitCode::FAILURE
}
