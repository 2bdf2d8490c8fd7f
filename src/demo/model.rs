//! How the simulated upstream behaves: its capacity, how long a token takes, and what goes wrong when.
//!
//! Every duration is a function of (seed, request number, token number, time since the start): two runs
//! with the same arrivals are the same to the nanosecond. Without that, a scenario's figures could not be
//! compared between two commits. Built by the demo's command line and by the scenario files.

use std::time::Duration;

use crate::chance::{hash, unit};
use crate::policy::units::{Invalid, checked};

/// What the upstream does with a request that finds every slot taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OverCapacity {
    /// Answers 429 at once, as a hosted API does.
    Refuse429 {
        /// What its `Retry-After` says, rounded up to whole seconds, at least one.
        retry_after: Duration,
    },
    /// Lets it wait for a slot, first come first served, as llama.cpp does.
    QueueInside,
    /// Takes it, and everyone's next token takes `running / capacity` times as long, as a batch server does.
    SlowDown,
}

/// The law of a simulated upstream.
///
/// A streamed answer of `n` tokens takes `prefill + prompt/1000 · prefill_per_1k_tokens + n · per_token`
/// from the moment it has a slot; its head leaves when the prefill is done.
#[derive(Clone, Debug, PartialEq)]
pub struct Law {
    /// Requests served side by side at full speed.
    pub capacity: usize,
    /// What happens beyond that.
    pub over_capacity: OverCapacity,
    /// The fixed part of the time to first token.
    pub prefill: Duration,
    /// The part of it that grows with the prompt.
    pub prefill_per_1k_tokens: Duration,
    /// Between two tokens.
    pub per_token: Duration,
    /// Length of an answer when the request sets none.
    pub output_tokens: u32,
    /// Relative spread of each duration: 0.1 is uniform within ±10 %.
    pub jitter: f64,
    /// What goes wrong.
    pub faults: Faults,
}

/// A span of time since the simulated upstream's start: `from` is in it, `to` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First moment.
    pub from: Duration,
    /// First moment after it.
    pub to: Duration,
}

/// A span in which everything takes longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slow {
    /// When.
    pub window: Window,
    /// How many times as long each token and prefill takes.
    pub factor: f64,
}

/// What goes wrong, and when. The default is nothing.
///
/// `…_every` counts the requests that got a slot, from 1; 0 means never.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Dead: open connections break, new ones are closed without a byte.
    pub down: Vec<Window>,
    /// Every call that would take a slot is answered 500 at once.
    pub error_500: Vec<Window>,
    /// Slower than its law.
    pub slow: Vec<Slow>,
    /// The connection closes after the prefill, before the head.
    pub reset_every: u64,
    /// The connection breaks halfway through the body.
    pub cut_every: u64,
    /// Halfway through the body nothing more comes; the slot stays taken until the client leaves.
    pub stall_every: u64,
}

/// What one request has been chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Whole,
    Reset,
    Cut,
    Stall,
}

impl Window {
    /// From one moment to another.
    #[must_use]
    pub const fn new(from: Duration, to: Duration) -> Self {
        Self { from, to }
    }

    /// Whether the moment is in it.
    #[must_use]
    pub fn contains(&self, at: Duration) -> bool {
        self.from <= at && at < self.to
    }
}

impl Faults {
    pub(crate) fn is_down(&self, at: Duration) -> bool {
        self.down.iter().any(|w| w.contains(at))
    }

    pub(crate) fn fails(&self, at: Duration) -> bool {
        self.error_500.iter().any(|w| w.contains(at))
    }

    /// When the next death begins.
    pub(crate) fn next_down(&self, after: Duration) -> Option<Duration> {
        self.down.iter().map(|w| w.from).filter(|from| *from > after).min()
    }

    pub(crate) fn fate(&self, request: u64) -> Fate {
        let due = |every: u64| every > 0 && request.is_multiple_of(every);
        if due(self.reset_every) {
            Fate::Reset
        } else if due(self.cut_every) {
            Fate::Cut
        } else if due(self.stall_every) {
            Fate::Stall
        } else {
            Fate::Whole
        }
    }
}

impl Default for Law {
    /// A small hosted model: 8 at once, then 429; the first token after about 0.2 s, then 50 a second.
    fn default() -> Self {
        Self {
            capacity: 8,
            over_capacity: OverCapacity::Refuse429 { retry_after: Duration::from_secs(1) },
            prefill: Duration::from_millis(150),
            prefill_per_1k_tokens: Duration::from_millis(50),
            per_token: Duration::from_millis(20),
            output_tokens: 64,
            jitter: 0.1,
            faults: Faults::default(),
        }
    }
}

impl Law {
    /// Checks the law.
    ///
    /// # Errors
    /// Every setting no upstream can follow.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut bad = Vec::new();
        if self.capacity == 0 {
            bad.push(Invalid::new("capacity", "must be at least 1"));
        }
        if !(0.0..1.0).contains(&self.jitter) {
            bad.push(Invalid::new("jitter", "must be at least 0 and less than 1"));
        }
        if self.faults.slow.iter().any(|s| !(s.factor.is_finite() && s.factor > 0.0)) {
            bad.push(Invalid::new("faults.slow", "the factor must be a number above 0"));
        }
        let slow = self.faults.slow.iter().map(|s| ("faults.slow", s.window));
        let down = self.faults.down.iter().map(|w| ("faults.down", *w));
        let errors = self.faults.error_500.iter().map(|w| ("faults.error_500", *w));
        for (key, _) in slow.chain(down).chain(errors).filter(|(_, w)| w.from >= w.to) {
            bad.push(Invalid::new(key, "a window must end after it begins"));
        }
        checked(self, bad)
    }

    /// How long the model reads the prompt before its first token.
    pub(crate) fn prefill_time(&self, prompt_tokens: u64, at: Duration, draw: Draw) -> Duration {
        let per_prompt = self.prefill_per_1k_tokens.mul_f64(prompt_tokens as f64 / 1000.0);
        self.stretch(self.prefill + per_prompt, at, draw, 1.0)
    }

    /// How long the next token takes with `running` requests in the batch.
    pub(crate) fn token_time(&self, running: usize, at: Duration, draw: Draw) -> Duration {
        let crowd = match self.over_capacity {
            OverCapacity::SlowDown => (running as f64 / self.capacity as f64).max(1.0),
            OverCapacity::Refuse429 { .. } | OverCapacity::QueueInside => 1.0,
        };
        self.stretch(self.per_token, at, draw, crowd)
    }

    fn stretch(&self, plain: Duration, at: Duration, draw: Draw, crowd: f64) -> Duration {
        let slow: f64 = self.faults.slow.iter().filter(|s| s.window.contains(at)).map(|s| s.factor).product();
        let luck = self.jitter.mul_add(2.0_f64.mul_add(draw.unit(), -1.0), 1.0);
        let factor = slow * luck * crowd;
        // Floating point must not cost a nanosecond where nothing stretches: sums are compared exactly.
        if (factor - 1.0).abs() < f64::EPSILON { plain } else { plain.mul_f64(factor) }
    }
}

/// Which draw of a run's chance this is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    pub(crate) seed: u64,
    pub(crate) request: u64,
    pub(crate) step: u64,
}

impl Draw {
    fn unit(self) -> f64 {
        unit(hash(self.seed, self.request, self.step))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn every_impossible_setting_is_named() {
        let backwards = Window::new(2 * SECOND, SECOND);
        let law = Law {
            capacity: 0,
            jitter: 1.0,
            faults: Faults {
                down: vec![backwards],
                slow: vec![Slow { window: Window::new(SECOND, 2 * SECOND), factor: f64::NAN }],
                ..Faults::default()
            },
            ..Law::default()
        };
        let keys: Vec<_> = law.try_new().unwrap_err().into_iter().map(|f| f.key).collect();
        assert_eq!(keys, ["capacity", "jitter", "faults.slow", "faults.down"]);
        assert!(Law::default().try_new().is_ok());
    }

    #[test]
    fn jitter_stays_in_its_band_and_repeats() {
        let law = Law { jitter: 0.25, per_token: SECOND, ..Law::default() };
        let time = |seed, step| law.token_time(1, Duration::ZERO, Draw { seed, request: 3, step });
        let times: Vec<_> = (0..1000).map(|step| time(1, step)).collect();
        assert!(times.iter().all(|t| (0.75..=1.25).contains(&t.as_secs_f64())));
        assert!(times.iter().any(|t| t.as_secs_f64() < 0.8) && times.iter().any(|t| t.as_secs_f64() > 1.2));
        assert!((0..1000).all(|step| times[step as usize] == time(1, step)));
        assert!((0..1000).any(|step| times[step as usize] != time(2, step)));
    }

    #[test]
    fn a_crowd_slows_only_a_batch_server() {
        let draw = Draw { seed: 0, request: 1, step: 0 };
        let batch = Law {
            over_capacity: OverCapacity::SlowDown,
            capacity: 4,
            per_token: SECOND,
            jitter: 0.0,
            ..Law::default()
        };
        assert_eq!(batch.token_time(4, Duration::ZERO, draw), SECOND);
        assert_eq!(batch.token_time(8, Duration::ZERO, draw), 2 * SECOND);
        let slots = Law { over_capacity: OverCapacity::QueueInside, ..batch };
        assert_eq!(slots.token_time(8, Duration::ZERO, draw), SECOND);
    }
}
