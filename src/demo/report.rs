//! What came of a load: one record per request, and the summary that a person or a test reads.
//!
//! Every request sent is in exactly one of: ok, failed, lost, left. A driver that forgets the ones without an
//! answer would show a proxy that drops requests as a fast one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::workload::Arrival;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With a whole body, whatever the status.
    Complete,
    /// The body broke or ended too early.
    Truncated(String),
    /// No head came.
    NoAnswer(String),
    /// The client's timeout passed.
    TimedOut,
    /// The client left on purpose, as [`Leave`](super::load::Leave) says.
    Left,
}

/// One request and what became of it. Times count from the moment it was due.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What the workload asked for.
    pub arrival: Arrival,
    /// Whether it asked for a stream.
    pub streamed: bool,
    /// How late the driver sent it.
    pub late: Duration,
    /// The status, if a head came.
    pub status: Option<u16>,
    /// `x-tidegate-reason`: there if the answer is tidegate's own, not the upstream's.
    pub reason: Option<String>,
    /// `x-tidegate-queue-ms`.
    pub queue_ms: Option<f64>,
    /// Until the first byte of the body.
    pub ttft: Option<Duration>,
    /// Until the end, however it ended.
    pub total: Duration,
    /// Output tokens of a whole answer, as its usage says; 0 if it does not.
    pub tokens: u32,
    /// How it ended.
    pub end: End,
}

impl Record {
    pub(crate) const fn new(arrival: Arrival, streamed: bool) -> Self {
        Self {
            arrival,
            streamed,
            late: Duration::ZERO,
            status: None,
            reason: None,
            queue_ms: None,
            ttft: None,
            total: Duration::ZERO,
            tokens: 0,
            end: End::TimedOut,
        }
    }

    /// Answered 2xx, whole.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.end == End::Complete && self.status.is_some_and(|s| (200..300).contains(&s))
    }

    /// Mean time between two tokens of a whole stream.
    #[must_use]
    pub fn itl(&self) -> Option<Duration> {
        let first = self.ttft.filter(|_| self.streamed && self.tokens > 0 && self.is_ok())?;
        Some(self.total.saturating_sub(first) / self.tokens)
    }

    /// Answered whole, and fast enough. An answer in one piece has the time that a stream in time would take.
    #[must_use]
    pub fn is_within(&self, slo: &Slo) -> bool {
        let stream = || self.ttft.is_some_and(|t| t <= slo.ttft) && self.itl().is_none_or(|i| i <= slo.itl);
        self.is_ok() && if self.streamed { stream() } else { self.total <= slo.ttft + slo.itl * self.tokens }
    }
}

/// How fast is fast enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slo {
    /// To the first byte of the body.
    pub ttft: Duration,
    /// Between two tokens, on the mean of an answer.
    pub itl: Duration,
}

impl Default for Slo {
    /// 2 s and 60 ms: a person reads along.
    fn default() -> Self {
        Self { ttft: Duration::from_secs(2), itl: Duration::from_millis(60) }
    }
}

/// Median, 95th and 99th percentile of the answered requests; nearest rank, so each is a value that occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantiles {
    /// Median.
    pub p50: Duration,
    /// 95 % took at most this.
    pub p95: Duration,
    /// 99 % took at most this.
    pub p99: Duration,
}

impl Quantiles {
    fn of(values: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut sorted: Vec<Duration> = values.collect();
        sorted.sort_unstable();
        let rank =
            |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Self { p50: rank(50)?, p95: rank(95)?, p99: rank(99)? })
    }
}

/// A status other than 2xx, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    /// The status.
    pub status: u16,
    /// tidegate's reason; `None` is the upstream's own answer.
    pub reason: Option<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.reason.as_deref().unwrap_or("upstream"))
    }
}

/// The summary of a run, with all its records.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadReport {
    /// One per request, in the workload's order.
    pub records: Vec<Record>,
    /// From the start to the last end.
    pub took: Duration,
    /// Answered 2xx, whole.
    pub ok: usize,
    /// Answered otherwise, whole.
    pub failed: BTreeMap<Failure, usize>,
    /// Without an answer, or with half of one: how, and how often.
    pub lost: BTreeMap<String, usize>,
    /// The client left on purpose.
    pub left: usize,
    /// Time to first byte of the streamed answers that are ok.
    pub ttft: Option<Quantiles>,
    /// Time to the last byte of the answers that are ok.
    pub total: Option<Quantiles>,
    /// Mean time between two tokens of the streamed answers that are ok.
    pub itl: Option<Quantiles>,
    /// Time in tidegate's queue, of the answers that say so.
    pub queue: Option<Quantiles>,
    /// The driver's own largest delay: above a few milliseconds, it measured itself.
    pub max_late: Duration,
}

impl LoadReport {
    pub(crate) fn new(records: Vec<Record>, took: Duration) -> Self {
        let (mut failed, mut lost) = (BTreeMap::new(), BTreeMap::new());
        let (mut ok, mut left) = (0, 0);
        for record in &records {
            match (&record.end, record.status) {
                (End::Left, _) => left += 1,
                (End::Complete, Some(_)) if record.is_ok() => ok += 1,
                (End::Complete, Some(status)) => {
                    *failed.entry(Failure { status, reason: record.reason.clone() }).or_default() += 1;
                }
                (end, _) => *lost.entry(end.loss()).or_default() += 1,
            }
        }
        let answered = || records.iter().filter(|r| r.is_ok());
        let queue_time = |r: &Record| r.queue_ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1000.0).ok());
        Self {
            took,
            ok,
            failed,
            lost,
            left,
            ttft: Quantiles::of(answered().filter(|r| r.streamed).filter_map(|r| r.ttft)),
            total: Quantiles::of(answered().map(|r| r.total)),
            itl: Quantiles::of(records.iter().filter_map(Record::itl)),
            queue: Quantiles::of(records.iter().filter_map(queue_time)),
            max_late: records.iter().map(|r| r.late).max().unwrap_or_default(),
            records,
        }
    }

    /// Requests sent: ok, failed, lost and left together.
    #[must_use]
    pub const fn sent(&self) -> usize {
        self.records.len()
    }

    /// Answered with a status other than 2xx.
    #[must_use]
    pub fn failed_total(&self) -> usize {
        self.failed.values().sum()
    }

    /// Without a whole answer.
    #[must_use]
    pub fn lost_total(&self) -> usize {
        self.lost.values().sum()
    }

    /// Answered with this status, by whomever.
    #[must_use]
    pub fn failed_with(&self, status: u16) -> usize {
        self.failed.iter().filter(|(f, _)| f.status == status).map(|(_, n)| n).sum()
    }

    /// The share of requests that were answered fast enough. Lost and refused ones were not; those whose client
    /// left on purpose do not count. 1 where nobody asked.
    #[must_use]
    pub fn within(&self, slo: &Slo) -> f64 {
        let stayed = self.sent() - self.left;
        let good = self.records.iter().filter(|r| r.is_within(slo)).count();
        if stayed == 0 { 1.0 } else { good as f64 / stayed as f64 }
    }

    /// Output tokens of the answers that are ok, per second of the run.
    #[must_use]
    pub fn tokens_per_second(&self) -> f64 {
        let tokens: u64 = self.records.iter().map(|r| u64::from(r.tokens)).sum();
        tokens as f64 / self.took.as_secs_f64().max(1e-9)
    }

    /// The summary as JSON, durations in seconds.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let seconds = |q: Option<Quantiles>| {
            q.map(|Quantiles { p50, p95, p99 }| {
                json!({ "p50": p50.as_secs_f64(), "p95": p95.as_secs_f64(), "p99": p99.as_secs_f64() })
            })
        };
        let failed: Vec<Value> = self
            .failed
            .iter()
            .map(|(f, n)| json!({ "status": f.status, "reason": f.reason, "count": n }))
            .collect();
        json!({
            "sent": self.sent(), "ok": self.ok, "failed": failed, "lost": self.lost, "left": self.left,
            "seconds": self.took.as_secs_f64(), "max_late_seconds": self.max_late.as_secs_f64(),
            "ttft_seconds": seconds(self.ttft), "total_seconds": seconds(self.total),
            "itl_seconds": seconds(self.itl), "queue_seconds": seconds(self.queue),
            "tokens_per_second": self.tokens_per_second(), "within_slo": self.within(&Slo::default()),
        })
    }
}

impl End {
    fn loss(&self) -> String {
        match self {
            Self::Truncated(why) => format!("truncated: {why}"),
            Self::NoAnswer(why) => format!("no answer: {why}"),
            Self::TimedOut => "timed out".into(),
            // A whole body without a status cannot be, and the others are counted elsewhere.
            Self::Complete | Self::Left => "unknown".into(),
        }
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, ok, failed, lost) = (self.sent(), self.ok, self.failed_total(), self.lost_total());
        writeln!(
            f,
            "sent {sent}   ok {ok}   failed {failed}   lost {lost}   left {}   in {:.1} s",
            self.left,
            self.took.as_secs_f64()
        )?;
        writeln!(f, "{:<12}{:>10}{:>10}{:>10}", "", "p50", "p95", "p99")?;
        let rows = [("ttft", self.ttft), ("itl", self.itl), ("total", self.total), ("queue", self.queue)];
        for (name, row) in rows {
            let cell = |of: fn(Quantiles) -> Duration| {
                row.map_or_else(|| "-".into(), |q| format!("{:.3} s", of(q).as_secs_f64()))
            };
            writeln!(f, "{name:<12}{:>10}{:>10}{:>10}", cell(|q| q.p50), cell(|q| q.p95), cell(|q| q.p99))?;
        }
        for (failure, count) in &self.failed {
            writeln!(f, "{:<12}{failure}: {count}", "failed")?;
        }
        for (how, count) in &self.lost {
            writeln!(f, "{:<12}{how}: {count}", "lost")?;
        }
        let Slo { ttft, itl } = Slo::default();
        writeln!(
            f,
            "{:<12}{:.2} % within {} s to the first byte and {} ms a token; {:.0} tokens per second",
            "in time",
            100.0 * self.within(&Slo::default()),
            ttft.as_secs(),
            itl.as_millis(),
            self.tokens_per_second()
        )?;
        write!(f, "{:<12}at most {} ms late", "driver", self.max_late.as_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let of = |n: u64| Quantiles::of((1..=n).rev().map(Duration::from_secs)).unwrap();
        let seconds = |q: Quantiles| (q.p50.as_secs(), q.p95.as_secs(), q.p99.as_secs());
        assert_eq!(seconds(of(100)), (50, 95, 99));
        assert_eq!(seconds(of(10)), (5, 10, 10));
        assert_eq!(seconds(of(1)), (1, 1, 1));
        assert_eq!(Quantiles::of(std::iter::empty()), None);
    }

    #[test]
    fn ours_and_the_upstreams_refusals_are_told_apart() {
        let arrival = Arrival { at: Duration::ZERO, prompt_tokens: 1, output_tokens: 1 };
        let refused = |reason: Option<&str>| Record {
            status: Some(429),
            reason: reason.map(Into::into),
            queue_ms: Some(1500.0),
            end: End::Complete,
            ..Record::new(arrival, true)
        };
        let records = vec![refused(None), refused(Some("queue_full")), refused(Some("queue_full"))];
        let report = LoadReport::new(records, Duration::ZERO);
        let lines: Vec<String> = report.failed.iter().map(|(f, n)| format!("{f}: {n}")).collect();
        assert_eq!(lines, ["429 upstream: 1", "429 queue_full: 2"]);
        assert_eq!(report.queue.unwrap().p50, Duration::from_millis(1500));
        assert_eq!((report.ttft, report.total), (None, None), "a refusal is not an answer's latency");
    }
    #[test]
    fn in_time_is_what_came_whole_and_fast_and_nothing_else() {
        let ms = Duration::from_millis;
        let arrival = Arrival { at: Duration::ZERO, prompt_tokens: 1, output_tokens: 10 };
        let ok = |ttft, total, streamed| Record {
            status: Some(200),
            ttft: Some(ms(ttft)),
            total: ms(total),
            tokens: 10,
            end: End::Complete,
            ..Record::new(arrival, streamed)
        };
        let records = vec![
            ok(2000, 2600, true),
            ok(2001, 2100, true),
            ok(100, 800, true),
            ok(2600, 2600, false),
            ok(2601, 2601, false),
            Record::new(arrival, true),
            Record { status: Some(429), end: End::Complete, ..Record::new(arrival, true) },
            Record { end: End::Left, ..Record::new(arrival, true) },
        ];
        let report = LoadReport::new(records, Duration::from_secs(2));
        let slo = Slo::default();
        let good: Vec<bool> = report.records.iter().map(|r| r.is_within(&slo)).collect();
        assert_eq!(good, [true, false, false, true, false, false, false, false]);
        assert!((report.within(&slo) - 2.0 / 7.0).abs() < 1e-12);
        assert_eq!(report.records[0].itl(), Some(ms(60)));
        assert!((report.tokens_per_second() - 25.0).abs() < 1e-9);
        assert_eq!(LoadReport::new(Vec::new(), Duration::ZERO).within(&slo), 1.0);
    }
}
