//! Seeded workloads by name: which request comes when, with how many tokens.
//!
//! Without it a policy could only be tried on somebody's log. `parse("recurring:jitter=20s", seed)` gives the
//! requests, the seconds in which policies only learn, and the windows that count. The names and their
//! parameters are in `catalogue.rs`; this file draws:
//!
//! ```text
//! segments of constant rate  ──(× Gamma per 30 s)──▶  arrivals: a Poisson process on the integrated rate
//! tokens                     lognormal by mean and σ of the logarithm, or fixed
//! ```
//! Called by `tidegate simulate`, the suite and the benchmarks.

mod catalogue;

use std::ops::Range;
use std::time::Duration;

use crate::chance::SplitMix64;
use crate::policy::units::MonoTime;
use crate::simulate::Request;
use crate::simulate::options::Options;

pub use catalogue::{CATALOGUE, Entry};

/// More requests than this are refused: they would take over 800 MB.
const MAX_REQUESTS: f64 = 50e6;
/// Prompt and answer are cut here; with the default lengths one request in 10⁶ comes near.
const MAX_TOKENS: f64 = 128_000.0;

/// Requests to come, and which of them count.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// As it was asked for.
    pub name: String,
    /// Earliest first.
    pub requests: Vec<Request>,
    /// When it ends. The last request is earlier.
    pub length: Duration,
    /// Requests that arrive before this are served but not counted: policies learn from them.
    pub learn: Duration,
    /// Requests that arrive in one of these count, in order, without overlap. Usually `[learn, length)`; the
    /// article's `spike` counts only what arrives in a spike.
    pub measured: Vec<Range<MonoTime>>,
}

impl Workload {
    /// What lasts longer is refused: policies and the oracle go through it second by second, silent ones included.
    pub const MAX_DAYS: u64 = 60;

    /// Whether a request that arrives at `at` counts.
    #[must_use]
    pub fn is_measured(&self, at: MonoTime) -> bool {
        let after = self.measured.partition_point(|window| window.start <= at);
        after.checked_sub(1).and_then(|i| self.measured.get(i)).is_some_and(|window| window.contains(&at))
    }

    /// Requests in each minute; the last may be a part of one.
    #[must_use]
    pub fn per_minute(&self) -> Vec<Option<f64>> {
        let mut counts = vec![0.0; self.length.as_secs().div_ceil(60) as usize];
        for request in &self.requests {
            if let Some(count) = counts.get_mut((request.at.as_secs() / 60) as usize) {
                *count += 1.0;
            }
        }
        counts.into_iter().map(Some).collect()
    }

    /// A recorded trace as a workload: everything from `learn` on counts.
    #[must_use]
    pub fn of(name: String, requests: Vec<Request>, length: Duration, learn: Duration) -> Self {
        let measured = vec![MonoTime::ZERO + learn..MonoTime::ZERO + length];
        Self { name, requests, length, learn, measured }
    }
}

/// The workload that `text` names, drawn from `seed`: `poisson:rps=500,for=600s`, `recurring:jitter=20s`, …
///
/// # Errors
/// What is wrong and what would be right: an unknown name or option, or a workload too large to hold.
pub fn parse(text: &str, seed: u64) -> Result<Workload, String> {
    let mut options = Options::parse(text)?;
    let Some(entry) = CATALOGUE.iter().find(|entry| entry.name == options.name()) else {
        let names: Vec<&str> = CATALOGUE.iter().map(|entry| entry.name).collect();
        return Err(format!("no workload is called `{}`; there are {}", options.name(), names.join(", ")));
    };
    let mut plan = (entry.plan)(&mut options, seed)?;
    plan.general(&mut options)?;
    options.finish()?;
    plan.draw(text.trim(), seed)
}

/// A stretch of constant rate: from, to (seconds), requests per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Segment {
    from: f64,
    to: f64,
    rate: f64,
}

/// How many tokens requests have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lengths {
    /// Mean and σ of the logarithm.
    prompt: (f64, f64),
    output: (f64, f64),
}

impl Lengths {
    /// The reference LLM workload: prompts of 1000 tokens in the mean (σ 1), answers of 200 (σ 0.9).
    pub(crate) const LLM: Self = Self { prompt: (1000.0, 1.0), output: (200.0, 0.9) };
    /// Short calls, all alike, where the service time does not depend on tokens.
    const SHORT: Self = Self { prompt: (100.0, 0.0), output: (10.0, 0.0) };
}

/// A workload before it is drawn.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// In order, without overlap, within `[0, length)`. Nothing arrives between them.
    segments: Vec<Segment>,
    length: f64,
    learn: f64,
    /// The rate is multiplied by Gamma(mean 1, cv), drawn anew every so many seconds.
    modulation: Option<(f64, f64)>,
    lengths: Lengths,
    /// Windows that count, where it is not all from `learn` on.
    measured: Option<Vec<Range<f64>>>,
}

impl Plan {
    fn new(segments: Vec<Segment>, length: f64, learn: f64) -> Self {
        Self { segments, length, learn, modulation: None, lengths: Lengths::LLM, measured: None }
    }

    /// Options that every workload has.
    fn general(&mut self, options: &mut Options<'_>) -> Result<(), String> {
        if let Some(scale) = options.number("scale", 1e6)? {
            self.segments.iter_mut().for_each(|segment| segment.rate *= scale);
        }
        self.learn = options.seconds("learn")?.unwrap_or(self.learn);
        if self.length <= 0.0 || self.learn >= self.length {
            return Err(format!(
                "{}: nothing is left to measure: it lasts {} s, of which the first {} s are for learning \
                 (options `for` and `learn`)",
                options.name(),
                self.length,
                self.learn
            ));
        }
        for (mean, sigma, of) in [
            ("prompt", "prompt-sigma", &mut self.lengths.prompt),
            ("output", "output-sigma", &mut self.lengths.output),
        ] {
            of.0 = options.number(mean, MAX_TOKENS)?.unwrap_or(of.0);
            of.1 = options.number(sigma, 5.0)?.unwrap_or(of.1);
        }
        Ok(())
    }

    fn draw(self, name: &str, seed: u64) -> Result<Workload, String> {
        let days = self.length / 86_400.0;
        if days > Workload::MAX_DAYS as f64 {
            return Err(format!(
                "{name}: it lasts {days:.0} days; {} are the most (option `for`)",
                Workload::MAX_DAYS
            ));
        }
        let expected: f64 = self.segments.iter().map(|s| (s.to - s.from) * s.rate).sum();
        if expected > MAX_REQUESTS {
            return Err(format!(
                "{name}: about {expected:.0} requests are too many to hold; {MAX_REQUESTS:.0} are the most \
                 (option `for` or `scale`)"
            ));
        }
        let requests = self.requests(seed);
        let nanos = |seconds: f64| MonoTime::from_nanos((seconds * 1e9).round() as u64);
        let whole = self.learn..self.length;
        let measured = self.measured.unwrap_or_else(|| vec![whole.clone()]);
        let measured = measured
            .into_iter()
            .map(|window| window.start.max(whole.start)..window.end.min(whole.end))
            .filter(|window| window.start < window.end)
            .map(|window| nanos(window.start)..nanos(window.end))
            .collect();
        Ok(Workload {
            name: name.to_owned(),
            requests,
            length: Duration::from_secs_f64(self.length),
            learn: Duration::from_secs_f64(self.learn),
            measured,
        })
    }

    /// A Poisson process of varying rate: exponential gaps on the integrated rate, mapped back to time.
    fn requests(&self, seed: u64) -> Vec<Request> {
        let mut chance = SplitMix64::new(seed);
        let mut gamma = SplitMix64::new(seed ^ 0x6761_6d6d_6121);
        let mut requests = Vec::new();
        let mut gap = chance.exponential(1.0);
        let mut factor = (u64::MAX, 1.0);
        for segment in &self.segments {
            let mut from = segment.from;
            while from < segment.to {
                let (to, rate) = match self.modulation {
                    Some((cv, every)) => {
                        let cell = (from / every).floor();
                        // A cell without a segment draws nothing: what matters is one draw for each cell.
                        if factor.0 != cell as u64 {
                            factor = (cell as u64, gamma.gamma(1.0, cv));
                        }
                        (((cell + 1.0) * every).min(segment.to), segment.rate * factor.1)
                    }
                    None => (segment.to, segment.rate),
                };
                // A rounded cell's end must never stop time.
                let to = if to > from { to } else { segment.to };
                let area = (to - from) * rate;
                let mut reached = gap;
                while reached < area {
                    let at = from + reached / rate;
                    requests.push(self.lengths.request(at, &mut chance));
                    reached += chance.exponential(1.0);
                }
                gap = reached - area;
                from = to;
            }
        }
        requests
    }
}

impl Lengths {
    /// A request at `at` seconds.
    pub(crate) fn request(&self, at: f64, chance: &mut SplitMix64) -> Request {
        // The median of a lognormal with this mean: mean · exp(-σ²/2).
        let mut one = |(mean, sigma): (f64, f64)| {
            let median = mean * (-0.5 * sigma * sigma).exp();
            let tokens = if sigma > 0.0 { chance.lognormal(median, sigma) } else { mean };
            tokens.round().clamp(1.0, MAX_TOKENS) as u32
        };
        let (prompt, output) = (one(self.prompt), one(self.output));
        Request { at: MonoTime::from_nanos((at * 1e9) as u64), prompt, output }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, seed: u64) -> Workload {
        parse(text, seed).unwrap()
    }

    fn count(w: &Workload, seconds: Range<u64>) -> usize {
        w.requests.iter().filter(|r| seconds.contains(&r.at.as_secs())).count()
    }

    #[test]
    fn every_workload_keeps_its_word() {
        for entry in CATALOGUE {
            let w = at(&format!("{}:scale=0.3", entry.name), 1);
            assert_eq!(w, at(&format!("{}:scale=0.3", entry.name), 1), "same seed, same workload");
            assert_ne!(w.requests, at(&format!("{}:scale=0.3", entry.name), 2).requests);
            assert!(w.requests.len() > 100, "{}: {}", entry.name, w.requests.len());
            assert!(w.requests.is_sorted_by_key(|r| r.at) && w.learn < w.length);
            assert!(
                w.requests.iter().all(|r| r.at < MonoTime::ZERO + w.length && r.prompt > 0 && r.output > 0)
            );
            assert!(!w.measured.is_empty() && w.measured.is_sorted_by_key(|m| m.start));
            // The options it advertises are the ones it has, with the defaults it names.
            let options = entry.options.replace(" (or rpm=…)", "");
            let spelled = at(&format!("{}:{}", entry.name, options.replace(", ", ",")), 3);
            let plain = at(entry.name, 3);
            let (a, b) = (spelled.requests.len() as f64, plain.requests.len() as f64);
            assert!((a / b - 1.0).abs() < 0.02, "{}: {a} {b}", entry.name);
            assert_eq!((spelled.length, spelled.learn), (plain.length, plain.learn), "{}", entry.name);
        }
    }

    #[test]
    fn rates_are_what_was_asked_for() {
        let w = at("poisson:rps=500,for=60s", 1);
        assert!((29_400..30_600).contains(&w.requests.len()), "{}", w.requests.len());
        assert_eq!(w.per_minute(), [Some(w.requests.len() as f64)]);
        let w = at("recurring", 1);
        assert_eq!(w.measured, [MonoTime::from_secs(3600)..MonoTime::from_secs(9000)]);
        assert!((1350..1530).contains(&count(&w, 450..540)), "{}", count(&w, 450..540));
        assert!((300..420).contains(&count(&w, 600..690)));
        let w = at("batch-c", 1);
        assert!((1340..1540).contains(&count(&w, 400..520)) && (540..660).contains(&count(&w, 600..720)));
        let w = at("ramp", 1);
        assert!((1100..1300).contains(&count(&w, 600..720)), "half of the high rate while it climbs");
        let w = at("daily", 1);
        let rpm = w.requests.len() as f64 / (14.0 * 1440.0);
        assert!((37.0..43.0).contains(&rpm), "{rpm}");
    }

    #[test]
    fn tokens_have_the_reference_lengths() {
        let w = at("poisson:rps=100,for=1000s", 5);
        let n = w.requests.len() as f64;
        let mean = |of: fn(&Request) -> u32| w.requests.iter().map(|r| f64::from(of(r))).sum::<f64>() / n;
        assert!((mean(|r| r.prompt) - 1000.0).abs() < 20.0, "{}", mean(|r| r.prompt));
        assert!((mean(|r| r.output) - 200.0).abs() < 4.0, "{}", mean(|r| r.output));
        let w = at("idle:prompt=7,output=9", 5);
        assert!(w.requests.iter().all(|r| (r.prompt, r.output) == (7, 9)));
    }

    #[test]
    fn bursty_is_bursty_and_poisson_is_not() {
        let dispersion = |text: &str| {
            let w = at(text, 4);
            let minutes = w.length.as_secs() as usize / 60;
            let mut counts = vec![0.0_f64; minutes];
            for r in &w.requests {
                counts[r.at.as_secs() as usize / 60] += 1.0;
            }
            let mean = counts.iter().sum::<f64>() / minutes as f64;
            counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / minutes as f64 / mean
        };
        let (bursty, poisson) = (dispersion("bursty:for=20h"), dispersion("poisson:rps=2.45,for=20h"));
        assert!((110.0..160.0).contains(&bursty) && (0.9..1.1).contains(&poisson), "{bursty} {poisson}");
        let idle = dispersion("normal");
        assert!(idle > 15.0, "100 RPM with cv 0.64 per 30 s: {idle}");
    }

    #[test]
    fn spikes_shift_and_stay_away() {
        let starts = |text: &str| {
            let w = at(text, 9);
            (0..100_u64).filter(|n| count(&w, 450 + n * 900..540 + n * 900) > 700).count()
        };
        assert_eq!(starts("recurring:for=90000s"), 100);
        let jittered = starts("recurring:for=90000s,jitter=20s,missing=0.15");
        assert!((75..95).contains(&jittered), "{jittered}");
    }

    #[test]
    fn only_what_arrives_in_a_spike_counts_in_the_articles_row() {
        let w = at("spike", 1);
        assert_eq!(w.measured.len(), 24);
        let counted = w.requests.iter().filter(|r| w.is_measured(r.at)).count();
        assert!((3700..4300).contains(&counted), "{counted}");
        let inside = |ms: u64| w.is_measured(MonoTime::from_nanos(ms * 1_000_000));
        assert!(!inside(450_000) && !inside(1_949_999) && inside(1_950_000) && inside(1_969_999));
        assert!(!inside(1_970_000) && !inside(0) && !inside(u64::MAX / 1_000_000));
    }

    #[test]
    fn refusals_say_what_would_be_right() {
        let fault = |text: &str| parse(text, 1).unwrap_err();
        assert!(fault("psson").contains("there are poisson, recurring"));
        assert!(fault("poisson:rate=5").contains("it takes for, learn, output"));
        assert!(fault("poisson:rps=1,rpm=60").contains("the same thing"));
        assert!(fault("poisson:for=0").contains("nothing is left"));
        assert!(fault("poisson:for=60,learn=60").contains("nothing is left"));
        assert!(fault("poisson:rps=1e6,for=14d").contains("too many"));
        assert!(fault("recurring:every=0").contains("at least 100ms"));
        assert!(fault("recurring:every=100ms,for=3650d").contains("too often"));
        assert!(fault("sine:for=3650d").contains("too often"));
        // Nothing arrives: no fault.
        assert!(parse("poisson:rps=0", 1).unwrap().requests.is_empty());
    }
}
