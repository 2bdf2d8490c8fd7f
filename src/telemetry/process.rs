//! What the process itself uses, read from `/proc` when it is scraped.
//!
//! The names are those every Prometheus client library uses, so ready-made dashboards find them. Where
//! there is no `/proc` the families are left out.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use crate::telemetry::families::Family;

/// Linux counts a process's CPU time in hundredths of a second on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc`.
pub(super) struct ProcessCollector {
    families: [Family; 7],
}

impl ProcessCollector {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        Ok(Self {
            families: [
                Family::counter(
                    "process_cpu_seconds_total",
                    "User and system CPU seconds spent, from /proc/self/stat.",
                    &[],
                )?,
                Family::gauge(
                    "process_start_time_seconds",
                    "Start of the process in seconds since the Unix epoch, from /proc.",
                    &[],
                )?,
                Family::gauge(
                    "process_resident_memory_bytes",
                    "Resident memory in bytes, from /proc/self/status.",
                    &[],
                )?,
                Family::gauge(
                    "process_virtual_memory_bytes",
                    "Virtual memory in bytes, from /proc/self/status.",
                    &[],
                )?,
                Family::gauge("process_threads", "Threads, from /proc/self/status.", &[])?,
                Family::gauge("process_open_fds", "Open file descriptors, from /proc/self/fd.", &[])?,
                Family::gauge(
                    "process_max_fds",
                    "Open file descriptors allowed, from /proc/self/limits.",
                    &[],
                )?,
            ],
        })
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().map(Family::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (stat, status) = (read("/proc/self/stat"), read("/proc/self/status"));
        let boot = field(&read("/proc/stat"), "btime");
        let values = [
            cpu_seconds(&stat),
            boot.zip(stat_field(&stat, 22)).map(|(boot, ticks)| boot + ticks / TICKS_PER_SECOND),
            field(&status, "VmRSS:").map(|kib| kib * 1024.0),
            field(&status, "VmSize:").map(|kib| kib * 1024.0),
            field(&status, "Threads:"),
            // One of them is the directory being read.
            fs::read_dir("/proc/self/fd").ok().map(|dir| dir.count().saturating_sub(1) as f64),
            field(&read("/proc/self/limits"), "Max open files"),
        ];
        let pairs = self.families.iter().zip(values);
        pairs.filter_map(|(family, v)| Some(family.with(vec![family.value(&[], v?)]))).collect()
    }
}

/// The first number after `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// The `n`-th field of `/proc/self/stat`, counted from 1. The second one, the program's name, may hold
/// blanks and brackets.
fn stat_field(stat: &str, n: usize) -> Option<f64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(n.checked_sub(3)?)?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((stat_field(stat, 14)? + stat_field(stat, 15)?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_hostile_program_name() {
        let stat = "12 (a) b (c)) S 1 12 12 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0 98765 1000000 500 0";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(stat_field(stat, 22), Some(98765.0));
        assert_eq!(stat_field("", 22), None);
    }

    #[test]
    fn named_fields() {
        assert_eq!(field("Name:\tx\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234.0));
        let limits = "Limit   Soft Limit\nMax open files            1024                 4096     files\n";
        assert_eq!(field(limits, "Max open files"), Some(1024.0));
        assert_eq!(field("Max open files  unlimited", "Max open files"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_all_of_them() {
        let families = ProcessCollector::new().unwrap().collect();
        assert_eq!(families.len(), 7);
        assert!(
            families.iter().all(|f| f.get_metric()[0].get_gauge().get_value() > 0.0
                || f.name() == "process_cpu_seconds_total")
        );
    }
}
