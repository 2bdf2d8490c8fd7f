//! The experts: each has its own idea of the next minutes, none is right for every kind of traffic.

use super::anomaly::Mood;
use super::ets::Smoothing;
use super::level::{Ewma, Trend};
use super::minutes::Minutes;
use super::regress::{Kind, Regressions};
use super::season::Season;

/// Minutes ahead that are forecast directly; those between are interpolated.
pub(super) const HORIZONS: [usize; 2] = [1, 5];
/// Their names, in the order of their forecasts.
pub(super) const NAMES: [&str; 10] = [
    "last_minute",
    "ewma_slow",
    "ewma",
    "ewma_fast",
    "trend",
    "ar",
    "arima",
    "ets",
    "season_short",
    "season_long",
];
/// How many there are.
pub(super) const EXPERTS: usize = NAMES.len();
/// One forecast of each, requests per minute.
pub(super) type Said = [f64; EXPERTS];

/// No expert may say more than this many times the largest count of late.
const MOST: f64 = 3.0;
/// What each watched minute leaves of the largest count: half of it after two days.
const FORGET: f64 = 1.0 - std::f64::consts::LN_2 / 2880.0;

#[derive(Clone, Debug)]
pub(super) struct Experts {
    last: f64,
    /// The largest count of late, slowly forgotten; time that nobody watched does not count.
    largest: f64,
    ewma: [Ewma; 3],
    trend: Trend,
    regressions: Regressions,
    ets: Smoothing,
    seasons: [Season; 2],
}

impl Experts {
    pub(super) fn new() -> Self {
        Self {
            last: 0.0,
            largest: 0.0,
            ewma: [0.05, 0.15, 0.4].map(Ewma::new),
            trend: Trend::default(),
            regressions: Regressions::new(HORIZONS),
            ets: Smoothing::new(),
            seasons: [Season::short(), Season::long()],
        }
    }

    /// One minute passed: what was counted and, if it was an outlier, what should be learnt instead.
    pub(super) fn learn(&mut self, minute: Option<(f64, f64)>) {
        self.regressions.learn(minute.map(|(_, learnt)| learnt));
        let Some((counted, learnt)) = minute else {
            self.trend.skip();
            self.ets.skip();
            return;
        };
        self.last = counted;
        self.largest = counted.max(self.largest * FORGET);
        self.ewma.iter_mut().for_each(|e| e.learn(learnt));
        self.trend.learn(learnt);
        self.ets.learn(learnt);
    }

    /// Those that follow the last minutes begin anew; a pattern and the largest count stay.
    pub(super) fn afresh(&mut self) {
        *self = Self { largest: self.largest, seasons: self.seasons, ..Self::new() };
    }

    /// The most that can be asked of the next minutes, requests per minute: nothing that has been seen supports
    /// more. Every expert is held to it before it is blended or judged: one that runs away would spoil the
    /// blend's record and the calibrators' residuals for hours.
    pub(super) fn most(&self) -> f64 {
        MOST * self.largest
    }

    /// Forecasts for the horizon with this index. Where no pattern is known the seasons say what AR does.
    pub(super) fn forecast(&self, horizon: usize, minutes: &Minutes) -> Said {
        let ahead = HORIZONS[horizon];
        let ar = self.regressions.forecast(horizon, Kind::Ar);
        let season = |i: usize| self.seasons[i].forecast(minutes, ahead).unwrap_or(ar);
        let said = [
            self.last,
            self.ewma[0].forecast(),
            self.ewma[1].forecast(),
            self.ewma[2].forecast(),
            self.trend.forecast(ahead),
            ar,
            self.regressions.forecast(horizon, Kind::Arima),
            self.ets.forecast(ahead),
            season(0),
            season(1),
        ];
        // `min` also turns a NaN into the bound
        said.map(|word| word.min(self.most()).max(0.0))
    }

    /// Fits to the last `whole` minutes anew; `day`: what was learnt of them, at most of a day.
    pub(super) fn refit(&mut self, minutes: &Minutes, whole: usize, day: &[f64]) {
        self.ets.refit(day);
        self.seasons.iter_mut().for_each(|season| season.refit(minutes, whole));
    }
}

/// What was said about a minute, and after what kind of minute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saying {
    pub(super) mood: Mood,
    pub(super) said: Said,
}
