//! What a comparison of policies is shown as: a table for the terminal, JSON for programs, a page with charts.
//!
//! All three show the same figures, and the same runs give the same bytes. Nothing is written here: each
//! returns text. Called by `tidegate simulate`.

mod chart;
mod html;
mod json;
mod series;
mod table;

use crate::simulate::{Run, Summary};

/// What was compared: the head of every report.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct About {
    /// The workload's or the trace's name.
    pub workload: String,
    /// When the trace began by the calendar, if it says.
    pub start: Option<String>,
    /// The upstream as it was asked for.
    pub upstream: String,
    /// What counts as a good answer.
    pub slo: String,
    /// What chance was drawn from.
    pub seed: u64,
    /// Version of the program.
    pub version: String,
    /// Requests in the workload, counted or not.
    pub requests: u64,
    /// How long it lasts, in seconds.
    pub seconds: f64,
    /// Seconds at its beginning that do not count: policies learn.
    pub learn: f64,
    /// What the reader should know about the input: rows skipped, gaps.
    pub notes: Vec<String>,
}

/// The policies' runs over one workload and one upstream.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    /// What was compared.
    pub about: &'a About,
    /// In the order in which they were asked for.
    pub runs: &'a [Run],
}

impl Report<'_> {
    /// The table, for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        table::table(self)
    }

    /// One JSON object, with a line feed: the figures of the table in seconds and plain numbers.
    #[must_use]
    pub fn json(&self) -> String {
        json::json(self)
    }

    /// A page that needs nothing but itself: no script, no request.
    #[must_use]
    pub fn html(&self) -> String {
        html::html(self)
    }

    fn columns(&self) -> Vec<&'static Column> {
        COLUMNS.iter().filter(|column| (column.shown)(self.runs)).collect()
    }
}

/// A figure of the table.
struct Column {
    /// Heading.
    name: &'static str,
    /// What it means, in a sentence.
    about: &'static str,
    text: fn(&Summary) -> String,
    /// What may be compared: the lower, the better. `None`: neither is better.
    cost: Option<fn(&Summary) -> f64>,
    shown: fn(&[Run]) -> bool,
}

fn always(_: &[Run]) -> bool {
    true
}

const COLUMNS: &[Column] = &[
    Column {
        name: "P50",
        about: "Median latency of the served, arrival to last byte.",
        text: |s| span(s.p50),
        cost: Some(|s| s.p50),
        shown: always,
    },
    Column {
        name: "P95",
        about: "95th percentile of it.",
        text: |s| span(s.p95),
        cost: Some(|s| s.p95),
        shown: always,
    },
    Column {
        name: "P99",
        about: "99th percentile of it.",
        text: |s| span(s.p99),
        cost: Some(|s| s.p99),
        shown: always,
    },
    Column {
        name: "TTFT P99",
        about: "99th percentile of the time from arrival to the first token.",
        text: |s| span(s.ttft_p99),
        cost: Some(|s| s.ttft_p99),
        shown: always,
    },
    Column {
        name: "in SLO %",
        about: "Percent of requests whose answer met the SLO; lost ones are misses.",
        text: |s| format!("{:.2}", s.in_slo),
        cost: Some(|s| -s.in_slo),
        shown: always,
    },
    Column {
        name: "lost",
        about: "Refused for good, timed out, given up.",
        text: |s| s.lost.to_string(),
        cost: Some(|s| s.lost as f64),
        shown: always,
    },
    Column {
        name: "429 client",
        about: "429 answers that clients saw.",
        text: |s| s.client_429.to_string(),
        cost: Some(|s| s.client_429 as f64),
        shown: always,
    },
    Column {
        name: "429 upstr.",
        about: "429 answers that the upstream gave.",
        text: |s| s.upstream_429.to_string(),
        cost: Some(|s| s.upstream_429 as f64),
        shown: always,
    },
    Column {
        name: "permits",
        about: "Mean of the permits. A permit costs nothing.",
        text: |s| format!("{:.1}", s.mean_permits),
        cost: None,
        shown: always,
    },
    Column {
        name: "in flight",
        about: "Mean of the requests in flight.",
        text: |s| format!("{:.1}", s.mean_in_flight),
        cost: None,
        shown: always,
    },
    Column {
        name: "replicas",
        about: "Mean of the replicas paid for.",
        text: |s| format!("{:.2}", s.mean_replicas),
        cost: Some(|s| s.mean_replicas),
        shown: |runs| runs.iter().any(|run| run.summary.replica_seconds > 0.0),
    },
    Column {
        name: "replica-s",
        about: "Replicas paid for, in replica-seconds.",
        text: |s| format!("{:.0}", s.replica_seconds),
        cost: Some(|s| s.replica_seconds),
        shown: |runs| runs.iter().any(|run| run.summary.replica_seconds > 0.0),
    },
    Column {
        name: "cold conns",
        about: "New connections that a request had to wait for.",
        text: |s| s.cold_connections.to_string(),
        cost: Some(|s| s.cold_connections as f64),
        shown: |runs| runs.iter().any(|run| run.summary.cold_connections > 0),
    },
];

/// A span of seconds with its unit, to three digits.
fn span(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "–".into(),
        s if s < 0.9995 => format!("{:.0} ms", s * 1000.0),
        s if s < 9.995 => format!("{s:.2} s"),
        s if s < 99.95 => format!("{s:.1} s"),
        s => format!("{s:.0} s"),
    }
}

/// A length of time as people say it: `90 s`, `2.5 h`, `14 d`.
fn length(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 2.0 * 86_400.0 => (s / 86_400.0, "d"),
        s if s >= 7200.0 => (s / 3600.0, "h"),
        s if s >= 600.0 => (s / 60.0, "min"),
        s => (s, "s"),
    };
    let text = format!("{value:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::SplitMix64;
    use crate::simulate::Point;

    const EVIL: &str = "<script>alert(1)</script>&\"'\u{0}";

    fn run(policy: &str, points: u32, replicas: u32) -> Run {
        let mut chance = SplitMix64::new(3);
        let point = |n: u32| Point {
            t: f64::from(n + 1) * 60.0,
            arrivals: 200.0 + 100.0 * chance.uniform(),
            forecast: (n > 50).then_some(250.0),
            band: (n > 50).then_some((180.0, 320.0)),
            limit: 20 + n % 7,
            need: 18 + n % 5,
            in_flight: n % 23,
            queued: n % 11,
            replicas,
            latency: (!n.is_multiple_of(13)).then(|| (0.1, 0.3 + chance.uniform(), 2.0 + chance.uniform())),
            lost: n % 2,
        };
        let summary = Summary {
            requests: 10,
            served: 9,
            lost: 1,
            in_slo: 90.0,
            p50: 0.118,
            p99: 12.34,
            ..Summary::default()
        };
        let summary = Summary { replica_seconds: f64::from(replicas) * 60.0, ..summary };
        Run { policy: policy.to_owned(), summary, series: (0..points).map(point).collect() }
    }

    fn about() -> About {
        About {
            workload: "recurring".into(),
            upstream: "batch".into(),
            slo: "TTFT ≤ 2 s".into(),
            seed: 7,
            version: "1.2.3".into(),
            requests: 12_345,
            seconds: 9000.0,
            learn: 3600.0,
            ..About::default()
        }
    }

    /// Every element closed in order, every attribute quoted, every `&` an entity: well-formed as XML.
    fn well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = svg;
        while let Some(at) = rest.find('<') {
            let text = &rest[..at];
            assert!(!text.contains('>'), "{text}");
            let end = rest[at..].find('>').expect("a tag ends") + at;
            let tag = &rest[at + 1..end];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else {
                let (name, attributes) = tag.split_once(' ').unwrap_or((tag.trim_end_matches('/'), ""));
                assert_eq!(attributes.matches('"').count() % 2, 0, "{tag}");
                for part in attributes.trim_end_matches('/').split("\" ").filter(|p| !p.is_empty()) {
                    assert!(part.contains("=\""), "{tag}");
                }
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty(), "{open:?}");
        for entity in svg.split('&').skip(1) {
            let name = entity.split(';').next().unwrap_or_default();
            assert!(["amp", "lt", "gt", "quot", "#39"].contains(&name), "&{name}");
        }
    }

    fn svgs(html: &str) -> Vec<&str> {
        html.split("<svg ").skip(1).map(|part| part.split("</svg>").next().unwrap()).collect()
    }

    #[test]
    fn the_page_is_alone_and_whole() {
        let runs = [run("fixed:1000", 150, 0), run("predictive", 150, 3)];
        let about = about();
        let report = Report { about: &about, runs: &runs };
        let html = report.html();
        assert_eq!(html, report.html());
        for outside in ["http:", "https:", "src=", "url(", "@import", "<script", "<iframe", "//cdn"] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(html.matches("href=").count(), html.matches("href=\"data:,\"").count());
        assert_eq!(svgs(&html).len(), 2 + 2 + 2 + 2, "arrivals, permits, replicas, latency");
        for svg in svgs(&html) {
            well_formed(&format!("<svg {svg}</svg>"));
            assert!(svg.contains("<title id=") && svg.contains("<desc id="));
        }
        for fact in
            ["recurring", "batch", "TTFT ≤ 2 s", "<dd>7</dd>", "1.2.3", "12345 in 2.5 h", "118 ms", "12.3 s"]
        {
            assert!(html.contains(fact), "{fact}");
        }
    }

    #[test]
    fn what_came_from_outside_is_escaped() {
        let runs = [run(EVIL, 20, 1)];
        let about = About {
            workload: EVIL.into(),
            upstream: EVIL.into(),
            slo: EVIL.into(),
            start: Some(EVIL.into()),
            version: EVIL.into(),
            notes: vec![EVIL.into()],
            ..about()
        };
        let html = Report { about: &about, runs: &runs }.html();
        assert!(!html.contains("<script") && !html.contains('\0'));
        assert!(html.matches("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#39;").count() > 10);
        svgs(&html).iter().for_each(|svg| well_formed(&format!("<svg {svg}</svg>")));
    }

    #[test]
    fn fourteen_days_of_many_policies_stay_under_a_megabyte() {
        for policies in [1, 7, 20] {
            let runs: Vec<Run> = (0..policies).map(|n| run(&format!("p{n}"), 20_160, 3)).collect();
            let about = About { seconds: 14.0 * 86_400.0, ..about() };
            let html = Report { about: &about, runs: &runs }.html();
            assert!(html.len() < 1_000_000, "{policies}: {}", html.len());
        }
    }

    #[test]
    fn nothing_at_all_is_a_page_too() {
        let (about, none) =
            (About::default(), Run { policy: "x".into(), summary: Summary::default(), series: vec![] });
        for runs in [&[][..], &[none][..]] {
            let report = Report { about: &about, runs };
            assert!(report.html().ends_with("</html>\n") && report.table().contains("policy"));
            assert!(!report.html().contains("NaN"));
        }
    }

    #[test]
    fn the_table_has_a_column_for_what_there_is() {
        let (about, mut runs) = (about(), vec![run("fixed", 0, 0), run("a-long-name", 0, 0)]);
        let table = Report { about: &about, runs: &runs }.table();
        let want = "policy          P50   P95     P99  TTFT P99  in SLO %  lost  429 client  429 upstr.  permits  in flight\n\
                    fixed        118 ms  0 ms  12.3 s      0 ms     90.00     1           0           0      0.0        0.0\n";
        assert!(table.contains(want), "{table}");
        assert!(
            table.starts_with("recurring on batch: 12345 requests in 2.5 h, seed 7\ncounted from 60 min on")
        );
        runs[1] = run("replicated", 0, 2);
        let table = Report { about: &about, runs: &runs }.table();
        assert!(table.contains("replicas  replica-s") && !table.contains("cold"));
    }

    #[test]
    fn programs_get_the_same_figures() {
        let (about, runs) = (about(), [run("fixed", 3, 0)]);
        let json = Report { about: &about, runs: &runs }.json();
        let v: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(v["seed"], 7);
        assert_eq!(v["policies"][0]["policy"], "fixed");
        assert_eq!(v["policies"][0]["p99"], 12.34);
        assert!(json.find("\"workload\"").unwrap() < json.find("\"policies\"").unwrap());
    }

    #[test]
    fn spans_have_three_digits() {
        let all = [0.0, 0.118, 0.9996, 4.254, 9.996, 21.04, 99.96].map(span);
        assert_eq!(all, ["0 ms", "118 ms", "1.00 s", "4.25 s", "10.0 s", "21.0 s", "100 s"]);
        assert_eq!([length(90.0), length(9000.0), length(1_209_600.0)], ["90 s", "2.5 h", "14 d"]);
    }
}
