//! What a scenario file may say. Times are seconds; an unknown key is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use tidegate::config::{self, Config};
use tidegate::demo::load::Leave;
use tidegate::demo::workload::Lengths;
use tidegate::demo::{Faults, Law, Load, OverCapacity, Slow, Window, Workload};

use crate::live::Traffic;

/// One file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// What is shown; printed when it fails.
    pub(crate) about: String,
    /// Moves every draw of chance at once.
    pub(crate) seed: u64,
    /// Hour of the day, which the article's rule asks for.
    #[serde(default = "evening")]
    pub(crate) hour: u8,
    /// How long the proxy is watched after the last answer.
    #[serde(default = "one_second")]
    pub(crate) after: Seconds,
    /// When the proxy is told to stop, if it is.
    pub(crate) drain_at: Option<Seconds>,
    upstream: Server,
    #[serde(default)]
    proxy: toml::Table,
    clients: BTreeMap<String, Client>,
    /// Judged by `judge.rs`.
    pub(crate) expect: toml::Table,
}

/// A time or a moment, in seconds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seconds(pub(crate) Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map(Self).map_err(serde::de::Error::custom)
    }
}

/// The law of the simulated upstream.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Server {
    capacity: usize,
    beyond: Beyond,
    prefill: Seconds,
    per_token: Seconds,
    #[serde(default)]
    prefill_per_1k_tokens: Seconds,
    #[serde(default)]
    jitter: f64,
    #[serde(default)]
    down: Vec<(Seconds, Seconds)>,
    #[serde(default)]
    error_500: Vec<(Seconds, Seconds)>,
    #[serde(default)]
    slow: Vec<Slowness>,
    #[serde(default)]
    reset_every: u64,
    #[serde(default)]
    cut_every: u64,
    #[serde(default)]
    stall_every: u64,
}

/// What the upstream does with more than it can take.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Beyond {
    Refuse,
    Queue,
    SlowDown,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slowness {
    from: Seconds,
    to: Seconds,
    factor: f64,
}

/// A group of clients that share a key: a tenant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Client {
    arrivals: Vec<Stretch>,
    prompt_tokens: u32,
    output_tokens: u32,
    streamed: f64,
    #[serde(default = "two_minutes")]
    timeout: Seconds,
    leave: Option<Leaving>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

/// Poisson arrivals of one rate; stretches that overlap add up.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stretch {
    from: Seconds,
    to: Seconds,
    rps: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Leaving {
    share: f64,
    after: Seconds,
}

fn evening() -> u8 {
    20
}

fn one_second() -> Seconds {
    Seconds(Duration::from_secs(1))
}

fn two_minutes() -> Seconds {
    Seconds(Duration::from_secs(120))
}

impl Scenario {
    pub(crate) fn parse(text: &str) -> Self {
        toml::from_str(text).unwrap_or_else(|e| panic!("{e}"))
    }

    pub(crate) fn law(&self) -> Law {
        let s = &self.upstream;
        let windows =
            |spans: &[(Seconds, Seconds)]| spans.iter().map(|w| Window::new(w.0.0, w.1.0)).collect();
        let slow = |s: &Slowness| Slow { window: Window::new(s.from.0, s.to.0), factor: s.factor };
        let law = Law {
            capacity: s.capacity,
            over_capacity: match s.beyond {
                Beyond::Refuse => OverCapacity::Refuse429 { retry_after: Duration::from_secs(1) },
                Beyond::Queue => OverCapacity::QueueInside,
                Beyond::SlowDown => OverCapacity::SlowDown,
            },
            prefill: s.prefill.0,
            prefill_per_1k_tokens: s.prefill_per_1k_tokens.0,
            per_token: s.per_token.0,
            jitter: s.jitter,
            faults: Faults {
                down: windows(&s.down),
                error_500: windows(&s.error_500),
                slow: s.slow.iter().map(slow).collect(),
                reset_every: s.reset_every,
                cut_every: s.cut_every,
                stall_every: s.stall_every,
            },
            ..Law::default()
        };
        law.try_new().unwrap_or_else(|faults| panic!("[upstream]: {faults:?}"))
    }

    pub(crate) fn config(&self) -> Config {
        config(&self.proxy)
    }

    pub(crate) fn traffic(&self) -> Vec<Traffic> {
        let mut all = Vec::new();
        for (tenant, (name, client)) in self.clients.iter().enumerate() {
            for (index, stretch) in client.arrivals.iter().enumerate() {
                let seed = self.seed + 1000 * (tenant as u64 + 1) + index as u64;
                let lengths = Lengths::fixed(client.prompt_tokens, client.output_tokens);
                assert!(stretch.from.0 < stretch.to.0, "{name}: arrivals must end after they begin");
                all.push(Traffic {
                    client: name.clone(),
                    from: stretch.from.0,
                    workload: Workload::steady(seed, stretch.rps, stretch.to.0 - stretch.from.0, lengths),
                    load: Load {
                        base_url: "http://tidegate/v1".into(),
                        api_key: Some(name.clone()),
                        streamed: client.streamed,
                        timeout: client.timeout.0,
                        leave: client.leave.as_ref().map(|l| Leave { share: l.share, after: l.after.0 }),
                        seed,
                        ..Load::default()
                    },
                    headers: client.headers.clone(),
                });
            }
        }
        all
    }
}

/// The settings of `[proxy]`, read by the reader that reads an operator's file.
pub(crate) fn config(table: &toml::Table) -> Config {
    let mut table = table.clone();
    let upstream =
        table.entry("upstream").or_insert_with(|| toml::Value::Array(vec![toml::Table::new().into()]));
    if let Some(toml::Value::Table(one)) = upstream.as_array_mut().and_then(|all| all.first_mut()) {
        one.insert("base_url".into(), "http://upstream/v1".into());
    }
    table.insert("telemetry".into(), toml::Table::from_iter([("access_log".into(), "off".into())]).into());
    let text = toml::to_string(&table).expect("a table is TOML");
    let no_file = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
    let loaded = config::parse(&text, "[proxy]", &BTreeMap::new(), &[], &no_file);
    loaded.unwrap_or_else(|faults| panic!("{faults}")).config
}
