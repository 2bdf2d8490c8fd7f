//! An upstream without limits: each request takes its time, however many others there are.
//!
//! The source article's upstream (lognormal, mean 118 ms, cv 0.10), and the LLM that always has room. On it the
//! best limit is no limit, which is what every other figure has to be read against.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use crate::chance::{SplitMix64, hash};
use crate::policy::units::MonoTime;
use crate::simulate::request::Request;
use crate::simulate::upstream::{Id, Sign, Upstream};

/// How long a request takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Time {
    /// Always the same.
    Constant(Duration),
    /// Lognormal with this mean in seconds and this coefficient of variation.
    Lognormal {
        /// Mean, seconds.
        mean: f64,
        /// Coefficient of variation.
        cv: f64,
    },
    /// By its tokens: prompt / `prefill` seconds and `token` seconds for each of the answer.
    Tokens {
        /// Seconds per token of the answer.
        token: f64,
        /// Prompt tokens per second.
        prefill: f64,
    },
}

impl Time {
    /// The request's time, from its beginning to its last byte.
    #[must_use]
    pub fn of(&self, seed: u64, id: Id, request: &Request) -> Duration {
        match *self {
            Self::Constant(time) => time,
            Self::Lognormal { mean, cv } => {
                {
                    // mean = median · exp(σ² / 2), cv² = exp(σ²) − 1
                    let square = (cv * cv).ln_1p();
                    let median = mean * (-square / 2.0).exp();
                    seconds(SplitMix64::new(hash(seed, id.into(), 0)).lognormal(median, square.sqrt()))
                }
            }
            Self::Tokens { token, prefill } => {
                seconds(f64::from(request.prompt) / prefill + f64::from(request.output.max(1)) * token)
            }
        }
    }

    /// The first token's time; the whole time where the answer comes in one piece.
    #[must_use]
    pub fn first(&self, whole: Duration, request: &Request) -> Duration {
        match *self {
            Self::Tokens { token, prefill } => {
                seconds(f64::from(request.prompt) / prefill + token).min(whole)
            }
            _ => whole,
        }
    }

    /// Answers come token by token.
    #[must_use]
    pub const fn streams(&self) -> bool {
        matches!(self, Self::Tokens { .. })
    }
}

/// A duration of `secs`; nonsense is none at all, and nothing lasts longer than a century.
pub(super) fn seconds(secs: f64) -> Duration {
    if secs > 0.0 { Duration::from_secs_f64(secs.min(3.2e9)) } else { Duration::ZERO }
}

/// What will happen, by time. Ties go by kind (a first token before an end), then by request.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    heap: BinaryHeap<Reverse<(MonoTime, u8, Id)>>,
    /// Requests under way; whoever left is skipped when its time comes.
    open: Vec<bool>,
}

pub(super) const FIRST: u8 = 0;
pub(super) const LAST: u8 = 1;
pub(super) const NO: u8 = 2;

impl Schedule {
    pub(super) fn open(&mut self, id: Id) {
        let at = id as usize;
        if self.open.len() <= at {
            self.open.resize(at + 1, false);
        }
        self.open[at] = true;
    }

    pub(super) fn close(&mut self, id: Id) -> bool {
        let was = self.open.get_mut(id as usize).is_some_and(std::mem::take);
        self.skip();
        was
    }

    pub(super) fn push(&mut self, at: MonoTime, kind: u8, id: Id) {
        self.heap.push(Reverse((at, kind, id)));
    }

    pub(super) fn next(&self) -> Option<MonoTime> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next thing at or before `now`. What ends a request closes it.
    pub(super) fn pop(&mut self, now: MonoTime) -> Option<(u8, Id)> {
        let Reverse((at, kind, id)) = *self.heap.peek()?;
        if at > now {
            return None;
        }
        self.heap.pop();
        if kind != FIRST {
            self.open[id as usize] = false;
        }
        self.skip();
        Some((kind, id))
    }

    fn skip(&mut self) {
        while let Some(Reverse((_, _, id))) = self.heap.peek()
            && !self.open[*id as usize]
        {
            self.heap.pop();
        }
    }
}

/// The upstream.
#[derive(Debug)]
pub struct Service {
    time: Time,
    seed: u64,
    schedule: Schedule,
}

impl Service {
    /// Idle.
    #[must_use]
    pub fn new(time: Time, seed: u64) -> Self {
        Self { time, seed, schedule: Schedule::default() }
    }
}

impl Upstream for Service {
    fn begin(&mut self, now: MonoTime, id: Id, request: &Request) -> bool {
        let whole = self.time.of(self.seed, id, request);
        self.schedule.open(id);
        if self.time.streams() {
            self.schedule.push(now + self.time.first(whole, request), FIRST, id);
        }
        self.schedule.push(now + whole, LAST, id);
        false
    }

    fn cancel(&mut self, _: MonoTime, id: Id) {
        self.schedule.close(id);
    }

    fn next(&self) -> Option<MonoTime> {
        self.schedule.next()
    }

    fn advance(&mut self, now: MonoTime, signs: &mut Vec<Sign>) {
        while let Some((kind, id)) = self.schedule.pop(now) {
            signs.push(if kind == FIRST { Sign::FirstToken(id) } else { Sign::Done(id) });
        }
    }
}
