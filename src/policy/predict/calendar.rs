//! What the operator knows and no history can: windows in which demand will be different, and what an hour
//! of the day is like before anything has been seen.
//!
//! ```text
//! demand(t) = max(forecast(t) · factor, floor)        inside a window, seen from `horizon` ahead
//! ```
//! A window begins where its cron pattern matches in its time zone and lasts for `duration` of real time. In the
//! hour that daylight saving skips it begins that much later; in the hour that comes twice it begins once, the
//! first time. Time-zone data is handed in.

use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use croner::Cron;
use jiff::Timestamp;
use jiff::civil;
use jiff::tz::TimeZone;

use crate::policy::units::{Invalid, checked};

/// One `[[predict.calendar]]` as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct WindowParams {
    /// When it begins: five fields (minute, hour, day, month, weekday).
    pub cron: String,
    /// How long it lasts.
    pub duration: Duration,
    /// What it multiplies the forecast by.
    pub factor: f64,
    /// The least demand to be ready for, requests per minute.
    pub floor_rpm: f64,
    /// The zone that the pattern is read in.
    pub zone: TimeZone,
}

/// A window whose pattern was understood.
#[derive(Clone, Debug)]
pub struct Window {
    params: WindowParams,
    cron: Cron,
}

impl PartialEq for Window {
    fn eq(&self, other: &Self) -> bool {
        self.params == other.params
    }
}

const LONGEST: Duration = Duration::from_secs(7 * 86_400);

impl WindowParams {
    /// Reads the pattern and checks the rest. The zone's rules are not asked for before.
    ///
    /// # Errors
    /// Every setting that makes no window.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut faults = Vec::new();
        let mut bad = |key, message: String| faults.push(Invalid::new(key, message));
        match pattern(&self.cron) {
            Err(message) => bad("cron", message),
            Ok(cron) if cron.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, true).is_err() => {
                bad("cron", "never comes".into());
            }
            Ok(_) => {}
        }
        if self.duration < Duration::from_secs(60) || self.duration > LONGEST {
            bad("duration", "must be between 1m and 7 days".into());
        }
        if !(self.factor > 0.0 && self.factor <= 100.0) {
            bad("factor", "must be above 0 and at most 100".into());
        }
        if !(0.0..=1e7).contains(&self.floor_rpm) {
            bad("floor_rpm", "must be between 0 and 10000000 requests per minute".into());
        }
        checked(self, faults)
    }
}

fn pattern(text: &str) -> Result<Cron, String> {
    if text.split_whitespace().count() != 5 {
        return Err("must have five fields: minute, hour, day of month, month, day of week".into());
    }
    Cron::from_str(text).map_err(|e| format!("is no cron pattern: {e}"))
}

/// What the calendar says about the next while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Foreseen {
    /// Multiplies the forecast.
    pub factor: f64,
    /// The least demand to be ready for, requests per minute.
    pub floor_rpm: f64,
}

/// All windows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calendar {
    windows: Vec<Window>,
}

impl Calendar {
    /// A calendar of windows that [`WindowParams::try_new`] accepted; others are left out.
    #[must_use]
    pub fn new(windows: Vec<WindowParams>) -> Self {
        let read = |params: WindowParams| Some(Window { cron: pattern(&params.cron).ok()?, params });
        Self { windows: windows.into_iter().filter_map(read).collect() }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// What holds between `unix` (seconds since 1970) and `horizon` later: the largest factor and the highest
    /// floor of the windows that touch that span.
    #[must_use]
    pub fn foreseen(&self, unix: i64, horizon: Duration) -> Foreseen {
        let touching = || self.windows.iter().filter(|w| w.touches(unix, horizon)).map(|w| &w.params);
        Foreseen {
            factor: touching().map(|w| w.factor).reduce(f64::max).unwrap_or(1.0),
            floor_rpm: touching().map(|w| w.floor_rpm).fold(0.0, f64::max),
        }
    }
}

impl Window {
    fn touches(&self, unix: i64, horizon: Duration) -> bool {
        let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
        let (until, lasts) = (unix.saturating_add(seconds(horizon)), seconds(self.params.duration));
        let Some(here) = Timestamp::from_second(unix).ok().and_then(|now| self.civil(now)) else {
            return false;
        };
        let before = self.cron.find_previous_occurrence(&here, true).ok();
        let after = self.cron.find_next_occurrence(&here, false).ok();
        before
            .into_iter()
            .chain(after)
            .filter_map(|begin| self.unix(&begin))
            .any(|begin| begin <= until && unix < begin.saturating_add(lasts))
    }

    /// What the clock on the wall shows there, as if it were UTC: the pattern knows no zones.
    fn civil(&self, at: Timestamp) -> Option<DateTime<Utc>> {
        let c = self.params.zone.to_datetime(at);
        let number = |n: i8| u32::try_from(n).ok();
        let date = NaiveDate::from_ymd_opt(c.year().into(), number(c.month())?, number(c.day())?)?;
        let time = date.and_hms_opt(number(c.hour())?, number(c.minute())?, number(c.second())?)?;
        Some(time.and_utc())
    }

    /// The moment at which the wall there shows `at`.
    fn unix(&self, at: &DateTime<Utc>) -> Option<i64> {
        // civil time has no zone, so seconds since 1970 as if in UTC say all of it
        let shown = TimeZone::UTC.to_datetime(Timestamp::from_second(at.timestamp()).ok()?);
        let shown: civil::DateTime = shown;
        self.params.zone.to_timestamp(shown).ok().map(Timestamp::as_second)
    }
}

/// Requests per minute by hour of the day, for as long as there is no history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Baseline {
    hours: Vec<(u8, u8, f64)>,
}

impl Baseline {
    /// Reads `"9-18: 200, 0-24: 20"`: from the hour, up to but not including the other; the first that fits counts.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let part = |part: &str| {
            let wrong =
                || format!("`{}`: write hours and requests per minute as in \"9-18: 200\"", part.trim());
            let (hours, rpm) = part.split_once(':').ok_or_else(wrong)?;
            let (from, to) = hours.split_once('-').ok_or_else(wrong)?;
            let hour = |text: &str| text.trim().parse::<u8>().ok().filter(|h| *h <= 24).ok_or_else(wrong);
            let rpm = rpm.trim().parse::<f64>().ok().filter(|n| (0.0..=1e7).contains(n)).ok_or_else(wrong)?;
            let (from, to) = (hour(from)?, hour(to)?);
            if from < to { Ok((from, to, rpm)) } else { Err(wrong()) }
        };
        let hours = text.split(',').filter(|p| !p.trim().is_empty()).map(part).collect::<Result<_, _>>()?;
        Ok(Self { hours })
    }

    /// What the hour is like; 0 where nothing is said.
    #[must_use]
    pub fn rpm(&self, hour: u8) -> f64 {
        self.hours.iter().find(|(from, to, _)| (*from..*to).contains(&hour)).map_or(0.0, |(_, _, rpm)| *rpm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(cron: &str, minutes: u64, zone: &str) -> WindowParams {
        WindowParams {
            cron: cron.into(),
            duration: Duration::from_secs(60 * minutes),
            factor: 3.0,
            floor_rpm: 500.0,
            zone: TimeZone::get(zone).unwrap(),
        }
    }

    fn unix(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    fn on(calendar: &Calendar, at: &str) -> bool {
        calendar.foreseen(unix(at), Duration::ZERO).factor == 3.0
    }

    #[test]
    fn a_window_is_seen_coming_and_ends() {
        let c = Calendar::new(vec![window("0 9 * * 1-5", 30, "Europe/Berlin")]);
        // a Monday; Berlin is two hours ahead of UTC in summer
        assert!(!on(&c, "2026-07-06T06:59:59Z") && on(&c, "2026-07-06T07:00:00Z"));
        assert!(on(&c, "2026-07-06T07:29:59Z") && !on(&c, "2026-07-06T07:30:00Z"));
        assert!(!on(&c, "2026-07-05T07:10:00Z"), "a Sunday");
        let ahead = c.foreseen(unix("2026-07-06T06:59:00Z"), Duration::from_secs(60));
        assert_eq!(ahead, Foreseen { factor: 3.0, floor_rpm: 500.0 });
        let nothing = c.foreseen(unix("2026-07-06T06:59:00Z"), Duration::from_secs(59));
        assert_eq!(nothing, Foreseen { factor: 1.0, floor_rpm: 0.0 });
    }

    #[test]
    fn the_hour_that_is_skipped_comes_later_and_the_one_that_comes_twice_once() {
        let c = Calendar::new(vec![window("30 2 * * *", 30, "Europe/Berlin")]);
        // 2026-03-29: 02:00 becomes 03:00 (01:00Z). 02:30 does not exist; it is 03:30, 01:30Z
        assert!(!on(&c, "2026-03-29T01:29:59Z") && on(&c, "2026-03-29T01:30:00Z"));
        assert!(on(&c, "2026-03-29T01:59:59Z") && !on(&c, "2026-03-29T02:00:00Z"));
        // 2026-10-25: 03:00 becomes 02:00 (01:00Z). 02:30 is 00:30Z and again 01:30Z
        assert!(on(&c, "2026-10-25T00:30:00Z") && !on(&c, "2026-10-25T01:00:00Z"));
        assert!(!on(&c, "2026-10-25T01:30:00Z"), "the second 02:30");
    }

    #[test]
    fn what_makes_no_window_is_named() {
        let faults =
            |w: WindowParams| w.try_new().err().unwrap_or_default().iter().map(|f| f.key).collect::<Vec<_>>();
        assert_eq!(faults(window("0 9 * * 1-5", 30, "UTC")), Vec::<&str>::new());
        assert_eq!(faults(window("0 9 * *", 30, "UTC")), ["cron"]);
        assert_eq!(faults(window("0 99 * * *", 30, "UTC")), ["cron"]);
        assert_eq!(faults(window("0 9 30 2 *", 30, "UTC")), ["cron"], "the 30th of February");
        let all = WindowParams { factor: f64::NAN, floor_rpm: -1.0, ..window("", 0, "UTC") };
        assert_eq!(faults(all), ["cron", "duration", "factor", "floor_rpm"]);
    }

    #[test]
    fn any_moment_at_all_is_taken() {
        let c = Calendar::new(vec![window("*/7 * * * *", 5, "America/New_York")]);
        for at in [i64::MIN, -1, 0, i64::MAX, 253_402_300_799] {
            let f = c.foreseen(at, Duration::MAX);
            assert!(f.factor.is_finite() && f.floor_rpm.is_finite());
        }
    }

    #[test]
    fn a_baseline_is_the_first_range_that_fits() {
        let b = Baseline::parse("9-18: 200, 0-24: 20").unwrap();
        assert_eq!((b.rpm(8), b.rpm(9), b.rpm(17), b.rpm(18)), (20.0, 200.0, 200.0, 20.0));
        assert_eq!(Baseline::parse("").unwrap().rpm(3), 0.0);
        for bad in ["9: 200", "9-18", "18-9: 1", "0-25: 1", "0-24: -1", "0-24: NaN"] {
            assert!(Baseline::parse(bad).is_err(), "{bad}");
        }
    }
}
