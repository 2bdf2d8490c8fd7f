//! An upstream whose connections cost time to make and do not live for ever.
//!
//! A request takes the idle connection that was used last; without one it waits for a handshake, U(least, most).
//! The upstream closes a connection that was idle for `idle`. Where the policy wants a number of warm ones, the
//! missing ones are opened in the background, and an idle one that is about to be closed is replaced by a new one
//! before that, as the live pool does.

use std::collections::VecDeque;
use std::time::Duration;

use crate::chance::{hash, unit};
use crate::policy::units::MonoTime;
use crate::simulate::request::Request;
use crate::simulate::upstream::service::{LAST, Schedule, Time, seconds};
use crate::simulate::upstream::{Id, Sign, Upstream, Wanted};

/// The numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// How long a request takes on a warm connection.
    pub time: Time,
    /// The quickest handshake.
    pub least: Duration,
    /// The slowest.
    pub most: Duration,
    /// How long an idle connection lives.
    pub idle: Duration,
}

/// The upstream.
#[derive(Debug)]
pub struct Handshake {
    params: Params,
    seed: u64,
    schedule: Schedule,
    /// Since when each idle connection is idle, the longest first.
    idle: VecDeque<MonoTime>,
    busy: u32,
    /// When each connection that is opened in the background is ready, and which idle one it replaces.
    opening: VecDeque<(MonoTime, Option<MonoTime>)>,
    wanted: u32,
    opened: u64,
}

impl Handshake {
    /// Without a connection.
    #[must_use]
    pub fn new(params: Params, seed: u64) -> Self {
        Self {
            params,
            seed,
            schedule: Schedule::default(),
            idle: VecDeque::new(),
            busy: 0,
            opening: VecDeque::new(),
            wanted: 0,
            opened: 0,
        }
    }

    fn handshake(&self, n: u64, step: u64) -> Duration {
        let (least, most) = (self.params.least.as_secs_f64(), self.params.most.as_secs_f64());
        seconds(least + unit(hash(self.seed, n, step)) * (most - least))
    }

    fn open(&mut self, now: MonoTime, replaces: Option<MonoTime>) {
        self.opened += 1;
        // a stream of its own: what is opened in the background must not change what the requests draw
        let took = self.handshake(self.opened, 2);
        let at = now + took;
        let place = self.opening.partition_point(|(other, _)| *other <= at);
        self.opening.insert(place, (at, replaces));
    }

    /// A little before the upstream closes it, so that its successor is ready then: it is looked at once a second.
    fn renewed_after(&self) -> Duration {
        self.params.idle.saturating_sub(Duration::from_secs(1) + self.params.most * 2)
    }

    fn count(&self) -> u32 {
        let replacing = self.opening.iter().filter(|(_, replaces)| replaces.is_some()).count();
        let all = self.idle.len() + self.opening.len() - replacing;
        self.busy.saturating_add(u32::try_from(all).unwrap_or(u32::MAX))
    }

    /// Connections that are ready, and those that the upstream closes.
    fn settle(&mut self, now: MonoTime) {
        loop {
            let ready = self.opening.front().map(|(at, _)| *at);
            let closed = self.idle.front().map(|since| *since + self.params.idle);
            match (ready, closed) {
                (Some(at), closed) if at <= now && closed.is_none_or(|c| at <= c) => {
                    // unless a request has taken the old one meanwhile
                    if let Some((_, Some(old))) = self.opening.pop_front()
                        && let Some(place) = self.idle.iter().position(|since| *since == old)
                    {
                        self.idle.remove(place);
                    }
                    self.idle.push_back(at);
                }
                (_, Some(at)) if at <= now => {
                    self.idle.pop_front();
                }
                _ => return,
            }
        }
    }
}

impl Upstream for Handshake {
    fn begin(&mut self, now: MonoTime, id: Id, request: &Request) -> bool {
        self.settle(now);
        let whole = self.params.time.of(self.seed, id, request);
        let warm = self.idle.pop_back().is_some();
        let extra = if warm { Duration::ZERO } else { self.handshake(id.into(), 1) };
        self.busy += 1;
        self.schedule.open(id);
        self.schedule.push(now + extra + whole, LAST, id);
        !warm
    }

    fn cancel(&mut self, _: MonoTime, id: Id) {
        // a cancelled answer's connection cannot be used again
        if self.schedule.close(id) {
            self.busy -= 1;
        }
    }

    fn next(&self) -> Option<MonoTime> {
        self.schedule.next()
    }

    fn advance(&mut self, now: MonoTime, signs: &mut Vec<Sign>) {
        self.settle(now);
        while let Some((_, id)) = self.schedule.pop(now) {
            signs.push(Sign::Done(id));
            self.busy -= 1;
            self.idle.push_back(now);
        }
    }

    fn prepare(&mut self, now: MonoTime, wanted: Wanted) {
        self.settle(now);
        self.wanted = wanted.connections.unwrap_or(self.wanted);
        while self.count() < self.wanted {
            self.open(now, None);
        }
        let after = self.renewed_after();
        // one that is not wanted is left to die
        let spare = self.count().saturating_sub(self.wanted) as usize;
        let old: Vec<MonoTime> =
            self.idle.iter().take_while(|since| now.since(**since) >= after).skip(spare).copied().collect();
        for since in old {
            if !self.opening.iter().any(|(_, replaces)| *replaces == Some(since)) {
                self.open(now, Some(since));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(idle: u64) -> Handshake {
        let ms = Duration::from_millis;
        let time = Time::Constant(ms(100));
        Handshake::new(Params { time, least: ms(50), most: ms(150), idle: Duration::from_secs(idle) }, 3)
    }

    #[test]
    fn a_connection_is_warm_until_the_upstream_closes_it() {
        let mut h = upstream(60);
        let request = Request { at: MonoTime::ZERO, prompt: 0, output: 0 };
        assert!(h.begin(MonoTime::ZERO, 0, &request));
        let end = h.next().unwrap();
        assert!(end >= MonoTime::ZERO + Duration::from_millis(150));
        let mut signs = Vec::new();
        h.advance(end, &mut signs);
        assert!(!h.begin(end + Duration::from_secs(59), 1, &request));
        let end = h.next().unwrap();
        h.advance(end, &mut signs);
        assert!(h.begin(end + Duration::from_secs(61), 2, &request));
    }

    #[test]
    fn warm_ones_are_kept_and_renewed_and_no_more_than_wanted() {
        for idle in [5, 60] {
            let mut h = upstream(idle);
            let request = Request { at: MonoTime::ZERO, prompt: 0, output: 0 };
            for s in 0..1000_u64 {
                let now = MonoTime::from_secs(s);
                h.advance(now, &mut Vec::new());
                h.prepare(now, Wanted { connections: Some(3), replicas: None });
                if s > 1 {
                    h.settle(now + Duration::from_millis(500));
                    assert_eq!(h.idle.len() + h.opening.len(), 3, "at {s}");
                    if s % 100 == 50 {
                        let id = s as Id;
                        assert!(!h.begin(now + Duration::from_millis(500), id, &request), "cold at {s}");
                    }
                }
            }
        }
    }
}
