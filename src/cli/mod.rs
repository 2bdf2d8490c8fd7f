//! The command line: one file per command.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "commands talk to the terminal; no other room does"
)]

mod check;
mod demo;
mod health;
mod probe;
mod run;
mod signals;
mod simulate;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Flag, Sources};

/// A reverse proxy for OpenAI-style APIs: bursts wait in a fair, bounded queue instead of failing with 429.
///
/// Point an app's base_url at it: http://127.0.0.1:8080/v1. Metrics: http://127.0.0.1:9900/metrics.
#[derive(Parser)]
#[command(name = "tidegate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A simulated model server with the proxy in front of it: no key and no network needed.
    Demo(demo::Options),
    /// Runs the proxy.
    Run(Settings),
    /// Reads the configuration and reports every fault in it.
    Check(Settings),
    /// Asks an endpoint N times and reports latency percentiles, error rate and whether the key works.
    Probe(probe::Options),
    /// Exits 0 if a running proxy is alive: for a container's HEALTHCHECK.
    Health(health::Options),
    /// Replays a log or a synthetic workload through the scaling policies, on virtual time: which one, and
    /// what would it have cost?
    Simulate(simulate::Options),
}

/// Where settings come from. Defaults < file < environment (TIDEGATE_SECTION__KEY) < flags.
#[derive(Args, Clone, Debug, Default)]
struct Settings {
    /// Configuration file (TOML) [env: TIDEGATE_CONFIG]. Without one, OPENAI_BASE_URL is enough.
    #[arg(long, short)]
    config: Option<PathBuf>,
    /// Address of the proxy [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address of /metrics, /healthz and /readyz [default: 127.0.0.1:9900]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// The upstream's base URL, as an SDK would have it: https://api.openai.com/v1
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
}

impl Settings {
    fn sources(&self) -> Sources {
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let file = self.config.clone().or_else(|| environment.get("TIDEGATE_CONFIG").map(PathBuf::from));
        let flags = [
            ("listen.address", "--listen", &self.listen),
            ("admin.address", "--admin", &self.admin),
            ("upstream.0.base_url", "--upstream", &self.upstream),
        ];
        let flags = flags
            .into_iter()
            .filter_map(|(key, flag, value)| Some(Flag { key, value: value.clone()?, flag }))
            .collect();
        Sources { file, environment, flags }
    }
}

/// Parses the command line and runs the command.
#[must_use]
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Demo(options) => demo::demo(&options),
        Command::Run(settings) => run::run(&settings),
        Command::Check(settings) => check::check(&settings),
        Command::Probe(options) => probe::probe(&options),
        Command::Health(options) => health::health(&options),
        Command::Simulate(options) => simulate::simulate(&options),
    }
}
