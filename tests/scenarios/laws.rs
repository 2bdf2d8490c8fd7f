//! The two simulated upstreams, the one over HTTP and the one of `simulate`, follow the same laws.
//!
//! What is found with one is believed of the other, so they get the same arrivals here, with nothing between.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate::clock::Clock;
use tidegate::demo::load::Progress;
use tidegate::demo::report::Record;
use tidegate::demo::wire::InMemory;
use tidegate::demo::workload::Lengths;
use tidegate::demo::{self, Load, OverCapacity, SimulatedLlm, Workload};
use tidegate::policy::units::MonoTime;
use tidegate::simulate::Request;
use tidegate::simulate::upstream::{self, HostedParams, Model, Sign};

/// 20 ms a token and 20,000 tokens of a prompt per second.
fn law(capacity: usize, over_capacity: OverCapacity) -> demo::Law {
    demo::Law {
        capacity,
        over_capacity,
        prefill: Duration::ZERO,
        prefill_per_1k_tokens: Duration::from_millis(50),
        per_token: Duration::from_millis(20),
        jitter: 0.0,
        ..demo::Law::default()
    }
}

/// Two minutes of answers of `tokens` on the mean.
fn arrivals(rps: f64, tokens: f64) -> Workload {
    let lengths = Lengths::lognormal((1000.0, 1.0), (tokens, 0.9));
    Workload::steady(7, rps, Duration::from_secs(120), lengths)
}

/// Over HTTP, in memory.
async fn live(law: demo::Law, workload: &Workload) -> Vec<Record> {
    let clock = Clock::start();
    let llm = SimulatedLlm::new(law, 1, clock);
    let wire = InMemory::new(move |io| {
        let llm = llm.clone();
        async move { llm.serve(io).await }
    });
    let load = Load { timeout: Duration::from_secs(3600), ..Load::default() };
    load.run_over(wire, workload, clock, &Progress::default())
        .await
        .expect("a load that can be driven")
        .records
}

/// In virtual time: when each was done; those that are missing were refused.
fn simulated(model: &Model, workload: &Workload) -> BTreeMap<u32, MonoTime> {
    let mut server = model.build(1, None);
    let (mut ends, mut signs) = (BTreeMap::new(), Vec::new());
    let mut coming = workload.arrivals().iter().zip(0..).peekable();
    loop {
        let arrives = coming.peek().map(|(a, _)| MonoTime::ZERO + a.at);
        let now = match (arrives, server.next()) {
            (Some(a), Some(n)) => a.min(n),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return ends,
        };
        server.advance(now, &mut signs);
        for sign in signs.drain(..) {
            if let Sign::Done(id) = sign {
                ends.insert(id, now);
            }
        }
        while let Some((a, id)) = coming.next_if(|(a, _)| MonoTime::ZERO + a.at <= now) {
            server.begin(now, id, &Request { at: now, prompt: a.prompt_tokens, output: a.output_tokens });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_server_shares_as_the_simulated_one_does() {
    // 1.2 times what it can take: two minutes of it go past the knee, to all that may run and a queue inside
    let workload = arrivals(2.25, 200.0);
    let records = live(law(8, OverCapacity::Knee), &workload).await;
    let ends = simulated(&Model::Batch(upstream::Law::reference(8)), &workload);
    assert_eq!((ends.len(), records.len()), (workload.arrivals().len(), workload.arrivals().len()));
    let mut errors: Vec<f64> = Vec::new();
    for (record, (_, end)) in records.iter().zip(&ends) {
        let exact = end.since(MonoTime::ZERO + record.arrival.at).as_secs_f64();
        errors.push((record.total.as_secs_f64() - exact) / exact);
    }
    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    errors.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let median = errors[errors.len() / 2].abs();
    let worst = errors.iter().map(|e| e.abs()).fold(0.0, f64::max);
    println!("{} requests: mean error {mean:.4}, median {median:.4}, worst {worst:.4}", errors.len());
    // a part of a token at the speed of its begin is the law's only coarseness; it favours nobody
    assert!(mean.abs() < 0.01 && median < 0.01 && worst < 0.1, "{mean} {median} {worst}");
}

#[tokio::test(start_paused = true)]
async fn a_hosted_api_refuses_whom_the_simulated_one_refuses() {
    for (tpm, other, cap) in
        [(None, 0.0, None), (Some(400_000.0), 0.0, None), (None, 0.33, None), (None, 0.0, Some(4))]
    {
        let workload = arrivals(11.0, 10.0);
        let hosted = demo::Hosted { tpm, other, ..demo::Hosted::new(600.0) };
        let capacity = cap.map_or(100_000, |cap: u32| cap as usize);
        let records = live(law(capacity, OverCapacity::Hosted(hosted)), &workload).await;
        let params = HostedParams { tpm, other, hidden: cap, ..HostedParams::reference(600.0) };
        let ends = simulated(&Model::Hosted(params), &workload);
        let agree = records.iter().zip(0..).filter(|(r, id)| r.is_ok() == ends.contains_key(id)).count();
        let (passed, all) = (records.iter().filter(|r| r.is_ok()).count(), records.len());
        println!(
            "tpm {tpm:?}, other {other}, cap {cap:?}: {passed} and {} of {all} pass, {agree} agree",
            ends.len()
        );
        // a millisecond of the timers decides about a few that come when a bucket holds just enough
        assert!(agree as f64 >= 0.94 * all as f64, "{agree} of {all}");
        assert!(passed.abs_diff(ends.len()) as f64 <= 0.01 * all as f64, "{passed} and {}", ends.len());
        assert!(passed < all, "nobody was refused");
    }
}
