//! How many requests a second of CPU simulates, on one core: 500 requests a second of Poisson arrivals, and two weeks of
//! 40 a minute. Criterion's `elem/s` are simulated requests.
//!
//! `cargo bench --bench simulate`

#![allow(clippy::expect_used, reason = "a scenario that cannot be read ends the benchmark")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidegate::simulate::{Setup, Workload, policy, run, upstream, workload};

fn play(c: &mut Criterion, name: &str, workload: &Workload, model: &str, policy: &str) {
    let (model_, policy_) =
        (upstream::parse(model).expect("a model"), policy::parse(policy).expect("a policy"));
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Elements(workload.requests.len() as u64));
    group.sample_size(10).measurement_time(Duration::from_secs(5)).warm_up_time(Duration::from_millis(500));
    group.bench_function(format!("{policy} on {model}"), |b| {
        b.iter(|| black_box(run(&Setup::new(workload, &model_, 1), &policy_, &mut |_| {})));
    });
    group.finish();
}

fn speed(c: &mut Criterion) {
    let poisson = workload::parse("poisson:rps=500,for=600s", 1).expect("a workload");
    // 10,000: enough for the 2,020 that the LLM has in flight
    for (policy, model) in
        [("fixed:10000", "lognormal:118ms"), ("predictive", "lognormal:118ms"), ("fixed:10000", "llm:20ms")]
    {
        play(c, "500 a second", &poisson, model, policy);
    }
    let weeks = workload::parse("daily", 1).expect("a workload");
    for policy in ["fixed", "predictive"] {
        play(c, "14 days at 40 RPM", &weeks, "llm:20ms", policy);
    }
}

criterion_group!(benches, speed);
criterion_main!(benches);
