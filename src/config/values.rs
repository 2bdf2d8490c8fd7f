//! How one written value becomes a typed one: times, sizes, counts, addresses, choices.
//!
//! Each function takes a value as it was written and answers with the typed one or with a sentence that
//! says what was expected and what was found. `sections.rs` and `upstream.rs` hand them to the reader.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;

/// The longest time any setting may name. It keeps sums with a clock far from overflow.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A value as it was written.
///
/// It can hold a secret (a key written where only a reference may stand), so it has no `Debug`.
pub(super) enum Value {
    /// From a variable or a flag: the type is whatever the setting wants it to be.
    Text(String),
    String(String),
    /// `None`: does not fit 64 bits.
    Integer(Option<i64>),
    Float(f64),
    Boolean(bool),
    /// A key itself, from a variable that exists to hold one.
    Key(String),
    /// `["a", "b"]`.
    List(Vec<Value>),
    /// `{ "a" = "b" }`.
    Map(Vec<(String, Value)>),
    /// Something no setting is: its name with an article.
    Other(&'static str),
}

impl Value {
    /// What it is, with an article.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Key(_) => "a key",
            Self::List(_) => "an array",
            Self::Map(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

fn expected(what: &str, found: &Value) -> String {
    format!("expected {what}, found {}", found.kind())
}

/// A value quoted for a message: escaped, because it goes to a terminal, and cut, because it can be a page.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

fn written(value: &Value) -> Option<&str> {
    match value {
        Value::Text(s) | Value::String(s) => Some(s),
        _ => None,
    }
}

pub(super) fn string(value: &Value) -> Result<String, String> {
    written(value).map(str::to_owned).ok_or_else(|| expected("a string", value))
}

/// Several strings; in a variable with commas between them.
pub(super) fn strings(value: &Value) -> Result<Vec<String>, String> {
    const WANTED: &str = "a list such as [\"a\", \"b\"]";
    match value {
        Value::List(items) => {
            items.iter().map(string).collect::<Result<_, _>>().map_err(|e| format!("in the list: {e}"))
        }
        Value::Text(text) => Ok(parts(text).map(str::to_owned).collect()),
        _ => Err(expected(WANTED, value)),
    }
}

/// A list of anything; in a variable `a,b,c`.
pub(super) fn list<T>(item: fn(&Value) -> Result<T, String>) -> impl Fn(&Value) -> Result<Vec<T>, String> {
    move |value| match value {
        Value::List(items) => {
            items.iter().map(item).collect::<Result<_, _>>().map_err(|e| format!("in the list: {e}"))
        }
        Value::Text(text) => parts(text).map(|part| item(&Value::Text(part.to_owned()))).collect(),
        _ => Err(expected("a list", value)),
    }
}

/// Names for names; in a variable `a=b,c=d`.
pub(super) fn names(value: &Value) -> Result<BTreeMap<String, String>, String> {
    const WANTED: &str = "names for names such as { \"a\" = \"b\" }, in a variable a=b,c=d";
    match value {
        Value::Map(pairs) => {
            let pair = |(name, value): &(String, Value)| match string(value) {
                Ok(text) => Ok((name.clone(), text)),
                Err(message) => Err(format!("of {}: {message}", quoted(name))),
            };
            pairs.iter().map(pair).collect()
        }
        Value::Text(text) => {
            let mut found = BTreeMap::new();
            for part in parts(text) {
                let (name, is) = part
                    .split_once('=')
                    .ok_or_else(|| format!("expected {WANTED}, found {}", quoted(part)))?;
                if found.insert(name.trim().to_owned(), is.trim().to_owned()).is_some() {
                    return Err(format!("has {} twice", quoted(name.trim())));
                }
            }
            Ok(found)
        }
        _ => Err(expected(WANTED, value)),
    }
}

/// What stands between commas. Nothing at all is no part.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|_| !text.trim().is_empty())
}

pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Boolean(b) => Ok(*b),
        Value::Text(s) => s.parse().map_err(|_| format!("expected true or false, found {}", quoted(s))),
        _ => Err(expected("true or false", value)),
    }
}

fn integer(value: &Value, what: &str) -> Result<i64, String> {
    match value {
        Value::Integer(Some(n)) => Ok(*n),
        Value::Integer(None) => Err("is too large a number".into()),
        Value::Text(s) => s.parse().map_err(|_| format!("expected {what}, found {}", quoted(s))),
        _ => Err(expected(what, value)),
    }
}

/// A whole number from 0 up.
pub(super) fn count<T: TryFrom<i64>>(value: &Value) -> Result<T, String> {
    let n = integer(value, "a whole number")?;
    if n < 0 {
        return Err(format!("must not be negative, is {n}"));
    }
    T::try_from(n).map_err(|_| format!("{n} is too large a number"))
}

/// A number with or without a decimal point.
pub(super) fn fraction(value: &Value) -> Result<f64, String> {
    let number = match value {
        Value::Float(x) => *x,
        #[expect(clippy::cast_precision_loss, reason = "a share beyond 2^53 is refused by its room anyway")]
        Value::Integer(Some(n)) => *n as f64,
        Value::Text(s) => {
            s.parse().map_err(|_| format!("expected a number such as 0.75, found {}", quoted(s)))?
        }
        _ => return Err(expected("a number such as 0.75", value)),
    };
    if number.is_finite() { Ok(number) } else { Err("must be a finite number such as 0.75".into()) }
}

/// A time with its unit.
pub(super) fn duration(value: &Value) -> Result<Duration, String> {
    const WANTED: &str = "a time with its unit such as \"500ms\", \"30s\", \"5m\" or \"1h\"";
    if let Value::Integer(Some(n)) = value {
        return Err(format!("expected {WANTED}, found the bare number {n}: write \"{n}s\" for seconds"));
    }
    let text = written(value).ok_or_else(|| expected(WANTED, value))?;
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let bare = quoted(text);
        return Err(format!("expected {WANTED}, found the bare number {bare}: add the unit"));
    }
    let signed: jiff::SignedDuration =
        text.parse().map_err(|_| format!("expected {WANTED}, found {}", quoted(text)))?;
    let time =
        Duration::try_from(signed).map_err(|_| format!("must not be negative, is {}", quoted(text)))?;
    if time > LONGEST {
        return Err("is longer than a year (8760h)".into());
    }
    Ok(time)
}

/// A number of bytes, with or without a unit. `KB` is 1000 and `KiB` 1024, as the standards have it.
pub(super) fn size(value: &Value) -> Result<u64, String> {
    const WANTED: &str = "a number of bytes such as 1048576, \"64MiB\" or \"10KB\"";
    if let Value::Integer(_) = value {
        return count(value);
    }
    let text = written(value).ok_or_else(|| expected(WANTED, value))?.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "kib" => 1 << 10,
        "mb" => 1_000_000,
        "mib" => 1 << 20,
        "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        "tb" => 1_000_000_000_000,
        "tib" => 1 << 40,
        _ => return Err(format!("expected {WANTED}, found {}", quoted(text))),
    };
    if number.is_empty() {
        return Err(format!("expected {WANTED}, found {}", quoted(text)));
    }
    number.parse().ok().and_then(|n: u64| n.checked_mul(unit)).ok_or_else(|| "is too large a size".into())
}

/// An IP address with its port. Names are not looked up: which address is meant has to be plain.
pub(super) fn address(value: &Value) -> Result<SocketAddr, String> {
    const WANTED: &str = "an IP address and port such as \"127.0.0.1:8080\" or \"[::]:8080\"";
    let text = written(value).ok_or_else(|| expected(WANTED, value))?;
    text.parse().map_err(|_| format!("expected {WANTED}, found {}", quoted(text)))
}

/// A path of the file system; a relative one starts at the working directory.
pub(super) fn path(value: &Value) -> Result<PathBuf, String> {
    match written(value) {
        Some("") => Err("must not be empty".into()),
        Some(text) => Ok(text.into()),
        None => Err(expected("a path", value)),
    }
}

/// A URL. A message about it never repeats it: people put passwords into URLs.
pub(super) fn url(value: &Value) -> Result<Uri, String> {
    const WANTED: &str = "a URL such as \"https://api.openai.com/v1\"";
    let text = written(value).ok_or_else(|| expected(WANTED, value))?;
    let url: Uri =
        text.trim().parse().map_err(|e: hyper::http::uri::InvalidUri| format!("expected {WANTED}: {e}"))?;
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        // Refused before any room sees it, so that no room's message repeats it.
        return Err("must not contain a user or password; use api_key".into());
    }
    Ok(url)
}

/// One of a few words.
pub(super) fn choice<T: Copy>(options: &[(&str, T)]) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        let words: Vec<String> = options.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let wanted = words.join(" or ");
        let text = written(value).ok_or_else(|| expected(&wanted, value))?;
        let found = options.iter().find(|(word, _)| *word == text);
        found.map(|(_, t)| *t).ok_or_else(|| format!("expected {wanted}, found {}", quoted(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> Value {
        Value::String(s.into())
    }

    #[test]
    fn times_need_a_unit_and_a_positive_sign() {
        for (written, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("1h 30m", 5_400_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(&text(written)), Ok(Duration::from_millis(millis)), "{written}");
        }
        for written in ["", "s", "30", "-30s", "30s ago", "30 parsecs", "9999999h", "99999999999999999999h"] {
            assert!(duration(&text(written)).is_err(), "{written}");
        }
        let bare = duration(&Value::Integer(Some(30))).unwrap_err();
        assert!(bare.contains("bare number 30") && bare.contains("\"30s\""), "{bare}");
        assert!(duration(&Value::Text("30".into())).unwrap_err().contains("unit"));
    }

    #[test]
    fn sizes_know_decimal_and_binary_units_apart() {
        for (written, bytes) in [
            ("10", 10),
            ("10B", 10),
            ("10KB", 10_000),
            ("10 KiB", 10_240),
            ("64MiB", 64 << 20),
            ("1gb", 1_000_000_000),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(size(&text(written)), Ok(bytes), "{written}");
        }
        assert_eq!(size(&Value::Integer(Some(7))), Ok(7));
        for written in ["", "MiB", "-1", "64M", "1.5GiB", "99999999999999999999", "99999999999TiB", "é"] {
            assert!(size(&text(written)).is_err(), "{written}");
        }
        assert!(size(&Value::Integer(Some(-1))).is_err());
        assert!(size(&Value::Float(1.5)).unwrap_err().contains("found a float"));
    }

    #[test]
    fn counts_fit_their_type() {
        assert_eq!(count::<u32>(&Value::Text("7".into())), Ok(7));
        assert!(count::<u32>(&Value::Integer(Some(1 << 40))).is_err());
        assert!(count::<u32>(&Value::Integer(Some(-1))).is_err());
        assert!(count::<u32>(&Value::Integer(None)).is_err());
        assert!(count::<u32>(&text("7")).unwrap_err().contains("found a string"));
    }

    #[test]
    fn shares_are_finite() {
        assert_eq!(fraction(&Value::Integer(Some(1))), Ok(1.0));
        assert_eq!(fraction(&Value::Text("0.5".into())), Ok(0.5));
        assert!(fraction(&Value::Float(f64::NAN)).is_err());
        assert!(fraction(&Value::Text("1e999".into())).is_err());
    }

    #[test]
    fn a_url_that_holds_a_password_is_refused_without_it() {
        for url_text in ["http://me:SECRET@model/v1", "ftp://me:SECRET@model", "http://me:SECRET @model"] {
            assert!(!url(&text(url_text)).unwrap_err().contains("SECRET"));
        }
        assert!(url(&text("http://model/v1 ")).is_ok());
    }

    #[test]
    fn lists_and_names_are_tables_in_the_file_and_text_in_a_variable() {
        let list = |items: Vec<Value>| strings(&Value::List(items));
        assert_eq!(list(vec![text("a"), text("b,c")]), Ok(vec!["a".to_owned(), "b,c".to_owned()]));
        assert_eq!(list(vec![]), Ok(vec![]));
        assert_eq!(
            list(vec![Value::Boolean(true)]),
            Err("in the list: expected a string, found a boolean".into())
        );
        assert_eq!(strings(&Value::Text(" a, b ".into())), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(strings(&Value::Text(" ".into())), Ok(vec![]));
        assert_eq!(
            strings(&Value::Text("a,,b".into())).unwrap().len(),
            3,
            "an empty name is told, not dropped"
        );
        assert!(strings(&text("a")).is_err());
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
        };
        assert_eq!(names(&Value::Map(vec![("a".into(), text("b"))])), Ok(map(&[("a", "b")])));
        assert_eq!(names(&Value::Text("a = b, c=d=e".into())), Ok(map(&[("a", "b"), ("c", "d=e")])));
        assert_eq!(names(&Value::Text(String::new())), Ok(map(&[])));
        for wrong in ["a", "a=b,a=c", "a=b,,"] {
            assert!(names(&Value::Text(wrong.into())).is_err(), "{wrong}");
        }
        let of = names(&Value::Map(vec![("a".into(), Value::Integer(Some(1)))])).unwrap_err();
        assert_eq!(of, "of \"a\": expected a string, found an integer");
        assert!(names(&Value::List(vec![])).unwrap_err().ends_with("found an array"));
    }

    #[test]
    fn a_quoted_value_is_escaped_and_cut() {
        assert_eq!(quoted("a\u{1b}[2J"), "\"a\\u{1b}[2J\"");
        assert!(quoted(&"ä".repeat(10_000)).chars().count() < 70);
    }
}
