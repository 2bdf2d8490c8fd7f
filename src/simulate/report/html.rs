//! The page: figures, then charts as small multiples on one scale, so that policies can be compared by eye.
//!
//! It asks for nothing from anywhere and runs no script: its content security policy forbids both. Whatever
//! came from outside (names, notes) is escaped here.

use std::fmt::Write as _;

use super::chart::{Chart, Scale};
use super::series::thinned;
use super::{Column, Report, length, span};
use crate::simulate::{Point, Run};

/// Points of a line, at most.
const POINTS: usize = 300;
/// Points of all policies together: what keeps the page under a megabyte.
const POINTS_OF_ALL: usize = 3600;
/// Bands of a chart that say their values when hovered over, at most; of one chart of every policy together.
const BANDS: usize = 60;
const BANDS_OF_ALL: usize = 420;
const LEARN: [(&str, &str); 1] = [("b u", "not counted: policies learn")];
const STYLE: &str = include_str!("style.css");

/// Text for HTML and XML.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no way to write these.
            c if c.is_control() && !matches!(c, '\n' | '\t') || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

/// A policy as the charts see it.
struct Drawn<'a> {
    name: String,
    run: &'a Run,
    points: Vec<Point>,
}

impl Drawn<'_> {
    fn times(&self) -> Vec<f64> {
        self.points.iter().map(|p| p.t).collect()
    }

    fn highest(&self, of: impl Fn(&Point) -> f64) -> f64 {
        self.points.iter().map(of).filter(|v| v.is_finite()).fold(0.0, f64::max)
    }

    fn each<T>(&self, of: impl Fn(&Point) -> T) -> impl Iterator<Item = (f64, T)> {
        self.points.iter().map(move |p| (p.t, of(p)))
    }
}

/// One page's worth of charts.
struct Page<'a> {
    report: &'a Report<'a>,
    drawn: Vec<Drawn<'a>>,
    end: f64,
    bands: usize,
    out: String,
}

pub(super) fn html(report: &Report<'_>) -> String {
    let most = POINTS.min(POINTS_OF_ALL / report.runs.len().max(1)).max(40);
    let drawn: Vec<Drawn<'_>> = report
        .runs
        .iter()
        .map(|run| Drawn { name: escape(&run.policy), run, points: thinned(&run.series, most) })
        .collect();
    let last = drawn.iter().filter_map(|d| d.points.last()).map(|p| p.t).fold(0.0, f64::max);
    let end = report.about.seconds.max(last);
    let bands = (BANDS_OF_ALL / report.runs.len().max(1)).clamp(20, BANDS);
    let mut page = Page { report, drawn, end, bands, out: String::with_capacity(1 << 18) };
    page.head();
    page.figures();
    page.arrivals();
    page.gate();
    page.replicas();
    page.latency();
    page.foot();
    page.out
}

fn swatches(items: &[(&str, &str)]) -> String {
    let one = |(class, name): &(&str, &str)| format!(r#"<li><i class="{class}"></i>{name}</li>"#);
    format!(r#"<ul class="legend">{}</ul>"#, items.iter().map(one).collect::<String>())
}

impl Page<'_> {
    fn push(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn head(&mut self) {
        let about = self.report.about;
        let workload = escape(&about.workload);
        let _ = write!(
            self.out,
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\
             <meta name=\"color-scheme\" content=\"light dark\"><link rel=\"icon\" href=\"data:,\">\
             <title>{workload}: policies compared</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n\
             <header><p class=\"brand\">tidegate simulate</p><h1>{workload} <span>on</span> {}</h1>\n<dl>",
            escape(&about.upstream)
        );
        let mut facts = vec![
            ("Requests", format!("{} in {}", about.requests, length(about.seconds))),
            ("SLO", escape(&about.slo)),
            ("Seed", about.seed.to_string()),
            ("Version", escape(&about.version)),
        ];
        if let Some(start) = &about.start {
            facts.insert(1, ("Begins", escape(start)));
        }
        if about.learn > 0.0 {
            facts.insert(
                1,
                ("Counted", format!("from {} on; until then policies learn", length(about.learn))),
            );
        }
        for (name, value) in facts {
            let _ = write!(self.out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
        }
        self.push("</dl>");
        if !about.notes.is_empty() {
            let notes: String = about.notes.iter().map(|note| format!("<li>{}</li>", escape(note))).collect();
            let _ = write!(self.out, "<ul class=\"notes\">{notes}</ul>");
        }
        self.push("</header>\n");
    }

    fn figures(&mut self) {
        let columns = self.report.columns();
        self.push(
            "<section><h2>Figures</h2><div class=\"scroll\"><table><thead><tr><th scope=\"col\">policy</th>",
        );
        for column in &columns {
            let _ = write!(self.out, "<th scope=\"col\" title=\"{}\">{}</th>", column.about, column.name);
        }
        self.push("</tr></thead><tbody>\n");
        let best: Vec<Option<String>> = columns.iter().map(|column| self.best(column)).collect();
        let share = self.report.runs.iter().map(|run| run.summary.in_slo).fold(0.0, f64::max);
        for drawn in &self.drawn {
            let _ = write!(self.out, "<tr><th scope=\"row\">{}</th>", drawn.name);
            for (column, best) in columns.iter().zip(&best) {
                let text = (column.text)(&drawn.run.summary);
                let is_best = best.as_ref() == Some(&text) && drawn.run.summary.in_slo >= share - 0.5;
                let class = if is_best { " class=\"best\"" } else { "" };
                let _ = write!(self.out, "<td{class}>{text}</td>");
            }
            self.out.push_str("</tr>\n");
        }
        self.push(
            "</tbody></table></div><p class=\"hint\">Latency counts from a request's arrival to its last byte, of the \
             served. Marked is the best of each column, among the policies within half a point of the best \
             in-SLO share: to serve fewer is no way to be faster or cheaper.</p></section>\n",
        );
    }

    /// The best figure of a column as it is shown, if policies differ in it.
    fn best(&self, column: &Column) -> Option<String> {
        let cost = column.cost?;
        let runs = self.report.runs;
        let share = runs.iter().map(|run| run.summary.in_slo).fold(0.0, f64::max);
        let good = runs.iter().filter(|run| run.summary.in_slo >= share - 0.5);
        let best = good.min_by(|a, b| cost(&a.summary).total_cmp(&cost(&b.summary)))?;
        let text = (column.text)(&best.summary);
        runs.iter().any(|run| (column.text)(&run.summary) != text).then_some(text)
    }

    fn section(&mut self, title: &str, unit: &str, hint: &str, legend: &[(&str, &str)]) {
        let _ = writeln!(
            self.out,
            "<section><h2>{title} <small>{unit}</small></h2>{}<p class=\"hint\">{hint}</p><div class=\"grid\">",
            swatches(&[legend, if self.report.about.learn > 0.0 { &LEARN } else { &[] }].concat())
        );
    }

    fn figure(&mut self, caption: &str, svg: &str) {
        let _ = writeln!(self.out, "<figure><figcaption>{caption}</figcaption>{svg}</figure>");
    }

    fn chart(&self, scale: Scale) -> Chart {
        Chart::new(self.end, self.report.about.learn, scale)
    }

    fn arrivals(&mut self) {
        let forecasts = |d: &&Drawn<'_>| d.points.iter().any(|p| p.forecast.is_some());
        let mut shown: Vec<usize> = (0..self.drawn.len()).filter(|n| forecasts(&&self.drawn[*n])).collect();
        let none = shown.is_empty();
        if none {
            shown.extend(self.drawn.first().map(|_| 0));
        }
        let legend: &[(&str, &str)] = &[("s a", "arrivals"), ("s f", "forecast"), ("b", "5 to 95 %")];
        let (legend, hint) = if none {
            (&legend[..1], "No policy here forecasts: arrivals alone.")
        } else {
            (legend, "What was said of each interval before it began, and what came.")
        };
        let title = if none { "Arrivals" } else { "Arrivals against the forecast" };
        self.section(title, "requests per minute", hint, legend);
        let top = |d: &Drawn<'_>| {
            let arrivals = d.highest(|p| p.arrivals);
            // A band that shot up once must not flatten everything else.
            arrivals.max(d.highest(|p| p.band.map_or(0.0, |b| b.1)).min(2.0 * arrivals))
        };
        let scale = Scale::up_to(shown.iter().map(|n| top(&self.drawn[*n])).fold(0.0, f64::max));
        for n in shown {
            let d = &self.drawn[n];
            let mut chart = self.chart(scale);
            chart.area("band", d.each(|p| p.band));
            chart.line("l a", d.each(|p| Some(p.arrivals)));
            chart.line("l f", d.each(|p| p.forecast));
            chart.hover(&d.times(), self.bands, |n| d.points.get(n).map_or_else(String::new, said));
            let desc = format!(
                "Arrivals up to {:.0} per minute; {:.0} % of the intervals that had a forecast lie in its band.",
                d.highest(|p| p.arrivals),
                covered(&d.points)
            );
            let caption = if none { "every policy" } else { &d.name };
            let svg = chart.finish(&format!("a{n}"), &format!("Arrivals and forecast, {caption}"), &desc);
            let caption = caption.to_owned();
            self.figure(&caption, &svg);
        }
        self.push("</div></section>\n");
    }

    fn gate(&mut self) {
        let legend =
            [("s p", "permits"), ("s n", "permits needed"), ("b i", "in flight"), ("s q", "waiting")];
        let hint = "Most in flight and most waiting in each interval. The same scale for every policy.";
        self.section("Permits, in flight, waiting", "requests", hint, &legend);
        let used = |d: &Drawn<'_>| d.highest(|p| f64::from(p.in_flight.max(p.queued)));
        // But for the highest 2 %: a rule that begins with no bound at all must not flatten the rest.
        let limit = |d: &Drawn<'_>| {
            let mut all: Vec<u32> = d.points.iter().map(|p| p.limit).collect();
            all.sort_unstable();
            all.get(all.len().saturating_sub(1) * 98 / 100).map_or(0.0, |limit| f64::from(*limit))
        };
        let busy = self.drawn.iter().map(used).fold(0.0, f64::max).max(4.0);
        // A limit far above what is used is named instead of drawn: it would flatten what happens.
        let fits = self.drawn.iter().map(limit).filter(|l| *l <= 2.5 * busy).fold(busy, f64::max);
        for n in 0..self.drawn.len() {
            let d = &self.drawn[n];
            let mut chart = self.chart(Scale::up_to(fits));
            chart.area("flight", d.each(|p| Some((0.0, f64::from(p.in_flight)))));
            chart.line("l q", d.each(|p| Some(f64::from(p.queued))));
            let within = |v: u32| (f64::from(v) <= fits).then_some(f64::from(v));
            // Where it leaves the scale the line ends.
            for (class, of) in [("l n", (|p| p.need) as fn(&Point) -> u32), ("l p", |p| p.limit)] {
                if d.points.iter().all(|p| within(of(p)).is_some()) {
                    chart.steps(class, d.each(|p| f64::from(of(p))));
                } else {
                    chart.line(class, d.each(|p| within(of(p))));
                }
            }
            let highest = limit(d);
            let off = d.points.iter().filter(|p| f64::from(p.limit) > fits);
            let (many, most) = off.fold((0, 0), |(many, most), p| (many + 1, p.limit.max(most)));
            // Not for a moment at the beginning.
            if many * 20 > d.points.len() {
                chart.remark(&format!("permits up to {most}: off the scale"));
            }
            chart.hover(&d.times(), self.bands, |n| d.points.get(n).map_or_else(String::new, stood));
            let desc = format!(
                "At most {highest:.0} permits, {:.0} in flight, {:.0} waiting.",
                d.highest(|p| f64::from(p.in_flight)),
                d.highest(|p| f64::from(p.queued))
            );
            let svg =
                chart.finish(&format!("g{n}"), &format!("Permits, in flight and waiting, {}", d.name), &desc);
            let s = &d.run.summary;
            let caption = format!(
                "{} <span>{:.1} permits, {:.1} in flight on average</span>",
                d.name, s.mean_permits, s.mean_in_flight
            );
            self.figure(&caption, &svg);
        }
        self.push("</div></section>\n");
    }

    fn replicas(&mut self) {
        let most = self.drawn.iter().map(|d| d.highest(|p| f64::from(p.replicas))).fold(0.0, f64::max);
        if most == 0.0 {
            return;
        }
        self.section(
            "Replicas that serve",
            "replicas",
            "Those still starting are paid for but not drawn.",
            &[("s r", "replicas")],
        );
        for n in 0..self.drawn.len() {
            let d = &self.drawn[n];
            let mut chart = self.chart(Scale::up_to(most.max(2.0)));
            chart.steps("l r", d.each(|p| f64::from(p.replicas)));
            chart.hover(&d.times(), self.bands, |n| {
                d.points.get(n).map_or_else(String::new, |p| format!("{} replicas", p.replicas))
            });
            let mean = d.run.summary.mean_replicas;
            let desc = format!(
                "At most {:.0}, {mean:.2} paid for on average.",
                d.highest(|p| f64::from(p.replicas))
            );
            let svg = chart.finish(&format!("r{n}"), &format!("Replicas, {}", d.name), &desc);
            let caption = format!("{} <span>{mean:.2} paid for on average</span>", d.name);
            self.figure(&caption, &svg);
        }
        self.push("</div></section>\n");
    }

    fn latency(&mut self) {
        let legend = [("s l50", "P50"), ("s l95", "P95"), ("s l99", "P99")];
        let hint =
            "Of the requests that ended in each interval; a logarithmic scale, the same for every policy.";
        self.section("Latency", "seconds", hint, &legend);
        let all = self.drawn.iter().flat_map(|d| d.points.iter().filter_map(|p| p.latency));
        let scale = Scale::decades(all.flat_map(|(a, _, c)| [a, c]));
        for n in 0..self.drawn.len() {
            let d = &self.drawn[n];
            let mut chart = self.chart(scale);
            chart.line("l l99", d.each(|p| p.latency.map(|l| l.2)));
            chart.line("l l95", d.each(|p| p.latency.map(|l| l.1)));
            chart.line("l l50", d.each(|p| p.latency.map(|l| l.0)));
            chart.hover(&d.times(), self.bands, |n| d.points.get(n).map_or_else(String::new, took));
            let s = &d.run.summary;
            let desc = format!("Overall P50 {}, P95 {}, P99 {}.", span(s.p50), span(s.p95), span(s.p99));
            let svg = chart.finish(&format!("l{n}"), &format!("Latency percentiles, {}", d.name), &desc);
            let caption = format!(
                "{} <span>P99 {}, {:.2} % in SLO, {} lost</span>",
                d.name,
                span(s.p99),
                s.in_slo,
                s.lost
            );
            self.figure(&caption, &svg);
        }
        self.push("</div></section>\n");
    }

    fn foot(&mut self) {
        self.push(
            "<footer>Virtual time: the same engine and predictor that run live, against a simulated upstream. \
             The same seed gives the same page.</footer>\n</main></body></html>\n",
        );
    }
}

/// Percent of the points with a band that lie in it.
fn covered(points: &[Point]) -> f64 {
    let judged = points.iter().filter_map(|p| p.band.map(|(low, high)| (low..=high).contains(&p.arrivals)));
    let (hits, all) = judged.fold((0_u32, 0_u32), |(hits, all), hit| (hits + u32::from(hit), all + 1));
    if all == 0 { 0.0 } else { 100.0 * f64::from(hits) / f64::from(all) }
}

fn said(p: &Point) -> String {
    let forecast = p.forecast.zip(p.band);
    let forecast =
        forecast.map(|(centre, (low, high))| format!(", forecast {centre:.0} ({low:.0} to {high:.0})"));
    format!("{:.0} per minute{}", p.arrivals, forecast.unwrap_or_default())
}

fn stood(p: &Point) -> String {
    let lost = if p.lost > 0 { format!(", {} lost", p.lost) } else { String::new() };
    format!("{} permits ({} needed), {} in flight, {} waiting{lost}", p.limit, p.need, p.in_flight, p.queued)
}

fn took(p: &Point) -> String {
    p.latency.map_or_else(
        || "nothing ended".into(),
        |(a, b, c)| format!("P50 {}, P95 {}, P99 {}", span(a), span(b), span(c)),
    )
}
