//! Which format a trace is of, and how one of its rows is read.

use std::io::BufRead;

use serde::Deserialize;

use super::TraceError;
use super::lines::Lines;
use super::stamp;

/// The formats that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// CSV, a row for each request: `t_s,prompt_tokens,output_tokens`.
    Arrivals,
    /// CSV, a row for each minute: `t,count`.
    Counts,
    /// CSV of the Azure LLM inference traces: `TIMESTAMP,ContextTokens,GeneratedTokens`.
    Azure,
    /// The combined log of nginx and Apache.
    Combined,
    /// tidegate's own access log.
    Access,
}

impl Format {
    /// All of them by name.
    pub const ALL: [(&'static str, Self); 5] = [
        ("arrivals", Self::Arrivals),
        ("counts", Self::Counts),
        ("azure", Self::Azure),
        ("combined", Self::Combined),
        ("access", Self::Access),
    ];

    /// What each looks like.
    pub const HELP: &'static str =
        "  arrivals  CSV, a request a row: t_s,prompt_tokens,output_tokens (t_s in seconds)
  counts    CSV, a minute a row: t,count (t: a time, epoch seconds, or the minute's number)
  azure     CSV of the Azure LLM traces: TIMESTAMP,ContextTokens,GeneratedTokens
  combined  log of nginx or Apache: 1.2.3.4 - - [31/Jan/2026:12:34:56 +0100] \"POST /v1/…\" 200 …
  access    tidegate's own access log: a JSON object a line";

    /// The name, as `--format` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }

    /// The format called `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Arrivals => &["t_s", "prompt_tokens", "output_tokens"],
            Self::Counts => &["t", "count"],
            Self::Azure => &["timestamp", "contexttokens", "generatedtokens"],
            Self::Combined | Self::Access => &[],
        }
    }
}

/// Where the columns of a CSV are. Logs have none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    pub(super) format: Format,
    at: [usize; 3],
    columns: usize,
}

/// What a row says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Said {
    /// A request, nanoseconds since the epoch or since the trace's own beginning.
    Request { at: i64, prompt: Option<u32>, output: Option<u32> },
    /// The requests of a minute. `None`: they are not known.
    Count { t: Minute, count: Option<f64> },
    /// Nothing that a simulation replays: a request that takes no permit.
    Aside,
}

/// A minute by its time (nanoseconds) or by a bare number, which may be seconds or the minute's index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Minute {
    At(i64),
    Number(f64),
}

/// Finds out what the lines are; reads past a header.
pub(super) fn open(
    lines: &mut Lines<impl BufRead>,
    asked: Option<Format>,
) -> Result<(Format, Reader), TraceError> {
    let Some(line) = lines.next()? else { return Err(TraceError::Empty) };
    let text: &str = &line.text;
    let candidates: Vec<Format> = asked.map_or_else(|| Format::ALL.map(|(_, f)| f).to_vec(), |f| vec![f]);
    for format in candidates.iter().copied().filter(|format| !format.columns().is_empty()) {
        if let Some(reader) = header(text, format) {
            return Ok((format, reader));
        }
    }
    let log = match asked {
        Some(format) if format.columns().is_empty() => Some(format),
        Some(_) => None,
        None if text.starts_with('{') => Some(Format::Access),
        None => combined(text).is_ok().then_some(Format::Combined),
    };
    let Some(format) = log else {
        let wanted = asked.map_or_else(String::new, |f| {
            format!(" (--format {} wants the columns {})", f.name(), f.columns().join(","))
        });
        return Err(TraceError::Unknown(format!("{:?}{wanted}", shown(text))));
    };
    lines.push_back();
    Ok((format, Reader { format, at: [0; 3], columns: 0 }))
}

/// The beginning of something from a file, fit to be shown.
pub(super) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

fn header(text: &str, format: Format) -> Option<Reader> {
    let names: Vec<String> = cells(text).map(str::to_ascii_lowercase).collect();
    let mut at = [0; 3];
    for (place, column) in at.iter_mut().zip(format.columns()) {
        *place = names.iter().position(|name| name == column)?;
    }
    Some(Reader { format, at, columns: names.len() })
}

fn cells(row: &str) -> impl Iterator<Item = &str> {
    row.split(',').map(|cell| cell.trim().trim_matches('"'))
}

impl Reader {
    /// What a row says, or why it cannot be read.
    pub(super) fn row(&self, row: &str) -> Result<Said, String> {
        match self.format {
            Format::Combined => combined(row),
            Format::Access => access(row),
            Format::Arrivals | Format::Azure => {
                let [t, prompt, output] = self.cells(row)?;
                let at = if self.format == Format::Azure { stamp::iso(t)? } else { stamp::seconds(t)? };
                let (prompt, output) = (tokens("prompt", prompt)?, tokens("output", output)?);
                Ok(Said::Request { at, prompt: Some(prompt), output: Some(output) })
            }
            Format::Counts => {
                let [t, count, _] = self.cells(row)?;
                Ok(Said::Count { t: minute(t)?, count: counted(count)? })
            }
        }
    }

    fn cells<'a>(&self, row: &'a str) -> Result<[&'a str; 3], String> {
        let mut found = [""; 3];
        let mut columns = 0;
        for (n, cell) in cells(row).enumerate() {
            columns += 1;
            for (place, at) in found.iter_mut().zip(self.at) {
                if at == n {
                    *place = cell;
                }
            }
        }
        if columns == self.columns {
            return Ok(found);
        }
        Err(format!("{columns} fields where the header has {}", self.columns))
    }
}

fn tokens(of: &str, text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{of} tokens: {text:?} is not a whole number"))
}

fn counted(text: &str) -> Result<Option<f64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let count = text.parse().ok().filter(|count: &f64| (0.0..=1e9).contains(count));
    count.map(Some).ok_or_else(|| format!("count {text:?} is not a number of requests"))
}

fn minute(text: &str) -> Result<Minute, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=4e12).contains(&number) => Ok(Minute::Number(number)),
        Ok(_) => Err(format!("t {text:?} is no time")),
        Err(_) => stamp::iso(text).map(Minute::At),
    }
}

/// `host ident user [time] "request" status …`. Every request counts, whatever became of it.
fn combined(row: &str) -> Result<Said, String> {
    let wrong = || format!("not a line of a combined log: {:?}", shown(row));
    let (_, rest) = row.split_once(" [").ok_or_else(wrong)?;
    let (time, rest) = rest.split_once("] \"").ok_or_else(wrong)?;
    let at = stamp::combined(time)?;
    let mut escaped = false;
    let end = rest.find(|c| match c {
        '"' if !escaped => true,
        _ => {
            escaped = c == '\\' && !escaped;
            false
        }
    });
    let after = end.and_then(|end| rest.get(end + 1..)).ok_or_else(wrong)?;
    let status = after.split_ascii_whitespace().next().and_then(|word| word.parse::<u16>().ok());
    status.filter(|status| (100..600).contains(status)).ok_or_else(wrong)?;
    Ok(Said::Request { at, prompt: None, output: None })
}

/// The fields of tidegate's access log that a replay needs.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    time: std::borrow::Cow<'a, str>,
    request_id: serde::de::IgnoredAny,
    #[serde(default)]
    reason: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    queued: bool,
    #[serde(default)]
    queue_ms: Option<f64>,
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    request_bytes: u64,
}

/// Refusals of requests that wanted a permit.
const GATE_REFUSALS: [&str; 4] =
    ["queue_full", "deadline_unreachable", "queue_timeout", "upstream_unavailable"];
/// A token of English text in bytes, for logs without token counts.
const BYTES_PER_TOKEN: u64 = 4;

fn access(row: &str) -> Result<Said, String> {
    let line: Line<'_> =
        serde_json::from_str(row).map_err(|e| format!("not a line of the access log: {e}"))?;
    let _: serde::de::IgnoredAny = line.request_id;
    let refused = line.reason.as_deref().is_some_and(|reason| GATE_REFUSALS.contains(&reason));
    if !(line.queued || line.queue_ms.is_some() || refused) {
        return Ok(Said::Aside);
    }
    let clip = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX - 1);
    let guess = (line.request_bytes > 0).then_some(line.request_bytes / BYTES_PER_TOKEN);
    Ok(Said::Request {
        at: stamp::iso(&line.time)?,
        prompt: line.prompt_tokens.or(guess).map(clip),
        output: line.output_tokens.map(clip),
    })
}
