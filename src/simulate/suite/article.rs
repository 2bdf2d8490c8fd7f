//! The source article's rows: what its figures come to when a permit is a permit, a connection, or a replica.

use std::time::Duration;

use super::{Stage, Table, words};
use crate::simulate::outcome::Summary;
use crate::simulate::setup::Setup;
use crate::simulate::workload::Workload;

/// Workload, the article's own figures in ms (before → after), and the P99 in ms that is to be reached.
const ROWS: [(&str, &str, &str, f64); 4] = [
    ("idle", "10 RPM", "180 → 145", 150.0),
    ("normal", "100 RPM", "450 → 280", 161.0),
    ("spike", "500 RPM for 20 s every 300 s", "3200 → 620", 310.0),
    ("sustained", "200 RPM", "890 → 340", 183.0),
];

const POLICIES: [&str; 8] =
    ["fixed:1", "fixed:20", "fixed:1000", "article", "article:1/1/100", "reactive", "predictive", "oracle"];

const PERMITS: &str = "lognormal:118ms,cv=0.10";
const HANDSHAKES: [(&str, &str); 2] = [
    ("60 s", "handshake:50ms-150ms,idle=60s,mean=118ms,cv=0.10"),
    ("5 s", "handshake:50ms-150ms,idle=5s,mean=118ms,cv=0.10"),
];
/// Seconds of P99 that the oracle is to keep where each permit is a replica, and the headrooms that are tried for it.
const KEPT: f64 = 0.2;
const HEADROOM: std::ops::RangeInclusive<u32> = 4..=24;

fn oracles() -> impl Iterator<Item = String> {
    HEADROOM.map(|twentieths| format!("oracle:{}", f64::from(twentieths) / 20.0))
}

const SLOTS: &str = "slots:start=30s,mean=118ms,cv=0.10";

/// First in, first out, for as long as it takes: the article knows neither deadlines nor clients that leave.
fn patient(setup: &mut Setup<'_>) {
    setup.queue.timeout = Duration::from_secs(86_400);
    setup.queue.max_requests = 1_000_000;
    setup.clients.patience = None;
}

fn head(first: &[&str]) -> Vec<String> {
    let mut head = words(first);
    head.extend(words(&POLICIES));
    head
}

fn ms(seconds: f64) -> String {
    format!("{:.0}", seconds * 1000.0)
}

fn all(stage: &mut Stage<'_>, workload: &str, model: &str) -> Result<Vec<Summary>, String> {
    let workloads = stage.workloads(workload)?;
    POLICIES.iter().map(|policy| stage.play(&workloads, model, policy, &patient)).collect()
}

pub(super) fn permits(stage: &mut Stage<'_>) -> Result<Table, String> {
    let mut rows = Vec::new();
    for (workload, what, said, asked) in ROWS {
        let mut row = vec![format!("{workload}: {what}"), said.to_owned(), format!("{asked:.0}")];
        row.extend(all(stage, workload, PERMITS)?.iter().map(|s| ms(s.p99)));
        rows.push(row);
    }
    Ok(Table {
        title: "The article's table: permits".into(),
        about: "P99 in ms from arrival to the last byte. Service time lognormal, mean 118 ms, cv 0.10, any number at once: \
                the upstream has room for everybody, so the best limit is none, and a permit that is withheld is all that \
                can make anybody wait. With the article's own parameters (at least 10 permits) no row ever queues: every \
                policy gives about 148 ms, its own rule included. `asked` is what `predictive` is to reach."
            .into(),
        head: head(&["row", "article", "asked"]),
        rows,
    })
}

pub(super) fn handshakes(stage: &mut Stage<'_>) -> Result<Table, String> {
    let mut rows = Vec::new();
    for (idle, model) in HANDSHAKES {
        for (workload, what, ..) in ROWS {
            let figures = all(stage, workload, model)?;
            let p99 = |policy: &str| {
                POLICIES.iter().position(|p| *p == policy).and_then(|n| figures.get(n)).map_or(0.0, |s| s.p99)
            };
            let (fixed, ours, best) = (p99("fixed:1000"), p99("predictive"), p99("oracle"));
            let gain = if fixed - best > 1e-3 {
                format!("{:.0} %", 100.0 * (fixed - ours) / (fixed - best))
            } else {
                "nothing to gain".into()
            };
            let mut row = vec![format!("{workload}: {what}"), idle.to_owned()];
            row.extend(figures.iter().map(|s| ms(s.p99)));
            row.push(gain);
            rows.push(row);
        }
    }
    let mut head = head(&["row", "idle close"]);
    head.push("share of the oracle's gain".into());
    Ok(Table {
        title: "The article's table: connections".into(),
        about: "P99 in ms. The same service time, but a connection that is not idle and warm costs 50 to 150 ms, and the \
                upstream closes idle ones. `predictive` keeps connections warm ahead of need; the oracle knows which will \
                be needed. The last column is what `predictive` gains over `fixed:1000`, as a share of what the oracle gains."
            .into(),
        head,
        rows,
    })
}

fn cell(s: &Summary) -> String {
    format!("{} / {:.2}", ms(s.p99), s.mean_replicas)
}

/// The oracle that pays for the fewest slots and keeps [`KEPT`], with its headroom.
fn cheapest(stage: &mut Stage<'_>, workloads: &[Workload]) -> Result<String, String> {
    let mut best: Option<(Summary, String)> = None;
    for policy in oracles() {
        let s = stage.play(workloads, SLOTS, &policy, &patient)?;
        if s.p99 <= KEPT && best.as_ref().is_none_or(|(b, _)| s.mean_replicas < b.mean_replicas) {
            best = Some((s, policy));
        }
    }
    Ok(best.map_or_else(
        || format!("never {} ms", ms(KEPT)),
        |(s, policy)| format!("{} ({})", cell(&s), policy.trim_start_matches("oracle:")),
    ))
}

pub(super) fn slots(stage: &mut Stage<'_>) -> Result<Table, String> {
    let mut rows = Vec::new();
    for (workload, what, ..) in ROWS {
        let workloads = stage.workloads(workload)?;
        let mut row = vec![format!("{workload}: {what}")];
        for policy in POLICIES {
            row.push(if policy == "oracle" {
                cheapest(stage, &workloads)?
            } else {
                cell(&stage.play(&workloads, SLOTS, policy, &patient)?)
            });
        }
        rows.push(row);
    }
    Ok(Table {
        title: "The article's table: each permit a replica".into(),
        about: "P99 in ms / mean number of slots paid for. Each slot does one request at a time, is paid for from the moment \
                it is asked for, and serves 30 s later. Here a forecast has something to make ready. The oracle is the \
                cheapest that keeps the P99 within 200 ms, its headroom (in brackets) searched from 0.2 to 1.2; the others \
                are as they are named. `article` reads its last 300 requests: from 100 RPM on they are less than five \
                minutes, and its rule lacks the confidence to move, but for its emergency."
            .into(),
        head: head(&["row"]),
        rows,
    })
}

#[cfg(test)]
pub(super) fn scenarios() -> Vec<(String, String, String)> {
    let models = [PERMITS, HANDSHAKES[0].1, HANDSHAKES[1].1, SLOTS];
    let each = ROWS.iter().flat_map(|(workload, ..)| models.map(|m| (*workload, m)));
    let policies: Vec<String> = POLICIES.iter().map(|p| (*p).to_owned()).chain(oracles()).collect();
    each.flat_map(|(w, m)| policies.iter().map(move |p| (w.to_owned(), m.to_owned(), p.clone()))).collect()
}
