//! The tokens of one request, whatever its dialect calls them.

use crate::policy::units::Tokens;

/// What a response says it cost. A kind it does not speak of is absent, which is not the same as 0.
///
/// The kinds overlap as they do in the `OpenAI` API: `cached` and `audio_in` are parts of `prompt`, `reasoning` and
/// `audio_out` are parts of `output`. Anthropic's `input_tokens` leave out what was read from the cache and written
/// to it; here they are counted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt: Option<Tokens>,
    /// Of them: read from the upstream's cache.
    pub cached: Option<Tokens>,
    /// Of them: written to the upstream's cache.
    pub cache_written: Option<Tokens>,
    /// Of them: what the upstream's limits do not count, as Anthropic's do not count what is read from its cache.
    pub uncounted: Option<Tokens>,
    /// Tokens of the answer. Absent where there is none to speak of: embeddings.
    pub output: Option<Tokens>,
    /// Of them: spent on thinking.
    pub reasoning: Option<Tokens>,
    /// Of the prompt: audio.
    pub audio_in: Option<Tokens>,
    /// Of the answer: audio.
    pub audio_out: Option<Tokens>,
}

/// A number that `usage` may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// All of the prompt.
    Prompt,
    /// The prompt, less what is named beside it.
    Input,
    Output,
    Total,
    /// A part of the prompt.
    Cached,
    /// Beside the input: read from the cache.
    CacheRead,
    /// Beside the input: written to the cache.
    CacheWritten,
    Reasoning,
    AudioIn,
    AudioOut,
}

/// The numbers as they were found; of a field that came twice, the last.
///
/// 32 bits: no request has four thousand million tokens, and sums of what a lying upstream says cannot overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found([Option<u32>; 10]);

impl Found {
    pub(super) fn set(&mut self, field: Field, n: u32) {
        self.0[field as usize] = Some(n);
    }

    fn get(&self, field: Field) -> Option<u64> {
        self.0[field as usize].map(u64::from)
    }

    /// The usage they amount to, if there are any.
    pub(super) fn usage(&self) -> Option<Usage> {
        let (read, written) = (self.get(Field::CacheRead), self.get(Field::CacheWritten));
        let beside = read.unwrap_or_default() + written.unwrap_or_default();
        // a gateway that speaks both dialects has limits of its own
        let uncounted = read.filter(|_| self.get(Field::Prompt).is_none());
        let input = self.get(Field::Prompt).or_else(|| self.get(Field::Input).map(|input| input + beside));
        let total = self.get(Field::Total);
        let (prompt, output) = match (input, self.get(Field::Output), total) {
            // a total of more than the prompt has an answer in it
            (Some(prompt), None, Some(total)) => {
                (Some(prompt), total.checked_sub(prompt).filter(|rest| *rest > 0))
            }
            // reranking says nothing but a total
            (None, output, Some(total)) => (Some(total.saturating_sub(output.unwrap_or_default())), output),
            (input, output, _) => (input, output),
        };
        let tokens = |n: Option<u64>| n.map(Tokens);
        let usage = Usage {
            prompt: tokens(prompt),
            cached: tokens(self.get(Field::Cached).or(read)),
            cache_written: tokens(written),
            uncounted: tokens(uncounted),
            output: tokens(output),
            reasoning: tokens(self.get(Field::Reasoning)),
            audio_in: tokens(self.get(Field::AudioIn)),
            audio_out: tokens(self.get(Field::AudioOut)),
        };
        (usage.prompt.is_some() || usage.output.is_some()).then_some(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(fields: &[(Field, u32)]) -> Option<(Option<u64>, Option<u64>, Option<u64>)> {
        let mut found = Found::default();
        fields.iter().for_each(|(field, n)| found.set(*field, *n));
        let n = |t: Option<Tokens>| t.map(|t| t.0);
        found.usage().map(|u| (n(u.prompt), n(u.cached), n(u.output)))
    }

    #[test]
    fn what_is_missing_is_found_in_the_total() {
        use Field::{Input, Output, Prompt, Total};
        assert_eq!(usage(&[]), None);
        assert_eq!(usage(&[(Prompt, 8), (Output, 3), (Total, 11)]), Some((Some(8), None, Some(3))));
        assert_eq!(usage(&[(Prompt, 8), (Total, 8)]), Some((Some(8), None, None)), "embeddings");
        assert_eq!(usage(&[(Input, 8), (Total, 11)]), Some((Some(8), None, Some(3))));
        assert_eq!(usage(&[(Total, 11)]), Some((Some(11), None, None)), "reranking");
        assert_eq!(usage(&[(Total, 11), (Output, 3)]), Some((Some(8), None, Some(3))));
        assert_eq!(usage(&[(Total, 1), (Output, 3)]), Some((Some(0), None, Some(3))), "a total that lies");
        assert_eq!(usage(&[(Output, 3)]), Some((None, None, Some(3))));
    }

    #[test]
    fn what_stands_beside_the_input_is_not_counted_by_limits() {
        use Field::{CacheRead, CacheWritten, Cached, Input, Prompt};
        let uncounted = |fields: &[(Field, u32)]| {
            let mut found = Found::default();
            fields.iter().for_each(|(field, n)| found.set(*field, *n));
            found.usage().and_then(|u| u.uncounted).map(|t| t.0)
        };
        assert_eq!(uncounted(&[(Input, 8), (CacheRead, 100), (CacheWritten, 20)]), Some(100));
        assert_eq!(uncounted(&[(Input, 128), (Cached, 100)]), None, "OpenAI counts them");
        assert_eq!(uncounted(&[(Prompt, 128), (CacheRead, 100)]), None, "a gateway");
    }

    #[test]
    fn a_cache_beside_the_input_is_a_part_of_the_prompt_too() {
        use Field::{CacheRead, CacheWritten, Cached, Input, Prompt};
        assert_eq!(
            usage(&[(Input, 8), (CacheRead, 100), (CacheWritten, 20)]),
            Some((Some(128), Some(100), None))
        );
        assert_eq!(usage(&[(Input, 128), (Cached, 100)]), Some((Some(128), Some(100), None)));
        let both = [(Prompt, 128), (CacheRead, 100), (CacheWritten, 20)];
        assert_eq!(usage(&both), Some((Some(128), Some(100), None)), "gateways that speak both dialects");
        let most = usage(&[(Input, u32::MAX), (CacheRead, u32::MAX), (CacheWritten, u32::MAX)]);
        assert_eq!(most.unwrap().0, Some(3 * u64::from(u32::MAX)));
        assert_eq!(usage(&[(Cached, 1)]), None, "a part of nothing is nothing");
    }
}
