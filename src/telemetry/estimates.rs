//! How far the estimates of what requests cost are off: read from their owners when somebody asks.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use crate::policy::usage::EstimateError;
use crate::telemetry::families::Family;

/// The errors of one group's estimates at one moment; of a kind that could not be compared yet, none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EstimateErrors {
    /// Of prompts.
    pub prompt: Option<EstimateError>,
    /// Of answers.
    pub output: Option<EstimateError>,
}

type Source = Box<dyn Fn() -> EstimateErrors + Send + Sync>;

type ByGroup = Vec<(Arc<str>, Source)>;

/// Where each group's errors are read.
#[derive(Clone, Default)]
pub(super) struct Estimates(Arc<Mutex<ByGroup>>);

impl Estimates {
    pub(super) fn add(&self, group: &str, source: Source) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((group.into(), source));
    }
}

/// Asks the sources.
pub(super) struct EstimateCollector {
    estimates: Estimates,
    error: Family,
}

impl EstimateCollector {
    pub(super) fn new(estimates: Estimates) -> Result<Self, prometheus::Error> {
        let error = Family::gauge(
            "tidegate_token_estimate_error",
            "How far estimates of tokens were off over about the last 250 answers whose usage was read, from the \
             estimator: mean relative error, and what was charged too much (below 0: too little) as a share of \
             what was used.",
            &["group", "kind", "measure"],
        )?;
        Ok(Self { estimates, error })
    }
}

impl Collector for EstimateCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![self.error.desc()]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut metrics = Vec::new();
        for (group, source) in self.estimates.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let errors = source();
            for (kind, error) in [("prompt", errors.prompt), ("output", errors.output)] {
                let Some(error) = error else { continue };
                metrics.push(self.error.value(&[group, kind, "relative"], error.relative));
                metrics.push(self.error.value(&[group, kind, "bias"], error.bias));
            }
        }
        vec![self.error.with(metrics)]
    }
}
