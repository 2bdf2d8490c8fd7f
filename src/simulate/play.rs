//! The event loop on virtual time: one run of a policy over a workload and an upstream.
//!
//! It does to the engine what `proxy::gate` and `app::keep_time` do live: a request arrives, its head comes, it
//! ends or its client leaves, a timer fires, a second passes, a decision is due. What happens at the same
//! nanosecond happens in this order: the upstream's signs, clients that leave, the engine's timer, the second, new tries,
//! arrivals. Called by `tidegate simulate`, its suite and the tests that hold it to the live stack.

mod life;
mod supply;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::policy::engine::{self, Arrival, Effect, Engine, Event, Kind};
use crate::policy::predict::Wall;
use crate::policy::units::{ModelId, MonoTime, Priority, TenantId, Ticket};
use crate::policy::usage::Estimate;
use crate::simulate::estimate::Estimates;
use crate::simulate::figures::{Figures, Level};
use crate::simulate::outcome::Run;
use crate::simulate::policy::{Kind as Rule, Order, Pilot, Policy, View};
use crate::simulate::setup::Setup;
use crate::simulate::upstream::{Id, Sign, Upstream};

/// Runs `policy`. `progress` hears, once a simulated second, how many of them have passed.
pub fn run(setup: &Setup<'_>, policy: &Policy, progress: &mut dyn FnMut(u64)) -> Run {
    let pilot = Pilot::new(policy, setup.model, setup.requests, setup.seed);
    let upstream = setup.model.build(setup.seed, Some(pilot.first()));
    Play::new(setup, policy, pilot, upstream, &mut |_, _| {}).run(progress)
}

/// The same with an upstream of one's own, watched: `watch` hears of every effect of the engine.
pub fn watch(
    setup: &Setup<'_>,
    policy: &Policy,
    upstream: Box<dyn Upstream>,
    watch: &mut dyn FnMut(MonoTime, &Effect),
) -> Run {
    let pilot = Pilot::new(policy, setup.model, setup.requests, setup.seed);
    Play::new(setup, policy, pilot, upstream, watch).run(&mut |_| {})
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Not arrived, or waits in the gate.
    #[default]
    Waits,
    /// At the upstream.
    Runs,
    /// Between two tries, with its permit.
    Holds,
    /// Between two tries, without one.
    Away,
    Over,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    phase: Phase,
    tries: u8,
    has_head: bool,
    ticket: u64,
    estimated: Estimate,
    admitted: MonoTime,
    first: MonoTime,
}

struct Play<'a> {
    setup: &'a Setup<'a>,
    policy: &'a Policy,
    pilot: Pilot,
    engine: Engine,
    upstream: Box<dyn Upstream>,
    watch: &'a mut dyn FnMut(MonoTime, &Effect),
    figures: Figures,
    streams: bool,
    learns: bool,
    states: Vec<State>,
    /// Whose each ticket is.
    owners: Vec<Id>,
    arrived: usize,
    /// Requests that arrived and are not over.
    open: usize,
    timer: Option<MonoTime>,
    second: MonoTime,
    leaving: VecDeque<(MonoTime, Id)>,
    again: BinaryHeap<Reverse<(MonoTime, Id)>>,
    supply: Option<u32>,
    estimates: Estimates,
    pacing: supply::Pacing,
    /// Whose other try the engine just declined.
    given_up: Option<Ticket>,
    level: Level,
    effects: Vec<Effect>,
    signs: Vec<Sign>,
}

const SECOND: Duration = Duration::from_secs(1);

impl<'a> Play<'a> {
    fn new(
        setup: &'a Setup<'a>,
        policy: &'a Policy,
        pilot: Pilot,
        upstream: Box<dyn Upstream>,
        watch: &'a mut dyn FnMut(MonoTime, &Effect),
    ) -> Self {
        let params = engine::Params {
            admission: setup.queue.clone(),
            scaling: pilot.params(),
            supply: supply::params(setup, policy),
        };
        let engine = Engine::new(params, MonoTime::ZERO);
        let limit = engine.status().limit;
        let (ready, paid) = upstream.replicas();
        let mut play = Self {
            setup,
            policy,
            learns: pilot.samples(),
            pilot,
            engine,
            upstream,
            watch,
            figures: Figures::new(setup.measure.clone(), setup.slo, setup.step),
            streams: setup.model.streams(),
            states: vec![State::default(); setup.requests.len()],
            owners: Vec::with_capacity(setup.requests.len()),
            arrived: 0,
            open: 0,
            timer: None,
            second: MonoTime::ZERO + SECOND,
            leaving: VecDeque::new(),
            again: BinaryHeap::new(),
            supply: None,
            estimates: Estimates::new(setup.seed),
            pacing: supply::Pacing::new(policy.kind == Rule::Paced),
            given_up: None,
            level: Level { limit, need: limit, ready, paid, ..Level::default() },
            effects: Vec::new(),
            signs: Vec::new(),
        };
        play.supply = play.upstream.supply();
        if let Some(order) = play.pilot.supply(play.supply) {
            play.obey(MonoTime::ZERO, order);
        }
        play
    }

    fn run(mut self, progress: &mut dyn FnMut(u64)) -> Run {
        let requests = self.setup.requests;
        loop {
            let sign = self.upstream.next().unwrap_or(MonoTime::MAX);
            let leave = self.next_to_leave();
            let timer = self.timer.unwrap_or(MonoTime::MAX);
            let again = self.again.peek().map_or(MonoTime::MAX, |Reverse((at, _))| *at);
            let arrival = requests.get(self.arrived).map_or(MonoTime::MAX, |r| r.at);
            let passes = self.pacing.next();
            let now = sign.min(leave).min(timer).min(self.second).min(again).min(arrival).min(passes);
            let over = self.open == 0 && self.arrived == requests.len();
            if over && now > self.figures.until() {
                break;
            }
            self.figures.pass(now, self.level);
            if sign == now {
                self.signs(now);
            } else if leave == now {
                self.leave(now);
            } else if timer == now {
                self.timer = None;
                self.event(now, Event::Tick);
            } else if self.second == now {
                self.second(now);
                progress(now.as_secs());
            } else if again == now {
                self.retry(now);
            } else if arrival == now {
                let id = self.arrived as Id;
                self.arrived += 1;
                self.open += 1;
                self.figures.arrived(&requests[id as usize]);
                if let Some(patience) = self.setup.clients.patience {
                    self.leaving.push_back((now + patience, id));
                }
                self.arrive(now, id);
            }
            self.pace(now);
        }
        self.figures.pass(self.setup.measure.to.max(MonoTime::ZERO), self.level);
        let (summary, series) = self.figures.close();
        Run { policy: self.policy.name.clone(), summary, series }
    }

    /// Those who have their first token, or are over, do not leave any more.
    fn next_to_leave(&mut self) -> MonoTime {
        while let Some((at, id)) = self.leaving.front() {
            let s = &self.states[*id as usize];
            if s.phase != Phase::Over && !s.has_head {
                return *at;
            }
            self.leaving.pop_front();
        }
        MonoTime::MAX
    }

    fn arrive(&mut self, now: MonoTime, id: Id) {
        let request = &self.setup.requests[id as usize];
        let estimated = self.estimates.of(id, request);
        let ticket = Ticket(self.owners.len() as u64);
        self.owners.push(id);
        let state = &mut self.states[id as usize];
        (state.phase, state.ticket, state.estimated) = (Phase::Waits, ticket.0, estimated);
        let arrival = Arrival {
            kind: Kind::Queued,
            tenant: TenantId(0),
            priority: Priority::Normal,
            model: ModelId::default(),
            cost: estimated.cost(),
            prompt: estimated.prompt,
            bytes: 0,
            head_by: self.setup.clients.announce.map(|within| request.at + within),
            stream: self.streams,
        };
        self.level.queued += 1;
        self.event(now, Event::Arrive(ticket, arrival));
    }

    fn event(&mut self, now: MonoTime, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        self.engine.on(now, event, &mut effects);
        for effect in effects.drain(..) {
            (self.watch)(now, &effect);
            match effect {
                Effect::Admit { ticket, limit, .. } => {
                    self.level.limit = limit;
                    self.admitted(now, ticket);
                }
                Effect::Reject { ticket, .. } => self.refused(ticket),
                Effect::SetTimer(at) => self.timer = Some(at),
                Effect::Resized { to, .. } => self.level.limit = to,
                Effect::Requeued { ticket, .. } => self.requeued(ticket),
                Effect::GivenUp(ticket) => self.given_up = Some(ticket),
                Effect::Decided(_) | Effect::Supply(_) => {}
            }
        }
        self.effects = effects;
    }

    fn owner(&self, ticket: Ticket) -> Id {
        usize::try_from(ticket.0).ok().and_then(|n| self.owners.get(n)).copied().unwrap_or_default()
    }

    fn admitted(&mut self, now: MonoTime, ticket: Ticket) {
        let id = self.owner(ticket);
        let state = &mut self.states[id as usize];
        (state.phase, state.admitted) = (Phase::Runs, now);
        self.level.queued -= 1;
        self.level.in_flight += 1;
        self.attempt(now, id);
    }

    fn attempt(&mut self, now: MonoTime, id: Id) {
        if self.holds_back(now, id) {
            return;
        }
        let request = &self.setup.requests[id as usize];
        if self.upstream.begin(now, id, request) {
            self.figures.cold(request);
        }
    }

    /// The gate's refusal is the last word.
    fn refused(&mut self, ticket: Ticket) {
        let id = self.owner(ticket);
        self.level.queued -= 1;
        self.figures.refused(&self.setup.requests[id as usize], false, true);
        self.lost(id);
    }

    fn lost(&mut self, id: Id) {
        self.states[id as usize].phase = Phase::Over;
        self.open -= 1;
        self.figures.lost(&self.setup.requests[id as usize]);
    }

    fn obey(&mut self, now: MonoTime, order: Order) {
        self.event(now, order.event());
        self.level.limit = self.engine.status().limit;
        self.level.need = self.pilot.need();
    }

    fn second(&mut self, now: MonoTime) {
        self.second = now + SECOND;
        self.event(now, Event::Tick);
        let unix = self.setup.unix.saturating_add_unsigned(now.as_secs());
        let wall = Wall { unix, hour: (unix.rem_euclid(86_400) / 3600) as u8 };
        let view = View { now, wall, engine: &self.engine, ready: self.level.ready };
        let (order, wanted) = self.pilot.second(&view);
        if let Some(order) = order {
            self.obey(now, order);
        }
        self.upstream.prepare(now, wanted);
        self.supply(now);
        let (pilot, figures) = (&self.pilot, &mut self.figures);
        figures.second(now, self.level, || pilot.said());
    }

    /// What the upstream takes may have changed.
    fn supply(&mut self, now: MonoTime) {
        let supply = self.upstream.supply();
        if supply.is_none() {
            return;
        }
        (self.level.ready, self.level.paid) = self.upstream.replicas();
        if supply != self.supply {
            self.supply = supply;
            if let Some(order) = self.pilot.supply(supply) {
                self.obey(now, order);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{policy, upstream, workload};

    fn played(workload: &str, model: &str, policy: &str) -> Run {
        let (workload, model) = (workload::parse(workload, 1).unwrap(), upstream::parse(model).unwrap());
        let setup = Setup::new(&workload, &model, 1);
        run(&setup, &policy::parse(policy).unwrap(), &mut |_| {})
    }

    #[test]
    fn nobody_is_forgotten_whatever_the_upstream_and_the_policy() {
        let policies = "fixed:3,reactive,article,predictive,aimd,gradient,static:2,hpa,rate,oracle,fixed:9+hold,fixed+never,fixed:9+learned,predictive+return,paced";
        for model in [
            "constant:900ms",
            "lognormal:500ms,cv=1",
            "llm",
            "hosted:rpm=90,tpm=90000",
            "hosted:hidden=3,headers=off",
            "batch:slots=4",
            "replicas:start=20s,slots=4",
            "slots:start=10s,mean=900ms",
            "handshake:1s-2s,idle=3s",
        ] {
            for policy in policies.split(',') {
                let Run { summary: s, series, .. } =
                    played("step:base=1,high=6,at=60s,lasts=60s,for=200s", model, policy);
                assert!(s.requests > 250 && s.served + s.lost == s.requests, "{model} {policy}: {s:?}");
                assert!((0.0..=100.0).contains(&s.in_slo) && s.p50 <= s.p95 && s.p95 <= s.p99, "{s:?}");
                let told: f64 = series.iter().map(|p| p.arrivals / 60.0).sum();
                assert!(
                    (told - s.requests as f64).abs() < 1e-6 && series.len() == 200,
                    "{model} {policy}: {told}"
                );
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        for (model, policy) in
            [("replicas:start=20s", "hpa"), ("hosted", "aimd"), ("handshake", "predictive")]
        {
            let one = || serde_json::to_string(&played("bursty:for=300s", model, policy)).unwrap();
            assert_eq!(one(), one());
        }
    }

    #[test]
    fn a_single_permit_is_a_queue_with_one_server() {
        // M/D/1 at half load: mean wait = ρ / (2 (1 − ρ)) services = 0.5; the median of all is little more than one
        let s = played("poisson:rps=5,for=4000s", "constant:100ms", "fixed:1").summary;
        assert!((s.mean_in_flight - 0.5).abs() < 0.02, "{s:?}");
        assert!((0.1..0.13).contains(&s.p50) && (0.35..0.5).contains(&s.p99), "{s:?}");
        assert!((s.mean_permits - 1.0).abs() < 1e-9 && s.lost == 0, "{s:?}");
    }

    #[test]
    fn impatient_clients_leave_the_queue_and_the_upstream() {
        let s = played("poisson:rps=5,for=300s", "llm:20ms,prefill=20", "fixed:100").summary;
        // half of the prompts take longer than 30 s to their first token
        assert!(s.lost > s.requests / 2 && s.served > 0 && s.ttft_p99 <= 30.0, "{s:?}");
    }

    #[test]
    fn the_oracle_s_headroom_moves_slots_too() {
        let of = |policy| {
            let s =
                played("step:base=2,high=8,at=60s,lasts=60s,for=200s", "slots:start=10s,mean=900ms", policy);
            s.summary
        };
        let (less, exact, more) = (of("oracle:0.5"), of("oracle"), of("oracle:3"));
        assert!(less.mean_replicas < 0.7 * exact.mean_replicas && less.p99 > exact.p99, "{less:?} {exact:?}");
        assert!(more.mean_replicas > 2.0 * exact.mean_replicas, "{exact:?} {more:?}");
    }
}
