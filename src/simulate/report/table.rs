//! The table for a terminal.

use std::fmt::Write as _;

use super::{Report, length};

pub(super) fn table(report: &Report<'_>) -> String {
    let about = report.about;
    let mut out = format!(
        "{} on {}: {} requests in {}, seed {}\n",
        about.workload,
        about.upstream,
        about.requests,
        length(about.seconds),
        about.seed
    );
    if about.learn > 0.0 {
        let _ = writeln!(out, "counted from {} on; before that, policies learn", length(about.learn));
    }
    let _ = writeln!(out, "SLO: {}\n", about.slo);
    let columns = report.columns();
    let mut rows = vec![vec!["policy".to_owned()]];
    rows[0].extend(columns.iter().map(|column| column.name.to_owned()));
    for run in report.runs {
        let figures = columns.iter().map(|column| (column.text)(&run.summary));
        rows.push(std::iter::once(run.policy.clone()).chain(figures).collect());
    }
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..=columns.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ =
                if column == 0 { write!(line, "{cell:width$}") } else { write!(line, "  {cell:>width$}") };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
