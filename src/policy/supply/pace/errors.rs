//! By how much charges are off, and what has to stay in the bucket for that.
//!
//! ```text
//! reserve(amount) = 9 · √(shortfall²(size of amount) + Σ shortfall²(charges whose truth is not known yet))
//! excess          = charges under way · mean(charged − used)
//! ```
//! A large request's estimate is off by more than a small one's, so the shortfall is kept by size. The excess is
//! what settling will bring back: until then it is missing from a bucket that only knows the charges.
//!
//! Without the reserve every tenth request at the limit would be refused for what it turned out to be. Called by
//! `lane` only.

/// So many times what charges usually fall short (root mean square). Lengths have long tails: with 3 one in fifty
/// was refused, with 9 one in four hundred.
const SHORT: f64 = 9.0;
/// Sizes by powers of two.
const CLASSES: usize = 24;
/// Weight of the newest truth in its own size, and in every other: a rare size is thought to be like the others.
const NEWEST: f64 = 0.02;
const ELSEWHERE: f64 = 0.001;
/// Beyond that a number of tokens is none.
const MOST: f64 = 1e9;

/// What is known of the charges' errors.
#[derive(Clone, Debug, Default)]
pub(super) struct Errors {
    /// Mean square of what charges fell short of the truth, by size.
    shortfall: [f64; CLASSES],
    /// What charges are too much by, in the mean.
    excess: f64,
    /// Charges under way.
    open: u32,
    /// Mean square errors of those under way that nobody has told the truth of.
    unsure: f64,
}

fn class(amount: f64) -> usize {
    (amount.clamp(1.0, MOST) as u64).ilog2().min(CLASSES as u32 - 1) as usize
}

impl Errors {
    /// `amount` goes: how unsure that is, for [`Errors::told`] and [`Errors::over`].
    pub(super) fn charged(&mut self, amount: f64) -> f64 {
        let unsure = self.shortfall[class(amount)];
        self.open = self.open.saturating_add(1);
        self.unsure += unsure;
        unsure
    }

    /// The upstream's own figure has this charge in it.
    pub(super) fn told(&mut self, unsure: &mut f64) {
        self.unsure = (self.unsure - std::mem::take(unsure)).max(0.0);
    }

    /// A charge is over, however it ended.
    pub(super) fn over(&mut self, unsure: &mut f64) {
        self.told(unsure);
        self.open = self.open.saturating_sub(1);
        if self.open == 0 {
            self.unsure = 0.0;
        }
    }

    /// The truth of a charge.
    pub(super) fn settled(&mut self, charged: f64, used: f64) {
        let off = (charged - used).clamp(-MOST, MOST);
        self.excess += NEWEST * (off - self.excess);
        let (own, square) = (class(charged), off.min(0.0).powi(2));
        for (size, known) in self.shortfall.iter_mut().enumerate() {
            *known += if size == own { NEWEST } else { ELSEWHERE } * (square - *known);
        }
    }

    /// What stays behind `amount`.
    pub(super) fn reserve(&self, amount: f64) -> f64 {
        SHORT * (self.unsure + self.shortfall[class(amount)]).sqrt()
    }

    /// What the charges under way will probably bring back.
    pub(super) fn excess(&self) -> f64 {
        f64::from(self.open) * self.excess
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_has_its_own_reserve() {
        let mut errors = Errors::default();
        for _ in 0..500 {
            errors.settled(100.0, 110.0);
            errors.settled(10_000.0, 11_000.0);
        }
        let (small, large) = (errors.reserve(100.0), errors.reserve(10_000.0));
        assert!((85.0..large / 4.0).contains(&small), "{small}");
        assert!((8500.0..9100.0).contains(&large), "{large}");
        // what is charged too high needs none
        let mut errors = Errors::default();
        (0..500).for_each(|_| errors.settled(1000.0, 800.0));
        assert_eq!(errors.reserve(1000.0), 0.0);
    }

    #[test]
    fn what_is_under_way_counts_until_it_is_told() {
        let mut errors = Errors::default();
        (0..500).for_each(|_| errors.settled(1000.0, 1100.0));
        let alone = errors.reserve(1000.0);
        let mut one = errors.charged(1000.0);
        let mut other = errors.charged(1000.0);
        assert!((errors.reserve(1000.0) / alone - 3.0_f64.sqrt()).abs() < 1e-9);
        assert!((errors.excess() + 200.0).abs() < 1.0, "they are charged too little: {}", errors.excess());
        errors.told(&mut one);
        errors.told(&mut one);
        assert!((errors.reserve(1000.0) / alone - 2.0_f64.sqrt()).abs() < 1e-9);
        errors.over(&mut one);
        errors.over(&mut other);
        assert_eq!((errors.reserve(1000.0), errors.excess()), (alone, 0.0));
    }
}
