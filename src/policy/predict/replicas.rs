//! How many replicas to ask for.
//!
//! ```text
//! load = rate · work + queue · work / 30 s            Little's law: requests under way if none waited
//! R    = ⌈headroom · slots(load) / per_replica⌉       slots: so many that few of them find all busy
//! rate = the last minute's, or the last 6 s' where those are significantly more
//! ```
//! A replica takes `start` to come up and is paid for from the moment it is asked for, so what comes within
//! that time counts as here: the season's peak over `start` + 3 s, where a season leads. Without one, what
//! was measured is held for a minute: a replica let go is a cold start when demand returns. With one it is
//! held for a moment only: the season says when it comes again. Bursts that nothing foresaw, twice, leave a
//! [`reserve`].
//!
//! `per_replica` is configured, or learned: slower answers at `n` requests a replica mean that
//! it carries `n ÷ slowdown` at full speed, which is exact for a server that shares its speed.
//!
//! Called by the predictor once a second; shown as `desired_replicas`.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::units::{Invalid, MonoTime, checked};

mod reserve;
mod slots;

use reserve::Reserve;
pub use slots::slots_for;

/// The share of requests that may find every place taken when demand is as forecast. Where a replica serves
/// several at once one more only slows them down: that is the square-root rule a + √a.
const WAITING: f64 = 0.22;
/// Where it does one request at a time (or a few), who finds none free waits.
const WAITING_FEW: f64 = 0.05;
/// So many are a few.
const FEW: f64 = 4.0;
/// How long measured need is held where no season leads.
const HOLD: Duration = Duration::from_secs(60);
/// And where one does.
const HOLD_SEASON: Duration = Duration::from_secs(15);
/// Time in which a backlog is to be worked off, seconds.
const CATCH_UP: f64 = 30.0;
/// Share of the last 6 s in the rate that a burst is remembered by.
const BRISK: f64 = 0.12;
/// Seconds of arrivals in the queue from which people notice that they wait.
const NOTICED: f64 = 2.0;
/// Deviations by which 6 s must exceed the minute's rate to replace it.
const SURGE: f64 = 3.0;
/// In-flight requests of a replica of which nothing is known; the learned limit of one upstream starts there too.
const UNKNOWN: f64 = 64.0;
/// Answers slower than this share of the best count as slowed down.
const SLOWED: f64 = 1.25;

/// `[replicas]`: what is known of them.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaParams {
    /// From the request for a replica until it serves.
    pub start: Duration,
    /// Requests in flight that one replica carries at full speed; learned if `None`.
    pub per_replica: Option<f64>,
    /// Multiplies the demand.
    pub headroom: f64,
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
}

impl Default for ReplicaParams {
    fn default() -> Self {
        Self { start: Duration::from_secs(30), per_replica: None, headroom: 1.0, min: 1, max: 100 }
    }
}

impl ReplicaParams {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// Every setting that no count follows from.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut faults = Vec::new();
        let mut bad = |key, message: &str| faults.push(Invalid::new(key, message));
        if self.start > Duration::from_secs(3_600) {
            bad("start", "must be at most 1h");
        }
        if self.per_replica.is_some_and(|n| !(n.is_finite() && (0.1..=1e6).contains(&n))) {
            bad("per_replica", "must be between 0.1 and 1000000 requests in flight, or absent to learn it");
        }
        if !(self.headroom.is_finite() && (0.1..=100.0).contains(&self.headroom)) {
            bad("headroom", "must be between 0.1 and 100");
        }
        if self.max == 0 || self.max > 1_000_000 {
            bad("max", "must be between 1 and 1000000");
        }
        if self.min > self.max {
            bad("min", "must not be above max");
        }
        checked(self, faults)
    }

    /// How far ahead a replica must be asked for: its start, and three seconds for the question to get there.
    #[must_use]
    pub fn horizon(&self) -> Duration {
        self.start + Duration::from_secs(3)
    }
}

/// What is known this second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Arrivals of the last 6 s, per second.
    pub rate_6s: f64,
    /// Arrivals of the last minute, per second.
    pub rate_60s: f64,
    /// Requests at the upstream.
    pub in_flight: f64,
    /// Requests waiting in the gate.
    pub queued: f64,
    /// Mean seconds a request spends at the upstream when nothing queues there.
    pub work: f64,
    /// The season's peak (requests per second) over [`ReplicaParams::horizon`]; `None` unless it leads.
    pub season: Option<f64>,
    /// The minute forecaster's demand over the same time, requests per second; 0 where there is none.
    pub forecast_q: f64,
    /// Replicas that serve; `None` where nobody says so: then those asked for a start-up time ago.
    pub ready: Option<u32>,
    /// How much longer answers take now than at their best, 1 or more; `None` where that is not known.
    pub slowdown: Option<f64>,
}

/// How many, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desired {
    /// Replicas to ask for.
    pub replicas: u32,
    /// What decided: `measured`, `hold`, `reserve`, `forecast`, `season`, `min` or `max`.
    pub reason: &'static str,
    /// Requests in flight that one replica is reckoned to carry.
    pub per_replica: f64,
}

/// The rule, with what it has to remember.
#[derive(Clone, Debug)]
pub struct Replicas {
    params: ReplicaParams,
    /// Needs that were measured and are still held: ever later, ever smaller.
    held: VecDeque<(MonoTime, u32)>,
    /// What was asked for, by when it changed, back to one start-up time ago.
    asked: VecDeque<(MonoTime, u32)>,
    reserve: Reserve,
    /// Smoothed rate of a burst, requests per second.
    brisk: f64,
    learned: f64,
}

impl Replicas {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new(params: ReplicaParams) -> Self {
        Self {
            params,
            held: VecDeque::new(),
            asked: VecDeque::new(),
            reserve: Reserve::default(),
            brisk: 0.0,
            learned: UNKNOWN,
        }
    }

    /// Replicas to ask for from now on. Call it once a second.
    pub fn desired(&mut self, now: MonoTime, s: &Load) -> Desired {
        self.learn(now, s);
        let measured = self.count(measured_rate(s), s.queued, s.work);
        let held = self.hold(now, measured, if s.season.is_some() { HOLD_SEASON } else { HOLD });
        if s.rate_6s.is_finite() {
            self.brisk += BRISK * (s.rate_6s.clamp(0.0, 1e9) - self.brisk);
        }
        let level = self.count(self.brisk, 0.0, s.work).min(self.params.max);
        let kept = self.reserve.keep(now, level, long_queue(s), s.season.is_some());
        let season = s.season.map_or(0, |rate| self.count(rate, 0.0, s.work));
        let forecast = self.count(s.forecast_q, 0.0, s.work);
        let (need, reason) = [
            (measured, "measured"),
            (held, "hold"),
            (kept, "reserve"),
            (forecast, "forecast"),
            (season, "season"),
        ]
        .into_iter()
        .fold((0, "measured"), |best, next| if next.0 > best.0 { next } else { best });
        let (replicas, reason) = match () {
            () if need < self.params.min => (self.params.min, "min"),
            () if need > self.params.max => (self.params.max, "max"),
            () => (need, reason),
        };
        if self.asked.back().is_none_or(|(_, n)| *n != replicas) {
            self.asked.push_back((now, replicas));
        }
        Desired { replicas, reason, per_replica: self.per_replica() }
    }

    fn per_replica(&self) -> f64 {
        self.params.per_replica.unwrap_or(self.learned)
    }

    fn waiting(&self) -> f64 {
        if self.per_replica() < FEW { WAITING_FEW } else { WAITING }
    }

    fn count(&self, rate: f64, queued: f64, work: f64) -> u32 {
        let load = rate * work + queued * work / CATCH_UP;
        // a float cast saturates and turns NaN into 0
        (self.params.headroom * slots_for(load, self.waiting()) / self.per_replica()).ceil() as u32
    }

    /// The most that was needed within `hold`.
    fn hold(&mut self, now: MonoTime, need: u32, hold: Duration) -> u32 {
        while self.held.back().is_some_and(|(_, n)| *n <= need) {
            self.held.pop_back();
        }
        self.held.push_back((now, need));
        while self.held.len() > 1 && self.held.front().is_some_and(|(at, _)| now.since(*at) > hold) {
            self.held.pop_front();
        }
        self.held.front().map_or(need, |(_, n)| *n)
    }

    /// What a replica carries, from how answers slow down.
    fn learn(&mut self, now: MonoTime, s: &Load) {
        let started = now - self.params.start;
        while self.asked.len() > 1 && self.asked.get(1).is_some_and(|(at, _)| *at <= started) {
            self.asked.pop_front();
        }
        let ready = s.ready.or(self.asked.front().map(|(_, n)| *n)).unwrap_or(1).max(1);
        let Some(slowdown) = s.slowdown.filter(|v| v.is_finite()) else { return };
        let each = s.in_flight / f64::from(ready);
        if !each.is_finite() || each < 0.5 {
            return;
        }
        if slowdown > SLOWED {
            self.learned += 0.05 * (each / slowdown - self.learned).min(0.0);
        } else if each > 0.8 * self.learned {
            self.learned = (self.learned * 1.0005).max(each);
        }
        self.learned = self.learned.clamp(0.5, 1e6);
    }
}

/// Whether what waits is more than the arrivals of two seconds: a wait that people notice.
fn long_queue(s: &Load) -> bool {
    s.queued > NOTICED * s.rate_60s.max(s.rate_6s) && s.queued >= 3.0
}

fn measured_rate(s: &Load) -> f64 {
    let (short, long) = (s.rate_6s * 6.0, s.rate_60s * 6.0);
    if short > long + SURGE * (long + 1.0).max(0.0).sqrt() { s.rate_6s } else { s.rate_60s }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule(per_replica: Option<f64>) -> Replicas {
        Replicas::new(ReplicaParams { per_replica, ..ReplicaParams::default() })
    }

    fn steady(rate: f64) -> Load {
        Load { rate_6s: rate, rate_60s: rate, work: 4.25, ..Load::default() }
    }

    #[test]
    fn steady_demand_gets_what_it_needs_and_a_margin() {
        let d = rule(Some(16.0)).desired(MonoTime::ZERO, &steady(16.0));
        // 68 under way, about a + √a = 76 places, 16 each
        assert_eq!((d.replicas, d.reason, d.per_replica), (5, "measured", 16.0));
        assert_eq!(rule(Some(16.0)).desired(MonoTime::ZERO, &steady(0.0)).reason, "min");
        assert_eq!(rule(Some(1.0)).desired(MonoTime::ZERO, &steady(3333.0)).reason, "max");
    }

    #[test]
    fn a_burst_is_held_but_not_if_a_season_announces_the_next() {
        for (season, after) in [(None, 60), (Some(4.0), 15)] {
            let mut r = rule(Some(16.0));
            r.desired(MonoTime::ZERO, &Load { season, ..steady(16.0) });
            let at = |r: &mut Replicas, t| {
                r.desired(MonoTime::from_secs(t), &Load { season, ..steady(4.0) }).replicas
            };
            let held: Vec<u64> = (1..400).filter(|t| at(&mut r, *t) == 5).collect();
            assert_eq!(held.last(), Some(&after), "season {season:?}");
        }
    }

    #[test]
    fn a_surge_counts_at_once_but_the_noise_of_six_seconds_does_not() {
        let noisy = Load { rate_6s: 5.5, ..steady(4.0) };
        assert_eq!(measured_rate(&noisy), 4.0);
        assert_eq!(measured_rate(&Load { rate_6s: 12.0, ..noisy }), 12.0);
    }

    /// Spikes of 90 s every `gap` seconds that queue for 40 s each; replicas wanted just before each.
    fn surprised(gap: u64, spikes: u64, season: Option<f64>) -> Vec<u32> {
        let mut r = rule(Some(16.0));
        let mut before = Vec::new();
        for t in 0..gap * spikes {
            let into = t % gap;
            let rate = if into >= gap / 2 && into < gap / 2 + 90 { 16.0 } else { 4.0 };
            let queued = if rate > 4.0 && into < gap / 2 + 40 { 100.0 } else { 0.0 };
            let d = r.desired(MonoTime::from_secs(t), &Load { queued, season, ..steady(rate) });
            if into == gap / 2 - 1 {
                before.push(d.replicas);
            }
        }
        before
    }

    #[test]
    fn two_surprises_leave_a_reserve_unless_they_are_rare_or_announced() {
        assert_eq!(surprised(900, 5, None), [2, 2, 5, 5, 5]);
        assert_eq!(surprised(7_200, 3, None), [2, 2, 2]);
        assert_eq!(surprised(900, 4, Some(16.0)), [5, 5, 5, 5], "by the season");
    }

    #[test]
    fn a_reserve_is_given_up_when_nothing_comes() {
        let mut r = rule(Some(16.0));
        let at = |r: &mut Replicas, t: u64, rate: f64, queued: f64| {
            r.desired(MonoTime::from_secs(t), &Load { queued, ..steady(rate) })
        };
        for t in 0..1_500_u64 {
            let spike = (300..390).contains(&(t % 700));
            at(&mut r, t, if spike { 16.0 } else { 4.0 }, if spike { 100.0 } else { 0.0 });
        }
        assert_eq!(at(&mut r, 1_500, 4.0, 0.0).reason, "reserve");
        let released = (1_501..9_000).find(|t| at(&mut r, *t, 4.0, 0.0).reason != "reserve");
        // the second began at 1000, 700 s after the first: four times that without a third
        assert_eq!(released, Some(1_000 + 4 * 700 + 1));
    }

    #[test]
    fn what_a_replica_carries_is_learned_from_how_answers_slow_down() {
        let mut r = rule(None);
        for t in 0..600 {
            // two replicas at 48 each, three times slower than one alone: they carry 16
            let s = Load { in_flight: 96.0, ready: Some(2), slowdown: Some(3.0), ..steady(8.0) };
            r.desired(MonoTime::from_secs(t), &s);
        }
        assert!((r.learned - 16.0).abs() < 0.5, "{}", r.learned);
        let s = Load { in_flight: 40.0, ready: Some(2), slowdown: Some(1.0), ..steady(8.0) };
        r.desired(MonoTime::from_secs(600), &s);
        assert_eq!(r.learned, 20.0, "carried without slowing down");
    }

    #[test]
    fn faults_are_all_named() {
        let bad = ReplicaParams {
            start: Duration::from_secs(9_999),
            per_replica: Some(f64::NAN),
            headroom: 0.0,
            min: 9,
            max: 0,
        };
        let keys: Vec<_> = bad.try_new().unwrap_err().into_iter().map(|f| f.key).collect();
        assert_eq!(keys, ["start", "per_replica", "headroom", "max", "min"]);
        assert!(ReplicaParams::default().try_new().is_ok());
    }

    fn any_number() -> impl Strategy<Value = f64> {
        prop_oneof![Just(0.0), Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(1e300), 0.0..4_000.0,]
    }

    proptest! {
        #[test]
        fn any_load_gives_a_count_within_the_bounds(
            loads in prop::collection::vec((prop::array::uniform6(any_number()), prop::option::of(any_number()), 0_u64..100), 1..60),
            per_replica in prop::option::of(0.1..100.0),
        ) {
            let mut r = Replicas::new(ReplicaParams { per_replica, min: 2, max: 50, ..ReplicaParams::default() });
            let mut now = 0;
            for ([rate_6s, rate_60s, in_flight, queued, work, forecast_q], x, pass) in loads {
                now += pass;
                let s = Load { rate_6s, rate_60s, in_flight, queued, work, forecast_q, season: x, slowdown: x, ready: None };
                let d = r.desired(MonoTime::from_secs(now), &s);
                prop_assert!((2..=50).contains(&d.replicas) && d.per_replica.is_finite() && d.per_replica > 0.0);
                prop_assert!(r.held.len() <= 60 && r.asked.len() <= 61);
            }
        }
    }
}
