//! The reference scenarios as data, and the tables that the documentation shows: every figure by one command.
//!
//! | part | what it answers |
//! |---|---|
//! | `permits` `handshakes` `slots` | the source article's workloads, with what a permit may stand for |
//! | `replicas` | the least cost at 99 % in SLO, each policy's headroom searched |
//! | `hosted` `batch` | what a rate limit and a knee do to each policy, beside exact pacing and the best fixed limit |
//! | `harm` | every workload on every upstream: is `predictive` ever worse than its ceiling as a fixed limit? |
//!
//! Seeds are numbered from 1; a cell is the mean over them. Called by `tidegate simulate suite`, which writes
//! `docs/results.md`, and by `tests/do_no_harm.rs` and `tests/learned_supply.rs`.

mod article;
pub mod batch;
pub mod harm;
pub mod hosted;
mod replicas;

use std::fmt::Write as _;

use crate::simulate::outcome::Summary;
use crate::simulate::setup::Setup;
use crate::simulate::workload::{self, Workload};
use crate::simulate::{play, policy, upstream};

/// A part of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The article's rows, a permit being nothing but a permit.
    Permits,
    /// The same where a connection costs a handshake.
    Handshakes,
    /// The same where each permit is a replica that takes 30 s to start.
    Slots,
    /// Replicas of a batch server.
    Replicas,
    /// A hosted API's limits.
    Hosted,
    /// A batch server's knee.
    Batch,
    /// Do no harm.
    Harm,
}

impl Part {
    /// All of them, in the order of the document.
    pub const ALL: [Self; 7] =
        [Self::Permits, Self::Handshakes, Self::Slots, Self::Replicas, Self::Hosted, Self::Batch, Self::Harm];

    /// Its name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permits => "permits",
            Self::Handshakes => "handshakes",
            Self::Slots => "slots",
            Self::Replicas => "replicas",
            Self::Hosted => "hosted",
            Self::Batch => "batch",
            Self::Harm => "harm",
        }
    }

    /// The part of that name.
    ///
    /// # Errors
    /// The names there are.
    pub fn parse(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|part| part.as_str() == name.trim()).ok_or_else(|| {
            let all: Vec<&str> = Self::ALL.iter().map(|part| part.as_str()).collect();
            format!("there is no part `{name}` of the suite; there are {}", all.join(", "))
        })
    }
}

/// A table of the document.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Its heading.
    pub title: String,
    /// What stands above it.
    pub about: String,
    /// Its columns.
    pub head: Vec<String>,
    /// Its rows, as wide as the head.
    pub rows: Vec<Vec<String>>,
}

/// Plays the parts. `progress` hears of each run: what it is.
///
/// # Errors
/// A scenario that cannot be read, which a test excludes.
pub fn run(parts: &[Part], seeds: u64, progress: &mut dyn FnMut(&str)) -> Result<Vec<Table>, String> {
    let mut stage = Stage { seeds: seeds.max(1), progress };
    let mut tables = Vec::new();
    for part in parts {
        match part {
            Part::Permits => tables.push(article::permits(&mut stage)?),
            Part::Handshakes => tables.push(article::handshakes(&mut stage)?),
            Part::Slots => tables.push(article::slots(&mut stage)?),
            Part::Replicas => tables.push(replicas::table(&mut stage)?),
            Part::Hosted => tables.extend(hosted::tables(&mut stage)?),
            Part::Batch => tables.extend(batch::tables(&mut stage)?),
            Part::Harm => tables.push(harm::table(&mut stage)?),
        }
    }
    Ok(tables)
}

/// The document, `command` being what writes it.
#[must_use]
pub fn markdown(tables: &[Table], command: &str) -> String {
    let mut text = format!(
        "# Results\n\nWritten by `{command}`; the same seeds give the same bytes. The scenarios and their parameters are in \
         `src/simulate/suite/` and `src/simulate/workload/`; times are seconds or milliseconds as said, percentiles are \
         exact, lost requests miss the SLO.\n"
    );
    for table in tables {
        let row = |cells: &[String]| format!("| {} |", cells.join(" | "));
        let rule: Vec<String> = table.head.iter().map(|_| "---".to_owned()).collect();
        let rows: Vec<String> = table.rows.iter().map(|cells| row(cells)).collect();
        let head = format!("{}\n|{}|", row(&table.head), rule.join("|"));
        let _ = write!(text, "\n## {}\n\n{}\n\n{head}\n{}\n", table.title, table.about, rows.join("\n"));
    }
    text
}

/// What the parts have in common: how many seeds, and who is told.
struct Stage<'a> {
    seeds: u64,
    progress: &'a mut dyn FnMut(&str),
}

impl Stage<'_> {
    /// The workload once per seed.
    fn workloads(&self, name: &str) -> Result<Vec<Workload>, String> {
        (1..=self.seeds).map(|seed| workload::parse(name, seed)).collect()
    }

    /// The mean figures of `policy` over the seeds.
    fn play(
        &mut self,
        workloads: &[Workload],
        model: &str,
        policy: &str,
        tune: &dyn Fn(&mut Setup<'_>),
    ) -> Result<Summary, String> {
        let (model_, policy_) = (upstream::parse(model)?, policy::parse(policy)?);
        let mut all = Vec::new();
        for (seed, workload) in (1..).zip(workloads) {
            (self.progress)(&format!("{} on {model}: {policy}", workload.name));
            let mut setup = Setup::new(workload, &model_, seed);
            tune(&mut setup);
            all.push(play::run(&setup, &policy_, &mut |_| {}).summary);
        }
        Ok(mean(&all))
    }
}

/// A cell of the tables of limits.
fn in_slo_and_lost(s: &Summary) -> String {
    let lost = 100.0 * s.lost as f64 / s.requests.max(1) as f64;
    format!("{:.1} / {lost:.1}", s.in_slo)
}

fn mean(all: &[Summary]) -> Summary {
    let n = all.len().max(1) as f64;
    let of = |field: fn(&Summary) -> f64| all.iter().map(field).sum::<f64>() / n;
    let total = |field: fn(&Summary) -> u64| all.iter().map(field).sum::<u64>();
    Summary {
        requests: total(|s| s.requests),
        served: total(|s| s.served),
        lost: total(|s| s.lost),
        in_slo: of(|s| s.in_slo),
        p50: of(|s| s.p50),
        p95: of(|s| s.p95),
        p99: of(|s| s.p99),
        ttft_p99: of(|s| s.ttft_p99),
        client_429: total(|s| s.client_429),
        upstream_429: total(|s| s.upstream_429),
        mean_permits: of(|s| s.mean_permits),
        mean_in_flight: of(|s| s.mean_in_flight),
        mean_replicas: of(|s| s.mean_replicas),
        replica_seconds: of(|s| s.replica_seconds),
        cold_connections: total(|s| s.cold_connections),
    }
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_scenario_can_be_read() {
        for part in Part::ALL {
            assert_eq!(Part::parse(part.as_str()), Ok(part));
        }
        assert!(Part::parse("all").is_err());
        let all = [
            article::scenarios(),
            hosted::scenarios(),
            batch::scenarios(),
            replicas::scenarios(),
            harm::scenarios(),
        ]
        .concat();
        let once = |each: Vec<&String>| each.into_iter().cloned().collect::<BTreeSet<_>>();
        for model in once(all.iter().map(|(_, model, _)| model).collect()) {
            assert!(upstream::parse(&model).is_ok(), "{model}");
        }
        for policy in once(all.iter().map(|(.., policy)| policy).collect()) {
            assert!(policy::parse(&policy).is_ok(), "{policy}");
        }
        for workload in once(all.iter().map(|(workload, ..)| workload).collect()) {
            // drawing the long ones takes a while; their names and options are read all the same
            let more = if workload.contains(':') { "," } else { ":" };
            assert!(workload::parse(&format!("{workload}{more}scale=0.001"), 1).is_ok(), "{workload}");
        }
    }

    #[test]
    fn a_table_is_markdown() {
        let table = Table {
            title: "T".into(),
            about: "About it.".into(),
            head: words(&["a", "b"]),
            rows: vec![words(&["1", "2"])],
        };
        let text = markdown(&[table], "tidegate simulate suite");
        assert!(text.ends_with("\n## T\n\nAbout it.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"), "{text}");
    }
}
