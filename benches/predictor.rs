//! What the predictor costs with two weeks of history: each second's tick, each decision, each hourly refit.
//!
//! Two weeks of demand (a day's rhythm, a burst every 15 minutes) go through the engine's history and the
//! predictor second by second; the costs of the last day are printed. Not a criterion bench: what matters is the
//! distribution, and the worst tick above all.

#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::time::{Duration, Instant};

use tidegate::policy::predict::{History, Params, Predictor, Snapshot, Wall};
use tidegate::policy::units::MonoTime;

const DAY: u64 = 86_400;

fn arrivals(second: u64) -> u32 {
    let day = (std::f64::consts::TAU * (second % DAY) as f64 / DAY as f64).sin();
    let burst = if second % 900 < 90 { 4.0 } else { 1.0 };
    // SplitMix64's finaliser: noise without state
    let x = (second + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let noise = ((x ^ (x >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
    (2.0 * noise * (3.0 + 2.0 * day) * burst) as u32
}

fn report(name: &str, costs: &mut [Duration]) {
    costs.sort();
    let at = |share: f64| costs[((costs.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{name:<28} n {:>6}   median {:>8.4} ms   p99 {:>8.4} ms   max {:>8.4} ms",
        costs.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

fn main() {
    // `cargo bench -- --days 1` for a quick look
    let mut args = std::env::args().skip_while(|arg| arg != "--days").skip(1);
    let days: u64 = args.next().and_then(|n| n.parse().ok()).unwrap_or(14);
    let params = Params::default();
    let mut predictor = Predictor::new(params);
    let mut history = History::new(MonoTime::ZERO, 0);
    let (mut ticks, mut closing, mut plans, mut refits) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let began = Instant::now();
    for second in 0..days * DAY {
        let now = MonoTime::from_secs(second);
        history.advance(now, 0, 20, 0);
        for _ in 0..arrivals(second) {
            history.arrived(now);
            history.finished();
        }
        let at = MonoTime::from_secs(second + 1);
        history.advance(at, 0, 20, 0);
        let snapshot = Snapshot {
            at,
            wall: Wall { unix: second as i64, hour: ((second / 3600) % 24) as u8 },
            limit: 100,
            queued: 0,
            in_flight: 20,
            ceiling: 1000,
            held: 0,
            since_change: None,
            age: Duration::from_secs(second + 1),
            history: &history,
        };
        let start = Instant::now();
        std::hint::black_box(predictor.tick(&snapshot));
        let cost = start.elapsed();
        let last = second >= (days - 1) * DAY;
        if last {
            if (second + 1) % 60 == 0 { closing.push(cost) } else { ticks.push(cost) }
        }
        if (second + 1) % 30 == 0 {
            let start = Instant::now();
            std::hint::black_box(predictor.plan(&snapshot));
            if last {
                plans.push(start.elapsed());
            }
        }
        if predictor.refit_due() {
            let start = Instant::now();
            predictor.refit();
            if last {
                refits.push(start.elapsed());
            }
        }
    }
    println!("{days} days of seconds in {:.1} s", began.elapsed().as_secs_f64());
    report("tick", &mut ticks);
    report("tick that closes a minute", &mut closing);
    report("decision", &mut plans);
    report("hourly refit", &mut refits);
}
