//! The event loop on virtual time: one run of a policy over a workload and an upstream.
//!
//! It does to the engine what `proxy::gate` and `app::keep_time` do live: a request arrives, its head comes, it
//! ends or its client leaves, a timer fires, a second passes, a decision is due. What happens at the same
//! nanosecond happens in this order: the upstream's signs, clients that leave, the engine's timer, the second, new tries,
//! arrivals. Called by `tidegate simulate`, its suite and the tests that hold it to the live stack.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::policy::admission;
use crate::policy::engine::{self, Arrival, Effect, Engine, Event, Kind};
use crate::policy::predict::Decision;
use crate::policy::units::{MonoTime, Outcome, Priority, TenantId, Ticket, Tokens};
use crate::simulate::client::{Clients, Measure, Retry, Slo};
use crate::simulate::figures::{Figures, Level};
use crate::simulate::outcome::Run;
use crate::simulate::policy::{Pilot, Policy, Sample, View};
use crate::simulate::request::Request;
use crate::simulate::upstream::{Id, Model, Sign, Upstream};

/// Everything of a simulation but the policy.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// The workload, by time of arrival; at most 2³² requests.
    pub requests: &'a [Request],
    /// The upstream.
    pub model: &'a Model,
    /// How clients behave.
    pub clients: Clients,
    /// What counts as a good answer.
    pub slo: Slo,
    /// The gate's queue.
    pub queue: admission::Params,
    /// What the table is about.
    pub measure: Measure,
    /// Hour of the day at the beginning.
    pub hour: u8,
    /// Moves every draw of the upstream.
    pub seed: u64,
    /// Time between two points of the series, at least a second.
    pub step: Duration,
}

impl<'a> Setup<'a> {
    /// The reference clients and SLO on the whole of a workload.
    #[must_use]
    pub fn new(requests: &'a [Request], model: &'a Model, seed: u64) -> Self {
        let end = requests.last().map_or(MonoTime::ZERO, |last| MonoTime::from_secs(last.at.as_secs() + 1));
        let step = Duration::from_secs((end.as_secs() / 600).max(1));
        let slo = match model {
            _ if !model.streams() => Slo::default(),
            Model::Hosted(_) => Slo::hosted(),
            _ => Slo::llm(),
        };
        Self {
            requests,
            model,
            clients: Clients::default(),
            slo,
            queue: admission::Params::default(),
            measure: Measure::all(end),
            hour: 0,
            seed,
            step,
        }
    }
}

/// Runs `policy`. `progress` hears, once a simulated second, how many requests have arrived.
pub fn run(setup: &Setup<'_>, policy: &Policy, progress: &mut dyn FnMut(usize)) -> Run {
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
    level: Level,
    effects: Vec<Effect>,
    signs: Vec<Sign>,
}

const SECOND: Duration = Duration::from_secs(1);

impl<'a> Play<'a> {
    fn new(
        setup: &'a Setup<'a>,
        policy: &'a Policy,
        mut pilot: Pilot,
        upstream: Box<dyn Upstream>,
        watch: &'a mut dyn FnMut(MonoTime, &Effect),
    ) -> Self {
        let supply = upstream.supply();
        pilot.begin(supply);
        let params = engine::Params {
            admission: setup.queue.clone(),
            scaling: pilot.params(),
            ..engine::Params::default()
        };
        let engine = Engine::new(params, MonoTime::ZERO);
        let limit = engine.status().limit;
        let (ready, paid) = upstream.replicas();
        Self {
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
            supply,
            level: Level { limit, need: limit, ready, paid, ..Level::default() },
            effects: Vec::new(),
            signs: Vec::new(),
        }
    }

    fn run(mut self, progress: &mut dyn FnMut(usize)) -> Run {
        let requests = self.setup.requests;
        loop {
            let sign = self.upstream.next().unwrap_or(MonoTime::MAX);
            let leave = self.next_to_leave();
            let timer = self.timer.unwrap_or(MonoTime::MAX);
            let again = self.again.peek().map_or(MonoTime::MAX, |Reverse((at, _))| *at);
            let arrival = requests.get(self.arrived).map_or(MonoTime::MAX, |r| r.at);
            let now = sign.min(leave).min(timer).min(self.second).min(again).min(arrival);
            let over = self.open == 0 && self.arrived == requests.len();
            if over && now >= self.figures.until() {
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
                progress(self.arrived);
            } else if again == now {
                self.retry(now);
            } else {
                let id = self.arrived as Id;
                self.arrived += 1;
                self.open += 1;
                self.figures.arrived(&requests[id as usize]);
                if let Some(patience) = self.setup.clients.patience {
                    self.leaving.push_back((now + patience, id));
                }
                self.arrive(now, id);
            }
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
        let ticket = Ticket(self.owners.len() as u64);
        self.owners.push(id);
        let state = &mut self.states[id as usize];
        (state.phase, state.ticket) = (Phase::Waits, ticket.0);
        let arrival = Arrival {
            kind: Kind::Queued,
            tenant: TenantId(0),
            priority: Priority::Normal,
            cost: Tokens(u64::from(request.prompt) + u64::from(request.output)),
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
                Effect::Decided(decision) => self.level.need = decision.need,
                Effect::Breaker(_) => {}
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

    fn signs(&mut self, now: MonoTime) {
        let mut signs = std::mem::take(&mut self.signs);
        self.upstream.advance(now, &mut signs);
        for sign in signs.drain(..) {
            match sign {
                Sign::FirstToken(id) => self.head(now, id, true),
                Sign::Done(id) => self.done(now, id),
                Sign::Refused { id, retry_after } => self.turned_away(now, id, retry_after),
                Sign::Failed { id, outcome, answered } => self.failed(now, id, outcome, answered),
            }
        }
        self.signs = signs;
        self.supply(now);
    }

    fn head(&mut self, now: MonoTime, id: Id, alive: bool) {
        let state = &mut self.states[id as usize];
        (state.has_head, state.first) = (true, now);
        let ticket = Ticket(state.ticket);
        self.event(now, Event::FirstByte { ticket, alive });
    }

    fn done(&mut self, now: MonoTime, id: Id) {
        if !self.states[id as usize].has_head {
            self.head(now, id, true);
        }
        let state = &mut self.states[id as usize];
        state.phase = Phase::Over;
        let (first, admitted) = (state.first, state.admitted);
        self.open -= 1;
        self.figures.served(&self.setup.requests[id as usize], first, now);
        self.finish(now, id, Outcome::Success);
        self.learn(now, now.since(admitted), false);
    }

    fn finish(&mut self, now: MonoTime, id: Id, outcome: Outcome) {
        self.level.in_flight -= 1;
        let ticket = Ticket(self.states[id as usize].ticket);
        self.event(now, Event::Finish(ticket, outcome));
    }

    fn learn(&mut self, now: MonoTime, latency: Duration, refused: bool) {
        if !self.learns {
            return;
        }
        let sample = Sample { latency, in_flight: self.level.in_flight + 1, refused };
        if let Some(decision) = self.pilot.sample(now, sample, &self.engine) {
            self.install(now, decision);
        }
    }

    fn install(&mut self, now: MonoTime, decision: Decision) {
        self.event(now, Event::Install(decision));
        self.level.limit = self.engine.status().limit;
    }

    /// 429.
    fn turned_away(&mut self, now: MonoTime, id: Id, retry_after: Option<Duration>) {
        let tries = usize::from(self.states[id as usize].tries);
        let wait = self.setup.clients.backoff.get(tries).copied();
        let retry = if wait.is_some() { self.policy.retry } else { Retry::Never };
        let told = retry != Retry::Hold;
        self.figures.refused(&self.setup.requests[id as usize], true, told);
        self.states[id as usize].tries += 1;
        let at = now + wait.unwrap_or_default();
        match retry {
            Retry::Hold => {
                self.states[id as usize].phase = Phase::Holds;
                self.again.push(Reverse((at, id)));
            }
            Retry::Return => {
                self.states[id as usize].phase = Phase::Away;
                // the header counts whole seconds
                let after = retry_after
                    .map_or(Duration::ZERO, |d| Duration::from_secs(d.as_secs_f64().ceil() as u64));
                self.again.push(Reverse((at.max(now + after), id)));
            }
            Retry::Never => self.lost(id),
        }
        if told {
            let ticket = Ticket(self.states[id as usize].ticket);
            self.event(now, Event::FirstByte { ticket, alive: true });
            self.finish(now, id, Outcome::Refused);
        }
        self.learn(now, Duration::ZERO, true);
    }

    fn failed(&mut self, now: MonoTime, id: Id, outcome: Outcome, answered: bool) {
        let ticket = Ticket(self.states[id as usize].ticket);
        if answered {
            self.event(now, Event::FirstByte { ticket, alive: false });
            self.event(now, Event::AttemptEnd(ticket, outcome));
        }
        self.lost(id);
        self.finish(now, id, outcome);
    }

    /// A client's patience is over.
    fn leave(&mut self, now: MonoTime) {
        let Some((_, id)) = self.leaving.pop_front() else { return };
        let State { phase, ticket, .. } = self.states[id as usize];
        self.lost(id);
        match phase {
            Phase::Waits => {
                self.level.queued -= 1;
                self.event(now, Event::Cancel(Ticket(ticket)));
            }
            Phase::Runs | Phase::Holds => {
                if phase == Phase::Runs {
                    self.upstream.cancel(now, id);
                }
                self.finish(now, id, Outcome::Ignore);
                self.supply(now);
            }
            Phase::Away | Phase::Over => {}
        }
    }

    /// A wait between two tries is over.
    fn retry(&mut self, now: MonoTime) {
        let Some(Reverse((_, id))) = self.again.pop() else { return };
        match self.states[id as usize].phase {
            Phase::Holds => {
                self.states[id as usize].phase = Phase::Runs;
                self.attempt(now, id);
            }
            Phase::Away => self.arrive(now, id),
            _ => {}
        }
    }

    fn second(&mut self, now: MonoTime) {
        self.second = now + SECOND;
        self.event(now, Event::Tick);
        let hour = (u64::from(self.setup.hour) + now.as_secs() / 3600) % 24;
        let view = View { now, hour: hour as u8, engine: &self.engine, ready: self.level.ready };
        let orders = self.pilot.second(&view);
        if let Some(decision) = orders.install {
            self.install(now, decision);
        }
        self.upstream.prepare(now, orders.wanted);
        self.supply(now);
        self.level.limit = self.engine.status().limit;
        self.figures.second(now, self.level, || None);
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
            if let Some(decision) = self.pilot.supply(now, supply.unwrap_or_default(), &self.engine) {
                self.install(now, decision);
            }
        }
    }
}
