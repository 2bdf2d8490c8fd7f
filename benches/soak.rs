//! Mixed load for a long time: does the proxy keep anything it should let go of?
//!
//! Streams and whole answers, clients that leave, resets, cut bodies, 500s, 429s and 503s now and then, moments in which an upstream
//! is dead or refuses all. Each second the proxy's memory and file descriptors are read. At the end nothing may be in flight, and the
//! last third of the time must look as the first.
//!
//! `cargo bench --bench soak` runs for 30 minutes, `cargo bench --bench soak -- --minutes 3` for three;
//! `--log` shows what the proxy said. It ends with 1 if something does not hold.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on should stop, and what it is for is its table"
)]

#[path = "../tests/faults/rig.rs"]
mod rig;

use std::process::ExitCode;
use std::time::Duration;

use rig::{Held, Rig, Site, sum};
use tidegate::demo::load::Leave;
use tidegate::demo::workload::Lengths;
use tidegate::demo::{Errors, Faults, Law, Load, OverCapacity, Window, Workload};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");
const RPS: f64 = 150.0;
/// How much more the last third may hold than the first.
const MORE: f64 = 1.05;

/// Two seconds of each hundred, from the `first` on.
fn two_of_each_hundred(length: Duration, first: u64) -> Vec<Window> {
    let at = |s| Duration::from_secs(s);
    (first..length.as_secs()).step_by(100).map(|from| Window::new(at(from), at(from + 2))).collect()
}

fn site(length: Duration, first: u64, settings: &'static str) -> Site {
    let ever = Window::new(Duration::ZERO, Duration::MAX);
    let mut errors = vec![
        Errors { every: 53, ..Errors::all(500, ever) },
        Errors { every: 89, ..Errors::all(429, ever) },
        Errors { every: 113, ..Errors::all(503, ever) },
    ];
    let second = Some(Duration::from_secs(1));
    errors.extend(
        two_of_each_hundred(length, first + 25)
            .into_iter()
            .map(|when| Errors { retry_after: second, ..Errors::all(429, when) }),
    );
    let law = Law {
        capacity: 200,
        over_capacity: OverCapacity::QueueInside,
        prefill: Duration::from_millis(20),
        per_token: Duration::from_millis(5),
        faults: Faults {
            reset_every: 97,
            cut_every: 101,
            stall_every: 997,
            error_body_every: 211,
            errors,
            down: two_of_each_hundred(length, first),
            ..Faults::default()
        },
        ..Law::default()
    };
    Site { law, settings }
}

/// What the proxy held at a moment.
#[derive(Clone, Copy)]
struct Sample {
    memory_kib: u64,
    descriptors: usize,
}

fn median(of: &[Sample], what: fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = of.iter().map(what).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

async fn soak(minutes: u64, log: bool) -> bool {
    let length = Duration::from_secs(60 * minutes);
    let settings = "stream_idle_timeout = \"5s\"\nfirst_byte_timeout = \"20s\"";
    let sites = vec![site(length, 40, settings), site(length, 90, settings)];
    let rig = Rig::start(PROGRAM, sites, "[breaker]\nrecovery = \"2s\"\n").await;
    let workload = Workload::steady(1, RPS, length, Lengths::lognormal((300.0, 1.0), (20.0, 0.9)));
    let load = Load {
        streamed: 0.5,
        timeout: Duration::from_secs(90),
        leave: Some(Leave { share: 0.1, after: Duration::from_millis(70) }),
        seed: 1,
        ..Load::default()
    };
    let mut samples = Vec::new();
    let mut driving = std::pin::pin!(rig.drive(&workload, load));
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    let report = loop {
        tokio::select! {
            report = &mut driving => break report,
            _ = seconds.tick() => {
                samples.push(Sample { memory_kib: rig.memory_kib(), descriptors: rig.descriptors() });
            }
        }
    };
    let held = rig.settle().await;
    let page = rig.metrics().await;
    println!("{report}\n");
    let minutes: Vec<f64> = samples.chunks(60).map(|m| median(m, |s| s.memory_kib as f64) / 1024.0).collect();
    println!("MiB of memory, by the minute: {minutes:.1?}\n");
    println!("| | first third | second | last |\n|---|---|---|---|");
    let third = (samples.len() / 3).max(1);
    let thirds: Vec<&[Sample]> = samples.chunks(third).take(3).collect();
    let row = |name: &str, what: fn(&Sample) -> f64| {
        let all: Vec<f64> = thirds.iter().map(|part| median(part, what)).collect();
        println!("| {name} | {} |", all.iter().map(|x| format!("{x:.1}")).collect::<Vec<_>>().join(" | "));
        (all[0], all[all.len() - 1])
    };
    let memory = row("memory, MiB (median)", |s| s.memory_kib as f64 / 1024.0);
    let open = row("file descriptors (median)", |s| s.descriptors as f64);
    let most = samples.iter().map(|s| s.descriptors).max().unwrap_or_default();
    let counted = sum(&page, "tidegate_requests_total", "");
    println!("\nat the end: {held:?}, {} file descriptors (at most {most})", rig.descriptors());
    println!(
        "processor time {:.1} ms per second, {} lines logged",
        1000.0 * rig.processor_seconds() / report.took.as_secs_f64(),
        rig.said().len()
    );
    println!("requests counted {counted}, sent {}", report.sent());
    if log {
        rig.said().iter().for_each(|line| println!("{line}"));
    }
    let mut good = true;
    for (what, holds) in [
        ("memory is flat", memory.1 <= MORE * memory.0),
        ("file descriptors are flat", open.1 <= MORE * open.0 + 2.0),
        ("permits are back, the queue is empty, the upstreams idle", held == Held::default()),
        ("every request is counted once", counted == report.sent() as f64),
        ("no client waited for its last byte in vain", !report.lost.contains_key("timed out")),
    ] {
        println!("{}: {what}", if holds { "holds" } else { "DOES NOT HOLD" });
        good &= holds;
    }
    good
}

fn main() -> ExitCode {
    // `cargo test --benches` runs this too, and means no measurement
    if !std::env::args().any(|a| a == "--bench") {
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let minutes = match arguments.iter().position(|a| a == "--minutes") {
        Some(at) => arguments.get(at + 1).and_then(|n| n.parse().ok()).expect("--minutes takes a number"),
        None => 30_u64,
    };
    let log = arguments.iter().any(|a| a == "--log");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if runtime.block_on(soak(minutes.clamp(1, 24 * 60), log)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
