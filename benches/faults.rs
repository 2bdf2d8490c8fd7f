//! The faults of `tests/faults`, at length: 10,000 requests each, and a table.
//!
//! `cargo bench --bench faults`: all of them, some minutes. `cargo bench --bench faults -- killed cut`: these.
//! `--requests 1000` makes it shorter. It ends with 1 if something does not hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark that cannot go on should stop, and what it is for is its table"
)]

#[path = "../tests/faults/cases.rs"]
mod cases;
#[path = "../tests/faults/rig.rs"]
mod rig;

use std::process::ExitCode;
use std::time::Duration;

use cases::Scale;

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

fn main() -> ExitCode {
    // `cargo test --benches` runs this too, and means no measurement
    if !std::env::args().any(|a| a == "--bench") {
        return ExitCode::SUCCESS;
    }
    let mut scale = Scale { requests: 10_000, rps: 250.0, outage: Duration::from_secs(30) };
    let mut wanted = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bench" => {}
            "--requests" => {
                let number: Option<u32> = arguments.next().and_then(|n| n.parse().ok());
                scale.requests = number.expect("--requests takes a number").clamp(100, 100_000);
            }
            name => wanted.push(name.to_owned()),
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!(
        "| what goes wrong | ok | failed | lost | p50, p99 | retries | breaker opened | served by each |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut wrong = Vec::new();
    for mut case in cases::all(scale) {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == case.name) {
            continue;
        }
        let outcome = if case.is_named() {
            let Some(outcome) = runtime.block_on(case.play_named(PROGRAM)) else {
                eprintln!(
                    "{}: left out, `unshare` may not give a process a hosts file of its own",
                    case.name
                );
                continue;
            };
            outcome
        } else {
            runtime.block_on(case.play(PROGRAM))
        };
        let r = &outcome.report;
        let failed: Vec<String> = r.failed.iter().map(|(what, n)| format!("{n} × {what}")).collect();
        let times =
            r.total.map_or("-".to_owned(), |q| format!("{} ms, {} ms", q.p50.as_millis(), q.p99.as_millis()));
        let served: Vec<String> = outcome.upstreams.iter().map(|s| s.served.to_string()).collect();
        println!(
            "| {} | {} | {} | {} | {times} | {} | {} | {} |",
            case.about,
            r.ok,
            if failed.is_empty() { "0".to_owned() } else { failed.join(", ") },
            r.lost_total(),
            outcome.metric("tidegate_retries_total", ""),
            outcome.metric("tidegate_breaker_transitions_total", "to=\"open\""),
            served.join(", "),
        );
        for what in case.broken(&outcome) {
            eprintln!(
                "{}: does not hold: {what} ({:?}, descriptors {:?}, load {:.2}, {:?})",
                case.name, outcome.held, outcome.descriptors, outcome.load, outcome.report.lost
            );
            wrong.push(what);
            outcome.said.iter().rev().take(20).rev().for_each(|line| eprintln!("    {line}"));
        }
    }
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
