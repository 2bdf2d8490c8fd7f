//! `tidegate simulate suite`: the reference scenarios, and the tables that the documentation shows.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::Args;

use super::put;
use crate::simulate::suite::{self, Part};

/// What follows this line in a file that is written again was not simulated, and stays.
const MEASURED: &str = "<!-- measured, not simulated -->";

#[derive(Args)]
pub(super) struct Options {
    /// Parts, separated by commas: permits, handshakes, slots, replicas, hosted, batch, harm [default: all]
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', value_parser = Part::parse)]
    parts: Vec<Part>,
    /// Seeds whose mean each figure is.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Writes the document to this file instead of standard output. What follows a line
    /// `<!-- measured, not simulated -->` in it stays.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Does not say what it is at.
    #[arg(long, short)]
    quiet: bool,
}

/// The part of a document that no simulation writes.
fn measured(document: &str) -> String {
    document.find(MEASURED).map_or_else(String::new, |at| format!("\n{}", &document[at..]))
}

impl Options {
    pub(super) fn run(&self) -> Result<(), String> {
        let parts = if self.parts.is_empty() { Part::ALL.to_vec() } else { self.parts.clone() };
        let shown = !self.quiet && std::io::stderr().is_terminal();
        let tables = suite::run(&parts, self.seeds, &mut |at| {
            if shown {
                eprint!("\r\x1b[K{at}");
                let _ = std::io::stderr().flush();
            }
        })?;
        if shown {
            eprint!("\r\x1b[K");
        }
        let document = suite::markdown(&tables, &self.command());
        match &self.write {
            Some(path) => {
                let before = std::fs::read_to_string(path).unwrap_or_default();
                std::fs::write(path, document + &measured(&before))
                    .map_err(|e| format!("cannot write {}: {e}", path.display()))
            }
            None => put(&document),
        }
    }

    /// What writes the same document again.
    fn command(&self) -> String {
        let mut command = "tidegate simulate suite".to_owned();
        if !self.parts.is_empty() {
            let names: Vec<&str> = self.parts.iter().map(|part| part.as_str()).collect();
            command += &format!(" --parts {}", names.join(","));
        }
        if self.seeds != 3 {
            command += &format!(" --seeds {}", self.seeds);
        }
        if let Some(path) = &self.write {
            command += &format!(" --write {}", path.display());
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_survives() {
        let tail = format!("{MEASURED}\n\n## Faults\n");
        assert_eq!(measured(&format!("# Results\n\nold\n\n{tail}")), format!("\n{tail}"));
        assert_eq!(measured("# Results\n"), "");
    }
}
