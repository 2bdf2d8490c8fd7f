//! Recorded traffic: logs and tables of arrivals, read into the requests of a simulation.
//!
//! Without it nobody could ask what a policy would have made of *their* Monday. The format is told by the
//! content, gzip is unpacked on the way, and rows that cannot be read are counted with line and reason.
//!
//! ```text
//! bytes ─▶ lines ─▶ format (first line) ─▶ rows, sorted ─▶ requests(seed), per_minute()
//! ```
//! Memory is 16 bytes for each request, 16 for each minute of counts. Time 0 is the beginning of the first
//! row's minute. Called by `tidegate simulate`; the file is opened there.

mod format;
mod lines;
mod rows;
mod stamp;

use std::io::{self, BufRead, BufReader};
use std::time::Duration;

use flate2::bufread::MultiGzDecoder;
use jiff::Timestamp;

use crate::chance::SplitMix64;
use crate::policy::units::MonoTime;
use crate::simulate::Request;
use crate::simulate::workload::{Lengths, Workload};

pub use format::Format;
use lines::Lines;
use rows::Content;

/// Bad rows that are kept with line and reason; the others are only counted.
const SHOWN: usize = 5;
const SECOND: i64 = 1_000_000_000;
const MINUTE: i64 = 60 * SECOND;
/// More minutes than this between first and last row are a wrong timestamp: 400 days, so that a whole year can be scored.
const MAX_MINUTES: i64 = 400 * 1440;
/// More requests than this are refused: they would take over 800 MB.
const MAX_ROWS: usize = 50_000_000;

/// What to do with a row that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnBadRow {
    /// Leave it out, and say so.
    #[default]
    Skip,
    /// Read nothing at all.
    Refuse,
}

/// A row that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// Counted from 1; a header is line 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// What was wrong or odd about a trace that could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    /// Rows left out because they could not be read.
    pub skipped: u64,
    /// The first of them.
    pub first: Vec<BadRow>,
    /// What else the reader should know: rows sorted, minutes missing, tokens drawn.
    pub notes: Vec<String>,
}

/// Why a trace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// Reading or unpacking failed.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// There is no line in it.
    #[error("it is empty")]
    Empty,
    /// The first line is of no format we know.
    #[error("its first line is of no known format: {0}\n{formats}", formats = Format::HELP)]
    Unknown(String),
    /// A row is bad, and bad rows are to be refused.
    #[error("line {}: {}", .0.line, .0.reason)]
    Refused(BadRow),
    /// Nothing but bad rows, or none at all.
    #[error("there is no usable row in it ({skipped} bad{first})", first = first_of(.first.as_ref()))]
    NoRows {
        /// How many bad rows there are.
        skipped: u64,
        /// The first of them.
        first: Option<BadRow>,
    },
    /// First and last row are too far apart.
    #[error("its rows span {days} days, more than 400: is a timestamp wrong? (lines {first} and {last})")]
    Span {
        /// From first to last.
        days: i64,
        /// Line of the earliest row.
        first: u64,
        /// Line of the latest row.
        last: u64,
    },
    /// It can be scored by the minute, but not be replayed second by second.
    #[error(
        "from its first row ({first}) to its last ({last}) a replay takes {days} days, more than {}: is a timestamp wrong? \
         Otherwise cut it into parts, or replay it faster (--speed)",
        Workload::MAX_DAYS
    )]
    Long {
        /// Of the replay.
        days: u64,
        /// When the earliest row is.
        first: String,
        /// When the latest row is.
        last: String,
    },
    /// It is too large to hold.
    #[error("it has more than {} requests; cut it into parts", MAX_ROWS)]
    TooLarge,
    /// The replay's speed is no factor.
    #[error("speed {0} is not a number from 0.001 to 1000000")]
    Speed(f64),
}

fn first_of(bad: Option<&BadRow>) -> String {
    bad.map_or_else(String::new, |bad| format!("; line {}: {}", bad.line, bad.reason))
}

/// A recorded stretch of traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What it is called: usually its file's name.
    pub name: String,
    /// What it was read as.
    pub format: Format,
    /// When it began by the calendar, where the rows say: the beginning of the first row's minute.
    pub start: Option<Timestamp>,
    /// What to tell the user.
    pub problems: Problems,
    content: Content,
}

impl Trace {
    /// Reads a trace: plain or gzip, of the format given or the one that its first line shows.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn read(
        name: &str,
        mut input: impl BufRead,
        format: Option<Format>,
        on_bad_row: OnBadRow,
    ) -> Result<Self, TraceError> {
        let gzip = input.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let mut lines: Lines<Box<dyn BufRead + '_>> = if gzip {
            Lines::new(Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(input))))
        } else {
            Lines::new(Box::new(input))
        };
        let (format, reader) = format::open(&mut lines, format)?;
        let table = rows::read(&mut lines, reader, on_bad_row)?;
        Ok(Self {
            name: name.to_owned(),
            format,
            start: table.start,
            problems: table.problems,
            content: table.content,
        })
    }

    /// Requests in it.
    #[must_use]
    pub fn requests_total(&self) -> f64 {
        match &self.content {
            Content::Rows(rows) => rows.len() as f64,
            Content::Counts(minutes) => minutes.iter().flatten().sum(),
        }
    }

    /// To the end of the last row's minute.
    #[must_use]
    pub fn length(&self) -> Duration {
        let minutes = match &self.content {
            Content::Rows(rows) => rows.last().map_or(0, |row| row.at / MINUTE + 1),
            Content::Counts(minutes) => minutes.len() as i64,
        };
        Duration::from_secs(minutes.unsigned_abs() * 60)
    }

    /// Requests in each minute; `None` where the trace says nothing (a gap is not a zero).
    #[must_use]
    pub fn per_minute(&self) -> Vec<Option<f64>> {
        match &self.content {
            Content::Counts(minutes) => minutes.clone(),
            Content::Rows(rows) => {
                let mut counts = vec![Some(0.0); (self.length().as_secs() / 60) as usize];
                for row in rows {
                    if let Some(Some(count)) = counts.get_mut((row.at / MINUTE) as usize) {
                        *count += 1.0;
                    }
                }
                counts
            }
        }
    }

    /// The requests, earliest first. Chance fills in what the trace does not say: the moment within a minute
    /// of counts or within a second of a log, and tokens where it has none (lognormal, the reference lengths).
    ///
    /// # Errors
    /// [`TraceError::TooLarge`].
    pub fn requests(&self, seed: u64) -> Result<Vec<Request>, TraceError> {
        if self.requests_total() > MAX_ROWS as f64 {
            return Err(TraceError::TooLarge);
        }
        let mut chance = SplitMix64::new(seed);
        let mut requests = match &self.content {
            Content::Rows(rows) => {
                let coarse = rows.iter().all(|row| row.at % SECOND == 0);
                let mut one = |row: &rows::Row| {
                    let within = if coarse { chance.uniform() } else { 0.0 };
                    let drawn = Lengths::LLM.request(0.0, &mut chance);
                    let known = |tokens: Option<u32>, drawn| tokens.map_or(drawn, |tokens| tokens.max(1));
                    Request {
                        at: MonoTime::from_nanos(row.at.unsigned_abs() + (within * 1e9) as u64),
                        prompt: known(row.prompt(), drawn.prompt),
                        output: known(row.output(), drawn.output),
                    }
                };
                rows.iter().map(&mut one).collect()
            }
            Content::Counts(minutes) => from_counts(minutes, &mut chance),
        };
        requests.sort_by_key(|request| request.at);
        Ok(requests)
    }

    /// The minute that begins so many seconds after the beginning, by the calendar where the rows say.
    fn moment(&self, seconds: u64) -> String {
        let at = self.start.and_then(|start| start.checked_add(Duration::from_secs(seconds)).ok());
        at.map_or_else(
            || format!("minute {}", seconds / 60),
            |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        )
    }

    /// The trace as a workload, `speed` times as fast as it was recorded. What arrives before `learn` (in the
    /// replay's time) does not count.
    ///
    /// # Errors
    /// [`TraceError::TooLarge`], [`TraceError::Speed`], [`TraceError::Long`].
    pub fn workload(&self, seed: u64, speed: f64, learn: Duration) -> Result<Workload, TraceError> {
        if !(0.001..=1e6).contains(&speed) {
            return Err(TraceError::Speed(speed));
        }
        let days = self.length().as_secs_f64() / speed / 86_400.0;
        if days > Workload::MAX_DAYS as f64 {
            let (first, last) = (self.moment(0), self.moment(self.length().as_secs().saturating_sub(60)));
            return Err(TraceError::Long { days: days.ceil() as u64, first, last });
        }
        let mut requests = self.requests(seed)?;
        if speed != 1.0 {
            for request in &mut requests {
                request.at = MonoTime::from_nanos((request.at.as_nanos() as f64 / speed) as u64);
            }
        }
        Ok(Workload::of(self.name.clone(), requests, self.length().div_f64(speed), learn))
    }
}

/// Given its count, a Poisson process has its arrivals anywhere in the minute, each for itself.
fn from_counts(minutes: &[Option<f64>], chance: &mut SplitMix64) -> Vec<Request> {
    let mut requests = Vec::new();
    for (minute, count) in minutes.iter().enumerate() {
        let count = count.unwrap_or(0.0);
        let whole = count as u64 + u64::from(chance.uniform() < count.fract());
        for _ in 0..whole {
            let at = (minute as f64 + chance.uniform()) * 60.0;
            requests.push(Lengths::LLM.request(at, chance));
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Trace, TraceError> {
        Trace::read("t", text.as_bytes(), None, OnBadRow::Skip)
    }

    fn fault(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    fn ms(requests: &[Request]) -> Vec<u64> {
        requests.iter().map(|r| r.at.as_nanos() / 1_000_000).collect()
    }

    #[test]
    fn arrivals_are_sorted_and_counted_from_their_first_minute() {
        let t = read("t_s,prompt_tokens,output_tokens\n130.5,1,2\n\n61,3,0\n62.25,5,6\n").unwrap();
        assert_eq!((t.format, t.start), (Format::Arrivals, None));
        let requests = t.requests(1).unwrap();
        assert_eq!(ms(&requests), [1000, 2250, 70_500]);
        assert_eq!((requests[0].prompt, requests[0].output), (3, 1), "an answer has at least one token");
        assert_eq!(t.per_minute(), [Some(2.0), Some(1.0)]);
        assert_eq!(t.length(), Duration::from_secs(120));
        assert_eq!(t.problems.notes, ["2 rows were earlier than one before them: sorted by time"]);
        let w = t.workload(1, 10.0, Duration::from_secs(3)).unwrap();
        assert_eq!((ms(&w.requests), w.length), (vec![100, 225, 7050], Duration::from_secs(12)));
        assert!(matches!(t.workload(1, f64::NAN, Duration::ZERO), Err(TraceError::Speed(_))));
    }

    #[test]
    fn azures_traces_have_a_date() {
        let t = read("TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n")
            .unwrap();
        assert_eq!(t.start.map(|s| s.to_string()), Some("2023-11-16T18:15:00Z".into()));
        let requests = t.requests(1).unwrap();
        assert_eq!((ms(&requests), requests[0].prompt, requests[0].output), (vec![46_680], 374, 44));
    }

    #[test]
    fn a_missing_minute_is_a_gap_and_no_zero() {
        let t =
            read("t,count\n2025-01-06 00:00:00,3\n2025-01-06 00:03:00,0\n2025-01-06 00:01:00,2.5\n").unwrap();
        assert_eq!(t.per_minute(), [Some(3.0), Some(2.5), None, Some(0.0)]);
        assert_eq!(t.problems.notes, ["1 of 4 minutes are missing: gaps, not zeros"]);
        let requests = t.requests(7).unwrap();
        let in_minute = |n| requests.iter().filter(|r| r.at.as_secs() / 60 == n).count();
        assert_eq!((in_minute(0), in_minute(2), in_minute(3)), (3, 0, 0));
        assert!((2..=3).contains(&in_minute(1)));
        assert_eq!(t.requests(7).unwrap(), requests);
        assert_ne!(t.requests(8).unwrap(), requests);
    }

    #[test]
    fn the_time_of_counts_may_be_anything_that_is_a_time() {
        let minutes = |rows: &str| read(&format!("t,count\n{rows}")).unwrap().per_minute();
        let want = [Some(1.0), None, Some(2.0), Some(3.0)];
        assert_eq!(minutes("7,1\n9,2\n10,3\n"), want, "the minute's number");
        assert_eq!(minutes("0,1\n120,2\n180,3\n"), want, "seconds from the beginning");
        assert_eq!(minutes("1736121600,1\n1736121720,2\n1736121780,3\n"), want, "epoch seconds");
        assert_eq!(minutes("1736121600000,1\n1736121720000,2\n1736121780000,3\n"), want, "milliseconds");
        assert_eq!(minutes("2025-01-06T00:00:00Z,1\n2025-01-06T00:02:00Z,2\n2025-01-06T00:03:00Z,3"), want);
        assert_eq!(minutes("60,1\n61,\n62,2\n63,3\n"), want, "an empty count is unknown");
        assert_eq!(minutes("1736121600,1\n1736121630,2\n"), [Some(3.0)], "half minutes are added up");
    }

    #[test]
    fn a_combined_log_is_replayed_request_by_request() {
        let log = "1.2.3.4 - - [31/Jan/2026:12:34:56 +0100] \"POST /v1/chat/completions HTTP/1.1\" 200 99 \"-\" \"a \\\"b\\\"\"\n\
                   ::1 - bob [31/Jan/2026:12:34:56 +0100] \"\\x16\\x03\" 400 0 \"-\" \"-\"\n\
                   nonsense\n\
                   1.2.3.4 - - [31/Jan/2026:12:33:00 +0100] \"GET / HTTP/1.1\" 304 -\n";
        let t = read(log).unwrap();
        assert_eq!((t.format, t.problems.skipped), (Format::Combined, 1));
        assert_eq!(t.problems.first[0].line, 3);
        assert_eq!(t.start.map(|s| s.to_string()), Some("2026-01-31T11:33:00Z".into()));
        assert_eq!(t.per_minute(), [Some(1.0), Some(2.0)]);
        let at = ms(&t.requests(1).unwrap());
        assert!(at[0] < 1000 && (116_000..117_000).contains(&at[1]) && at[1] < at[2], "spread: {at:?}");
    }

    #[test]
    fn our_own_log_gives_what_wanted_a_permit() {
        let line = |rest: &str| format!("{{\"time\":\"2026-01-01T00:00:0{rest}}}\n");
        let log =
            line("5.250Z\",\"request_id\":\"a\",\"queue_ms\":0.1,\"request_bytes\":400,\"output_tokens\":9")
                + &line(
                    "1.000Z\",\"request_id\":\"b\",\"queue_ms\":null,\"reason\":\"queue_full\",\"x\":[1]",
                )
                + &line(
                    "2.000Z\",\"request_id\":\"c\",\"queue_ms\":null,\"reason\":null,\"endpoint\":\"models\"",
                )
                + &line("3.000Z\"")
                + "{\"time\":7}\n";
        let t = read(&log).unwrap();
        assert_eq!((t.format, t.problems.skipped), (Format::Access, 2), "{:?}", t.problems);
        assert!(t.problems.notes.iter().any(|n| n == "1 requests that take no permit are left out"));
        let requests = t.requests(1).unwrap();
        assert_eq!(ms(&requests), [1000, 5250]);
        assert_eq!((requests[1].prompt, requests[1].output), (100, 9), "4 bytes a token");
    }

    #[test]
    fn bad_rows_are_named_or_refused() {
        let text =
            "t_s,prompt_tokens,output_tokens\n1,2,3\n2,3\nNaN,1,1\n-5,1,1\n1e300,1,1\n3,x,1\n4,1,-1\n5,1,1\n";
        let t = read(text).unwrap();
        assert_eq!((t.problems.skipped, t.requests_total()), (6, 2.0));
        let shown: Vec<String> =
            t.problems.first.iter().map(|b| format!("{}: {}", b.line, b.reason)).collect();
        assert_eq!(shown[0], "3: 2 fields where the header has 3");
        assert_eq!(shown[1], "4: \"NaN\" is no time in seconds, 0 or later");
        assert_eq!(shown[4], "7: prompt tokens: \"x\" is not a whole number");
        let refused = Trace::read("t", text.as_bytes(), None, OnBadRow::Refuse).unwrap_err().to_string();
        assert_eq!(refused, "line 3: 2 fields where the header has 3");
    }

    #[test]
    fn a_minute_past_the_calendar_is_a_bad_row_like_any_other() {
        // only the last row shows that the numbers are minutes, and so which of them are too far
        let text = "t,count\n0,4\n9e11,7\nx,1\n1,5\n2,6\n";
        let t = read(text).unwrap();
        assert_eq!((t.problems.skipped, t.requests_total()), (2, 15.0));
        let shown: Vec<String> =
            t.problems.first.iter().map(|b| format!("{}: {}", b.line, b.reason)).collect();
        assert_eq!(shown[0], "3: its time is not between 1970 and 2200");
        assert_eq!(shown[1], "4: \"x\" is no time like 2026-01-31 12:34:56");
        let refused =
            |text: &str| Trace::read("t", text.as_bytes(), None, OnBadRow::Refuse).unwrap_err().to_string();
        assert_eq!(
            refused("t,count\n0,4\n9e11,7\n1,5\n2,6\n"),
            "line 3: its time is not between 1970 and 2200"
        );
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        assert_eq!(fault(""), "it is empty");
        assert_eq!(fault("\n \n"), "it is empty");
        assert!(fault("a,b\n1,2\n").starts_with("its first line is of no known format: \"a,b\"\n  arrivals"));
        assert!(fault("\0\u{1}\u{2}").contains("no known format"));
        assert_eq!(fault("t,count\n"), "there is no usable row in it (0 bad)");
        assert_eq!(
            fault("t,count\nx,1\n"),
            "there is no usable row in it (1 bad; line 2: \"x\" is no time like 2026-01-31 12:34:56)"
        );
        assert!(fault("t,count\n1970-01-02 00:00:00,1\n2026-01-01 00:00:00,1\n").contains("(lines 2 and 3)"));
        let wrong = Trace::read("t", &b"t,count\n"[..], Some(Format::Azure), OnBadRow::Skip).unwrap_err();
        assert!(wrong.to_string().contains("--format azure wants the columns timestamp,contexttokens"));
        let many = read("t,count\n0,1e9\n").unwrap();
        assert!(matches!(many.requests(1), Err(TraceError::TooLarge)));
    }

    #[test]
    fn what_would_take_too_long_to_replay_is_refused() {
        let of = |rows: &str| read(&format!("t_s,prompt_tokens,output_tokens\n{rows}"));
        assert!(of("0,1,1\n315000000,1,1\n").unwrap_err().to_string().contains("3645 days"));
        let year = of("0,1,1\n31536000,1,1\n").unwrap();
        assert_eq!(year.per_minute().len(), 525_601, "it can still be scored");
        let why = year.workload(1, 1.0, Duration::ZERO).unwrap_err().to_string();
        let want =
            "from its first row (minute 0) to its last (minute 525600) a replay takes 366 days, more than 60";
        assert!(why.starts_with(want), "{why}");
        assert!(year.workload(1, 10.0, Duration::ZERO).is_ok(), "{why}");
        let dated = read("t,count\n2025-01-01 00:00:00,1\n2025-04-01 00:00:00,1\n").unwrap();
        let why = dated.workload(1, 1.0, Duration::ZERO).unwrap_err().to_string();
        assert!(why.contains("(2025-01-01 00:00 UTC) to its last (2025-04-01 00:00 UTC)"), "{why}");
    }

    #[test]
    fn gzip_is_unpacked_and_a_broken_one_refused() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"t,count\n0,5\n1,6\n").unwrap();
        let packed = packed.finish().unwrap();
        let t = Trace::read("t.gz", &packed[..], None, OnBadRow::Skip).unwrap();
        assert_eq!(t.per_minute(), [Some(5.0), Some(6.0)]);
        let half = Trace::read("t.gz", &packed[..packed.len() - 9], None, OnBadRow::Skip).unwrap_err();
        assert!(matches!(half, TraceError::Read(_)));
    }

    #[test]
    fn the_shared_traces_read_whole() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/traces");
        for (file, minutes, requests) in [
            ("azure_llm_2023_conv.csv.gz", 59..=60, 19_366.0..19_367.0),
            ("servegen_mix12_1min_semireal.csv.gz", 20_160..=20_160, 19e6..22e6),
            ("nasa_http_1995_july_1min.csv.gz", 36_000..=37_440, 1.75e6..1.85e6),
        ] {
            let Ok(file) = std::fs::File::open(folder.join(file)) else {
                println!("skipped: no {file} beside the project");
                continue;
            };
            let t = Trace::read("t", BufReader::new(file), None, OnBadRow::Refuse).unwrap();
            let total = t.requests_total();
            assert!(minutes.contains(&t.per_minute().len()), "{} {}", t.per_minute().len(), total);
            assert!(requests.contains(&total), "{total}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), head in 0..7_usize) {
            let heads: [&[u8]; 7] = [b"", b"t_s,prompt_tokens,output_tokens\n", b"t,count\n", b"{\"time\":\"",
                b"TIMESTAMP,ContextTokens,GeneratedTokens\n", b"a - - [31/Jan/2026:12:34:56 +0100] \"x\" 200\na - - [", b"\x1f\x8b\x08"];
            let input = [heads[head], &bytes].concat();
            if let Ok(t) = Trace::read("t", &input[..], None, OnBadRow::Skip) {
                let _ = (t.per_minute(), t.requests(1), t.length());
            }
        }

        #[test]
        fn odd_rows_never_panic(rows in prop::collection::vec("(-|[0-9]{1,20}|[0-9]{1,4}(\\.|e)[0-9]{0,3}|NaN|inf|2[0-9]{3}-0[1-9]-[0-3][0-9] 00:0[0-9]:00|)(,([0-9]{0,4}|[0-9e.]{1,12})){1,2}", 0..20)) {
            for head in ["t_s,prompt_tokens,output_tokens\n", "t,count\n", "TIMESTAMP,ContextTokens,GeneratedTokens\n"] {
                if let Ok(t) = read(&format!("{head}{}", rows.join("\n"))) {
                    // A count of a billion is fine to read, and too slow to draw in a debug build.
                    if t.requests_total() < 1e5 {
                        let requests = t.requests(1).unwrap();
                        prop_assert!(requests.is_sorted_by_key(|r| r.at));
                        prop_assert!(requests.iter().all(|r| r.at <= MonoTime::ZERO + t.length()));
                    }
                }
            }
        }
    }
}
