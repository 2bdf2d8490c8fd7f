//! What the engine promises, held against thousands of random lives.
//!
//! `support/world.rs` keeps the plain account and checks it after every event; here are the lives. The queue
//! and the breaker are also held against slower, plainer versions of themselves. Without these a lost permit
//! or a wait without an end would show itself in production, on the busiest day.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tidegate::policy::admission::{Queue, Waiting};
use tidegate::policy::engine::{Arrival, Effect, Engine, Event, Kind, Lost, Params, RetryCause};
use tidegate::policy::predict::{Decision, Direction, Reason, Wall};
use tidegate::policy::supply::{Breaker, Verdict};
use tidegate::policy::units::{ModelId, MonoTime, Outcome, Priority, Refusal, TenantId, Ticket, Tokens};

#[path = "support/strategies.rs"]
mod strategies;
mod support;

use support::breaker::{PlainBreaker, turn};
use support::queue::{LARGEST, Line, PlainQueue, TURN};
use support::steps::{KINDS, OUTCOMES, decode};
use support::world;

/// Failing cases are printed whole; nothing is written beside the tests.
fn cases(cases: u32) -> ProptestConfig {
    let from_environment = ProptestConfig::default().cases;
    ProptestConfig {
        cases: cases.max(from_environment),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(1024))]

    #[test]
    fn every_life_keeps_the_promises(setting in strategies::setting(), steps in strategies::steps()) {
        world::run(setting.params(), &steps);
    }

    #[test]
    fn a_resize_storm_loses_no_permit(setting in strategies::setting(), steps in strategies::resize_storm()) {
        world::run(setting.params(), &steps);
    }
}

/// Bytes as the fuzzer would choose them, without a fuzzer: `xorshift64*` from fixed seeds.
#[test]
fn bytes_of_any_kind_are_a_life_that_keeps_the_promises() {
    for seed in 1..=1000_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let bytes: Vec<u8> = (0..seed)
            .map(|_| {
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 56) as u8
            })
            .collect();
        let (setting, steps) = decode(&bytes);
        world::run(setting.params(), &steps);
    }
}

// --- nothing makes it panic, and nothing leaks ---

fn moment() -> impl Strategy<Value = MonoTime> {
    prop_oneof![
        4 => (0..100_000_000_000_u64).prop_map(MonoTime::from_nanos),
        1 => any::<u64>().prop_map(MonoTime::from_nanos),
        1 => Just(MonoTime::MAX),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let ticket = || prop_oneof![6 => 0..8_u64, 1 => any::<u64>()].prop_map(Ticket);
    let outcome = || proptest::sample::select(&OUTCOMES[..]);
    let arrival = (
        proptest::sample::select(&KINDS[..]),
        any::<u64>().prop_map(|n| TenantId(n % 3)),
        strategies::priority(),
        strategies::cost(),
        prop_oneof![0..1000_u64, any::<u64>()],
        proptest::option::weighted(0.3, moment()),
        any::<bool>(),
    )
        .prop_map(|(kind, tenant, priority, cost, bytes, head_by, stream)| Arrival {
            kind,
            tenant,
            priority,
            model: ModelId::default(),
            cost: Tokens(cost),
            prompt: Tokens(0),
            bytes,
            head_by,
            stream,
        });
    let decision =
        (any::<u32>(), any::<u32>(), any::<f64>(), any::<bool>()).prop_map(|(to, need, x, applied)| {
            let (direction, reason) = (Direction::Up, Reason::Emergency);
            let (at, since_change) = (MonoTime::MAX, Duration::MAX);
            let (requests_per_minute, confidence, utilisation) = (x, f64::NAN, f64::INFINITY);
            let (from, queued) = (u32::MAX, usize::MAX);
            Decision {
                at,
                direction,
                reason,
                from,
                to,
                need,
                requests_per_minute,
                confidence,
                queued,
                utilisation,
                applied,
                since_change,
                outlook: None,
            }
        });
    prop_oneof![
        6 => (ticket(), arrival).prop_map(|(ticket, arrival)| Event::Arrive(ticket, arrival)),
        1 => ticket().prop_map(Event::Cancel),
        2 => (ticket(), any::<bool>()).prop_map(|(ticket, alive)| Event::FirstByte { ticket, alive }),
        2 => (ticket(), outcome()).prop_map(|(ticket, outcome)| Event::AttemptEnd(ticket, outcome)),
        1 => (ticket(), outcome(), proptest::option::of(any::<Duration>())).prop_map(
            |(ticket, outcome, retry_after)| Event::Retry { ticket, outcome, cause: RetryCause::Reset, retry_after }
        ),
        1 => ticket().prop_map(Event::Unauthorized),
        1 => (ticket(), any::<bool>()).prop_map(
            |(ticket, late)| Event::Lost(ticket, if late { Lost::TimedOut } else { Lost::Unsent })
        ),
        4 => (ticket(), outcome()).prop_map(|(ticket, outcome)| Event::Finish(ticket, outcome, None)),
        2 => Just(Event::Tick),
        1 => decision.prop_map(Event::Install),
        1 => proptest::option::of(any::<u32>()).prop_map(Event::Supply),
        1 => proptest::option::weighted(0.1, Just(Event::Drain)).prop_map(|e| e.unwrap_or(Event::Tick)),
    ]
}

proptest! {
    #![proptest_config(cases(1024))]

    /// Duplicates, strangers, nonsense, and a clock that jumps both ways.
    #[test]
    fn any_event_at_any_time_is_taken(
        setting in strategies::setting(),
        begin in moment(),
        events in vec((moment(), any_event()), 1..80),
    ) {
        let mut engine = Engine::new(setting.params(), begin);
        let mut effects = Vec::new();
        for (now, event) in &events {
            effects.clear();
            let before = engine.status().in_flight;
            engine.on(*now, event.clone(), &mut effects);
            for effect in &effects {
                if let Effect::Admit { limit, in_flight, .. } = effect {
                    // what takes no permit also passes while a shrunken limit is still overrun
                    prop_assert!(in_flight <= limit || *in_flight <= before);
                }
            }
            let status = engine.status();
            prop_assert!(status.limit <= status.ceiling);
            let _ = engine.snapshot(*now, Wall { unix: i64::MAX, hour: 25 }, engine.history());
        }
    }

    /// A ticket that comes twice is one request: one verdict, one permit.
    #[test]
    fn a_ticket_that_comes_twice_takes_no_second_permit(
        setting in strategies::setting(),
        events in vec(any_event(), 1..80),
    ) {
        let now = MonoTime::from_secs(1);
        let mut engine = Engine::new(setting.params(), now);
        let (mut effects, mut pending, mut running) = (Vec::new(), Vec::new(), Vec::new());
        for event in events {
            effects.clear();
            match &event {
                Event::Arrive(ticket, _) if !pending.contains(ticket) && !running.contains(ticket) => {
                    pending.push(*ticket);
                }
                Event::Cancel(ticket) => pending.retain(|t| t != ticket),
                Event::Finish(ticket, ..) => running.retain(|t| t != ticket),
                _ => {}
            }
            engine.on(now, event.clone(), &mut effects);
            for effect in &effects {
                if let Effect::Requeued { ticket, .. } = effect {
                    running.retain(|t| t != ticket);
                    pending.push(*ticket);
                }
                let (Effect::Admit { ticket, .. } | Effect::Reject { ticket, .. }) = effect else { continue };
                let before = pending.len();
                pending.retain(|t| t != ticket);
                prop_assert_eq!(pending.len() + 1, before, "{:?} after {:?}", effect, event);
                if matches!(effect, Effect::Admit { .. }) {
                    running.push(*ticket);
                }
            }
            let status = engine.status();
            prop_assert_eq!(status.in_flight as usize + status.unqueued, running.len());
            prop_assert_eq!(status.queued.iter().sum::<usize>(), pending.len());
        }
    }

    /// A clock that runs backwards is a clock that stands still.
    #[test]
    fn an_earlier_moment_is_the_latest_seen(
        setting in strategies::setting(),
        events in vec((moment(), any_event()), 1..60),
    ) {
        let begin = MonoTime::from_secs(50);
        let (mut jumps, mut stands) = (Engine::new(setting.params(), begin), Engine::new(setting.params(), begin));
        let mut latest = begin;
        for (now, event) in events {
            latest = latest.max(now);
            let (mut a, mut b) = (Vec::new(), Vec::new());
            jumps.on(now, event.clone(), &mut a);
            stands.on(latest, event.clone(), &mut b);
            // as text, for a decision may hold a NaN
            prop_assert_eq!(format!("{a:?}"), format!("{b:?}"), "{:?} at {:?}, latest {:?}", event, now, latest);
        }
    }
}

// --- the queue against its plain version ---

fn line() -> impl Strategy<Value = Line> {
    (0..4_u64, strategies::priority(), strategies::cost(), 0..100_u64)
        .prop_map(|(tenant, priority, cost, bytes)| Line { tenant, priority, cost, bytes })
}

#[derive(Clone, Debug)]
enum Move {
    Push(Line),
    Pop,
    Remove(u8),
    PushAgain(u8),
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        5 => line().prop_map(Move::Push),
        4 => Just(Move::Pop),
        2 => any::<u8>().prop_map(Move::Remove),
        1 => any::<u8>().prop_map(Move::PushAgain),
    ];
    vec(one, 1..200)
}

fn waiting(ticket: u64, line: &Line) -> Waiting {
    Waiting {
        ticket: Ticket(ticket),
        tenant: TenantId(line.tenant),
        priority: line.priority,
        model: ModelId::default(),
        cost: Tokens(line.cost),
        prompt: Tokens(0),
        bytes: line.bytes,
        // deadlines in another order than arrivals
        deadline: MonoTime::from_secs(ticket.wrapping_mul(7) % 31),
        head_by: None,
        stream: false,
        websocket: false,
        unqueued: false,
        arrived: MonoTime::ZERO,
        tries: 0,
        avoid: None,
        patience: MonoTime::MAX,
    }
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn the_queue_is_its_plain_version(moves in moves()) {
        let (mut queue, mut plain) = (Queue::default(), PlainQueue::default());
        for (n, m) in moves.iter().enumerate() {
            match m {
                Move::Push(line) => {
                    queue.push(waiting(n as u64, line));
                    plain.push(waiting(n as u64, line));
                }
                Move::Pop => prop_assert_eq!(queue.pop(), plain.pop()),
                Move::Remove(pick) => {
                    let ticket = plain.pick(*pick).map_or(Ticket(u64::MAX), |w| w.ticket);
                    prop_assert_eq!(queue.remove(ticket), plain.remove(ticket));
                }
                Move::PushAgain(pick) => {
                    if let Some(w) = plain.pick(*pick) {
                        queue.push(Waiting { bytes: 1_000_000, ..w });
                    }
                }
            }
            plain.same_as(&queue);
        }
        while let Some(w) = plain.pop() {
            prop_assert_eq!(queue.pop(), Some(w));
        }
        prop_assert!(queue.is_empty() && queue.pop().is_none());
    }

    /// Nobody starves, whatever others send: while one waits, another tenant of its class is served at most
    /// what its own line is served plus what deficit round robin may be off by (a turn and two of the
    /// largest requests), and two turns of its class are never far apart.
    #[test]
    fn nobody_starves(moves in moves()) {
        let charge = |w: &Waiting| w.cost.0.clamp(1, LARGEST);
        let (mut queue, mut plain) = (Queue::default(), PlainQueue::default());
        // per waiting ticket: tokens served to each tenant of its class since it came
        let mut served: Vec<(Waiting, [u64; 4])> = Vec::new();
        let mut since_turn = [0_u32; 3];
        let last = std::iter::repeat_n(Move::Pop, moves.len());
        for (n, m) in moves.clone().into_iter().chain(last).enumerate() {
            match m {
                Move::Push(line) => {
                    let w = waiting(n as u64, &line);
                    queue.push(w);
                    plain.push(w);
                    served.push((w, [0; 4]));
                }
                Move::Remove(pick) => {
                    if let Some(w) = plain.pick(pick) {
                        queue.remove(w.ticket);
                        plain.remove(w.ticket);
                        served.retain(|(s, _)| s.ticket != w.ticket);
                    }
                }
                Move::Pop | Move::PushAgain(_) => {
                    let Some(w) = queue.pop() else { continue };
                    plain.remove(w.ticket);
                    served.retain(|(s, _)| s.ticket != w.ticket);
                    for (s, tokens) in served.iter_mut().filter(|(s, _)| s.priority == w.priority) {
                        tokens[w.tenant.0 as usize] += charge(&w);
                        let own = tokens[s.tenant.0 as usize];
                        let bound = own + charge(s) + TURN + 2 * LARGEST;
                        prop_assert!(tokens.iter().all(|t| *t <= bound), "{s:?} saw {tokens:?}");
                    }
                    for p in Priority::ALL {
                        let waits = served.iter().any(|(s, _)| s.priority == p);
                        let turns = &mut since_turn[p.index()];
                        *turns = if waits && p != w.priority { *turns + 1 } else { 0 };
                        // weights 16, 4, 1 of 21; twice the even gap allows for classes that come and go
                        let bound = [2 * 21_u32.div_ceil(16), 2 * 21_u32.div_ceil(4), 2 * 21][p.index()];
                        prop_assert!(*turns <= bound, "{p:?} waited for {turns} turns of others");
                    }
                }
            }
            if queue.is_empty() {
                since_turn = [0; 3];
            }
        }
    }
}

// --- the breaker against its plain version ---

proptest! {
    #![proptest_config(cases(2000))]

    /// Attempts of any age report in any order, twice, late or never.
    #[test]
    fn the_breaker_is_its_plain_version(
        setting in strategies::setting(),
        moves in vec((0..6_u8, any::<u8>(), strategies::outcome(), 0..3000_u64), 1..300),
    ) {
        let params = setting.params().supply.breaker;
        let (mut breaker, mut plain) = (Breaker::new(params.clone()), PlainBreaker::new(params.clone()));
        let mut now = MonoTime::from_secs(5);
        let mut attempts: Vec<(Ticket, u32)> = Vec::new();
        let mut probes = 0;
        for (n, (what, pick, outcome, pause)) in moves.into_iter().enumerate() {
            now = now + Duration::from_millis(if what == 5 { 10 * pause } else { pause / 10 });
            let of = attempts.get(usize::from(pick) % attempts.len().max(1)).copied();
            match (what, of) {
                (0 | 1, _) => {
                    let ticket = Ticket(n as u64);
                    let (verdict, turned) = breaker.start(now, ticket);
                    prop_assert_eq!((verdict, turn(turned)), plain.start(now, ticket));
                    match verdict {
                        Verdict::Pass => prop_assert_eq!(probes, 0),
                        Verdict::Probe => probes += 1,
                        Verdict::OpenUntil(until) => prop_assert!(until > now && until <= now + params.recovery),
                        Verdict::Probing => prop_assert_eq!(probes, 1),
                    }
                    prop_assert!(probes <= 1, "two probes at once");
                    if matches!(verdict, Verdict::Pass | Verdict::Probe) {
                        attempts.push((ticket, breaker.generation()));
                    }
                }
                (2, Some((ticket, _))) => prop_assert_eq!(turn(breaker.alive(ticket)), plain.alive(ticket)),
                (_, Some((ticket, generation))) => {
                    let turned = breaker.ended(now, ticket, generation, outcome);
                    prop_assert_eq!(turn(turned), plain.ended(now, ticket, generation, outcome));
                    if what == 3 {
                        attempts.retain(|(t, _)| *t != ticket);
                    }
                }
                (_, None) => {}
            }
            prop_assert_eq!(breaker.state(), plain.state());
            prop_assert_eq!(breaker.peek(now), plain.verdict(now));
            if breaker.peek(now) != Verdict::Probing {
                probes = 0;
            }
        }
    }

    /// What started before the last turn cannot turn it again.
    #[test]
    fn late_failures_trip_nothing(setting in strategies::setting(), late in 1..50_u64) {
        let params = setting.params().supply.breaker;
        let mut breaker = Breaker::new(params.clone());
        let mut now = MonoTime::ZERO;
        for n in 0..u64::from(params.failures) {
            prop_assert_eq!(breaker.peek(now), Verdict::Pass, "after {} failures", n);
            breaker.ended(now, Ticket(n), 0, Outcome::Overload);
            if breaker.peek(now) != Verdict::Pass {
                break;
            }
        }
        prop_assert_eq!(breaker.peek(now), Verdict::OpenUntil(now + params.recovery));
        now = now + params.recovery;
        prop_assert_eq!(breaker.start(now, Ticket(1000)).0, Verdict::Probe);
        prop_assert!(breaker.alive(Ticket(1000)).is_some());
        for n in 0..late {
            prop_assert_eq!(breaker.ended(now, Ticket(2000 + n), 0, Outcome::Overload), None);
        }
        prop_assert_eq!(breaker.peek(now), Verdict::Pass);
    }
}

// --- single cases that were once wrong ---

fn engine(change: impl FnOnce(&mut Params)) -> Engine {
    let mut params = Params::default();
    params.scaling.min_permits = 1;
    params.scaling.initial_permits = 1;
    params.scaling.max_permits = 1;
    change(&mut params);
    Engine::new(params, MonoTime::ZERO)
}

fn arrival() -> Arrival {
    let (kind, tenant, priority) = (Kind::Queued, TenantId(1), Priority::Normal);
    let model = ModelId::default();
    Arrival {
        kind,
        tenant,
        priority,
        model,
        cost: Tokens(1),
        prompt: Tokens(1),
        bytes: 1,
        head_by: None,
        stream: false,
    }
}

fn on(engine: &mut Engine, now: MonoTime, event: Event) -> Vec<Effect> {
    let mut effects = Vec::new();
    engine.on(now, event, &mut effects);
    effects
}

/// Once a slow upstream has recovered, what the queue's pace was must not keep the queue from forming: only a
/// queue can correct it.
#[test]
fn a_slow_spell_does_not_refuse_for_ever() {
    let mut engine = engine(|p| p.admission.timeout = Duration::from_secs(5));
    let mut now = MonoTime::ZERO;
    let mut next = 0;
    let arrive = |engine: &mut Engine, now: MonoTime, next: &mut u64| {
        let ticket = Ticket(*next);
        *next += 1;
        (ticket, on(engine, now, Event::Arrive(ticket, arrival())))
    };
    // a slow hour: an answer takes eight seconds, and somebody always waits
    let (mut running, _) = arrive(&mut engine, now, &mut next);
    for _ in 0..450 {
        for _ in 0..8 {
            now = now + Duration::from_secs(1);
            on(&mut engine, now, Event::Tick);
            arrive(&mut engine, now, &mut next);
        }
        let effects = on(&mut engine, now, Event::Finish(running, Outcome::Success, None));
        if let Some(Effect::Admit { ticket, .. }) = effects.iter().find(|e| matches!(e, Effect::Admit { .. }))
        {
            running = *ticket;
        } else {
            running = arrive(&mut engine, now, &mut next).0;
        }
    }
    now = now + Duration::from_secs(600);
    on(&mut engine, now, Event::Tick);
    on(&mut engine, now, Event::Finish(running, Outcome::Success, None));
    // ten minutes later answers take 10 ms; pairs arrive, the second of which would wait for 10 ms
    let mut refused = 0;
    for _ in 0..1000 {
        now = now + Duration::from_secs(1);
        let (first, _) = arrive(&mut engine, now, &mut next);
        let (second, effects) = arrive(&mut engine, now, &mut next);
        let no = |e: &Effect| matches!(e, Effect::Reject { refusal: Refusal::DeadlineUnreachable, .. });
        refused += u32::from(effects.iter().any(no));
        now = now + Duration::from_millis(10);
        on(&mut engine, now, Event::Finish(first, Outcome::Success, None));
        now = now + Duration::from_millis(10);
        on(&mut engine, now, Event::Finish(second, Outcome::Success, None));
    }
    assert_eq!(refused, 0, "of 1000 requests that would have waited for 10 ms");
}
