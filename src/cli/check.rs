//! `tidegate check`: every fault of the configuration at once, or what it comes to.

use std::process::ExitCode;

use crate::cli::Settings;
use crate::config;
use crate::policy::predict::PolicyKind;

pub(super) fn check(settings: &Settings) -> ExitCode {
    match config::load(&settings.sources()) {
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::from(2)
        }
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            let c = &loaded.config;
            let key = if c.upstream.api_key.is_some() { "its own key" } else { "each client's key" };
            println!("ok");
            println!("  listen    {} ({} workers)", c.listen.address, c.listen.workers);
            println!("  admin     {}", c.telemetry.admin_address);
            println!("  upstream  {} = {}, with {key}", c.upstream.name, c.upstream.base_url);
            let s = &c.scaling;
            match s.policy {
                PolicyKind::Fixed => println!("  permits   always {}", s.max_permits),
                PolicyKind::Predictive | PolicyKind::Reactive | PolicyKind::Article => println!(
                    "  permits   {} policy, {} to {}, resized every {:?}",
                    s.policy.as_str(),
                    s.min_permits,
                    s.max_permits,
                    s.cooldown
                ),
            }
            println!("  queue     {} requests, {:?} each", c.queue.max_requests, c.queue.timeout);
            ExitCode::SUCCESS
        }
    }
}
