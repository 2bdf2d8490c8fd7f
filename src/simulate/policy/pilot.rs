//! A policy at work: the event loop tells it of seconds, answers and supply, it says what to install and to prepare.
//!
//! A live rule on an upstream without replicas drives the engine exactly as the live proxy does: the engine has the
//! rule's own settings, and [`predict::plan`] is asked every [`predict::interval`]. Everything else (the
//! baselines, and any rule whose permits are bounded by replicas that come and go) uses an engine that does
//! what it is told, and tells it `min(what the rule wants, what the upstream takes)`.

use std::time::Duration;

use crate::policy::engine::Engine;
use crate::policy::predict::{self, Decision, Direction, PolicyKind, Reason};
use crate::policy::units::MonoTime;
use crate::simulate::policy::aimd::Aimd;
use crate::simulate::policy::autoscale::{Autoscaler, Seen};
use crate::simulate::policy::gradient::Gradient;
use crate::simulate::policy::oracle::Oracle;
use crate::simulate::policy::{Kind, Policy};
use crate::simulate::request::Request;
use crate::simulate::upstream::{Id, Model, ReplicaShape, Wanted};

/// An answer, or the upstream's refusal.
#[derive(Clone, Copy, Debug)]
pub(in crate::simulate) struct Sample {
    pub(in crate::simulate) latency: Duration,
    /// Requests under way when it came, itself included.
    pub(in crate::simulate) in_flight: u32,
    pub(in crate::simulate) refused: bool,
}

/// What a policy may look at when a second has passed.
pub(in crate::simulate) struct View<'a> {
    pub(in crate::simulate) now: MonoTime,
    pub(in crate::simulate) hour: u8,
    pub(in crate::simulate) engine: &'a Engine,
    /// Replicas that serve.
    pub(in crate::simulate) ready: u32,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(in crate::simulate) struct Orders {
    pub(in crate::simulate) install: Option<Decision>,
    pub(in crate::simulate) wanted: Wanted,
}

#[derive(Debug)]
enum Rule {
    Live { params: Box<predict::Params>, every: u64 },
    Aimd(Aimd),
    Gradient(Gradient),
    Static(u32),
    Scaled(Autoscaler),
    Oracle(Oracle),
}

/// Permits where nothing says how many would be right.
const PLENTY: u32 = 1000;
/// The most the settings allow.
const MOST: u32 = 100_000;

#[derive(Debug)]
pub(in crate::simulate) struct Pilot {
    rule: Rule,
    headroom: f64,
    shape: Option<ReplicaShape>,
    connections: bool,
    /// Permits that the rule wants, whatever the upstream takes.
    permits: u32,
    replicas: u32,
    supply: Option<u32>,
    changed: Option<MonoTime>,
    passed: u64,
}

impl Pilot {
    pub(in crate::simulate) fn new(policy: &Policy, model: &Model, requests: &[Request], seed: u64) -> Self {
        let shape = model.replica();
        let each = || requests.iter().enumerate().map(|(n, r)| (r.at, model.nominal(seed, n as Id, r)));
        let many = if shape.is_some() { MOST } else { PLENTY };
        let (rule, permits) = match &policy.kind {
            Kind::Live(p) => {
                let first = if p.policy == PolicyKind::Fixed { p.max_permits } else { p.initial_permits };
                let every = predict::interval(p).as_secs().max(1);
                (Rule::Live { params: Box::new(p.clone()), every }, first)
            }
            Kind::Aimd => {
                let aimd = Aimd::new(PLENTY);
                let first = aimd.limit();
                (Rule::Aimd(aimd), first)
            }
            Kind::Gradient => {
                let gradient = Gradient::new();
                let first = gradient.limit();
                (Rule::Gradient(gradient), first)
            }
            Kind::Static(n) => (Rule::Static(*n), many),
            Kind::Hpa => (Rule::Scaled(Autoscaler::Hpa { panic_until: 0 }), many),
            Kind::Rate { hold } => {
                let work =
                    each().map(|(_, took)| took.as_secs_f64()).sum::<f64>() / requests.len().max(1) as f64;
                let hold = usize::try_from(hold.as_secs()).unwrap_or(usize::MAX);
                (Rule::Scaled(Autoscaler::Rate { work, hold, asked: [].into() }), many)
            }
            Kind::Oracle => {
                let oracle = Oracle::new(each().map(|(at, took)| (at, at + took)));
                (Rule::Oracle(oracle), model.knee().unwrap_or(many))
            }
        };
        let connections = model.idle_timeout().is_some();
        let headroom = policy.headroom;
        let mut pilot = Self {
            rule,
            headroom,
            shape,
            connections,
            permits,
            replicas: 1,
            supply: None,
            changed: None,
            passed: 0,
        };
        pilot.replicas = pilot.first();
        pilot
    }

    /// Replicas that it wants at the beginning.
    pub(in crate::simulate) fn first(&self) -> u32 {
        let Some(shape) = self.shape else { return 0 };
        match &self.rule {
            Rule::Static(n) => *n,
            Rule::Scaled(_) => shape.first.unwrap_or(1),
            Rule::Oracle(oracle) => self.foreseen(oracle, shape, 0),
            _ => self.permits.div_ceil(shape.per),
        }
    }

    /// The rule moves the engine's permits itself, as it does live.
    fn direct(&self) -> bool {
        matches!(self.rule, Rule::Live { .. }) && self.shape.is_none()
    }

    /// The engine's scaling settings.
    pub(in crate::simulate) fn params(&self) -> predict::Params {
        match &self.rule {
            Rule::Live { params, .. } if self.shape.is_none() => (**params).clone(),
            _ => predict::Params {
                policy: PolicyKind::Reactive,
                min_permits: 1,
                initial_permits: self.limit(),
                max_permits: MOST,
                ..predict::Params::default()
            },
        }
    }

    fn limit(&self) -> u32 {
        self.permits.min(self.supply.unwrap_or(MOST)).max(1)
    }

    /// What the upstream takes has changed.
    pub(in crate::simulate) fn supply(
        &mut self,
        now: MonoTime,
        supply: u32,
        engine: &Engine,
    ) -> Option<Decision> {
        self.supply = Some(supply);
        self.told(now, engine, Reason::Stable)
    }

    /// The upstream takes so much at the beginning.
    pub(in crate::simulate) fn begin(&mut self, supply: Option<u32>) {
        self.supply = supply;
    }

    /// An answer came.
    pub(in crate::simulate) fn sample(
        &mut self,
        now: MonoTime,
        s: Sample,
        engine: &Engine,
    ) -> Option<Decision> {
        self.permits = match &mut self.rule {
            Rule::Aimd(aimd) => {
                aimd.sample(s);
                aimd.limit()
            }
            Rule::Gradient(gradient) => {
                gradient.sample(s);
                gradient.limit()
            }
            _ => return None,
        };
        self.told(now, engine, Reason::Stable)
    }

    /// It learns from each answer.
    pub(in crate::simulate) fn samples(&self) -> bool {
        matches!(self.rule, Rule::Aimd(_) | Rule::Gradient(_))
    }

    /// A second has passed.
    pub(in crate::simulate) fn second(&mut self, v: &View<'_>) -> Orders {
        self.passed += 1;
        let install = self.scale(v);
        let second = v.now.as_secs();
        let mut wanted = Wanted::default();
        if let Some(shape) = self.shape {
            self.replicas = match &mut self.rule {
                Rule::Static(n) => *n,
                Rule::Scaled(scaler) => {
                    let history = v.engine.history();
                    let queued = v.engine.status().queued.iter().sum();
                    scaler.want(Seen {
                        second,
                        history: &history,
                        queued,
                        ready: v.ready,
                        wanted: self.replicas,
                        full_speed: f64::from(shape.full_speed),
                        headroom: self.headroom,
                    })
                }
                Rule::Oracle(_) => 0,
                _ => self.permits.div_ceil(shape.per),
            };
            if let Rule::Oracle(oracle) = &self.rule {
                self.replicas = self.foreseen(oracle, shape, second);
            }
            wanted.replicas = Some(self.replicas.max(1));
        }
        if self.connections
            && let Rule::Oracle(oracle) = &self.rule
        {
            wanted.connections = Some(oracle.peak(second, Duration::from_secs(3)));
        }
        Orders { install, wanted }
    }

    fn foreseen(&self, oracle: &Oracle, shape: ReplicaShape, second: u64) -> u32 {
        let ahead = shape.start + Duration::from_secs(2);
        let replicas = if shape.full_speed == 1 {
            f64::from(oracle.peak(second, ahead))
        } else {
            let a = oracle.mean(second, ahead);
            self.headroom * (a + a.sqrt()) / f64::from(shape.full_speed)
        };
        (replicas.ceil() as u32).max(1)
    }

    /// The live rule's decision, where it is due.
    fn scale(&mut self, v: &View<'_>) -> Option<Decision> {
        let direct = self.direct();
        let Rule::Live { params, every } = &self.rule else { return None };
        if !self.passed.is_multiple_of(*every) {
            return None;
        }
        let history = v.engine.history();
        let mut snapshot = v.engine.snapshot(v.now, v.hour, &history);
        if direct {
            return Some(predict::plan(params, &snapshot));
        }
        // its own permits, not those that the replicas allow
        snapshot.limit = self.permits;
        snapshot.since_change = self.changed.map(|at| v.now.since(at));
        let mut decision = predict::plan(params, &snapshot);
        if decision.applied && decision.to != self.permits {
            self.permits = decision.to;
            self.changed = Some(v.now);
        }
        decision.to = self.limit();
        Some(decision)
    }

    /// A decision that brings the engine's limit to what is wanted and taken, if it is not there.
    fn told(&self, now: MonoTime, engine: &Engine, reason: Reason) -> Option<Decision> {
        let (from, to) = (engine.status().limit, self.limit());
        (from != to).then(|| Decision {
            at: now,
            direction: if to > from { Direction::Up } else { Direction::Down },
            reason,
            from,
            to,
            need: self.permits,
            requests_per_minute: 0.0,
            confidence: 1.0,
            queued: 0,
            utilisation: 0.0,
            applied: true,
            since_change: Duration::ZERO,
        })
    }
}
