//! Several batch servers that take time to start: the upstream for which a forecast earns money.
//!
//! A replica is paid for from the moment it is asked for, serves `start` later, and takes at most `per` requests
//! at once: the proxy's limit is `per` × those that serve. A new request goes to the replica with the fewest.
//!
//! Fewer are wanted: those that have not started yet are given up first, the newest first; then the least loaded
//! one takes no new requests and ends when its last is done. Until then it is paid for, and if more are wanted
//! again, it is the first to come back, at once.

use std::time::Duration;

use crate::policy::units::MonoTime;
use crate::simulate::request::Request;
use crate::simulate::upstream::sharing::{Law, Server};
use crate::simulate::upstream::{Id, Sign, Upstream, Wanted};

/// The numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Each replica's law.
    pub law: Law,
    /// From the request for a replica until it serves.
    pub start: Duration,
    /// Requests that a replica is given at most.
    pub per: u32,
    /// Replicas at the beginning.
    pub first: u32,
    /// Replicas there can be at most.
    pub most: u32,
}

impl Params {
    /// The reference: 16 at full speed, knee at 32, at most 64 run, 32 given; two at the beginning.
    #[must_use]
    pub const fn reference(start: Duration) -> Self {
        let law = Law { run: 64, ..Law::reference(16) };
        Self { law, start, per: 32, first: 2, most: 1000 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Starting(MonoTime),
    Ready,
    /// Takes nothing new.
    Ending,
}

#[derive(Debug)]
struct Replica {
    state: State,
    server: Server,
}

/// The upstream.
#[derive(Debug)]
pub struct Replicas {
    params: Params,
    /// By number of the replica; ended ones are `None` until their number is used again.
    all: Vec<Option<Replica>>,
    /// Where each request is.
    places: Vec<u32>,
    ready: u32,
    paid: u32,
}

const NOWHERE: u32 = u32::MAX;

impl Replicas {
    /// `first` replicas that serve.
    #[must_use]
    pub fn new(params: Params) -> Self {
        let first = params.first.clamp(1, params.most);
        let one = || Some(Replica { state: State::Ready, server: Server::new(params.law) });
        let all = (0..first).map(|_| one()).collect();
        Self { params, all, places: Vec::new(), ready: first, paid: first }
    }

    fn alive(&self) -> impl Iterator<Item = (usize, &Replica)> {
        self.all.iter().enumerate().filter_map(|(n, r)| r.as_ref().map(|r| (n, r)))
    }

    fn least(&self, state: State) -> Option<usize> {
        self.alive()
            .filter(|(_, r)| r.state == state)
            .min_by_key(|(n, r)| (r.server.load(), *n))
            .map(|(n, _)| n)
    }

    fn start(&mut self, now: MonoTime) {
        let fresh =
            Replica { state: State::Starting(now + self.params.start), server: Server::new(self.params.law) };
        match self.all.iter_mut().find(|r| r.is_none()) {
            Some(free) => *free = Some(fresh),
            None => self.all.push(Some(fresh)),
        }
    }

    fn set(&mut self, n: usize, state: State) {
        if let Some(Some(r)) = self.all.get_mut(n) {
            r.state = state;
        }
    }

    /// Those that have started serve; those that were to end and have nothing left are gone.
    fn settle(&mut self, now: MonoTime) {
        for replica in &mut self.all {
            if let Some(r) = replica {
                match r.state {
                    State::Starting(at) if at <= now => r.state = State::Ready,
                    State::Ending if r.server.load() == 0 => *replica = None,
                    _ => {}
                }
            }
        }
        self.ready = self.alive().filter(|(_, r)| r.state == State::Ready).count() as u32;
        self.paid = self.alive().count() as u32;
    }
}

impl Upstream for Replicas {
    fn begin(&mut self, now: MonoTime, id: Id, request: &Request) -> bool {
        // the gate's limit follows the replicas, so one of them serves; an ending one is better than none
        let Some(n) = self.least(State::Ready).or_else(|| self.least(State::Ending)) else { return false };
        let at = id as usize;
        if self.places.len() <= at {
            self.places.resize(at + 1, NOWHERE);
        }
        self.places[at] = n as u32;
        if let Some(Some(r)) = self.all.get_mut(n) {
            r.server.begin(now, id, request);
        }
        false
    }

    fn cancel(&mut self, now: MonoTime, id: Id) {
        let n = self.places.get(id as usize).map_or(NOWHERE, |n| *n) as usize;
        if let Some(Some(r)) = self.all.get_mut(n) {
            r.server.cancel(now, id);
        }
        self.settle(now);
    }

    fn next(&self) -> Option<MonoTime> {
        let of = |r: &Replica| match r.state {
            State::Starting(at) => Some(at),
            _ => r.server.next(),
        };
        self.alive().filter_map(|(_, r)| of(r)).min()
    }

    fn advance(&mut self, now: MonoTime, signs: &mut Vec<Sign>) {
        for replica in self.all.iter_mut().flatten() {
            if replica.server.next().is_some_and(|at| at <= now) {
                replica.server.advance(now, signs);
            }
        }
        self.settle(now);
    }

    fn prepare(&mut self, now: MonoTime, wanted: Wanted) {
        let Some(wanted) = wanted.replicas else { return };
        let wanted = wanted.clamp(1, self.params.most);
        let mut have = self.alive().filter(|(_, r)| r.state != State::Ending).count() as u32;
        while have < wanted {
            match self.least(State::Ending) {
                Some(n) => self.set(n, State::Ready),
                None => self.start(now),
            }
            have += 1;
        }
        while have > wanted {
            let newest = self.alive().filter_map(|(n, r)| match r.state {
                State::Starting(at) => Some((at, n)),
                _ => None,
            });
            if let Some((_, n)) = newest.max() {
                self.all[n] = None;
            } else if let Some(n) = self.least(State::Ready) {
                self.set(n, State::Ending);
            }
            have -= 1;
        }
        self.settle(now);
    }

    fn supply(&self) -> Option<u32> {
        Some(self.ready.saturating_mul(self.params.per))
    }

    fn replicas(&self) -> (u32, u32) {
        (self.ready, self.paid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(replicas: u32) -> Wanted {
        Wanted { replicas: Some(replicas), connections: None }
    }

    #[test]
    fn a_replica_is_paid_from_the_request_and_serves_after_its_start() {
        let mut r = Replicas::new(Params::reference(Duration::from_secs(30)));
        assert_eq!((r.replicas(), r.supply()), ((2, 2), Some(64)));
        r.prepare(MonoTime::from_secs(10), want(4));
        assert_eq!(r.replicas(), (2, 4));
        assert_eq!(r.next(), Some(MonoTime::from_secs(40)));
        r.advance(MonoTime::from_secs(40), &mut Vec::new());
        assert_eq!((r.replicas(), r.supply()), ((4, 4), Some(128)));
    }

    #[test]
    fn one_that_ends_finishes_its_work_and_is_first_to_come_back() {
        let mut r = Replicas::new(Params::reference(Duration::from_secs(30)));
        let request = Request { at: MonoTime::ZERO, prompt: 0, output: 100 };
        (0..3).for_each(|id| {
            r.begin(MonoTime::ZERO, id, &request);
        });
        r.prepare(MonoTime::ZERO, want(1));
        assert_eq!((r.replicas(), r.supply()), ((1, 2), Some(32)), "the one with a single request ends");
        r.prepare(MonoTime::from_secs(1), want(2));
        assert_eq!(r.replicas(), (2, 2));
        r.prepare(MonoTime::from_secs(1), want(1));
        r.advance(MonoTime::from_secs(2), &mut Vec::new());
        assert_eq!(r.replicas(), (1, 1));
        // one that has not started is given up at once
        r.prepare(MonoTime::from_secs(3), want(5));
        r.prepare(MonoTime::from_secs(4), want(1));
        assert_eq!((r.replicas(), r.next()), ((1, 1), None));
    }
}
