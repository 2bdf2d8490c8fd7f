//! What refusals reveal: a cap nobody announced.
//!
//! Only where `levels` finds that it was too many; one alone never is. One second lowers S by a tenth under what was in
//! flight, and to half at most, however many are refused in it: a burst of refusals is one event. What was refused becomes
//! a ceiling, tried again after a minute, and, each time that try is refused, after two, four and at most sixteen: each
//! costs somebody a refusal.

use std::time::Duration;

use crate::policy::supply::concurrency::levels::{Levels, Shows};
use crate::policy::units::MonoTime;

#[derive(Clone, Debug, Default)]
pub(super) struct Refusals {
    /// S at the beginning of a second with refusals.
    before: Option<f64>,
    ceiling: Option<Ceiling>,
    /// A level of this second that may have been too much.
    doubt: Option<f64>,
    levels: Levels,
}

#[derive(Clone, Copy, Debug)]
struct Ceiling {
    at: f64,
    until: MonoTime,
    patience: Duration,
}

const BACKOFF: f64 = 0.9;
const PATIENCE: Duration = Duration::from_secs(60);
const MOST_PATIENCE: Duration = Duration::from_secs(960);

impl Refusals {
    pub(super) fn taken(&mut self, level: u32) {
        self.levels.taken(level);
    }

    /// One that left with `level` in flight, itself included, was refused under a limit of `s`. Says what S should be if
    /// that was too much.
    pub(super) fn refused(&mut self, now: MonoTime, s: f64, level: u32) -> Option<f64> {
        let level = level.max(1);
        // fewer cannot be sent
        if level == 1 {
            return None;
        }
        match self.levels.refused(now, level) {
            Shows::Cap => {}
            Shows::News => {
                self.ceiling = None;
                return None;
            }
            Shows::Doubt => {
                self.doubt = Some(f64::from(level));
                return None;
            }
            Shows::Nothing => return None,
        }
        let level = f64::from(level);
        let before = *self.before.get_or_insert(s.min(level));
        let at = (level - 1.0).max(1.0);
        let near = |c: &Ceiling| c.at <= at * 1.25;
        self.ceiling = Some(match self.ceiling {
            // no try was made since: a lower bound on what was known
            Some(c) if now < c.until => Ceiling { at: c.at.min(at), ..c },
            Some(c) if near(&c) => {
                let patience = (c.patience * 2).min(MOST_PATIENCE);
                Ceiling { at: c.at.max(at), until: now + patience, patience }
            }
            _ => Ceiling { at, until: now + PATIENCE, patience: PATIENCE },
        });
        Some(s.min((BACKOFF * s.min(level)).max(before / 2.0)))
    }

    pub(super) fn tick(&mut self) {
        (self.before, self.doubt) = (None, None);
    }

    /// The most that S may grow to now.
    pub(super) fn ceiling(&self, now: MonoTime) -> f64 {
        let ceiling = self.ceiling.filter(|c| now < c.until).map_or(f64::INFINITY, |c| c.at);
        self.doubt.map_or(ceiling, |level| ceiling.min(level))
    }
}
