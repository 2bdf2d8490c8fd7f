//! A progress bar on the terminal; where standard error is no terminal, nothing.

use std::io::{IsTerminal as _, Write as _};

/// Cells of the bar.
const CELLS: u64 = 30;

/// Progress of one thing; gone when it is dropped.
pub(super) struct Bar {
    name: String,
    total: u64,
    percent: u64,
    shown: bool,
}

impl Bar {
    pub(super) fn new(name: &str, total: u64, quiet: bool) -> Self {
        let shown = !quiet && total > 0 && std::io::stderr().is_terminal();
        Self { name: name.to_owned(), total, percent: u64::MAX, shown }
    }

    /// Draws anew when another percent is done.
    pub(super) fn to(&mut self, done: u64) {
        let percent = (done.saturating_mul(100) / self.total.max(1)).min(100);
        if self.shown && percent != self.percent {
            self.percent = percent;
            eprint!("\r\x1b[K{}", drawn(&self.name, percent));
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.shown {
            eprint!("\r\x1b[K");
            let _ = std::io::stderr().flush();
        }
    }
}

fn drawn(name: &str, percent: u64) -> String {
    let full = (percent * CELLS / 100) as usize;
    format!("{name:<16} [{}{}] {percent:>3} %", "#".repeat(full), "-".repeat(CELLS as usize - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_at_the_end() {
        assert_eq!(drawn("fixed", 0), format!("fixed            [{}]   0 %", "-".repeat(30)));
        assert_eq!(drawn("fixed", 100), format!("fixed            [{}] 100 %", "#".repeat(30)));
        let mut bar = Bar::new("x", 10, true);
        bar.to(u64::MAX);
        assert!(!bar.shown);
    }
}
