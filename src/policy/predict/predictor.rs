//! The predictor: takes in each second, says what should be ready, and decides each cooldown.
//!
//! ```text
//! engine's seconds ─▶ minutes ─▶ forecaster ─▶ quantile of the rate ─┐
//!         └─▶ service time W ────────────────────────────────────────┴▶ a = λ W ─▶ need = ⌈a + √a⌉
//!         └─▶ last 5 s, 60 s (fast path) ─▶ what should be ready: connections, replicas
//! ```
//! It runs off the engine's lock and keeps its own memory: two weeks of minutes, bounded. The live proxy
//! owns one on a thread of its own, a simulation owns one in its loop. Under the policies that do not
//! forecast it only hands the snapshot to their rule.

use std::time::Duration;

use crate::policy::predict::confidence::Threshold;
use crate::policy::predict::forecast::{Forecast, Forecaster};
use crate::policy::predict::service::ServiceTime;
use crate::policy::predict::{
    Decision, Desired, Direction, Foreseen, Load, Mode, Outlook, Params, PolicyKind, Ready, Reason, Replicas,
    Season, Second, Snapshot, decide,
};
use crate::policy::units::MonoTime;

/// How long what was observed on the fast path is held: one stable window.
pub const STABLE_WINDOW: Duration = Duration::from_secs(60);
/// The fast path's window, and the multiple of the plan that is an emergency.
const FAST_SECONDS: usize = 5;
const FAST_FACTOR: f64 = 2.0;
/// The high-water mark of requests in flight halves in so many seconds.
const HIGH_WATER_HALF_LIFE: f64 = 300.0;
/// Without a request for so long, and none forecast, no connection is kept warm.
const SILENCE: Duration = Duration::from_secs(3600);
/// A mean wait above this is one that the threshold learns from.
const LONG_WAIT: f64 = 1.0;
/// Minutes of history from which on the configured baseline says nothing any more.
const BASELINE_MINUTES: usize = 60;
/// Seconds over which demand before a calendar window is averaged.
const BEFORE_SECONDS: usize = 300;
/// Watched seconds below which a minute says too little to count.
const WATCHED: u32 = 30;
/// Seconds whose absence is worth telling the forecaster of: its memory.
const REMEMBERED: u64 = 14 * 86_400;
/// Forecasts made after each minute: this many minutes ahead.
const AHEAD: usize = 6;

/// The second that the predictor reads next, and the minute it is gathering.
#[derive(Clone, Debug, Default)]
struct Minute {
    arrivals: u64,
    watched: u32,
}

/// Memory and judgement of one upstream group.
#[derive(Clone, Debug)]
pub struct Predictor {
    params: Params,
    /// Index of the next second to take in.
    next: Option<u64>,
    minute: Minute,
    forecaster: Forecaster,
    /// The minute that it heard of last.
    forecaster_minute: u64,
    /// Of the minutes after the last closed one.
    forecasts: Vec<Forecast>,
    season: Season,
    service: ServiceTime,
    replicas: Replicas,
    threshold: Threshold,
    high_water: f64,
    last_arrival: Option<u64>,
    /// Rate that the fast path saw, requests per second, and until when it is the plan.
    hot: (f64, MonoTime),
    /// What the calendar says, and the minute it was asked in.
    foreseen: (i64, Foreseen),
    /// Requests per second before the window that is on or coming: what its factor multiplies.
    before_window: f64,
    /// Rate that the last plan reckoned with, requests per second.
    planned_rate: f64,
    confidence: f64,
    ready: Ready,
}

impl Predictor {
    /// One that knows nothing yet.
    #[must_use]
    pub fn new(params: Params) -> Self {
        Self {
            next: None,
            minute: Minute::default(),
            forecaster: Forecaster::new(),
            forecaster_minute: u64::MAX,
            forecasts: Vec::new(),
            season: Season::new(),
            service: ServiceTime::default(),
            replicas: Replicas::new(params.replicas.clone()),
            threshold: Threshold::new(params.confidence),
            high_water: 0.0,
            last_arrival: None,
            hot: (0.0, MonoTime::ZERO),
            foreseen: (i64::MIN, Foreseen { factor: 1.0, floor_rpm: 0.0 }),
            before_window: 0.0,
            planned_rate: 0.0,
            confidence: 0.0,
            ready: Ready::default(),
            params,
        }
    }

    /// Takes in the seconds that closed since the last call, and says what should be ready. Call it each
    /// second; after more than ten minutes without a call the time between is a gap.
    pub fn tick(&mut self, s: &Snapshot<'_>) -> Ready {
        if self.params.policy != PolicyKind::Predictive {
            return Ready::default();
        }
        self.absorb(s);
        self.watch(s);
        self.look_ahead(s);
        let rate = self.rate(s, self.params.warm_up);
        let a = rate * self.service.mean();
        let idle = rate * 60.0 < 0.5
            && self.last_arrival.is_none_or(|at| s.at.as_secs().saturating_sub(at) > SILENCE.as_secs());
        let warm = if idle { 0.0 } else { (a + 3.0 * a.sqrt() + 2.0).ceil().max(self.high_water.ceil()) };
        self.ready = Ready { connections: (warm as u32).min(s.ceiling), replicas: Some(self.ask_for(s)) };
        self.ready
    }

    fn ask_for(&mut self, s: &Snapshot<'_>) -> Desired {
        let start = self.params.replicas.horizon();
        let load = Load {
            rate_6s: decide::arrivals_per_second(s.history, 6),
            rate_60s: decide::arrivals_per_second(s.history, 60),
            in_flight: f64::from(s.in_flight),
            queued: s.queued as f64,
            work: self.service.unhindered().map_or(self.service.mean(), |w| w.min(self.service.mean())),
            season: self.season.peak(0.0, start.as_secs_f64()),
            forecast_q: self.announced(s),
            ready: None,
            slowdown: self.service.slowdown(),
        };
        self.replicas.desired(s.at, &load)
    }

    /// How many permits there should be, by the policy's rule. Call it each [`decide::interval`].
    pub fn plan(&mut self, s: &Snapshot<'_>) -> Decision {
        if self.params.policy == PolicyKind::Predictive {
            self.predictive(s)
        } else {
            decide::rule(&self.params, s)
        }
    }

    /// Whether [`Predictor::refit`] should be called: it takes tens of milliseconds.
    #[must_use]
    pub fn refit_due(&self) -> bool {
        self.params.policy == PolicyKind::Predictive && self.forecaster.refit_due()
    }

    /// The heavy fits.
    pub fn refit(&mut self) {
        self.forecaster.refit();
    }

    /// What it knows, for metrics; `None` under a policy that does not forecast.
    #[must_use]
    pub fn outlook(&self) -> Option<Outlook> {
        let now = self.forecasts.first()?;
        Some(Outlook {
            low: now.quantile(0.05),
            centre: now.mean,
            high: now.quantile(self.params.quantile),
            quantile: self.params.quantile,
            confidence: self.confidence,
            threshold: self.threshold.get(),
            service: self.service.mean(),
            errors: self.forecaster.errors(),
            weights: self.forecaster.weights(),
            anomaly: self.forecaster.anomaly_score(),
            minutes: self.forecaster.minutes(),
            season: self.season.period(),
            ready: self.ready,
        })
    }

    fn absorb(&mut self, s: &Snapshot<'_>) {
        let end = s.history.end();
        let first = s.history.last(usize::MAX).next().map_or(end, |(first, _)| first);
        let next = self.next.unwrap_or(first);
        // what has left the ring nobody has watched: at most two weeks of it matter
        let lost = next.max(first.saturating_sub(REMEMBERED))..first;
        for minute in lost.start / 60..lost.end / 60 {
            self.close(minute * 60 + 59);
        }
        if !lost.is_empty() {
            self.high_water = 0.0;
            // its phase would have to be guessed
            self.season = Season::new();
        }
        let new = usize::try_from(end.saturating_sub(next.max(first))).unwrap_or(usize::MAX);
        let minutes = self.forecaster_minute;
        for (index, second) in s.history.last(new) {
            self.second(index, &second);
        }
        self.next = Some(end);
        if self.forecaster_minute != minutes || !lost.is_empty() {
            self.forecasts = (1..=AHEAD).map(|ahead| self.forecaster.forecast(ahead)).collect();
        }
    }

    fn second(&mut self, index: u64, second: &Second) {
        self.high_water *= 0.5_f64.powf(1.0 / HIGH_WATER_HALF_LIFE);
        if !second.gap {
            self.minute.watched += 1;
            self.minute.arrivals += u64::from(second.arrivals);
            self.season.second(Some(f64::from(second.arrivals)));
            self.service.second(second.flight_mean, second.finished);
            self.high_water = self.high_water.max(f64::from(second.flight_peak));
            if second.arrivals > 0 {
                self.last_arrival = Some(index);
            }
        } else {
            self.season.second(None);
        }
        self.close(index);
    }

    /// Closes the minute whose last second is `index`.
    fn close(&mut self, index: u64) {
        if index % 60 == 59 {
            let Minute { arrivals, watched } = std::mem::take(&mut self.minute);
            let count = (watched >= WATCHED).then(|| arrivals as f64 * 60.0 / f64::from(watched));
            self.forecaster.close(count);
            self.forecaster_minute = index / 60;
        }
    }

    /// The fast path: demand far above the plan becomes the plan at once, and is held for a stable window.
    fn watch(&mut self, s: &Snapshot<'_>) {
        let rate = decide::arrivals_per_second(s.history, FAST_SECONDS);
        let seen = rate * FAST_SECONDS as f64;
        let expected = self.planned_rate * FAST_SECONDS as f64;
        // two requests where one was expected are no emergency: three standard deviations above twice the plan
        let surge = seen >= FAST_FACTOR * expected + 3.0 * expected.max(1.0).sqrt();
        if surge || s.queued > self.params.emergency_queue {
            let held = if s.at < self.hot.1 { self.hot.0 } else { 0.0 };
            self.hot = (rate.max(held), s.at + STABLE_WINDOW);
        }
    }

    /// Asks the calendar, once a minute.
    fn look_ahead(&mut self, s: &Snapshot<'_>) {
        let minute = s.wall.unix.div_euclid(60);
        if self.foreseen.0 != minute && !self.params.calendar.is_empty() {
            let span = self.params.horizon.max(self.params.warm_up).max(self.params.replicas.horizon());
            let horizon = span + Duration::from_secs(60);
            let was = self.foreseen.1.factor;
            self.foreseen = (minute, self.params.calendar.foreseen(s.wall.unix, horizon));
            // measured demand shows the window's factor once it is on: it must not be multiplied twice
            if was == 1.0 || self.foreseen.1.factor == 1.0 {
                self.before_window = decide::arrivals_per_second(s.history, BEFORE_SECONDS);
            }
        }
    }

    /// Requests per second to be ready for over the next `span`.
    fn rate(&self, s: &Snapshot<'_>, span: Duration) -> f64 {
        let hot = if s.at < self.hot.1 { self.hot.0 } else { 0.0 };
        self.expected(s, span).max(hot)
    }

    /// The forecast's quantile over the next `span` (what was measured while there is no forecast yet), and what
    /// the operator knows better.
    fn expected(&self, s: &Snapshot<'_>, span: Duration) -> f64 {
        let forecast = self
            .within(s, span)
            .map(|f| f.quantile(self.params.quantile) / 60.0)
            .fold(None, |most: Option<f64>, rate| Some(most.map_or(rate, |m| m.max(rate))));
        let rate = forecast.unwrap_or_else(|| decide::arrivals_per_second(s.history, 60));
        let season = self.season.peak(0.0, span.as_secs_f64()).unwrap_or(0.0);
        rate.max(season).max(self.announced(s))
    }

    /// What the operator announced, requests per second: the calendar's floor and factor, and the baseline as long
    /// as there is next to no history.
    fn announced(&self, s: &Snapshot<'_>) -> f64 {
        let unknown = self.forecaster.minutes() < BASELINE_MINUTES;
        let baseline = if unknown { self.params.baseline.rpm(s.wall.hour) } else { 0.0 };
        let Foreseen { factor, floor_rpm } = self.foreseen.1;
        let multiplied = if factor > 1.0 { self.before_window * factor } else { 0.0 };
        (floor_rpm.max(baseline) / 60.0).max(multiplied)
    }

    /// The forecasts of the minutes that the next `span` touches.
    fn within(&self, s: &Snapshot<'_>, span: Duration) -> impl Iterator<Item = &Forecast> {
        let last = (s.at.as_secs() % 60 + span.as_secs()) / 60;
        self.forecasts.iter().take(usize::try_from(last).unwrap_or(0) + 1)
    }

    fn predictive(&mut self, s: &Snapshot<'_>) -> Decision {
        let p = &self.params;
        let work = self.service.mean();
        let (mean, peak) = decide::demand(s.history, p.cooldown);
        self.planned_rate = self.expected(s, p.horizon);
        let rate = self.rate(s, p.horizon);
        let a = rate * work;
        let bounded = |permits: f64| (permits as u32).max(p.min_permits).min(s.ceiling);
        let need = bounded((a + a.sqrt()).ceil());
        // demand measured in requests at the upstream, so that permits and forecast can be compared
        let limit = f64::from(s.limit);
        let exceeds = |permits: f64| {
            let per_minute = permits / work.max(1e-9) * 60.0;
            self.within(s, p.horizon).map(|f| f.exceeds(per_minute)).fold(0.0, f64::max)
        };
        // what was announced or recurs is demand as well, whatever the minute's forecast thinks of it
        let known_rate = self.announced(s).max(self.season.peak(0.0, p.horizon.as_secs_f64()).unwrap_or(0.0));
        let comes = |permits: f64| if known_rate * work > permits { 1.0 } else { exceeds(permits) };
        let (more, less) = (comes(p.scale_up_threshold * limit), 1.0 - comes(p.scale_down_threshold * limit));
        let floor = bounded(f64::from(peak).max(mean).ceil()).max(s.held.min(s.ceiling));
        self.threshold.lived(waited(s, p.cooldown) > LONG_WAIT);
        let sure = self.threshold.get();
        let known = !self.forecasts.is_empty();
        let since = s.since_change.unwrap_or(s.age);
        let (to, reason, confidence) = if s.queued > p.emergency_queue || s.at < self.hot.1 && need > s.limit
        {
            (need.max(floor).max(s.limit), Reason::Emergency, more)
        } else if !known || s.age < p.warm_up {
            (s.limit.max(floor), Reason::WarmUp, 0.0)
        } else if more > sure && need > s.limit {
            (need.max(floor), Reason::ScaleUp, more)
        } else if less > sure && need.max(floor) < s.limit {
            (need.max(floor), Reason::ScaleDown, less)
        } else if more.max(less) > 0.5 && need != s.limit {
            (s.limit, Reason::LowConfidence, more.max(less))
        } else {
            (s.limit, Reason::Stable, 1.0 - more.min(less))
        };
        let to = to.max(floor).min(s.ceiling);
        let direction = Direction::of(s.limit, to);
        if direction != Direction::Hold && p.mode == Mode::Act {
            self.threshold.moved(s.at, direction, p.cooldown);
        }
        self.confidence = confidence;
        let outlook = self.outlook().map(Box::new);
        let p = &self.params;
        Decision {
            at: s.at,
            direction,
            reason,
            from: s.limit,
            to,
            need,
            requests_per_minute: rate * 60.0,
            confidence,
            queued: s.queued,
            utilisation: mean / limit.max(1.0),
            applied: p.mode == Mode::Act,
            since_change: since,
            outlook,
        }
    }
}

/// Mean wait in the queue over the last `span`, seconds, by Little's law: requests waiting over arrivals.
fn waited(s: &Snapshot<'_>, span: Duration) -> f64 {
    let n = usize::try_from(span.as_secs().max(1)).unwrap_or(usize::MAX);
    let (waiting, arrivals) = s.history.last(n).fold((0.0, 0.0), |(waiting, arrivals), (_, second)| {
        (waiting + second.waiting_mean, arrivals + f64::from(second.arrivals))
    });
    waiting / f64::max(arrivals, 1.0)
}
