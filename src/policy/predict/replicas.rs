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
//! `per_replica` is configured, or [learned](learn) from how answers slow down.
//!
//! Called by the predictor once a second; shown as `desired_replicas`.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::units::{Invalid, MonoTime, checked};

mod learn;
mod reserve;
mod slots;

use learn::Learned;
pub use learn::Pace;
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
    /// How quick the upstream was in the last minute that says something; `None` before there is one.
    pub slowdown: Option<Pace>,
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
    reserve: Reserve,
    /// Smoothed rate of a burst, requests per second.
    brisk: f64,
    learned: Learned,
}

impl Replicas {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new(params: ReplicaParams) -> Self {
        Self {
            params,
            held: VecDeque::new(),
            reserve: Reserve::default(),
            brisk: 0.0,
            learned: Learned::new(),
        }
    }

    /// Replicas to ask for from now on. Call it once a second.
    pub fn desired(&mut self, now: MonoTime, s: &Load) -> Desired {
        if let Some(pace) = &s.slowdown {
            self.learned.learn(now, pace, s.ready, self.params.start);
        }
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
        self.learned.asked(now, replicas, self.params.start);
        Desired { replicas, reason, per_replica: self.per_replica() }
    }

    fn per_replica(&self) -> f64 {
        self.params.per_replica.unwrap_or(self.learned.get())
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

    use crate::policy::predict::service::ServiceTime;

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
        let mut at = |t: u64, in_flight: f64, slowdown: f64| {
            let slowdown = Some(Pace { minute: t / 60, in_flight, ended: 400.0, slowdown });
            r.desired(MonoTime::from_secs(t), &Load { ready: Some(2), slowdown, ..steady(8.0) }).per_replica
        };
        // two replicas at 48 each, three times slower than one alone: they carry 16
        let learned: Vec<f64> = (0..600).map(|t| at(t, 96.0, 3.0)).collect();
        assert_eq!((learned[119], learned[239], learned[599]), (64.0, 16.0, 16.0));
        let learned: Vec<f64> = (600..720).map(|t| at(t, 40.0, 1.0)).collect();
        assert!((20.0..21.5).contains(&learned[119]), "carried without slowing down: {}", learned[119]);
    }

    /// Chance that is the same in every release.
    struct Chance(u64);

    impl Chance {
        fn uniform(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) as f64 + 0.5) / (1_u64 << 31) as f64
        }

        fn exponential(&mut self, mean: f64) -> f64 {
            -self.uniform().ln() * mean
        }

        /// Lognormal with this mean and a coefficient of variation of 1.1, as output lengths have.
        fn lognormal(&mut self, mean: f64) -> f64 {
            let variance = (1.0_f64 + 1.1 * 1.1).ln();
            let normal = (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
            mean * (variance.sqrt() * normal - variance / 2.0).exp()
        }
    }

    /// A model server whose replicas share their speed, under the rule that learns.
    struct Closed {
        rate: fn(u64) -> f64,
        /// Mean seconds of a request by itself.
        work: fn(u64) -> f64,
        /// Requests that a replica carries at full speed.
        carries: f64,
        /// Replicas there can be at most.
        exist: u32,
        seconds: u64,
    }

    impl Closed {
        /// What was asked for and learned, by the second.
        fn run(&self, seed: u64) -> Vec<(u32, f64)> {
            let (mut chance, mut r) = (Chance(seed), rule(None));
            let (mut next, mut open, mut waiting) = (0.0, Vec::<f64>::new(), VecDeque::<f64>::new());
            let mut service = ServiceTime::default();
            let (mut arrived, mut asked) = (Vec::new(), Vec::<(u32, f64)>::new());
            for t in 0..self.seconds {
                let (mut ended, mut flight, mut came) = (0, 0.0, 0.0);
                let there = asked.get((t as usize).saturating_sub(30)).map_or(1, |(n, _)| *n).min(self.exist);
                for step in 0..4 {
                    while next < t as f64 + f64::from(step) / 4.0 {
                        // more than 32 are turned away
                        let work = chance.lognormal((self.work)(t));
                        waiting.extend((waiting.len() < 32).then_some(work));
                        came += 1.0;
                        next += chance.exponential(1.0 / (self.rate)(t));
                    }
                    while open.len() < 64
                        && let Some(work) = waiting.pop_front()
                    {
                        open.push(work);
                    }
                    let speed = (self.carries * f64::from(there) / open.len() as f64).min(1.0);
                    flight += open.len() as f64 / 4.0;
                    open.iter_mut().for_each(|left| *left -= speed / 4.0);
                    let before = open.len();
                    open.retain(|left| *left > 0.0);
                    ended += (before - open.len()) as u32;
                }
                arrived.push(came);
                service.second(flight, ended);
                let rate = |n: usize| arrived.iter().rev().take(n).sum::<f64>() / n as f64;
                let load = Load {
                    rate_6s: rate(6),
                    rate_60s: rate(60),
                    queued: waiting.len() as f64,
                    work: service.unhindered().map_or(service.mean(), |w| w.min(service.mean())),
                    slowdown: service.slowdown(),
                    ..Load::default()
                };
                let d = r.desired(MonoTime::from_secs(t), &load);
                asked.push((d.replicas, d.per_replica));
            }
            asked
        }
    }

    #[test]
    fn the_noise_of_a_quiet_upstream_asks_for_nothing() {
        for rate in [|_| 0.5, |_| 1.0, |_| 2.0] as [fn(u64) -> f64; 3] {
            for seed in 1..=2 {
                let quiet = Closed { rate, work: |_| 4.25, carries: 1e9, exist: 100, seconds: 3_600 };
                let asked = quiet.run(seed);
                let most = asked.iter().map(|(n, _)| *n).max().unwrap();
                let least = asked.iter().map(|(_, n)| *n).fold(f64::MAX, f64::min);
                assert!(most <= 2, "{} a second, seed {seed}: {most} replicas, {least} each", rate(0));
            }
        }
    }

    #[test]
    fn the_loop_learns_what_replicas_that_share_their_speed_carry() {
        // quiet for a quarter of an hour, then twice what one carries
        let busy = Closed {
            rate: |t| if t < 900 { 2.0 } else { 7.5 },
            work: |_| 4.25,
            carries: 16.0,
            exist: 100,
            seconds: 3_600,
        };
        for seed in 1..=2 {
            let run = busy.run(seed);
            let (most, (last, learned)) = (run.iter().map(|(n, _)| *n).max().unwrap(), run[3_599]);
            assert!((13.0..20.0).contains(&learned), "seed {seed}: {learned} each");
            assert!((2..=4).contains(&last) && most <= 6, "seed {seed}: {last} replicas, once {most}");
        }
    }

    #[test]
    fn replicas_that_never_come_are_not_asked_for_in_ever_greater_number() {
        let stuck = Closed {
            rate: |t| if t < 900 { 2.0 } else { 7.5 },
            work: |_| 4.25,
            carries: 10.0,
            exist: 2,
            seconds: 4_500,
        };
        let run = stuck.run(1);
        let most = run.iter().map(|(n, _)| *n).max().unwrap();
        let least = run.iter().map(|(_, n)| *n).fold(f64::MAX, f64::min);
        // four would do; what waits and what is asked for in vain count as well
        assert!(most <= 25 && least > 3.0, "{most} replicas, {least} each");
    }

    #[test]
    fn longer_answers_are_not_taken_for_load() {
        let longer = Closed {
            rate: |_| 4.0,
            work: |t| if t < 3_600 { 2.0 } else { 6.0 },
            carries: 1e9,
            exist: 100,
            seconds: 5_400,
        };
        let most = longer.run(1).iter().map(|(n, _)| *n).max();
        assert!(most <= Some(3), "{most:?}");
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
                let slowdown = x.map(|slowdown| Pace { minute: now, in_flight, ended: work, slowdown });
                let s = Load { rate_6s, rate_60s, in_flight, queued, work, forecast_q, season: x, slowdown, ready: None };
                let d = r.desired(MonoTime::from_secs(now), &s);
                prop_assert!((2..=50).contains(&d.replicas) && d.per_replica.is_finite() && d.per_replica > 0.0);
                prop_assert!(r.held.len() <= 60);
            }
        }
    }
}
