//! Servers that do one request at a time and take time to start: each permit is a replica.
//!
//! The third table of the source article's workload. As in [`Replicas`](super::Replicas) a slot is paid for from the
//! request for it; those that have not started are given up first, the newest first, and one that is busy when
//! it is no longer wanted ends with its request.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::units::MonoTime;
use crate::simulate::request::Request;
use crate::simulate::upstream::service::{FIRST, LAST, Schedule, Time};
use crate::simulate::upstream::{Id, Sign, Upstream, Wanted};

/// The numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// How long a request takes.
    pub time: Time,
    /// From the request for a slot until it serves.
    pub start: Duration,
}

/// The upstream.
#[derive(Debug)]
pub struct Slots {
    params: Params,
    seed: u64,
    /// Those that serve, the ones to end included.
    ready: u32,
    ending: u32,
    busy: u32,
    starting: VecDeque<MonoTime>,
    schedule: Schedule,
}

impl Slots {
    /// `first` slots that serve.
    #[must_use]
    pub fn new(params: Params, seed: u64, first: u32) -> Self {
        let ready = first.max(1);
        let schedule = Schedule::default();
        Self { params, seed, ready, ending: 0, busy: 0, starting: VecDeque::new(), schedule }
    }

    /// Idle slots that are not wanted are gone.
    fn settle(&mut self) {
        let gone = self.ending.min(self.ready.saturating_sub(self.busy));
        self.ready -= gone;
        self.ending -= gone;
    }
}

impl Upstream for Slots {
    fn begin(&mut self, now: MonoTime, id: Id, request: &Request) -> bool {
        let whole = self.params.time.of(self.seed, id, request);
        self.busy += 1;
        self.schedule.open(id);
        if self.params.time.streams() {
            self.schedule.push(now + self.params.time.first(whole, request), FIRST, id);
        }
        self.schedule.push(now + whole, LAST, id);
        false
    }

    fn cancel(&mut self, _: MonoTime, id: Id) {
        if self.schedule.close(id) {
            self.busy -= 1;
            self.settle();
        }
    }

    fn next(&self) -> Option<MonoTime> {
        let started = self.starting.front().copied();
        [started, self.schedule.next()].into_iter().flatten().min()
    }

    fn advance(&mut self, now: MonoTime, signs: &mut Vec<Sign>) {
        while self.starting.front().is_some_and(|at| *at <= now) {
            self.starting.pop_front();
            self.ready += 1;
        }
        while let Some((kind, id)) = self.schedule.pop(now) {
            signs.push(if kind == FIRST { Sign::FirstToken(id) } else { Sign::Done(id) });
            self.busy -= u32::from(kind != FIRST);
        }
        self.settle();
    }

    fn prepare(&mut self, now: MonoTime, wanted: Wanted) {
        let Some(wanted) = wanted.replicas.map(|n| n.max(1) as usize) else { return };
        let have = |s: &Self| (s.ready - s.ending) as usize + s.starting.len();
        while have(self) < wanted {
            if self.ending > 0 {
                self.ending -= 1;
            } else {
                self.starting.push_back(now + self.params.start);
            }
        }
        while have(self) > wanted {
            if self.starting.pop_back().is_none() {
                self.ending += 1;
            }
        }
        self.settle();
    }

    fn supply(&self) -> Option<u32> {
        Some(self.ready - self.ending)
    }

    fn replicas(&self) -> (u32, u32) {
        let serve = self.ready - self.ending;
        (serve, self.ready + u32::try_from(self.starting.len()).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_slots_end_with_their_request() {
        let time = Time::Constant(Duration::from_secs(2));
        let mut s = Slots::new(Params { time, start: Duration::from_secs(30) }, 1, 3);
        let request = Request { at: MonoTime::ZERO, prompt: 0, output: 0 };
        (0..3).for_each(|id| {
            s.begin(MonoTime::ZERO, id, &request);
        });
        let want = |replicas| Wanted { replicas: Some(replicas), connections: None };
        s.prepare(MonoTime::ZERO, want(1));
        assert_eq!((s.replicas(), s.supply()), ((1, 3), Some(1)));
        s.cancel(MonoTime::from_secs(1), 0);
        assert_eq!(s.replicas(), (1, 2));
        s.prepare(MonoTime::from_secs(1), want(3));
        assert_eq!((s.replicas(), s.next()), ((2, 3), Some(MonoTime::from_secs(2))));
        let mut signs = Vec::new();
        s.advance(MonoTime::from_secs(31), &mut signs);
        assert_eq!((s.replicas(), signs.len()), ((3, 3), 2));
    }
}
