//! What the server's own metrics said last, and what follows from it.

use std::time::Duration;

use crate::policy::supply::ServerLoad;
use crate::policy::supply::concurrency::wait::allowance;
use crate::policy::units::MonoTime;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Server {
    /// When it said how many wait.
    said: Option<MonoTime>,
    /// When it said that nothing waits.
    calm: Option<MonoTime>,
    /// When it said that its cache is nearly full: one more could push another out.
    full: Option<MonoTime>,
    /// Reads in a row with something waiting.
    waiting: u32,
}

const FRESH: Duration = Duration::from_secs(30);
const NEARLY_FULL: f64 = 0.9;

impl Server {
    /// Takes note of one read. Says what S should be at most, if something waits for the second time.
    pub(super) fn read(&mut self, now: MonoTime, load: ServerLoad, in_flight: u32, s: f64) -> Option<f64> {
        self.full = load.kv_use.is_some_and(|share| share >= NEARLY_FULL).then_some(now);
        let waiting = load.waiting?;
        self.said = Some(now);
        if waiting < 1.0 {
            (self.calm, self.waiting) = (Some(now), 0);
            return None;
        }
        self.calm = None;
        self.waiting = self.waiting.saturating_add(1);
        let in_flight = f64::from(in_flight);
        // what was sent under the limit before is not held against this one
        if self.waiting < 2 || in_flight > s + 0.5 {
            return None;
        }
        // others may send to it too: the share of one's own that runs is everyone's
        let running = load.running?;
        let with_some_waiting = |running: f64| running + allowance(running);
        let own = with_some_waiting(running / (running + waiting) * in_flight);
        // what waits for others alone says only that no more than all that runs can run; and not even that where one's own
        // are more than the page tells of, which is then one replica's of several
        let to = if own < in_flight - 0.5 { own } else { own.max(with_some_waiting(running)) };
        (to < s - 0.5).then(|| {
            self.waiting = 0;
            to
        })
    }

    /// Nothing waits inside, it says.
    pub(super) fn calm(&self, now: MonoTime) -> bool {
        self.calm.is_some_and(|at| now.since(at) <= FRESH)
    }

    /// It says what it does with what it is sent. How many it runs at once is then its operator's choice, even if
    /// more of them make no more tokens.
    pub(super) fn speaks(&self, now: MonoTime) -> bool {
        self.said.is_some_and(|at| now.since(at) <= FRESH)
    }

    pub(super) fn full(&self, now: MonoTime) -> bool {
        self.full.is_some_and(|at| now.since(at) <= FRESH)
    }
}
