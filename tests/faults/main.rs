//! An upstream that misbehaves, in every way we know of: the program itself between it and a load, on loopback
//! sockets and in real time, for a second or two each. The same cases at length: `cargo bench --bench faults`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod cases;
mod rig;

use std::time::Duration;

use cases::Scale;

/// Two seconds' worth.
const SHORT: Scale = Scale { requests: 300, rps: 150.0, outage: Duration::from_millis(800) };

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

async fn play(name: &str) {
    let mut case = cases::all(SHORT).into_iter().find(|c| c.name == name).expect("a case of that name");
    let outcome = case.play(PROGRAM).await;
    let broken = case.broken(&outcome);
    let upstreams = &outcome.upstreams;
    assert!(
        broken.is_empty(),
        "{name} ({}): does not hold: {broken:?}\n{}\n{upstreams:#?}\n{:?}, descriptors {:?}, load {:.2}\n{}",
        case.about,
        outcome.report,
        outcome.held,
        outcome.descriptors,
        outcome.load,
        outcome.said.join("\n")
    );
}

macro_rules! faults {
    ($($name:ident),+ $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),+];
        $(
            #[tokio::test]
            async fn $name() {
                play(stringify!($name)).await;
            }
        )+
    };
}

faults!(
    nothing,
    killed,
    reset,
    closed,
    half_head,
    interim,
    mute,
    stall,
    cut,
    errors,
    slow,
    dead_of_three,
    dead_key,
    retry_after_429,
    retry_after_503,
    retry_after_alone,
    bare_429,
    error_body,
    lie_negative,
    lie_huge,
    lie_not_numbers,
    lie_half,
    lie_past,
    lie_exhausted,
);

#[test]
fn every_case_is_played() {
    let all: Vec<&str> = cases::all(SHORT).iter().filter(|c| !c.is_named()).map(|c| c.name).collect();
    assert_eq!(all, NAMES);
}
