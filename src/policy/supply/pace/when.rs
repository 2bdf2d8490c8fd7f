//! "When?" in every spelling that limit headers use, as seconds from now.
//!
//! | form | example | sent by |
//! |---|---|---|
//! | Go duration | `1s` `6m0s` `120ms` `1h2m3.5s` | OpenAI, Groq |
//! | seconds | `2` `1.5` | `retry-after`, Azure, the IETF draft |
//! | Unix time, seconds or milliseconds | `1722556800` `1722556800000` | OpenRouter and most plain `x-ratelimit-reset` |
//! | RFC 3339 | `2026-02-18T22:00:00Z` | Anthropic |
//! | HTTP date, all three forms of RFC 9110 §5.6.7 | `Sun, 06 Nov 1994 08:49:37 GMT` | `retry-after` |
//!
//! Without it a reset would be waited out wrongly by a factor of a thousand, or for ever. Called by `headers` only.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::Offset;

use super::headers::{Fault, Faults};

/// What a header says to be further away than this is not believed at all: a day, in seconds.
pub(super) const LONGEST: f64 = 86_400.0;
/// A plain number from here on is Unix time in seconds (2001), from the second on in milliseconds.
const EPOCH_SECONDS: f64 = 1e9;
const EPOCH_MILLIS: f64 = 1e11;
const EPOCH_END: f64 = 1e14;
/// A moment this far in the past is no fault: clocks differ, and whole seconds are cut off.
const SKEW: f64 = 2.0;

/// A plain decimal number, `12` or `1.5`: no sign, no exponent, no `inf`, no `nan`.
pub(super) fn number(text: &str) -> Option<f64> {
    let mut dots = 0;
    for b in text.bytes() {
        match b {
            b'0'..=b'9' => {}
            b'.' if dots == 0 => dots = 1,
            _ => return None,
        }
    }
    // "." alone and "" do not parse
    text.parse().ok().filter(|n: &f64| n.is_finite())
}

/// Seconds from now until what `text` says, in `[0, LONGEST]`.
pub(super) fn seconds_until(text: &str, unix_now: f64, faults: &mut Faults) -> Option<f64> {
    if text.starts_with('-') {
        faults.add(Fault::Negative);
        return None;
    }
    if let Some(n) = number(text) {
        return match n {
            n if n < EPOCH_SECONDS => believed(n, faults),
            n if n < EPOCH_MILLIS => from_unix(n, unix_now, faults),
            n if n < EPOCH_END => from_unix(n / 1e3, unix_now, faults),
            _ => believed(n, faults),
        };
    }
    if let Some(n) = duration(text) {
        return believed(n, faults);
    }
    if let Some(at) = date(text) {
        return from_unix(at, unix_now, faults);
    }
    faults.add(Fault::Unreadable);
    None
}

/// A number of milliseconds, as `retry-after-ms` has it, in seconds.
pub(super) fn milliseconds(text: &str, faults: &mut Faults) -> Option<f64> {
    match number(text) {
        Some(n) => believed(n / 1e3, faults),
        None => {
            faults.add(if text.starts_with('-') { Fault::Negative } else { Fault::Unreadable });
            None
        }
    }
}

fn believed(seconds: f64, faults: &mut Faults) -> Option<f64> {
    if seconds > LONGEST {
        faults.add(Fault::TooLarge);
        return None;
    }
    Some(seconds.max(0.0))
}

fn from_unix(at: f64, unix_now: f64, faults: &mut Faults) -> Option<f64> {
    let left = at - unix_now;
    if !left.is_finite() {
        faults.add(Fault::Unreadable);
        return None;
    }
    if left < -SKEW {
        faults.add(Fault::Past);
    }
    believed(left.max(0.0), faults)
}

/// Go's `time.Duration`: numbers with units, one after the other.
fn duration(text: &str) -> Option<f64> {
    let mut rest = text;
    let mut sum = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount = number(rest.get(..digits)?)?;
        rest = rest.get(digits..)?;
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match rest.get(..end)? {
            "d" => 86_400.0,
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = rest.get(end..)?;
        sum += amount * unit;
    }
    Some(sum)
}

/// Unix seconds of an RFC 3339 or an HTTP date.
fn date(text: &str) -> Option<f64> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at.as_millisecond() as f64 / 1e3);
    }
    const FORMS: [&str; 3] =
        ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    FORMS.iter().find_map(|form| {
        let at = Offset::UTC.to_timestamp(DateTime::strptime(form, text).ok()?).ok()?;
        Some(at.as_second() as f64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: f64 = 1_771_452_000.0; // 2026-02-18T22:00:00Z

    fn read(text: &str) -> Option<f64> {
        seconds_until(text, NOW, &mut Faults::default())
    }

    fn fault(text: &str) -> Vec<Fault> {
        let mut faults = Faults::default();
        seconds_until(text, NOW, &mut faults);
        faults.iter().collect()
    }

    #[test]
    fn every_form_is_understood() {
        let near = |text: &str, expected: f64| {
            let got = read(text).unwrap_or(f64::NAN);
            assert!((got - expected).abs() < 1e-3, "{text}: {got}, not {expected}");
        };
        for (text, expected) in [
            ("1s", 1.0),
            ("6m0s", 360.0),
            ("120ms", 0.12),
            ("7.66s", 7.66),
            ("2m59.56s", 179.56),
            ("1h2m3.5s", 3723.5),
            ("1d", 86_400.0),
            ("20us", 0.0),
            ("0", 0.0),
            ("2", 2.0),
            ("1.5", 1.5),
            ("1771452030", 30.0),
            ("1771452030.25", 30.25),
            ("1771452030500", 30.5),
            ("2026-02-18T22:05:00Z", 300.0),
            ("2026-02-18T23:05:00.250+01:00", 300.25),
            ("Wed, 18 Feb 2026 22:00:07 GMT", 7.0),
            ("Wednesday, 18-Feb-26 22:00:07 GMT", 7.0),
            ("Wed Feb 18 22:00:07 2026", 7.0),
        ] {
            near(text, expected);
            assert_eq!(fault(text), [], "{text}");
        }
    }

    #[test]
    fn lies_are_clamped_or_ignored_and_named() {
        for (text, value, what) in [
            ("-1", None, Fault::Negative),
            ("-5s", None, Fault::Negative),
            ("NaN", None, Fault::Unreadable),
            ("inf", None, Fault::Unreadable),
            ("1e3", None, Fault::Unreadable),
            ("", None, Fault::Unreadable),
            (".", None, Fault::Unreadable),
            ("soon", None, Fault::Unreadable),
            ("5 s", None, Fault::Unreadable),
            ("999999999", None, Fault::TooLarge),
            ("99999999999999999999999", None, Fault::TooLarge),
            ("90000h", None, Fault::TooLarge),
            ("2999-01-01T00:00:00Z", None, Fault::TooLarge),
            ("2001-01-01T00:00:00Z", Some(0.0), Fault::Past),
            ("1700000000", Some(0.0), Fault::Past),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0.0), Fault::Past),
        ] {
            assert_eq!(read(text), value, "{text}");
            assert_eq!(fault(text), [what], "{text}");
        }
        // a second cut off is no lie
        assert_eq!((read("2026-02-18T21:59:59Z"), fault("2026-02-18T21:59:59Z")), (Some(0.0), vec![]));
        assert_eq!(seconds_until("1771452030", f64::NAN, &mut Faults::default()), None);
    }
}
