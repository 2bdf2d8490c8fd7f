//! What a request will cost, before it is sent: a token bucket has to be charged at dispatch.
//!
//! ```text
//! prompt    = bytes of the body · ratio(model, size of the body)       ratio: tokens a byte, 1/4 until learned
//! uncounted = prompt · (mean − sd)(model, size of the body)            0 until learned
//! output    = min(bound, mean + sd)(model, size of the bound)          256 until learned
//! cost      = prompt − uncounted + output
//! ```
//!
//! Ratios are learned as logarithms, and by body size in steps of four: a short body is mostly frame, a body of
//! megabytes is mostly pictures, and neither says what a byte of text is. A class that was never seen begins at its
//! model's own value. Output is learned by the bound that was asked for, again in steps of four: those who ask for at
//! most 5 tokens say nothing of those who ask for any number.
//!
//! Uncounted is what the upstream reads from its cache where its limits leave that out (Anthropic's): of prompts that
//! hardly change from one call to the next it is nearly all, and charged in full they would be paced many times too slow.
//!
//! `mean + sd`: a charge is settled with the real usage when the answer is there, so one that is too high costs an
//! answer's length of waiting, once, and one that is too low is a 429. With N answers in flight their sum is above
//! N (mean + sd) about as often as a normal variable is above √N: one time in six for one, in 44 for four, in 740 for nine.

use std::collections::BTreeMap;

use super::learned::Learned;
use super::tokens::Usage;
use crate::policy::units::{ModelId, Tokens};

/// What is known of a request before it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Bytes of its body.
    pub body_bytes: u64,
    /// The most tokens that it wants back; 0 for a call that has no answer in tokens, such as embeddings.
    pub max_tokens: Option<u64>,
}

/// What it will probably cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens of the prompt.
    pub prompt: Tokens,
    /// Of them: what the upstream's limits do not count.
    pub uncounted: Tokens,
    /// Tokens of the answer.
    pub output: Tokens,
}

impl Estimate {
    /// Both together, as far as limits count them.
    #[must_use]
    pub const fn cost(self) -> Tokens {
        Tokens(self.prompt.0.saturating_sub(self.uncounted.0).saturating_add(self.output.0))
    }
}

/// Learns what the requests of a group cost, model by model.
///
/// Deterministic. It keeps as many models as it is told of and not told to forget.
#[derive(Clone, Debug, Default)]
pub struct Estimator {
    models: BTreeMap<ModelId, Model>,
    prompt: Errors,
    output: Errors,
}

/// How far estimates are off, over about the last 250 answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EstimateError {
    /// Mean of |estimate − real| ÷ real, each at most 10.
    pub relative: f64,
    /// (Sum of estimates − sum of what was real) ÷ sum of what was real, at most 10: what is charged too much, in all.
    pub bias: f64,
}

/// By size: below 4⁴ bytes, 4⁵, … 4¹⁰, and above. By bound: up to 4² tokens, 4³, … 4⁷, above, and none.
const CLASSES: usize = 8;

#[derive(Clone, Debug)]
struct Model {
    /// ln(tokens a byte) of all sizes, and of each.
    ratio: Learned,
    ratios: [Learned; CLASSES],
    /// The share of the prompt that limits do not count, by its body's size.
    uncounted: [Learned; CLASSES],
    /// Tokens of answers to all bounds, and to each.
    output: Learned,
    outputs: [Learned; CLASSES],
}

/// Tokens a byte of English in JSON, about.
const RATIO: f64 = 0.25;
/// Beyond these a ratio says more of pictures, or of what the upstream remembered, than of bytes.
const RATIOS: (f64, f64) = (1.0 / 1024.0, 4.0);
/// Half of all first guesses are within a factor of 1.6 or so.
const RATIO_SD: f64 = 0.7;
const RATIO_TRUST: f64 = 2.0;
/// A tenth: what a ratio may always be off without being suspect.
const RATIO_SLACK: f64 = 0.1;
const UNCOUNTED_TRUST: f64 = 1.0;
/// All of it: a prompt is in the cache or it is not.
const UNCOUNTED_SLACK: f64 = 1.0;
const OUTPUT: f64 = 256.0;
const OUTPUT_TRUST: f64 = 4.0;
const OUTPUT_SLACK: f64 = 16.0;
/// How many sights its model's value is worth to a class.
const CLASS_TRUST: f64 = 4.0;
/// Of an error's past: what is kept at each comparison.
const KEEP: f64 = 1.0 - 1.0 / 256.0;
const WORST: f64 = 10.0;

impl Default for Model {
    fn default() -> Self {
        let ratio = Learned::prior(RATIO.ln(), RATIO_SD);
        let output = Learned::prior(OUTPUT, OUTPUT);
        let uncounted = [Learned::prior(0.0, 0.0); CLASSES];
        Self { ratio, ratios: [ratio; CLASSES], uncounted, output, outputs: [output; CLASSES] }
    }
}

impl Estimator {
    /// What a request to `model` will cost.
    #[must_use]
    pub fn estimate(&self, model: ModelId, ask: Ask) -> Estimate {
        match self.models.get(&model) {
            Some(model) => model.estimate(ask),
            None => Model::default().estimate(ask),
        }
    }

    /// A request to `model` was estimated so, and this is what it did cost.
    pub fn observe(&mut self, model: ModelId, ask: Ask, estimated: Estimate, usage: &Usage) {
        if let Some(prompt) = usage.prompt {
            self.prompt.add(estimated.prompt, prompt);
        }
        // no word of an answer beside a prompt: there was none
        let output = usage.output.or_else(|| usage.prompt.map(|_| Tokens(0)));
        if let (Some(output), true) = (output, ask.max_tokens != Some(0)) {
            self.output.add(estimated.output, output);
        }
        self.models.entry(model).or_default().learn(ask, usage, output);
    }

    /// Nobody will ask by this number any more.
    pub fn forget(&mut self, model: ModelId) {
        self.models.remove(&model);
    }

    /// How far the estimates of prompts are off, if any could be compared.
    #[must_use]
    pub fn prompt_error(&self) -> Option<EstimateError> {
        self.prompt.measured()
    }

    /// How far the estimates of answers are off, if any could be compared.
    #[must_use]
    pub fn output_error(&self) -> Option<EstimateError> {
        self.output.measured()
    }
}

/// The class's own value, once it has one.
fn best<'a>(all: &'a Learned, classes: &'a [Learned; CLASSES], class: usize) -> &'a Learned {
    classes.get(class).filter(|own| own.seen() > 0).unwrap_or(all)
}

/// The class, which begins at the value of all.
fn begun<'a>(all: &Learned, classes: &'a mut [Learned; CLASSES], class: usize) -> &'a mut Learned {
    let own = &mut classes[class.min(CLASSES - 1)];
    if own.seen() == 0 {
        *own = Learned::prior(all.mean(), all.sd());
    }
    own
}

/// `⌊log₄ n⌋ − first`, within the classes; of 0 the first.
fn step_of_four(n: u64, first: u32) -> usize {
    let log4 = n.max(1).ilog2() / 2;
    (log4.saturating_sub(first) as usize).min(CLASSES - 1)
}

fn size_class(ask: Ask) -> usize {
    step_of_four(ask.body_bytes, 3)
}

fn bound_class(ask: Ask) -> usize {
    ask.max_tokens.map_or(CLASSES - 1, |most| step_of_four(most.saturating_sub(1), 1).min(CLASSES - 2))
}

impl Model {
    fn estimate(&self, ask: Ask) -> Estimate {
        let ratio = best(&self.ratio, &self.ratios, size_class(ask));
        let ratio = ratio.mean().exp().clamp(RATIOS.0, RATIOS.1);
        let output = best(&self.output, &self.outputs, bound_class(ask));
        let sd = if output.seen() == 0 { 0.0 } else { output.sd() };
        let output = ((output.mean() + sd).max(0.0).ceil() as u64).min(ask.max_tokens.unwrap_or(u64::MAX));
        let prompt = (ask.body_bytes as f64 * ratio).round();
        // too few, as an answer is too long: what was charged too much comes back
        let uncounted = &self.uncounted[size_class(ask)];
        let uncounted = (uncounted.mean() - uncounted.sd()).clamp(0.0, 1.0) * prompt;
        Estimate {
            prompt: Tokens(prompt as u64),
            uncounted: Tokens(uncounted as u64),
            output: Tokens(output),
        }
    }

    fn learn(&mut self, ask: Ask, usage: &Usage, output: Option<Tokens>) {
        if let (Some(Tokens(prompt @ 1..)), 1..) = (usage.prompt, ask.body_bytes) {
            let uncounted = usage.uncounted.unwrap_or_default().0.min(prompt) as f64 / prompt as f64;
            self.uncounted[size_class(ask)].learn(uncounted, UNCOUNTED_TRUST, UNCOUNTED_SLACK);
            let ratio = (prompt as f64 / ask.body_bytes as f64).clamp(RATIOS.0, RATIOS.1).ln();
            let class = begun(&self.ratio, &mut self.ratios, size_class(ask));
            class.learn(ratio, CLASS_TRUST, RATIO_SLACK);
            self.ratio.learn(ratio, RATIO_TRUST, RATIO_SLACK);
        }
        if let (Some(Tokens(output)), true) = (output, ask.max_tokens != Some(0)) {
            let class = begun(&self.output, &mut self.outputs, bound_class(ask));
            class.learn(output as f64, CLASS_TRUST, OUTPUT_SLACK);
            self.output.learn(output as f64, OUTPUT_TRUST, OUTPUT_SLACK);
        }
    }
}

/// Decayed sums over comparisons.
#[derive(Clone, Copy, Debug, Default)]
struct Errors {
    count: f64,
    relative: f64,
    excess: f64,
    real: f64,
}

impl Errors {
    fn add(&mut self, estimated: Tokens, real: Tokens) {
        let (estimated, real) = (estimated.0 as f64, real.0 as f64);
        let add = |sum: &mut f64, x: f64| *sum = KEEP * *sum + x;
        add(&mut self.count, 1.0);
        add(&mut self.relative, ((estimated - real).abs() / real.max(1.0)).min(WORST));
        add(&mut self.excess, estimated - real);
        add(&mut self.real, real);
    }

    fn measured(&self) -> Option<EstimateError> {
        (self.count > 0.0).then(|| EstimateError {
            relative: self.relative / self.count,
            bias: (self.excess / self.real.max(1.0)).min(WORST),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: ModelId = ModelId(3);

    fn ask(body_bytes: u64, max_tokens: Option<u64>) -> Ask {
        Ask { body_bytes, max_tokens }
    }

    fn used(prompt: u64, output: u64) -> Usage {
        Usage { prompt: Some(Tokens(prompt)), output: Some(Tokens(output)), ..Usage::default() }
    }

    /// Estimates, then tells what it was.
    fn pass(e: &mut Estimator, ask: Ask, usage: &Usage) -> Estimate {
        let estimated = e.estimate(M, ask);
        e.observe(M, ask, estimated, usage);
        estimated
    }

    #[test]
    fn before_anything_is_known() {
        let e = Estimator::default();
        assert_eq!(
            e.estimate(M, ask(4000, None)),
            Estimate { prompt: Tokens(1000), output: Tokens(256), ..Estimate::default() }
        );
        assert_eq!(e.estimate(M, ask(4000, Some(10))).cost(), Tokens(1010));
        assert_eq!(e.estimate(M, ask(0, Some(0))), Estimate::default());
        assert_eq!((e.prompt_error(), e.output_error()), (None, None));
    }

    #[test]
    fn what_limits_do_not_count_is_not_charged_once_that_is_known() {
        let mut e = Estimator::default();
        let cached = Usage { uncounted: Some(Tokens(950)), ..used(1000, 20) };
        let first = pass(&mut e, ask(4000, None), &cached);
        assert_eq!(first.uncounted, Tokens(0));
        for _ in 0..100 {
            pass(&mut e, ask(4000, None), &cached);
        }
        let known = e.estimate(M, ask(4000, None));
        assert!((850..=950).contains(&known.uncounted.0), "{known:?}");
        assert!(known.cost().0 < known.output.0 + 150, "{known:?}");
        // of other sizes nothing is known
        assert_eq!(e.estimate(M, ask(200, None)).uncounted, Tokens(0));
        // one in five begins anew: what is charged covers most of them
        for n in 0..200 {
            let usage = if n % 5 == 0 { used(1000, 20) } else { cached };
            pass(&mut e, ask(4000, None), &usage);
        }
        assert!((200..=500).contains(&e.estimate(M, ask(4000, None)).uncounted.0));
        for _ in 0..200 {
            pass(&mut e, ask(4000, None), &used(1000, 20));
        }
        assert!(e.estimate(M, ask(4000, None)).uncounted.0 < 20);
    }

    #[test]
    fn learns_the_ratio_of_each_size_and_the_length_for_each_bound() {
        let mut e = Estimator::default();
        for n in 0..200 {
            pass(&mut e, ask(100, Some(5)), &used(10, 5));
            pass(&mut e, ask(8000, None), &used(1600, 300 + 100 * (n % 2)));
        }
        let small = e.estimate(M, ask(100, Some(5)));
        assert_eq!((small.prompt, small.output), (Tokens(10), Tokens(5)));
        let large = e.estimate(M, ask(10_000, None));
        assert!((1950..=2050).contains(&large.prompt.0), "{large:?}");
        assert!((380..=420).contains(&large.output.0), "mean 350, sd 50: {large:?}");
        // other models know nothing of it
        assert_eq!(e.estimate(ModelId(0), ask(100, None)).cost(), Tokens(25 + 256));
        let error = e.prompt_error().unwrap();
        assert!(error.relative < 0.02 && error.bias.abs() < 0.02, "{error:?}");
        let error = e.output_error().unwrap();
        assert!((0.0..0.3).contains(&error.bias), "about 50 in 350 too much for half of them: {error:?}");
    }

    #[test]
    fn pictures_do_not_change_what_a_byte_of_text_is() {
        let mut e = Estimator::default();
        for n in 0..600 {
            match n % 3 {
                0 => pass(&mut e, ask(2_000_000, None), &used(1100, 50)),
                _ => pass(&mut e, ask(6000, None), &used(1500, 50)),
            };
        }
        let text = e.estimate(M, ask(6000, None)).prompt.0;
        let picture = e.estimate(M, ask(2_000_000, None)).prompt.0;
        assert!((1400..=1600).contains(&text), "{text}");
        assert!((900..=2500).contains(&picture), "{picture}");
    }

    #[test]
    fn a_lie_moves_little_and_nothing_overflows() {
        let mut e = Estimator::default();
        for _ in 0..100 {
            pass(&mut e, ask(4000, None), &used(1000, 100));
        }
        let before = e.estimate(M, ask(4000, None)).cost().0;
        pass(&mut e, ask(4000, None), &used(u64::MAX, u64::MAX));
        let after = e.estimate(M, ask(4000, None)).cost().0;
        assert!(after < before + before / 10, "{before} {after}");
        for _ in 0..2000 {
            pass(&mut e, ask(u64::MAX, None), &used(u64::MAX, u64::MAX));
            pass(&mut e, ask(u64::MAX, Some(u64::MAX)), &used(0, 0));
        }
        let _ = e.estimate(M, ask(u64::MAX, None)).cost();
        for error in [e.prompt_error().unwrap(), e.output_error().unwrap()] {
            assert!(error.relative.is_finite() && error.bias.is_finite(), "{error:?}");
        }
    }

    #[test]
    fn calls_without_an_answer_teach_nothing_of_answers() {
        let mut e = Estimator::default();
        let embedded = Usage { prompt: Some(Tokens(8)), ..Usage::default() };
        for _ in 0..50 {
            assert_eq!(pass(&mut e, ask(40, Some(0)), &embedded).output, Tokens(0));
        }
        assert_eq!(e.estimate(M, ask(40, None)).output, Tokens(256));
        assert_eq!(e.output_error(), None);
        // unless they come where an answer was to be expected
        for _ in 0..200 {
            pass(&mut e, ask(40, None), &embedded);
        }
        assert!(e.estimate(M, ask(40, None)).output.0 < 64);
    }

    #[test]
    fn what_is_forgotten_leaves_nothing_behind() {
        let mut e = Estimator::default();
        for _ in 0..100 {
            e.observe(M, ask(4000, None), Estimate::default(), &used(2000, 10));
        }
        assert!(e.estimate(M, ask(4000, None)).prompt.0 > 1900);
        e.forget(M);
        assert!(e.models.is_empty());
        assert_eq!(e.estimate(M, ask(4000, None)).prompt, Tokens(1000));
    }
}
