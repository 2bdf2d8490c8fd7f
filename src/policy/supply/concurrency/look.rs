//! S is moved on purpose for some seconds, to learn what nothing else tells.
//!
//! - Lower, where the knee is merely the least n that was seen: fewer may make as much.
//! - Higher, where first tokens are late and it is not known why. Those that wait for each other wait longer the more they
//!   are: each one more waits as a whole (Little's law). What is late for another reason stays as late, and of
//!   each one more counts only the share of its stay. Nearer to the second, standard error included: the lateness is
//!   usual from now on, and S stays. Else S goes back to what ran, and the next trial comes twice as late.
//!
//! The second loses nothing: what waits inside the server would have waited in front of it.

use std::time::Duration;

use crate::policy::supply::concurrency::curve::Knee;
use crate::policy::supply::concurrency::wait::Inside;
use crate::policy::supply::concurrency::{Cause, Concurrency};
use crate::policy::units::MonoTime;

/// S is lowered to look below.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) from: f64,
    until: MonoTime,
}

const LOOK: f64 = 0.7;
const LOOK_FOR: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// S is raised to tell a wait from how things are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trial {
    now: Option<Raised>,
    next: MonoTime,
    /// How long none came after the last one.
    pause: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Raised {
    from: f64,
    before: Inside,
    until: MonoTime,
}

const TRIAL: f64 = 1.25;
const TRIAL_LEAST: f64 = 2.0;
const TRIAL_FOR: Duration = Duration::from_secs(20);
const PAUSES: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(600)];
/// First tokens by which two limits are compared, at least and in any case.
const COMPARED: [f64; 2] = [12.0, 128.0];

impl Trial {
    /// The limit before, while it is raised.
    pub(super) fn from(&self) -> Option<f64> {
        self.now.map(|raised| raised.from)
    }

    pub(super) fn end(&mut self) {
        self.now = None;
    }
}

/// Whether the mean is sure enough for a difference of so many.
fn tells(inside: &Inside, more: f64) -> bool {
    inside.heads >= COMPARED[1] || (inside.heads >= COMPARED[0].max(inside.n) && inside.noise <= more / 4.0)
}

impl Concurrency {
    /// Raises S, as far as `cap`, if it is time to and enough is known of how things are without.
    pub(super) fn start_trial(&mut self, now: MonoTime, cap: f64) {
        let before = self.wait.steady();
        let to =
            (self.s * TRIAL).max(self.s + TRIAL_LEAST).min(cap).min(self.max).min(self.refusals.ceiling(now));
        if now < self.trial.next || to < self.s + 1.0 || !tells(&before, to - self.s) {
            return;
        }
        self.trial.now = Some(Raised { from: self.s, before, until: now + TRIAL_FOR });
        (self.s, self.cause) = (to, Some(Cause::Look));
        self.wait.renew(now);
    }

    /// Whether S is raised, still.
    pub(super) fn trying(&mut self, now: MonoTime) -> bool {
        let Some(Raised { from, before, until }) = self.trial.now else { return false };
        let after = self.wait.steady();
        if now < until && !tells(&after, after.n - before.n) {
            return true;
        }
        self.trial.now = None;
        let (more, waits) = (after.n - before.n, (after.waiting - before.waiting).max(0.0));
        let told = after.heads >= COMPARED[0] && more >= (self.s - from).max(1.0) / 2.0;
        // of each one more: all of it if it waits for the others, this share if it is late for another reason
        let late = (before.waiting / before.n.max(1.0)).min(1.0);
        if told && waits + before.noise.hypot(after.noise) <= more * (1.0 + late) / 2.0 {
            self.wait.accept(&after);
            self.trial = Trial::default();
        } else {
            // of those it was raised by, some may run
            let runs = if told { (more - waits).max(0.0) } else { 0.0 };
            self.trial.pause = (self.trial.pause * 2).clamp(PAUSES[0], PAUSES[1]);
            self.trial.next = now + self.trial.pause;
            self.shrink(now, from + runs, Cause::Look);
        }
        true
    }

    /// Is the knee only the least n that was seen, and is it worth to look below it?
    pub(super) fn wants_look(&self, now: MonoTime, knee: &Knee, waiting: bool) -> bool {
        // before the first congestion one step up may show that more make more
        let untried = self.slow_start && knee.seen < 1.3 * knee.least;
        waiting && !knee.bracketed && !untried && self.s >= 2.0 && now >= self.next_look
    }

    pub(super) fn start_look(&mut self, now: MonoTime, least: f64) {
        self.look = Some(Look { from: self.s, until: now + LOOK_FOR });
        self.slow_start = false;
        self.shrink(now, self.s.min(least) * LOOK, Cause::Look);
    }

    pub(super) fn looking(&mut self, now: MonoTime, look: Look, knee: Option<Knee>) {
        let seen_here = knee.filter(|k| k.least <= self.s / LOOK * 0.85);
        match seen_here {
            Some(knee) if !knee.bracketed && self.s >= 2.0 => {
                self.look = Some(Look { until: now + LOOK_FOR, ..look });
                self.shrink(now, self.s * LOOK, Cause::Look);
            }
            Some(knee) => self.end_look(now, look.from.min(knee.cap)),
            // what was admitted before has to leave first
            None if f64::from(self.peak) > self.s + 1.0 => {
                self.look = Some(Look { until: now + LOOK_FOR, ..look });
            }
            None if now >= look.until => self.end_look(now, look.from),
            None => {}
        }
    }

    fn end_look(&mut self, now: MonoTime, to: f64) {
        self.look = None;
        self.next_look = now + LOOK_EVERY;
        self.s = to.clamp(1.0, self.max);
        self.cause = Some(Cause::Look);
        self.wait.renew(now);
    }
}
