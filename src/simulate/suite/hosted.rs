//! A hosted API's limits: what its buckets do to each policy, and how near `predictive` comes to who knows them from inside.
//!
//! ```text
//! in SLO(predictive) ≥ 0.97 · in SLO(paced)      429s of the upstream ≤ 0.5 % of the requests
//! ```
//! `paced` waits in the same queue, with the same deadlines; it differs only in knowing what would pass.

use std::time::Duration;

use super::{Stage, Table, words};
use crate::simulate::outcome::Summary;
use crate::simulate::setup::Setup;

const REQUESTS: &str = "hosted:rpm=600,burst=20";
const TOKENS: &str = "hosted:rpm=600,burst=20,tpm=400000";
const SHARED: &str = "hosted:rpm=600,burst=20,other=0.333";
const HIDDEN: &str = "hosted:rpm=100000,burst=1000,hidden=50,headers=off";

/// Workload, what it is, the upstream.
const ROWS: [(&str, &str, &str); 8] = [
    ("hosted-a", "540 of 600 RPM", REQUESTS),
    ("hosted-b:base=9", "540, then 900 of 600 RPM for 120 s", REQUESTS),
    ("hosted-b", "600, then 900 of 600 RPM for 120 s", REQUESTS),
    ("hosted-c", "tokens bind: 90 % of 400,000 TPM", TOKENS),
    ("hosted-b:base=5,high=8.333", "tokens bind: 90 %, then 150 % for 120 s", TOKENS),
    ("hosted-d", "another client takes a third: 90 % of the rest", SHARED),
    ("hosted-b:base=6,high=10", "the same: 90 %, then 150 % of the rest for 120 s", SHARED),
    ("hosted-e", "no headers, 50 at once hidden", HIDDEN),
];
const POLICIES: [&str; 8] =
    ["fixed:1000+hold", "fixed:1000", "article", "reactive", "aimd", "gradient", OURS, EXACT];
const OURS: &str = "predictive";
const EXACT: &str = "paced";
/// What clients that say when they want their first token by say.
const WITHIN: Duration = Duration::from_secs(5);

/// A row as `predictive` and exact pacing had it.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// What it is.
    pub row: String,
    /// Clients announce their deadline.
    pub deadlines: bool,
    /// More is offered than the limit allows, for a time.
    pub beyond: bool,
    /// Under `predictive`.
    pub ours: Summary,
    /// Under exact pacing.
    pub exact: Summary,
}

impl Compared {
    /// In SLO, over what exact pacing had.
    #[must_use]
    pub fn share(&self) -> f64 {
        share(&self.ours, &self.exact)
    }

    /// The upstream's 429s over the requests.
    #[must_use]
    pub fn refusals(&self) -> f64 {
        refusals(&self.ours)
    }
}

fn share(ours: &Summary, best: &Summary) -> f64 {
    if best.in_slo > 0.0 { ours.in_slo / best.in_slo } else { 1.0 }
}

fn refusals(s: &Summary) -> f64 {
    s.upstream_429 as f64 / s.requests.max(1) as f64
}

fn tune(deadlines: bool) -> impl Fn(&mut Setup<'_>) {
    move |s| s.clients.announce = deadlines.then_some(WITHIN)
}

/// Plays `predictive` and exact pacing on every row; `shorten` may cut the workloads.
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
    for (workload, what, model) in ROWS {
        let workloads = stage.workloads(&shorten(workload))?;
        for deadlines in [false, true] {
            all.push(Compared {
                row: what.to_owned(),
                deadlines,
                beyond: workload.starts_with("hosted-b"),
                ours: stage.play(&workloads, model, OURS, &tune(deadlines))?,
                exact: stage.play(&workloads, model, EXACT, &tune(deadlines))?,
            });
        }
    }
    Ok(all)
}

pub(super) fn tables(stage: &mut Stage<'_>) -> Result<Vec<Table>, String> {
    let mut tables = Vec::new();
    for (deadlines, title, about) in [
        (false, "A hosted API's limits", "Clients announce no deadline."),
        (
            true,
            "A hosted API's limits, with deadlines",
            "Clients announce that they want the first token within 5 s: who cannot be served in time is told at once.",
        ),
    ] {
        let mut rows = Vec::new();
        for (workload, what, model) in ROWS {
            let workloads = stage.workloads(workload)?;
            let mut row = vec![what.to_owned()];
            let mut all = Vec::new();
            for policy in POLICIES {
                let s = stage.play(&workloads, model, policy, &tune(deadlines))?;
                row.push(super::in_slo_and_lost(&s));
                all.push(s);
            }
            if let [.., ours, exact] = all.as_slice() {
                row.push(format!("{:.3}", share(ours, exact)));
                row.push(format!("{:.2}", 100.0 * refusals(ours)));
                row.push(ours.client_429.to_string());
            }
            rows.push(row);
        }
        let mut head = words(&["row"]);
        head.extend(words(&POLICIES));
        head.extend(words(&["predictive ÷ paced", "its upstream 429s, %", "429s its clients saw"]));
        let about = format!(
            "% in SLO (first token within 5 s, 60 ms a token) / % lost. Buckets of requests or tokens; a refused attempt costs a \
             quarter of a request. After a 429 clients of the plain policies come back after 1, 2, 4 and 8 s, not before \
             `Retry-After`; `+hold` and `article` sleep with the permit in their hand; `predictive` reads the limit headers, \
             and its gate tries again by itself. `paced` knows the buckets from inside: exact pacing in the same queue. All \
             give up when no first token came after 30 s. {about}"
        );
        tables.push(Table { title: title.into(), about, head, rows });
    }
    Ok(tables)
}

#[cfg(test)]
pub(super) fn scenarios() -> Vec<(String, String, String)> {
    let each = ROWS.iter().flat_map(|(w, _, m)| POLICIES.map(|p| (*w, *m, p)));
    each.map(|(w, m, p)| (w.to_owned(), m.to_owned(), p.to_owned())).collect()
}
