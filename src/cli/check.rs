//! `tidegate check`: every fault of the configuration at once, or what it comes to.

use std::process::ExitCode;

use crate::cli::Settings;
use crate::config;
use crate::policy::predict::PolicyKind;
use crate::upstream;

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
            println!("ok");
            println!("  listen    {} ({} workers)", c.listen.address, c.listen.workers);
            println!("  admin     {}", c.telemetry.admin_address);
            for upstream in &c.upstreams {
                println!("  upstream  {}", described(upstream));
            }
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

/// One upstream in a line: what it is called, where it is, what it serves and with which key.
fn described(upstream: &upstream::Params) -> String {
    let key = match upstream.keys().count() {
        0 => "each client's key".to_owned(),
        1 => "its own key".to_owned(),
        keys => format!("{keys} keys of its own"),
    };
    let models = match upstream.supply.models.as_slice() {
        [all] if all == "*" => String::new(),
        models => format!(", for {}", models.join(" ")),
    };
    let tier = match upstream.supply.tier {
        0 => String::new(),
        tier => format!(", tier {tier}"),
    };
    format!("{} = {}, with {key}{models}{tier}", upstream.name, upstream.base_url)
}
