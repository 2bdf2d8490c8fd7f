//! Everything of a simulation but the policy.

use std::time::Duration;

use crate::policy::admission;
use crate::policy::supply::{BreakerParams, EndpointParams, RetryParams};
use crate::policy::units::MonoTime;
use crate::simulate::client::{Clients, Measure, Slo};
use crate::simulate::request::Request;
use crate::simulate::upstream::Model;
use crate::simulate::workload::Workload;

/// Everything of a simulation but the policy.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    /// The workload, by time of arrival; at most 2³² requests.
    pub requests: &'a [Request],
    /// The upstream.
    pub model: &'a Model,
    /// How clients behave.
    pub clients: Clients,
    /// What counts as a good answer.
    pub slo: Slo,
    /// The gate's queue.
    pub queue: admission::Params,
    /// The gate's breaker.
    pub breaker: BreakerParams,
    /// The gate's retries, for policies whose retries are the gate's.
    pub retry: RetryParams,
    /// What the gate is told of the upstream; a policy that does not learn is told nothing.
    pub endpoint: EndpointParams,
    /// Answers say how many tokens they had, and their time is made of them.
    pub tokens: bool,
    /// What the table is about.
    pub measure: Measure,
    /// The beginning on the wall, seconds since 1970-01-01T00:00:00Z; days are UTC's.
    pub unix: i64,
    /// Moves every draw of the upstream.
    pub seed: u64,
    /// Time between two points of the series, at least a second.
    pub step: Duration,
}

impl<'a> Setup<'a> {
    /// The reference clients and SLO on a workload, from a midnight on.
    #[must_use]
    pub fn new(workload: &'a Workload, model: &'a Model, seed: u64) -> Self {
        let slo = match model {
            _ if !model.streams() => Slo::default(),
            Model::Hosted(_) => Slo::hosted(),
            _ => Slo::llm(),
        };
        let patience = if model.replica().is_some() { 60 } else { 30 };
        Self {
            requests: &workload.requests,
            model,
            clients: Clients { patience: Some(Duration::from_secs(patience)), ..Clients::default() },
            slo,
            queue: admission::Params::default(),
            breaker: BreakerParams::default(),
            retry: RetryParams::default(),
            endpoint: EndpointParams::default(),
            tokens: model.streams(),
            measure: Measure {
                from: MonoTime::ZERO + workload.learn,
                to: MonoTime::ZERO + workload.length,
                only: workload.measured.clone(),
            },
            unix: 0,
            seed,
            step: Duration::from_secs((workload.length.as_secs() / 600).max(1)),
        }
    }
}
