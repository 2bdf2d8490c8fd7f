//! Scenarios: the law of a simulated upstream, a workload, the proxy's settings, and the ranges that
//! reasoning says the outcome lies in. Each runs through the live stack on virtual time.
//!
//! The format is in `scenarios/README.md`.

#![expect(
    clippy::panic,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a helper that fails is a test that fails, and what it prints is shown then"
)]

#[path = "scenarios/format.rs"]
mod format;
#[path = "scenarios/judge.rs"]
mod judge;
#[path = "scenarios/laws.rs"]
mod laws;
#[path = "scenarios/live.rs"]
mod live;
#[path = "scenarios/measure.rs"]
mod measure;
#[path = "scenarios/replay.rs"]
mod replay;

use std::collections::BTreeSet;

use format::Scenario;
use live::{Plan, Run};
use tidegate::demo::Slo;

fn judge(about: &str, expect: &toml::Table, slo: &Slo, run: &Run) {
    let measured = measure::measure(run, slo);
    let mut wrong = measure::laws(run, &measured);
    wrong.extend(judge::violations(expect, &measured));
    let report = judge::report(about, &wrong, &measured);
    println!("{report}");
    assert!(wrong.is_empty(), "{report}");
}

async fn play(text: &str) {
    let scenario = Scenario::parse(text);
    let run = live::run(Plan {
        law: scenario.law(),
        config: scenario.config(),
        seed: scenario.seed,
        hour: scenario.hour,
        traffic: scenario.traffic(),
        after: scenario.after.0,
        drain_at: scenario.drain_at.map(|at| at.0),
    })
    .await;
    judge(&scenario.about, &scenario.expect, &scenario.slo(), &run);
}

macro_rules! scenarios {
    ($($name:ident),+ $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),+];
        $(
            #[tokio::test(start_paused = true)]
            async fn $name() {
                play(include_str!(concat!("scenarios/", stringify!($name), ".toml"))).await;
            }
        )+
    };
}

scenarios!(
    article_policy,
    batch_double,
    batch_half,
    batch_normal,
    burst,
    clients_that_leave,
    dead_upstream,
    drain_under_load,
    flapping_upstream,
    hosted_requests,
    hosted_shared,
    hosted_tokens,
    overload_with_deadlines,
    predictive,
    resize_storm,
    shadow_mode,
    slow_upstream,
    steady,
    stream_breaks,
    two_tenants,
);

#[test]
fn every_file_is_played() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scenarios");
    let files: BTreeSet<String> = std::fs::read_dir(folder)
        .expect("the folder of the scenarios")
        .filter_map(|entry| entry.expect("its entries").file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".toml").map(str::to_owned))
        .collect();
    assert_eq!(files, NAMES.iter().map(|name| (*name).to_owned()).collect());
}
