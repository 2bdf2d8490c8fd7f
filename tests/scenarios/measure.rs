//! What a run came to, as named numbers, and what must be true of every run.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate::demo::Slo;
use tidegate::demo::report::{End, Record};
use tidegate::policy::predict::Reason;
use tidegate::policy::supply::BreakerState;
use tidegate::telemetry::REASONS;

use crate::live::Run;

/// Named numbers; times in seconds.
pub(crate) type Measured = BTreeMap<String, f64>;

/// A number that is not what it should be.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) what: String,
    pub(crate) expected: String,
    pub(crate) got: f64,
}

const DECISIONS: [Reason; 8] = [
    Reason::Cooldown,
    Reason::LowConfidence,
    Reason::ScaleUp,
    Reason::ScaleDown,
    Reason::Stable,
    Reason::WarmUp,
    Reason::Emergency,
    Reason::Fixed,
];

/// A wait shows: on a paused clock time passes only while everybody waits, a millisecond at least.
const AT_ONCE: Duration = Duration::from_micros(500);

pub(crate) fn measure(run: &Run, slo: &Slo) -> Measured {
    let mut m = Measured::new();
    let everyone: Vec<&Record> = run.records.values().flatten().collect();
    of_clients(&mut m, "", &everyone, slo);
    for (name, records) in &run.records {
        of_clients(&mut m, &format!("client.{name}."), &records.iter().collect::<Vec<_>>(), slo);
    }
    let s = &run.upstream;
    let mut put = |name: &str, value: f64| m.insert(name.to_owned(), value);
    put("upstream.served", s.served as f64);
    put("upstream.cancelled", s.cancelled as f64);
    put("upstream.faulted", s.faulted as f64);
    put("upstream.refused_429", s.refused_429 as f64);
    let attempts = s.served + s.cancelled + s.faulted + s.refused_429;
    put("upstream.refused_share", s.refused_429 as f64 / (attempts as f64).max(1.0));
    put("upstream.peak_in_flight", s.peak_in_flight as f64);
    put("upstream.connections", run.dialled as f64);

    let in_force = limits(run);
    put("permits.min", in_force.iter().copied().min().unwrap_or_default().into());
    put("permits.max", in_force.iter().copied().max().unwrap_or_default().into());
    put("permits.end", run.status.limit.into());
    for reason in DECISIONS {
        let n = run.decisions.iter().filter(|d| d.reason == reason).count();
        put(&format!("decisions.{}", reason.as_str()), n as f64);
    }
    let conserving = run.moves.iter().filter(|(_, reason)| *reason == Reason::WorkConserving).count();
    put("decisions.work_conserving", conserving as f64);
    let turned = |from: Option<BreakerState>, to| {
        run.transitions.iter().filter(|t| t.to == to && from.is_none_or(|f| f == t.from)).count() as f64
    };
    put("breaker.opened", turned(None, BreakerState::Open));
    put("breaker.probes", turned(Some(BreakerState::Open), BreakerState::HalfOpen));
    put("breaker.closed", turned(None, BreakerState::Closed));
    if let Some(took) = run.drained {
        put("drained", took.as_secs_f64());
    }
    m
}

/// Every limit that was ever in force.
fn limits(run: &Run) -> Vec<u32> {
    let applied = run.decisions.iter().filter(|d| d.applied).map(|d| d.to);
    let moved = run.moves.iter().map(|(to, _)| *to);
    std::iter::once(run.initial_permits).chain(applied).chain(moved).collect()
}

fn of_clients(m: &mut Measured, prefix: &str, records: &[&Record], slo: &Slo) {
    let mut put = |name: &str, value: f64| m.insert(format!("{prefix}{name}"), value);
    put("sent", records.len() as f64);
    put("ok", count(records, Record::is_ok));
    put("left", count(records, |r| r.end == End::Left));
    put("lost", count(records, is_lost));
    let stayed = count(records, |r| r.end != End::Left);
    let in_time = count(records, |r| r.is_within(slo));
    put("in_time", in_time / stayed.max(1.0));
    put("in_time_requests", in_time);
    put("tokens", records.iter().map(|r| f64::from(r.tokens)).sum());
    for failed in records.iter().filter(|r| is_failed(r)) {
        let name = failure(failed);
        put(&name, count(records, |r| is_failed(r) && failure(r) == name));
    }
    let answered = || records.iter().filter(|r| r.is_ok());
    let queued = records.iter().filter_map(|r| r.queue_ms).map(|ms| ms / 1000.0);
    for (name, mut values) in [
        ("ttft", answered().filter(|r| r.streamed).filter_map(|r| r.ttft).map(|d| d.as_secs_f64()).collect()),
        ("itl", answered().filter_map(|r| r.itl()).map(|d| d.as_secs_f64()).collect()),
        ("total", answered().map(|r| r.total.as_secs_f64()).collect()),
        ("queue", queued.collect::<Vec<f64>>()),
    ] {
        values.sort_by(f64::total_cmp);
        for (quantile, percent) in [("p50", 50), ("p95", 95), ("p99", 99), ("max", 100)] {
            // nearest rank: a value that occurred
            let rank = (values.len() * percent).div_ceil(100).saturating_sub(1);
            if let Some(value) = values.get(rank) {
                put(&format!("{name}.{quantile}"), *value);
            }
        }
    }
}

fn count(records: &[&Record], which: impl Fn(&Record) -> bool) -> f64 {
    records.iter().filter(|r| which(r)).count() as f64
}

fn is_lost(r: &Record) -> bool {
    matches!(r.end, End::Truncated(_) | End::NoAnswer(_) | End::TimedOut)
}

fn is_failed(r: &Record) -> bool {
    r.end == End::Complete && !r.is_ok()
}

/// `failed.429.queue_full`; the upstream's own answer is `failed.429.upstream`.
fn failure(r: &Record) -> String {
    format!("failed.{}.{}", r.status.unwrap_or_default(), r.reason.as_deref().unwrap_or("upstream"))
}

/// Whether `key` can be expected, though this run may not have it.
pub(crate) fn is_known(key: &str, measured: &Measured) -> bool {
    let reason = key.rsplit('.').next().unwrap_or_default();
    measured.contains_key(key)
        || (key.contains("failed.") && (reason == "upstream" || REASONS.contains(&reason)))
}

/// What holds in every scenario, whatever it expects.
pub(crate) fn laws(run: &Run, m: &Measured) -> Vec<Violation> {
    let mut wrong = Vec::new();
    let mut within = |what: &str, got: f64, low: f64, high: f64| {
        if !(low <= got && got <= high) {
            let expected = if low == high { format!("{low}") } else { format!("{low} to {high}") };
            wrong.push(Violation { what: format!("always: {what}"), expected, got });
        }
    };
    let everyone: Vec<&Record> = run.records.values().flatten().collect();
    let sent = everyone.len() as f64;
    let failed = count(&everyone, is_failed);

    within("sent = ok + failed + lost + left", m["ok"] + failed + m["lost"] + m["left"], sent, sent);
    within("permits taken at the end", run.status.in_flight.into(), 0.0, 0.0);
    within("requests without a permit at the end", run.status.unqueued as f64, 0.0, 0.0);
    within("requests waiting at the end", run.status.queued.iter().sum::<usize>() as f64, 0.0, 0.0);
    within("bytes waiting at the end", run.status.queue_bytes as f64, 0.0, 0.0);
    within("requests at the upstream at the end", run.upstream.in_flight as f64, 0.0, 0.0);
    within("upstream connections in use at the end", run.busy_connections as f64, 0.0, 0.0);
    within("upstream's peak within the permits", m["upstream.peak_in_flight"], 0.0, m["permits.max"]);
    // what the upstream can take may be found to be less than what the start assumed
    let (low, high) = (run.status.min.min(run.initial_permits), run.status.ceiling.max(run.initial_permits));
    within("least permits", m["permits.min"], low.into(), high.into());
    within("most permits", m["permits.max"], low.into(), high.into());

    // the metrics tell what the clients saw
    let page = |name: &str, labels: &[&str]| sum(&run.metrics, name, labels);
    let unanswered = count(&everyone, |r| matches!(r.end, End::NoAnswer(_)));
    within("tidegate_requests_total", page("tidegate_requests_total", &[]), sent - unanswered, sent);
    let ours = |of_upstream: bool| {
        count(&everyone, |r| {
            let reason = r.reason.as_deref();
            let faults = ["upstream_error", "upstream_timeout"];
            is_failed(r) && reason.is_some_and(|reason| faults.contains(&reason) == of_upstream)
        })
    };
    let gone = |r: &Record| matches!(r.end, End::Left | End::TimedOut);
    for (outcome, clients) in [
        ("success", m["ok"]),
        ("upstream_error", count(&everyone, |r| is_failed(r) && r.reason.is_none())),
        ("refused", ours(false)),
        ("upstream_fault", ours(true)),
        ("aborted", count(&everyone, |r| matches!(r.end, End::Truncated(_)))),
        ("cancelled", count(&everyone, gone)),
    ] {
        let label = format!("outcome=\"{outcome}\"");
        let counted = page("tidegate_requests_total", &[&label]);
        // without an answer is what a cut connection looks like from the client
        let slack = if outcome == "cancelled" { unanswered } else { 0.0 };
        within(&format!("tidegate_requests_total {label}"), counted, clients, clients + slack);
    }
    let waited = |r: &Record| r.total.saturating_sub(r.late) > AT_ONCE;
    let at_once = count(&everyone, |r| is_refused(r) && !waited(r));
    let asked = sent - unanswered - at_once;
    within("tidegate_queue_wait_seconds_count", page("tidegate_queue_wait_seconds_count", &[]), asked, asked);
    // `x-tidegate-queue-ms` is cut to whole milliseconds; who left without a head may have waited all along
    let told: f64 = everyone.iter().filter_map(|r| r.queue_ms).sum::<f64>() / 1000.0;
    let in_vain = seconds(&everyone, |r| is_refused(r) && waited(r));
    let perhaps = seconds(&everyone, |r| !is_refused(r) && r.queue_ms.is_none());
    let (low, high) = (told + in_vain, told + in_vain + perhaps + sent / 1000.0);
    within(
        "tidegate_queue_wait_seconds_sum",
        page("tidegate_queue_wait_seconds_sum", &[]),
        low - sent / 1000.0,
        high,
    );
    let made = (run.decisions.len() + run.moves.len()) as f64;
    within("tidegate_scale_decisions_total", page("tidegate_scale_decisions_total", &[]), made, made);
    within("tidegate_in_flight", page("tidegate_in_flight", &[]), 0.0, 0.0);
    within("tidegate_queue_requests", page("tidegate_queue_requests", &[]), 0.0, 0.0);
    let end = m["permits.end"];
    within("tidegate_permits", page("tidegate_permits", &["kind=\"limit\""]), end, end);
    wrong
}

/// Turned away by the gate, at once or after a wait.
fn is_refused(r: &Record) -> bool {
    is_failed(r)
        && r.reason
            .as_deref()
            .is_some_and(|reason| !reason.starts_with("upstream_e") && reason != "upstream_timeout")
}

fn seconds(records: &[&Record], which: impl Fn(&Record) -> bool) -> f64 {
    records.iter().filter(|r| which(r)).map(|r| r.total.as_secs_f64()).sum()
}

/// Adds up the samples of `name` that have all of `labels`.
fn sum(page: &str, name: &str, labels: &[&str]) -> f64 {
    page.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
