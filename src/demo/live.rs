//! The proxy's metrics as one line on a terminal.
//!
//! The demo reads the same page that Prometheus would: if a family is renamed, the line shows it. Pure
//! functions; the demo's command fetches the page and prints the line.

use std::time::Duration;

/// The few metrics that the line shows. `None` is a metric that is absent or not a number (no sample yet).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// `tidegate_permits{kind="limit"}`.
    pub permits: Option<f64>,
    /// `tidegate_in_flight`.
    pub in_flight: Option<f64>,
    /// `tidegate_queue_requests`, all priorities.
    pub queue: Option<f64>,
    /// `tidegate_latency_seconds{stage="total",quantile="0.5"}`.
    pub p50: Option<f64>,
    /// The same at 0.95.
    pub p95: Option<f64>,
    /// The same at 0.99.
    pub p99: Option<f64>,
}

impl Snapshot {
    /// Reads a page in Prometheus' text format. Several groups add up; of several quantiles the worst counts.
    #[must_use]
    pub fn parse(page: &str) -> Self {
        let mut seen = Self::default();
        for (name, labels, value) in page.lines().filter_map(sample) {
            let has = |key, wanted| label(labels, key) == Some(wanted);
            match name {
                "tidegate_permits" if has("kind", "limit") => add(&mut seen.permits, value),
                "tidegate_in_flight" => add(&mut seen.in_flight, value),
                "tidegate_queue_requests" => add(&mut seen.queue, value),
                "tidegate_latency_seconds" if has("stage", "total") => match label(labels, "quantile") {
                    Some("0.5") => worst(&mut seen.p50, value),
                    Some("0.95") => worst(&mut seen.p95, value),
                    Some("0.99") => worst(&mut seen.p99, value),
                    _ => {}
                },
                _ => {}
            }
        }
        seen
    }

    /// The line at `elapsed`: how things stand, and how many clients were answered and refused so far.
    #[must_use]
    pub fn line(&self, elapsed: Duration, ok: u64, refused_429: u64) -> String {
        let count = |n: Option<f64>| n.map_or_else(|| "-".into(), |n| format!("{n:.0}"));
        let seconds = |s: Option<f64>| s.map_or_else(|| "-".into(), |s| format!("{s:.2}s"));
        format!(
            "{:>4}s  permits {:<4} in-flight {:<4} queue {:<4} p50 {:<6} p95 {:<6} p99 {:<6} \
             ok {ok:<6} 429 {refused_429}",
            elapsed.as_secs(),
            count(self.permits),
            count(self.in_flight),
            count(self.queue),
            seconds(self.p50),
            seconds(self.p95),
            seconds(self.p99),
        )
    }
}

fn add(sum: &mut Option<f64>, value: f64) {
    *sum = Some(sum.unwrap_or(0.0) + value);
}

fn worst(so_far: &mut Option<f64>, value: f64) {
    *so_far = Some(so_far.map_or(value, |s| s.max(value)));
}

/// Name, label text and value of a sample line; `None` for comments and for values that are not numbers.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    // A label's value may hold a brace or a space: the closing brace is the last one.
    let (name, labels, rest) = match (line.find('{'), line.rfind('}')) {
        (Some(open), Some(close)) if open < close => {
            (&line[..open], &line[open + 1..close], &line[close + 1..])
        }
        _ => {
            let space = line.find(char::is_whitespace)?;
            (&line[..space], "", &line[space..])
        }
    };
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    value.is_finite().then_some((name, labels, value))
}

/// The value of `key` in `a="x",b="y"`. Values with an escape in them are not among those asked for.
fn label<'a>(labels: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = labels;
    while let Some((name, after)) = rest.split_once("=\"") {
        let mut escaped = false;
        let end = after.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        })?;
        if name.trim_start_matches([',', ' ']) == key {
            return Some(&after[..end]);
        }
        rest = &after[end + 1..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = r#"
# HELP tidegate_permits Permits.
# TYPE tidegate_permits gauge
tidegate_permits{kind="ceiling",group="default"} 100
tidegate_permits{group="a \"quoted\", kind=\"limit\" } name",kind="limit"} 30
tidegate_permits{group="b",kind="limit"} 4 1700000000000
tidegate_in_flight 34
tidegate_queue_requests{priority="high"} 12
tidegate_queue_requests{priority="normal"} 100
tidegate_latency_seconds{stage="total",quantile="0.5"} 0.4201
tidegate_latency_seconds{stage="total",quantile="0.95"} 1.9
tidegate_latency_seconds{stage="total",quantile="0.99"} NaN
tidegate_latency_seconds{stage="queue",quantile="0.99"} 9
tidegate_latency_seconds_sum{stage="total"} 77
"#;

    #[test]
    fn the_line_shows_what_the_page_says() {
        let seen = Snapshot::parse(PAGE);
        assert_eq!(
            seen,
            Snapshot {
                permits: Some(34.0),
                in_flight: Some(34.0),
                queue: Some(112.0),
                p50: Some(0.4201),
                p95: Some(1.9),
                p99: None,
            }
        );
        let line = seen.line(Duration::from_millis(12_900), 1203, 0);
        let words: Vec<&str> = line.split_whitespace().collect();
        let expected = "12s permits 34 in-flight 34 queue 112 p50 0.42s p95 1.90s p99 - ok 1203 429 0";
        assert_eq!(words.join(" "), expected);
    }

    #[test]
    fn a_page_of_something_else_shows_nothing() {
        for page in ["", "{", "}{ 1", "tidegate_in_flight", "tidegate_in_flight x", "<html>{}</html>"] {
            assert_eq!(Snapshot::parse(page), Snapshot::default(), "{page}");
        }
    }
}
