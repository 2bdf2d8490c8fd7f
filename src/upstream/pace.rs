//! How fast connections may be opened ahead of need, after what became of the last ones.
//!
//! Nobody waits for such a connection, so trouble costs only what we do to an upstream that is down or
//! that does not want idle connections: no storm. One attempt at first, twice as many at a time with each
//! success, one again after a failure, and pauses that double. A connection that comes up and is closed
//! again while it is young counts as a failure too, from the second time on, and then the next one has to
//! outlive that age before more follow.

use std::time::Duration;

use crate::policy::units::MonoTime;

/// Handshakes of one worker at a time.
const MAX_AT_ONCE: usize = 16;
/// The first pause, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// An unused connection that its upstream closes before this age was made in vain.
pub(super) const YOUNG: Duration = Duration::from_secs(5);

/// A change that an operator should read about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// From now on it does not work.
    Trouble,
    /// From now on it works again.
    Over,
}

/// One worker's pace with one upstream.
#[derive(Debug)]
pub(super) struct Pace {
    at_once: usize,
    not_before: MonoTime,
    /// Failures in a row, those within one pause counted once.
    failures: u32,
    /// Times in a row that connections were lost young.
    losses: u32,
    /// When the connection was made that has to outlive [`YOUNG`], after such a loss.
    trial: Option<MonoTime>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { at_once: 1, not_before: MonoTime::ZERO, failures: 0, losses: 0, trial: None }
    }
}

impl Pace {
    /// How many more may be opened now, beside the `opening` that are in the making.
    pub(super) fn room(&self, now: MonoTime, opening: usize) -> usize {
        let on_trial = self.losses > 1 && self.trial.is_some();
        if now < self.not_before || on_trial { 0 } else { self.at_once.saturating_sub(opening) }
    }

    /// One has come up.
    pub(super) fn opened(&mut self, now: MonoTime) -> Option<Turn> {
        if self.losses > 0 {
            self.trial.get_or_insert(now);
        }
        if self.losses > 1 {
            return None;
        }
        self.at_once = (self.at_once * 2).min(MAX_AT_ONCE);
        let over = self.failures > 0;
        self.failures = 0;
        over.then_some(Turn::Over)
    }

    /// One has not.
    pub(super) fn failed(&mut self, now: MonoTime) -> Option<Turn> {
        if now < self.not_before {
            // it was begun together with the one that has been counted
            return None;
        }
        self.failures = self.failures.saturating_add(1);
        self.pause(now, self.failures);
        (self.failures == 1 && self.losses < 2).then_some(Turn::Trouble)
    }

    /// A look at what became of them, each second: `lost` were closed by the upstream, young and unused.
    pub(super) fn look(&mut self, now: MonoTime, lost: u32) -> Option<Turn> {
        if lost > 0 {
            self.losses = self.losses.saturating_add(1);
            self.trial = None;
            if self.losses > 1 {
                self.pause(now, self.losses - 1);
            }
            return (self.losses == 2 && self.failures == 0).then_some(Turn::Trouble);
        }
        if self.trial.is_some_and(|made| now.since(made) >= YOUNG) {
            let over = self.losses > 1;
            *self = Self { at_once: self.at_once, not_before: self.not_before, ..Self::default() };
            return over.then_some(Turn::Over);
        }
        None
    }

    fn pause(&mut self, now: MonoTime, times: u32) {
        let (first, longest) = PAUSES;
        self.at_once = 1;
        self.not_before = now + first.saturating_mul(1 << (times - 1).min(10)).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(secs: u64) -> MonoTime {
        MonoTime::from_secs(secs)
    }

    #[test]
    fn it_starts_with_one_and_doubles() {
        let mut pace = Pace::default();
        let mut rooms = Vec::new();
        for _ in 0..6 {
            rooms.push(pace.room(s(0), 0));
            assert_eq!(pace.opened(s(0)), None);
        }
        assert_eq!(rooms, [1, 2, 4, 8, 16, 16]);
        assert_eq!((pace.room(s(0), 10), pace.room(s(0), 20)), (6, 0));
    }

    #[test]
    fn an_upstream_that_is_down_is_tried_once_a_pause_and_pauses_grow() {
        let mut pace = Pace::default();
        let (mut attempts, mut turns) = (Vec::new(), 0);
        for now in 0..180 {
            if pace.room(s(now), 0) > 0 {
                attempts.push(now);
                turns += usize::from(pace.failed(s(now)) == Some(Turn::Trouble));
            }
        }
        assert_eq!(attempts, [0, 1, 3, 7, 15, 31, 61, 91, 121, 151]);
        assert_eq!(turns, 1, "one line in the log");
        assert_eq!(pace.opened(s(181)), Some(Turn::Over));
        assert_eq!(pace.room(s(181), 0), 2);
        assert_eq!(pace.opened(s(181)), None);
    }

    #[test]
    fn failures_of_one_batch_count_once() {
        let mut pace = Pace::default();
        for _ in 0..5 {
            pace.opened(s(0));
        }
        let turns: Vec<_> = (0..16).filter_map(|_| pace.failed(s(1))).collect();
        assert_eq!(turns, [Turn::Trouble]);
        assert_eq!((pace.room(s(1), 0), pace.room(s(2), 0)), (0, 1));
    }

    #[test]
    fn a_connection_that_dies_young_is_replaced_and_a_habit_of_it_is_not_fed() {
        let mut pace = Pace::default();
        for _ in 0..5 {
            pace.opened(s(0));
        }
        assert_eq!(pace.look(s(1), 1), None);
        assert_eq!(pace.room(s(1), 0), 16, "once may be chance");
        let (mut attempts, mut turns, mut young) = (Vec::new(), 0, 0);
        for now in 2..120 {
            turns += usize::from(pace.look(s(now), std::mem::take(&mut young)) == Some(Turn::Trouble));
            for _ in 0..pace.room(s(now), 0) {
                attempts.push(now);
                pace.opened(s(now));
                young += 1;
            }
        }
        let later: Vec<_> = attempts.iter().filter(|at| **at > 2).copied().collect();
        assert_eq!(later, [4, 7, 12, 21, 38, 69, 100]);
        assert_eq!(turns, 1);
        // the next one lives
        assert_eq!(pace.room(s(200), 0), 1);
        pace.opened(s(200));
        assert_eq!((pace.room(s(204), 0), pace.look(s(204), 0)), (0, None));
        assert_eq!((pace.look(s(205), 0), pace.room(s(205), 0)), (Some(Turn::Over), 1));
    }

    #[test]
    fn one_loss_long_ago_does_not_count() {
        let mut pace = Pace::default();
        pace.opened(s(0));
        assert_eq!(pace.look(s(1), 1), None);
        pace.opened(s(1));
        assert_eq!(pace.look(s(6), 0), None);
        assert_eq!(pace.look(s(60), 1), None);
        assert!(pace.room(s(60), 0) > 0);
    }
}
