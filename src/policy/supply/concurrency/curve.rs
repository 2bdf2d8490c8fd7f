//! The speed of one request against the number that run beside it, and the knee that follows from it.
//!
//! ```text
//! y(n)  tokens per second of one request among n, learnt per 12 % of n, never rising in n (isotonic regression)
//! T(n)  = n · y(n)                              what the whole server makes
//! knee  = the least n with T(n) ≥ 0.85 max T
//! cap   = min(1.6 · knee + 1, the last n before T falls under 0.9 max T)
//! ```
//! Where the server itself says how many wait inside, only the last n before T falls under 0.75 max T counts.
//!
//! T is what Little's law says of the responses' own times, so it has none of the noise of the
//! arrivals or of the lengths. A bound on the time per token alone would be wrong on servers that batch: there it
//! grows with n by design while T still rises. Somewhat beyond the knee the server's speed is shared and
//! nothing is lost; further on, waiting in the proxy's queue is as quick, and can still be reordered, refused or diverted.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::policy::units::MonoTime;

/// What was learnt about one band of n.
#[derive(Clone, Copy, Debug)]
struct Band {
    ln_n: f64,
    ln_y: f64,
    weight: f64,
    at: MonoTime,
}

/// y(n) of one kind of response.
#[derive(Clone, Debug, Default)]
pub(super) struct Curve {
    bands: BTreeMap<u16, Band>,
    /// Mean of what the last observations differed from what was known, as a logarithm.
    surprise: f64,
    told: f64,
    spread: Spread,
}

/// By how much observations differ from what is known of their band.
#[derive(Clone, Copy, Debug)]
struct Spread {
    mean_square: f64,
    seen: f64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { mean_square: UNSEEN, seen: 1.0 }
    }
}

impl Spread {
    fn observe(&mut self, off: f64, weight: f64) {
        self.seen = (self.seen + weight).min(SPREAD);
        self.mean_square += (off * off - self.mean_square) * weight / self.seen;
    }

    /// Weight from which a band's mean is sure enough: a few answers whose speeds differ by half say nothing of a knee.
    fn enough(&self) -> f64 {
        (self.mean_square / (SURE * SURE)).clamp(BELIEVED, MOST - 1.0)
    }
}

/// What follows from a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Knee {
    /// The least n that makes nearly all.
    pub(super) at: f64,
    /// Fewer were seen to make less: it is not merely the least n seen.
    pub(super) bracketed: bool,
    /// The largest limit that makes sense.
    pub(super) cap: f64,
    /// The last before the server makes so much less that a moment in which the machine was slower hardly explains it.
    pub(super) collapse: f64,
    /// The least n known.
    pub(super) least: f64,
    /// The largest.
    pub(super) seen: f64,
}

/// `ln 1.12`.
const WIDTH: f64 = 0.113_33;
const FRESH: Duration = Duration::from_secs(300);
/// What is known of more than there are now is tried again sooner: a server can have become larger.
const FRESH_ABOVE: Duration = Duration::from_secs(90);
/// Weight from which a band is believed, at least.
const BELIEVED: f64 = 2.0;
/// The standard error of a band's `ln y` from which it is believed, the spread before anything is seen, and over
/// how many observations it is taken.
const SURE: f64 = 0.1;
const UNSEEN: f64 = 0.25;
const SPREAD: f64 = 50.0;
const MOST: f64 = 50.0;
/// What is known moves slowly enough for a change to be noticed before it is learnt.
const INERT: f64 = 8.0;
/// One observation moves a band by no more than this factor (as a logarithm): a client that reads slowly is no load.
const CLIP: f64 = 0.7;
const SURPRISE: f64 = 0.1;
const CHANGED: f64 = 0.25;
const NEARLY_ALL: f64 = 0.85;
const FALLEN: f64 = 0.9;
const COLLAPSED: f64 = 0.75;
const DEPTH: f64 = 1.6;

impl Curve {
    /// A response ran at `speed` (anything per second) while `n` were running. Says whether the server is not
    /// the one that was known: `Some(true)` if it is quicker.
    pub(super) fn observe(&mut self, now: MonoTime, n: f64, speed: f64, weight: f64) -> Option<bool> {
        let (ln_n, ln_y) = (n.max(1.0).ln(), speed.ln());
        if !(ln_n.is_finite() && ln_y.is_finite() && weight > 0.0) {
            return None;
        }
        let key = (ln_n / WIDTH).round().clamp(0.0, 999.0) as u16;
        let weight = weight.min(1.0);
        let Some(band) = self.bands.get_mut(&key).filter(|b| now.since(b.at) <= FRESH) else {
            self.bands.insert(key, Band { ln_n, ln_y, weight, at: now });
            return None;
        };
        let off = (ln_y - band.ln_y).clamp(-CLIP, CLIP);
        let known = band.weight >= BELIEVED;
        self.spread.observe(off, weight);
        band.weight = (band.weight + weight).min(MOST);
        let step = weight / if known { band.weight.max(INERT) } else { band.weight };
        band.ln_y += off * step;
        band.ln_n += (ln_n - band.ln_n) * step;
        band.at = now;
        if !known {
            return None;
        }
        self.told = (self.told + weight).min(1e6);
        self.surprise += (off - self.surprise) * weight * SURPRISE;
        if self.told < 8.0 || self.surprise.abs() < CHANGED {
            return None;
        }
        let quicker = self.surprise > 0.0;
        *self = Self { spread: self.spread, ..Self::default() };
        self.bands.insert(key, Band { ln_n, ln_y, weight, at: now });
        Some(quicker)
    }

    /// Tokens per second at the largest and at the least n known.
    pub(super) fn speeds(&self, now: MonoTime) -> Option<(f64, f64)> {
        let points = self.isotonic(now);
        Some((points.last()?.1.exp(), points.first()?.1.exp()))
    }

    pub(super) fn knee(&self, now: MonoTime) -> Option<Knee> {
        let points = self.isotonic(now);
        let total = |p: &(f64, f64)| p.0 + p.1;
        let most = points.iter().map(total).fold(f64::NEG_INFINITY, f64::max);
        let (first, last) = (*points.first()?, *points.last()?);
        let enough = most + NEARLY_ALL.ln();
        let knee = match points.iter().position(|p| total(p) >= enough)? {
            0 => first.0,
            i => crossing(points[i - 1], points[i], enough),
        };
        let last_with = |share: f64| {
            let level = most + share.ln();
            let i = points.iter().rposition(|p| total(p) >= level)?;
            Some(points.get(i + 1).map_or(f64::INFINITY, |next| crossing(points[i], *next, level).exp()))
        };
        let (edge, collapse) = (last_with(FALLEN)?, last_with(COLLAPSED)?);
        let knee = knee.exp();
        let cap = (DEPTH * knee + 1.0).min(edge);
        let bracketed = total(&first) < enough || first.0 < 0.2;
        Some(Knee { at: knee, bracketed, cap, collapse, least: first.0.exp(), seen: last.0.exp() })
    }

    /// The believed bands as `(ln n, ln y)`, by pool-adjacent-violators made to fall.
    fn isotonic(&self, now: MonoTime) -> Vec<(f64, f64)> {
        let mut pools: Vec<(f64, f64, usize)> = Vec::new();
        let enough = self.spread.enough();
        let fresh = |b: &&Band, limit| b.weight >= enough && now.since(b.at) <= limit;
        let recent = self.bands.values().filter(|b| fresh(b, FRESH_ABOVE)).map(|b| b.ln_n);
        let highest = recent.fold(f64::NEG_INFINITY, f64::max);
        let believed: Vec<_> = self
            .bands
            .values()
            .filter(|b| fresh(b, FRESH) && (b.ln_n <= highest || highest.is_infinite()))
            .collect();
        for band in &believed {
            let mut pool = (band.ln_y, band.weight, 1);
            while let Some(&(y, weight, count)) = pools.last()
                && y < pool.0
            {
                pools.pop();
                let sum = weight + pool.1;
                pool = ((y * weight + pool.0 * pool.1) / sum, sum, count + pool.2);
            }
            pools.push(pool);
        }
        let fitted = pools.iter().flat_map(|(y, _, count)| std::iter::repeat_n(*y, *count));
        let mut points: Vec<_> = believed.iter().map(|b| b.ln_n).zip(fitted).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }
}

/// Where `ln n + ln y` passes `level` between two points.
fn crossing(a: (f64, f64), b: (f64, f64), level: f64) -> f64 {
    let (low, high) = (a.0 + a.1, b.0 + b.1);
    let share = if (high - low).abs() > 1e-9 { (level - low) / (high - low) } else { 1.0 };
    a.0 + (b.0 - a.0) * share.clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::SplitMix64;

    /// The reference batch server's speed.
    fn shared(n: f64, slots: f64) -> f64 {
        let beyond = ((n - 2.0 * slots) / (2.0 * slots)).clamp(0.0, 1.0);
        50.0 * (slots / n).min(1.0) * (1.0 - 0.6 * beyond)
    }

    fn learnt(range: std::ops::Range<u32>, y: impl Fn(f64) -> f64) -> Curve {
        let mut curve = Curve::default();
        for n in range {
            (0..12).for_each(|_| {
                assert_eq!(curve.observe(MonoTime::ZERO, f64::from(n), y(f64::from(n)), 1.0), None);
            });
        }
        curve
    }

    #[test]
    fn the_knee_of_the_reference_server() {
        let knee = learnt(5..60, |n| shared(n, 32.0)).knee(MonoTime::ZERO).unwrap();
        assert!(
            knee.bracketed && (25.0..30.0).contains(&knee.at) && (42.0..48.0).contains(&knee.cap),
            "{knee:?}"
        );
        // linear so far: no cap below what was seen
        let knee = learnt(5..30, |n| shared(n, 32.0)).knee(MonoTime::ZERO).unwrap();
        assert!(knee.cap > 1.3 * knee.seen, "{knee:?}");
        // only a flat part seen: the knee is not known
        let knee = learnt(40..60, |n| shared(n, 32.0)).knee(MonoTime::ZERO).unwrap();
        assert!(!knee.bracketed, "{knee:?}");
    }

    #[test]
    fn a_server_that_collapses_early_is_kept_from_it() {
        let y = |n: f64| if n <= 20.0 { 50.0 } else { 50.0 * (20.0 / n).powi(4) };
        let knee = learnt(3..30, y).knee(MonoTime::ZERO).unwrap();
        assert!((17.0..24.0).contains(&knee.cap), "{knee:?}");
    }

    #[test]
    fn a_batching_server_may_slow_each_one_down() {
        // y = 50 / (1 + n / 8): each is slowed down 9 times at n = 64, and the server makes 2.7 times what it makes at 4
        let knee = learnt(1..65, |n| 50.0 / (1.0 + n / 8.0)).knee(MonoTime::ZERO).unwrap();
        assert!((24.0..60.0).contains(&knee.cap), "{knee:?}");
    }

    #[test]
    fn another_server_is_noticed_and_the_old_one_forgotten() {
        let mut curve = learnt(5..60, |n| shared(n, 32.0));
        let said: Vec<_> = (0..40)
            .filter_map(|_| curve.observe(MonoTime::from_secs(9), 56.0, shared(56.0, 64.0), 1.0))
            .collect();
        assert_eq!(said, vec![true]);
        assert!(curve.knee(MonoTime::from_secs(9)).is_some_and(|k| !k.bracketed));
    }

    #[test]
    fn a_few_answers_whose_speeds_differ_make_no_knee() {
        // any number at once, each at its own speed: embeddings of one word and of a book
        let speed = |chance: &mut SplitMix64| chance.lognormal(50.0, 0.9);
        for seed in 0..200 {
            let (mut chance, mut curve) = (SplitMix64::new(seed), Curve::default());
            for i in 0..600_u64 {
                // one at a time, now and then more
                let n = 1.0 + if i % 8 == 0 { chance.next_u64() % 6 } else { 0 } as f64;
                curve.observe(MonoTime::from_secs(i / 8), n, speed(&mut chance), 1.0);
                let cap = curve.knee(MonoTime::from_secs(i / 8)).map_or(f64::INFINITY, |k| k.cap);
                assert!(cap > 2.0, "{seed} {i} {cap}");
            }
        }
    }

    #[test]
    fn nonsense_is_not_learnt() {
        let mut curve = Curve::default();
        for n in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300] {
            for y in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300, 1e300] {
                for w in [0.0, f64::NAN, 1.0] {
                    (0..20).for_each(|_| {
                        curve.observe(MonoTime::MAX, n, y, w);
                    });
                    if let Some(k) = curve.knee(MonoTime::MAX) {
                        assert!(k.at.is_finite() && !k.cap.is_nan(), "{n} {y} {w} {k:?}");
                    }
                }
            }
        }
    }
}
