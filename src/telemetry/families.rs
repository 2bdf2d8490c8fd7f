//! Metric families made at scrape time.
//!
//! The `prometheus` crate registers families that it counts itself. Ours are counted elsewhere, or read
//! from whoever owns the number, so the collectors of this room build their families here: one way to
//! pair names with values, and the summary type, which the crate can print but not count.

use prometheus::core::Desc;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType, Quantile, Summary,
};

use crate::telemetry::shard::{BOUNDS_MS, Buckets};

/// A family's name, type, help and label names.
#[derive(Debug)]
pub(super) struct Family {
    desc: Desc,
    kind: MetricType,
}

impl Family {
    pub(super) fn counter(name: &str, help: &str, labels: &[&str]) -> Result<Self, prometheus::Error> {
        Self::new(name, help, labels, MetricType::COUNTER)
    }

    pub(super) fn gauge(name: &str, help: &str, labels: &[&str]) -> Result<Self, prometheus::Error> {
        Self::new(name, help, labels, MetricType::GAUGE)
    }

    pub(super) fn histogram(name: &str, help: &str, labels: &[&str]) -> Result<Self, prometheus::Error> {
        Self::new(name, help, labels, MetricType::HISTOGRAM)
    }

    pub(super) fn summary(name: &str, help: &str, labels: &[&str]) -> Result<Self, prometheus::Error> {
        Self::new(name, help, labels, MetricType::SUMMARY)
    }

    fn new(name: &str, help: &str, labels: &[&str], kind: MetricType) -> Result<Self, prometheus::Error> {
        let labels = labels.iter().map(ToString::to_string).collect();
        Ok(Self { desc: Desc::new(name.into(), help.into(), labels, Default::default())?, kind })
    }

    pub(super) fn desc(&self) -> &Desc {
        &self.desc
    }

    /// A counter's or gauge's value.
    pub(super) fn value(&self, labels: &[&str], value: f64) -> Metric {
        let mut metric = Metric::from_label(self.pairs(labels));
        if self.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        metric
    }

    /// A histogram's buckets.
    pub(super) fn buckets(&self, labels: &[&str], buckets: &Buckets) -> Metric {
        let mut below = 0;
        let cumulative = BOUNDS_MS.iter().zip(&buckets.counts).map(|(ms, count)| {
            below += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*ms as f64 / 1e3);
            bucket.set_cumulative_count(below);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(cumulative.collect());
        histogram.set_sample_count(buckets.counts.iter().sum());
        histogram.set_sample_sum(buckets.sum.as_secs_f64());
        let mut metric = Metric::from_label(self.pairs(labels));
        metric.set_histogram(histogram);
        metric
    }

    /// A summary's quantiles, with its count and sum.
    pub(super) fn quantiles(&self, labels: &[&str], q: &[(f64, f64)], count: u64, sum: f64) -> Metric {
        let quantiles = q.iter().map(|(quantile, value)| {
            let mut one = Quantile::default();
            one.set_quantile(*quantile);
            one.set_value(*value);
            one
        });
        let mut summary = Summary::default();
        summary.set_quantile(quantiles.collect());
        summary.set_sample_count(count);
        summary.set_sample_sum(sum);
        let mut metric = Metric::from_label(self.pairs(labels));
        metric.set_summary(summary);
        metric
    }

    /// The family with its metrics.
    pub(super) fn with(&self, metrics: Vec<Metric>) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(self.kind);
        family.set_metric(metrics);
        family
    }

    fn pairs(&self, values: &[&str]) -> Vec<LabelPair> {
        debug_assert_eq!(values.len(), self.desc.variable_labels.len(), "{}", self.desc.fq_name);
        let pair = |(name, value): (&String, &&str)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value((*value).to_owned());
            pair
        };
        self.desc.variable_labels.iter().zip(values).map(pair).collect()
    }
}
