//! What the clients of a simulation do and expect.

use std::ops::Range;
use std::time::Duration;

use crate::policy::units::MonoTime;

/// How clients behave.
#[derive(Clone, Debug, PartialEq)]
pub struct Clients {
    /// They leave when this long after their arrival no first token has come; `None`: they never do.
    pub patience: Option<Duration>,
    /// They announce that they want the head within this time, as SDKs do; `None`: they announce nothing.
    pub announce: Option<Duration>,
    /// Waits before the next try after a 429 that was told; where the gate retries, it has its own. After the last, the request is lost.
    pub backoff: Vec<Duration>,
}

impl Default for Clients {
    /// The reference: they give up after 30 s, announce nothing, and try again after 1, 2, 4 and 8 s.
    fn default() -> Self {
        Self {
            patience: Some(Duration::from_secs(30)),
            announce: None,
            backoff: [1, 2, 4, 8].map(Duration::from_secs).to_vec(),
        }
    }
}

/// What happens to a request that the upstream refused with 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The gate tries again: the request waits without a permit at the head of its class, until its deadline at most.
    Gate,
    /// The client is told, and comes back as a new arrival, not before `Retry-After`.
    Return,
    /// It keeps its permit while it waits, and knows of no `Retry-After`: the naive loop around the call, which turns
    /// a full bucket into an outage.
    Hold,
    /// It is lost.
    Never,
}

/// What counts as a good answer. Whatever is not set is not asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slo {
    /// From arrival to the first token.
    pub ttft: Option<Duration>,
    /// Mean time between two tokens.
    pub inter_token: Option<Duration>,
    /// From arrival to the last byte.
    pub latency: Option<Duration>,
}

impl Slo {
    /// The reference for a model: first token within 2 s, then at most 60 ms per token.
    #[must_use]
    pub const fn llm() -> Self {
        Self {
            ttft: Some(Duration::from_secs(2)),
            inter_token: Some(Duration::from_millis(60)),
            latency: None,
        }
    }

    /// The reference for a hosted API: first token within 5 s.
    #[must_use]
    pub const fn hosted() -> Self {
        Self { ttft: Some(Duration::from_secs(5)), ..Self::llm() }
    }

    /// Whether an answer of `tokens` that was asked for at `at`, began at `first` and ended at `last` is good.
    #[must_use]
    pub fn met(&self, at: MonoTime, first: MonoTime, last: MonoTime, tokens: u32) -> bool {
        let within = |limit: Option<Duration>, took: Duration| limit.is_none_or(|limit| took <= limit);
        within(self.ttft, first.since(at))
            && within(self.latency, last.since(at))
            && (tokens < 2 || within(self.inter_token, last.since(first) / (tokens - 1)))
    }
}

/// Which requests the table is about, by their arrival, and over which time means are taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// From when.
    pub from: MonoTime,
    /// To when; the end is not in it.
    pub to: MonoTime,
    /// Only what arrives in these spans, in order and apart from each other; empty: everything.
    pub only: Vec<Range<MonoTime>>,
}

impl Measure {
    /// Everything up to `to`.
    #[must_use]
    pub const fn all(to: MonoTime) -> Self {
        Self { from: MonoTime::ZERO, to, only: Vec::new() }
    }

    /// Whether a request of `at` counts.
    #[must_use]
    pub fn has(&self, at: MonoTime) -> bool {
        if at < self.from || at >= self.to {
            return false;
        }
        let before = self.only.partition_point(|span| span.start <= at);
        let span = before.checked_sub(1).and_then(|n| self.only.get(n));
        self.only.is_empty() || span.is_some_and(|span| span.contains(&at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_taken_out_of_the_judgement() {
        let (slo, at) = (Slo::llm(), MonoTime::ZERO);
        let ms = |n: u64| MonoTime::from_nanos(n * 1_000_000);
        assert!(slo.met(at, ms(2000), ms(2000 + 60 * 999), 1000));
        assert!(!slo.met(at, ms(2001), ms(2100), 10));
        assert!(!slo.met(at, ms(100), ms(100 + 61 * 9), 10));
        assert!(slo.met(at, ms(100), ms(90_000), 1), "one token has no gap");
    }

    #[test]
    fn only_arrivals_within_the_spans_count() {
        let s = MonoTime::from_secs;
        let m = Measure { from: s(10), to: s(100), only: vec![s(5)..s(15), s(50)..s(60)] };
        let counted: Vec<u64> = (0..120).filter(|n| m.has(s(*n))).collect();
        assert_eq!(counted, (10..15).chain(50..60).collect::<Vec<_>>());
    }
}
