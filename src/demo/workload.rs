//! Which request comes when, and how long its prompt and its answer are.
//!
//! Recorded traces and seeded generators give the same type, so that a run on a real hour of traffic and one
//! without it differ in nothing else. Called by the demo's `--load`, the scenarios and the trace replay.

use std::f64::consts::TAU;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::chance::SplitMix64;

/// The first line of a trace.
const COLUMNS: &str = "t_s,prompt_tokens,output_tokens";

/// One request to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When, since the workload's start.
    pub at: Duration,
    /// Length of its prompt.
    pub prompt_tokens: u32,
    /// Length of its answer.
    pub output_tokens: u32,
}

/// Requests in the order of their times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    arrivals: Vec<Arrival>,
}

/// Why a trace cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is not what it should be.
    #[error("line {line}: {message}")]
    Line {
        /// Counted from 1; the header is line 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// There is no request in it.
    #[error("there is no request in the trace")]
    Empty,
    /// The speed is no factor.
    #[error("speed {0} is not a number above 0")]
    Speed(f64),
}

/// How long prompts and answers are: lognormal, cut at the largest. σ = 0 gives the median every time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    /// Median prompt, in tokens.
    pub prompt_median: f64,
    /// σ of the prompt's logarithm.
    pub prompt_sigma: f64,
    /// Longest prompt.
    pub prompt_max: u32,
    /// Median answer, in tokens.
    pub output_median: f64,
    /// σ of the answer's logarithm.
    pub output_sigma: f64,
    /// Longest answer.
    pub output_max: u32,
}

impl Lengths {
    /// A chat service: prompts 1,000 (median) to 4,000 (p95) tokens, answers 130 to 451.
    ///
    /// Fitted to the quantiles of an hour of a public trace (Azure conversation, Patel et al., ISCA 2024).
    pub const CHAT: Self = Self {
        prompt_median: 1000.0,
        prompt_sigma: 0.84,
        prompt_max: 14_000,
        output_median: 130.0,
        output_sigma: 0.756,
        output_max: 1000,
    };

    /// Every request alike.
    #[must_use]
    pub fn fixed(prompt_tokens: u32, output_tokens: u32) -> Self {
        Self {
            prompt_median: prompt_tokens.into(),
            prompt_sigma: 0.0,
            prompt_max: prompt_tokens,
            output_median: output_tokens.into(),
            output_sigma: 0.0,
            output_max: output_tokens,
        }
    }

    /// Prompts and answers of these means, with these σ of their logarithms; the longest are 20 times the mean.
    #[must_use]
    pub fn lognormal(prompt: (f64, f64), output: (f64, f64)) -> Self {
        // The mean of a lognormal is its median times exp(σ² / 2).
        let median = |(mean, sigma): (f64, f64)| mean / (sigma * sigma / 2.0).exp();
        let most = |(mean, sigma): (f64, f64)| if sigma > 0.0 { (20.0 * mean) as u32 } else { mean as u32 };
        Self {
            prompt_median: median(prompt),
            prompt_sigma: prompt.1,
            prompt_max: most(prompt).max(1),
            output_median: median(output),
            output_sigma: output.1,
            output_max: most(output).max(1),
        }
    }

    fn draw(&self, rng: &mut SplitMix64) -> (u32, u32) {
        let mut one = |median, sigma, max: u32| (rng.lognormal(median, sigma).round() as u32).min(max);
        let prompt = one(self.prompt_median, self.prompt_sigma, self.prompt_max);
        (prompt.max(1), one(self.output_median, self.output_sigma, self.output_max).max(1))
    }
}

/// A steady rate, and for a while another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burst {
    /// Requests per second outside the burst.
    pub base_rps: f64,
    /// Requests per second inside it.
    pub burst_rps: f64,
    /// When it begins.
    pub from: Duration,
    /// How long it lasts.
    pub length: Duration,
}

impl Workload {
    /// The requests, earliest first.
    #[must_use]
    pub fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// When the last request comes.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.arrivals.last().map_or(Duration::ZERO, |a| a.at)
    }

    /// A recorded trace from a CSV file: the first `limit` of it (all without one), `speed` times as fast.
    ///
    /// # Errors
    /// See [`WorkloadError`].
    pub fn trace(path: &Path, speed: f64, limit: Option<Duration>) -> Result<Self, WorkloadError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| WorkloadError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, speed, limit)
    }

    /// A recorded trace from its text: header `t_s,prompt_tokens,output_tokens`, times in seconds, ascending.
    ///
    /// The first row's time becomes 0: `limit` and the replay count from there.
    ///
    /// # Errors
    /// See [`WorkloadError`].
    pub fn parse(text: &str, speed: f64, limit: Option<Duration>) -> Result<Self, WorkloadError> {
        if !(speed.is_finite() && speed > 0.0) {
            return Err(WorkloadError::Speed(speed));
        }
        let mut lines = text.lines().enumerate();
        let header = lines.next().map_or("", |(_, line)| line.trim().trim_start_matches('\u{feff}'));
        if header != COLUMNS {
            let message = format!("the columns must be {COLUMNS}, not {header:?}");
            return Err(WorkloadError::Line { line: 1, message });
        }
        let (mut arrivals, mut first, mut last) = (Vec::new(), None, 0.0);
        for (index, row) in lines.filter(|(_, row)| !row.trim().is_empty()) {
            let (seconds, prompt_tokens, output_tokens) =
                parse_row(row, last).map_err(|message| WorkloadError::Line { line: index + 1, message })?;
            last = seconds;
            let since = seconds - *first.get_or_insert(seconds);
            if limit.is_some_and(|limit| since >= limit.as_secs_f64()) {
                // The rest is still checked: a broken file should not depend on the limit to show.
                continue;
            }
            arrivals.push(Arrival { at: seconds_of(since / speed), prompt_tokens, output_tokens });
        }
        if arrivals.is_empty() { Err(WorkloadError::Empty) } else { Ok(Self { arrivals }) }
    }

    /// A Poisson process of `rps` requests per second.
    #[must_use]
    pub fn steady(seed: u64, rps: f64, duration: Duration, lengths: Lengths) -> Self {
        Self::thinned(seed, duration, lengths, rps, |_| rps)
    }

    /// A Poisson process with a burst in it.
    #[must_use]
    pub fn burst(seed: u64, burst: Burst, duration: Duration, lengths: Lengths) -> Self {
        let inside = burst.from.as_secs_f64()..(burst.from + burst.length).as_secs_f64();
        let rate = |t| if inside.contains(&t) { burst.burst_rps } else { burst.base_rps };
        Self::thinned(seed, duration, lengths, burst.base_rps.max(burst.burst_rps), rate)
    }

    /// Stands in for an hour of a chat service: 333 requests a minute, with one slow rise to about 500
    /// and one fall to about 180, and ripples. A shorter one has the same rise and fall in less time.
    #[must_use]
    pub fn synthetic_conversation(seed: u64, duration: Duration) -> Self {
        const MEAN: f64 = 333.0 / 60.0;
        const TIDE: f64 = 0.36;
        const RIPPLE: f64 = 0.10;
        let mut rng = SplitMix64::new(seed ^ 0x7469_6465);
        let (tide, ripple) = (rng.uniform() * TAU, rng.uniform() * TAU);
        let span = duration.as_secs_f64();
        let rate = |t: f64| {
            // Whole periods, so that the mean is exact for every seed.
            let slow = TIDE * (TAU * t / span + tide).sin();
            let fast = RIPPLE * (TAU * 6.0 * t / span + ripple).sin();
            MEAN * (1.0 + slow + fast)
        };
        Self::thinned(seed, duration, Lengths::CHAT, MEAN * (1.0 + TIDE + RIPPLE), rate)
    }

    /// A Poisson process of varying rate by thinning (Lewis and Shedler 1979): `peak` bounds `rate`.
    fn thinned(
        seed: u64,
        duration: Duration,
        lengths: Lengths,
        peak: f64,
        rate: impl Fn(f64) -> f64,
    ) -> Self {
        let mut arrivals = Vec::new();
        if !(peak.is_finite() && peak > 0.0) {
            return Self { arrivals };
        }
        let mut rng = SplitMix64::new(seed);
        let (mut t, end) = (0.0, duration.as_secs_f64());
        loop {
            t += rng.exponential(1.0 / peak);
            if t >= end {
                return Self { arrivals };
            }
            if rng.uniform() * peak < rate(t) {
                let (prompt_tokens, output_tokens) = lengths.draw(&mut rng);
                arrivals.push(Arrival { at: seconds_of(t), prompt_tokens, output_tokens });
            }
        }
    }
}

fn parse_row(row: &str, last: f64) -> Result<(f64, u32, u32), String> {
    let fields: Vec<&str> = row.split(',').map(str::trim).collect();
    let [t, prompt, output] = fields[..] else {
        return Err(format!("{} fields where {COLUMNS} are 3", fields.len()));
    };
    let seconds = t.parse::<f64>().ok().filter(|s| (0.0..1e9).contains(s));
    let seconds = seconds.ok_or_else(|| format!("t_s {t:?} is not a time in seconds"))?;
    if seconds < last {
        return Err(format!("t_s {t} comes after {last}: rows must be in order"));
    }
    let tokens = |name, text: &str| {
        text.parse::<u32>().map_err(|_| format!("{name} {text:?} is not a whole number of tokens"))
    };
    Ok((seconds, tokens("prompt_tokens", prompt)?, tokens("output_tokens", output)?))
}

/// Negative and absurd values cannot come here; if they did, the request would come at once.
fn seconds_of(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn fault(text: &str) -> String {
        Workload::parse(text, 1.0, None).unwrap_err().to_string()
    }

    #[test]
    fn a_bad_row_is_named_by_its_line() {
        let row = |bad: &str| fault(&format!("{COLUMNS}\n1.0,10,20\n\n{bad}\n"));
        assert_eq!(row("2.0,10"), "line 4: 2 fields where t_s,prompt_tokens,output_tokens are 3");
        assert_eq!(row("soon,10,20"), "line 4: t_s \"soon\" is not a time in seconds");
        assert_eq!(row("NaN,10,20"), "line 4: t_s \"NaN\" is not a time in seconds");
        assert_eq!(row("2,-1,20"), "line 4: prompt_tokens \"-1\" is not a whole number of tokens");
        assert_eq!(row("2,1,1.5"), "line 4: output_tokens \"1.5\" is not a whole number of tokens");
        assert_eq!(row("0.5,1,1"), "line 4: t_s 0.5 comes after 1: rows must be in order");
        assert_eq!(
            fault("t,count\n1,2\n"),
            format!("line 1: the columns must be {COLUMNS}, not \"t,count\"")
        );
        assert_eq!(fault(&format!("{COLUMNS}\n")), "there is no request in the trace");
        assert!(matches!(Workload::parse(COLUMNS, 0.0, None), Err(WorkloadError::Speed(_))));
        let missing = Workload::trace(Path::new("no/such/trace.csv"), 1.0, None).unwrap_err();
        assert!(missing.to_string().starts_with("cannot read no/such/trace.csv: "));
    }

    #[test]
    fn a_trace_is_cut_in_its_own_time_and_then_sped_up() {
        let text = format!("{COLUMNS}\r\n40.5,7,8\r\n50.5,1,2\r\n60.5,3,4\r\n");
        let got = Workload::parse(&text, 10.0, Some(Duration::from_secs(20))).unwrap();
        let arrival =
            |ms, p, o| Arrival { at: Duration::from_millis(ms), prompt_tokens: p, output_tokens: o };
        assert_eq!(got.arrivals(), [arrival(0, 7, 8), arrival(1000, 1, 2)]);
    }

    #[test]
    fn the_same_seed_gives_the_same_workload_and_another_seed_another() {
        let of = |seed| Workload::synthetic_conversation(seed, HOUR);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn the_synthetic_hour_resembles_the_real_one() {
        for seed in 0..5 {
            let hour = Workload::synthetic_conversation(seed, HOUR);
            let mut minutes = [0_u32; 60];
            for a in hour.arrivals() {
                minutes[a.at.as_secs() as usize / 60] += 1;
            }
            let mean = hour.arrivals().len() as f64 / 60.0;
            assert!((320.0..346.0).contains(&mean), "mean {mean}");
            let peak = minutes.iter().max().unwrap();
            assert!((450..560).contains(peak), "peak {peak}");
            let quantile = |of: fn(&Arrival) -> u32, q: f64| {
                let mut all: Vec<u32> = hour.arrivals().iter().map(of).collect();
                all.sort_unstable();
                all[(all.len() as f64 * q) as usize]
            };
            assert!((960..1040).contains(&quantile(|a| a.prompt_tokens, 0.5)));
            assert!((3700..4300).contains(&quantile(|a| a.prompt_tokens, 0.95)));
            assert!((125..136).contains(&quantile(|a| a.output_tokens, 0.5)));
            assert!((425..480).contains(&quantile(|a| a.output_tokens, 0.95)));
        }
    }

    #[test]
    fn a_burst_is_where_it_should_be() {
        let minute = Duration::from_secs(60);
        let burst = Burst { base_rps: 5.0, burst_rps: 50.0, from: minute, length: minute };
        let load = Workload::burst(3, burst, 3 * minute, Lengths::fixed(100, 20));
        let count =
            |from, to| load.arrivals().iter().filter(|a| (from..to).contains(&a.at.as_secs())).count();
        assert!((2800..3200).contains(&count(60, 120)), "{}", count(60, 120));
        assert!((240..360).contains(&count(0, 60)) && (240..360).contains(&count(120, 180)));
        assert!(load.arrivals().iter().all(|a| (a.prompt_tokens, a.output_tokens) == (100, 20)));
        assert!(Workload::steady(1, 0.0, minute, Lengths::CHAT).arrivals().is_empty());
    }
    #[test]
    fn lognormal_lengths_have_the_means_asked_for() {
        let lengths = Lengths::lognormal((1000.0, 1.0), (200.0, 0.9));
        let load = Workload::steady(1, 100.0, Duration::from_secs(1000), lengths);
        let n = load.arrivals().len() as f64;
        let mean =
            |of: fn(&Arrival) -> u32| load.arrivals().iter().map(|a| f64::from(of(a))).sum::<f64>() / n;
        let (prompt, output) = (mean(|a| a.prompt_tokens), mean(|a| a.output_tokens));
        assert!((prompt - 1000.0).abs() < 25.0 && (output - 200.0).abs() < 5.0, "{prompt} {output}");
        assert_eq!(Lengths::lognormal((30.0, 0.0), (7.0, 0.0)), Lengths::fixed(30, 7));
    }
}
