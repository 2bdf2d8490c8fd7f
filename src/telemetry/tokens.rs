//! What answers cost, as counts: tokens by kind, the pace of tokens, and answers that did not say.

use std::time::Duration;

use crate::policy::usage::Usage;
use crate::telemetry::shard::Buckets;

/// The kinds of tokens, as `tidegate_tokens_total` names them. All but `prompt` and `output` are parts of these two.
pub(super) const KINDS: [&str; 7] =
    ["prompt", "cached", "cache_written", "output", "reasoning", "audio_in", "audio_out"];

/// Why the cost of an answer is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unread {
    /// It is compressed, though that was not asked for.
    Encoded,
    /// It is neither JSON nor an event stream.
    Form,
    /// It does not say: a stream that was not asked for its usage, a server that reports none.
    Absent,
    /// It broke off, or its client left, before it said.
    CutShort,
}

impl Unread {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Encoded, Self::Form, Self::Absent, Self::CutShort];

    /// Its name as a label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encoded => "encoded",
            Self::Form => "form",
            Self::Absent => "absent",
            Self::CutShort => "cut_short",
        }
    }
}

/// What one request's answer was found to cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Tokens, as far as the upstream reported them.
    pub usage: Usage,
    /// Why it reported none, where one was looked for.
    pub unread: Option<Unread>,
    /// Time from the first token of a stream to its last, for each token after the first.
    pub per_token: Option<Duration>,
}

/// The costs of many.
#[derive(Clone, Debug, Default)]
pub(super) struct Costs {
    pub(super) tokens: [u64; KINDS.len()],
    pub(super) per_token: Buckets,
    pub(super) unread: [u64; Unread::ALL.len()],
}

impl Costs {
    pub(super) fn record(&mut self, cost: &Cost) {
        let u = &cost.usage;
        let kinds = [u.prompt, u.cached, u.cache_written, u.output, u.reasoning, u.audio_in, u.audio_out];
        for (sum, n) in self.tokens.iter_mut().zip(kinds) {
            *sum = sum.saturating_add(n.unwrap_or_default().0);
        }
        if let Some(span) = cost.per_token {
            self.per_token.observe(span);
        }
        if let Some(why) = cost.unread {
            self.unread[why as usize] += 1;
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.tokens
            .iter_mut()
            .zip(&other.tokens)
            .for_each(|(mine, theirs)| *mine = mine.saturating_add(*theirs));
        self.per_token.add(&other.per_token);
        self.unread.iter_mut().zip(&other.unread).for_each(|(mine, theirs)| *mine += theirs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::units::Tokens;

    #[test]
    fn each_kind_is_counted_where_its_name_stands() {
        let some = |n| Some(Tokens(n));
        let usage = Usage {
            prompt: some(1),
            cached: some(2),
            cache_written: some(3),
            uncounted: None,
            output: some(4),
            reasoning: some(5),
            audio_in: some(6),
            audio_out: some(u64::MAX),
        };
        let mut costs = Costs::default();
        costs.record(&Cost { usage, ..Cost::default() });
        costs.record(&Cost { unread: Some(Unread::CutShort), ..Cost::default() });
        let mut sum = Costs::default();
        sum.add(&costs);
        sum.add(&costs);
        assert_eq!(sum.tokens, [2, 4, 6, 8, 10, 12, u64::MAX]);
        assert_eq!(sum.unread, [0, 0, 0, 2]);
        for (n, why) in Unread::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, n);
        }
    }
}
