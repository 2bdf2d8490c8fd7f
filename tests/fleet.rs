//! Several endpoints behind one gate, whatever happens to them: each keeps its limit, every permit comes back, nobody
//! waits for ever, a broken endpoint gets one probe, and the same events have the same effects.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tidegate::policy::engine::{Arrival, Effect, Engine, Event, Kind, Lost, Params, RetryCause};
use tidegate::policy::predict::{self, PolicyKind};
use tidegate::policy::supply::pace::RateLimits;
use tidegate::policy::supply::{self, BreakerParams, ConcurrencyMode, EndpointParams, Member};
use tidegate::policy::units::{
    EndpointId, KeyId, ModelId, MonoTime, Outcome, Place, Priority, Sample, TenantId, Ticket, Tokens,
};

const OUTCOMES: [Outcome; 5] =
    [Outcome::Success, Outcome::Refused, Outcome::Overload, Outcome::Failure, Outcome::Ignore];

#[derive(Clone, Debug)]
enum Step {
    Arrive { model: u8, tenant: u8, cost: u16, unqueued: bool, patience: Option<u8> },
    Finish { pick: u8, outcome: u8, sample: bool },
    Refused { pick: u8, stop: Option<u16> },
    Retry { pick: u8, outcome: u8, cause: u8, after: Option<u16> },
    Unauthorized(u8),
    Checked(u8, bool),
    Cancel(u8),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let short = proptest::option::weighted(0.4, any::<u8>());
    let after = || proptest::option::weighted(0.4, any::<u16>());
    prop_oneof![
        30 => (0..3_u8, 0..3_u8, any::<u16>(), proptest::bool::weighted(0.1), short).prop_map(
            |(model, tenant, cost, unqueued, patience)| Step::Arrive { model, tenant, cost, unqueued, patience }
        ),
        16 => (any::<u8>(), 0..5_u8, any::<bool>())
            .prop_map(|(pick, outcome, sample)| Step::Finish { pick, outcome, sample }),
        6 => (any::<u8>(), after()).prop_map(|(pick, stop)| Step::Refused { pick, stop }),
        8 => (any::<u8>(), 0..5_u8, 0..5_u8, after())
            .prop_map(|(pick, outcome, cause, after)| Step::Retry { pick, outcome, cause, after }),
        2 => any::<u8>().prop_map(Step::Unauthorized),
        1 => (0..4_u8, any::<bool>()).prop_map(|(id, healthy)| Step::Checked(id, healthy)),
        3 => any::<u8>().prop_map(Step::Cancel),
        12 => any::<u16>().prop_map(Step::Wait),
    ]
}

fn member() -> impl Strategy<Value = Member> {
    let rate = || proptest::option::weighted(0.3, 1..2000_u64);
    (1..4_u32, 0..2_u32, 1..12_u32, rate(), rate(), 0..4_u16).prop_map(
        |(weight, tier, most, requests_per_minute, tokens_per_minute, keys)| Member {
            endpoint: EndpointParams {
                weight,
                tier,
                concurrency: ConcurrencyMode::Fixed(most),
                requests_per_minute,
                tokens_per_minute: tokens_per_minute.map(|n| n * 1000),
                ..EndpointParams::default()
            },
            keys,
            ..Member::default()
        },
    )
}

fn params() -> impl Strategy<Value = Params> {
    let policy = prop_oneof![Just(PolicyKind::Predictive), Just(PolicyKind::Fixed)];
    (vec(member(), 1..5), policy, 1..40_u32, any::<u64>()).prop_map(|(members, policy, most, seed)| {
        let scaling = predict::Params {
            min_permits: 1,
            initial_permits: most,
            max_permits: most,
            ..predict::Params::of(policy)
        };
        let breaker =
            BreakerParams { failures: 3, recovery: Duration::from_secs(5), ..BreakerParams::default() };
        let supply = supply::Params { breaker, members, seed, ..supply::Params::default() };
        Params { scaling, supply, ..Params::default() }
    })
}

#[derive(Clone, Copy)]
struct Flight {
    place: Place,
    paced: bool,
    probe: bool,
}

struct World {
    params: Params,
    engine: Engine,
    now: MonoTime,
    tickets: u64,
    waiting: Vec<Ticket>,
    paced: BTreeMap<Ticket, bool>,
    flights: BTreeMap<Ticket, Flight>,
    /// Those that came back for another try.
    returned: BTreeSet<Ticket>,
    /// There was a 429: rates have a say.
    was_refused: bool,
    alarm: Option<MonoTime>,
    log: Vec<(MonoTime, Event, Vec<Effect>)>,
}

impl World {
    fn new(params: Params) -> Self {
        let now = MonoTime::from_secs(100);
        Self {
            engine: Engine::new(params.clone(), now),
            params,
            now,
            tickets: 0,
            waiting: Vec::new(),
            paced: BTreeMap::new(),
            flights: BTreeMap::new(),
            returned: BTreeSet::new(),
            was_refused: false,
            alarm: None,
            log: Vec::new(),
        }
    }

    fn pick(&self, n: u8) -> Option<Ticket> {
        self.flights.keys().nth(usize::from(n) % self.flights.len().max(1)).copied()
    }

    fn send(&mut self, event: Event) {
        let mut effects = Vec::new();
        match &event {
            Event::Cancel(ticket) => self.waiting.retain(|t| t != ticket),
            Event::Finish(ticket, ..) => drop(self.flights.remove(ticket)),
            Event::Refused(..) => self.was_refused = true,
            _ => {}
        }
        // a probe that says nothing gives its place to the next
        if let Event::AttemptEnd(ticket, Outcome::Ignore)
        | Event::Retry { ticket, outcome: Outcome::Ignore, .. } = &event
            && let Some(f) = self.flights.get_mut(ticket)
        {
            f.probe = false;
        }
        self.engine.on(self.now, event.clone(), &mut effects);
        for effect in &effects {
            match effect {
                Effect::Admit { ticket, place, probe, .. } => {
                    self.waiting.retain(|t| t != ticket);
                    let paced = self.paced[ticket];
                    if *probe {
                        let others =
                            self.flights.values().filter(|f| f.probe && f.place.endpoint == place.endpoint);
                        assert_eq!(others.count(), 0, "a second probe at {place:?}");
                    }
                    let flight = Flight { place: *place, paced, probe: *probe };
                    assert!(self.flights.insert(*ticket, flight).is_none());
                    // a probe goes also where all hang that it takes
                    if paced && !probe {
                        self.within_limits(place.endpoint);
                    }
                }
                Effect::Reject { ticket, .. } => self.waiting.retain(|t| t != ticket),
                Effect::Requeued { ticket, .. } => {
                    assert!(self.flights.remove(ticket).is_some());
                    self.waiting.push(*ticket);
                    self.returned.insert(*ticket);
                }
                Effect::SetTimer(at) => {
                    assert!(*at > self.now);
                    self.alarm = Some(*at);
                }
                // a probe whose breaker has turned is nobody's probe any more
                Effect::Supply(supply::Report::Breaker(id, turned))
                    if turned.to != supply::BreakerState::HalfOpen =>
                {
                    for f in self.flights.values_mut().filter(|f| f.place.endpoint == *id) {
                        f.probe = false;
                    }
                }
                _ => {}
            }
        }
        self.log.push((self.now, event, effects));
        let status = self.engine.status();
        assert_eq!(status.queued.iter().sum::<usize>(), self.waiting.len());
        let paced = self.flights.values().filter(|f| f.paced).count();
        assert_eq!(status.in_flight as usize, paced);
        assert_eq!(status.endpoints.iter().map(|e| e.in_flight as usize).sum::<usize>(), paced);
        assert!(
            self.waiting.is_empty() || self.alarm.is_some(),
            "{} wait and no timer is set",
            self.waiting.len()
        );
        self.nothing_idle();
    }

    fn within_limits(&self, id: EndpointId) {
        let ConcurrencyMode::Fixed(most) = self.params.supply.members[usize::from(id.0)].endpoint.concurrency
        else {
            // what is learned falls while more are under way
            return;
        };
        let open = self.flights.values().filter(|f| f.paced && f.place.endpoint == id).count();
        assert!(open <= most as usize, "{open} at {id:?}, which takes {most}");
    }

    /// While something waits, no endpoint that could take it stands idle, as far as rates have no say.
    fn nothing_idle(&self) {
        let members = &self.params.supply.members;
        let paced =
            |m: &Member| m.endpoint.requests_per_minute.is_some() || m.endpoint.tokens_per_minute.is_some();
        let (status, tier) = (self.engine.status(), members.first().map(|m| m.endpoint.tier));
        let waits = self.waiting.iter().any(|ticket| self.paced[ticket] && !self.returned.contains(ticket));
        if !waits
            || self.was_refused
            || status.in_flight >= status.max
            || members.iter().any(|m| paced(m) || Some(m.endpoint.tier) != tier)
        {
            return;
        }
        for (id, e) in status.endpoints.iter().enumerate() {
            let room = e.limit.is_none_or(|limit| e.in_flight < limit);
            assert!(!room || e.breaker != supply::BreakerState::Closed, "{id} has room: {status:?}");
        }
    }

    fn wait_until(&mut self, end: MonoTime) {
        let mut rings = 100_000;
        while let Some(at) = self.alarm.filter(|at| *at <= end) {
            assert!(rings > 0, "the timer rings and rings");
            rings -= 1;
            self.alarm = None;
            self.now = self.now.max(at);
            self.send(Event::Tick);
        }
        self.now = self.now.max(end);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Arrive { model, tenant, cost, unqueued, patience } => {
                let ticket = Ticket(self.tickets);
                self.tickets += 1;
                self.paced.insert(ticket, !unqueued);
                self.waiting.push(ticket);
                let arrival = Arrival {
                    kind: if unqueued { Kind::Unqueued } else { Kind::Queued },
                    tenant: TenantId(tenant.into()),
                    priority: Priority::ALL[usize::from(tenant) % 3],
                    model: ModelId(model.into()),
                    cost: Tokens(cost.into()),
                    prompt: Tokens(0),
                    bytes: 1,
                    head_by: patience.map(|s| self.now + Duration::from_millis(u64::from(s) * 100)),
                    stream: false,
                };
                self.send(Event::Arrive(ticket, arrival));
            }
            Step::Finish { pick, outcome, sample } => {
                let Some(ticket) = self.pick(pick) else { return };
                let sample = sample.then_some(Sample {
                    prompt: Tokens(100),
                    output: Tokens(50),
                    first: Duration::from_millis(200),
                    last: Duration::from_secs(1),
                    stream: true,
                    ..Sample::default()
                });
                self.send(Event::Finish(ticket, OUTCOMES[usize::from(outcome)], sample));
            }
            Step::Refused { pick, stop } => {
                let Some(ticket) = self.pick(pick) else { return };
                let retry_at = stop.map(|ms| self.now + Duration::from_millis(ms.into()));
                let limits = RateLimits { retry_at, ..RateLimits::default() };
                self.send(Event::Refused(ticket, Box::new(limits)));
                self.send(Event::FirstByte { ticket, alive: true });
                let (outcome, cause) = (Outcome::Refused, RetryCause::Status);
                self.send(Event::Retry { ticket, outcome, cause, retry_after: None });
            }
            Step::Retry { pick, outcome, cause, after } => {
                let Some(ticket) = self.pick(pick) else { return };
                let causes = [
                    RetryCause::Status,
                    RetryCause::Connect,
                    RetryCause::Reset,
                    RetryCause::Timeout,
                    RetryCause::Key,
                ];
                let (outcome, cause) = (OUTCOMES[usize::from(outcome)], causes[usize::from(cause)]);
                let retry_after = after.map(|ms| Duration::from_millis(ms.into()));
                self.send(Event::Retry { ticket, outcome, cause, retry_after });
            }
            Step::Unauthorized(pick) => {
                let Some(ticket) = self.pick(pick) else { return };
                self.send(Event::Unauthorized(ticket));
            }
            Step::Checked(id, healthy) => self.send(Event::Checked(EndpointId(id.into()), healthy)),
            Step::Cancel(pick) => {
                let ticket = self.waiting.get(usize::from(pick) % self.waiting.len().max(1)).copied();
                if let Some(ticket) = ticket {
                    self.send(Event::Cancel(ticket));
                }
            }
            Step::Wait(ms) => self.wait_until(self.now + Duration::from_millis(ms.into())),
        }
    }

    /// Everything comes to its end, and a second telling is the same.
    fn settle(mut self) {
        let mut left = 20 * (self.waiting.len() + self.flights.len()) + 20;
        while !self.waiting.is_empty() || !self.flights.is_empty() {
            assert!(left > 0, "{} wait for ever", self.waiting.len());
            left -= 1;
            match self.flights.keys().next().copied() {
                Some(ticket) => self.send(Event::Finish(ticket, Outcome::Success, None)),
                None => {
                    let at = self.alarm.expect("something waits, so a timer is set");
                    self.wait_until(at);
                }
            }
        }
        let status = self.engine.status();
        assert_eq!((status.in_flight, status.unqueued, status.queued), (0, 0, [0; 3]), "a permit was lost");
        let mut again = Engine::new(self.params.clone(), MonoTime::from_secs(100));
        for (now, event, effects) in &self.log {
            let mut same = Vec::new();
            again.on(*now, event.clone(), &mut same);
            assert_eq!(&same, effects, "{event:?} at {now:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 768, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_life_of_a_fleet_keeps_the_promises(params in params(), steps in vec(step(), 1..160)) {
        let mut world = World::new(params);
        for step in &steps {
            world.step(step);
        }
        world.settle();
    }
}

fn world(members: Vec<Member>) -> World {
    let scaling = predict::Params::of(PolicyKind::Predictive);
    let supply = supply::Params { members, ..supply::Params::default() };
    World::new(Params { scaling, supply, ..Params::default() })
}

fn takes(most: u32, tier: u32) -> Member {
    let endpoint =
        EndpointParams { concurrency: ConcurrencyMode::Fixed(most), tier, ..EndpointParams::default() };
    Member { endpoint, keys: 1, ..Member::default() }
}

fn arrive(world: &mut World, n: usize) {
    for _ in 0..n {
        world.step(&Step::Arrive { model: 0, tenant: 0, cost: 10, unqueued: false, patience: None });
    }
}

#[test]
fn a_full_first_tier_is_waited_for_and_then_left() {
    let mut w = world(vec![takes(2, 0), takes(5, 1)]);
    arrive(&mut w, 4);
    let at = |w: &World, id: u16| w.flights.values().filter(|f| f.place.endpoint == EndpointId(id)).count();
    assert_eq!((at(&w, 0), at(&w, 1), w.waiting.len()), (2, 0, 2), "patience first");
    w.wait_until(w.now + Duration::from_secs(6));
    assert_eq!(
        (at(&w, 0), at(&w, 1), w.waiting.len()),
        (2, 2, 0),
        "after failover_wait the second tier serves"
    );
}

#[test]
fn a_try_that_failed_goes_elsewhere_at_once() {
    let mut w = world(vec![takes(5, 0), takes(5, 0)]);
    arrive(&mut w, 1);
    let (ticket, before) = w.flights.iter().next().map(|(t, f)| (*t, f.place)).unwrap();
    let (outcome, cause) = (Outcome::Failure, RetryCause::Status);
    w.send(Event::Retry { ticket, outcome, cause, retry_after: Some(Duration::from_secs(20)) });
    let now = w.flights[&ticket].place;
    assert_ne!(now.endpoint, before.endpoint, "nobody waits 20 s for one endpoint while another is idle");
}

#[test]
fn a_refused_key_rests_and_the_next_one_serves() {
    let mut w = world(vec![Member { keys: 2, ..takes(5, 0) }]);
    arrive(&mut w, 1);
    let (ticket, before) = w.flights.iter().next().map(|(t, f)| (*t, f.place)).unwrap();
    w.send(Event::Unauthorized(ticket));
    let (outcome, cause) = (Outcome::Ignore, RetryCause::Key);
    w.send(Event::Retry { ticket, outcome, cause, retry_after: None });
    assert_ne!(w.flights[&ticket].place.key, before.key);
    // the other one is refused too: its 401 is the answer
    w.send(Event::Unauthorized(ticket));
    w.send(Event::Retry { ticket, outcome, cause, retry_after: None });
    let given_up = w.log.last().is_some_and(|(_, _, effects)| effects.contains(&Effect::GivenUp(ticket)));
    assert!(given_up);
    assert_eq!(before.key, KeyId(0));
}

#[test]
fn another_key_that_has_to_wait_for_its_turn_serves_too() {
    for status in [401, 429] {
        // all places are taken, by this one
        let mut w = world(vec![Member { keys: 2, ..takes(1, 0) }]);
        arrive(&mut w, 1);
        let (ticket, before) = w.flights.iter().next().map(|(t, f)| (*t, f.place)).unwrap();
        let (outcome, cause, retry_after) = if status == 401 {
            w.send(Event::Unauthorized(ticket));
            (Outcome::Ignore, RetryCause::Key, None)
        } else {
            stop_for(&mut w, ticket, 300);
            (Outcome::Refused, RetryCause::Status, Some(Duration::from_secs(300)))
        };
        w.send(Event::Retry { ticket, outcome, cause, retry_after });
        let place = w.flights.get(&ticket).map(|f| f.place);
        assert!(place.is_some_and(|place| place.key != before.key), "{status}: {place:?}");
    }
}

#[test]
fn a_limit_that_was_found_draws_nobody_from_a_peer_without_one() {
    let open = EndpointParams { concurrency: ConcurrencyMode::Unlimited, ..EndpointParams::default() };
    let mut w = world(vec![takes(50, 0), Member { endpoint: open, keys: 1, ..Member::default() }]);
    arrive(&mut w, 40);
    let each = (at(&w, 0).len(), at(&w, 1).len());
    assert!((15..=25).contains(&each.0), "{each:?}");
}

#[test]
fn one_that_must_not_go_back_yet_speaks_for_nobody_else() {
    let mut w = world(vec![takes(1, 0), takes(1, 0)]);
    arrive(&mut w, 4);
    let (a, b) = (at(&w, 0)[0], at(&w, 1)[0]);
    let (outcome, cause) = (Outcome::Overload, RetryCause::Status);
    w.send(Event::Retry { ticket: a, outcome, cause, retry_after: Some(Duration::from_secs(3600)) });
    assert_eq!(
        (at(&w, 0).len(), w.waiting.len()),
        (1, 2),
        "the next goes to the one that failed, and one waits"
    );
    w.send(Event::Finish(b, Outcome::Success, None));
    assert_eq!(at(&w, 1), [a]);
    stop_for(&mut w, a, 500);
    assert_eq!(w.waiting.len(), 1, "the other endpoint goes on");
    w.send(Event::Retry { ticket: a, outcome: Outcome::Refused, cause, retry_after: None });
    let running = at(&w, 0)[0];
    w.send(Event::Finish(running, Outcome::Success, None));
    assert_eq!(at(&w, 0).len(), 1);
}

#[test]
fn a_large_one_that_came_back_is_not_overtaken_for_ever() {
    let tokens = EndpointParams { tokens_per_minute: Some(60_000), ..EndpointParams::default() };
    let mut w = world(vec![Member { endpoint: tokens, keys: 1, ..takes(50, 0) }]);
    w.step(&Step::Arrive { model: 0, tenant: 1, cost: 15_000, unqueued: false, patience: None });
    let large = *w.flights.keys().next().unwrap();
    let (outcome, cause) = (Outcome::Failure, RetryCause::Status);
    w.send(Event::Retry { ticket: large, outcome, cause, retry_after: Some(Duration::from_secs(1)) });
    for _ in 0..500 {
        if w.waiting.len() < 20 {
            w.step(&Step::Arrive { model: 0, tenant: 1, cost: 500, unqueued: false, patience: None });
        }
        w.wait_until(w.now + Duration::from_millis(100));
        if w.flights.contains_key(&large) {
            return;
        }
        for ticket in w.flights.keys().copied().collect::<Vec<_>>() {
            w.send(Event::Finish(ticket, Outcome::Success, None));
        }
    }
    panic!("it waited for 50 s while small ones went");
}

#[test]
fn a_stop_that_outlasts_the_queue_is_told_at_once() {
    let mut w = world(vec![takes(1, 0)]);
    arrive(&mut w, 4);
    assert_eq!((w.flights.len(), w.waiting.len()), (1, 3));
    let ticket = *w.flights.keys().next().unwrap();
    let limits = RateLimits { retry_at: Some(w.now + Duration::from_secs(3600)), ..RateLimits::default() };
    w.send(Event::Refused(ticket, Box::new(limits)));
    w.send(Event::FirstByte { ticket, alive: true });
    w.send(Event::Retry { ticket, outcome: Outcome::Refused, cause: RetryCause::Status, retry_after: None });
    assert!(w.waiting.is_empty(), "who waits for an hour's stop waits in vain");
    w.send(Event::Finish(ticket, Outcome::Refused, None));
    arrive(&mut w, 1);
    assert!(w.waiting.is_empty(), "and so does who comes later");
}

/// One endpoint for four, which has stopped the first model for 20 s; one request waits.
fn stopped() -> World {
    let mut w = world(vec![takes(4, 0)]);
    arrive(&mut w, 1);
    let ticket = *w.flights.keys().next().unwrap();
    let limits = RateLimits { retry_at: Some(w.now + Duration::from_secs(20)), ..RateLimits::default() };
    w.send(Event::Refused(ticket, Box::new(limits)));
    w.send(Event::Retry { ticket, outcome: Outcome::Refused, cause: RetryCause::Status, retry_after: None });
    w
}

#[test]
fn one_model_s_stop_holds_up_no_other_model() {
    let mut w = stopped();
    arrive(&mut w, 2);
    assert_eq!((w.flights.len(), w.waiting.len()), (0, 3));
    w.step(&Step::Arrive { model: 1, tenant: 0, cost: 10, unqueued: false, patience: None });
    assert_eq!((w.flights.len(), w.waiting.len()), (1, 3), "another model passes");
    // after the stop one probe goes first; its answer lets the others go
    w.wait_until(w.now + Duration::from_secs(20));
    assert_eq!((w.flights.len(), w.waiting.len()), (2, 2));
    let probe = *w.flights.keys().next().unwrap();
    w.send(Event::FirstByte { ticket: probe, alive: true });
    assert_eq!(w.waiting.len(), 0);
}

#[test]
fn a_503_is_a_refusal_and_a_stream_that_breaks_off_is_none() {
    let learns = EndpointParams { concurrency: ConcurrencyMode::Learn, ..EndpointParams::default() };
    let mut w = world(vec![Member { endpoint: learns, keys: 1, ..Member::default() }]);
    let limit = |w: &World| w.engine.status().endpoints[0].limit;
    for (alive, lowers) in [(true, false), (false, true)] {
        arrive(&mut w, 8);
        let tickets: Vec<Ticket> = w.flights.keys().copied().collect();
        // two may be chance
        for (n, ticket) in tickets[5..].iter().enumerate() {
            assert_eq!(limit(&w), Some(64), "{n}");
            w.send(Event::FirstByte { ticket: *ticket, alive });
            w.send(Event::Finish(*ticket, Outcome::Overload, None));
        }
        assert_eq!(limit(&w), Some(if lowers { 7 } else { 64 }));
        for ticket in &tickets[..5] {
            w.send(Event::FirstByte { ticket: *ticket, alive: true });
            w.send(Event::Finish(*ticket, Outcome::Success, None));
        }
    }
}

#[test]
fn a_burst_that_is_refused_is_one_report() {
    let mut w = world(vec![takes(20, 0)]);
    arrive(&mut w, 20);
    let tickets: Vec<Ticket> = w.flights.keys().copied().collect();
    let limits = RateLimits { retry_at: Some(w.now + Duration::from_secs(2)), ..RateLimits::default() };
    for ticket in tickets {
        w.send(Event::Refused(ticket, Box::new(limits)));
        w.send(Event::Finish(ticket, Outcome::Refused, None));
    }
    let stops = w.log.iter().flat_map(|(_, _, effects)| effects);
    let stops = stops.filter(|e| matches!(e, Effect::Supply(supply::Report::Stopped { .. }))).count();
    assert_eq!(stops, 1);
}

#[test]
fn another_key_of_a_broken_endpoint_is_no_other_endpoint() {
    for (outcome, at_once) in [(Outcome::Overload, false), (Outcome::Refused, true)] {
        let mut w = world(vec![Member { keys: 2, ..takes(5, 0) }]);
        arrive(&mut w, 1);
        let ticket = *w.flights.keys().next().unwrap();
        let (cause, retry_after) = (RetryCause::Status, Some(Duration::from_secs(5)));
        w.send(Event::Retry { ticket, outcome, cause, retry_after });
        assert_eq!(w.flights.len() == 1, at_once, "{outcome:?}");
        w.wait_until(w.now + Duration::from_secs(6));
        assert_eq!(w.flights.len(), 1, "{outcome:?}");
    }
}

#[test]
fn what_the_upstream_s_limit_does_not_count_comes_back() {
    let endpoint = EndpointParams {
        concurrency: ConcurrencyMode::Fixed(5),
        tokens_per_minute: Some(60_000),
        ..EndpointParams::default()
    };
    let mut w = world(vec![Member { endpoint, keys: 1, ..Member::default() }]);
    let left = |w: &World| w.engine.status().endpoints[0].tokens_remaining.unwrap();
    w.step(&Step::Arrive { model: 0, tenant: 0, cost: 400, unqueued: false, patience: None });
    let (ticket, before) = (*w.flights.keys().next().unwrap(), left(&w));
    let (prompt, uncounted, output) = (Tokens(380), Tokens(350), Tokens(20));
    let sample = Sample { prompt, uncounted, output, ..Sample::default() };
    w.send(Event::Finish(ticket, Outcome::Success, Some(sample)));
    assert!((left(&w) - before - 350.0).abs() < 1.0, "{before} and {}", left(&w));
}

#[test]
fn what_never_left_is_not_charged() {
    let tokens = EndpointParams {
        concurrency: ConcurrencyMode::Fixed(5),
        tokens_per_minute: Some(60_000),
        ..EndpointParams::default()
    };
    let mut w = world(vec![Member { endpoint: tokens, keys: 1, ..Member::default() }]);
    let left = |w: &World| w.engine.status().endpoints[0].tokens_remaining;
    w.step(&Step::Arrive { model: 0, tenant: 0, cost: 10, unqueued: false, patience: None });
    let ticket = *w.flights.keys().next().unwrap();
    w.send(Event::Finish(ticket, Outcome::Success, None));
    let before = left(&w);
    w.step(&Step::Arrive { model: 0, tenant: 0, cost: 300, unqueued: false, patience: None });
    let ticket = *w.flights.keys().next().unwrap();
    assert!(left(&w) < before.map(|n| n - 200.0), "{:?} of {before:?}", left(&w));
    w.send(Event::Lost(ticket, Lost::Unsent));
    let (outcome, cause) = (Outcome::Overload, RetryCause::Connect);
    w.send(Event::Retry { ticket, outcome, cause, retry_after: Some(Duration::from_secs(1)) });
    assert!(left(&w) >= before.map(|n| n - 20.0), "{:?} of {before:?}", left(&w));
}

#[test]
fn a_queue_full_of_one_model_s_requests_refuses_no_other_model() {
    let mut w = stopped();
    let most = w.params.admission.max_requests;
    arrive(&mut w, most);
    assert_eq!((w.flights.len(), w.waiting.len()), (0, most), "the last one found the queue full");
    for n in 1..=4 {
        w.step(&Step::Arrive { model: 1, tenant: 0, cost: 10, unqueued: false, patience: None });
        assert_eq!((w.flights.len(), w.waiting.len()), (n, most));
    }
    w.step(&Step::Arrive { model: 1, tenant: 0, cost: 10, unqueued: false, patience: None });
    assert_eq!((w.flights.len(), w.waiting.len()), (4, most), "no permit, no place in the queue");
}

#[test]
fn a_full_endpoint_and_a_stopped_rate_hold_up_no_other_model() {
    let mut w = world(vec![takes(1, 0), takes(5, 0)]);
    // one endpoint is full, the other one has stopped the first model
    arrive(&mut w, 2);
    let at = |w: &World, id: u16| {
        let of = w.flights.iter().find(|(_, f)| f.place.endpoint == EndpointId(id));
        of.map(|(ticket, _)| *ticket)
    };
    while at(&w, 0).is_none() {
        arrive(&mut w, 1);
    }
    while let Some(ticket) = at(&w, 1) {
        let limits = RateLimits { retry_at: Some(w.now + Duration::from_secs(20)), ..RateLimits::default() };
        w.send(Event::Refused(ticket, Box::new(limits)));
        w.send(Event::Finish(ticket, Outcome::Refused, None));
    }
    arrive(&mut w, 3);
    assert_eq!((w.flights.len(), w.waiting.len()), (1, 3));
    // it waits behind them, and a permit is free only later
    w.step(&Step::Arrive { model: 1, tenant: 0, cost: 10, unqueued: false, patience: None });
    assert_eq!((w.flights.len(), w.waiting.len()), (2, 3), "the other model has a place");
}

/// Fills both endpoints, and breaks one of them by three that fail.
fn one_of_two_breaks(w: &mut World) -> EndpointId {
    arrive(w, 40);
    assert_eq!((w.flights.len(), w.waiting.len()), (16, 24));
    let broken = EndpointId(0);
    let of_broken: Vec<Ticket> =
        w.flights.iter().filter(|(_, f)| f.place.endpoint == broken).map(|(t, _)| *t).collect();
    for ticket in of_broken.iter().take(5) {
        w.send(Event::AttemptEnd(*ticket, Outcome::Failure));
    }
    assert_eq!(w.engine.status().endpoints[0].breaker, supply::BreakerState::Open);
    broken
}

#[test]
fn what_hangs_at_a_broken_endpoint_takes_no_place_of_the_others() {
    let mut w = world(vec![takes(8, 0), takes(8, 0)]);
    let broken = one_of_two_breaks(&mut w);
    for _ in 0..8 {
        let (ticket, _) = w.flights.iter().find(|(_, f)| f.place.endpoint != broken).unwrap();
        let ticket = *ticket;
        w.send(Event::Finish(ticket, Outcome::Success, None));
        let status = w.engine.status();
        assert_eq!((status.endpoints[0].in_flight, status.endpoints[1].in_flight), (8, 8));
    }
    assert_eq!(w.waiting.len(), 16);
}

#[test]
fn what_hangs_at_a_broken_endpoint_takes_no_place_of_its_probe() {
    let mut w = world(vec![takes(8, 0), takes(8, 0)]);
    let broken = one_of_two_breaks(&mut w);
    w.wait_until(w.now + Duration::from_secs(30));
    let probes: Vec<_> = w.flights.values().filter(|f| f.probe).map(|f| f.place.endpoint).collect();
    assert_eq!(probes, [broken]);
}

#[test]
fn what_is_more_than_a_shrunken_endpoint_takes_takes_no_place_of_the_others() {
    let learns = EndpointParams { concurrency: ConcurrencyMode::Learn, ..EndpointParams::default() };
    let learns = Member { endpoint: learns, keys: 1, ..Member::default() };
    let mut w = world(vec![learns.clone(), learns]);
    arrive(&mut w, 140);
    assert_eq!((w.flights.len(), w.waiting.len()), (128, 12));
    let at = |w: &World, id: u16| {
        let of = w.flights.iter().filter(|(_, f)| f.place.endpoint == EndpointId(id));
        of.map(|(ticket, _)| *ticket).collect::<Vec<_>>()
    };
    for ticket in &at(&w, 0)[..4] {
        w.send(Event::FirstByte { ticket: *ticket, alive: false });
        w.send(Event::AttemptEnd(*ticket, Outcome::Overload));
        w.send(Event::Finish(*ticket, Outcome::Overload, None));
    }
    let limit = |w: &World| w.engine.status().endpoints[0].limit.unwrap();
    assert!(limit(&w) < 60, "{}", limit(&w));
    let (waiting, ticket) = (w.waiting.len(), at(&w, 1)[0]);
    assert!(waiting > 0);
    w.send(Event::Finish(ticket, Outcome::Success, None));
    assert_eq!((at(&w, 1).len(), w.waiting.len()), (64, waiting - 1), "the other one has a place");
}

#[test]
fn in_shadow_mode_a_dip_of_what_the_upstream_takes_leaves_no_trace() {
    let scaling =
        predict::Params { mode: predict::Mode::Shadow, ..predict::Params::of(PolicyKind::Predictive) };
    let mut engine = Engine::new(Params { scaling, ..Params::default() }, MonoTime::ZERO);
    let initial = engine.status().limit;
    let now = MonoTime::from_secs(1);
    engine.on(now, Event::Supply(Some(1)), &mut Vec::new());
    assert_eq!(engine.status().limit, 1);
    engine.on(now, Event::Supply(None), &mut Vec::new());
    assert_eq!(engine.status().limit, initial);
}

/// One endpoint's tickets.
fn at(w: &World, id: u16) -> Vec<Ticket> {
    let of = w.flights.iter().filter(|(_, f)| f.place.endpoint == EndpointId(id));
    of.map(|(ticket, _)| *ticket).collect()
}

fn of_model(w: &mut World, model: u8, n: usize) {
    for _ in 0..n {
        w.step(&Step::Arrive { model, tenant: 0, cost: 10, unqueued: false, patience: None });
    }
}

fn stop_for(w: &mut World, ticket: Ticket, secs: u64) {
    let limits = RateLimits { retry_at: Some(w.now + Duration::from_secs(secs)), ..RateLimits::default() };
    w.send(Event::Refused(ticket, Box::new(limits)));
}

#[test]
fn a_long_retry_after_of_one_endpoint_waits_for_a_place_at_another() {
    for secs in [20, 3600] {
        let mut w = world(vec![takes(1, 0), takes(1, 0)]);
        arrive(&mut w, 2);
        let (a, b) = (at(&w, 0)[0], at(&w, 1)[0]);
        let (outcome, cause) = (Outcome::Overload, RetryCause::Status);
        let retry_after = Some(Duration::from_secs(secs));
        w.send(Event::Retry { ticket: a, outcome, cause, retry_after });
        assert_eq!(w.waiting, [a], "{secs}: the other one is only full");
        w.send(Event::Finish(b, Outcome::Success, None));
        assert_eq!(at(&w, 1), [a], "{secs}: it has a place");
    }
    // where there is no other one, an hour is too long
    let mut w = world(vec![takes(1, 0)]);
    arrive(&mut w, 1);
    let ticket = at(&w, 0)[0];
    let (outcome, cause) = (Outcome::Overload, RetryCause::Status);
    w.send(Event::Retry { ticket, outcome, cause, retry_after: Some(Duration::from_secs(3600)) });
    assert!(w.log.last().is_some_and(|(_, _, effects)| effects.contains(&Effect::GivenUp(ticket))));
}

#[test]
fn a_short_deadline_leaves_the_later_tier_time() {
    let mut w = world(vec![takes(1, 0), takes(5, 1)]);
    arrive(&mut w, 1);
    for _ in 0..2 {
        w.step(&Step::Arrive { model: 0, tenant: 0, cost: 10, unqueued: false, patience: Some(20) });
    }
    assert_eq!((at(&w, 1).len(), w.waiting.len()), (0, 2), "they have 2 s");
    w.wait_until(w.now + Duration::from_millis(1100));
    assert_eq!((at(&w, 1).len(), w.waiting.len()), (2, 0));
}

#[test]
fn a_queue_that_is_full_leaves_the_later_tier() {
    let mut w = world(vec![takes(1, 0), takes(5, 1)]);
    w.params.admission.max_requests = 2;
    w.engine = Engine::new(w.params.clone(), w.now);
    arrive(&mut w, 3);
    assert_eq!((at(&w, 1).len(), w.waiting.len()), (0, 2));
    of_model(&mut w, 1, 1);
    assert_eq!((at(&w, 1).len(), w.waiting.len()), (1, 2), "who finds no place goes there at once");
}

#[test]
fn a_long_stop_is_told_whoever_has_the_places() {
    let mut w = world(vec![takes(2, 0)]);
    of_model(&mut w, 0, 1);
    of_model(&mut w, 1, 4);
    let (flights, waiting) = (at(&w, 0), w.waiting.clone());
    assert_eq!((flights.len(), waiting.len()), (2, 3));
    stop_for(&mut w, flights[1], 3600);
    let told = w.log.last().map(|(_, _, effects)| effects.clone()).unwrap();
    let told = told.iter().filter(|e| matches!(e, Effect::Reject { .. })).count();
    assert_eq!((told, w.waiting.len()), (3, 0), "in the same step");
    w.send(Event::Finish(flights[1], Outcome::Refused, None));
    // the other model takes all there is
    of_model(&mut w, 0, 1);
    assert_eq!(w.flights.len(), 2);
    of_model(&mut w, 1, 1);
    assert!(w.waiting.is_empty(), "who comes later is told as well");
}

#[test]
fn what_takes_no_permit_comes_back_past_those_who_wait_for_one() {
    let mut w = world(vec![takes(1, 0)]);
    arrive(&mut w, 3);
    w.step(&Step::Arrive { model: 0, tenant: 0, cost: 0, unqueued: true, patience: None });
    let ticket = *w.flights.keys().next_back().unwrap();
    let (outcome, cause) = (Outcome::Failure, RetryCause::Status);
    w.send(Event::Retry { ticket, outcome, cause, retry_after: Some(Duration::from_secs(1)) });
    assert_eq!((w.flights.len(), w.waiting.len()), (1, 3));
    // its model is only a name it happens to have
    let running = at(&w, 0)[0];
    stop_for(&mut w, running, 3600);
    assert_eq!(w.waiting, [ticket]);
    w.wait_until(w.now + Duration::from_secs(1));
    assert!(w.flights.contains_key(&ticket));
}

#[test]
fn a_newcomer_passes_a_stopped_model_where_permits_are_added_on_demand() {
    let mut w = world(vec![takes(20, 0)]);
    arrive(&mut w, 5);
    let ticket = at(&w, 0)[0];
    stop_for(&mut w, ticket, 20);
    let (outcome, cause) = (Outcome::Refused, RetryCause::Status);
    w.send(Event::Retry { ticket, outcome, cause, retry_after: None });
    let most = w.params.admission.max_requests;
    arrive(&mut w, most);
    assert_eq!((w.flights.len(), w.waiting.len()), (4, most));
    // a plan leaves no more permits than are in use
    w.send(Event::Install(plan(&w)));
    assert_eq!(w.engine.status().limit, 4);
    of_model(&mut w, 1, 1);
    assert_eq!((w.flights.len(), w.waiting.len()), (5, most));
}

fn plan(w: &World) -> predict::Decision {
    let status = w.engine.status();
    predict::Decision {
        at: w.now,
        direction: predict::Direction::Hold,
        reason: predict::Reason::Stable,
        from: status.limit,
        to: status.in_flight,
        need: status.in_flight,
        requests_per_minute: 0.0,
        confidence: 1.0,
        queued: 0,
        utilisation: 0.0,
        applied: true,
        since_change: Duration::ZERO,
        outlook: None,
    }
}

/// Stopped for a minute, a queue has no pace; what it had before is what it has after it.
#[test]
fn a_stop_says_nothing_of_the_queue_s_pace() {
    let mut w = world(vec![takes(10, 0)]);
    arrive(&mut w, 100);
    // ten a second for a while
    for _ in 0..600 {
        w.wait_until(w.now + Duration::from_millis(100));
        let ticket = at(&w, 0)[0];
        w.send(Event::Finish(ticket, Outcome::Success, None));
        arrive(&mut w, 1);
    }
    let running = at(&w, 0);
    stop_for(&mut w, running[0], 50);
    for ticket in running {
        w.send(Event::Finish(ticket, Outcome::Success, None));
    }
    w.wait_until(w.now + Duration::from_secs(49));
    assert!(w.flights.is_empty() && !w.waiting.is_empty());
    let waiting = w.waiting.len();
    w.wait_until(w.now + Duration::from_secs(2));
    let probe = at(&w, 0)[0];
    w.send(Event::FirstByte { ticket: probe, alive: true });
    arrive(&mut w, 300);
    assert!(w.waiting.len() > waiting + 200, "{} of {waiting} + 300", w.waiting.len());
}

#[test]
fn a_tier_that_fails_its_check_is_left_for_a_sound_one() {
    let mut w = world(vec![takes(5, 0), takes(5, 1)]);
    w.send(Event::Checked(EndpointId(0), false));
    arrive(&mut w, 1);
    assert_eq!((at(&w, 0).len(), at(&w, 1).len()), (0, 1));
    w.send(Event::Checked(EndpointId(1), false));
    arrive(&mut w, 1);
    assert_eq!((at(&w, 0).len(), at(&w, 1).len()), (1, 1), "where none is sound, the first tier's");
}

#[test]
fn an_endpoint_is_not_slow_for_the_streams_it_happens_to_get() {
    let mut w = world(vec![takes(50, 0), takes(50, 0), takes(50, 0)]);
    let mut state = 1_u64;
    for n in 0..36_000 {
        arrive(&mut w, 1);
        w.wait_until(w.now + Duration::from_millis(100));
        let ticket = *w.flights.keys().next().unwrap();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // each answer takes 2 s, a stream's first token 0.4 s
        let stream = (state >> 33) % 20 < 3;
        let first = if stream { Duration::from_millis(400) } else { Duration::from_secs(2) };
        let (output, last) = (Tokens(50), Duration::from_secs(2));
        let sample = Sample { prompt: Tokens(100), output, first, last, stream, ..Sample::default() };
        w.send(Event::Finish(ticket, Outcome::Success, Some(sample)));
        if n % 10 == 0 {
            w.send(Event::Tick);
        }
    }
    let effects = w.log.iter().flat_map(|(_, _, effects)| effects);
    let ejected = effects.filter(|e| matches!(e, Effect::Supply(supply::Report::Ejected { .. }))).count();
    assert_eq!(ejected, 0, "in an hour of three that are the same");
}

#[test]
fn a_stop_is_not_forgotten_for_new_clients() {
    let mut w = world(vec![Member { keys: 0, ..takes(5, 0) }]);
    let tenant = |w: &mut World, tenant: u64| {
        let ticket = Ticket(w.tickets);
        w.tickets += 1;
        w.paced.insert(ticket, true);
        w.waiting.push(ticket);
        let arrival = Arrival {
            kind: Kind::Queued,
            tenant: TenantId(tenant),
            priority: Priority::Normal,
            model: ModelId(0),
            cost: Tokens(10),
            prompt: Tokens(0),
            bytes: 1,
            head_by: None,
            stream: false,
        };
        w.send(Event::Arrive(ticket, arrival));
        ticket
    };
    let ticket = tenant(&mut w, 1);
    stop_for(&mut w, ticket, 3600);
    w.send(Event::Finish(ticket, Outcome::Refused, None));
    for n in 0..1100 {
        let ticket = tenant(&mut w, 100 + n);
        w.send(Event::Finish(ticket, Outcome::Success, None));
    }
    let ticket = tenant(&mut w, 1);
    assert!(!w.flights.contains_key(&ticket), "its stop lasts for an hour");
}

#[test]
fn who_names_a_rate_limit_is_hosted_unless_told_otherwise() {
    for (concurrency, bound) in [(ConcurrencyMode::Auto, None), (ConcurrencyMode::Learn, Some(64))] {
        let endpoint = EndpointParams { concurrency, ..EndpointParams::default() };
        let mut w = world(vec![Member { endpoint, keys: 1, ..Member::default() }]);
        arrive(&mut w, 70);
        assert_eq!((w.flights.len(), w.engine.status().endpoints[0].limit), (64, Some(64)));
        let limits = RateLimits::default();
        w.send(Event::Limits(Ticket(0), Box::new(limits)));
        assert_eq!(w.engine.status().endpoints[0].limit, Some(64), "nothing was named");
        let mut limits = RateLimits::default();
        (limits.requests.limit, limits.requests.remaining) = (Some(10_000.0), Some(9_000.0));
        w.send(Event::Limits(Ticket(0), Box::new(limits)));
        assert_eq!(w.engine.status().endpoints[0].limit, bound);
        assert_eq!(w.waiting.is_empty(), bound.is_none());
    }
}
