//! A policy at work: the event loop tells it of seconds, answers and supply, it says what to install and to prepare.
//!
//! A live policy drives the engine exactly as the live proxy does: the engine has its settings, and the
//! [`Predictor`] is ticked each second and asked every [`predict::interval`]. The baselines use a `fixed` engine, whose
//! limit follows what they tell it as if that had been learned of the upstream. So does a live rule that knows
//! nothing of replicas, where replicas bound its permits: it goes by the permits that it asked for.

use std::time::Duration;

use crate::policy::engine::{Engine, Event};
use crate::policy::predict::{self, Decision, PolicyKind, Predictor, Ready, Wall};
use crate::policy::units::MonoTime;
use crate::simulate::figures::Said;
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
    pub(in crate::simulate) wall: Wall,
    pub(in crate::simulate) engine: &'a Engine,
    /// Replicas that serve.
    pub(in crate::simulate) ready: u32,
}

/// What the engine is to be told.
#[derive(Debug)]
pub(in crate::simulate) enum Order {
    /// The predictor's decision.
    Install(Box<Decision>),
    /// Permits from now on.
    Permits(u32),
}

impl Order {
    /// As the engine is told.
    pub(in crate::simulate) fn event(self) -> Event {
        match self {
            Self::Install(decision) => Event::Install(*decision),
            Self::Permits(limit) => Event::Supply(Some(limit)),
        }
    }
}

#[derive(Debug)]
enum Rule {
    Live {
        params: Box<predict::Params>,
        predictor: Box<Predictor>,
        every: u64,
        ready: Ready,
    },
    Aimd(Aimd),
    Gradient(Gradient),
    Static(u32),
    Scaled(Autoscaler),
    Oracle(Oracle),
    /// The event loop asks the upstream, and says how many may go.
    Paced,
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
                let mut params = p.clone();
                if let Some(shape) = shape {
                    // what an operator who scales by it would set: a start is a fact of the upstream, and so is what
                    // a replica carries, unless the settings know it otherwise
                    params.replicas.start = shape.start;
                    params.replicas.per_replica.get_or_insert(f64::from(shape.full_speed));
                }
                let predictor = Box::new(Predictor::new(params.clone()));
                (Rule::Live { params: Box::new(params), predictor, every, ready: Ready::default() }, first)
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
            Kind::Paced => (Rule::Paced, 1),
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
        let mut pilot = Self {
            rule,
            headroom: policy.headroom,
            shape,
            connections: model.idle_timeout().is_some(),
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
            _ if self.forecasts() => shape.first.unwrap_or(1),
            _ => self.permits.div_ceil(shape.per),
        }
    }

    fn forecasts(&self) -> bool {
        matches!(&self.rule, Rule::Live { params, .. } if params.policy == PolicyKind::Predictive)
    }

    /// The engine has the policy's own settings, as it has live.
    fn own(&self) -> bool {
        matches!(self.rule, Rule::Live { .. }) && (self.shape.is_none() || self.forecasts())
    }

    /// The engine's scaling settings.
    pub(in crate::simulate) fn params(&self) -> predict::Params {
        match &self.rule {
            Rule::Live { params, .. } if self.own() => (**params).clone(),
            Rule::Live { params, .. } => {
                // the rule still has to see as many arrivals as it looks at
                let article_window = params.article_window;
                predict::Params {
                    max_permits: MOST,
                    article_window,
                    ..predict::Params::of(PolicyKind::Fixed)
                }
            }
            _ => predict::Params { max_permits: MOST, ..predict::Params::of(PolicyKind::Fixed) },
        }
    }

    /// What the upstream takes, at the beginning and whenever it changes.
    pub(in crate::simulate) fn supply(&mut self, supply: Option<u32>) -> Option<Order> {
        self.supply = supply;
        if self.own() { supply.map(Order::Permits) } else { Some(self.limit()) }
    }

    fn limit(&self) -> Order {
        Order::Permits(self.permits.min(self.supply.unwrap_or(MOST)).max(1))
    }

    /// It learns from each answer.
    pub(in crate::simulate) fn samples(&self) -> bool {
        matches!(self.rule, Rule::Aimd(_) | Rule::Gradient(_))
    }

    /// An answer came.
    pub(in crate::simulate) fn sample(&mut self, s: Sample) -> Option<Order> {
        let before = self.permits;
        match &mut self.rule {
            Rule::Aimd(aimd) => {
                aimd.sample(s);
                self.permits = aimd.limit();
            }
            Rule::Gradient(gradient) => {
                gradient.sample(s);
                self.permits = gradient.limit();
            }
            _ => {}
        }
        (self.permits != before).then(|| self.limit())
    }

    /// What the predictor says of the minute to come.
    pub(in crate::simulate) fn said(&self) -> Option<Said> {
        let Rule::Live { predictor, .. } = &self.rule else { return None };
        predictor.outlook().map(|o| Said { centre: o.centre, band: (o.low, o.high) })
    }

    /// A second has passed: what the engine is to be told, and what the upstream is to make ready.
    pub(in crate::simulate) fn second(&mut self, v: &View<'_>) -> (Option<Order>, Wanted) {
        self.passed += 1;
        let order = self.scale(v);
        let second = v.now.as_secs();
        let mut wanted = Wanted::default();
        if let Some(shape) = self.shape {
            self.replicas = self.want(v, shape).max(1);
            wanted.replicas = Some(self.replicas);
        }
        if self.connections {
            wanted.connections = match &self.rule {
                Rule::Oracle(oracle) => Some(oracle.peak(second, Duration::from_secs(3))),
                Rule::Live { ready, .. } if self.forecasts() => Some(ready.connections),
                _ => None,
            };
        }
        (order, wanted)
    }

    fn want(&mut self, v: &View<'_>, shape: ReplicaShape) -> u32 {
        let second = v.now.as_secs();
        match &mut self.rule {
            Rule::Static(n) => *n,
            Rule::Scaled(scaler) => scaler.want(Seen {
                second,
                history: v.engine.history(),
                queued: v.engine.status().queued.iter().sum(),
                ready: v.ready,
                wanted: self.replicas,
                full_speed: f64::from(shape.full_speed),
                headroom: self.headroom,
            }),
            Rule::Oracle(oracle) => {
                let oracle = std::mem::take(oracle);
                let want = self.foreseen(&oracle, shape, second);
                self.rule = Rule::Oracle(oracle);
                want
            }
            Rule::Live { ready: Ready { replicas: Some(desired), .. }, .. } => desired.replicas,
            _ => self.permits.div_ceil(shape.per),
        }
    }

    fn foreseen(&self, oracle: &Oracle, shape: ReplicaShape, second: u64) -> u32 {
        let ahead = shape.start + Duration::from_secs(2);
        let replicas = if shape.full_speed == 1 {
            self.headroom * f64::from(oracle.peak(second, ahead))
        } else {
            let a = oracle.mean(second, ahead);
            self.headroom * (a + a.sqrt()) / f64::from(shape.full_speed)
        };
        (replicas.ceil() as u32).max(1)
    }

    /// The live policy's second, and its decision where it is due.
    fn scale(&mut self, v: &View<'_>) -> Option<Order> {
        let own = self.own();
        let permits = self.permits;
        let changed = self.changed;
        let Rule::Live { predictor, every, ready, .. } = &mut self.rule else { return None };
        let mut snapshot = v.engine.snapshot(v.now, v.wall, v.engine.history());
        if !own {
            // its own permits, not those that the replicas allow
            snapshot.limit = permits;
            snapshot.since_change = changed.map(|at| v.now.since(at));
        }
        *ready = predictor.tick(&snapshot);
        let decision = self.passed.is_multiple_of(*every).then(|| predictor.plan(&snapshot));
        if predictor.refit_due() {
            predictor.refit();
        }
        let decision = decision?;
        if own {
            self.permits = decision.need;
            return Some(Order::Install(Box::new(decision)));
        }
        if decision.applied && decision.to != permits {
            self.permits = decision.to;
            self.changed = Some(v.now);
        }
        Some(self.limit())
    }

    /// Permits that the last decision found necessary.
    pub(in crate::simulate) fn need(&self) -> u32 {
        self.permits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::engine::{self, Arrival};
    use crate::policy::predict::ArticleWindow;
    use crate::policy::units::{Priority, TenantId, Ticket, Tokens};
    use crate::simulate::policy::parse;
    use crate::simulate::upstream;

    fn pilot(policy: &Policy, model: &str) -> Pilot {
        Pilot::new(policy, &upstream::parse(model).unwrap(), &[], 1)
    }

    #[test]
    fn settings_of_replicas_are_kept_and_facts_of_the_upstream_taken_from_it() {
        let mut policy = parse("predictive:1.5").unwrap();
        let Kind::Live(params) = &mut policy.kind else { panic!() };
        (params.replicas.min, params.replicas.max) = (2, 9);
        let kept = pilot(&policy, "replicas:start=40s,slots=16").params().replicas;
        assert_eq!((kept.headroom, kept.min, kept.max), (1.5, 2, 9));
        assert_eq!((kept.start, kept.per_replica), (Duration::from_secs(40), Some(16.0)));
        let Kind::Live(params) = &mut policy.kind else { panic!() };
        params.replicas.per_replica = Some(12.0);
        assert_eq!(pilot(&policy, "replicas:slots=16").params().replicas.per_replica, Some(12.0));
    }

    #[test]
    fn the_article_s_rule_sees_its_arrivals_whatever_the_upstream() {
        for model in ["constant:100ms", "slots:start=30s,mean=118ms", "replicas:start=30s"] {
            let mut policy = parse("article").unwrap();
            let Kind::Live(params) = &mut policy.kind else { panic!() };
            params.article_window = ArticleWindow::Requests(120);
            let params = engine::Params {
                admission: crate::policy::admission::Params::default(),
                scaling: pilot(&policy, model).params(),
                supply: crate::policy::supply::Params::default(),
            };
            let mut engine = Engine::new(params, MonoTime::ZERO);
            for n in 0..200 {
                let arrival = Arrival {
                    kind: engine::Kind::Queued,
                    tenant: TenantId(0),
                    priority: Priority::Normal,
                    model: crate::policy::units::ModelId::default(),
                    cost: Tokens(1),
                    prompt: Tokens(0),
                    bytes: 0,
                    head_by: None,
                    stream: false,
                };
                engine.on(MonoTime::from_secs(n), Event::Arrive(Ticket(n), arrival), &mut Vec::new());
            }
            assert_eq!(engine.history().arrivals().len(), 120, "{model}");
        }
    }
}
