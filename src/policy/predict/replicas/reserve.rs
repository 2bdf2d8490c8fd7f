//! Capacity kept for bursts that came unannounced, and may again.
//!
//! A burst shorter than the start-up of a replica is over before the replica that it asked for serves. Where such
//! bursts come again and nothing says when, the choice is between people who wait and replicas that do. After
//! the second burst in which people waited, the level of the highest is kept ready until none has come for four
//! times their mean distance. One surprise changes nothing, and what a season announces is no surprise.

use std::collections::VecDeque;
use std::time::Duration;

use crate::policy::units::MonoTime;

/// Bursts remembered.
const KEEP: usize = 6;
/// What lasts longer is no burst: capacity that is asked for when it begins will serve it.
const LONGEST: Duration = Duration::from_secs(300);
/// Bursts further apart than this are not worth waiting for.
const FURTHEST: Duration = Duration::from_secs(3_600);
/// Mean distances without a burst after which no more is expected.
const PATIENCE: f64 = 4.0;

#[derive(Clone, Copy, Debug)]
struct Burst {
    began: MonoTime,
    level: u32,
}

/// The memory of bursts.
#[derive(Clone, Debug, Default)]
pub(super) struct Reserve {
    bursts: VecDeque<Burst>,
    /// The one that is under way.
    open: Option<Burst>,
    /// When a season took the lead.
    led_since: Option<MonoTime>,
}

impl Reserve {
    /// Replicas to keep ready, given those that demand needs now, whether people wait for want of them, and
    /// whether a season leads.
    pub(super) fn keep(&mut self, now: MonoTime, need: u32, waiting: bool, leads: bool) -> u32 {
        self.led_since = if leads { self.led_since.or(Some(now)) } else { None };
        let level = self.level(now);
        match &mut self.open {
            Some(burst) => {
                burst.level = burst.level.max(need);
                if now.since(burst.began) > LONGEST {
                    self.open = None;
                } else if need * 3 <= burst.level * 2 && !waiting {
                    self.bursts.push_back(*burst);
                    self.open = None;
                }
            }
            None if waiting || (level > 0 && need * 5 >= level * 4) => {
                self.open = Some(Burst { began: now, level: need });
            }
            None => {}
        }
        if self.bursts.len() > KEEP {
            self.bursts.pop_front();
        }
        level
    }

    fn level(&self, now: MonoTime) -> u32 {
        let since = self.led_since.unwrap_or(MonoTime::ZERO);
        let counted = || self.bursts.iter().filter(move |b| b.began >= since);
        let (Some(first), Some(last)) = (counted().next(), counted().next_back()) else { return 0 };
        let gaps = counted().count().saturating_sub(1) as u32;
        if gaps == 0 {
            return 0;
        }
        let gap = last.began.since(first.began) / gaps;
        let expected = gap <= FURTHEST && now.since(last.began) <= gap.mul_f64(PATIENCE);
        if expected { counted().map(|b| b.level).max().unwrap_or(0) } else { 0 }
    }
}
