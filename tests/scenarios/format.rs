//! What a scenario file may say. Times are seconds; an unknown key is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use tidegate::config::{self, Config};
use tidegate::demo::load::Leave;
use tidegate::demo::workload::Lengths;
use tidegate::demo::{
    Errors, Faults, Hosted, Law, Lie, Load, OverCapacity, Slo, Slow, Tell, Window, Workload,
};

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
    /// What is in time; to the first byte and between two tokens.
    #[serde(default)]
    slo: Patience,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patience {
    ttft: Seconds,
    itl: Seconds,
}

impl Default for Patience {
    fn default() -> Self {
        let Slo { ttft, itl } = Slo::default();
        Self { ttft: Seconds(ttft), itl: Seconds(itl) }
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
    /// Wanted by `beyond = "hosted"`.
    hosted: Option<Budget>,
    #[serde(default)]
    down: Vec<(Seconds, Seconds)>,
    #[serde(default)]
    error_500: Vec<(Seconds, Seconds)>,
    #[serde(default)]
    errors: Vec<Erring>,
    #[serde(default)]
    slow: Vec<Slowness>,
    #[serde(default)]
    reset_every: u64,
    #[serde(default)]
    cut_every: u64,
    #[serde(default)]
    stall_every: u64,
    #[serde(default)]
    mute_every: u64,
    #[serde(default)]
    error_body_every: u64,
    #[serde(default)]
    reset_connection_every: u64,
    #[serde(default)]
    half_head_connection_every: u64,
    #[serde(default)]
    interim_connection_every: u64,
    #[serde(default)]
    one_shot: bool,
    lie: Option<Lying>,
    #[serde(default)]
    dead_keys: Vec<String>,
}

/// What the upstream does with more than it can take.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Beyond {
    Refuse,
    Queue,
    SlowDown,
    Knee,
    Hosted,
}

/// What a hosted API sells.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    rpm: f64,
    burst: f64,
    tpm: Option<f64>,
    #[serde(default)]
    other: f64,
    #[serde(default = "all_headers")]
    tell: Telling,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Telling {
    All,
    RetryAfter,
    Nothing,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Lying {
    Negative,
    Huge,
    NotNumbers,
    Half,
    Past,
    Exhausted,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Erring {
    from: Seconds,
    to: Seconds,
    status: u16,
    retry_after: Option<Seconds>,
    #[serde(default = "one")]
    every: u64,
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
    /// The mean.
    prompt_tokens: u32,
    /// Of the logarithm.
    #[serde(default)]
    prompt_sigma: f64,
    output_tokens: u32,
    #[serde(default)]
    output_sigma: f64,
    streamed: f64,
    /// Until the first byte of the body.
    patience: Option<Seconds>,
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

fn all_headers() -> Telling {
    Telling::All
}

fn one() -> u64 {
    1
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
                Beyond::Knee => OverCapacity::Knee,
                Beyond::Hosted => OverCapacity::Hosted(s.hosted.expect("[upstream.hosted]").law()),
            },
            prefill: s.prefill.0,
            prefill_per_1k_tokens: s.prefill_per_1k_tokens.0,
            per_token: s.per_token.0,
            jitter: s.jitter,
            faults: Faults {
                down: windows(&s.down),
                errors: s.errors(),
                slow: s.slow.iter().map(slow).collect(),
                reset_every: s.reset_every,
                cut_every: s.cut_every,
                stall_every: s.stall_every,
                mute_every: s.mute_every,
                error_body_every: s.error_body_every,
                reset_connection_every: s.reset_connection_every,
                half_head_connection_every: s.half_head_connection_every,
                interim_connection_every: s.interim_connection_every,
                one_shot: s.one_shot,
                lie: s.lie.map(Lying::lie),
                dead_keys: s.dead_keys.clone(),
            },
            ..Law::default()
        };
        law.try_new().unwrap_or_else(|faults| panic!("[upstream]: {faults:?}"))
    }

    pub(crate) fn slo(&self) -> Slo {
        Slo { ttft: self.slo.ttft.0, itl: self.slo.itl.0 }
    }

    pub(crate) fn config(&self) -> Config {
        config(&self.proxy)
    }

    pub(crate) fn traffic(&self) -> Vec<Traffic> {
        let mut all = Vec::new();
        for (tenant, (name, client)) in self.clients.iter().enumerate() {
            for (index, stretch) in client.arrivals.iter().enumerate() {
                let seed = self.seed + 1000 * (tenant as u64 + 1) + index as u64;
                let lengths = Lengths::lognormal(
                    (client.prompt_tokens.into(), client.prompt_sigma),
                    (client.output_tokens.into(), client.output_sigma),
                );
                assert!(stretch.from.0 < stretch.to.0, "{name}: arrivals must end after they begin");
                all.push(Traffic {
                    client: name.clone(),
                    from: stretch.from.0,
                    workload: Workload::steady(seed, stretch.rps, stretch.to.0 - stretch.from.0, lengths),
                    load: Load {
                        base_url: "http://tidegate/v1".into(),
                        api_key: Some(name.clone()),
                        streamed: client.streamed,
                        first_byte: client.patience.map(|p| p.0),
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

impl Server {
    fn errors(&self) -> Vec<Errors> {
        let plain = self.error_500.iter().map(|w| Errors::all(500, Window::new(w.0.0, w.1.0)));
        let told = self.errors.iter().map(|e| Errors {
            window: Window::new(e.from.0, e.to.0),
            status: e.status,
            retry_after: e.retry_after.map(|s| s.0),
            every: e.every,
        });
        plain.chain(told).collect()
    }
}

impl Budget {
    fn law(self) -> Hosted {
        let tell = match self.tell {
            Telling::All => Tell::All,
            Telling::RetryAfter => Tell::RetryAfter,
            Telling::Nothing => Tell::Nothing,
        };
        let Self { rpm, burst, tpm, other, .. } = self;
        Hosted { burst, tpm, other, tell, ..Hosted::new(rpm) }
    }
}

impl Lying {
    fn lie(self) -> Lie {
        match self {
            Self::Negative => Lie::Negative,
            Self::Huge => Lie::Huge,
            Self::NotNumbers => Lie::NotNumbers,
            Self::Half => Lie::Half,
            Self::Past => Lie::Past,
            Self::Exhausted => Lie::Exhausted,
        }
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
