//! What happens to an engine, as data: made from random choices by the properties, from bytes by the fuzzer.
//!
//! A step names a request by its place among those that wait or run, so that every sequence of steps makes
//! sense, however it was shortened.

use std::time::Duration;

use tidegate::policy::admission::{self, OnDrain};
use tidegate::policy::engine::{Kind, Params};
use tidegate::policy::predict::{self, Mode, PolicyKind};
use tidegate::policy::supply::{self, BreakerParams, ConcurrencyMode, EndpointParams, Member};
use tidegate::policy::units::{Outcome, Priority};

/// One thing that happens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    Arrive {
        kind: Kind,
        tenant: u8,
        priority: Priority,
        cost: u64,
        bytes: u64,
        patience: Option<Duration>,
        stream: bool,
    },
    /// One that waits gives up.
    Cancel(u8),
    /// One that runs sees its response's head.
    FirstByte(u8, bool),
    /// One that runs is decided before it is over.
    AttemptEnd(u8, Outcome),
    /// One that runs failed and wants another try.
    Retry(u8, Outcome, Option<Duration>),
    /// One that runs is over.
    Finish(u8, Outcome),
    /// Time passes, timers fire when they are due.
    Wait(Duration),
    /// Time passes, and every timer is late.
    Stall(Duration),
    /// A tick that no timer asked for.
    Tick,
    Install {
        to: u32,
        need: u32,
        applied: bool,
    },
    /// The upstream was found to take so much.
    Supply(Option<u32>),
    Drain,
}

pub(crate) const OUTCOMES: [Outcome; 5] =
    [Outcome::Success, Outcome::Refused, Outcome::Overload, Outcome::Failure, Outcome::Ignore];
pub(crate) const KINDS: [Kind; 4] = [Kind::Queued, Kind::Unqueued, Kind::WebSocket, Kind::Upload];

/// The settings that matter here, in sizes at which every bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) policy: u8,
    pub(crate) permits: (u8, u8, u8),
    pub(crate) queue: (u8, u8),
    pub(crate) timeout: u8,
    pub(crate) finish_on_drain: bool,
    pub(crate) others: (u8, u8),
    pub(crate) breaker: (u8, u8, u8, u8, u8),
}

impl Setting {
    /// Settings that the rooms' own checks accept.
    pub(crate) fn params(self) -> Params {
        let min = 1 + u32::from(self.permits.0 % 4);
        let initial = min + u32::from(self.permits.1 % 8);
        let (failures, rate, samples, window, recovery) = self.breaker;
        let admission = admission::Params {
            max_requests: usize::from(self.queue.0 % 32),
            max_bytes: 200 * u64::from(self.queue.1),
            timeout: Duration::from_secs(1 + u64::from(self.timeout % 60)),
            failover_wait: admission::Params::default().failover_wait,
            on_drain: if self.finish_on_drain { OnDrain::Finish } else { OnDrain::Reject },
            max_unqueued: usize::from(self.others.0 % 4),
            max_websockets: usize::from(self.others.1 % 4),
        };
        let policy = PolicyKind::ALL[usize::from(self.policy) % PolicyKind::ALL.len()];
        let scaling = predict::Params {
            policy,
            mode: Mode::Act,
            min_permits: min,
            initial_permits: initial,
            max_permits: initial + u32::from(self.permits.2 % 8),
            article_emergency: 150,
            ..predict::Params::of(policy)
        };
        let breaker = BreakerParams {
            failures: 1 + u32::from(failures % 6),
            failure_rate: f64::from(1 + rate % 10) / 10.0,
            min_samples: 1 + u32::from(samples % 24),
            window: Duration::from_secs(1 + u64::from(window % 40)),
            recovery: Duration::from_millis(500 + 250 * u64::from(recovery % 128)),
        };
        Params {
            admission: admission.try_new().unwrap_or_else(|faults| panic!("{faults:?}")),
            scaling: scaling.try_new().unwrap_or_else(|faults| panic!("{faults:?}")),
            supply: supply::Params {
                breaker: breaker.try_new().unwrap_or_else(|faults| panic!("{faults:?}")),
                members: vec![unlimited()],
                ..supply::Params::default()
            },
        }
    }
}

/// An endpoint that is bound by nothing that is learned.
pub(crate) fn unlimited() -> Member {
    let endpoint = EndpointParams { concurrency: ConcurrencyMode::Unlimited, ..EndpointParams::default() };
    Member { endpoint, ..Member::default() }
}

/// Settings and steps out of any bytes at all; bytes that are missing are zeros.
pub(crate) fn decode(bytes: &[u8]) -> (Setting, Vec<Step>) {
    let mut b = Bytes(bytes);
    let setting = Setting {
        policy: b.byte(),
        permits: (b.byte(), b.byte(), b.byte()),
        queue: (b.byte(), b.byte()),
        timeout: b.byte(),
        finish_on_drain: b.byte() % 2 == 1,
        others: (b.byte(), b.byte()),
        breaker: (b.byte(), b.byte(), b.byte(), b.byte(), b.byte()),
    };
    let mut steps = Vec::new();
    while !b.0.is_empty() {
        steps.push(b.step());
    }
    (setting, steps)
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Small mostly, anything sometimes.
    fn number(&mut self) -> u64 {
        let width = self.byte() % 9;
        (0..width).fold(0, |n, _| n << 8 | u64::from(self.byte()))
    }

    fn time(&mut self) -> Duration {
        Duration::from_millis(u64::from(self.byte()) * u64::from(self.byte()))
    }

    fn outcome(&mut self) -> Outcome {
        OUTCOMES[usize::from(self.byte() % 5)]
    }

    fn step(&mut self) -> Step {
        match self.byte() % 24 {
            0..8 => {
                let who = self.byte();
                Step::Arrive {
                    kind: KINDS[[0, 0, 0, 0, 0, 1, 2, 3][usize::from(who & 7)]],
                    tenant: who >> 3 & 3,
                    priority: Priority::ALL[usize::from(who >> 5) % 3],
                    cost: self.number(),
                    bytes: u64::from(self.byte()) * 4,
                    patience: (self.byte() < 64).then(|| self.time()),
                    stream: who >> 7 == 1,
                }
            }
            8..13 => Step::Finish(self.byte(), self.outcome()),
            13 | 14 => Step::AttemptEnd(self.byte(), self.outcome()),
            15 | 16 => Step::FirstByte(self.byte(), self.byte() >= 64),
            17 => match self.byte() {
                pick @ 128.. => Step::Retry(pick, self.outcome(), (self.byte() < 64).then(|| self.time())),
                pick => Step::Cancel(pick),
            },
            18 | 19 => Step::Wait(self.time()),
            20 => Step::Stall(self.time()),
            21 => Step::Tick,
            22 => Step::Install {
                to: self.number() as u32,
                need: self.number() as u32,
                applied: self.byte() >= 64,
            },
            _ => match self.byte() {
                0 => Step::Drain,
                most @ 1..64 => Step::Supply((most > 8).then(|| u32::from(most) - 9)),
                _ => Step::Tick,
            },
        }
    }
}
