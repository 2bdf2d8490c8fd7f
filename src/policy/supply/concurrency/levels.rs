//! Is it too many that is refused, or is it just refused?
//!
//! A cap of C refuses what is sent when C are in flight, and nothing else. A gateway's bad moment, one sick replica of many
//! or a shedder that draws lots refuse at any level, and no limit would help. So of the last answers it is kept at
//! what level each request left (those in flight, itself included), and whether it was refused. A refusal at level n
//! shows no cap if
//! - it is one of two at most of all that left at n or above, and of the last 64 two at most were refused, or most that left
//!   at as many as the last three did were taken: a cap refuses again, and not at any level; or
//! - of all that left at n or above at most one in twenty was refused, or no more than chance makes of the share below
//!   n: those above a cap are refused nearly always; or
//! - since the oldest refusal still known ten were taken half as far again above n, and at most 3 in 10 refused there.
//!
//! That share is then what this upstream refuses at any level, and nothing shows a cap until it is two and a half times
//! that.
//!
//! Without it one 503 in a hundred takes a limit from 64 to 1 within half a minute. Called by `refusals` only.

use std::collections::VecDeque;

use crate::policy::units::MonoTime;

/// Answers that are remembered.
const KEPT: usize = 256;
/// Share that is refused for no reason of ours.
const RARE: f64 = 0.05;
/// So few that are refused, of the last 64 and at a level and above, may be chance: a cap refuses again.
const FEW: usize = 2;
const RECENT: usize = 64;
const FAR_ABOVE: f64 = 1.5;
const TAKEN: usize = 10;
const ANYHOW: f64 = 0.3;
const FAR_MORE: f64 = 2.5;
/// Answers that tell a share.
const ENOUGH: usize = 20;
/// Below a level so many refused of so many are assumed beside those that are known.
const A_LITTLE: f64 = 0.1;
const DOUBT: f64 = 50.0;
/// What is refused there is not for what lies at a level.
const WELL_ABOVE: f64 = 1.25;
/// Chance is not blamed for more than its mean and so many standard deviations (of a Poisson variable).
const SIGMAS: f64 = 4.0;
/// Answers as many as which a known share counts for, where few are known at a level.
const PRIOR: f64 = 40.0;
/// A share that was not seen for so long is forgotten.
const QUIET_SECONDS: f64 = 600.0;

/// What a refusal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shows {
    /// It was too many.
    Cap,
    /// That it may have been too many.
    Doubt,
    /// A share is refused at any level: what was taken for caps until now was none.
    News,
    /// That, once more.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    level: u32,
    refused: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Levels {
    /// The oldest first.
    answers: VecDeque<Answer>,
    /// The share that is refused at any level, once that is known.
    anyhow: Option<f64>,
    last: MonoTime,
}

/// How many, and how many of them were refused.
fn count<'a>(answers: impl Iterator<Item = &'a Answer>, at_least: f64) -> (usize, usize) {
    answers
        .filter(|a| f64::from(a.level) >= at_least)
        .fold((0, 0), |(all, refused), a| (all + 1, refused + usize::from(a.refused)))
}

fn share((all, refused): (usize, usize)) -> f64 {
    refused as f64 / all.max(1) as f64
}

impl Levels {
    fn push(&mut self, level: u32, refused: bool) {
        if self.answers.len() == KEPT {
            self.answers.pop_front();
        }
        self.answers.push_back(Answer { level, refused });
    }

    pub(super) fn taken(&mut self, level: u32) {
        self.push(level, false);
    }

    /// One that left at `level` was refused: what does that show?
    pub(super) fn refused(&mut self, now: MonoTime, level: u32) -> Shows {
        if now.since(self.last).as_secs_f64() > QUIET_SECONDS {
            self.anyhow = None;
        }
        self.last = now;
        self.push(level, true);
        let at = count(self.answers.iter(), f64::from(level));
        let (few, again) = (at.1 <= FEW, self.again());
        let found = if self.tolerated(at, f64::from(level)) && !(few && again) {
            self.anyhow.or_else(|| (at.0 >= ENOUGH).then(|| share(at)))
        } else if few && !again {
            return Shows::Doubt;
        } else {
            if at.1 > FEW && share(at) > ANYHOW {
                self.anyhow = None;
            }
            let since = self.answers.iter().skip_while(|a| !a.refused);
            let above = count(since, (FAR_ABOVE * f64::from(level)).max(f64::from(level) + 2.0));
            if above.0 - above.1 < TAKEN || share(above) > ANYHOW {
                return Shows::Cap;
            }
            Some(share(above))
        };
        let news = self.anyhow.is_none();
        self.anyhow = found.or(self.anyhow);
        if news { Shows::News } else { Shows::Nothing }
    }

    /// More than a few were refused of late, and of all that left at the least of their levels or above as many as a cap
    /// refuses. Where it is chance, most were taken there.
    fn again(&self) -> bool {
        let late = self.answers.iter().rev().take(RECENT);
        let refused: Vec<u32> = late.filter(|a| a.refused).take(FEW + 1).map(|a| a.level).collect();
        let least = refused.iter().min().filter(|_| refused.len() > FEW);
        least.is_some_and(|least| share(count(self.answers.iter(), f64::from(*least))) > ANYHOW)
    }

    /// So many refused are no more than usual.
    fn tolerated(&self, (all, refused): (usize, usize), level: f64) -> bool {
        let (all, refused) = (all as f64, refused as f64);
        let well_below = self.answers.iter().filter(|a| WELL_ABOVE * f64::from(a.level) <= level);
        let (below, of_below) = count(well_below, 0.0);
        let chance = all * (of_below as f64 + A_LITTLE) / (below as f64 + DOUBT);
        (refused > FEW as f64 && refused <= chance + SIGMAS * chance.sqrt() + 1.0)
            || match self.anyhow {
                None => refused <= RARE * all,
                Some(usual) => refused + PRIOR * usual <= (FAR_MORE * usual).max(RARE) * (all + PRIOR),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: MonoTime = MonoTime::from_secs(1);

    #[test]
    fn what_is_refused_above_a_level_and_never_below_is_a_cap() {
        let mut levels = Levels::default();
        for _ in 0..20 {
            (1..=50).for_each(|n| levels.taken(n));
            let shown: Vec<Shows> = (51..=60).map(|n| levels.refused(T, n)).collect();
            assert!(shown[2..].iter().all(|s| *s == Shows::Cap), "{shown:?}");
        }
        // a look above it, with everything else taken for long
        (0..1000).for_each(|n| levels.taken(40 + n % 11));
        // two may be chance
        assert_eq!([51; 3].map(|n| levels.refused(T, n)), [Shows::Doubt, Shows::Doubt, Shows::Cap]);
    }

    #[test]
    fn chance_at_the_highest_level_so_far_is_no_cap() {
        // one in 60 is refused, and each hundred seconds all go here for two: the few that are highest are refused as often
        let (mut caps, mut lot) = (0, 1_u64);
        let mut levels = Levels::default();
        for n in 0..200_000_u32 {
            lot = lot.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let level = if n % 7500 < 300 { 25 + n % 13 } else { 5 + n.wrapping_mul(2_654_435_761) % 15 };
            if (lot >> 33).is_multiple_of(60) {
                caps += u32::from(levels.refused(T, level) == Shows::Cap);
            } else {
                levels.taken(level);
            }
        }
        assert!(caps <= 5, "{caps} of some 3,300");
    }

    #[test]
    fn a_cap_that_falls_is_seen_after_a_few() {
        let mut levels = Levels::default();
        (0..1000).for_each(|_| levels.taken(100));
        let wrong = (0..100).filter(|_| levels.refused(T, 100) != Shows::Cap).count();
        assert!(wrong <= 15, "{wrong}");
        assert!((41..100).rev().all(|n| levels.refused(T, n) == Shows::Cap));
    }

    #[test]
    fn what_is_refused_at_any_level_is_none() {
        for every in [100, 20, 8] {
            let (mut levels, mut caps) = (Levels::default(), 0);
            for n in 0..10_000_u32 {
                // levels between 20 and 60
                let level = 20 + n.wrapping_mul(2_654_435_761) % 41;
                if n % every == every - 1 {
                    caps += u32::from(levels.refused(T, level) == Shows::Cap);
                } else {
                    levels.taken(level);
                }
            }
            assert!(caps <= 50, "one in {every}: {caps}");
        }
    }
}
