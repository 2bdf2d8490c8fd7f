//! Opens what is to be replayed.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use super::bar::Bar;
use super::{Given, Source};
use crate::simulate::trace::{Problems, Trace};
use crate::simulate::workload::{self, Workload};

/// What `--workload` is without one.
const USUAL: &str = "recurring";

impl Source {
    /// The workload named, or the trace as one, `speed` times as fast. Tells on standard error what was odd.
    pub(super) fn replay(&self, speed: f64, learn: Duration) -> Result<Given, String> {
        let Some(path) = &self.trace else {
            return Ok(Given { workload: self.named()?, start: None, notes: Vec::new() });
        };
        let trace = self.trace(path)?;
        let mut workload = trace.workload(self.seed, speed, learn).map_err(|e| fault(path, &e))?;
        if learn >= workload.length {
            let why = format!("lasts {:?}: with --learn {learn:?} nothing is left to count", workload.length);
            return Err(fault(path, &why));
        }
        if speed != 1.0 {
            workload.name = format!("{} at {speed} × speed", workload.name);
        }
        let mut notes = trace.problems.notes.clone();
        if trace.problems.skipped > 0 {
            notes.insert(0, format!("{} rows could not be read and are left out", trace.problems.skipped));
        }
        Ok(Given { workload, start: trace.start, notes })
    }

    /// Its name, and its requests in each minute.
    pub(super) fn per_minute(&self) -> Result<(String, Vec<Option<f64>>), String> {
        if let Some(path) = &self.trace {
            let trace = self.trace(path)?;
            return Ok((trace.name.clone(), trace.per_minute()));
        }
        let workload = self.named()?;
        Ok((workload.name.clone(), workload.per_minute()))
    }

    fn named(&self) -> Result<Workload, String> {
        workload::parse(self.workload.as_deref().unwrap_or(USUAL), self.seed)
    }

    /// The trace at `path`.
    fn trace(&self, path: &Path) -> Result<Trace, String> {
        let (name, source, size): (_, Box<dyn Read>, _) = if path.as_os_str() == "-" {
            ("standard input".to_owned(), Box::new(io::stdin().lock()), 0)
        } else {
            let file = File::open(path).map_err(|e| fault(path, &e))?;
            let size = file.metadata().map_or(0, |meta| meta.len());
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
            (name.into_owned(), Box::new(file), size)
        };
        let watched = Watched { source, done: 0, bar: Bar::new("reading", size, self.quiet) };
        let input = BufReader::with_capacity(1 << 16, watched);
        let trace =
            Trace::read(&name, input, self.format, self.on_bad_row.into()).map_err(|e| fault(path, &e))?;
        tell(&name, &trace.problems, self.quiet);
        Ok(trace)
    }
}

fn fault(path: &Path, why: &dyn Display) -> String {
    format!("{}: {why}", path.display())
}

/// A file whose reading shows.
struct Watched {
    source: Box<dyn Read>,
    done: u64,
    bar: Bar,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.source.read(buffer)?;
        self.done += n as u64;
        self.bar.to(self.done);
        Ok(n)
    }
}

fn tell(name: &str, problems: &Problems, quiet: bool) {
    if problems.skipped > 0 {
        eprintln!("warning: {name}: {} rows could not be read and are left out", problems.skipped);
        for bad in &problems.first {
            eprintln!("  line {}: {}", bad.line, bad.reason);
        }
        if problems.skipped > problems.first.len() as u64 {
            eprintln!("  …");
        }
    }
    for note in problems.notes.iter().filter(|_| !quiet) {
        eprintln!("note: {name}: {note}");
    }
}
