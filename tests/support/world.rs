//! An engine, and beside it the plainest possible account of what it was told and what it said.
//!
//! After every event the account is held against the engine's own numbers and against the promises of its
//! documentation; the first difference is a failed assertion. One alarm clock stands for the timer: each
//! `SetTimer` sets it anew, and a tick comes when it rings.

use std::collections::BTreeMap;

use tidegate::policy::engine::{Arrival, Effect, Engine, Event, Kind, Params, RetryCause};
use tidegate::policy::predict::{self, Decision, Direction, PolicyKind, Reason};
use tidegate::policy::supply::{self, BreakerState, Verdict};
use tidegate::policy::units::{
    ModelId, MonoTime, Outcome, Place, Priority, Refusal, TenantId, Ticket, Tokens,
};

use super::breaker::{PlainBreaker, Turn};
use super::steps::Step;

#[derive(Clone, Copy, Debug)]
struct Waiter {
    ticket: Ticket,
    arrival: Arrival,
    deadline: MonoTime,
    /// When its backoff is over at the latest, for one that was admitted before.
    back: Option<MonoTime>,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    kind: Kind,
    arrival: Arrival,
    deadline: MonoTime,
    tries: usize,
    generation: u32,
    decided: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    arrived: usize,
    admitted: usize,
    rejected: usize,
    cancelled: usize,
}

/// The engine under test and the account of it.
pub(crate) struct World {
    params: Params,
    engine: Engine,
    now: MonoTime,
    limit: u32,
    in_flight: u32,
    draining: bool,
    /// The learned limit before the last event that told of one, and after it.
    supplied: (Option<u32>, Option<u32>),
    /// What work conservation brought, and until when.
    held: (u32, MonoTime),
    /// When a plan came last, and what the last one that was acted on wanted.
    planned: (MonoTime, u32),
    /// In order of arrival.
    waiting: Vec<Waiter>,
    flights: BTreeMap<Ticket, Flight>,
    breaker: PlainBreaker,
    alarm: Option<MonoTime>,
    /// Tries of those that came back.
    tries: BTreeMap<Ticket, usize>,
    counts: Counts,
    log: Vec<(MonoTime, Event, Vec<Effect>)>,
}

/// What one event still has to bring.
struct Expected {
    arriving: Option<(Ticket, Arrival)>,
    transition: Option<Turn>,
    /// The breaker turned half-open for the admission that comes next.
    probe: Option<Turn>,
    decision: Option<Decision>,
    /// Who asks for another try.
    again: Option<Ticket>,
    timers: usize,
}

/// Runs `steps`, lets everything come to its end, and tells the whole story a second time.
pub(crate) fn run(params: Params, steps: &[Step]) {
    let mut world = World::new(params);
    for step in steps {
        world.step(step);
    }
    world.settle();
    world.replay();
}

impl World {
    pub(crate) fn new(params: Params) -> Self {
        let now = MonoTime::from_secs(1000);
        let engine = Engine::new(params.clone(), now);
        let initial = engine.status().limit;
        Self {
            limit: initial,
            breaker: PlainBreaker::new(params.supply.breaker.clone()),
            engine,
            params,
            now,
            in_flight: 0,
            draining: false,
            supplied: (None, None),
            held: (0, now),
            planned: (now, initial),
            waiting: Vec::new(),
            flights: BTreeMap::new(),
            alarm: None,
            tries: BTreeMap::new(),
            counts: Counts::default(),
            log: Vec::new(),
        }
    }

    pub(crate) fn step(&mut self, step: &Step) {
        let running =
            |pick: u8| self.flights.keys().nth(usize::from(pick) % self.flights.len().max(1)).copied();
        match *step {
            Step::Arrive { kind, tenant, priority, cost, bytes, patience, stream } => {
                let arrival = Arrival {
                    kind,
                    tenant: TenantId(tenant.into()),
                    priority,
                    model: ModelId::default(),
                    cost: Tokens(cost),
                    prompt: Tokens(0),
                    bytes,
                    head_by: patience.map(|patience| self.now + patience),
                    stream,
                };
                self.send(Event::Arrive(Ticket(self.counts.arrived as u64), arrival));
            }
            Step::Cancel(pick) => {
                let ticket =
                    self.waiting.get(usize::from(pick) % self.waiting.len().max(1)).map(|w| w.ticket);
                // one that does not wait is no mistake: its client left as it was admitted
                self.send(Event::Cancel(ticket.or(running(pick)).unwrap_or(Ticket(u64::MAX))));
            }
            Step::FirstByte(pick, alive) => {
                if let Some(ticket) = running(pick) {
                    self.send(Event::FirstByte { ticket, alive });
                }
            }
            Step::AttemptEnd(pick, outcome) => {
                if let Some(ticket) = running(pick) {
                    self.send(Event::AttemptEnd(ticket, outcome));
                }
            }
            Step::Finish(pick, outcome) => {
                if let Some(ticket) = running(pick) {
                    self.send(Event::Finish(ticket, outcome, None));
                }
            }
            Step::Retry(pick, outcome, retry_after) => {
                if let Some(ticket) = running(pick) {
                    let cause = RetryCause::Status;
                    self.send(Event::Retry { ticket, outcome, cause, retry_after });
                }
            }
            Step::Wait(time) => self.wait_until(self.now + time),
            Step::Stall(time) => self.now = self.now + time,
            Step::Tick => self.send(Event::Tick),
            Step::Install { to, need, applied } => {
                self.send(Event::Install(self.decision(to, need, applied)))
            }
            Step::Supply(limit) => self.send(Event::Supply(limit)),
            Step::Drain => self.send(Event::Drain),
        }
    }

    fn decision(&self, to: u32, need: u32, applied: bool) -> Decision {
        Decision {
            at: self.now,
            direction: Direction::Hold,
            reason: Reason::Stable,
            from: self.limit,
            to,
            need,
            requests_per_minute: 0.0,
            confidence: 1.0,
            queued: self.waiting.len(),
            utilisation: 0.0,
            applied,
            since_change: std::time::Duration::ZERO,
            outlook: None,
        }
    }

    fn wait_until(&mut self, end: MonoTime) {
        // one ring may find nothing to do and one may be for the breaker; every other ends somebody's wait or backoff
        let mut rings = 3 * self.waiting.len() + 3;
        while let Some(at) = self.alarm.filter(|at| *at <= end) {
            assert!(rings > 0, "the timer rings and rings");
            rings -= 1;
            self.alarm = None;
            self.now = self.now.max(at);
            self.send(Event::Tick);
        }
        self.now = self.now.max(end);
    }

    /// Everything ends: what runs finishes, what waits gets its turn or its refusal.
    fn settle(&mut self) {
        let mut left = 5 * (self.waiting.len() + self.flights.len()) + 8;
        while !self.waiting.is_empty() || !self.flights.is_empty() {
            assert!(left > 0, "somebody waits for ever: {:?}", self.waiting);
            left -= 1;
            match self.flights.keys().next().copied() {
                Some(ticket) => self.send(Event::Finish(ticket, Outcome::Success, None)),
                None => {
                    let at = self.alarm.expect("nothing runs and something waits, so a timer is set");
                    self.wait_until(at);
                }
            }
        }
        let status = self.engine.status();
        assert_eq!((status.in_flight, status.unqueued, status.websockets), (0, 0, 0), "a permit was lost");
        assert_eq!((status.queued, status.queue_bytes), ([0; 3], 0));
    }

    /// The same events have the same effects.
    fn replay(&self) {
        let mut engine = Engine::new(self.params.clone(), MonoTime::from_secs(1000));
        for (now, event, effects) in &self.log {
            let mut again = Vec::new();
            engine.on(*now, event.clone(), &mut again);
            assert_eq!(&again, effects, "{event:?} at {now:?} had other effects before");
        }
        assert_eq!(engine.status(), self.engine.status());
    }

    fn send(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.engine.on(self.now, event.clone(), &mut effects);
        let mut expected = self.take_note(&event);
        for effect in &effects {
            self.check(effect, &event, &mut expected);
        }
        assert_eq!(expected.transition, None, "the breaker should have turned");
        assert_eq!(expected.probe, None, "half-open for nobody");
        assert_eq!(expected.decision, None, "a decision without a word");
        assert_eq!(expected.again, None, "neither another try nor none");
        if let Some((ticket, arrival)) = expected.arriving {
            assert!(arrival.kind.takes_permit(), "what takes no permit waits for none");
            let timeout = self.now + self.params.admission.timeout;
            let deadline = timeout.min(arrival.head_by.unwrap_or(MonoTime::MAX));
            self.waiting.push(Waiter { ticket, arrival, deadline, back: None });
        }
        self.log.push((self.now, event, effects));
        self.invariants();
    }

    /// What the event itself changes, before anything is said about it.
    fn take_note(&mut self, event: &Event) -> Expected {
        let mut expected = Expected {
            arriving: None,
            transition: None,
            probe: None,
            decision: None,
            again: None,
            timers: 0,
        };
        // plans that fail to come leave the static limit, also where it is the limit already
        let s = &self.params.scaling;
        let late = self.now.since(self.planned.0) > 3 * predict::interval(s);
        if s.policy != PolicyKind::Fixed && late {
            self.planned.1 = s.initial_permits;
        }
        match *event {
            Event::Arrive(ticket, arrival) => {
                self.counts.arrived += 1;
                expected.arriving = Some((ticket, arrival));
            }
            Event::Cancel(ticket) => {
                let before = self.waiting.len();
                self.waiting.retain(|w| w.ticket != ticket);
                self.counts.cancelled += before - self.waiting.len();
            }
            Event::FirstByte { ticket, alive } if alive => expected.transition = self.breaker.alive(ticket),
            Event::AttemptEnd(ticket, outcome) => expected.transition = self.ended(ticket, outcome),
            Event::Retry { ticket, outcome, .. } => {
                expected.transition = self.ended(ticket, outcome);
                expected.again = Some(ticket);
            }
            Event::Finish(ticket, outcome, _) => {
                expected.transition = self.ended(ticket, outcome);
                let flight = self.flights.remove(&ticket);
                self.in_flight -= u32::from(flight.is_some_and(|f| f.kind.takes_permit()));
            }
            Event::Install(ref decision) => expected.decision = Some(decision.clone()),
            Event::Supply(limit) => self.supplied = (self.supplied.1, limit),
            Event::Drain => self.draining = true,
            Event::FirstByte { .. } | Event::Unauthorized(_) | Event::Tick => {}
            ref other => panic!("no step sends {other:?}"),
        }
        expected
    }

    fn ended(&mut self, ticket: Ticket, outcome: Outcome) -> Option<Turn> {
        let flight = self.flights.get_mut(&ticket)?;
        if std::mem::replace(&mut flight.decided, true) {
            return None;
        }
        self.breaker.ended(self.now, ticket, flight.generation, outcome)
    }

    fn check(&mut self, effect: &Effect, event: &Event, expected: &mut Expected) {
        match effect {
            Effect::Admit { ticket, place, probe, limit, in_flight } => {
                assert_eq!(*place, Place::default(), "there is one endpoint");
                let before = self.waiting.iter().find(|w| w.ticket == *ticket).copied();
                let arrival = self.verdict_on(*ticket, expected, true);
                assert!(self.breaker.passes(self.now), "{ticket:?} passed a breaker that lets nobody pass");
                let (verdict, turned) = self.breaker.start(self.now, *ticket);
                assert_eq!(*probe, verdict == Verdict::Probe, "{ticket:?}");
                assert_eq!(expected.probe.take(), turned, "{ticket:?}");
                if arrival.kind.takes_permit() {
                    self.in_flight += 1;
                    assert!(
                        self.in_flight <= self.limit,
                        "{} in flight under {}",
                        self.in_flight,
                        self.limit
                    );
                }
                assert_eq!((*limit, *in_flight), (self.limit, self.in_flight), "as told to {ticket:?}");
                let timeout = self.now + self.params.admission.timeout;
                let deadline = timeout.min(arrival.head_by.unwrap_or(MonoTime::MAX));
                let flight = Flight {
                    kind: arrival.kind,
                    arrival,
                    deadline: before.map_or(deadline, |w| w.deadline),
                    tries: self.tries.remove(ticket).unwrap_or_default(),
                    generation: self.breaker.generation,
                    decided: false,
                };
                self.flights.insert(*ticket, flight);
                self.counts.admitted += 1;
            }
            Effect::Reject { ticket, refusal, retry_after } => {
                self.justified(*ticket, *refusal, expected);
                self.verdict_on(*ticket, expected, false);
                if *refusal == Refusal::UpstreamUnavailable {
                    assert!(retry_after.is_some_and(|wait| wait.as_secs() >= 1), "{retry_after:?}");
                }
                self.counts.rejected += 1;
            }
            Effect::GivenUp(ticket) => {
                assert_eq!(expected.again.take(), Some(*ticket));
            }
            Effect::Requeued { ticket, .. } => {
                assert_eq!(expected.again.take(), Some(*ticket));
                let flight = self.flights.remove(ticket).expect("it was running");
                assert!(matches!(flight.kind, Kind::Queued | Kind::Unqueued));
                self.in_flight -= u32::from(flight.kind.takes_permit());
                self.counts.admitted -= 1;
                let asked = match event {
                    // nothing is no time to ask for
                    Event::Retry { retry_after, .. } => retry_after.filter(|asked| !asked.is_zero()),
                    _ => None,
                };
                let longest = self.params.supply.retry.backoff[flight.tries];
                let back = Some(self.now + asked.unwrap_or(longest));
                self.tries.insert(*ticket, flight.tries + 1);
                let Flight { arrival, deadline, .. } = flight;
                self.waiting.push(Waiter { ticket: *ticket, arrival, deadline, back });
            }
            Effect::SetTimer(at) => {
                assert!(*at > self.now, "a timer at {at:?}, now is {:?}", self.now);
                expected.timers += 1;
                assert_eq!(expected.timers, 1, "one timer an event");
                self.alarm = Some(*at);
            }
            Effect::Decided(decision) => {
                let asked = expected.decision.take().expect("a decision nobody took");
                self.planned.0 = self.now;
                let status = self.engine.status();
                assert_eq!((decision.need, decision.applied), (asked.need, asked.applied));
                let to = asked.to.max(self.held()).clamp(status.min.min(status.ceiling), status.ceiling);
                assert_eq!(decision.to, to);
                if decision.applied {
                    self.planned.1 = asked.to;
                    self.limit = decision.to;
                }
            }
            Effect::Resized { from, to, reason } => {
                assert_eq!(*from, self.limit);
                self.moved(*to, *reason, event);
                self.limit = *to;
            }
            Effect::Supply(
                supply::Report::KeyRests { .. }
                | supply::Report::KeyIsBack { .. }
                | supply::Report::IsBack { .. }
                | supply::Report::GoesOn { .. }
                | supply::Report::Ejected { .. }
                | supply::Report::Limit(..)
                | supply::Report::Stopped { .. }
                | supply::Report::HiddenCap { .. }
                | supply::Report::Unrelated { .. },
            ) => panic!("one endpoint without limits: {effect:?}"),
            Effect::Supply(supply::Report::Breaker(_, transition)) => {
                let half_open = (BreakerState::Open, BreakerState::HalfOpen);
                let turned = (transition.from, transition.to);
                if expected.transition == Some(turned) {
                    expected.transition = None;
                } else {
                    assert_eq!((turned, expected.probe), (half_open, None), "after {event:?}");
                    expected.probe = Some(turned);
                }
            }
        }
    }

    fn ceiling(&self) -> u32 {
        self.ceiling_under(self.supplied.1)
    }

    fn ceiling_under(&self, learned: Option<u32>) -> u32 {
        let s = &self.params.scaling;
        let article = if s.policy == PolicyKind::Article { s.article_emergency } else { 0 };
        s.max_permits.max(article).min(learned.unwrap_or(u32::MAX).max(1))
    }

    fn held(&self) -> u32 {
        if self.now < self.held.1 { self.held.0 } else { 0 }
    }

    /// A move of the limit between two decisions has the reason it names.
    fn moved(&mut self, to: u32, reason: Reason, event: &Event) {
        let (s, ceiling) = (&self.params.scaling, self.ceiling());
        match reason {
            Reason::WorkConserving => {
                assert_eq!(s.policy, PolicyKind::Predictive);
                assert!(self.limit <= self.in_flight && self.in_flight < ceiling);
                let spare = f64::from(self.in_flight).sqrt().ceil() as u32;
                assert_eq!(to, ceiling.min(self.in_flight + 1 + spare));
                self.held = (to, self.now + predict::STABLE_WINDOW);
            }
            Reason::Supply => {
                assert!(matches!(event, Event::Supply(_)), "{event:?}");
                let least = if s.policy == PolicyKind::Fixed { s.max_permits } else { s.min_permits };
                assert_eq!(to, self.planned.1.max(self.held()).max(least).min(ceiling));
            }
            Reason::Stale => {
                assert!(self.now.since(self.planned.0) > 3 * predict::interval(s), "{event:?}");
                // the engine falls back before it hears what else has happened
                let told = matches!(event, Event::Supply(_));
                let ceiling = if told { self.ceiling_under(self.supplied.0) } else { ceiling };
                assert_eq!(to, s.initial_permits.min(ceiling));
            }
            other => panic!("the limit moved for {other:?}"),
        }
    }

    /// Takes note of the one verdict there is on `ticket`.
    fn verdict_on(&mut self, ticket: Ticket, expected: &mut Expected, admitted: bool) -> Arrival {
        let line = |a: &Arrival| (a.priority, a.tenant);
        if expected.arriving.is_some_and(|(arriving, _)| arriving == ticket)
            && let Some((_, arrival)) = expected.arriving.take()
        {
            let overtaken = self
                .waiting
                .iter()
                .find(|w| line(&w.arrival) == line(&arrival) && w.back.is_none_or(|at| at <= self.now));
            let waits = arrival.kind.takes_permit();
            assert!(
                !(admitted && waits) || overtaken.is_none(),
                "{ticket:?} went past {overtaken:?} of its own line"
            );
            assert!(!(admitted && self.draining), "{ticket:?} came after the drain began");
            return arrival;
        }
        let at = self.waiting.iter().position(|w| w.ticket == ticket);
        let at = at.unwrap_or_else(|| panic!("a verdict on {ticket:?}, which does not wait"));
        let waiter = self.waiting.remove(at);
        let new = |w: &&Waiter| w.back.is_none() && waiter.back.is_none();
        let overtaken =
            self.waiting[..at].iter().filter(new).find(|w| line(&w.arrival) == line(&waiter.arrival));
        assert!(!admitted || overtaken.is_none(), "{ticket:?} went past {overtaken:?} of its own line");
        waiter.arrival
    }

    /// A refusal has the reason it names.
    fn justified(&self, ticket: Ticket, refusal: Refusal, expected: &Expected) {
        let limits = &self.params.admission;
        let arriving = expected.arriving.filter(|(t, _)| *t == ticket).map(|(_, arrival)| arrival);
        let waiter = self.waiting.iter().find(|w| w.ticket == ticket);
        let (Some(arrival), deadline) = (arriving.or(waiter.map(|w| w.arrival)), waiter.map(|w| w.deadline))
        else {
            panic!("{ticket:?} is refused and not there")
        };
        let open = |kind| self.flights.values().filter(|f| f.kind == kind).count();
        let right = match refusal {
            Refusal::QueueFull => {
                arriving.is_some()
                    && (self.waiting.len() >= limits.max_requests
                        || self.bytes() + arrival.bytes > limits.max_bytes)
            }
            Refusal::QueueTimeout => deadline.is_some_and(|at| at <= self.now),
            Refusal::DeadlineUnreachable => {
                arrival.kind.takes_permit() || waiter.is_some_and(|w| w.back.is_some())
            }
            Refusal::UpstreamUnavailable => self.breaker.state() != BreakerState::Closed,
            Refusal::Draining => self.draining,
            Refusal::Overloaded => match arrival.kind {
                Kind::Unqueued | Kind::Upload => {
                    open(Kind::Unqueued) + open(Kind::Upload) >= limits.max_unqueued
                }
                Kind::WebSocket => open(Kind::WebSocket) >= limits.max_websockets,
                Kind::Queued => false,
            },
        };
        assert!(right, "{ticket:?} was refused with {refusal:?}, {arrival:?}");
    }

    fn bytes(&self) -> u64 {
        self.waiting.iter().map(|w| w.arrival.bytes).sum()
    }

    fn invariants(&self) {
        let (status, limits, c) = (self.engine.status(), &self.params.admission, self.counts);
        let open = |kind| self.flights.values().filter(|f| f.kind == kind).count();
        assert_eq!(c.arrived, c.admitted + c.rejected + c.cancelled + self.waiting.len(), "{c:?}");
        assert_eq!((status.limit, status.in_flight), (self.limit, self.in_flight));
        let unqueued = open(Kind::Unqueued) + open(Kind::Upload);
        assert_eq!((status.unqueued, status.websockets), (unqueued, open(Kind::WebSocket)));
        let queued = Priority::ALL.map(|p| self.waiting.iter().filter(|w| w.arrival.priority == p).count());
        assert_eq!((status.queued, status.queue_bytes), (queued, self.bytes()));
        assert_eq!((status.breaker, status.draining), (self.breaker.state(), self.draining));

        assert_eq!(status.ceiling, self.ceiling());
        assert!(self.limit <= status.ceiling && self.limit >= status.min.min(status.ceiling), "{status:?}");
        assert!(status.websockets <= limits.max_websockets && status.unqueued <= limits.max_unqueued);
        // those that came back were counted when they came
        let new = || self.waiting.iter().filter(|w| w.back.is_none());
        assert!(new().count() <= limits.max_requests);
        assert!(new().map(|w| w.arrival.bytes).sum::<u64>() <= limits.max_bytes);

        let Some(first) = self.waiting.iter().map(|w| w.deadline).min() else { return };
        assert!(first > self.now, "a deadline has passed and somebody still waits");
        let alarm = self.alarm.expect("something waits, so a timer is set");
        assert!(alarm <= first, "the timer comes at {alarm:?}, after the deadline {first:?}");
        let free = self.limit > self.in_flight;
        if self.waiting.iter().all(|w| w.back.is_some_and(|at| at > self.now)) {
            return;
        }
        let conserving = self.params.scaling.policy == PolicyKind::Predictive;
        if conserving && self.breaker.passes(self.now) {
            assert!(self.in_flight >= self.ceiling(), "{:?} wait below the ceiling", self.waiting);
        }
        assert!(!(free && self.breaker.passes(self.now)), "a permit is free and {:?} wait", self.waiting);
        if free && let Verdict::OpenUntil(until) = self.breaker.verdict(self.now) {
            assert!(alarm <= until, "nobody will try the upstream at {until:?}");
        }
        if self.draining {
            assert_eq!(limits.on_drain, tidegate::policy::admission::OnDrain::Finish);
        }
    }
}
