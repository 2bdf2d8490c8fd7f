//! The same figures for programs.

use serde::Serialize;

use super::Report;
use crate::simulate::Summary;

#[derive(Serialize)]
struct Whole<'a> {
    workload: &'a str,
    start: Option<&'a str>,
    upstream: &'a str,
    slo: &'a str,
    seed: u64,
    version: &'a str,
    requests: u64,
    seconds: f64,
    learn_seconds: f64,
    notes: &'a [String],
    policies: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    policy: &'a str,
    #[serde(flatten)]
    summary: &'a Summary,
}

pub(super) fn json(report: &Report<'_>) -> String {
    let about = report.about;
    let policies = report.runs.iter().map(|run| Row { policy: &run.policy, summary: &run.summary }).collect();
    let whole = Whole {
        workload: &about.workload,
        start: about.start.as_deref(),
        upstream: &about.upstream,
        slo: &about.slo,
        seed: about.seed,
        version: &about.version,
        requests: about.requests,
        seconds: about.seconds,
        learn_seconds: about.learn,
        notes: &about.notes,
        policies,
    };
    // Numbers and text only: this cannot fail. NaN would be null.
    let mut text = serde_json::to_string_pretty(&whole).unwrap_or_default();
    text.push('\n');
    text
}
