//! `tidegate simulate`: a log or a synthetic workload through the policies, on virtual time; and
//! `tidegate simulate forecast`: how well its arrivals could have been foretold; `tidegate simulate suite`:
//! the reference scenarios.
//!
//! This file reads the command line and says what came of it; the simulation is `crate::simulate`.

mod bar;
mod forecast;
mod input;
mod suite;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::config::{self, Config, Sources};
use crate::policy::predict::{self, Mode, PolicyKind};
use crate::simulate::policy::{Kind, Policy};
use crate::simulate::report::{About, Report};
use crate::simulate::trace::{Format, OnBadRow};
use crate::simulate::upstream::Model;
use crate::simulate::workload::CATALOGUE;
use crate::simulate::{Run, Setup, Slo, Workload, options, policy, run, upstream};
use bar::Bar;

#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = long_help(),
    after_help = "The workloads, upstreams, policies and trace formats: --help"
)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    source: Source,
    /// Replays the trace so many times as fast.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, requires = "trace")]
    speed: f64,
    /// Time at the trace's beginning that does not count: policies learn from it.
    #[arg(long, value_name = "TIME", requires = "trace", value_parser = span)]
    learn: Option<Duration>,
    /// Simulated upstream, with its parameters: batch, hosted:rpm=600, replicas:start=30s, …
    #[arg(long, default_value = "replicas:start=30s", value_name = "MODEL")]
    upstream: String,
    /// Policies to compare, separated by commas
    /// [default: fixed,reactive,predictive; with replicas: hpa,rate,predictive,oracle]
    #[arg(long, value_name = "A,B,C", value_delimiter = ',')]
    policies: Vec<String>,
    /// Writes a page with charts to this file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Prints the figures as JSON for programs instead of a table.
    #[arg(long)]
    json: bool,
    /// SLO: longest time to the first token; `off`: none [default: 2s; hosted 5s]
    #[arg(long, value_name = "TIME", value_parser = limit)]
    slo_ttft: Option<Limit>,
    /// SLO: longest mean time between tokens; `off`: none [default: 60ms]
    #[arg(long, value_name = "TIME", value_parser = limit)]
    slo_itl: Option<Limit>,
    /// SLO: longest time to the last byte [default: none]
    #[arg(long, value_name = "TIME", value_parser = limit)]
    slo_latency: Option<Limit>,
    /// Clients leave when no first token came for so long; `off`: never [default: 30s; replicas 60s]
    #[arg(long, value_name = "TIME", value_parser = limit)]
    patience: Option<Limit>,
    /// Takes [scaling], [predict] and [queue] from this configuration file for every policy that runs live.
    /// Of [predict.replicas] `start` is the simulated upstream's instead, `per_replica` too where the file has none,
    /// and `predictive:1.3` goes before `headroom`.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ceiling of every live policy that is given without bounds of its own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    max_permits: Option<u32>,
}

#[derive(Subcommand)]
enum Command {
    /// Scores the forecast of the arrivals against simple methods, without peeking at what came later.
    Forecast(forecast::Options),
    /// Plays the reference scenarios and writes the tables of docs/results.md.
    Suite(suite::Options),
}

/// Where the requests come from.
#[derive(Args)]
struct Source {
    /// Recorded traffic: a file, plain or gzip; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "workload")]
    trace: Option<PathBuf>,
    /// Synthetic traffic, with its parameters: recurring, poisson:rps=500,for=10m, … [default: recurring]
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// What the trace is, where its first line does not tell.
    #[arg(long, value_name = "FORMAT", requires = "trace", value_parser = format)]
    format: Option<Format>,
    /// What to do with rows that cannot be read.
    #[arg(long, value_enum, default_value_t = BadRow::Skip, requires = "trace")]
    on_bad_row: BadRow,
    /// What chance is drawn from: the same seed gives the same figures.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// No progress bar, no notes.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum BadRow {
    /// Leave them out, and say how many there were.
    Skip,
    /// Stop at the first.
    Refuse,
}

impl From<BadRow> for OnBadRow {
    fn from(asked: BadRow) -> Self {
        match asked {
            BadRow::Skip => Self::Skip,
            BadRow::Refuse => Self::Refuse,
        }
    }
}

/// A limit that can be switched off.
#[derive(Clone, Copy)]
struct Limit(Option<Duration>);

fn span(text: &str) -> Result<Duration, String> {
    let seconds = options::seconds(text).ok_or("a span like 250ms, 90s, 15m, 2h or 14d")?;
    Ok(Duration::from_secs_f64(seconds))
}

fn limit(text: &str) -> Result<Limit, String> {
    if text == "off" { Ok(Limit(None)) } else { span(text).map(|span| Limit(Some(span))) }
}

fn format(text: &str) -> Result<Format, String> {
    let names = || Format::ALL.map(|(name, _)| name).join(", ");
    Format::named(text).ok_or_else(|| format!("one of {}", names()))
}

fn long_help() -> String {
    let workloads: String = CATALOGUE
        .iter()
        .map(|w| format!("  {:<14} {}\n  {:14} {}\n", w.name, w.about, "", w.options))
        .collect();
    let indented = |text: &str| text.lines().map(|line| format!("  {line}\n")).collect::<String>();
    format!(
        "\
WORKLOADS, and their options with defaults; every one also takes scale, prompt, output, learn:
{workloads}
  --workload recurring:jitter=20s,missing=0.15

UPSTREAMS:
{}
  --upstream batch:slots=16

POLICIES:
{}
  --policies fixed:64,predictive,oracle

TRACES, told apart by their first line:
{}

Example, your own Monday:
  tidegate simulate --trace access.log --upstream hosted:rpm=600 --policies fixed:1000,predictive --report monday.html",
        indented(upstream::HELP),
        indented(policy::HELP),
        Format::HELP
    )
}

pub(super) fn simulate(options: &Options) -> ExitCode {
    let done = match &options.command {
        Some(Command::Forecast(options)) => options.score(),
        Some(Command::Suite(options)) => options.run(),
        None => options.compare(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tidegate simulate: {message}");
            ExitCode::from(2)
        }
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no fault.
fn put(text: &str) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("standard output: {e}")),
        _ => Ok(()),
    }
}

/// A workload, and what to say about where it came from.
struct Given {
    workload: Workload,
    start: Option<jiff::Timestamp>,
    notes: Vec<String>,
}

impl Options {
    fn compare(&self) -> Result<(), String> {
        let model = upstream::parse(&self.upstream)?;
        let config = self.config()?;
        let policies = self.policies(&model, config.as_ref())?;
        // What cannot be written is better known before the work than after it.
        let report = self.report.as_ref().map(|path| {
            let file =
                std::fs::File::create(path).map_err(|e| format!("cannot write {}: {e}", path.display()));
            file.map(|file| (path, file))
        });
        let report = report.transpose()?;
        let given = self.source.replay(self.speed, self.learn.unwrap_or_default())?;
        let setup = self.setup(&given, &model, config.as_ref());
        let runs: Vec<Run> = policies
            .iter()
            .map(|policy| {
                let seconds = given.workload.length.as_secs();
                let mut bar = Bar::new(&policy.name, seconds, self.source.quiet);
                run(&setup, policy, &mut |second| bar.to(second))
            })
            .collect();
        let about = self.about(&given, &setup);
        let shown = Report { about: &about, runs: &runs };
        put(&if self.json { shown.json() } else { shown.table() })?;
        if let Some((path, mut file)) = report {
            file.write_all(shown.html().as_bytes())
                .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        }
        Ok(())
    }

    fn config(&self) -> Result<Option<Config>, String> {
        let Some(file) = self.config.clone() else { return Ok(None) };
        let sources = Sources { file: Some(file), ..Sources::default() };
        let loaded = config::load(&sources).map_err(|faults| faults.to_string())?;
        Ok(Some(loaded.config))
    }

    fn policies(&self, model: &Model, config: Option<&Config>) -> Result<Vec<Policy>, String> {
        let default: &[&str] = match model.replica() {
            Some(_) => &["hpa", "rate", "predictive", "oracle"],
            None => &["fixed", "reactive", "predictive"],
        };
        let default = || default.iter().map(|name| (*name).to_owned()).collect();
        let names: Vec<String> = if self.policies.is_empty() { default() } else { self.policies.clone() };
        names.iter().map(|name| self.policy(name, config)).collect()
    }

    /// A policy as it was named; where its name sets no bounds, with the bounds of the flags or the file.
    fn policy(&self, name: &str, config: Option<&Config>) -> Result<Policy, String> {
        let mut policy = policy::parse(name)?;
        let Kind::Live(params) = &mut policy.kind else { return Ok(policy) };
        // What follows the colon is bounds, but for `predictive`, where it is headroom.
        if name.contains(':') && params.policy != PolicyKind::Predictive {
            return Ok(policy);
        }
        if let Some(config) = config {
            let asked = params.replicas.headroom;
            *params = predict::Params { policy: params.policy, mode: Mode::Act, ..config.scaling.clone() };
            if name.contains(':') {
                params.replicas.headroom = asked;
            }
        }
        if let Some(max) = self.max_permits {
            params.max_permits = max;
            params.min_permits = params.min_permits.min(max);
            params.initial_permits = params.initial_permits.min(max);
        }
        if let Err(faults) = params.clone().try_new() {
            let all: Vec<String> = faults.into_iter().map(|f| format!("{} {}", f.key, f.message)).collect();
            return Err(format!("{name}: {}", all.join("; ")));
        }
        Ok(policy)
    }

    fn setup<'a>(&self, given: &'a Given, model: &'a Model, config: Option<&Config>) -> Setup<'a> {
        let mut setup = Setup::new(&given.workload, model, self.source.seed);
        setup.unix = given.start.map_or(0, jiff::Timestamp::as_second);
        let set = |place: &mut Option<Duration>, limit: Option<Limit>| *place = limit.map_or(*place, |l| l.0);
        set(&mut setup.slo.ttft, self.slo_ttft);
        set(&mut setup.slo.inter_token, self.slo_itl);
        set(&mut setup.slo.latency, self.slo_latency);
        set(&mut setup.clients.patience, self.patience);
        if let Some(config) = config {
            setup.queue = config.queue.clone();
        }
        setup
    }

    fn about(&self, given: &Given, setup: &Setup<'_>) -> About {
        let workload = &given.workload;
        let mut notes = given.notes.clone();
        if let Some(path) = &self.config {
            notes.push(format!("[scaling], [predict] and [queue] from {}", path.display()));
        }
        About {
            workload: workload.name.clone(),
            start: given.start.map(|start| start.strftime("%Y-%m-%d %H:%M UTC").to_string()),
            upstream: self.upstream.clone(),
            slo: told(&setup.slo),
            seed: self.source.seed,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            requests: workload.requests.len() as u64,
            seconds: workload.length.as_secs_f64(),
            learn: workload.learn.as_secs_f64(),
            notes,
        }
    }
}

/// The SLO in words.
fn told(slo: &Slo) -> String {
    let limits = [
        ("first token within ", slo.ttft, ""),
        ("", slo.inter_token, " per token"),
        ("last byte within ", slo.latency, ""),
    ];
    let told: Vec<String> = limits
        .into_iter()
        .filter_map(|(before, limit, after)| Some(format!("{before}{}{after}", short(limit?))))
        .collect();
    if told.is_empty() { "any answer is good".into() } else { told.join(", ") }
}

fn short(span: Duration) -> String {
    match span.as_secs_f64() {
        s if s < 1.0 => format!("{} ms", s * 1000.0),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command as Top};

    fn options(line: &str) -> Result<Options, String> {
        let words = ["tidegate", "simulate"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).map_err(|e| e.to_string())?.command {
            Top::Simulate(options) => Ok(options),
            _ => Err("another command".into()),
        }
    }

    fn names(line: &str) -> Vec<String> {
        let options = options(line).unwrap();
        let model = upstream::parse(&options.upstream).unwrap();
        options.policies(&model, None).unwrap().into_iter().map(|p| p.name).collect()
    }

    #[test]
    fn the_defaults_fit_the_upstream() {
        assert_eq!(names("--upstream batch"), ["fixed", "reactive", "predictive"]);
        assert_eq!(names(""), ["hpa", "rate", "predictive", "oracle"]);
        assert_eq!(names("--policies fixed:64,aimd"), ["fixed:64", "aimd"]);
        let given = options("").unwrap().source.replay(1.0, Duration::ZERO).unwrap();
        assert_eq!(given.workload.name, "recurring");
    }

    #[test]
    fn limits_are_set_or_switched_off() {
        let model = upstream::parse("batch").unwrap();
        let slo = |line: &str| {
            let options = options(&format!("--upstream batch --workload step {line}")).unwrap();
            told(&options.setup(&options.source.replay(1.0, Duration::ZERO).unwrap(), &model, None).slo)
        };
        assert_eq!(slo(""), "first token within 2 s, 60 ms per token");
        assert_eq!(
            slo("--slo-ttft 1500ms --slo-itl off --slo-latency 1m"),
            "first token within 1.5 s, last byte within 60 s"
        );
        assert_eq!(slo("--slo-ttft off --slo-itl off"), "any answer is good");
        assert!(options("--slo-ttft soon").is_err());
    }

    #[test]
    fn a_ceiling_holds_for_those_that_name_none() {
        let options = options("--max-permits 3").unwrap();
        let max = |name: &str| match options.policy(name, None).unwrap().kind {
            Kind::Live(p) => (p.min_permits, p.initial_permits, p.max_permits),
            other => panic!("{other:?}"),
        };
        assert_eq!([max("predictive"), max("reactive"), max("predictive:1.3")], [(3, 3, 3); 3]);
        assert_eq!(max("fixed:20").2, 20);
        assert_eq!(max("article:1/1/100"), (1, 1, 100));
    }

    #[test]
    fn replicas_are_scaled_as_the_file_says_unless_the_name_says_otherwise() {
        let text = "[[upstream]]\nname = \"one\"\nbase_url = \"http://model:8000/v1\"\n[predict.replicas]\nheadroom = 1.7\nmin = 2\nmax = 9\n";
        let none = std::collections::BTreeMap::new();
        let loaded = config::parse(text, "t", &none, &[], &|_| Err(std::io::ErrorKind::NotFound.into()));
        let config = loaded.unwrap().config;
        let replicas = |name: &str| match options("").unwrap().policy(name, Some(&config)).unwrap().kind {
            Kind::Live(p) => (p.replicas.headroom, p.replicas.min, p.replicas.max),
            other => panic!("{other:?}"),
        };
        assert_eq!(replicas("predictive"), (1.7, 2, 9));
        assert_eq!(replicas("predictive:1.3"), (1.3, 2, 9));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        assert!(options("--trace x --workload step").is_err());
        assert!(options("--format access").is_err());
        assert!(options("--workload step forecast").is_err());
        assert!(options("forecast --speed 2").is_err() && options("forecast --workload step --json").is_ok());
        let wrong = options("--trace x --format yaml").err().unwrap_or_default();
        assert!(wrong.contains("arrivals, counts"), "{wrong}");
        let missing = options("--trace no/such.csv").unwrap().source.replay(1.0, Duration::ZERO);
        assert!(missing.err().is_some_and(|e| e.starts_with("no/such.csv: ")));
        let help = long_help();
        assert!(help.contains("random-spikes") && help.contains("oracle") && help.contains("access.log"));
    }
}
