//! Points in time as logs write them.

use jiff::civil::DateTime;
use jiff::fmt::strtime;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp};

use super::SECOND;

/// Rows are from between 1970 and 2200: within what nanoseconds in an `i64` can say, with room to spare.
pub(super) const LATEST: i64 = 7_258_118_400 * SECOND;

/// `2023-11-16 18:15:46.6805900`, `2024-05-10T00:00:00.009930+00:00`, `…Z`: without an offset it is UTC.
pub(super) fn iso(text: &str) -> Result<i64, String> {
    let at = text.parse::<Timestamp>().or_else(|e| match text.parse::<DateTime>() {
        Ok(civil) => Offset::UTC.to_timestamp(civil),
        Err(_) => Err(e),
    });
    at.map_err(|_| format!("{text:?} is no time like 2026-01-31 12:34:56")).and_then(nanos)
}

/// `31/Jan/2026:12:34:56 +0100`, the time of a combined log.
pub(super) fn combined(text: &str) -> Result<i64, String> {
    strtime::parse("%d/%b/%Y:%H:%M:%S %z", text)
        .and_then(|parts| parts.to_timestamp())
        .map_err(|_| format!("{text:?} is no time like 31/Jan/2026:12:34:56 +0100"))
        .and_then(nanos)
}

/// Seconds as a decimal number.
pub(super) fn seconds(text: &str) -> Result<i64, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.0..=(LATEST / SECOND) as f64).contains(s));
    let seconds = seconds.ok_or_else(|| format!("{text:?} is no time in seconds, 0 or later"))?;
    Ok((seconds * 1e9).round() as i64)
}

fn nanos(at: Timestamp) -> Result<i64, String> {
    let nanos = i64::try_from(at.as_nanosecond()).ok().filter(|nanos| (0..=LATEST).contains(nanos));
    nanos.ok_or_else(|| format!("{at} is not between 1970 and 2200"))
}

/// The calendar's time of a row.
pub(super) fn wall(nanos: i64) -> Option<Timestamp> {
    Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_nanos(nanos)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_every_kind_meet() {
        let want = 1_700_158_546_680_590_000;
        assert_eq!(iso("2023-11-16 18:15:46.6805900"), Ok(want));
        assert_eq!(iso("2023-11-16T18:15:46.68059Z"), Ok(want));
        assert_eq!(iso("2023-11-16 19:15:46.68059+01:00"), Ok(want));
        assert_eq!(combined("16/Nov/2023:19:15:46 +0100"), Ok(want / SECOND * SECOND));
        assert_eq!(seconds("1700158546.5"), Ok(1_700_158_546_500_000_000));
        assert_eq!(wall(want).map(|w| w.to_string()), Some("2023-11-16T18:15:46.68059Z".into()));
    }

    #[test]
    fn what_is_no_time_is_said() {
        for bad in ["", "NaN", "-1", "inf", "1e30", "soon"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        for bad in ["", "2023-13-01 00:00:00", "1969-12-31 23:59:59", "9999-01-01 00:00:00", "-009999-01-01"]
        {
            assert!(iso(bad).is_err(), "{bad}");
        }
        for bad in ["", "16/Nov/2023", "16/Foo/2023:19:15:46 +0100", "99/Nov/2023:19:15:46 +0100"] {
            assert!(combined(bad).is_err(), "{bad}");
        }
    }
}
