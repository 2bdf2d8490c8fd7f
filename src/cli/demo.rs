//! `tidegate demo`: a simulated model server with the proxy in front of it, in one process.
//!
//! The server, the proxy and the load talk over real loopback sockets; only the model is simulated.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::sync::oneshot;

use crate::app::Running;
use crate::cli::{health, signals};
use crate::clock::Clock;
use crate::config::{self, Config, Flag, Sources};
use crate::demo::live::Snapshot;
use crate::demo::load::Progress;
use crate::demo::workload::{Burst, Lengths};
use crate::demo::{Hosted, Law, Load, LoadReport, OverCapacity, SimulatedLlm, Stats, Workload};
use crate::policy::units::MonoTime;
use crate::telemetry::init_logging;

/// Tokens of each prompt of the burst.
const PROMPT: u32 = 200;

#[derive(Args)]
pub(super) struct Options {
    /// Address of the proxy [default: 127.0.0.1:8080, or a free port if that is taken]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address of /metrics [default: 127.0.0.1:9900, or a free port if that is taken]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// Requests the simulated server works on at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    capacity: u32,
    /// What it does with one too many.
    #[arg(long, value_enum, default_value_t = Over::Refuse)]
    over_capacity: Over,
    /// Requests per minute that it sells, as a hosted API does: beyond them it answers 429, and its headers say
    /// how the budget stands. Then only that limits it, not --capacity.
    #[arg(long, value_name = "RPM", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rpm: Option<u32>,
    /// With --rpm: tokens per minute, prompts and answers together.
    #[arg(long, value_name = "TPM", requires = "rpm", value_parser = clap::value_parser!(u32).range(1..))]
    tpm: Option<u32>,
    /// Milliseconds to its first token.
    #[arg(long, default_value_t = 100.0, value_name = "MS", value_parser = millis)]
    first_token_ms: f64,
    /// Milliseconds per further token.
    #[arg(long, default_value_t = 20.0, value_name = "MS", value_parser = millis)]
    token_ms: f64,
    /// Tokens of an answer whose request does not say.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    tokens: u32,
    /// Scaling policy: predictive, fixed, reactive or article.
    #[arg(long, default_value = "predictive")]
    policy: String,
    /// Sends a burst, prints a live line each second, then a summary, and ends.
    #[arg(long)]
    load: bool,
    /// With --load: replays this trace (CSV: t_s,prompt_tokens,output_tokens) instead of the burst;
    /// `synthetic` is a seeded hour of a chat service.
    #[arg(long, value_name = "FILE", requires = "load")]
    trace: Option<PathBuf>,
    /// With --trace: how many times faster than it was recorded.
    #[arg(long, default_value_t = 1.0, requires = "trace", value_parser = speed)]
    speed: f64,
    /// With --trace: how much of it, in minutes of its own time.
    #[arg(long, value_name = "MINUTES", requires = "trace")]
    minutes: Option<u32>,
    /// With --load: the summary as JSON for programs.
    #[arg(long, requires = "load")]
    json: bool,
    /// What chance is drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Over {
    /// Answers 429, as hosted APIs do.
    Refuse,
    /// Queues inside, as llama.cpp does.
    Queue,
    /// Slows down for everyone, as a batch server does.
    Slow,
}

fn millis(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|ms: &f64| (0.0..=600_000.0).contains(ms)).ok_or("0 to 600000".into())
}

fn speed(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| (0.01..=1000.0).contains(x)).ok_or("0.01 to 1000".into())
}

impl Options {
    fn law(&self) -> Result<Law, String> {
        let ms = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
        let law = Law {
            capacity: if self.rpm.is_some() { usize::MAX } else { self.capacity as usize },
            over_capacity: match self.over_capacity {
                _ if self.rpm.is_some() => OverCapacity::Hosted(self.hosted()),
                Over::Refuse => OverCapacity::Refuse429 { retry_after: Duration::from_secs(1) },
                Over::Queue => OverCapacity::QueueInside,
                Over::Slow => OverCapacity::SlowDown,
            },
            prefill: ms(self.first_token_ms),
            per_token: ms(self.token_ms),
            output_tokens: self.tokens,
            ..Law::default()
        };
        law.try_new().map_err(|faults| {
            faults.into_iter().map(|f| format!("{}: {}", f.key, f.message)).collect::<Vec<_>>().join("; ")
        })
    }

    fn hosted(&self) -> Hosted {
        Hosted { tpm: self.tpm.map(f64::from), ..Hosted::new(self.rpm.unwrap_or(1).into()) }
    }

    /// Requests that the server can take per second.
    fn pace(&self) -> f64 {
        if let Some(rpm) = self.rpm {
            let tokens = f64::from(PROMPT + self.tokens);
            let by_tokens = self.tpm.map_or(f64::INFINITY, |tpm| f64::from(tpm) / tokens);
            return f64::from(rpm).min(by_tokens) / 60.0;
        }
        let seconds = (self.first_token_ms + f64::from(self.tokens) * self.token_ms) / 1000.0;
        f64::from(self.capacity) / seconds.max(0.001)
    }

    /// The server's limit in words.
    fn limit(&self) -> String {
        match (self.rpm, self.tpm) {
            (None, _) => format!("{} requests at once", self.capacity),
            (Some(rpm), None) => format!("{rpm} requests per minute"),
            (Some(rpm), Some(tpm)) => format!("{rpm} requests and {tpm} tokens per minute"),
        }
    }

    fn workload(&self) -> Result<Workload, String> {
        let limit = self.minutes.map(|m| Duration::from_secs(u64::from(m) * 60));
        match &self.trace {
            Some(path) if path.as_os_str() == "synthetic" => {
                let hour =
                    Workload::synthetic_conversation(self.seed, limit.unwrap_or(Duration::from_secs(3600)));
                let mut rows = String::from("t_s,prompt_tokens,output_tokens\n");
                for a in hour.arrivals() {
                    rows += &format!("{},{},{}\n", a.at.as_secs_f64(), a.prompt_tokens, a.output_tokens);
                }
                Workload::parse(&rows, self.speed, None).map_err(|e| e.to_string())
            }
            Some(path) => Workload::trace(path, self.speed, limit).map_err(|e| e.to_string()),
            None => {
                let pace = self.pace();
                let burst = Burst {
                    base_rps: 0.4 * pace,
                    burst_rps: 3.0 * pace,
                    from: Duration::from_secs(8),
                    length: Duration::from_secs(6),
                };
                let lengths = Lengths::fixed(PROMPT, self.tokens);
                Ok(Workload::burst(self.seed, burst, Duration::from_secs(40), lengths))
            }
        }
    }

    fn config(&self, upstream: SocketAddr) -> Result<Config, String> {
        // a demo of a few seconds cannot wait for decisions every 30 s
        // what a hosted API takes at once is not known: its budget is what the proxy has to keep to
        let capacity = if self.rpm.is_some() { 1000 } else { self.capacity };
        let (min, initial) = ((capacity / 4).max(1).to_string(), (capacity / 2).max(1).to_string());
        let capacity = capacity.to_string();
        let flags = [
            ("listen.address", "--listen", free_or(self.listen.as_deref(), "127.0.0.1:8080")),
            ("admin.address", "--admin", free_or(self.admin.as_deref(), "127.0.0.1:9900")),
            ("upstream.0.name", "demo", "simulated".into()),
            ("upstream.0.base_url", "demo", format!("http://{upstream}/v1")),
            ("scaling.policy", "--policy", self.policy.clone()),
            ("scaling.min_permits", "--capacity", min),
            ("scaling.initial_permits", "--capacity", initial),
            ("scaling.max_permits", "--capacity", capacity),
            ("scaling.cooldown", "demo", "5s".into()),
            ("scaling.warm_up", "demo", "3s".into()),
            ("queue.max_requests", "demo", "5000".into()),
            ("telemetry.access_log", "demo", "off".into()),
            ("telemetry.quantile_window", "demo", "15s".into()),
            ("telemetry.log", "demo", "warn".into()),
        ];
        let flags = flags.into_iter().map(|(key, flag, value)| Flag { key, value, flag }).collect();
        let sources = Sources { flags, ..Sources::default() };
        config::load(&sources).map(|loaded| loaded.config).map_err(|faults| faults.to_string())
    }
}

/// The address asked for; else the usual one; else any port, so that a demo runs beside whatever runs.
fn free_or(asked: Option<&str>, usual: &str) -> String {
    match asked {
        Some(address) => address.to_owned(),
        None if TcpListener::bind(usual).is_ok() => usual.to_owned(),
        None => "127.0.0.1:0".to_owned(),
    }
}

pub(super) fn demo(options: &Options) -> ExitCode {
    match try_demo(options) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("tidegate demo: {message}");
            ExitCode::FAILURE
        }
    }
}

fn try_demo(options: &Options) -> Result<ExitCode, String> {
    let law = options.law()?;
    let workload = if options.load { Some(options.workload()?) } else { None };
    let (llm, upstream) = simulated(law, options.seed).map_err(|e| format!("the simulated server: {e}"))?;
    let config = options.config(upstream)?;
    init_logging(&config.telemetry, false);
    let running = Running::start(&config).map_err(|e| e.to_string())?;
    signals::drain_on_signal(running.stop()).map_err(|e| e.to_string())?;
    if !options.json {
        introduce(options, &running, upstream);
    }
    let code = match workload {
        None => ExitCode::SUCCESS,
        Some(workload) => {
            let outcome = drive(options, &workload, &running)?;
            running.stop().drain();
            outcome.tell(options, &llm.stats())
        }
    };
    running.join();
    Ok(code)
}

fn introduce(options: &Options, running: &Running, upstream: SocketAddr) {
    let (address, admin) = (running.address(), running.admin());
    println!("tidegate listens on http://{address}/v1 and queues for a simulated model server");
    println!("({upstream}: {}, {:.1} per second).\n", options.limit(), options.pace());
    println!("  curl -N http://{address}/v1/chat/completions -H 'content-type: application/json' \\");
    println!(
        "    -d '{{\"model\":\"tide-1\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'\n"
    );
    println!("  metrics: http://{admin}/metrics   health: http://{admin}/readyz");
    if options.load {
        println!();
    } else {
        println!("  a burst: tidegate demo --load   end: Ctrl-C");
    }
}

/// Starts the simulated server on a thread and a port of its own.
fn simulated(law: Law, seed: u64) -> std::io::Result<(SimulatedLlm, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let llm = SimulatedLlm::new(law, seed, Clock::start());
    let serving = llm.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("simulated-llm".into()).spawn(move || {
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            serving.listen(listener, std::future::pending()).await
        });
        if let Err(error) = served {
            tracing::error!(%error, "the simulated server stopped");
        }
    })?;
    Ok((llm, address))
}

/// What a load came to, and how the proxy stood meanwhile.
struct Outcome {
    report: LoadReport,
    seen: Seen,
}

/// How the proxy stood, by its own metrics, second by second.
#[derive(Default)]
struct Seen {
    in_flight_end: Option<f64>,
    queue_peak: f64,
    permits: Option<(f64, f64)>,
}

fn drive(options: &Options, workload: &Workload, running: &Running) -> Result<Outcome, String> {
    let load = Load {
        base_url: format!("http://{}/v1", running.address()),
        streamed: 0.5,
        timeout: Duration::from_secs(180),
        seed: options.seed,
        ..Load::default()
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let admin = running.admin();
    let (clock, stop, progress) = (Clock::start(), running.stop(), Progress::default());
    let mut seen = Seen::default();
    runtime
        .block_on(async {
            let (finished, mut finish) = oneshot::channel();
            let loading = async {
                let report = load.run(workload, clock, &progress).await;
                let _ = finished.send(());
                report.map_err(|e| e.to_string())
            };
            let watching = async {
                let mut seconds = tokio::time::interval(Duration::from_secs(1));
                let mut last = false;
                while !last {
                    tokio::select! {
                        _ = seconds.tick() => {}
                        _ = &mut finish => last = true,
                    }
                    let page = tokio::task::spawn_blocking(move || health::ask(admin, "/metrics")).await;
                    let Ok(Ok((200, page))) = page else { continue };
                    let now = Snapshot::parse(&page);
                    seen.in_flight_end = now.in_flight;
                    seen.queue_peak = seen.queue_peak.max(now.queue.unwrap_or(0.0));
                    if let Some(permits) = now.permits {
                        let (low, high) = seen.permits.unwrap_or((permits, permits));
                        seen.permits = Some((low.min(permits), high.max(permits)));
                    }
                    if !options.json {
                        let elapsed = clock.now().since(MonoTime::ZERO);
                        println!("{}", now.line(elapsed, progress.ok(), progress.refused_429()));
                    }
                }
            };
            tokio::select! {
                (report, ()) = async { tokio::join!(loading, watching) } => Ok(report?),
                () = stop.asked() => Err("stopped before the load was over".to_owned()),
            }
        })
        .map(|report| Outcome { report, seen })
}

impl Outcome {
    fn tell(&self, options: &Options, upstream: &Stats) -> ExitCode {
        let report = &self.report;
        let leaked = self.seen.in_flight_end.is_none_or(|n| n != 0.0);
        let (low, high) = self.seen.permits.unwrap_or_default();
        if options.json {
            let json = json!({
                "load": report.to_json(),
                "proxy": {
                    "in_flight_end": self.seen.in_flight_end, "queue_peak": self.seen.queue_peak,
                    "permits_min": low, "permits_max": high,
                },
                "upstream": {
                    "peak_in_flight": upstream.peak_in_flight, "in_flight_end": upstream.in_flight,
                    "served": upstream.served, "refused_429": upstream.refused_429,
                },
            });
            println!("{json}");
        } else {
            println!("\n{report}");
            println!(
                "upstream: at most {} at once ({}), {} refused with 429",
                upstream.peak_in_flight,
                options.limit(),
                upstream.refused_429
            );
            println!(
                "proxy: permits {low:.0} to {high:.0}, queue up to {:.0}, in flight at the end {:.0}",
                self.seen.queue_peak,
                self.seen.in_flight_end.unwrap_or(f64::NAN)
            );
        }
        if report.lost_total() > 0 || leaked { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
