//! One chart as SVG: axes with units, lines, areas, and bands to hover over that say their values.
//!
//! Sizes are in the units of the view box; the page's style sheet scales the text back up on narrow screens.
//! Colours are classes, so that the page can have a light and a dark set.

use std::fmt::Write as _;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 230.0;
const LEFT: f64 = 54.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 30.0;
/// What the y axis says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scale {
    /// From 0 to this.
    Linear(f64),
    /// Logarithmic from the first to the second.
    Log(f64, f64),
}

impl Scale {
    /// A scale that ends a little above the highest value. Something is shown even of nothing.
    pub(super) fn up_to(highest: f64) -> Self {
        Self::Linear(if highest.is_finite() && highest > 0.0 { highest * 1.06 } else { 1.0 })
    }

    /// Whole decades around what is positive in `values`.
    pub(super) fn decades(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|v| v.is_finite() && *v > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            return Self::Log(0.1, 10.0);
        }
        let round = |v: f64, up: bool| {
            let decade = 10_f64.powf(v.log10().floor());
            let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
            let found =
                if up { steps.iter().find(|s| **s >= v) } else { steps.iter().rev().find(|s| **s <= v) };
            found.copied().unwrap_or(v)
        };
        let (low, high) = (round(low, false), round(high, true));
        Self::Log(low, high.max(low * 10.0))
    }

    /// 0 at the bottom, 1 at the top; what lies beyond is put on the edge.
    fn share(self, value: f64) -> f64 {
        let share = match self {
            Self::Linear(max) => value / max,
            Self::Log(low, high) => (value.max(low) / low).ln() / (high / low).ln(),
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }

    fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear(max) => {
                let step = nice(max / 4.0);
                (0..=9).map(|n| f64::from(n) * step).take_while(|v| *v <= max).collect()
            }
            Self::Log(low, high) => {
                let many = (high / low).log10() > 2.5;
                let first = low.log10().floor() as i32;
                let within = |v: &f64| (low * 0.999..=high * 1.001).contains(v);
                let steps: &[f64] = if many { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let decade = |n: i32| steps.iter().map(move |s| s * 10_f64.powi(n));
                (first..first + 12).flat_map(decade).filter(within).collect()
            }
        }
    }
}

/// The nearest of 1, 2, 5 × 10ⁿ that is not less.
fn nice(step: f64) -> f64 {
    let decade = 10_f64.powf(step.log10().floor());
    let rest = step / decade;
    decade * [1.0, 2.0, 5.0].into_iter().find(|s| *s >= rest * 0.999).unwrap_or(10.0)
}

/// A number for an axis: short, exact.
fn short(value: f64) -> String {
    let (scaled, suffix) = match value {
        v if v >= 1e6 => (v / 1e6, "M"),
        v if v >= 1e4 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let text = format!("{scaled:.3}");
    format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.'))
}

const TIME_STEPS: [f64; 21] = [
    1.0,
    2.0,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
    900.0,
    1800.0,
    3600.0,
    7200.0,
    14_400.0,
    21_600.0,
    43_200.0,
    86_400.0,
    172_800.0,
    259_200.0,
    604_800.0,
    2_419_200.0,
];

/// Ticks of the time axis, with their labels: at most seven.
fn time_ticks(end: f64) -> Vec<(f64, String)> {
    let step = TIME_STEPS.into_iter().find(|step| end / step <= 6.5).unwrap_or(end.max(1.0) / 6.0);
    let (unit, name) = match step {
        s if s >= 86_400.0 => (86_400.0, "d"),
        s if s >= 3600.0 => (3600.0, "h"),
        s if s >= 60.0 => (60.0, "min"),
        _ => (1.0, "s"),
    };
    let label = |t: f64| if t == 0.0 { "0".to_owned() } else { format!("{} {name}", short(t / unit)) };
    (0..8).map(|n| f64::from(n) * step).take_while(|t| *t <= end).map(|t| (t, label(t))).collect()
}

/// A time on the axis, for a hover text.
fn clock(t: f64) -> String {
    let s = t.max(0.0) as u64;
    let (d, h, m, s) = (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60);
    if d > 0 { format!("day {d}, {h:02}:{m:02}") } else { format!("{h}:{m:02}:{s:02}") }
}

/// A chart in the making.
pub(super) struct Chart {
    end: f64,
    scale: Scale,
    body: String,
}

impl Chart {
    /// An empty one over `[0, end]` seconds, of which `[0, learn)` does not count.
    pub(super) fn new(end: f64, learn: f64, scale: Scale) -> Self {
        let end = if end.is_finite() && end > 0.0 { end } else { 1.0 };
        let mut chart = Self { end, scale, body: String::new() };
        chart.axes();
        if learn > 0.0 {
            let width = chart.x(learn) - LEFT;
            let height = HEIGHT - TOP - BOTTOM;
            let _ = write!(
                chart.body,
                r#"<rect class="learn" x="{LEFT}" y="{TOP}" width="{width:.1}" height="{height}"/>"#
            );
        }
        chart
    }

    fn x(&self, t: f64) -> f64 {
        let share = t / self.end;
        let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.scale.share(value) * (HEIGHT - TOP - BOTTOM)
    }

    fn axes(&mut self) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for value in self.scale.ticks() {
            let y = self.y(value);
            let _ = write!(
                self.body,
                r#"<path class="gl" d="M{LEFT} {y:.1}H{right}"/><text class="ny" x="{}" y="{:.1}">{}</text>"#,
                LEFT - 7.0,
                y + 4.0,
                short(value)
            );
        }
        for (t, label) in time_ticks(self.end) {
            let x = self.x(t);
            let _ = write!(
                self.body,
                r#"<path class="tick" d="M{x:.1} {bottom}v5"/><text class="{}" x="{:.1}" y="{}">{label}</text>"#,
                // A label at the very end would stand out of the chart.
                if x > right - 24.0 { "ny" } else { "nx" },
                if x > right - 24.0 { WIDTH - 2.0 } else { x },
                bottom + 20.0
            );
        }
        let _ = write!(self.body, r#"<path class="axis" d="M{LEFT} {bottom}H{right}"/>"#);
    }

    /// A line through the points that have a value; a gap where there is none.
    pub(super) fn line(&mut self, class: &str, points: impl Iterator<Item = (f64, Option<f64>)>) {
        let mut d = String::new();
        let mut pen = false;
        for (t, value) in points {
            let Some(value) = value else {
                pen = false;
                continue;
            };
            let _ = write!(d, "{}{:.1} {:.1}", if pen { 'L' } else { 'M' }, self.x(t), self.y(value));
            // A point between two gaps is a dot: round ends show a line of no length.
            d.push_str(if pen { "" } else { "h0" });
            pen = true;
        }
        self.path(class, &d);
    }

    /// A line that jumps at each point: what counts stays until it changes.
    pub(super) fn steps(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let mut d = String::new();
        let mut height = String::new();
        let mut last = 0.0;
        for (t, value) in points {
            // The point is the interval's end, so its value stands from the last one's end on.
            let y = format!("{:.1}", self.y(value));
            if d.is_empty() {
                let _ = write!(d, "M{LEFT} {y}");
            } else if y != height {
                let _ = write!(d, "H{:.1}V{y}", self.x(last));
            }
            (height, last) = (y, t);
        }
        if !d.is_empty() {
            let _ = write!(d, "H{:.1}", self.x(last));
        }
        self.path(class, &d);
    }

    /// The area between two lines; it ends where a point has none and begins anew.
    pub(super) fn area(&mut self, class: &str, points: impl Iterator<Item = (f64, Option<(f64, f64)>)>) {
        let mut d = String::new();
        let mut piece: Vec<(f64, f64, f64)> = Vec::new();
        for (t, band) in points.chain(std::iter::once((0.0, None))) {
            if let Some((low, high)) = band {
                piece.push((self.x(t), self.y(low), self.y(high)));
                continue;
            }
            for (n, (x, _, high)) in piece.iter().enumerate() {
                let _ = write!(d, "{}{x:.1} {high:.1}", if n == 0 { 'M' } else { 'L' });
            }
            for (x, low, _) in piece.iter().rev() {
                let _ = write!(d, "L{x:.1} {low:.1}");
            }
            d.push_str(if piece.is_empty() { "" } else { "Z" });
            piece.clear();
        }
        self.path(class, &d);
    }

    fn path(&mut self, class: &str, d: &str) {
        if !d.is_empty() {
            let _ = write!(self.body, r#"<path class="{class}" d="{d}"/>"#);
        }
    }

    /// A remark at the top of the plot: what does not fit the scale.
    pub(super) fn remark(&mut self, text: &str) {
        let x = WIDTH - RIGHT - 4.0;
        let _ = write!(self.body, r#"<text class="remark" x="{x}" y="{:.1}">{text}</text>"#, TOP + 14.0);
    }

    /// At most `bands` bands to hover over. `text` says what stands at the point whose number it is given.
    pub(super) fn hover(&mut self, times: &[f64], bands: usize, text: impl Fn(usize) -> String) {
        let per = times.len().div_ceil(bands.max(1)).max(1);
        let height = HEIGHT - TOP - BOTTOM;
        let mut from = LEFT;
        for (n, chunk) in times.chunks(per).enumerate() {
            let (Some(last), at) = (chunk.last(), n * per + chunk.len() / 2) else { continue };
            let to = self.x(*last);
            let at = at.min(times.len() - 1);
            let when = clock(times.get(at).copied().unwrap_or(*last));
            let _ = write!(
                self.body,
                r#"<rect class="h" x="{from:.1}" y="{TOP}" width="{:.1}" height="{height}"><title>{when}: {}</title></rect>"#,
                (to - from).max(0.0),
                text(at)
            );
            from = to;
        }
    }

    /// The chart. `id` must be the page's only one; `title` and `desc` are text for those who do not see it,
    /// fit for HTML.
    pub(super) fn finish(self, id: &str, title: &str, desc: &str) -> String {
        format!(
            r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{id}t {id}d"><title id="{id}t">{title}</title><desc id="{id}d">{desc}</desc>{}</svg>"#,
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(Scale::Linear(106.0).ticks(), [0.0, 50.0, 100.0]);
        assert_eq!(Scale::up_to(f64::NAN), Scale::Linear(1.0));
        assert_eq!(Scale::decades([0.12, 3.0, f64::NAN, 0.0].into_iter()), Scale::Log(0.1, 5.0));
        assert_eq!(Scale::decades(std::iter::empty()), Scale::Log(0.1, 10.0));
        for max in [0.3, 1.0, 7.0, 23.0, 999.0, 1e7] {
            let n = Scale::up_to(max).ticks().len();
            assert!((3..=6).contains(&n), "{max}: {n}");
        }
        let labels = |end| time_ticks(end).into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(labels(9000.0), ["0", "30 min", "60 min", "90 min", "120 min", "150 min"]);
        assert_eq!(labels(14.0 * 86_400.0), ["0", "3 d", "6 d", "9 d", "12 d"]);
        assert_eq!(labels(90.0), ["0", "30 s", "60 s", "90 s"]);
        assert_eq!(
            [short(0.5), short(1500.0), short(20_000.0), short(2.5e6)],
            ["0.5", "1500", "20k", "2.5M"]
        );
        assert_eq!([clock(3725.0), clock(100_000.0)], ["1:02:05", "day 1, 03:46"]);
    }

    #[test]
    fn odd_values_stay_on_the_page() {
        let mut chart = Chart::new(f64::NAN, 0.0, Scale::Linear(10.0));
        let odd = [f64::NAN, f64::INFINITY, -1e300, 1e300];
        chart.line("a", odd.into_iter().map(|v| (v, Some(v))));
        chart.steps("a", odd.into_iter().map(|v| (v, v)));
        chart.area("a", odd.into_iter().map(|v| (v, Some((v, v)))));
        let svg = chart.finish("x", "t", "d");
        assert!(!svg.contains("inf") && !svg.contains("NaN") && !svg.contains("e300"), "{svg}");
    }
}
