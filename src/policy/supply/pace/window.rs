//! For how long a limit is sold: a minute, an hour or a day. No header says so; the resets give it away.
//!
//! ```text
//! longer     three answers in a row whose reset is more than 5 times as far as the window is long
//! shorter    none of them for 7.5 times the shorter window
//! ```
//! The factor of five is for clocks that differ, and costs nothing: the windows are 24 and 60 times apart. In the last
//! five minutes of an hour its resets look like a minute's, so it takes longer than those to believe that. One header
//! that lies changes nothing; were it believed, a limit per minute would be paced as one per day until the next restart.
//!
//! Called by `learned` and `lane` only.

use std::time::Duration;

use crate::policy::units::MonoTime;

/// What limits are sold for, in seconds, the usual one first.
const SOLD: [f64; 3] = [60.0, 3600.0, 86_400.0];
const FARTHER: f64 = 5.0;
const IN_A_ROW: u32 = 3;
const QUIET: f64 = 1.5;

#[derive(Clone, Copy, Debug, Default)]
struct Beyond {
    last: MonoTime,
    row: u32,
}

/// The window of one limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    seconds: f64,
    /// Resets that were too far for each of [`SOLD`].
    beyond: [Beyond; SOLD.len()],
}

impl Default for Window {
    fn default() -> Self {
        Self { seconds: SOLD[0], beyond: Default::default() }
    }
}

impl Window {
    /// An answer said that all of it is there again at `reset`, or named the window itself.
    pub(super) fn told(&mut self, now: MonoTime, reset: Option<MonoTime>, named: Option<Duration>) {
        if let Some(named) = named {
            self.seconds = named.as_secs_f64();
            return;
        }
        let Some(reset) = reset else { return };
        let left = reset.since(now).as_secs_f64();
        for (beyond, sold) in self.beyond.iter_mut().zip(SOLD) {
            if left > sold * FARTHER {
                *beyond = Beyond { last: now, row: beyond.row.saturating_add(1) };
            } else {
                beyond.row = 0;
            }
        }
        let fits = |(beyond, sold): (&Beyond, f64)| {
            let quiet = now.since(beyond.last).as_secs_f64() > QUIET * FARTHER * sold;
            if sold < self.seconds { quiet } else { beyond.row < IN_A_ROW }
        };
        let mut each = self.beyond.iter().zip(SOLD);
        self.seconds = each.find(|w| fits(*w)).map_or(SOLD[SOLD.len() - 1], |(_, sold)| sold);
    }

    /// How long it is.
    pub(super) const fn seconds(&self) -> f64 {
        self.seconds
    }

    /// It is a minute, as what is configured.
    pub(super) fn is_minute(&self) -> bool {
        self.seconds == SOLD[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> MonoTime {
        MonoTime::from_secs(10_000 + secs)
    }

    fn told(w: &mut Window, now: u64, left: u64) -> f64 {
        w.told(at(now), Some(at(now + left)), None);
        w.seconds()
    }

    #[test]
    fn an_hour_is_an_hour_to_its_last_second() {
        let mut w = Window::default();
        assert_eq!([0, 1, 2].map(|n| told(&mut w, n, 3600 - n)), [60.0, 60.0, 3600.0]);
        for now in 3..20_000 {
            assert_eq!(told(&mut w, now, 3600 - now % 3600), 3600.0, "after {now} s");
        }
        // and a day a day
        let mut w = Window::default();
        for now in (0..300_000).step_by(20) {
            let said = told(&mut w, now, 86_400 - now % 86_400);
            assert!(said == 86_400.0 || now < 60, "{said} after {now} s");
        }
    }

    #[test]
    fn a_lie_is_not_believed_and_many_are_forgotten() {
        let mut w = Window::default();
        for now in 0..1000 {
            let left = if now % 3 == 0 { 86_400 } else { 30 };
            assert_eq!(told(&mut w, now, left), 60.0);
        }
        (1000..1010).for_each(|now| {
            told(&mut w, now, 86_400);
        });
        assert_eq!(w.seconds(), 86_400.0);
        let after = (1010..3000).find(|now| told(&mut w, *now, 30) == 60.0).unwrap();
        assert!(after < 1500, "{after}");
        // a clock that is a minute off is no hour
        (3000..3100).for_each(|now| assert_eq!(told(&mut w, now, 115), 60.0));
    }

    #[test]
    fn a_window_that_is_named_is_that_one() {
        let mut w = Window::default();
        w.told(at(0), Some(at(1)), Some(Duration::from_secs(1)));
        assert_eq!(w.seconds(), 1.0);
    }
}
