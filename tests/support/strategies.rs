//! Random settings and steps for the properties; each shrinks towards fewer, smaller, plainer ones.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tidegate::policy::engine::Kind;
use tidegate::policy::units::{Outcome, Priority};

use crate::support::steps::{KINDS, OUTCOMES, Setting, Step};

pub(crate) fn setting() -> impl Strategy<Value = Setting> {
    let sizes = any::<((u8, u8, u8), (u8, u8), (u8, u8))>();
    (any::<u8>(), sizes, any::<u8>(), any::<bool>(), any::<(u8, u8, u8, u8, u8)>()).prop_map(
        |(policy, (permits, queue, others), timeout, finish_on_drain, breaker)| Setting {
            policy,
            permits,
            queue,
            timeout,
            finish_on_drain,
            others,
            breaker,
        },
    )
}

pub(crate) fn outcome() -> impl Strategy<Value = Outcome> {
    // failures often enough that breakers open, successes often enough that they close
    prop_oneof![
        4 => Just(Outcome::Success),
        4 => Just(Outcome::Overload),
        1 => proptest::sample::select(&OUTCOMES[..]),
    ]
}

pub(crate) fn priority() -> impl Strategy<Value = Priority> {
    proptest::sample::select(&Priority::ALL[..])
}

pub(crate) fn cost() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..100_u64, 1000..20_000_u64, any::<u64>()]
}

fn time() -> impl Strategy<Value = Duration> {
    prop_oneof![0..50_u64, 0..2_000_u64, 0..70_000_u64].prop_map(Duration::from_millis)
}

fn arrive() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![8 => Just(Kind::Queued), 1 => proptest::sample::select(&KINDS[..])];
    let patience = proptest::option::weighted(0.2, time());
    (kind, 0..4_u8, priority(), cost(), 0..2000_u64, patience, any::<bool>()).prop_map(
        |(kind, tenant, priority, cost, bytes, patience, stream)| Step::Arrive {
            kind,
            tenant,
            priority,
            cost,
            bytes,
            patience,
            stream,
        },
    )
}

fn install() -> impl Strategy<Value = Step> {
    let to = prop_oneof![0..20_u32, any::<u32>()];
    (to, any::<u32>(), proptest::bool::weighted(0.8)).prop_map(|(to, need, applied)| Step::Install {
        to,
        need,
        applied,
    })
}

/// A life of everything: arrivals outnumber what ends, so queues form.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        40 => arrive(),
        24 => (any::<u8>(), outcome()).prop_map(|(n, o)| Step::Finish(n, o)),
        6 => (any::<u8>(), outcome()).prop_map(|(n, o)| Step::AttemptEnd(n, o)),
        6 => (any::<u8>(), any::<bool>()).prop_map(|(n, alive)| Step::FirstByte(n, alive)),
        8 => (any::<u8>(), outcome(), proptest::option::weighted(0.3, time()))
            .prop_map(|(n, o, after)| Step::Retry(n, o, after)),
        4 => any::<u8>().prop_map(Step::Cancel),
        12 => time().prop_map(Step::Wait),
        3 => time().prop_map(Step::Stall),
        2 => Just(Step::Tick),
        4 => install(),
        1 => proptest::option::weighted(0.8, 0..30_u32).prop_map(Step::Supply),
        1 => proptest::option::weighted(0.1, Just(Step::Drain)).prop_map(|d| d.unwrap_or(Step::Tick)),
    ];
    vec(step, 1..200)
}

/// Mostly resizes, up and down and to nonsense, under a full house.
pub(crate) fn resize_storm() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => arrive(),
        4 => install(),
        1 => proptest::option::weighted(0.8, 0..30_u32).prop_map(Step::Supply),
        2 => any::<u8>().prop_map(|n| Step::Finish(n, Outcome::Success)),
        1 => any::<u8>().prop_map(Step::Cancel),
    ];
    vec(step, 1..150)
}
