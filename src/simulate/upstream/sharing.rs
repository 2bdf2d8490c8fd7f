//! A batch server with a knee: everyone shares, and beyond a point everyone loses.
//!
//! ```text
//! throughput(n) = n / token                       n ≤ slots         (each at full speed)
//!               = slots / token                   n ≤ knee
//!               = slots / token · (1 → worst)     knee < n ≤ floor  (linear)
//!               = slots / token · worst           beyond; at most `run` run, the rest wait inside
//! ```
//! Processor sharing on a virtual clock: `v` is the work that each running request has been given since the
//! beginning, in seconds at full speed. A request that starts at `v` with work `w` ends at `v + w`, whatever
//! happens meanwhile, so a heap by that key needs O(log n) per event however often the speed changes.

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::policy::units::MonoTime;
use crate::simulate::request::Request;
use crate::simulate::upstream::service::seconds;
use crate::simulate::upstream::{Id, Sign};

/// The server's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Law {
    /// Requests side by side at full speed.
    pub slots: u32,
    /// Requests beyond which the total throughput falls.
    pub knee: u32,
    /// Requests at which it has fallen to `worst`.
    pub floor: u32,
    /// Share of the throughput that is left there.
    pub worst: f64,
    /// Requests that run at most.
    pub run: u32,
    /// Seconds per token of the answer, at full speed.
    pub token: f64,
    /// Prompt tokens per second, at full speed.
    pub prefill: f64,
}

impl Law {
    /// The reference batch server: 32 at full speed, knee at 64, 40 % at 128, 256 at most.
    #[must_use]
    pub const fn reference(slots: u32) -> Self {
        Self {
            slots,
            knee: 2 * slots,
            floor: 4 * slots,
            worst: 0.4,
            run: 8 * slots,
            token: 0.020,
            prefill: 20_000.0,
        }
    }

    /// Work that each of `n` running requests is given per second, 1 at full speed.
    fn speed(&self, n: usize) -> f64 {
        let (n, slots) = (n as f64, f64::from(self.slots));
        if n <= slots {
            return 1.0;
        }
        let (knee, floor) = (f64::from(self.knee), f64::from(self.floor));
        let beyond = if floor > knee {
            ((n - knee) / (floor - knee)).clamp(0.0, 1.0)
        } else {
            f64::from(u8::from(n > knee))
        };
        slots * (1.0 - (1.0 - self.worst) * beyond) / n
    }

    fn prefill_work(&self, request: &Request) -> f64 {
        f64::from(request.prompt) / self.prefill
    }

    fn work(&self, request: &Request) -> f64 {
        self.prefill_work(request) + f64::from(request.output.max(1)) * self.token
    }

    /// The time of a request that has the server for itself.
    #[must_use]
    pub fn alone(&self, request: &Request) -> Duration {
        seconds(self.work(request))
    }
}

/// When, in virtual work, something is reached.
#[derive(Clone, Copy, Debug)]
struct Mark {
    v: f64,
    last: bool,
    id: Id,
}

impl PartialEq for Mark {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Mark {}
impl PartialOrd for Mark {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Mark {
    fn cmp(&self, other: &Self) -> Ordering {
        self.v.total_cmp(&other.v).then(self.last.cmp(&other.last)).then(self.id.cmp(&other.id))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    Inside,
    Running,
}

/// The server.
#[derive(Debug)]
pub(super) struct Server {
    law: Law,
    v: f64,
    at: MonoTime,
    running: usize,
    marks: BinaryHeap<Reverse<Mark>>,
    inside: VecDeque<(Id, f64, f64)>,
    places: Vec<Place>,
}

/// Rounding of a moment to whole nanoseconds must not leave a mark just out of reach.
const SLACK: f64 = 1e-9;

impl Server {
    pub(super) fn new(law: Law) -> Self {
        Self {
            law,
            v: 0.0,
            at: MonoTime::ZERO,
            running: 0,
            marks: BinaryHeap::new(),
            inside: VecDeque::new(),
            places: Vec::new(),
        }
    }

    /// Requests here, running or not.
    pub(super) fn load(&self) -> usize {
        self.running + self.inside.len()
    }

    pub(super) fn begin(&mut self, now: MonoTime, id: Id, request: &Request) {
        self.settle(now);
        let at = id as usize;
        if self.places.len() <= at {
            self.places.resize(at + 1, Place::Nowhere);
        }
        let (first, whole) = (self.law.prefill_work(request) + self.law.token, self.law.work(request));
        if self.running < self.law.run as usize {
            self.start(id, first, whole);
        } else {
            self.places[at] = Place::Inside;
            self.inside.push_back((id, first, whole));
        }
    }

    fn start(&mut self, id: Id, first: f64, whole: f64) {
        self.places[id as usize] = Place::Running;
        self.running += 1;
        self.marks.push(Reverse(Mark { v: self.v + first, last: false, id }));
        self.marks.push(Reverse(Mark { v: self.v + whole, last: true, id }));
    }

    pub(super) fn cancel(&mut self, now: MonoTime, id: Id) {
        self.settle(now);
        let place = self.places.get_mut(id as usize).map(|p| std::mem::replace(p, Place::Nowhere));
        match place {
            Some(Place::Running) => {
                self.running -= 1;
                self.refill();
            }
            Some(Place::Inside) => self.inside.retain(|(waiting, ..)| *waiting != id),
            _ => {}
        }
        self.skip();
    }

    pub(super) fn next(&self) -> Option<MonoTime> {
        let Reverse(mark) = self.marks.peek()?;
        let left = (mark.v - self.v).max(0.0) / self.law.speed(self.running);
        Some(self.at + Duration::from_nanos((left * 1e9).ceil() as u64))
    }

    pub(super) fn advance(&mut self, now: MonoTime, signs: &mut Vec<Sign>) {
        self.settle(now);
        while let Some(Reverse(mark)) = self.marks.peek().copied()
            && mark.v <= self.v + SLACK
        {
            self.marks.pop();
            if mark.last {
                self.places[mark.id as usize] = Place::Nowhere;
                self.running -= 1;
                signs.push(Sign::Done(mark.id));
            } else {
                signs.push(Sign::FirstToken(mark.id));
            }
            self.skip();
        }
        self.refill();
    }

    fn refill(&mut self) {
        while self.running < self.law.run as usize
            && let Some((id, first, whole)) = self.inside.pop_front()
        {
            self.start(id, first, whole);
        }
    }

    fn settle(&mut self, now: MonoTime) {
        if self.running > 0 {
            self.v += now.since(self.at).as_secs_f64() * self.law.speed(self.running);
        }
        self.at = self.at.max(now);
    }

    /// Marks of requests that left.
    fn skip(&mut self) {
        while let Some(Reverse(mark)) = self.marks.peek()
            && self.places[mark.id as usize] != Place::Running
        {
            self.marks.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(output: u32) -> Request {
        Request { at: MonoTime::ZERO, prompt: 0, output }
    }

    fn drain(s: &mut Server) -> Vec<(f64, Sign)> {
        let mut all = Vec::new();
        while let Some(at) = s.next() {
            let mut signs = Vec::new();
            s.advance(at, &mut signs);
            all.extend(signs.into_iter().map(|sign| (at.as_nanos() as f64 / 1e9, sign)));
        }
        all
    }

    #[test]
    fn the_speed_is_the_reference_s() {
        let law = Law::reference(32);
        // time per token = 20 ms · max(1, n / 32), to 64; at 128 the total is 40 %, and stays there
        for (n, total) in [(1, 1.0), (32, 32.0), (48, 32.0), (64, 32.0), (96, 22.4), (128, 12.8), (256, 12.8)]
        {
            let got = law.speed(n) * n as f64;
            assert!((got - total).abs() < 1e-9, "{n}: {got}");
        }
    }

    #[test]
    fn sharing_slows_everyone_and_a_departure_speeds_up_the_rest() {
        let mut s = Server::new(Law::reference(1));
        // two of 100 tokens share one slot: both would end at 4 s; one leaves at 2 s with 1 s of work left
        s.begin(MonoTime::ZERO, 0, &request(100));
        s.begin(MonoTime::ZERO, 1, &request(100));
        let mut signs = Vec::new();
        s.advance(MonoTime::from_secs(2), &mut signs);
        assert_eq!(signs, vec![Sign::FirstToken(0), Sign::FirstToken(1)]);
        s.cancel(MonoTime::from_secs(2), 1);
        let rest = drain(&mut s);
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0].1, Sign::Done(0));
        assert!((rest[0].0 - 3.0).abs() < 1e-6, "{rest:?}");
    }

    #[test]
    fn no_more_run_than_may_and_the_rest_follow_in_their_order() {
        let mut s = Server::new(Law { run: 2, ..Law::reference(2) });
        (0..4).for_each(|id| s.begin(MonoTime::ZERO, id, &request(50)));
        assert_eq!((s.running, s.load()), (2, 4));
        let ends: Vec<_> = drain(&mut s).into_iter().filter(|(_, s)| matches!(s, Sign::Done(_))).collect();
        assert_eq!(ends.iter().map(|(at, _)| at.round()).collect::<Vec<_>>(), vec![1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn work_is_conserved_whatever_the_arrivals() {
        let law = Law::reference(4);
        let mut s = Server::new(law);
        let (mut now, mut work, mut signs) = (MonoTime::ZERO, 0.0, Vec::new());
        for id in 0..500 {
            now = now + Duration::from_millis(u64::from(id * 7919 % 200));
            s.advance(now, &mut signs);
            let r = request(10 + id % 50);
            work += law.work(&r);
            s.begin(now, id, &r);
        }
        drain(&mut s);
        // never faster than its slots
        assert!(s.at.as_nanos() as f64 / 1e9 >= work / 4.0 - 1e-6);
        assert_eq!(s.load(), 0);
    }
}
