//! `tidegate simulate forecast`: the forecaster scored on a trace, from rolling origins.

use clap::Args;

use super::bar::Bar;
use super::{Source, put};
use crate::simulate::forecast;

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    source: Source,
    /// Prints the figures as JSON for programs instead of a table.
    #[arg(long)]
    json: bool,
}

impl Options {
    pub(super) fn score(&self) -> Result<(), String> {
        let (name, counts) = self.source.per_minute()?;
        let mut bar = None;
        let scores = forecast::score(&counts, &mut |done, total| {
            bar.get_or_insert_with(|| Bar::new("scoring", total as u64, self.source.quiet)).to(done as u64);
        });
        drop(bar);
        if self.json {
            put(&(scores.json(&name) + "\n"))
        } else {
            put(&format!(
                "{name}: {} minutes, requests per minute\n{}\n",
                counts.len(),
                scores.table().trim_end()
            ))
        }
    }
}
