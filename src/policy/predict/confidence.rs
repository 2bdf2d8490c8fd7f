//! How sure one must be to act: a threshold that moves with what its decisions led to.

use crate::policy::predict::Direction;
use crate::policy::units::MonoTime;

use std::time::Duration;

/// The probability above which a decision is acted on.
///
/// Lower after an interval in which requests waited too long (to act late was the mistake), higher after a
/// flap (to act early was), and slowly back to what was configured.
#[derive(Clone, Debug)]
pub(super) struct Threshold {
    rest: f64,
    now: f64,
    last: Option<(MonoTime, Direction)>,
}

const LEAST: f64 = 0.6;
const MOST: f64 = 0.97;
/// A step up or down, and the share of the way back to rest at each decision.
const STEP: f64 = 0.05;
const BACK: f64 = 0.1;

impl Threshold {
    pub(super) fn new(rest: f64) -> Self {
        Self { rest, now: rest, last: None }
    }

    pub(super) fn get(&self) -> f64 {
        self.now
    }

    /// What the interval before this decision was like: somebody waited for too long.
    pub(super) fn lived(&mut self, waited_too_long: bool) {
        self.now += BACK * (self.rest - self.now);
        if waited_too_long {
            self.now -= STEP;
        }
        self.bound();
    }

    /// A decision moved the permits. A move back within two `cooldown`s is a flap.
    pub(super) fn moved(&mut self, at: MonoTime, direction: Direction, cooldown: Duration) {
        if let Some((before, last)) = self.last
            && last != direction
            && at.since(before) <= cooldown * 2
        {
            self.now += STEP;
        }
        self.last = Some((at, direction));
        self.bound();
    }

    fn bound(&mut self) {
        self.now = self.now.clamp(LEAST.min(self.rest), MOST.max(self.rest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_lowers_it_flapping_raises_it_and_peace_brings_it_back() {
        let mut t = Threshold::new(0.85);
        let cooldown = Duration::from_secs(30);
        (0..100).for_each(|_| t.lived(true));
        assert_eq!(t.get(), LEAST);
        (0..100).for_each(|_| t.lived(false));
        assert!((t.get() - 0.85).abs() < 1e-3);
        t.moved(MonoTime::from_secs(100), Direction::Up, cooldown);
        t.moved(MonoTime::from_secs(130), Direction::Down, cooldown);
        assert!(t.get() > 0.89, "a flap");
        t.moved(MonoTime::from_secs(1300), Direction::Up, cooldown);
        assert!(t.get() < 0.91, "no flap: {}", t.get());
    }
}
