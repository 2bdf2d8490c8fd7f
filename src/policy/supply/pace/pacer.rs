//! When a request may go to one model of one endpoint with one key, and what a 429 from there means.
//!
//! ```text
//!            429 for the rate                 its time has come: the first one goes, alone
//!   Open ──────────────────────▶ Stopped ─────────────────────────────────────▶ Probing
//!    ▲                            ▲   ▲                                          │ │ │
//!    │                            │   └──── it never went, or broke: the next ◀──┘ │ │
//!    │                            └──────── 429 again, twice as long ◀─────────────┘ │
//!    └───────────────────────────────────── answered, or no 429 for four refusals' ◀─┘
//!                                           usual time
//! ```
//! A 429 is quick where an answer may take a minute, so a probe that was not refused by then has passed.
//!
//! An answer that says that a window is used up stops it too, until the window's end; but for a minute at most: then one
//! tries, and if it is answered, such words are not believed until the next refusal.
//!
//! | the 429 says | it means |
//! |---|---|
//! | `retry-after` > 0 | the rate; stopped until then, for ten minutes at most |
//! | `remaining` too little for the request | the rate; stopped until enough has come back, or the reset |
//! | `remaining` enough | too many at once: [`Refusal429::HiddenCap`], the caller lowers S |
//! | nothing that helps one larger than the whole limit | [`Refusal429::Unrelated`] |
//! | nothing, and a known bucket is about empty | the rate; stopped for a second |
//! | nothing, and hardly any is refused | [`Refusal429::Unrelated`] |
//! | nothing | what `guess` makes of it |
//! | no `remaining`, and a share is refused whatever is sent | [`Refusal429::Unrelated`]: this one waits, nobody else |
//!
//! Every charge ends by exactly one of [`Pacer::withdrawn`], [`Pacer::refused`], [`Pacer::settle`]. A wait is always
//! until a finite moment, at which the same question is answered by [`Pace::Now`] unless something happened
//! meanwhile; nothing depends on a ticket that got lost. Without the pacer the upstream's 429 would be the
//! proxy's only clock. Called by the fleet.

mod refusal;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::policy::supply::pace::guess::Guess;
use crate::policy::supply::pace::headers::RateLimits;
use crate::policy::supply::pace::lane::{Lane, LaneStatus, Mark};
use crate::policy::units::{MonoTime, Ticket, Tokens};

/// How long it is believed that a window is used up where nobody was refused.
const UNTRIED: Duration = Duration::from_secs(60);
/// How long a probe is waited for, before and after it is known how long refusals take.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENT: (f64, f64) = (0.1, 2.0);

/// What an operator says of the limits of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PaceParams {
    /// Requests per minute.
    pub requests_per_minute: Option<f64>,
    /// Tokens per minute, prompt and output.
    pub tokens_per_minute: Option<f64>,
    /// The share of the limits that is used, in (0, 1]; `None`: 0.85 of what is only configured, 0.98 once
    /// headers tell what is left, and all of it while that proves right.
    pub buffer: Option<f64>,
}

/// May a request go?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Yes.
    Now,
    /// Not before this moment.
    At(MonoTime),
    /// A probe is out; if nothing is heard of it, not before this moment.
    Probing(MonoTime),
}

/// What a 429 means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal429 {
    /// The rate: nothing goes before this moment.
    Rate {
        /// When the probe may go.
        until: MonoTime,
    },
    /// Too many at once, though no header names such a limit. The bucket goes on; lower S.
    HiddenCap,
    /// A share of everything is refused, whatever is sent: only this one waits.
    Unrelated {
        /// That was found out only now.
        news: bool,
    },
}

/// A pacer in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PacerStatus {
    /// Requests.
    pub requests: LaneStatus,
    /// Tokens.
    pub tokens: LaneStatus,
    /// A rate found by trying, requests per minute, where the upstream names none.
    pub searched: Option<f64>,
    /// Nothing goes before this moment: the upstream refused.
    pub stopped_until: Option<MonoTime>,
    /// One request is trying whether the stop is over.
    pub probing: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Open,
    Stopped { until: MonoTime },
    Probing { ticket: Ticket, until: MonoTime },
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    sent: MonoTime,
    /// Its number among all charges.
    seq: u64,
    cost: f64,
    requests: Mark,
    tokens: Mark,
    /// Others under way when it left.
    others: usize,
    /// Its headers told what tokens remain.
    told: bool,
    answered: bool,
}

/// The limits of one model of one endpoint with one key.
#[derive(Clone, Debug)]
pub struct Pacer {
    requests: Lane,
    tokens: Lane,
    guess: Guess,
    state: State,
    flights: BTreeMap<Ticket, Flight>,
    charges: u64,
    /// It stands still because a window is said to be used up, and whether such words are believed.
    used_up: bool,
    believes: bool,
    /// Stops in a row without an answer in between.
    fails: u32,
    stopped: MonoTime,
    /// How long refusals take, in seconds.
    refusal: Option<f64>,
}

impl Pacer {
    /// With nothing used and nothing known but `params`; numbers that make no sense count as absent.
    #[must_use]
    pub fn new(params: &PaceParams, now: MonoTime) -> Self {
        Self {
            requests: Lane::new(params.requests_per_minute, params.buffer, 1.0, now),
            tokens: Lane::new(params.tokens_per_minute, params.buffer, 0.0, now),
            guess: Guess::new(now),
            state: State::Open,
            flights: BTreeMap::new(),
            charges: 0,
            used_up: false,
            believes: true,
            fails: 0,
            stopped: MonoTime::ZERO,
            refusal: None,
        }
    }

    /// May one of `cost` go?
    #[must_use]
    pub fn ready(&self, now: MonoTime, cost: Tokens) -> Pace {
        match self.state {
            State::Stopped { until } if now < until => return Pace::At(until),
            // the probe is what tells; the buckets were wrong
            State::Stopped { .. } => return Pace::Now,
            State::Probing { until, .. } if now < until => return Pace::Probing(until),
            State::Probing { .. } | State::Open => {}
        }
        let due =
            self.requests.due(now, 1.0).max(self.tokens.due(now, amount(cost))).max(self.guess.due(now));
        if due > now { Pace::At(due) } else { Pace::Now }
    }

    /// `ticket` goes. After a stop the first one is the probe.
    pub fn charge(&mut self, now: MonoTime, ticket: Ticket, cost: Tokens) {
        // a ticket that goes twice went wrong the first time
        if self.flights.contains_key(&ticket) {
            self.settle(now, ticket, None);
        }
        match self.state {
            State::Stopped { .. } => self.state = State::Probing { ticket, until: now + self.patience() },
            State::Probing { until, .. } if now >= until => self.state = State::Open,
            State::Probing { .. } | State::Open => {}
        }
        let cost = amount(cost);
        self.guess.charge(now);
        self.charges += 1;
        let flight = Flight {
            sent: now,
            seq: self.charges,
            cost,
            requests: self.requests.charge(now, 1.0),
            tokens: self.tokens.charge(now, cost),
            others: self.flights.len(),
            told: false,
            answered: false,
        };
        self.flights.insert(ticket, flight);
    }

    /// What the headers of `ticket`'s answer say, unless that is a 429: for that one see [`Pacer::refused`]. Until when
    /// nothing goes now, if that stops it.
    pub fn seen(&mut self, now: MonoTime, ticket: Ticket, limits: &RateLimits) -> Option<MonoTime> {
        let flight = self.flights.get_mut(&ticket)?;
        flight.told |= limits.tokens.remaining.is_some();
        if limits.tokens.remaining.is_some() {
            self.tokens.told(&mut flight.tokens);
        }
        let flight = *flight;
        self.requests.seen(now, flight.requests, true, &limits.requests);
        self.tokens.seen(now, flight.tokens, true, &limits.tokens);
        self.window(now, self.is_probe(ticket))
    }

    /// Stops where a window is said to be used up, and goes on where that is no longer said. `proved`: what said so last
    /// was taken nevertheless.
    fn window(&mut self, now: MonoTime, proved: bool) -> Option<MonoTime> {
        let ends = self.requests.hold().max(self.tokens.hold());
        match self.state {
            State::Open if ends > now && self.believes => {
                let until = ends.min(now + UNTRIED);
                (self.state, self.stopped, self.used_up) = (State::Stopped { until }, now, true);
                return Some(until);
            }
            State::Stopped { .. } if ends <= now && self.used_up => self.state = State::Open,
            State::Probing { .. } if proved && ends > now => self.believes = false,
            _ => {}
        }
        None
    }

    /// What came back of a charge corrects nothing for those that left before it was made.
    fn came_back(&mut self, seq: u64, requests: f64, tokens: f64) {
        if requests == 0.0 && tokens == 0.0 {
            return;
        }
        for flight in self.flights.values_mut().filter(|f| f.seq < seq) {
            flight.requests.came_back(requests);
            flight.tokens.came_back(tokens);
        }
    }

    fn give_back(&mut self, now: MonoTime, flight: &Flight, sent: bool) {
        let requests = self.requests.give_back(now, &flight.requests, sent);
        let tokens = self.tokens.give_back(now, &flight.tokens, sent);
        self.came_back(flight.seq, requests, tokens);
    }

    /// The head of `ticket`'s answer came and is no 429: a probe has passed.
    pub fn answered(&mut self, now: MonoTime, ticket: Ticket) {
        let Some(flight) = self.flights.get_mut(&ticket).filter(|f| !f.answered) else { return };
        flight.answered = true;
        let (sent, others) = (flight.sent, flight.others);
        self.requests.silent(now);
        self.tokens.silent(now);
        self.guess.accepted(now, others);
        // an answer to what left before the stop says nothing about after it
        if sent >= self.stopped {
            self.fails = 0;
        }
        if self.is_probe(ticket) {
            self.state = State::Open;
        }
    }

    /// `ticket` got a 429: it is over, and most of its charge comes back.
    pub fn refused(&mut self, now: MonoTime, ticket: Ticket, limits: &RateLimits) -> Refusal429 {
        let Some(mut flight) = self.flights.remove(&ticket) else {
            // it was forgotten to make room, and blames nothing
            return Refusal429::Unrelated { news: false };
        };
        self.requests.over(&mut flight.requests);
        self.tokens.over(&mut flight.tokens);
        let took = now.since(flight.sent).as_secs_f64();
        self.refusal = Some(self.refusal.map_or(took, |mean| mean + 0.2 * (took - mean)));
        self.give_back(now, &flight, true);
        (self.believes, self.used_up) = (true, false);
        self.requests.seen(now, flight.requests, false, &limits.requests);
        self.tokens.seen(now, flight.tokens, false, &limits.tokens);
        let refusal = self.cause(now, &flight, limits);
        if let Refusal429::Rate { until } = refusal {
            return Refusal429::Rate { until: self.stop(now, ticket, &flight, until) };
        }
        // the stop was for a rate; a probe that meets something else has shown that the rate is fine, unless it was
        // refused for its own size
        if self.tokens.limit().is_some_and(|limit| flight.cost > limit) {
            self.vacate(now, ticket);
        } else if self.is_probe(ticket) {
            self.state = State::Open;
        }
        refusal
    }

    /// What `ticket` really used, at its end; `None`: not known, or there never was an answer.
    pub fn settle(&mut self, now: MonoTime, ticket: Ticket, used: Option<Tokens>) {
        let Some(mut flight) = self.flights.remove(&ticket) else { return };
        self.requests.over(&mut flight.requests);
        self.tokens.over(&mut flight.tokens);
        if let Some(used) = used {
            let back = self.tokens.settle(now, &flight.tokens, amount(used), flight.told);
            self.came_back(flight.seq, 0.0, back);
        }
        if !flight.answered {
            self.vacate(now, ticket);
        }
    }

    /// `ticket` was never sent: its charge comes back, and a probe's place is free again.
    pub fn withdrawn(&mut self, now: MonoTime, ticket: Ticket) {
        let Some(mut flight) = self.flights.remove(&ticket) else { return };
        self.requests.over(&mut flight.requests);
        self.tokens.over(&mut flight.tokens);
        self.give_back(now, &flight, false);
        self.guess.give_back(now);
        self.vacate(now, ticket);
    }

    /// Until when nothing goes because the upstream refused; `None` while it does not.
    #[must_use]
    pub fn stopped_until(&self, now: MonoTime) -> Option<MonoTime> {
        match self.state {
            State::Stopped { until } if until > now => Some(until),
            _ => None,
        }
    }

    /// No stop is in force, and none is being tried.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// The same where a refusal did it: what one answer said of a window is no reason to send anybody away.
    #[must_use]
    pub fn refused_until(&self, now: MonoTime) -> Option<MonoTime> {
        self.stopped_until(now).filter(|_| !self.used_up)
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self, now: MonoTime) -> PacerStatus {
        PacerStatus {
            requests: self.requests.status(now),
            tokens: self.tokens.status(now),
            searched: self.guess.limit().map(|rate| rate * 60.0),
            stopped_until: self.stopped_until(now),
            probing: matches!(self.state, State::Probing { until, .. } if until > now),
        }
    }

    fn is_probe(&self, ticket: Ticket) -> bool {
        matches!(self.state, State::Probing { ticket: probe, .. } if probe == ticket)
    }

    /// The next one is the probe.
    fn vacate(&mut self, now: MonoTime, ticket: Ticket) {
        if self.is_probe(ticket) {
            self.state = State::Stopped { until: now };
        }
    }

    fn patience(&self) -> Duration {
        let usual = |s: f64| Duration::from_secs_f64((4.0 * s).clamp(PATIENT.0, PATIENT.1));
        self.refusal.filter(|s| s.is_finite()).map_or(PATIENCE, usual)
    }
}

fn amount(tokens: Tokens) -> f64 {
    tokens.0 as f64
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::policy::supply::pace::Reading;

    const T: MonoTime = MonoTime::from_secs(100);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn rpm(limit: f64) -> PaceParams {
        PaceParams { requests_per_minute: Some(limit), ..PaceParams::default() }
    }

    fn remaining(limit: f64, remaining: f64) -> RateLimits {
        let requests = Reading { limit: Some(limit), remaining: Some(remaining), ..Reading::default() };
        RateLimits { requests, ..RateLimits::default() }
    }

    fn retry(at: MonoTime) -> RateLimits {
        RateLimits { retry_at: Some(at), ..RateLimits::default() }
    }

    /// Sends whenever it may for `secs`; every answer comes at once and says `limits`.
    fn sent(p: &mut Pacer, from: MonoTime, secs: u64, limits: Option<RateLimits>) -> u64 {
        let (mut now, mut n) = (from, 0);
        while now < from + Duration::from_secs(secs) {
            match p.ready(now, Tokens(0)) {
                Pace::Now => {
                    let ticket = Ticket(now.as_nanos() * 1000 + n);
                    p.charge(now, ticket, Tokens(0));
                    if let Some(limits) = &limits {
                        p.seen(now, ticket, limits);
                    }
                    p.answered(now, ticket);
                    p.settle(now, ticket, None);
                    n += 1;
                }
                Pace::At(at) | Pace::Probing(at) => now = at,
            }
        }
        n
    }

    #[test]
    fn without_limits_everything_goes() {
        let mut p = Pacer::new(&PaceParams::default(), T);
        for n in 0..10_000 {
            assert_eq!(p.ready(T, Tokens(1_000_000)), Pace::Now);
            p.charge(T, Ticket(n), Tokens(1_000_000));
        }
        let nonsense = PaceParams {
            requests_per_minute: Some(f64::NAN),
            tokens_per_minute: Some(-1.0),
            buffer: Some(f64::INFINITY),
        };
        assert_eq!(Pacer::new(&nonsense, T).ready(T, Tokens(u64::MAX)), Pace::Now);
    }

    #[test]
    fn a_configured_limit_is_used_to_85_percent_and_one_that_headers_confirm_to_98() {
        let mut p = Pacer::new(&rpm(600.0), T);
        let n = sent(&mut p, T, 60, None);
        assert!((510..=520).contains(&n), "{n}");
        let mut p = Pacer::new(&rpm(600.0), T);
        let n = sent(&mut p, T, 60, Some(remaining(600.0, 20.0)));
        assert!((588..=610).contains(&n), "{n}");
        let mut p = Pacer::new(&PaceParams { buffer: Some(0.5), ..rpm(600.0) }, T);
        let n = sent(&mut p, T, 60, Some(remaining(600.0, 20.0)));
        assert!((300..=322).contains(&n), "{n}");
    }

    #[test]
    fn a_remaining_that_is_stuck_lifts_nothing_above_the_limit() {
        let mut p = Pacer::new(&PaceParams::default(), T);
        let n = sent(&mut p, T, 300, Some(remaining(60.0, 60.0)));
        assert!((294..=355).contains(&n), "{n}: at most the burst and 98 % of the limit");
    }

    #[test]
    fn a_limit_in_tokens_counts_what_was_used_in_the_end() {
        let params =
            PaceParams { tokens_per_minute: Some(60_000.0), buffer: Some(1.0), ..PaceParams::default() };
        let mut p = Pacer::new(&params, T);
        p.charge(T, Ticket(1), Tokens(1000));
        assert_eq!(p.ready(T, Tokens(500)), Pace::At(T + ms(500) - Duration::from_nanos(499)));
        p.settle(T, Ticket(1), Some(Tokens(200)));
        assert_eq!(p.ready(T, Tokens(500)), Pace::Now);
        // more than was charged: a debt, and everyone waits until it is paid
        p.charge(T, Ticket(2), Tokens(500));
        p.settle(T, Ticket(2), Some(Tokens(5500)));
        assert!(matches!(p.ready(T, Tokens(1)), Pace::At(at) if at > T + ms(4600) && at < T + ms(4800)));
        // an absurd one is bounded
        p.charge(T, Ticket(3), Tokens(1));
        p.settle(T, Ticket(3), Some(Tokens(u64::MAX)));
        assert!(matches!(p.ready(T, Tokens(1)), Pace::At(at) if at <= T + ms(60_100)));
    }

    #[test]
    fn after_a_refusal_nothing_goes_until_its_time_and_then_one() {
        let mut p = Pacer::new(&PaceParams::default(), T);
        p.charge(T, Ticket(1), Tokens(1));
        p.charge(T, Ticket(2), Tokens(1));
        let until = T + ms(5050);
        assert_eq!(p.refused(T + ms(50), Ticket(1), &retry(until)), Refusal429::Rate { until });
        assert_eq!(p.ready(T + ms(60), Tokens(1)), Pace::At(until));
        assert_eq!(p.stopped_until(T + ms(60)), Some(until));
        // an answer to what left before proves nothing
        p.answered(T + ms(70), Ticket(2));
        assert_eq!(p.ready(T + ms(70), Tokens(1)), Pace::At(until));
        assert_eq!(p.ready(until, Tokens(1)), Pace::Now);
        p.charge(until, Ticket(3), Tokens(1));
        assert!(matches!(p.ready(until, Tokens(1)), Pace::Probing(_)));
        p.answered(until + ms(100), Ticket(3));
        assert_eq!(p.ready(until + ms(100), Tokens(1)), Pace::Now);
    }

    #[test]
    fn a_day_s_stop_is_tried_again_within_minutes() {
        let mut p = Pacer::new(&PaceParams::default(), MonoTime::from_secs(0));
        for n in 0..3 {
            let now = MonoTime::from_secs(600 * n);
            assert_eq!(p.ready(now, Tokens(1)), Pace::Now, "the probe at {now:?}");
            p.charge(now, Ticket(n), Tokens(1));
            let refusal = p.refused(now, Ticket(n), &retry(now + Duration::from_secs(86_400)));
            assert_eq!(refusal, Refusal429::Rate { until: MonoTime::from_secs(600 * (n + 1)) });
        }
    }

    #[test]
    fn a_late_refusal_sends_no_second_probe() {
        let mut p = Pacer::new(&PaceParams::default(), T);
        for n in 0..10 {
            p.charge(T, Ticket(n), Tokens(1));
        }
        let until = T + ms(60);
        p.refused(T + ms(50), Ticket(0), &retry(until));
        p.charge(until, Ticket(100), Tokens(1));
        for n in 1..10 {
            assert!(matches!(p.refused(T + ms(70), Ticket(n), &retry(T + ms(80))), Refusal429::Rate { .. }));
            assert!(matches!(p.ready(T + ms(90), Tokens(1)), Pace::Probing(_)));
        }
        // the probe's own counts, and the next wait is longer
        let Refusal429::Rate { until } = p.refused(T + ms(110), Ticket(100), &retry(T + ms(120))) else {
            panic!()
        };
        assert_eq!(until, T + ms(310));
    }

    #[test]
    fn a_probe_that_is_lost_makes_room_and_one_that_is_silent_has_passed() {
        for how in 0..3 {
            let mut p = Pacer::new(&PaceParams::default(), T);
            p.charge(T, Ticket(1), Tokens(1));
            let until = T + ms(1000);
            p.refused(T + ms(50), Ticket(1), &retry(until));
            p.charge(until, Ticket(2), Tokens(1));
            let Pace::Probing(patience) = p.ready(until, Tokens(1)) else { panic!() };
            match how {
                0 => p.withdrawn(until, Ticket(2)),
                1 => p.settle(until, Ticket(2), None),
                _ => {
                    assert_eq!(p.ready(patience, Tokens(1)), Pace::Now);
                    continue;
                }
            }
            assert_eq!(p.ready(until, Tokens(1)), Pace::Now);
            p.charge(until, Ticket(3), Tokens(1));
            assert!(matches!(p.ready(until, Tokens(1)), Pace::Probing(_)), "the next one is the probe");
        }
    }

    #[test]
    fn refusals_without_a_time_are_tried_ever_more_rarely() {
        let mut p = Pacer::new(&PaceParams::default(), T);
        let (mut now, mut waits) = (T, Vec::new());
        for n in 0..10 {
            assert_eq!(p.ready(now, Tokens(1)), Pace::Now);
            p.charge(now, Ticket(n), Tokens(1));
            let Refusal429::Rate { until } = p.refused(now, Ticket(n), &RateLimits::default()) else {
                panic!()
            };
            waits.push(until.since(now).as_secs());
            now = until;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        // a header that says "at once" each time is no licence to knock
        let mut p = Pacer::new(&PaceParams::default(), T);
        let mut now = T;
        for n in 0..10 {
            p.charge(now, Ticket(n), Tokens(1));
            let at = now + Duration::from_nanos(1);
            let Refusal429::Rate { until } = p.refused(now, Ticket(n), &retry(at)) else { panic!() };
            now = until;
        }
        assert!(now > T + Duration::from_secs(50), "{now:?}");
    }

    #[test]
    fn a_rare_refusal_without_a_word_stops_nobody_until_it_comes_again_at_once() {
        let mut p = Pacer::new(&PaceParams::default(), T);
        let n = served(&mut p, 1000);
        let mut refused = |ticket: u64| {
            p.charge(T, Ticket(ticket), Tokens(1));
            p.refused(T, Ticket(ticket), &RateLimits::default())
        };
        assert_eq!(refused(n), Refusal429::Unrelated { news: false });
        assert_eq!(refused(n + 1), Refusal429::Unrelated { news: false });
        assert!(matches!(refused(n + 2), Refusal429::Rate { .. }));
        // one that names a time is obeyed
        let mut p = Pacer::new(&PaceParams::default(), T);
        let (n, until) = (served(&mut p, 1000), T + ms(500));
        p.charge(T, Ticket(n), Tokens(1));
        assert_eq!(p.refused(T, Ticket(n), &retry(until)), Refusal429::Rate { until });
    }

    /// `n` are sent one after the other, and answered; says the next ticket.
    #[test]
    fn a_stop_that_the_upstream_asked_for_leaves_no_rate_behind() {
        // 75 a second, one in 89 is refused without a word, and for two seconds of each hundred all are, for a second
        let mut p = Pacer::new(&PaceParams::default(), MonoTime::ZERO);
        let (mut slowest, mut held) = (f64::INFINITY, 0);
        for n in 0..75 * 600 {
            let now = MonoTime::from_nanos(1_000_000_000 / 75 * n);
            let stops = (50.0..52.0).contains(&(now.as_nanos() as f64 / 1e9 % 100.0));
            if p.ready(now, Tokens(1)) != Pace::Now {
                held += 1;
                continue;
            }
            p.charge(now, Ticket(n), Tokens(1));
            let later = now + ms(10);
            if stops {
                p.refused(later, Ticket(n), &retry(later + Duration::from_secs(1)));
            } else if n % 89 == 88 {
                p.refused(later, Ticket(n), &RateLimits::default());
            } else {
                p.answered(later, Ticket(n));
                p.settle(later, Ticket(n), None);
            }
            slowest = slowest.min(p.status(now).searched.unwrap_or(f64::INFINITY));
        }
        assert_eq!(slowest, f64::INFINITY, "a rate was searched for");
        assert!(held < 6 * 75 * 4, "{held} were held up by six stops of two seconds");
    }

    fn served(p: &mut Pacer, n: u64) -> u64 {
        for ticket in 0..n {
            p.charge(T, Ticket(ticket), Tokens(1));
            p.answered(T, Ticket(ticket));
            p.settle(T, Ticket(ticket), None);
        }
        n
    }

    #[test]
    fn headers_that_say_there_is_room_mean_a_hidden_cap() {
        let mut p = Pacer::new(&PaceParams::default(), T);
        for n in 0..50 {
            p.charge(T, Ticket(n), Tokens(1));
            p.seen(T, Ticket(n), &remaining(6000.0, 5000.0));
        }
        assert_eq!(p.refused(T, Ticket(49), &remaining(6000.0, 4950.0)), Refusal429::HiddenCap);
        assert_eq!(p.ready(T, Tokens(1)), Pace::Now);
        let Refusal429::Rate { until } = p.refused(T, Ticket(48), &remaining(6000.0, 0.0)) else { panic!() };
        assert!(until >= T + ms(10) && until <= T + ms(250), "{until:?}");
    }

    #[test]
    fn a_window_that_is_used_up_is_waited_out() {
        let mut p = Pacer::new(&PaceParams::default(), T);
        let reset = T + Duration::from_secs(23);
        let requests = Reading { limit: Some(60.0), remaining: Some(0.0), reset: Some(reset), window: None };
        p.charge(T, Ticket(1), Tokens(1));
        p.seen(T, Ticket(1), &RateLimits { requests, ..RateLimits::default() });
        p.answered(T, Ticket(1));
        assert_eq!(p.ready(T, Tokens(1)), Pace::At(reset));
        // a bucket that says when it is full again is not
        let mut p = Pacer::new(&PaceParams::default(), T);
        let requests = Reading { reset: Some(T + Duration::from_secs(60)), ..requests };
        p.charge(T, Ticket(1), Tokens(1));
        p.seen(T, Ticket(1), &RateLimits { requests, ..RateLimits::default() });
        assert!(matches!(p.ready(T, Tokens(1)), Pace::At(at) if at < T + ms(3000)));
    }

    #[test]
    fn a_debt_that_a_large_request_leaves_is_no_window() {
        // 6,000 tokens a minute in a bucket of 1,000; what is larger passes when that is full
        let says = |remaining: f64, reset: u64| RateLimits {
            tokens: Reading {
                limit: Some(6000.0),
                remaining: Some(remaining),
                reset: Some(T + ms(reset)),
                window: None,
            },
            ..RateLimits::default()
        };
        let mut p = Pacer::new(&PaceParams::default(), T);
        p.charge(T, Ticket(0), Tokens(0));
        p.seen(T, Ticket(0), &says(1000.0, 0));
        p.settle(T, Ticket(0), Some(Tokens(0)));
        assert_eq!(p.ready(T, Tokens(3000)), Pace::Now);
        p.charge(T, Ticket(1), Tokens(3000));
        // 20 s pay the debt of 2,000, 10 s more fill the bucket
        p.seen(T, Ticket(1), &says(0.0, 30_000));
        p.settle(T, Ticket(1), Some(Tokens(3000)));
        let Pace::At(at) = p.ready(T, Tokens(100)) else { panic!("there is a debt") };
        let wait = at.since(T).as_secs_f64();
        assert!((20.0..22.5).contains(&wait), "{wait}");
    }

    #[test]
    fn what_settling_brings_back_is_not_waited_for_by_a_large_request() {
        let says = |remaining: f64| RateLimits {
            tokens: Reading { limit: Some(60_000.0), remaining: Some(remaining), ..Reading::default() },
            ..RateLimits::default()
        };
        let mut p = Pacer::new(&PaceParams::default(), T);
        // charges of 1,000 that turn out to be 500, told of at once and settled later
        let (mut now, mut level) = (T, 20_000.0_f64);
        for n in 0..400_u64 {
            if let Pace::At(at) = p.ready(now, Tokens(1000)) {
                level = (level + at.since(now).as_secs_f64() * 1000.0).min(20_000.0);
                now = at;
            }
            p.charge(now, Ticket(n), Tokens(1000));
            level -= 500.0;
            p.seen(now, Ticket(n), &says(level));
            if n >= 10 {
                p.settle(now, Ticket(n - 10), Some(Tokens(500)));
            }
        }
        // ten charges are open, 5,000 tokens too high in all: the bucket is full when the upstream's is
        let Pace::At(at) = p.ready(now, Tokens(50_000)) else { panic!("{level} is not enough") };
        let (waited, full) = (at.since(now).as_secs_f64(), (20_000.0 - level) / 1000.0);
        assert!(waited < full + 1.0, "{waited} s where {full} s fill it");
    }

    /// An upstream that sells 600 a minute in a bucket of 20, asked as often as it may be; `says` may change what it tells
    /// with its n-th answer. How many were taken in each of `minutes`.
    fn sold(p: &mut Pacer, minutes: usize, says: impl Fn(u64, &mut RateLimits)) -> Vec<u64> {
        let (mut now, mut level, mut n, mut taken) = (T, 20.0_f64, 0, vec![0; minutes]);
        while let Some(of) = taken.get_mut(now.since(T).as_secs() as usize / 60) {
            if let Pace::At(at) | Pace::Probing(at) = p.ready(now, Tokens(0)) {
                level = (level + at.since(now).as_secs_f64() * 10.0).min(20.0);
                now = at;
                continue;
            }
            n += 1;
            p.charge(now, Ticket(n), Tokens(0));
            let passes = level >= 1.0;
            level -= if passes { 1.0 } else { 0.25 };
            let mut limits = remaining(600.0, level.max(0.0).floor());
            limits.requests.reset = Some(now + Duration::from_secs_f64((20.0 - level) / 10.0));
            says(n, &mut limits);
            if passes {
                p.seen(now, Ticket(n), &limits);
                p.answered(now, Ticket(n));
                p.settle(now, Ticket(n), None);
                *of += 1;
            } else {
                p.refused(now, Ticket(n), &limits);
            }
        }
        taken
    }

    #[test]
    fn one_answer_that_lies_slows_nobody_for_long() {
        let in_secs = |s| Some(T + Duration::from_secs(s));
        let lies: [&dyn Fn(&mut RateLimits); 6] = [
            &|l| l.requests.reset = in_secs(80_000),
            &|l| l.requests.reset = in_secs(3000),
            &|l| l.requests.limit = Some(1.0),
            &|l| l.requests.limit = Some(1e9),
            &|l| (l.requests.remaining, l.requests.reset) = (Some(0.0), in_secs(80_000)),
            &|l| l.requests.remaining = Some(0.0),
        ];
        for (i, lie) in lies.iter().enumerate() {
            let mut p = Pacer::new(&PaceParams::default(), T);
            let taken = sold(&mut p, 5, |n, limits| {
                if n == 50 {
                    lie(limits);
                }
            });
            assert!(taken[2..].iter().all(|n| *n >= 590), "{i}: {taken:?}");
        }
    }

    #[test]
    fn a_window_that_is_always_said_to_be_used_up_is_not_believed() {
        let mut p = Pacer::new(&PaceParams::default(), T);
        let taken = sold(&mut p, 10, |_, limits| {
            limits.requests.remaining = Some(0.0);
            limits.requests.reset = Some(T + Duration::from_secs(80_000));
        });
        // one tries after a minute; then what the estimate leaves, as if others took the rest
        assert!(taken[0] == 1 && taken[2..].iter().all(|n| *n >= 15), "{taken:?}");
    }

    #[test]
    fn what_others_took_is_forgotten_where_nothing_is_said_any_more() {
        let mut p = Pacer::new(&PaceParams::default(), T);
        // somebody takes nine in ten for ten minutes, then nobody does and nothing is said
        let taken = sold(&mut p, 40, |n, limits| {
            if n < 600 {
                limits.requests.remaining = Some((n % 2) as f64);
            } else {
                limits.requests = Reading::default();
            }
        });
        assert!(taken[39] >= 540, "{taken:?}");
    }

    #[test]
    fn one_larger_than_the_limit_holds_up_nobody_for_long_and_leaves_no_mark() {
        let says = |remaining: f64| RateLimits {
            tokens: Reading { limit: Some(30_000.0), remaining: Some(remaining), ..Reading::default() },
            ..RateLimits::default()
        };
        for size in [100_000, 20_000] {
            let mut p = Pacer::new(&PaceParams::default(), T);
            p.charge(T, Ticket(0), Tokens(0));
            p.seen(T, Ticket(0), &says(30_000.0));
            p.settle(T, Ticket(0), Some(Tokens(0)));
            // one is on its way when the large one leaves, and answered after that was refused
            p.charge(T, Ticket(1), Tokens(100));
            assert_eq!(p.ready(T, Tokens(size)), Pace::Now);
            p.charge(T, Ticket(2), Tokens(size));
            let refused = p.refused(T + ms(20), Ticket(2), &says(29_900.0));
            assert_eq!(size > 30_000, matches!(refused, Refusal429::Unrelated { .. }), "{refused:?}");
            p.seen(T + ms(40), Ticket(1), &says(29_900.0));
            p.answered(T + ms(40), Ticket(1));
            let soon = p.ready(T + ms(40), Tokens(300));
            assert!(soon == Pace::Now || size < 30_000 && soon == Pace::At(T + ms(1020)), "{size}: {soon:?}");
            let left = p.status(T + ms(40)).tokens;
            assert!(left.remaining.is_some_and(|r| r > 29_000.0) && left.others < 10.0, "{size}: {left:?}");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Send(u64),
        Seen(usize, RateLimits),
        Answered(usize),
        Refused(usize, RateLimits),
        Settle(usize, Option<u64>),
        Withdrawn(usize),
    }

    fn limits() -> impl Strategy<Value = RateLimits> {
        let reading = || {
            let number = prop_oneof![0.0..1e3_f64, 0.0..1e12_f64];
            (
                proptest::option::of(number.clone()),
                proptest::option::of(number),
                proptest::option::of(0..100_000_u64),
            )
                .prop_map(|(limit, remaining, reset)| Reading {
                    limit: limit.filter(|l| *l > 0.0),
                    remaining,
                    reset: reset.map(|r| T + ms(r)),
                    window: None,
                })
        };
        (reading(), reading(), proptest::option::of(0..100_000_u64)).prop_map(|(requests, tokens, retry)| {
            RateLimits { requests, tokens, retry_at: retry.map(|r| T + ms(r)), ..RateLimits::default() }
        })
    }

    fn step() -> impl Strategy<Value = Step> {
        let which = || 0..8_usize;
        prop_oneof![
            (0..5000_u64).prop_map(Step::Wait),
            prop_oneof![0..3000_u64, Just(u64::MAX)].prop_map(Step::Send),
            (which(), limits()).prop_map(|(i, l)| Step::Seen(i, l)),
            which().prop_map(Step::Answered),
            (which(), limits()).prop_map(|(i, l)| Step::Refused(i, l)),
            (which(), proptest::option::of(prop_oneof![0..9000_u64, Just(u64::MAX)]))
                .prop_map(|(i, u)| Step::Settle(i, u)),
            which().prop_map(Step::Withdrawn),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn whatever_happens_every_wait_ends(
            steps in vec(step(), 1..120),
            rpm in proptest::option::of(0.1..1e5_f64),
            tpm in proptest::option::of(1.0..1e7_f64),
        ) {
            let params = PaceParams { requests_per_minute: rpm, tokens_per_minute: tpm, buffer: None };
            let mut p = Pacer::new(&params, T);
            let (mut now, mut next, mut out) = (T, 0_u64, Vec::new());
            for step in steps {
                let at = |i: usize, out: &Vec<Ticket>| out.get(i).copied().unwrap_or(Ticket(u64::MAX));
                match step {
                    Step::Wait(millis) => now = now + ms(millis),
                    Step::Send(cost) => {
                        p.charge(now, Ticket(next), Tokens(cost));
                        out.push(Ticket(next));
                        next += 1;
                    }
                    Step::Seen(i, l) => {
                        p.seen(now, at(i, &out), &l);
                    }
                    Step::Answered(i) => p.answered(now, at(i, &out)),
                    Step::Refused(i, l) => {
                        p.refused(now, at(i, &out), &l);
                        if i < out.len() {
                            out.remove(i);
                        }
                    }
                    Step::Settle(i, used) => p.settle(now, at(i, &out), used.map(Tokens)),
                    Step::Withdrawn(i) => p.withdrawn(now, at(i, &out)),
                }
                for cost in [0, 100, u64::MAX] {
                    if let Pace::At(at) | Pace::Probing(at) = p.ready(now, Tokens(cost)) {
                        prop_assert!(at > now && at < now + Duration::from_secs(3 * 86_400));
                        // at that moment it may go, or the next moment named is later and the last
                        let mut at = at;
                        let mut rounds = 0;
                        while let Pace::At(t) | Pace::Probing(t) = p.ready(at, Tokens(cost)) {
                            prop_assert!(t > at);
                            at = t;
                            rounds += 1;
                            prop_assert!(rounds < 4, "{:?}", p);
                        }
                    }
                }
                let status = p.status(now);
                for lane in [status.requests, status.tokens] {
                    prop_assert!(lane.remaining.is_none_or(f64::is_finite));
                    prop_assert!(lane.others.is_finite() && lane.others >= 0.0);
                }
            }
        }

        /// Whatever the headers say, over any stretch no more goes than the burst and the rate allow.
        #[test]
        fn never_more_than_the_limit(
            limit in 6.0..1200.0_f64,
            says in vec(0.0..1.0_f64, 1..40),
            gaps in vec(0..2000_u64, 100),
        ) {
            let mut p = Pacer::new(&PaceParams::default(), T);
            p.charge(T, Ticket(0), Tokens(0));
            p.seen(T, Ticket(0), &remaining(limit, 0.0));
            let (mut now, mut n, mut at) = (T, 1_u64, Vec::new());
            let most = says.iter().fold(0.0_f64, |a, b| a.max((b * limit).floor())).max(limit / 60.0).max(1.0) + 1.0;
            for gap in gaps {
                now = now + ms(gap);
                while p.ready(now, Tokens(0)) == Pace::Now {
                    p.charge(now, Ticket(n), Tokens(0));
                    let say = says[n as usize % says.len()];
                    p.seen(now, Ticket(n), &remaining(limit, (say * limit).floor()));
                    p.settle(now, Ticket(n), None);
                    at.push(now);
                    n += 1;
                    prop_assert!(n < 1_000_000);
                }
            }
            for i in (0..at.len()).step_by(7) {
                for j in (i..at.len()).step_by(11) {
                    let allowed = most + at[j].since(at[i]).as_secs_f64() * limit / 60.0 * 0.98;
                    prop_assert!(((j - i + 1) as f64) <= allowed + 1.0, "{} of {allowed}", j - i + 1);
                }
            }
        }
    }
}
