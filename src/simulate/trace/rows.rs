//! Rows into a table: sorted, counted from the first row's minute, bad ones left out.

use std::collections::BTreeMap;
use std::io::BufRead;

use jiff::Timestamp;

use super::format::{Format, Minute, Reader, Said};
use super::lines::Lines;
use super::{BadRow, MAX_MINUTES, MAX_ROWS, MINUTE, OnBadRow, Problems, SECOND, SHOWN, TraceError, stamp};

/// A request of a trace. Absent tokens are `u32::MAX`: 16 bytes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Nanoseconds since the trace's beginning.
    pub(super) at: i64,
    prompt: u32,
    output: u32,
}

impl Row {
    pub(super) fn prompt(&self) -> Option<u32> {
        (self.prompt != u32::MAX).then_some(self.prompt)
    }

    pub(super) fn output(&self) -> Option<u32> {
        (self.output != u32::MAX).then_some(self.output)
    }
}

/// What a trace holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// A row for each request, earliest first.
    Rows(Vec<Row>),
    /// Requests per minute; `None` is a gap.
    Counts(Vec<Option<f64>>),
}

/// A trace that was read.
pub(super) struct Table {
    pub(super) content: Content,
    pub(super) start: Option<Timestamp>,
    pub(super) problems: Problems,
}

/// The extremes, with their lines: a wrong timestamp is usually one of them.
#[derive(Clone, Copy)]
struct Extremes {
    first: (i64, u64),
    last: (i64, u64),
}

impl Extremes {
    fn add(found: Option<Self>, at: i64, line: u64) -> Self {
        let Some(mut e) = found else { return Self { first: (at, line), last: (at, line) } };
        if at < e.first.0 {
            e.first = (at, line);
        }
        if at >= e.last.0 {
            e.last = (at, line);
        }
        e
    }

    /// Minutes from first to last, both counted.
    fn minutes(self) -> Result<usize, TraceError> {
        let minutes = self.last.0 / MINUTE - self.first.0 / MINUTE + 1;
        if minutes <= MAX_MINUTES {
            return Ok(usize::try_from(minutes).unwrap_or(0));
        }
        Err(TraceError::Span { days: minutes / 1440, first: self.first.1, last: self.last.1 })
    }
}

/// Rows as they come.
#[derive(Default)]
struct Gathered {
    rows: Vec<Row>,
    counts: Vec<(Minute, Option<f64>, u64)>,
    extremes: Option<Extremes>,
    unsorted: u64,
    latest: i64,
    aside: u64,
    problems: Problems,
}

/// Reads every row.
pub(super) fn read(
    lines: &mut Lines<impl BufRead>,
    reader: Reader,
    on_bad_row: OnBadRow,
) -> Result<Table, TraceError> {
    let mut found = Gathered::default();
    while let Some(line) = lines.next()? {
        let said = if line.cut { Err("it is longer than a megabyte".into()) } else { reader.row(&line.text) };
        match said {
            Ok(said) => found.add(said, line.number)?,
            Err(reason) => found.bad(BadRow { line: line.number, reason }, on_bad_row)?,
        }
    }
    if reader.format == Format::Counts {
        found.into_counts(on_bad_row)
    } else {
        found.into_rows(reader.format)
    }
}

impl Gathered {
    fn add(&mut self, said: Said, line: u64) -> Result<(), TraceError> {
        match said {
            Said::Aside => self.aside += 1,
            Said::Count { t, count } => self.counts.push((t, count, line)),
            Said::Request { at, prompt, output } => {
                self.unsorted += u64::from(at < self.latest);
                self.latest = self.latest.max(at);
                self.extremes = Some(Extremes::add(self.extremes, at, line));
                let or_none =
                    |tokens: Option<u32>| tokens.map_or(u32::MAX, |tokens| tokens.min(u32::MAX - 1));
                self.rows.push(Row { at, prompt: or_none(prompt), output: or_none(output) });
            }
        }
        if self.rows.len().max(self.counts.len()) > MAX_ROWS {
            return Err(TraceError::TooLarge);
        }
        Ok(())
    }

    /// A row that says nothing usable: left out, or the end of it.
    fn bad(&mut self, bad: BadRow, on_bad_row: OnBadRow) -> Result<(), TraceError> {
        if on_bad_row == OnBadRow::Refuse {
            return Err(TraceError::Refused(bad));
        }
        self.problems.skipped += 1;
        // by line: what a number stands for, and so whether it is too late, shows only after the last row
        let first = &mut self.problems.first;
        first.insert(first.partition_point(|other| other.line <= bad.line), bad);
        first.truncate(SHOWN);
        Ok(())
    }

    fn note(&mut self, note: String) {
        self.problems.notes.push(note);
    }

    fn none(self) -> TraceError {
        let Problems { skipped, first, .. } = self.problems;
        TraceError::NoRows { skipped, first: first.into_iter().next() }
    }

    fn into_rows(mut self, format: Format) -> Result<Table, TraceError> {
        let Some(extremes) = self.extremes else { return Err(self.none()) };
        extremes.minutes()?;
        let begin = extremes.first.0.div_euclid(MINUTE) * MINUTE;
        let mut rows = std::mem::take(&mut self.rows);
        rows.iter_mut().for_each(|row| row.at -= begin);
        if self.unsorted > 0 {
            // Stable: requests of the same moment stay in the file's order.
            rows.sort_by_key(|row| row.at);
            self.note(format!("{} rows were earlier than one before them: sorted by time", self.unsorted));
        }
        if self.aside > 0 {
            self.note(format!("{} requests that take no permit are left out", self.aside));
        }
        let without = |of: fn(&Row) -> Option<u32>| rows.iter().filter(|row| of(row).is_none()).count();
        let (prompt, output) = (without(Row::prompt), without(Row::output));
        if prompt.max(output) > 0 {
            self.note(format!(
                "{prompt} requests without prompt tokens, {output} without output tokens: drawn by chance"
            ));
        }
        if rows.iter().all(|row| row.at % SECOND == 0) {
            self.note("times are whole seconds: requests are spread over each by chance".into());
        }
        let start = if format == Format::Arrivals { None } else { stamp::wall(begin) };
        Ok(Table { content: Content::Rows(rows), start, problems: self.problems })
    }

    fn into_counts(mut self, on_bad_row: OnBadRow) -> Result<Table, TraceError> {
        let counts = std::mem::take(&mut self.counts);
        let (to_nanos, calendar) = unit(&counts);
        let mut extremes = None;
        let mut minutes: BTreeMap<i64, Option<f64>> = BTreeMap::new();
        let mut shared = 0;
        for (t, count, line) in counts {
            let at = match t {
                Minute::At(at) => at,
                Minute::Number(number) => (number * to_nanos) as i64,
            };
            if at > stamp::LATEST {
                let reason = "its time is not between 1970 and 2200".into();
                self.bad(BadRow { line, reason }, on_bad_row)?;
                continue;
            }
            extremes = Some(Extremes::add(extremes, at, line));
            let minute = minutes.entry(at / MINUTE).or_insert(None);
            shared += u64::from(minute.is_some() && count.is_some());
            *minute = count.map(|count| count + minute.unwrap_or(0.0)).or(*minute);
        }
        let Some(extremes) = extremes else { return Err(self.none()) };
        let first = extremes.first.0 / MINUTE;
        let mut table = vec![None; extremes.minutes()?];
        for (minute, count) in minutes {
            if let Some(place) = usize::try_from(minute - first).ok().and_then(|at| table.get_mut(at)) {
                *place = count;
            }
        }
        if shared > 0 {
            self.note(format!("{shared} rows share their minute with another: added up"));
        }
        let gaps = table.iter().filter(|count| count.is_none()).count();
        if gaps > 0 {
            self.note(format!("{gaps} of {} minutes are missing: gaps, not zeros", table.len()));
        }
        let start = if calendar { stamp::wall(first * MINUTE) } else { None };
        Ok(Table { content: Content::Counts(table), start, problems: self.problems })
    }
}

/// What a bare number in the column `t` stands for, in nanoseconds, and whether it is a date: seconds (or
/// milliseconds) since the epoch, seconds since the beginning, or the minute's number.
fn unit(counts: &[(Minute, Option<f64>, u64)]) -> (f64, bool) {
    let mut numbers: Vec<f64> = counts
        .iter()
        .filter_map(|(t, ..)| match t {
            Minute::Number(number) => Some(*number),
            Minute::At(_) => None,
        })
        .collect();
    if numbers.len() < counts.len() {
        return (SECOND as f64, true);
    }
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.get(numbers.len() / 2).copied().unwrap_or(0.0);
    let step =
        numbers.windows(2).map(|w| w[1] - w[0]).filter(|step| *step > 0.0).fold(f64::INFINITY, f64::min);
    match middle {
        ms if ms >= 1e11 => (1e6, true),
        s if s >= 1e8 => (SECOND as f64, true),
        _ if step < 60.0 => (MINUTE as f64, false),
        _ => (SECOND as f64, false),
    }
}
