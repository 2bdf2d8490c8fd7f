//! A mean and a spread that follow what is seen, and that no single sight can carry off.

/// Exponentially weighted mean and variance with bounded influence.
///
/// ```text
/// w = max(1 / (n + trust), 1 / 32)     n = sights with this one, trust = sights that the prior mean is worth
/// v = max(1 / (n + 1), 1 / 32)         the prior spread is worth one: it is only there to bound the first steps
/// d = clip(x − mean, ± (4 sd + slack))
/// mean ← mean + w d          var ← var + v ((1 − w) d² − var)
/// ```
///
/// West's update (1979) with a forgetting factor; the clip is Huber's ψ. A change that lasts widens the spread by a
/// fifth with each sight, so that also a step of a thousand times the spread is followed within some forty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Learned {
    mean: f64,
    var: f64,
    seen: u32,
}

const FORGET: f64 = 1.0 / 32.0;
const CLIP: f64 = 4.0;
/// Far beyond anything that is counted, and its square is a number still.
const MOST: f64 = 1e15;

impl Learned {
    pub(super) const fn prior(mean: f64, sd: f64) -> Self {
        Self { mean, var: sd * sd, seen: 0 }
    }

    pub(super) const fn seen(&self) -> u32 {
        self.seen
    }

    pub(super) const fn mean(&self) -> f64 {
        self.mean
    }

    pub(super) fn sd(&self) -> f64 {
        self.var.max(0.0).sqrt()
    }

    /// Something was seen. What is not a number was not.
    pub(super) fn learn(&mut self, x: f64, trust: f64, slack: f64) {
        if !x.is_finite() {
            return;
        }
        let x = x.clamp(-MOST, MOST);
        let n = f64::from(self.seen) + 1.0;
        let w = (1.0 / (n + trust)).max(FORGET);
        let v = (1.0 / (n + 1.0)).max(FORGET);
        let most = CLIP * self.sd() + slack;
        let d = (x - self.mean).clamp(-most, most);
        self.mean += w * d;
        self.var += v * ((1.0 - w) * d * d - self.var);
        self.seen = self.seen.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_what_stays_and_shrugs_off_what_passes() {
        let mut l = Learned::prior(256.0, 256.0);
        for n in 0..200 {
            l.learn(if n % 2 == 0 { 90.0 } else { 110.0 }, 4.0, 1.0);
        }
        assert!((l.mean() - 100.0).abs() < 1.0 && (l.sd() - 10.0).abs() < 2.0, "{l:?}");
        l.learn(4e9, 4.0, 1.0);
        assert!(l.mean() < 103.0, "{l:?}");
        for _ in 0..100 {
            l.learn(10_000.0, 4.0, 1.0);
        }
        assert!((l.mean() - 10_000.0).abs() < 1000.0, "{l:?}");
    }

    #[test]
    fn stays_a_number() {
        let mut l = Learned::prior(0.0, 0.0);
        for x in [f64::NAN, f64::INFINITY, f64::MAX, f64::MIN, 0.0, f64::NEG_INFINITY] {
            for _ in 0..10_000 {
                l.learn(x, 0.0, 1.0);
            }
            assert!(l.mean().is_finite() && l.sd() >= 0.0, "{x}: {l:?}");
        }
    }
}
