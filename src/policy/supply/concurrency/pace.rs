//! Which of a response's times is its speed.

use std::time::Duration;

use crate::policy::units::Sample;

/// Never mixed: each has a curve of its own.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Tokens after the first, per second.
    Stream,
    /// Tokens per second of the whole.
    Whole,
    /// Prompt tokens and 256 per second of the whole: embeddings and what else makes no tokens.
    Untokenised,
}

/// How fast one response was.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) kind: Kind,
    work: f64,
    pub(super) took: Duration,
    /// How much it counts: a few tokens say little.
    pub(super) weight: f64,
}

/// Seconds per token below which a stream was not made as it was sent: someone held it back, and only how long the whole
/// took says anything.
const AT_ONCE: f64 = 1e-4;
/// Tokens from which a pace counts in full.
const FULL: f64 = 32.0;

impl Pace {
    pub(super) fn of(sample: &Sample) -> Self {
        let rest = sample.last.saturating_sub(sample.first);
        let output = sample.output.0 as f64;
        let streamed = sample.stream && output >= 2.0 && rest.as_secs_f64() >= AT_ONCE * (output - 1.0);
        let (kind, work, took) = match output {
            _ if streamed => (Kind::Stream, output - 1.0, rest),
            1.0.. => (Kind::Whole, output, sample.last),
            _ => (Kind::Untokenised, 256.0 + sample.prompt.0 as f64, sample.last),
        };
        let weight = if matches!(kind, Kind::Untokenised) { 1.0 } else { work / FULL };
        Self { kind, work, took, weight }
    }

    pub(super) fn per_second(&self) -> f64 {
        self.work / self.took.as_secs_f64()
    }
}
