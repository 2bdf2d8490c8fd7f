//! The predictor and the engine together, second by second: whatever happens, the plans are finite, within
//! bounds, and sensible, and nobody waits below the ceiling.

#![expect(clippy::expect_used, reason = "a helper that fails is a test that fails")]

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tidegate::policy::engine::{Arrival, Effect, Engine, Event, Kind, Params};
use tidegate::policy::predict::{self, Decision, PolicyKind, Predictor, Ready, Wall};
use tidegate::policy::supply::{self, ConcurrencyMode, EndpointParams, Member};
use tidegate::policy::units::{ModelId, MonoTime, Outcome, Priority, TenantId, Ticket, Tokens};

/// An engine, its predictor, and an upstream that takes the same time for each request.
struct World {
    engine: Engine,
    predictor: Predictor,
    now: u64,
    tickets: u64,
    /// Tickets in flight, oldest first, with the second in which they end.
    flights: std::collections::VecDeque<(u64, Ticket)>,
    service: u64,
    waited: usize,
    decisions: Vec<Decision>,
    ready: Ready,
}

impl World {
    fn new(scaling: predict::Params, service: u64) -> Self {
        // what is learned of an upstream has its own tests: here the ceiling is the operator's
        let endpoint =
            EndpointParams { concurrency: ConcurrencyMode::Unlimited, ..EndpointParams::default() };
        let members = vec![Member { endpoint, ..Member::default() }];
        let supply = supply::Params { members, ..supply::Params::default() };
        let params = Params { scaling: scaling.clone(), supply, ..Params::default() };
        Self {
            engine: Engine::new(params, MonoTime::ZERO),
            predictor: Predictor::new(scaling),
            now: 0,
            tickets: 0,
            flights: std::collections::VecDeque::new(),
            service,
            waited: 0,
            decisions: Vec::new(),
            ready: Ready::default(),
        }
    }

    fn predictive(service: u64) -> Self {
        Self::new(predict::Params::of(PolicyKind::Predictive), service)
    }

    fn on(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.engine.on(MonoTime::from_secs(self.now), event, &mut effects);
        for effect in effects {
            match effect {
                Effect::Admit { ticket, .. } => self.flights.push_back((self.now + self.service, ticket)),
                Effect::Decided(decision) => self.decisions.push(decision),
                _ => {}
            }
        }
    }

    /// One second in which `arrivals` requests come.
    fn second(&mut self, arrivals: u64) {
        while let Some((_, ticket)) = self.flights.front().copied().filter(|(end, _)| *end <= self.now) {
            self.flights.pop_front();
            self.on(Event::Finish(ticket, Outcome::Success, None));
        }
        for _ in 0..arrivals {
            let arrival = Arrival {
                kind: Kind::Queued,
                tenant: TenantId(1),
                priority: Priority::Normal,
                model: ModelId::default(),
                cost: Tokens(1),
                prompt: Tokens(0),
                bytes: 0,
                head_by: None,
                stream: false,
            };
            self.on(Event::Arrive(Ticket(self.tickets), arrival));
            self.tickets += 1;
        }
        self.waited += self.engine.status().queued.iter().sum::<usize>();
        self.now += 1;
        self.on(Event::Tick);
        let (now, wall) = (MonoTime::from_secs(self.now), Wall { unix: self.now as i64, hour: 0 });
        let history = self.engine.history().clone();
        let snapshot = self.engine.snapshot(now, wall, &history);
        self.ready = self.predictor.tick(&snapshot);
        let plan = self.now.is_multiple_of(30).then(|| self.predictor.plan(&snapshot));
        if let Some(plan) = plan {
            self.on(Event::Install(plan));
        }
        if self.predictor.refit_due() {
            self.predictor.refit();
        }
        self.check();
    }

    fn seconds(&mut self, n: u64, arrivals: impl Fn(u64) -> u64) {
        for s in 0..n {
            self.second(arrivals(s));
        }
    }

    /// Everything that is said is finite and within bounds.
    fn check(&self) {
        let status = self.engine.status();
        assert!((status.min.min(status.ceiling)..=status.ceiling).contains(&status.limit), "{status:?}");
        assert!(self.ready.connections <= status.ceiling);
        let Some(d) = self.decisions.last() else { return };
        assert!((status.min.min(status.ceiling)..=status.max).contains(&d.to), "{d:?}");
        let share = 0.0..=1.0;
        assert!(share.contains(&d.confidence) && d.utilisation >= 0.0 && d.utilisation.is_finite(), "{d:?}");
        assert!(d.requests_per_minute.is_finite() && d.requests_per_minute >= 0.0, "{d:?}");
        let Some(o) = &d.outlook else { return };
        assert!(
            0.0 <= o.low && o.low <= o.centre.max(o.low) && o.low <= o.high && o.high.is_finite(),
            "{o:?}"
        );
        assert!(o.service.is_finite() && o.anomaly.is_finite() && share.contains(&o.threshold), "{o:?}");
        assert!(o.weights.iter().all(|(_, w)| share.contains(w)), "{o:?}");
        let e = &o.errors;
        assert!(e.wape.is_finite() && e.pinball95.is_finite() && share.contains(&e.coverage95), "{o:?}");
    }

    fn last(&self) -> &Decision {
        self.decisions.last().expect("a decision every 30 s")
    }
}

#[test]
fn a_cold_start_makes_nobody_wait() {
    let mut w = World::predictive(2);
    w.seconds(120, |_| 200);
    assert_eq!(w.waited, 0);
    assert!(w.last().need >= 400, "400 are in flight: {:?}", w.last());
    assert!(w.ready.connections >= 400, "{:?}", w.ready);
}

#[test]
fn a_day_of_silence_is_forgotten_by_the_first_burst() {
    let mut w = World::predictive(2);
    w.seconds(600, |_| 5);
    w.seconds(86_400, |_| 0);
    assert_eq!((w.last().to, w.ready.connections), (4, 0), "{:?}", w.last());
    w.seconds(60, |_| 100);
    assert_eq!(w.waited, 0);
    assert!(w.ready.connections >= 200, "{:?}", w.ready);
}

#[test]
fn one_request_a_minute_keeps_a_few_ready() {
    let mut w = World::predictive(1);
    w.seconds(4 * 3600, |s| u64::from(s % 60 == 17));
    assert_eq!(w.last().to, 4, "{:?}", w.last());
    assert!((2..=6).contains(&w.ready.connections), "{:?}", w.ready);
    assert!(w.last().need <= 4, "{:?}", w.last());
}

#[test]
fn two_hundred_thousand_a_minute() {
    let mut w = World::new(
        predict::Params { max_permits: 10_000, initial_permits: 10_000, ..predict::Params::default() },
        1,
    );
    w.seconds(300, |_| 3_333);
    assert_eq!(w.waited, 0);
    let rpm = w.last().requests_per_minute;
    assert!((199_000.0..300_000.0).contains(&rpm), "{:?}", w.last());
    assert!((3_333..6_000).contains(&w.last().need), "{:?}", w.last());
}

#[test]
fn a_single_spike_of_fifty_times_does_not_run_away() {
    let mut w = World::predictive(1);
    w.seconds(2 * 3600, |s| u64::from(s % 2 == 0));
    let before = w.last().requests_per_minute;
    w.seconds(30, |_| 25);
    assert_eq!(w.waited, 0);
    w.seconds(20 * 60, |s| u64::from(s % 2 == 0));
    let after = w.last();
    assert!(after.requests_per_minute < 2.5 * before, "{before} before, then {after:?}");
    assert!(after.to <= 10, "{after:?}");
}

#[test]
fn a_step_to_zero_gives_the_permits_back() {
    let mut w = World::predictive(2);
    w.seconds(3600, |_| 50);
    assert!(w.last().need >= 100, "{:?}", w.last());
    w.seconds(1800, |_| 0);
    assert!(w.last().to <= 10, "{:?}", w.last());
    assert!(w.last().requests_per_minute < 100.0, "{:?}", w.last());
}

#[test]
fn plans_that_stay_away_bring_the_static_limit_back() {
    let scaling = predict::Params { initial_permits: 40, ..predict::Params::default() };
    let mut w = World::new(scaling, 1);
    w.seconds(300, |_| 1);
    assert!(w.engine.status().limit < 40 && !w.engine.status().stale);
    // the predictor is dead, and nobody ticks any more: a request finds out
    w.now += 92;
    w.on(Event::Cancel(Ticket(u64::MAX)));
    assert_eq!((w.engine.status().limit, w.engine.status().stale), (40, true));
    w.seconds(40, |_| 1);
    assert!(!w.engine.status().stale);
}

#[test]
fn the_learned_ceiling_wins_at_once() {
    let mut w = World::predictive(2);
    w.seconds(120, |_| 20);
    w.on(Event::Supply(Some(10)));
    assert_eq!(w.engine.status().limit, 10);
    w.seconds(60, |_| 20);
    assert!(w.engine.status().limit <= 10 && w.waited > 0);
    w.on(Event::Supply(None));
    w.second(20);
    assert_eq!(w.engine.status().queued.iter().sum::<usize>(), 0, "everybody goes");
}

fn demand() -> impl Strategy<Value = Vec<(u64, u16)>> {
    // (arrivals a second, for so many seconds); the odd one is a storm
    let arrivals = prop_oneof![8 => 0..20_u64, 2 => 0..2_u64, 1 => 0..400_u64];
    vec((arrivals, 1..200_u16), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any finite life gives finite plans within bounds; below the ceiling nobody waits.
    #[test]
    fn any_life_gives_sensible_plans(
        pieces in demand(),
        gaps in vec(0..2_000_000_u64, 0..4),
        service in 0..40_u64,
        max in prop_oneof![1..60_u32, 1000..5000_u32],
    ) {
        let least = 4.min(max);
        let scaling = predict::Params { min_permits: least, initial_permits: max, max_permits: max, ..predict::Params::default() };
        let mut w = World::new(scaling, service);
        let mut gaps = gaps.into_iter();
        for (arrivals, seconds) in pieces {
            w.seconds(u64::from(seconds), |_| arrivals);
            let status = w.engine.status();
            if status.in_flight < status.ceiling {
                prop_assert_eq!(status.queued.iter().sum::<usize>(), 0);
            }
            // the process stands still
            w.now += gaps.next().unwrap_or(0);
        }
    }
}

#[test]
fn its_interval_is_the_cooldown() {
    let p = predict::Params { cooldown: Duration::from_secs(45), ..predict::Params::default() };
    assert_eq!(predict::interval(&p), Duration::from_secs(45));
}
