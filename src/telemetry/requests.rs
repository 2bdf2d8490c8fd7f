//! The families of requests: counts, histograms, quantiles, error rate, throughput.
//!
//! It adds up the workers' shards when it is scraped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Metric, MetricFamily};

use crate::clock::Clock;
use crate::telemetry::families::Family;
use crate::telemetry::labels::Answered;
use crate::telemetry::shard::{Answers, Buckets, Series, Shard, Totals};
use crate::telemetry::tokens::{Costs, KINDS};
use crate::telemetry::window::{STAGES, View};
use crate::telemetry::{Ended, Unread};

const QUANTILES: [f64; 3] = [0.5, 0.95, 0.99];

/// Adds the shards up.
pub(super) struct RequestCollector {
    shards: Vec<Arc<Shard>>,
    clock: Clock,
    window: Duration,
    requests: Family,
    duration: Family,
    ttft: Family,
    queue: Family,
    upstream: Family,
    per_token: Family,
    tokens: Family,
    unread: Family,
    refusals: Family,
    answers: Family,
    latency: Family,
    error_rate: Family,
    throughput: Family,
}

impl RequestCollector {
    pub(super) fn new(
        shards: Vec<Arc<Shard>>,
        clock: Clock,
        window: Duration,
    ) -> Result<Self, prometheus::Error> {
        let by = ["endpoint", "model"];
        let seconds = window.as_secs();
        Ok(Self {
            shards,
            clock,
            window,
            requests: Family::counter(
                "tidegate_requests_total",
                "Requests that have ended, by how they ended for the client.",
                &["endpoint", "model", "outcome"],
            )?,
            duration: Family::histogram(
                "tidegate_request_duration_seconds",
                "Seconds from a request's arrival to the end of its response, as the proxy saw it; \
                 requests refused without waiting are left out.",
                &by,
            )?,
            ttft: Family::histogram(
                "tidegate_time_to_first_token_seconds",
                "Seconds from a request's arrival to the upstream's first response byte.",
                &by,
            )?,
            queue: Family::histogram(
                "tidegate_queue_wait_seconds",
                "Seconds a request waited for a permit, also in vain; 0 if it got one at once.",
                &by,
            )?,
            upstream: Family::histogram(
                "tidegate_upstream_duration_seconds",
                "Seconds from sending a request on to the end of the upstream's response, retries included.",
                &by,
            )?,
            per_token: Family::histogram(
                "tidegate_time_per_output_token_seconds",
                "Seconds from a stream's first token to its last, for each token after the first, as the proxy \
                 saw it; tokens as the upstream reported them, else its events.",
                &by,
            )?,
            tokens: Family::counter(
                "tidegate_tokens_total",
                "Tokens that upstreams reported in their answers; all kinds but prompt and output are parts of \
                 these two.",
                &["model", "kind"],
            )?,
            unread: Family::counter(
                "tidegate_usage_unread_total",
                "Answers whose upstream reported no usage that could be read; what was estimated stands.",
                &["reason"],
            )?,
            refusals: Family::counter(
                "tidegate_refusals_total",
                "Requests answered by the proxy instead of the upstream, by error code.",
                &["reason"],
            )?,
            answers: Family::counter(
                "tidegate_upstream_answers_total",
                "Attempts at the upstream by what came back, those that are tried again included: the status's \
                 class, 429 by itself, or error where there was no usable answer.",
                &["upstream", "class"],
            )?,
            latency: Family::summary(
                "tidegate_latency_seconds",
                &format!(
                    "Seconds that the stages of the requests of the last {seconds} s took, as the proxy saw \
                     it; sum and count are since the start."
                ),
                &["stage"],
            )?,
            error_rate: Family::gauge(
                "tidegate_error_rate",
                &format!(
                    "Share (0 to 1) of the requests of the last {seconds} s that ended neither in success \
                     nor by the client's leaving."
                ),
                &[],
            )?,
            throughput: Family::gauge(
                "tidegate_throughput_requests_per_second",
                &format!("Requests that ended per second over the last {seconds} s."),
                &[],
            )?,
        })
    }

    fn view(&self) -> Option<View> {
        let mut view = View::new(self.clock.now(), self.window).ok()?;
        self.shards.iter().for_each(|shard| view.add(&shard.window()));
        Some(view)
    }

    /// Tokens by model, over all endpoints, and what could not be read.
    fn costs(&self, totals: &Totals) -> [MetricFamily; 2] {
        let mut by_model: BTreeMap<&str, Costs> = BTreeMap::new();
        let mut all = Costs::default();
        for ((_, model), series) in &totals.series {
            by_model.entry(model).or_default().add(&series.costs);
            all.add(&series.costs);
        }
        let mut tokens = Vec::new();
        for (model, costs) in by_model {
            let kinds = KINDS.iter().zip(costs.tokens);
            tokens.extend(kinds.map(|(kind, n)| self.tokens.value(&[model, kind], n as f64)));
        }
        let unread = Unread::ALL.into_iter().zip(all.unread);
        let unread = unread.map(|(why, n)| self.unread.value(&[why.as_str()], n as f64));
        [self.tokens.with(tokens), self.unread.with(unread.collect())]
    }

    fn answers(&self, totals: &Totals) -> Vec<Metric> {
        let all = |(upstream, answers): (&Arc<str>, &Answers)| {
            let by_class = Answered::ALL.into_iter().zip(*answers);
            by_class
                .map(|(class, n)| self.answers.value(&[upstream, class.as_str()], n as f64))
                .collect::<Vec<_>>()
        };
        totals.answers.iter().flat_map(all).collect()
    }

    fn by_model(&self, totals: &Totals, family: &Family, pick: fn(&Series) -> &Buckets) -> MetricFamily {
        let metrics = totals.series.iter();
        family.with(metrics.map(|((e, model), s)| family.buckets(&[e.as_str(), model], pick(s))).collect())
    }
}

impl Collector for RequestCollector {
    fn desc(&self) -> Vec<&Desc> {
        [
            &self.requests,
            &self.duration,
            &self.ttft,
            &self.queue,
            &self.upstream,
            &self.per_token,
            &self.tokens,
            &self.unread,
            &self.refusals,
            &self.answers,
            &self.latency,
            &self.error_rate,
            &self.throughput,
        ]
        .map(Family::desc)
        .to_vec()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut totals = Totals::default();
        self.shards.iter().for_each(|shard| shard.add_to(&mut totals));
        let mut requests = Vec::new();
        for ((endpoint, model), series) in &totals.series {
            // All outcomes at once: a counter that appears as 1 is a first event that rate() never sees.
            for (ended, n) in Ended::ALL.into_iter().zip(series.ended) {
                requests.push(self.requests.value(&[endpoint.as_str(), model, ended.as_str()], n as f64));
            }
        }
        let reasons = totals.reasons.iter().map(|(reason, n)| self.refusals.value(&[reason], *n as f64));
        let mut families = vec![
            self.requests.with(requests),
            self.by_model(&totals, &self.duration, |s| &s.total),
            self.by_model(&totals, &self.ttft, |s| &s.ttft),
            self.by_model(&totals, &self.queue, |s| &s.queue),
            self.by_model(&totals, &self.upstream, |s| &s.upstream),
            self.by_model(&totals, &self.per_token, |s| &s.costs.per_token),
            self.refusals.with(reasons.collect()),
            self.answers.with(self.answers(&totals)),
        ];
        families.extend(self.costs(&totals));
        if let Some(view) = self.view() {
            let stages = STAGES.iter().enumerate().map(|(i, stage)| {
                let q = QUANTILES.map(|q| (q, view.quantile(i, q)));
                self.latency.quantiles(&[stage], &q, view.count(i), view.sum(i))
            });
            families.push(self.latency.with(stages.collect()));
            families.push(self.error_rate.with(vec![self.error_rate.value(&[], view.error_rate())]));
            families.push(self.throughput.with(vec![self.throughput.value(&[], view.throughput())]));
        }
        families
    }
}
