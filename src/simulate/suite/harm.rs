//! Do no harm: on no workload and no upstream may `predictive` be worse than the same gate with its ceiling as a fixed limit.
//!
//! ```text
//! in SLO(predictive) ≥ in SLO(fixed) − 0.5 points        P99(predictive) ≤ 1.05 · P99(fixed)
//! ```
//! Both learn what the upstream takes, in the same way: compared is what the forecast does with the permits below that.
//! A permit adds no capacity, so a rule that moves permits can only do harm; what it is good for is what it makes ready.
//! Replicas are left out: there the ceiling is what was paid for, which is another comparison.

use super::{Stage, Table, words};
use crate::simulate::outcome::Summary;

/// Every workload of the catalogue that means something on any upstream.
pub const WORKLOADS: [&str; 20] = [
    "poisson",
    "recurring",
    "recurring:jitter=20s,missing=0.15",
    "random-spikes",
    "step",
    "ramp",
    "sine",
    "bursty",
    "idle",
    "normal",
    "spike",
    "sustained",
    "hosted-a",
    "hosted-b",
    "hosted-c",
    "hosted-d",
    "hosted-e",
    "batch-b",
    "batch-c",
    "batch-d",
];

/// Every upstream on which permits are the question.
pub const UPSTREAMS: [&str; 8] = [
    "lognormal:118ms,cv=0.10",
    "llm:20ms",
    "hosted:rpm=600,burst=20",
    "hosted:rpm=600,burst=20,tpm=400000",
    "hosted:rpm=100000,burst=1000,hidden=50,headers=off",
    "batch:slots=32",
    "handshake:50ms-150ms,idle=60s",
    "handshake:50ms-150ms,idle=5s",
];

/// What is compared: the ceiling of `predictive` is 1000, or what was learned.
const FIXED: &str = "fixed:1000+learned";
const OURS: &str = "predictive";

/// A comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// The workload.
    pub workload: String,
    /// The upstream.
    pub upstream: String,
    /// Under the fixed limit.
    pub fixed: Summary,
    /// Under `predictive`.
    pub ours: Summary,
}

impl Compared {
    /// Whether it did harm.
    #[must_use]
    pub fn harm(&self) -> bool {
        // a thousandth of a millisecond is no latency
        self.ours.in_slo < self.fixed.in_slo - 0.5 || self.ours.p99 > 1.05 * self.fixed.p99 + 1e-6
    }
}

/// Plays both policies on every workload and upstream; `shorten` may cut the workloads.
///
/// # Errors
/// A scenario that cannot be read.
pub fn compare(
    seeds: u64,
    shorten: &dyn Fn(&str) -> String,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Compared>, String> {
    let mut stage = Stage { seeds: seeds.max(1), progress };
    played(&mut stage, shorten)
}

fn played(stage: &mut Stage<'_>, shorten: &dyn Fn(&str) -> String) -> Result<Vec<Compared>, String> {
    let mut all = Vec::new();
    for workload in WORKLOADS {
        let workloads = stage.workloads(&shorten(workload))?;
        for upstream in UPSTREAMS {
            all.push(Compared {
                workload: workload.to_owned(),
                upstream: upstream.to_owned(),
                fixed: stage.play(&workloads, upstream, FIXED, &|_| {})?,
                ours: stage.play(&workloads, upstream, OURS, &|_| {})?,
            });
        }
    }
    Ok(all)
}

pub(super) fn table(stage: &mut Stage<'_>) -> Result<Table, String> {
    let all = played(stage, &str::to_owned)?;
    let harmed: Vec<&Compared> = all.iter().filter(|c| c.harm()).collect();
    let mut rows = Vec::new();
    for upstream in UPSTREAMS {
        let here = || all.iter().filter(|c| c.upstream == upstream);
        let least = here().map(|c| c.ours.in_slo - c.fixed.in_slo).fold(f64::INFINITY, f64::min);
        let most = here().map(|c| c.ours.in_slo - c.fixed.in_slo).fold(f64::NEG_INFINITY, f64::max);
        let ratio = |c: &Compared| if c.fixed.p99 > 0.0 { c.ours.p99 / c.fixed.p99 } else { 1.0 };
        let worst = here().map(ratio).fold(0.0, f64::max);
        let best = here().map(ratio).fold(f64::INFINITY, f64::min);
        rows.push(vec![
            format!("`{upstream}`"),
            here().count().to_string(),
            format!("{least:+.2} to {most:+.2}"),
            format!("{best:.3} to {worst:.3}"),
            here().filter(|c| c.harm()).map(|c| c.workload.clone()).collect::<Vec<_>>().join(", "),
        ]);
    }
    let verdict = if harmed.is_empty() {
        "Nowhere did it do harm.".to_owned()
    } else {
        format!("In {} of {} it did harm.", harmed.len(), all.len())
    };
    Ok(Table {
        title: "Do no harm".into(),
        about: format!(
            "`{OURS}` against `{FIXED}`, its ceiling as a fixed limit, on every workload and upstream: never more than 0.5 \
             points fewer in SLO, never a P99 above 1.05 ×. {verdict} Workloads: {}.",
            WORKLOADS.join(", ")
        ),
        head: words(&["upstream", "workloads", "points in SLO gained", "P99 ratio", "harmed"]),
        rows,
    })
}

#[cfg(test)]
pub(super) fn scenarios() -> Vec<(String, String, String)> {
    let each = WORKLOADS.iter().flat_map(|w| UPSTREAMS.map(|u| (*w, u)));
    each.flat_map(|(w, u)| [FIXED, OURS].map(|p| (w.to_owned(), u.to_owned(), p.to_owned()))).collect()
}
