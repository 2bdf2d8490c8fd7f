//! The workloads there are, each with the parameters of the reference scenarios as its defaults.
//!
//! An entry makes a plan of its options: stretches of constant rate, and what is special about it.

use std::f64::consts::TAU;
use std::ops::Range;

use super::{Lengths, Plan, Segment};
use crate::chance::SplitMix64;
use crate::simulate::options::Options;

const DAY: f64 = 86_400.0;
/// Highest rate that can be asked for, requests per second.
const MAX_RATE: f64 = 1e6;
/// Most stretches of a workload.
const MAX_SEGMENTS: f64 = 2e6;

/// A workload's name, and how it comes about.
#[derive(Debug)]
pub struct Entry {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Its options with their defaults.
    pub options: &'static str,
    /// What it is.
    pub about: &'static str,
    pub(super) plan: fn(&mut Options<'_>, u64) -> Result<Plan, String>,
}

/// Every workload, in the order of the help text.
pub const CATALOGUE: &[Entry] = &[
    Entry {
        name: "poisson",
        options: "rps=5 (or rpm=…), for=1800s",
        about: "independent arrivals at one rate",
        plan: |o, _| {
            let rate = rate(o, 5.0)?;
            steady(o, rate, 1800.0)
        },
    },
    Entry {
        name: "recurring",
        options: "base=4, high=16, lasts=90s, every=900s, first=450s, jitter=0s, missing=0, for=9000s, learn=3600s",
        about: "a spike that comes again and again; jitter is each start's σ, missing a share left out",
        plan: recurring,
    },
    Entry {
        name: "random-spikes",
        options: "base=4, high=16, lasts=90s, gap=900s, for=9000s, learn=3600s",
        about: "spikes that nothing announces: exponential gaps between their starts",
        plan: random_spikes,
    },
    Entry {
        name: "step",
        options: "base=4, high=16, at=600s, lasts=600s, for=1800s",
        about: "the rate jumps, stays, and falls back",
        plan: |o, _| step(o, [4.0, 16.0, 600.0, 600.0, 1800.0]),
    },
    Entry {
        name: "ramp",
        options: "base=4, high=16, at=600s, rise=120s, lasts=600s, for=1800s",
        about: "the rate climbs within `rise`, stays until `lasts` is over, and falls back",
        plan: |o, _| ramp(o),
    },
    Entry {
        name: "sine",
        options: "low=2, high=14, period=7200s, for=28800s, learn=14400s",
        about: "a slow tide",
        plan: |o, _| sine(o),
    },
    Entry {
        name: "daily",
        options: "rpm=40, swing=0.6, weekend=0.6, cv=0.2, for=14d, learn=7d",
        about: "days and weekends, with noise: the rate's factor per 10 minutes is Gamma with this cv",
        plan: |o, _| daily(o),
    },
    Entry {
        name: "bursty",
        options: "rps=2.45, dispersion=135, for=3600s",
        about: "as uneven as a coding assistant's requests: variance ÷ mean of the counts per minute",
        plan: |o, _| bursty(o),
    },
    Entry {
        name: "idle",
        options: "rpm=10, cv=0.25, for=40000s",
        about: "the article's idle row: rate × Gamma per 30 s, short requests",
        plan: |o, _| article(o, 10.0, 0.25, 40_000.0),
    },
    Entry {
        name: "normal",
        options: "rpm=100, cv=0.64, for=43200s",
        about: "the article's normal row (three windows of 4 h)",
        plan: |o, _| article(o, 100.0, 0.64, 43_200.0),
    },
    Entry {
        name: "spike",
        options: "base=1.667, high=8.333, lasts=20s, every=300s, first=150s, for=9000s, learn=1800s",
        about: "the article's spike row: 500 RPM for 20 s every 300 s; only what arrives in a spike counts",
        plan: spike,
    },
    Entry {
        name: "sustained",
        options: "rpm=200, cv=0.402, for=43200s",
        about: "the article's sustained row (twelve windows of 1 h)",
        plan: |o, _| article(o, 200.0, 0.402, 43_200.0),
    },
    Entry {
        name: "hosted-a",
        options: "rpm=540, for=1800s",
        about: "90 % of a hosted API's 600 requests per minute",
        plan: |o, _| hosted(o, 9.0),
    },
    Entry {
        name: "hosted-b",
        options: "base=10, high=15, at=400s, lasts=120s, for=1200s",
        about: "600 RPM, then 900 RPM for two minutes",
        plan: |o, _| step(o, [10.0, 15.0, 400.0, 120.0, 1200.0]),
    },
    Entry {
        name: "hosted-c",
        options: "rpm=300, for=1800s",
        about: "for a token limit: 300 RPM of 1200 tokens in the mean",
        plan: |o, _| hosted(o, 5.0),
    },
    Entry {
        name: "hosted-d",
        options: "rpm=360, for=1800s",
        about: "for a limit that another client uses too: 90 % of what is left of 600 RPM",
        plan: |o, _| hosted(o, 6.0),
    },
    Entry {
        name: "hosted-e",
        options: "rpm=565, for=1800s",
        about: "for a hidden limit of 50 requests at once: 80 % of it",
        plan: |o, _| hosted(o, 565.0 / 60.0),
    },
    Entry {
        name: "batch-a",
        options: "rps=5.3, for=1800s",
        about: "70 % of a batch server's 7.5 requests per second",
        plan: |o, _| hosted(o, 5.3),
    },
    Entry {
        name: "batch-b",
        options: "rps=7.15, for=1800s",
        about: "95 % of it",
        plan: |o, _| hosted(o, 7.15),
    },
    Entry {
        name: "batch-c",
        options: "base=5, high=12, at=400s, lasts=120s, for=1200s",
        about: "two minutes of 160 %",
        plan: |o, _| step(o, [5.0, 12.0, 400.0, 120.0, 1200.0]),
    },
    Entry {
        name: "batch-d",
        options: "base=5, high=9, at=400s, lasts=600s, for=1800s",
        about: "ten minutes of 120 %",
        plan: |o, _| step(o, [5.0, 9.0, 400.0, 600.0, 1800.0]),
    },
];

fn rate(o: &mut Options<'_>, default: f64) -> Result<f64, String> {
    match (o.number("rps", MAX_RATE)?, o.number("rpm", MAX_RATE * 60.0)?) {
        (Some(_), Some(_)) => Err(format!("{}: rps and rpm are the same thing: give one", o.name())),
        (Some(rps), None) => Ok(rps),
        (None, Some(rpm)) => Ok(rpm / 60.0),
        (None, None) => Ok(default),
    }
}

fn pair(o: &mut Options<'_>, base: f64, high: f64) -> Result<(f64, f64), String> {
    Ok((o.number("base", MAX_RATE)?.unwrap_or(base), o.number("high", MAX_RATE)?.unwrap_or(high)))
}

fn length(o: &mut Options<'_>, default: f64) -> Result<f64, String> {
    Ok(o.seconds("for")?.unwrap_or(default))
}

/// A span that must not be 0.
fn period(o: &mut Options<'_>, key: &'static str, default: f64) -> Result<f64, String> {
    match o.seconds(key)?.unwrap_or(default) {
        seconds if seconds >= 0.1 => Ok(seconds),
        seconds => Err(format!("{}: {key}={seconds}s is not at least 100ms", o.name())),
    }
}

fn steady(o: &mut Options<'_>, rate: f64, lasts: f64) -> Result<Plan, String> {
    let length = length(o, lasts)?;
    Ok(Plan::new(vec![Segment { from: 0.0, to: length, rate }], length, 0.0))
}

fn hosted(o: &mut Options<'_>, default: f64) -> Result<Plan, String> {
    let rate = rate(o, default)?;
    steady(o, rate, 1800.0)
}

fn article(o: &mut Options<'_>, rpm: f64, cv: f64, lasts: f64) -> Result<Plan, String> {
    let rate = rate(o, rpm / 60.0)?;
    let cv = o.number("cv", 10.0)?.unwrap_or(cv);
    let plan = steady(o, rate, lasts)?;
    Ok(Plan { modulation: Some((cv, 30.0)), lengths: Lengths::SHORT, ..plan })
}

fn bursty(o: &mut Options<'_>) -> Result<Plan, String> {
    let rate = rate(o, 147.0 / 60.0)?;
    let dispersion = o.number("dispersion", 1e5)?.unwrap_or(135.0);
    // Counts of a minute whose rate is Gamma: variance ÷ mean = 1 + mean · cv².
    let cv = ((dispersion - 1.0).max(0.0) / (rate * 60.0).max(1e-9)).sqrt();
    let plan = steady(o, rate, 3600.0)?;
    Ok(Plan { modulation: Some((cv.min(30.0), 60.0)), ..plan })
}

/// `high` inside the windows, `base` outside.
fn windows(base: f64, high: f64, windows: &[Range<f64>], length: f64) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(2 * windows.len() + 1);
    let mut from = 0.0;
    let mut push = |from: f64, to: f64, rate| {
        if from < to {
            segments.push(Segment { from, to, rate });
        }
    };
    for window in windows {
        // Windows may overlap: a second spike in the first one lengthens it.
        let (start, end) = (window.start.clamp(from, length), window.end.clamp(from, length));
        push(from, start, base);
        push(start, end, high);
        from = end;
    }
    push(from, length, base);
    segments
}

fn step(o: &mut Options<'_>, [base, high, at, lasts, length_]: [f64; 5]) -> Result<Plan, String> {
    let (base, high) = pair(o, base, high)?;
    let at = o.seconds("at")?.unwrap_or(at);
    let lasts = o.seconds("lasts")?.unwrap_or(lasts);
    let length = length(o, length_)?;
    Ok(Plan::new(windows(base, high, &[at..at + lasts], length), length, 0.0))
}

fn few(o: &Options<'_>, segments: f64) -> Result<(), String> {
    if segments <= MAX_SEGMENTS {
        return Ok(());
    }
    Err(format!("{}: it changes too often for its length: {segments:.0} times", o.name()))
}

/// Starts of recurring spikes, in order.
fn recurring_windows(o: &mut Options<'_>, seed: u64, d: [f64; 4]) -> Result<(Vec<Range<f64>>, f64), String> {
    let [lasts, every, first, length_] = d;
    let lasts = o.seconds("lasts")?.unwrap_or(lasts);
    let every = period(o, "every", every)?;
    let first = o.seconds("first")?.unwrap_or(first);
    let jitter = o.seconds("jitter")?.unwrap_or(0.0);
    let missing = o.number("missing", 1.0)?.unwrap_or(0.0);
    let length = length(o, length_)?;
    few(o, length / every)?;
    let mut chance = SplitMix64::new(seed ^ 0x7370_696b_6573);
    let mut found: Vec<Range<f64>> = (0..)
        .map(|n| first + f64::from(n) * every)
        .take_while(|start| *start < length)
        .filter_map(|start| {
            let (shift, dice) = (chance.normal() * jitter, chance.uniform());
            let start = (start + shift).max(0.0);
            (dice >= missing).then_some(start..start + lasts)
        })
        .collect();
    found.sort_by(|a, b| a.start.total_cmp(&b.start));
    Ok((found, length))
}

fn recurring(o: &mut Options<'_>, seed: u64) -> Result<Plan, String> {
    let (base, high) = pair(o, 4.0, 16.0)?;
    let (spikes, length) = recurring_windows(o, seed, [90.0, 900.0, 450.0, 9000.0])?;
    Ok(Plan::new(windows(base, high, &spikes, length), length, 3600.0_f64.min(length * 0.4)))
}

fn spike(o: &mut Options<'_>, seed: u64) -> Result<Plan, String> {
    let (base, high) = pair(o, 100.0 / 60.0, 500.0 / 60.0)?;
    let (spikes, length) = recurring_windows(o, seed, [20.0, 300.0, 150.0, 9000.0])?;
    let plan = Plan::new(windows(base, high, &spikes, length), length, 1800.0_f64.min(length * 0.4));
    Ok(Plan { lengths: Lengths::SHORT, measured: Some(spikes), ..plan })
}

fn random_spikes(o: &mut Options<'_>, seed: u64) -> Result<Plan, String> {
    let (base, high) = pair(o, 4.0, 16.0)?;
    let lasts = o.seconds("lasts")?.unwrap_or(90.0);
    let gap = period(o, "gap", 900.0)?;
    let length = length(o, 9000.0)?;
    few(o, length / gap)?;
    let mut chance = SplitMix64::new(seed ^ 0x7370_696b_6573);
    let mut spikes: Vec<Range<f64>> = Vec::new();
    let mut start = chance.exponential(gap);
    while start < length {
        spikes.push(start..start + lasts);
        start += chance.exponential(gap);
    }
    Ok(Plan::new(windows(base, high, &spikes, length), length, 3600.0_f64.min(length * 0.4)))
}

/// A rate that changes all the time, in stretches of `every` seconds at the value of their middle.
fn curve(length: f64, every: f64, rate: impl Fn(f64) -> f64) -> Vec<Segment> {
    let cells = (length / every).ceil().min(MAX_SEGMENTS) as u64;
    let cell = |n: u64| {
        let (from, to) = (n as f64 * every, ((n + 1) as f64 * every).min(length));
        Segment { from, to, rate: rate(f64::midpoint(from, to)).max(0.0) }
    };
    (0..cells).map(cell).collect()
}

fn ramp(o: &mut Options<'_>) -> Result<Plan, String> {
    let (base, high) = pair(o, 4.0, 16.0)?;
    let at = o.seconds("at")?.unwrap_or(600.0);
    let rise = o.seconds("rise")?.unwrap_or(120.0);
    let lasts = o.seconds("lasts")?.unwrap_or(600.0);
    let length = length(o, 1800.0)?;
    few(o, length)?;
    let rate = |t: f64| match t - at {
        since if since < 0.0 || since >= lasts => base,
        since if since < rise => base + (high - base) * since / rise,
        _ => high,
    };
    Ok(Plan::new(curve(length, 1.0, rate), length, 0.0))
}

fn sine(o: &mut Options<'_>) -> Result<Plan, String> {
    let low = o.number("low", MAX_RATE)?.unwrap_or(2.0);
    let high = o.number("high", MAX_RATE)?.unwrap_or(14.0);
    let period = period(o, "period", 7200.0)?;
    let length = length(o, 28_800.0)?;
    // Fine enough for the period, never finer than a second.
    let every = (period / 720.0).max(1.0);
    few(o, length / every)?;
    let (middle, swing) = (f64::midpoint(low, high), (high - low) / 2.0);
    // It begins at its lowest.
    let rate = |t: f64| middle - swing * (TAU * t / period).cos();
    Ok(Plan::new(curve(length, every, rate), length, 14_400.0_f64.min(length / 2.0)))
}

fn daily(o: &mut Options<'_>) -> Result<Plan, String> {
    let mean = rate(o, 40.0 / 60.0)?;
    let swing = o.number("swing", 1.0)?.unwrap_or(0.6);
    let weekend = o.number("weekend", 100.0)?.unwrap_or(0.6);
    let cv = o.number("cv", 10.0)?.unwrap_or(0.2);
    let length = length(o, 14.0 * DAY)?;
    few(o, length / 600.0)?;
    let rate = |t: f64| {
        // Lowest at 3 in the morning, highest at 15; days 5 and 6 of each week are a weekend.
        let day = 1.0 - swing * (TAU * (t / DAY - 0.125)).cos();
        let week = if (t / DAY) as u64 % 7 >= 5 { weekend } else { 1.0 };
        mean * day * week * 7.0 / (5.0 + 2.0 * weekend)
    };
    let plan = Plan::new(curve(length, 600.0, rate), length, length / 2.0);
    Ok(Plan { modulation: Some((cv, 600.0)), ..plan })
}
