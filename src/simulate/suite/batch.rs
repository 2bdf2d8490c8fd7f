//! A batch server's knee: what a limit learned from its answers is worth beside the best that could have been configured.
//!
//! ```text
//! in SLO(predictive) ≥ 0.97 · in SLO(best fixed limit)      at half, one and twice the size, untold
//! ```

use std::time::Duration;

use super::{Stage, Table, words};
use crate::simulate::outcome::Summary;
use crate::simulate::setup::Setup;
use crate::simulate::workload::Workload;

/// Workload, what it is, slots of the server.
const ROWS: [(&str, &str, u32); 7] = [
    ("batch-a", "5.3 req/s", 32),
    ("batch-b", "7.15 req/s", 32),
    ("batch-c", "5 req/s, 12 for 120 s", 32),
    ("batch-c:base=2.5,high=6", "the same on half the server", 16),
    ("batch-c:base=10,high=24", "the same on twice the server", 64),
    ("batch-d", "5 req/s, 9 for 600 s", 32),
    ("bursty", "dispersion 135", 32),
];
const POLICIES: [&str; 6] = ["fixed:1000", "article", "reactive", "aimd", "gradient", OURS];
const OURS: &str = "predictive";
/// Fixed limits that are tried, in eighths of the server's slots.
const SWEEP: [u32; 9] = [4, 6, 8, 10, 12, 14, 16, 24, 32];
/// What clients that say when they want their first token by say.
const WITHIN: Duration = Duration::from_secs(2);

fn model(slots: u32) -> String {
    format!("batch:slots={slots}")
}

/// The size is all there is to it: the knee and the bottom are twice and four times the slots.
fn limits(slots: u32) -> impl Iterator<Item = u32> {
    SWEEP.into_iter().map(move |eighths| (slots * eighths / 8).max(1))
}

fn tune(deadlines: bool) -> impl Fn(&mut Setup<'_>) {
    move |s| s.clients.announce = deadlines.then_some(WITHIN)
}

/// A size as `predictive` and the best fixed limit had it, clients announcing their deadline.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// What it is.
    pub row: String,
    /// Slots of the server.
    pub slots: u32,
    /// Under `predictive`.
    pub ours: Summary,
    /// Under the best fixed limit.
    pub fixed: Summary,
    /// Which that was.
    pub limit: u32,
}

impl Compared {
    /// In SLO, over what the best fixed limit had.
    #[must_use]
    pub fn share(&self) -> f64 {
        share(&self.ours, &self.fixed)
    }
}

fn share(ours: &Summary, best: &Summary) -> f64 {
    if best.in_slo > 0.0 { ours.in_slo / best.in_slo } else { 1.0 }
}

fn best(
    stage: &mut Stage<'_>,
    workloads: &[Workload],
    slots: u32,
    deadlines: bool,
) -> Result<(u32, Summary), String> {
    let mut best: Option<(u32, Summary)> = None;
    for limit in limits(slots) {
        let s = stage.play(workloads, &model(slots), &format!("fixed:{limit}"), &tune(deadlines))?;
        if best.as_ref().is_none_or(|(_, b)| s.in_slo > b.in_slo) {
            best = Some((limit, s));
        }
    }
    Ok(best.unwrap_or_default())
}

/// Plays `predictive` and the fixed limits on a burst of 1.6 times what each size takes; `shorten` may cut the workload.
///
/// # Errors
/// A scenario that cannot be read.
pub fn compare(
    seeds: u64,
    shorten: &dyn Fn(&str) -> String,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<Compared>, String> {
    let mut stage = Stage { seeds: seeds.max(1), progress };
    let mut all = Vec::new();
    for (workload, what, slots) in ROWS.into_iter().filter(|(w, ..)| w.starts_with("batch-c")) {
        let workloads = stage.workloads(&shorten(workload))?;
        let (limit, fixed) = best(&mut stage, &workloads, slots, true)?;
        let ours = stage.play(&workloads, &model(slots), OURS, &tune(true))?;
        all.push(Compared { row: what.to_owned(), slots, ours, fixed, limit });
    }
    Ok(all)
}

pub(super) fn tables(stage: &mut Stage<'_>) -> Result<Vec<Table>, String> {
    let mut tables = Vec::new();
    for (deadlines, title, about) in [
        (
            false,
            "A batch server's knee",
            "Clients announce no deadline; they leave when no first token came after 30 s, and what was waiting for it \
             was waiting in vain.",
        ),
        (
            true,
            "A batch server's knee, with deadlines",
            "Clients announce that they want the first token within 2 s, as SDKs do with their timeout: who cannot be served \
             in time is told at once, and the others are served.",
        ),
    ] {
        let mut rows = Vec::new();
        for (workload, what, slots) in ROWS {
            let workloads = stage.workloads(workload)?;
            let mut row = vec![format!("{}: {what}", workload.split(':').next().unwrap_or(workload))];
            let mut ours = Summary::default();
            for policy in POLICIES {
                ours = stage.play(&workloads, &model(slots), policy, &tune(deadlines))?;
                row.push(super::in_slo_and_lost(&ours));
            }
            let (limit, fixed) = best(stage, &workloads, slots, deadlines)?;
            row.push(format!("{} ({limit})", super::in_slo_and_lost(&fixed)));
            row.push(format!("{:.3}", share(&ours, &fixed)));
            row.push(format!("{:.2}", ours.ttft_p99));
            rows.push(row);
        }
        let mut head = words(&["row"]);
        head.extend(words(&POLICIES));
        head.extend(words(&["best fixed", "predictive ÷ best fixed", "its TTFT P99, s"]));
        let about = format!(
            "% in SLO (first token within 2 s, 60 ms a token) / % lost. 32 at full speed, shared beyond, and from 64 on \
             the throughput itself falls. The best fixed limit is searched from half the slots to four times as many, and \
             named in brackets; `predictive` is told nothing of the server. {about}"
        );
        tables.push(Table { title: title.into(), about, head, rows });
    }
    Ok(tables)
}

#[cfg(test)]
pub(super) fn scenarios() -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for (workload, _, slots) in ROWS {
        let fixed = limits(slots).map(|limit| format!("fixed:{limit}"));
        let policies = POLICIES.into_iter().map(str::to_owned).chain(fixed);
        all.extend(policies.map(|p| (workload.to_owned(), model(slots), p)));
    }
    all
}
