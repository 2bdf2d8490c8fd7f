//! What the upstream's own limits do: a hosted API's buckets, a batch server's knee.

use std::time::Duration;

use super::{Stage, Table, words};
use crate::simulate::outcome::Summary;

/// Workload, what it is, the upstream.
const HOSTED: [(&str, &str, &str); 5] = [
    ("hosted-a", "540 of 600 RPM", "hosted:rpm=600,burst=20"),
    ("hosted-b", "600, then 900 of 600 RPM for 120 s", "hosted:rpm=600,burst=20"),
    ("hosted-c", "tokens bind: 400,000 TPM", "hosted:rpm=600,burst=20,tpm=400000"),
    ("hosted-d", "another client takes a third", "hosted:rpm=600,burst=20,other=0.333"),
    ("hosted-e", "no headers, 50 at once hidden", "hosted:rpm=100000,burst=1000,hidden=50,headers=off"),
];
const HOSTED_POLICIES: [&str; 7] =
    ["fixed:1000+hold", "fixed:1000", "article", "reactive", "predictive", "aimd", "gradient"];

const BATCH: &str = "batch:slots=32";
const HALF: &str = "batch:slots=16";
const BATCHES: [(&str, &str, &str); 6] = [
    ("batch-a", "5.3 req/s", BATCH),
    ("batch-b", "7.15 req/s", BATCH),
    ("batch-c", "5 req/s, 12 for 120 s", BATCH),
    ("batch-c:base=2.5,high=6", "the same on half the server", HALF),
    ("batch-d", "5 req/s, 9 for 600 s", BATCH),
    ("bursty", "dispersion 135", BATCH),
];
const BATCH_POLICIES: [&str; 8] =
    ["fixed:1000", "fixed:64", "fixed:32", "article", "reactive", "predictive", "aimd", "gradient"];

/// In SLO, lost, and what else is told.
fn cell(s: &Summary) -> String {
    let lost = 100.0 * s.lost as f64 / (s.requests.max(1)) as f64;
    format!("{:.1} / {lost:.1}", s.in_slo)
}

pub(super) fn hosted(stage: &mut Stage<'_>) -> Result<Table, String> {
    let mut rows = Vec::new();
    for (workload, what, model) in HOSTED {
        let workloads = stage.workloads(workload)?;
        let mut row = vec![format!("{workload}: {what}")];
        for policy in HOSTED_POLICIES {
            row.push(cell(&stage.play(&workloads, model, policy, &|_| {})?));
        }
        rows.push(row);
    }
    let mut head = words(&["row"]);
    head.extend(words(&HOSTED_POLICIES));
    Ok(Table {
        title: "A hosted API's limits".into(),
        about: "% in SLO (first token within 5 s, 60 ms a token) / % lost. After a 429 clients come back after 1, 2, 4 and 8 s, \
                not before `Retry-After`; `+hold` and `article` sleep with the permit in their hand. They give up when no \
                first token came after 30 s."
            .into(),
        head,
        rows,
    })
}

pub(super) fn batch(stage: &mut Stage<'_>) -> Result<Vec<Table>, String> {
    let mut tables = Vec::new();
    for (announce, title, about) in [
        (
            None,
            "A batch server's knee",
            "Clients announce no deadline; they leave when no first token came after 30 s, and what was waiting for it \
             was waiting in vain.",
        ),
        (
            Some(2),
            "A batch server's knee, with deadlines",
            "Clients announce that they want the first token within 2 s, as SDKs do with their timeout: who cannot be served \
             in time is told at once, and the others are served.",
        ),
    ] {
        let mut rows = Vec::new();
        for (workload, what, model) in BATCHES {
            let workloads = stage.workloads(workload)?;
            let mut row = vec![format!("{}: {what}", workload.split(':').next().unwrap_or(workload))];
            for policy in BATCH_POLICIES {
                let tune = |s: &mut crate::simulate::Setup<'_>| {
                    s.clients.announce = announce.map(Duration::from_secs);
                };
                row.push(cell(&stage.play(&workloads, model, policy, &tune)?));
            }
            rows.push(row);
        }
        let mut head = words(&["row"]);
        head.extend(words(&BATCH_POLICIES));
        let about = format!(
            "% in SLO (first token within 2 s, 60 ms a token) / % lost. 32 at full speed, shared beyond, and from 64 on \
             the throughput itself falls. {about}"
        );
        tables.push(Table { title: title.into(), about, head, rows });
    }
    Ok(tables)
}

#[cfg(test)]
pub(super) fn scenarios() -> Vec<(String, String, String)> {
    let of = |rows: &[(&str, &str, &str)], policies: &[&str]| {
        let each = rows.iter().flat_map(|(w, _, m)| policies.iter().map(move |p| (*w, *m, *p)));
        each.map(|(w, m, p)| (w.to_owned(), m.to_owned(), p.to_owned())).collect::<Vec<_>>()
    };
    [of(&HOSTED, &HOSTED_POLICIES), of(&BATCHES, &BATCH_POLICIES)].concat()
}
