//! `[scaling]`: which rule moves the permits, and within what bounds.

use std::time::Duration;

use crate::policy::predict::{Baseline, Calendar, ReplicaParams};
use crate::policy::units::{Invalid, checked};

/// The rule that turns what was seen into a permit count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyKind {
    /// Forecast demand decides what is ready; nobody waits below the ceiling.
    Predictive,
    /// Always `max_permits`.
    Fixed,
    /// Follows measured utilisation.
    Reactive,
    /// The source article's rule, to the letter.
    Article,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Predictive, Self::Fixed, Self::Reactive, Self::Article];

    /// The name in the configuration, on metrics and in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Predictive => "predictive",
            Self::Fixed => "fixed",
            Self::Reactive => "reactive",
            Self::Article => "article",
        }
    }
}

/// Whether decisions change the permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They do.
    Act,
    /// They are computed and reported, and the permits stay at the initial count.
    Shadow,
}

/// How much of the past the article's rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArticleWindow {
    /// The last so many requests: what its code does.
    Requests(usize),
    /// The last so much time: what its comment says.
    Time(Duration),
}

/// `[scaling]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// The rule.
    pub policy: PolicyKind,
    /// Whether it acts.
    pub mode: Mode,
    /// Never fewer permits than this (not under `fixed`).
    pub min_permits: u32,
    /// Permits before the first decision (not under `fixed`).
    pub initial_permits: u32,
    /// Never more permits than this.
    pub max_permits: u32,
    /// Time between two resizes.
    pub cooldown: Duration,
    /// How long a load must be watched before it is believed.
    pub warm_up: Duration,
    /// Utilisation above which permits are added, in (0, 1].
    pub scale_up_threshold: f64,
    /// Utilisation below which permits are taken away, in [0, 1).
    pub scale_down_threshold: f64,
    /// A queue longer than this is an emergency: the observed demand becomes the plan at once.
    pub emergency_queue: usize,
    /// `predictive`: how far ahead the demand for permits is forecast.
    pub horizon: Duration,
    /// `predictive`: the quantile of demand that is provided for, in (0.5, 1).
    pub quantile: f64,
    /// `predictive`: how probable it must be that a decision is right, in (0.5, 1).
    pub confidence: f64,
    /// `predictive`: windows in which demand will be different.
    pub calendar: Calendar,
    /// `predictive`: demand by hour of the day, until there is an hour of history.
    pub baseline: Baseline,
    /// `predictive`: what is known of the upstream's replicas.
    pub replicas: ReplicaParams,
    /// The article's window.
    pub article_window: ArticleWindow,
    /// What the article's rule jumps to when its queue is long.
    pub article_emergency: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self::of(PolicyKind::Predictive)
    }
}

impl Params {
    /// The defaults of `policy`. 10, 20 and 100 permits are the source article's; under `predictive` the
    /// ceiling is what the upstream can take, and to start below it would only make people wait.
    #[must_use]
    pub fn of(policy: PolicyKind) -> Self {
        let (min_permits, initial_permits, max_permits) = match policy {
            PolicyKind::Predictive => (4, 1000, 1000),
            PolicyKind::Fixed | PolicyKind::Reactive | PolicyKind::Article => (10, 20, 100),
        };
        Self {
            policy,
            mode: Mode::Act,
            min_permits,
            initial_permits,
            max_permits,
            cooldown: Duration::from_secs(30),
            warm_up: Duration::from_secs(10),
            scale_up_threshold: 0.75,
            scale_down_threshold: 0.40,
            emergency_queue: 50,
            horizon: Duration::from_secs(60),
            quantile: 0.95,
            confidence: 0.85,
            calendar: Calendar::default(),
            baseline: Baseline::default(),
            replicas: ReplicaParams::default(),
            article_window: ArticleWindow::Requests(300),
            article_emergency: 150,
        }
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// Every setting the predictor cannot work with.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut faults = Vec::new();
        let mut bad = |key, message: String| faults.push(Invalid::new(key, message));
        if self.max_permits == 0 || self.max_permits > 100_000 {
            bad("max_permits", format!("must be 1 to 100000, is {}", self.max_permits));
        }
        if self.policy != PolicyKind::Fixed {
            if self.min_permits == 0 {
                bad("min_permits", "must be at least 1: nothing could ever run".into());
            }
            if self.min_permits > self.max_permits {
                bad(
                    "min_permits",
                    format!("{} is more than max_permits = {}", self.min_permits, self.max_permits),
                );
            }
            if self.initial_permits < self.min_permits || self.initial_permits > self.max_permits {
                bad(
                    "initial_permits",
                    format!(
                        "{} is not between min_permits = {} and max_permits = {}",
                        self.initial_permits, self.min_permits, self.max_permits
                    ),
                );
            }
        }
        if self.cooldown < Duration::from_secs(1) || self.cooldown > Duration::from_secs(3600) {
            bad("cooldown", "must be between 1s and 1h".into());
        }
        if self.warm_up < Duration::from_secs(1) || self.warm_up > Duration::from_secs(600) {
            bad("warm_up", "must be between 1s and 10m".into());
        }
        if !(self.scale_up_threshold > 0.0 && self.scale_up_threshold <= 1.0) {
            bad("scale_up_threshold", "must be above 0 and at most 1".into());
        }
        if !(self.scale_down_threshold >= 0.0 && self.scale_down_threshold < self.scale_up_threshold) {
            bad("scale_down_threshold", "must be at least 0 and below scale_up_threshold".into());
        }
        if self.horizon < Duration::from_secs(10) || self.horizon > Duration::from_secs(300) {
            bad("horizon", "must be between 10s and 5m".into());
        }
        for (key, share) in [("quantile", self.quantile), ("confidence", self.confidence)] {
            if !(share > 0.5 && share < 1.0) {
                bad(key, "must be above 0.5 and below 1".into());
            }
        }
        match self.article_window {
            ArticleWindow::Requests(n) if !(60..=100_000).contains(&n) => {
                bad("article.window", "must be 60 to 100000 requests, or a time".into());
            }
            ArticleWindow::Time(t) if t < Duration::from_secs(60) || t > Duration::from_secs(600) => {
                bad("article.window", "must be between 1m and 10m, or a number of requests".into());
            }
            _ => {}
        }
        checked(self, faults)
    }
}
