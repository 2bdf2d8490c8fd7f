//! What one worker counts, request by request.
//!
//! Workers share nothing here, so a request costs two uncontended locks, one hash of the model's name
//! and a few additions; no atomic is shared between cores and nothing is formatted. The scrape adds the
//! shards up ([`super::requests`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::CreationError;

use crate::policy::units::MonoTime;
use crate::telemetry::labels::{Answered, Capped, NO_MODEL};
use crate::telemetry::record::Spans;
use crate::telemetry::tokens::Costs;
use crate::telemetry::window::Window;
use crate::telemetry::{Cost, Ended, Endpoint, REASONS, Record};

/// Upper bounds in milliseconds: from a cached embedding to the longest reasoning.
pub(super) const BOUNDS_MS: [u64; 17] = [
    5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 20_000, 30_000, 60_000, 120_000, 300_000, 600_000,
];

/// One histogram. The last count is of what lies above every bound.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Buckets {
    pub(super) counts: [u64; BOUNDS_MS.len() + 1],
    pub(super) sum: Duration,
}

impl Buckets {
    pub(super) fn observe(&mut self, span: Duration) {
        // A bound belongs to its bucket (`le`), hence whole milliseconds rounded up.
        let ms = u64::try_from(span.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        self.counts[BOUNDS_MS.partition_point(|bound| *bound < ms)] += 1;
        self.sum = self.sum.saturating_add(span);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.sum = self.sum.saturating_add(other.sum);
    }
}

/// Everything counted per endpoint and model.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    pub(super) ended: [u64; Ended::COUNT],
    pub(super) queue: Buckets,
    pub(super) ttft: Buckets,
    pub(super) upstream: Buckets,
    pub(super) total: Buckets,
    pub(super) costs: Costs,
}

impl Series {
    fn record(&mut self, ended: Ended, spans: &Spans, cost: &Cost) {
        self.ended[ended.index()] += 1;
        self.costs.record(cost);
        let total = (!spans.turned_away_at_once).then_some(spans.total);
        for (buckets, span) in [
            (&mut self.queue, spans.queue),
            (&mut self.ttft, spans.ttft),
            (&mut self.upstream, spans.upstream),
            (&mut self.total, total),
        ] {
            if let Some(span) = span {
                buckets.observe(span);
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.ended.iter_mut().zip(&other.ended).for_each(|(mine, theirs)| *mine += theirs);
        self.queue.add(&other.queue);
        self.ttft.add(&other.ttft);
        self.upstream.add(&other.upstream);
        self.total.add(&other.total);
        self.costs.add(&other.costs);
    }
}

#[derive(Debug)]
struct Counts {
    series: [HashMap<Arc<str>, Box<Series>>; Endpoint::COUNT],
    reasons: BTreeMap<&'static str, u64>,
    answers: HashMap<Arc<str>, Answers>,
}

/// Of one upstream, how many attempts came back with what.
pub(super) type Answers = [u64; Answered::COUNT];

/// One worker's counts.
#[derive(Debug)]
pub(super) struct Shard {
    models: Arc<Capped>,
    counts: Mutex<Counts>,
    window: Mutex<Window>,
}

impl Shard {
    pub(super) fn new(models: Arc<Capped>, window: Duration) -> Result<Self, CreationError> {
        let counts = Counts {
            series: Default::default(),
            reasons: REASONS.iter().map(|reason| (*reason, 0)).collect(),
            answers: HashMap::new(),
        };
        Ok(Self { models, counts: Mutex::new(counts), window: Mutex::new(Window::new(window)?) })
    }

    /// One request that ended `now`.
    pub(super) fn record(&self, now: MonoTime, record: &Record, spans: &Spans) {
        {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            // a stream that broke has a reason too, but it had been answered
            if let Some(reason) = record.reason
                && record.ended != Ended::Aborted
            {
                *counts.reasons.entry(reason).or_default() += 1;
            }
            let series = &mut counts.series[record.endpoint.index()];
            let model = record.model.as_deref().unwrap_or(NO_MODEL);
            match series.get_mut(model) {
                Some(known) => known.record(record.ended, spans, &record.cost),
                None => {
                    let answered = record.ended == Ended::Success;
                    let label = self.models.label(record.endpoint, model, answered);
                    series.entry(label).or_default().record(record.ended, spans, &record.cost);
                }
            }
        }
        self.window().record(now, record.ended.is_error(), spans);
    }

    /// An attempt at `upstream` came back. Upstreams are named by the configuration, so there are not many.
    pub(super) fn answered(&self, upstream: &str, answered: Answered) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.answers.get_mut(upstream) {
            Some(known) => known[answered as usize] += 1,
            None => counts.answers.entry(upstream.into()).or_default()[answered as usize] += 1,
        }
    }

    /// There is an upstream of that name: it is shown from the start.
    pub(super) fn know(&self, upstream: &Arc<str>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.answers.entry(upstream.clone()).or_default();
    }

    pub(super) fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds this worker's counts to `totals`.
    pub(super) fn add_to(&self, totals: &mut Totals) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for (reason, n) in &counts.reasons {
            *totals.reasons.entry(reason).or_default() += n;
        }
        for (upstream, answers) in &counts.answers {
            let total = totals.answers.entry(upstream.clone()).or_default();
            total.iter_mut().zip(answers).for_each(|(mine, theirs)| *mine += theirs);
        }
        for (endpoint, by_model) in Endpoint::ALL.into_iter().zip(&counts.series) {
            for (model, series) in by_model {
                totals.series.entry((endpoint, model.clone())).or_default().add(series);
            }
        }
    }
}

/// The counts of all workers.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) series: BTreeMap<(Endpoint, Arc<str>), Series>,
    pub(super) reasons: BTreeMap<&'static str, u64>,
    pub(super) answers: BTreeMap<Arc<str>, Answers>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::RequestId;

    fn shard(models: usize) -> Shard {
        Shard::new(Arc::new(Capped::new(models)), Duration::from_secs(60)).unwrap()
    }

    fn record(model: &str) -> Record {
        let mut r = Record::new(RequestId(1), Endpoint::Chat, "default", MonoTime::ZERO);
        r.model = Some(model.into());
        r.ended = Ended::Success;
        r
    }

    #[test]
    fn a_value_on_a_bound_belongs_below_it() {
        let mut b = Buckets::default();
        b.observe(Duration::from_millis(5));
        b.observe(Duration::from_nanos(5_000_001));
        b.observe(Duration::from_secs(600));
        b.observe(Duration::from_secs(601));
        assert_eq!(&b.counts[..2], &[1, 1]);
        assert_eq!(&b.counts[16..], &[1, 1]);
    }

    #[test]
    fn models_past_the_cap_are_counted_together_over_all_workers() {
        let models = Arc::new(Capped::new(1));
        let shards = [0, 1].map(|_| Shard::new(models.clone(), Duration::from_secs(60)).unwrap());
        for (i, model) in ["a", "b", "c", "a"].into_iter().enumerate() {
            let r = record(model);
            let now = MonoTime::from_secs(1);
            shards[i % 2].record(now, &r, &r.spans(now));
        }
        let mut totals = Totals::default();
        shards.iter().for_each(|s| s.add_to(&mut totals));
        let seen: Vec<_> = totals.series.iter().map(|((_, m), s)| (&**m, s.ended[0])).collect();
        assert_eq!(seen, [("a", 2), ("other", 2)]);
    }

    #[test]
    fn attempts_of_all_workers_are_counted_by_upstream_and_class() {
        let shards = [shard(1), shard(1)];
        shards[0].know(&"idle".into());
        for (at, status) in [(0, Some(429)), (1, Some(429)), (1, Some(200)), (0, None)] {
            shards[at].answered("busy", Answered::of(status));
        }
        let mut totals = Totals::default();
        shards.iter().for_each(|s| s.add_to(&mut totals));
        assert_eq!(totals.answers["busy"], [1, 0, 0, 2, 0, 1]);
        assert_eq!(totals.answers["idle"], [0; 6]);
    }

    #[test]
    fn a_request_without_a_model_says_so_and_reasons_are_counted() {
        let s = shard(10);
        let mut r = Record::new(RequestId(1), Endpoint::Files, "default", MonoTime::ZERO);
        (r.ended, r.reason) = (Ended::Refused, Some("overloaded"));
        s.record(MonoTime::ZERO, &r, &r.spans(MonoTime::ZERO));
        let mut totals = Totals::default();
        s.add_to(&mut totals);
        let series = &totals.series[&(Endpoint::Files, NO_MODEL.into())];
        assert_eq!(series.ended[Ended::Refused.index()], 1);
        assert_eq!(series.total.counts.iter().sum::<u64>(), 0);
        assert_eq!((totals.reasons["overloaded"], totals.reasons["queue_full"]), (1, 0));
    }
}
