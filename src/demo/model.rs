//! How the simulated upstream behaves: its capacity, how long a token takes, and what goes wrong when.
//!
//! Every duration is a function of (seed, request number, token number, time since the start): two runs
//! with the same arrivals are the same to the nanosecond. Without that, a scenario's figures could not be
//! compared between two commits. Built by the demo's command line and by the scenario files.

use std::time::Duration;

use super::faults::Faults;
use super::hosted::Hosted;
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
    /// As `SlowDown`, prefills too, to twice the capacity. Beyond that the whole server's throughput falls, to
    /// 40 % at four times the capacity; at most eight times the capacity run, the rest wait inside.
    Knee,
    /// Answers 429 as the budgets of a hosted API say. `capacity` is a limit of its own beside them, which no
    /// header names: beyond it the 429 is bare.
    Hosted(Hosted),
}

/// A knee's numbers, in capacities: where throughput begins to fall, where it has fallen, how many run at most.
const KNEE: (f64, f64, usize) = (2.0, 4.0, 8);
/// What is left of the throughput then.
const WORST: f64 = 0.4;

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
        if let OverCapacity::Hosted(hosted) = &self.over_capacity {
            hosted.check(&mut bad);
        }
        self.faults.check(&mut bad);
        checked(self, bad)
    }

    /// Requests that hold a slot at most, where the rest wait inside.
    pub(crate) fn run_at_most(&self) -> Option<usize> {
        match self.over_capacity {
            OverCapacity::QueueInside => Some(self.capacity),
            OverCapacity::Knee => Some(self.capacity.saturating_mul(KNEE.2)),
            OverCapacity::Refuse429 { .. } | OverCapacity::SlowDown | OverCapacity::Hosted(_) => None,
        }
    }

    /// Requests that hold a slot at most, where the rest are refused.
    pub(crate) const fn refuse_beyond(&self) -> Option<usize> {
        match self.over_capacity {
            OverCapacity::Refuse429 { .. } | OverCapacity::Hosted(_) => Some(self.capacity),
            OverCapacity::QueueInside | OverCapacity::SlowDown | OverCapacity::Knee => None,
        }
    }

    /// How long the model reads the prompt before its first token, for itself.
    pub(crate) fn prefill_time(&self, prompt_tokens: u64, at: Duration, draw: Draw) -> Duration {
        let per_prompt = self.prefill_per_1k_tokens.mul_f64(prompt_tokens as f64 / 1000.0);
        self.stretch(self.prefill + per_prompt, at, draw, 1.0)
    }

    /// The longest part of a prefill that begins and ends at one speed: prefills share only a server with a knee.
    ///
    /// The speed of each part is that of its begin. What comes or goes meanwhile is felt by the next part, at
    /// most one token's time later; tokens are parts themselves.
    pub(crate) fn slice(&self) -> Option<Duration> {
        (self.over_capacity == OverCapacity::Knee).then(|| self.per_token.max(Duration::from_millis(1)))
    }

    /// How long the next token takes with `running` requests in the batch.
    pub(crate) fn token_time(&self, running: usize, at: Duration, draw: Draw) -> Duration {
        self.stretch(self.per_token, at, draw, self.crowd(running))
    }

    /// How many times as long everything takes with `running` requests in the batch.
    pub(crate) fn crowd(&self, running: usize) -> f64 {
        let load = running as f64 / self.capacity as f64;
        match self.over_capacity {
            OverCapacity::SlowDown => load.max(1.0),
            OverCapacity::Knee => {
                let beyond = ((load - KNEE.0) / (KNEE.1 - KNEE.0)).clamp(0.0, 1.0);
                load.max(1.0) / (1.0 - (1.0 - WORST) * beyond)
            }
            OverCapacity::Refuse429 { .. } | OverCapacity::QueueInside | OverCapacity::Hosted(_) => 1.0,
        }
    }

    fn stretch(&self, plain: Duration, at: Duration, draw: Draw, crowd: f64) -> Duration {
        let luck = self.jitter.mul_add(2.0_f64.mul_add(draw.unit(), -1.0), 1.0);
        let factor = self.faults.slowness(at) * luck * crowd;
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
    use crate::demo::faults::{Errors, Slow, Window};

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
                errors: vec![Errors { every: 0, ..Errors::all(500, Window::new(SECOND, 2 * SECOND)) }],
                ..Faults::default()
            },
            over_capacity: OverCapacity::Hosted(Hosted { burst: 0.0, other: 1.0, ..Hosted::new(f64::NAN) }),
            ..Law::default()
        };
        let keys: Vec<_> = law.try_new().unwrap_err().into_iter().map(|f| f.key).collect();
        assert_eq!(
            keys,
            [
                "capacity",
                "jitter",
                "hosted",
                "hosted.burst",
                "hosted.other",
                "faults.slow",
                "faults.errors",
                "faults.down",
            ]
        );
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
    #[test]
    fn beyond_its_knee_a_server_loses_throughput() {
        let law = Law { capacity: 32, over_capacity: OverCapacity::Knee, ..Law::default() };
        // 20 ms a token, times max(1, n / 32), to 64; at 128 the total is 40 %, and stays there
        for (n, total) in [(1, 1.0), (32, 32.0), (48, 32.0), (64, 32.0), (96, 22.4), (128, 12.8), (256, 12.8)]
        {
            let got = n as f64 / law.crowd(n);
            assert!((got - total).abs() < 1e-9, "{n}: {got}");
        }
        assert_eq!((law.run_at_most(), law.refuse_beyond()), (Some(256), None));
    }
}
