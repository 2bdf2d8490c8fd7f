//! The engine alone: what one request costs under its lock.
//!
//! `cargo bench --bench engine`

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tidegate::policy::engine::{Arrival, Effect, Engine, Event, Kind, Params};
use tidegate::policy::predict::{PolicyKind, Predictor, Wall};
use tidegate::policy::supply::{EndpointParams, Member};
use tidegate::policy::units::{ModelId, MonoTime, Outcome, Priority, TenantId, Ticket, Tokens};

fn params(permits: u32, queue: usize) -> Params {
    let mut params = Params::default();
    params.scaling.policy = PolicyKind::Fixed;
    params.scaling.max_permits = permits;
    params.admission.max_requests = queue;
    params
}

fn arrival(tenant: u64) -> Arrival {
    Arrival {
        kind: Kind::Queued,
        tenant: TenantId(tenant),
        priority: Priority::Normal,
        model: ModelId::default(),
        cost: Tokens(500),
        prompt: Tokens(0),
        bytes: 1024,
        head_by: None,
        stream: false,
    }
}

/// Arrive, FirstByte, Finish of one request beside `others` that are in flight.
fn pass(c: &mut Criterion) {
    for others in [0_u64, 1000] {
        let mut engine = Engine::new(params(100_000, 500), MonoTime::ZERO);
        let mut effects = Vec::new();
        for n in 0..others {
            engine.on(MonoTime::ZERO, Event::Arrive(Ticket(n), arrival(n % 7)), &mut effects);
        }
        let (mut n, mut now) = (others, MonoTime::ZERO);
        c.bench_function(&format!("arrive, admit, first byte, finish beside {others} in flight"), |b| {
            b.iter(|| {
                effects.clear();
                n += 1;
                now = now + Duration::from_micros(20);
                engine.on(now, Event::Arrive(Ticket(n), arrival(n % 7)), &mut effects);
                engine.on(now, Event::FirstByte { ticket: Ticket(n), alive: true }, &mut effects);
                engine.on(now, Event::Finish(Ticket(n), Outcome::Success, None), &mut effects);
                black_box(&effects);
            });
        });
    }
}

/// The same through a queue that always holds `depth`: one waits, one ends, the next in turn goes.
fn queue(c: &mut Criterion) {
    for depth in [10_u64, 500] {
        let mut engine = Engine::new(params(1, 10_000), MonoTime::ZERO);
        let mut effects = Vec::new();
        for n in 0..=depth {
            engine.on(MonoTime::ZERO, Event::Arrive(Ticket(n), arrival(n % 7)), &mut effects);
        }
        let (mut n, mut now, mut running) = (depth, MonoTime::ZERO, Ticket(0));
        c.bench_function(&format!("wait in a queue of {depth}, admit, finish"), |b| {
            b.iter(|| {
                effects.clear();
                n += 1;
                // a pace at which no wait reaches its deadline
                now = now + Duration::from_micros(20);
                engine.on(now, Event::Arrive(Ticket(n), arrival(n % 7)), &mut effects);
                engine.on(now, Event::Finish(running, Outcome::Success, None), &mut effects);
                for effect in &effects {
                    if let Effect::Admit { ticket, .. } = effect {
                        running = *ticket;
                    }
                }
            });
        });
    }
}

/// Any event beside tenants that each wait for the rate of a key of their own.
fn held(c: &mut Criterion) {
    for tenants in [50_u64, 500] {
        let endpoint = EndpointParams { requests_per_minute: Some(2), ..EndpointParams::default() };
        let mut params = params(100_000, 500);
        params.supply.members = vec![Member { endpoint, keys: 0, ..Member::default() }];
        let mut engine = Engine::new(params, MonoTime::ZERO);
        let mut effects = Vec::new();
        for n in 0..2 * tenants {
            engine.on(MonoTime::ZERO, Event::Arrive(Ticket(n), arrival(n % tenants)), &mut effects);
        }
        assert_eq!(engine.status().queued.iter().sum::<usize>() as u64, tenants);
        c.bench_function(&format!("an event beside {tenants} tenants who wait for their rate"), |b| {
            b.iter(|| {
                effects.clear();
                engine.on(MonoTime::ZERO, Event::Tick, &mut effects);
            });
        });
    }
}

/// What a decision costs off the lock: ten minutes of history, cloned and judged.
fn decide(c: &mut Criterion) {
    let mut engine = Engine::new(params(100, 500), MonoTime::ZERO);
    let mut effects = Vec::new();
    for n in 0..6000 {
        let now = MonoTime::ZERO + Duration::from_millis(100 * n);
        engine.on(now, Event::Arrive(Ticket(n), arrival(1)), &mut effects);
        engine.on(now, Event::Finish(Ticket(n), Outcome::Success, None), &mut effects);
    }
    let now = MonoTime::from_secs(600);
    c.bench_function("decide on ten minutes of history", |b| {
        b.iter_batched(
            || (engine.history().clone(), Predictor::new(engine.scaling().clone())),
            |(history, mut predictor)| {
                black_box(predictor.plan(&engine.snapshot(now, Wall::default(), &history)))
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, pass, queue, held, decide);
criterion_main!(benches);
