//! An upstream whose connections cost time to make and do not live for ever.
//!
//! A request takes the idle connection that was used last; without one it waits for a handshake, U(least, most).
//! The upstream closes a connection that was idle for `idle`. Where the policy wants a number of warm ones, they are
//! opened and renewed at the pace of the live pool with one worker, which looks each second, or each tenth of `idle`
//! where that is shorter:
//!
//! ```text
//! stale    = idle ones unused for idle · (0.60 + 0.25 u)     u = frac(n · 0.618…), n = the connection's number
//! missing  = wanted + stale − (idle + busy + opening)         1 at a time, twice as many with each success, 16 at most
//! ```
//! So the replacement is there before the upstream closes the old one, which nobody has to close.
//! Without the same pace a forecast would look better here than it can be live. Left out: `upstream.refresh`, since no
//! connection here is worse for its age, and failed handshakes, since here none fails.

use std::collections::{BTreeMap, VecDeque};
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

/// Handshakes in the background at a time.
const MAX_AT_ONCE: usize = 16;
/// The fractional part of the golden ratio.
const GOLDEN: f64 = 0.618_033_988_749_894_9;

/// A connection that is not in use.
#[derive(Clone, Copy, Debug)]
struct Idle {
    since: MonoTime,
    /// Its number, which says when it is to be renewed.
    n: u64,
}

/// The upstream.
#[derive(Debug)]
pub struct Handshake {
    params: Params,
    seed: u64,
    schedule: Schedule,
    /// The longest idle first.
    idle: VecDeque<Idle>,
    /// Numbers of the connections in use, by request.
    busy: BTreeMap<Id, u64>,
    /// When each connection that is opened in the background is ready.
    opening: VecDeque<MonoTime>,
    wanted: u32,
    /// What the last look found missing and has not been begun yet.
    missing: usize,
    at_once: usize,
    /// When connections are looked at between two seconds.
    look: Option<MonoTime>,
    opened: u64,
    numbers: u64,
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
            busy: BTreeMap::new(),
            opening: VecDeque::new(),
            wanted: 0,
            missing: 0,
            at_once: 1,
            look: None,
            opened: 0,
            numbers: 0,
        }
    }

    fn handshake(&self, n: u64, step: u64) -> Duration {
        let (least, most) = (self.params.least.as_secs_f64(), self.params.most.as_secs_f64());
        seconds(least + unit(hash(self.seed, n, step)) * (most - least))
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Begins as many of the missing ones as may be opened at a time.
    fn open(&mut self, now: MonoTime) {
        while self.missing > 0 && self.opening.len() < self.at_once {
            self.missing -= 1;
            self.opened += 1;
            // a stream of its own: what is opened in the background must not change what the requests draw
            let at = now + self.handshake(self.opened, 2);
            let place = self.opening.partition_point(|other| *other <= at);
            self.opening.insert(place, at);
        }
    }

    fn is_stale(&self, c: Idle, now: MonoTime) -> bool {
        let u = (c.n as f64 * GOLDEN).fract();
        now.since(c.since) >= self.params.idle.mul_f64(0.60 + 0.25 * u)
    }

    /// Finds what is missing, and begins to open it.
    fn take_stock(&mut self, now: MonoTime) {
        let wanted = self.wanted as usize;
        let stale = self.idle.iter().filter(|c| self.is_stale(**c, now)).count();
        let have = self.idle.len() + self.busy.len() + self.opening.len();
        self.missing = if wanted > 0 { (wanted + stale).saturating_sub(have) } else { 0 };
        self.open(now);
        let glance = (self.params.idle / 10).max(Duration::from_millis(20));
        self.look = (wanted > 0 && glance < Duration::from_secs(1)).then(|| now + glance);
    }

    /// Connections that are ready, those that the upstream closes, and looks that are due, in the order of time.
    fn settle(&mut self, now: MonoTime) {
        loop {
            let ready = self.opening.front().copied().unwrap_or(MonoTime::MAX);
            let look = self.look.unwrap_or(MonoTime::MAX);
            let closed = self.idle.front().map_or(MonoTime::MAX, |c| c.since + self.params.idle);
            let first = ready.min(look).min(closed);
            if first > now || first == MonoTime::MAX {
                return;
            }
            if ready == first {
                self.opening.pop_front();
                let n = self.number();
                self.idle.push_back(Idle { since: first, n });
                self.at_once = (self.at_once * 2).min(MAX_AT_ONCE);
                self.open(first);
            } else if look == first {
                self.take_stock(first);
            } else {
                self.idle.pop_front();
            }
        }
    }
}

impl Upstream for Handshake {
    fn begin(&mut self, now: MonoTime, id: Id, request: &Request) -> bool {
        self.settle(now);
        let whole = self.params.time.of(self.seed, id, request);
        let idle = self.idle.pop_back();
        let extra = if idle.is_some() { Duration::ZERO } else { self.handshake(id.into(), 1) };
        let n = idle.map_or_else(|| self.number(), |c| c.n);
        self.busy.insert(id, n);
        self.schedule.open(id);
        self.schedule.push(now + extra + whole, LAST, id);
        idle.is_none()
    }

    fn cancel(&mut self, now: MonoTime, id: Id) {
        self.settle(now);
        // a cancelled answer's connection cannot be used again
        self.schedule.close(id);
        self.busy.remove(&id);
    }

    fn next(&self) -> Option<MonoTime> {
        self.schedule.next()
    }

    fn advance(&mut self, now: MonoTime, signs: &mut Vec<Sign>) {
        self.settle(now);
        while let Some((_, id)) = self.schedule.pop(now) {
            signs.push(Sign::Done(id));
            if let Some(n) = self.busy.remove(&id) {
                self.idle.push_back(Idle { since: now, n });
            }
        }
    }

    fn prepare(&mut self, now: MonoTime, wanted: Wanted) {
        self.settle(now);
        self.wanted = wanted.connections.unwrap_or(self.wanted);
        self.take_stock(now);
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
    fn they_are_opened_one_then_twice_as_many_with_each_success() {
        let mut h = upstream(60);
        h.prepare(MonoTime::ZERO, Wanted { connections: Some(100), replicas: None });
        let mut seen = vec![(h.idle.len(), h.opening.len())];
        while let Some(at) = h.opening.front().copied() {
            h.settle(at);
            seen.push((h.idle.len(), h.opening.len()));
        }
        assert_eq!(seen[..6], [(0, 1), (1, 2), (2, 4), (3, 8), (4, 16), (5, 16)]);
        assert_eq!(seen.last(), Some(&(100, 0)));
    }

    #[test]
    fn they_are_renewed_one_by_one_between_60_and_85_percent_of_the_idle_time() {
        let mut h = upstream(100);
        let mut renewed = std::collections::BTreeMap::new();
        for s in 0..100 {
            let before = h.opened;
            h.prepare(MonoTime::from_secs(s), Wanted { connections: Some(50), replicas: None });
            h.settle(MonoTime::from_secs(s) + Duration::from_millis(900));
            renewed.insert(s, h.opened - before);
        }
        let within: u64 = renewed.range(60..=87).map(|(_, n)| *n).sum();
        let outside: u64 = renewed.range(3..60).chain(renewed.range(88..)).map(|(_, n)| *n).sum();
        assert_eq!((within, outside), (50, 0), "{renewed:?}");
        assert!(renewed.range(60..=87).all(|(_, n)| *n <= 5), "{renewed:?}");
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
                    let now = now + Duration::from_millis(500);
                    h.settle(now);
                    // while they are replaced there may be twice as many
                    assert!((3..=6).contains(&h.idle.len()), "{:?} at {s}", h.idle);
                    if s % 100 == 50 {
                        assert!(!h.begin(now, s as Id, &request), "cold at {s}");
                    }
                }
            }
        }
    }
}
