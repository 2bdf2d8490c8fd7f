//! Some upstreams refuse a share of everything, whatever they are sent: a gateway that counts per user of ours, one
//! sick replica of many, a shedder that draws lots. To send less, or nothing for a while, is then only less.
//!
//! From one refusal to the next `n` are accepted in `t` seconds, a stop among them; what is sent falls from each to the
//! next. Where a rate L is the limit, n / t is L for as long as more than L is sent: what comes back in a stop is
//! taken after it. Once less is sent, n grows without end. Where a share is refused, n stays what it was, and
//! n / t falls with what is sent. So, of the last eight refusals, the newer four against the older four:
//! ```text
//! unrelated  ⇔  0.7 n ≤ n' ≤ 2.5 n,   t' ≥ 1.3 t,   n' / t' ≤ 0.6 · n / t,   n ≥ 1      (medians)
//! ```
//! It holds until far more is refused, three times the share, or nothing for ten minutes.
//!
//! Without it one refusal in twenty takes a rate from 75 a second to 2. Called by `guess` only.

use crate::policy::units::MonoTime;

const HALF: usize = 4;
/// A limit that falls takes n with it, one that is found raises it.
const SAME: [f64; 2] = [0.7, 2.5];
const LONGER: f64 = 1.3;
const FELL: f64 = 0.6;
/// Weight of one answer in the share that is refused; shares below `LITTLE` count as that.
const RECENT: f64 = 1.0 / 64.0;
const LITTLE: f64 = 0.02;
const FAR_MORE: f64 = 3.0;
const QUIET: f64 = 600.0;
/// A share that is rare: the third in a row is none. It takes so many answers to tell.
const RARE: f64 = 0.03;
const ENOUGH: u32 = 64;

/// What was accepted between two refusals, and in how many seconds.
#[derive(Clone, Copy, Debug, Default)]
struct Cycle {
    accepted: f64,
    seconds: f64,
}

/// Medians: accepted, seconds, and one per the other.
fn medians(of: &[Cycle]) -> [f64; 3] {
    let by = |what: fn(&Cycle) -> f64| {
        let mut values: Vec<f64> = of.iter().map(what).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.iter().skip((HALF - 1) / 2).take(2 - HALF % 2);
        middle.sum::<f64>() / (2 - HALF % 2) as f64
    };
    [by(|c| c.accepted), by(|c| c.seconds), by(|c| c.accepted / c.seconds.max(1e-3))]
}

#[derive(Clone, Debug)]
pub(super) struct Unrelated {
    /// The last cycles, the oldest first.
    cycles: Vec<Cycle>,
    accepted: f64,
    began: MonoTime,
    /// Share refused of the last answers, and how many were seen.
    share: f64,
    seen: u32,
    /// Of it: refusals that named no time.
    bare: f64,
    /// The share above which it was the rate after all; `None` while the rate is what is blamed.
    until: Option<f64>,
    last: MonoTime,
}

impl Unrelated {
    pub(super) const fn new(now: MonoTime) -> Self {
        Self {
            cycles: Vec::new(),
            accepted: 0.0,
            began: now,
            share: 0.0,
            seen: 0,
            bare: 0.0,
            until: None,
            last: now,
        }
    }

    pub(super) fn accepted(&mut self) {
        self.accepted += 1.0;
        self.seen = self.seen.saturating_add(1);
        self.share -= RECENT * self.share;
        self.bare -= RECENT * self.bare;
    }

    /// One was refused; `hinted`: until a time that was named.
    pub(super) fn refused(&mut self, now: MonoTime, hinted: bool) {
        self.share += RECENT * (1.0 - self.share);
        self.bare += RECENT * (f64::from(u8::from(!hinted)) - self.bare);
        if now.since(self.last).as_secs_f64() > QUIET {
            *self = self.anew(now);
        }
        self.last = now;
        if self.until.is_some_and(|most| self.share > most) {
            *self = self.anew(now);
        }
    }

    /// What is known of shares stays.
    fn anew(&self, now: MonoTime) -> Self {
        Self { share: self.share, seen: self.seen, bare: self.bare, ..Self::new(now) }
    }

    /// Share of the last answers that was refused, at a refusal: half of that one is the next cycle's.
    pub(super) const fn share(&self) -> f64 {
        self.share - RECENT / 2.0
    }

    /// Of many answers this refusal, which named no time, is one of hardly any. Those that did have explained themselves.
    pub(super) fn is_rare(&self) -> bool {
        self.seen >= ENOUGH && self.bare - RECENT / 2.0 <= RARE
    }

    /// Something was accepted since the last refusal that was blamed on the rate.
    pub(super) const fn anything_accepted(&self) -> bool {
        self.accepted > 0.0
    }

    /// Refusals have nothing to do with the rate.
    pub(super) const fn is_so(&self) -> bool {
        self.until.is_some()
    }

    /// A refusal would now lower the rate. Says whether it turns out to have nothing to do with it.
    pub(super) fn blames(&mut self, now: MonoTime) -> bool {
        let seconds = now.since(self.began).as_secs_f64();
        self.cycles.push(Cycle { accepted: self.accepted, seconds });
        (self.accepted, self.began) = (0.0, now);
        if self.cycles.len() > 2 * HALF {
            self.cycles.remove(0);
        }
        let Some((old, new)) = self.cycles.split_at_checked(HALF).filter(|(_, new)| new.len() == HALF) else {
            return false;
        };
        let ([n, t, d], [n_new, t_new, d_new]) = (medians(old), medians(new));
        let found = n >= 1.0
            && n_new >= SAME[0] * n
            && n_new <= SAME[1] * n
            && t_new >= LONGER * t
            && d_new <= FELL * d;
        if found {
            self.until = Some((FAR_MORE * self.share.max(1.0 / (1.0 + n_new)).max(LITTLE)).min(0.9));
            self.cycles.clear();
        }
        found
    }
}
