//! What a request will cost, as far as a proxy can tell before it is sent.
//!
//! The workload says how many tokens a prompt has; a proxy sees the bytes of a body, and learns from the answers how many of
//! them a token has. So each request gets a body, and the proxy's own [`Estimator`] sees only that. Called by the event
//! loop for each arrival, and for each answer.

use crate::chance::{SplitMix64, hash};
use crate::policy::units::{ModelId, Tokens};
use crate::policy::usage::{Ask, Estimate, Estimator, Usage};
use crate::simulate::request::Request;

/// Bytes of a token: in the median, and the σ of their logarithm from one prompt to the next.
const BYTES: (f64, f64) = (4.0, 0.15);
/// Bytes of a body around its prompt.
const FRAME: f64 = 120.0;

/// Learns what requests cost.
#[derive(Debug, Default)]
pub(super) struct Estimates {
    estimator: Estimator,
    seed: u64,
}

impl Estimates {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Nobody says how long an answer is to be at most.
    fn ask(&self, id: u32, request: &Request) -> Ask {
        let mut chance = SplitMix64::new(hash(self.seed, id.into(), 0x62_6f_64_79));
        let body_bytes = (FRAME + f64::from(request.prompt) * chance.lognormal(BYTES.0, BYTES.1)) as u64;
        Ask { body_bytes, max_tokens: None }
    }

    /// What `request` number `id` will probably cost.
    pub(super) fn of(&self, id: u32, request: &Request) -> Estimate {
        self.estimator.estimate(ModelId::default(), self.ask(id, request))
    }

    /// It was estimated so; this is what it did cost.
    pub(super) fn observe(&mut self, id: u32, request: &Request, estimated: Estimate) {
        let usage = Usage {
            prompt: Some(Tokens(request.prompt.into())),
            output: Some(Tokens(request.output.into())),
            ..Usage::default()
        };
        let ask = self.ask(id, request);
        self.estimator.observe(ModelId::default(), ask, estimated, &usage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::units::MonoTime;

    #[test]
    fn it_learns_what_a_workload_s_requests_cost() {
        let mut estimates = Estimates::new(1);
        let request =
            |n: u32| Request { at: MonoTime::ZERO, prompt: 500 + 13 * (n % 97), output: 150 + n % 101 };
        for n in 0..400 {
            let r = request(n);
            estimates.observe(n, &r, estimates.of(n, &r));
        }
        let (mut charged, mut real, mut exact) = (0.0, 0.0, 0);
        for n in 400..800 {
            let (r, e) = (request(n), estimates.of(n, &request(n)));
            exact += u32::from(e.prompt.0 == u64::from(r.prompt));
            charged += e.cost().0 as f64;
            real += f64::from(r.prompt + r.output);
        }
        assert!(exact < 20, "an estimate is right by chance only: {exact} of 400");
        // a prompt within 5 % in the mean; an answer is charged its mean and one σ
        assert!((0.97..1.12).contains(&(charged / real)), "{charged} {real}");
    }
}
