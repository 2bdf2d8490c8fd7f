//! The same requests through the live stack on a paused clock and through `simulate`: the engine must say the same, in the
//! same order, at the same nanosecond. That is what licenses trusting a simulation.
//!
//! Live is everything from the client's connection to the simulated model behind the pool, over memory instead of
//! sockets. Compared is every effect: who is admitted and who refused, when, why and with what advice, each
//! timer, each decision with all that it was made from, each change of the limit and of the breaker.
//!
//! All times are whole milliseconds, the grain of a paused clock, and arrivals keep off the milliseconds in which
//! anything else can happen: what comes first within one is not defined live.

#![expect(clippy::panic, clippy::expect_used, reason = "a helper that fails is a test that fails")]

#[allow(dead_code, reason = "the scenarios use more of it")]
#[path = "scenarios/format.rs"]
mod format;
#[allow(dead_code, reason = "the scenarios use more of it")]
#[path = "scenarios/live.rs"]
mod live;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use tidegate::config::Config;
use tidegate::demo::{self, Errors, Faults, Law, Load, OverCapacity, Window};
use tidegate::policy::engine::Effect;
use tidegate::policy::predict::{PolicyKind, Reason};
use tidegate::policy::supply::{BreakerState, Report};
use tidegate::policy::units::{MonoTime, Outcome, Refusal};
use tidegate::simulate::policy::{Kind, Policy};
use tidegate::simulate::upstream::{Id, Model, Sign, Time, Upstream};
use tidegate::simulate::{self, Clients, Measure, Request, Retry, Setup, Slo, Workload};

const PREFILL: u64 = 101;
const TOKEN: u64 = 10;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What is played.
struct Case {
    /// Arrival in ms, tokens of the answer.
    requests: Vec<(u64, u32)>,
    /// The proxy's settings.
    config: &'static str,
    streamed: bool,
    /// After which a client leaves.
    patience: Duration,
    /// When the upstream answers 500, ms.
    fails: Option<(u64, u64)>,
}

impl Case {
    fn new(config: &'static str, requests: Vec<(u64, u32)>) -> Self {
        Self { requests, config, streamed: false, patience: Duration::from_secs(600), fails: None }
    }

    fn config(&self) -> Config {
        format::config(&toml::from_str(self.config).expect("TOML"))
    }

    /// How long the simulation goes on: whole seconds, past the last answer.
    fn length(&self) -> Duration {
        let last = self.requests.last().expect("a request").0;
        Duration::from_secs(last / 1000 + 70)
    }

    async fn live(&self) -> Vec<(MonoTime, Effect)> {
        let first = self.requests[0].0;
        let mut text = "t_s,prompt_tokens,output_tokens\n".to_owned();
        for (at, tokens) in &self.requests {
            writeln!(text, "{:.3},10,{tokens}", (at - first) as f64 / 1000.0).expect("a string grows");
        }
        let fails = |(from, to)| Errors::all(500, Window::new(ms(from), ms(to)));
        let law = Law {
            capacity: 10_000,
            over_capacity: OverCapacity::QueueInside,
            prefill: ms(PREFILL),
            prefill_per_1k_tokens: Duration::ZERO,
            per_token: ms(TOKEN),
            output_tokens: 1,
            jitter: 0.0,
            faults: Faults { errors: self.fails.map(fails).into_iter().collect(), ..Faults::default() },
        };
        let traffic = live::Traffic {
            client: "one".into(),
            from: ms(first),
            workload: demo::Workload::parse(&text, 1.0, None).expect("a trace"),
            load: Load {
                base_url: "http://tidegate/v1".into(),
                streamed: if self.streamed { 1.0 } else { 0.0 },
                timeout: self.patience,
                ..Load::default()
            },
            headers: BTreeMap::new(),
        };
        let plan = live::Plan {
            law,
            config: self.config(),
            seed: 1,
            hour: 0,
            traffic: vec![traffic],
            after: Duration::from_secs(12),
            drain_at: None,
        };
        live::run(plan).await.effects
    }

    fn simulated(&self) -> Vec<(MonoTime, Effect)> {
        let config = self.config();
        let request =
            |(at, output): &(u64, u32)| Request { at: MonoTime::ZERO + ms(*at), prompt: 10, output: *output };
        let length = self.length();
        let workload = Workload {
            name: "case".into(),
            requests: self.requests.iter().map(request).collect(),
            length,
            learn: Duration::ZERO,
            measured: Vec::new(),
        };
        // only whether it streams is asked of it: the upstream is below
        let model =
            if self.streamed { Time::Tokens { token: 1.0, prefill: 1.0 } } else { Time::Constant(ms(1)) };
        let model = Model::Service(model);
        let setup = Setup {
            clients: Clients { patience: Some(self.patience), ..Clients::default() },
            queue: config.queue.clone(),
            breaker: config.breaker.clone(),
            slo: Slo::default(),
            measure: Measure::all(MonoTime::ZERO + length),
            // the demo's answers say how many tokens they have
            tokens: true,
            ..Setup::new(&workload, &model, 1)
        };
        // where the operator gave the number, or the article did, nothing is learned live either
        let learned = matches!(config.scaling.policy, PolicyKind::Predictive | PolicyKind::Reactive);
        let policy = Policy {
            name: "live".into(),
            kind: Kind::Live(config.scaling),
            headroom: 1.0,
            retry: Retry::Never,
            learned,
        };
        let mut effects = Vec::new();
        let upstream = Lawful { streamed: self.streamed, fails: self.fails, ..Lawful::default() };
        simulate::watch(&setup, &policy, Box::new(upstream), &mut |now, effect| {
            effects.push((now, effect.clone()))
        });
        effects
    }

    /// Both, compared; what they agree on.
    async fn agreed(self) -> Vec<(MonoTime, Effect)> {
        let (live, simulated) = (self.live().await, self.simulated());
        // both are watched for longer than that, by which time every case is over
        let end =
            MonoTime::ZERO + self.requests.last().map_or(Duration::ZERO, |(at, _)| ms(*at)) + ms(10_000);
        let until = |all: Vec<(MonoTime, Effect)>| all.into_iter().filter(move |(at, _)| *at < end);
        let (live, simulated): (Vec<_>, Vec<_>) = (until(live).collect(), until(simulated).collect());
        for (n, pair) in live.iter().zip(&simulated).enumerate() {
            if pair.0 != pair.1 {
                let before = &live[n.saturating_sub(3)..n];
                panic!("effect {n}\n  live      {:?}\n  simulated {:?}\nafter {before:?}", pair.0, pair.1);
            }
        }
        let answered = |all: &[(MonoTime, Effect)]| {
            all.iter().filter(|(_, e)| matches!(e, Effect::Admit { .. } | Effect::Reject { .. })).count()
        };
        assert_eq!((live.len(), answered(&live)), (simulated.len(), answered(&simulated)));
        assert!(answered(&live) <= self.requests.len() && answered(&live) > self.requests.len() / 2);
        live
    }
}

/// The demo's law as an upstream of `simulate`.
#[derive(Default)]
struct Lawful {
    streamed: bool,
    fails: Option<(u64, u64)>,
    ahead: BTreeSet<(MonoTime, u8, Id)>,
}

impl Upstream for Lawful {
    fn begin(&mut self, now: MonoTime, id: Id, request: &Request) -> bool {
        if self
            .fails
            .is_some_and(|(from, to)| (MonoTime::ZERO + ms(from)..MonoTime::ZERO + ms(to)).contains(&now))
        {
            self.ahead.insert((now, 2, id));
            return false;
        }
        if self.streamed {
            self.ahead.insert((now + ms(PREFILL), 0, id));
        }
        self.ahead.insert((now + ms(PREFILL + TOKEN * u64::from(request.output)), 1, id));
        false
    }

    fn cancel(&mut self, _: MonoTime, id: Id) {
        self.ahead.retain(|(_, _, other)| *other != id);
    }

    fn next(&self) -> Option<MonoTime> {
        self.ahead.first().map(|(at, ..)| *at)
    }

    fn advance(&mut self, now: MonoTime, signs: &mut Vec<Sign>) {
        while let Some(&(at, kind, id)) = self.ahead.first()
            && at <= now
        {
            self.ahead.pop_first();
            signs.push(match kind {
                0 => Sign::FirstToken(id),
                1 => Sign::Done(id),
                _ => Sign::Failed { id, outcome: Outcome::Failure, answered: true },
            });
        }
    }
}

fn count(effects: &[(MonoTime, Effect)], which: impl Fn(&Effect) -> bool) -> usize {
    effects.iter().filter(|(_, e)| which(e)).count()
}

fn refused(effects: &[(MonoTime, Effect)], why: Refusal) -> usize {
    count(effects, |e| matches!(e, Effect::Reject { refusal, .. } if *refusal == why))
}

fn became(effects: &[(MonoTime, Effect)], state: BreakerState) -> usize {
    count(effects, |e| matches!(e, Effect::Supply(Report::Breaker(_, t)) if t.to == state))
}

const FIVE: &str = "[scaling]\npolicy = \"fixed\"\nmax_permits = 5";

/// Every 10 ms one, from 5 ms after the second on.
fn burst(second: u64, n: u64, tokens: impl Fn(u64) -> u32) -> impl Iterator<Item = (u64, u32)> {
    (0..n).map(move |i| (second * 1000 + 5 + 10 * i, tokens(i)))
}

#[tokio::test(start_paused = true)]
async fn a_burst_waits_and_is_served_in_its_order() {
    for streamed in [false, true] {
        let requests = burst(1, 40, |i| 20 + (i * 7 % 30) as u32).collect();
        let effects = Case { streamed, ..Case::new(FIVE, requests) }.agreed().await;
        assert_eq!(count(&effects, |e| matches!(e, Effect::Admit { .. })), 40);
    }
}

#[tokio::test(start_paused = true)]
async fn clients_leave_the_queue_and_the_upstream() {
    // 5 at once, 0.6 s each; whoever is not done after 1.5 s leaves, from its place at the upstream
    let requests: Vec<_> = burst(1, 40, |_| 50).collect();
    let cut = Case { patience: ms(1502), ..Case::new(FIVE, requests.clone()) }.agreed().await;
    let calm = Case::new(FIVE, requests).agreed().await;
    let last = |effects: &[(MonoTime, Effect)]| {
        effects.iter().filter(|(_, e)| matches!(e, Effect::Admit { .. })).map(|(at, _)| *at).max()
    };
    assert!(last(&cut) < last(&calm), "their permits go to others");
    // and from the queue, while the breaker is open: they are not admitted when it closes
    let config = "[scaling]\npolicy = \"fixed\"\nmax_permits = 50\n[breaker]\nrecovery = \"10s\"\n[retry]\nstatuses = []";
    let requests: Vec<_> = (0..40).map(|i| (1005 + 700 * i, 10)).collect();
    let case = Case { fails: Some((5000, 9000)), patience: ms(1502), ..Case::new(config, requests) };
    let admitted = count(&case.agreed().await, |e| matches!(e, Effect::Admit { .. }));
    assert!((20..35).contains(&admitted), "{admitted}");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_and_a_long_wait_ends() {
    let config =
        "[scaling]\npolicy = \"fixed\"\nmax_permits = 2\n[queue]\nmax_requests = 6\ntimeout = \"2s\"";
    let requests = burst(1, 12, |_| 90).chain(burst(20, 30, |_| 70)).collect();
    let effects = Case::new(config, requests).agreed().await;
    assert!(refused(&effects, Refusal::QueueFull) > 3, "{effects:?}");
    let late = refused(&effects, Refusal::QueueTimeout) + refused(&effects, Refusal::DeadlineUnreachable);
    assert!(late > 0, "{effects:?}");
}

#[tokio::test(start_paused = true)]
async fn a_breaker_trips_waits_and_is_closed_by_its_probe() {
    let config = "[scaling]\npolicy = \"fixed\"\nmax_permits = 50\n[breaker]\nrecovery = \"10s\"\n[queue]\ntimeout = \"8s\"\n[retry]\nstatuses = []";
    let requests = (0..60).map(|i| (1005 + 700 * i, 10)).collect();
    let effects = Case { fails: Some((5000, 17_000)), ..Case::new(config, requests) }.agreed().await;
    assert!(
        became(&effects, BreakerState::Open) >= 1 && became(&effects, BreakerState::Closed) == 1,
        "{effects:?}"
    );
    assert!(
        became(&effects, BreakerState::HalfOpen) >= 1 && refused(&effects, Refusal::UpstreamUnavailable) > 0
    );
}

/// A minute of 2 requests a second, one of 20, one of 2.
fn wave() -> Vec<(u64, u32)> {
    let slow = |from: u64| (0..120).map(move |i| (from + 500 * i + 5, 40));
    slow(1000)
        .chain((0..1200).map(|i| (61_025 + 50 * i, 40 + (i % 9) as u32 * 10)))
        .chain(slow(122_000))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn reactive_resizes() {
    let config = "[scaling]\npolicy = \"reactive\"\nmin_permits = 2\ninitial_permits = 4\nmax_permits = 40\n\
                  cooldown = \"5s\"\nwarm_up = \"3s\"";
    let effects = Case::new(config, wave()).agreed().await;
    for reason in [Reason::ScaleUp, Reason::ScaleDown] {
        assert!(count(&effects, |e| matches!(e, Effect::Decided(d) if d.reason == reason)) > 0, "{reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn predictive_resizes_and_lets_nobody_wait_below_its_ceiling() {
    let config = "[scaling]\npolicy = \"predictive\"\nmin_permits = 1\ninitial_permits = 4\nmax_permits = 12\n\
                  cooldown = \"5s\"\nwarm_up = \"3s\"";
    let effects = Case::new(config, wave()).agreed().await;
    assert!(count(&effects, |e| matches!(e, Effect::Resized { .. })) > 0);
    assert!(count(&effects, |e| matches!(e, Effect::Decided(d) if d.outlook.is_some())) > 10);
}

#[tokio::test(start_paused = true)]
async fn the_article_s_rule_looks_every_five_seconds() {
    let config = "[scaling]\npolicy = \"article\"\nmin_permits = 1\ninitial_permits = 1\nmax_permits = 100";
    let effects = Case::new(config, wave()).agreed().await;
    assert!(count(&effects, |e| matches!(e, Effect::Decided(d) if d.reason == Reason::Emergency)) > 0);
}
