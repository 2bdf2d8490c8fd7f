//! A sliding window of residuals that is always sorted, so that any quantile of it is one look-up.

use std::collections::VecDeque;

/// Residuals in the order of their arrival and of their size.
#[derive(Clone, Debug)]
pub(super) struct Window {
    arrived: VecDeque<f32>,
    sorted: Vec<f32>,
    keep: usize,
}

/// Quantiles of the standard normal distribution at (i + ½) / 12.
const NORMAL: [f32; 12] =
    [-1.732, -1.150, -0.812, -0.549, -0.319, -0.105, 0.105, 0.319, 0.549, 0.812, 1.150, 1.732];

impl Window {
    /// A window of `keep` residuals that begins as a normal distribution with deviation `spread`:
    /// what is believed before anything was seen.
    pub(super) fn new(keep: usize, spread: f32) -> Self {
        let prior = NORMAL.map(|z| z * spread);
        Self { arrived: prior.into_iter().collect(), sorted: prior.to_vec(), keep }
    }

    /// A window of `keep` that begins with a handful of `value`.
    pub(super) fn filled(keep: usize, value: f64) -> Self {
        let prior = [value as f32; NORMAL.len()];
        Self { arrived: prior.into_iter().collect(), sorted: prior.to_vec(), keep }
    }

    pub(super) fn push(&mut self, value: f64) {
        let value = value as f32;
        if !value.is_finite() {
            return;
        }
        if self.arrived.len() >= self.keep
            && let Some(old) = self.arrived.pop_front()
        {
            let at = self.sorted.partition_point(|v| *v < old);
            self.sorted.remove(at.min(self.sorted.len().saturating_sub(1)));
        }
        self.arrived.push_back(value);
        self.sorted.insert(self.sorted.partition_point(|v| *v < value), value);
    }

    /// The `p` quantile, between order statistics linearly (Hyndman & Fan 1996, type 6: unbiased in coverage,
    /// P(next ≤ q) = p). Beyond the extremes it goes on with the spacing of the last few.
    pub(super) fn quantile(&self, p: f64) -> f64 {
        let n = self.sorted.len();
        if n < 2 {
            return self.sorted.first().map_or(0.0, |v| f64::from(*v));
        }
        let at = p * (n as f64 + 1.0) - 1.0;
        let value = |i: usize| f64::from(self.sorted[i]);
        if at < 0.0 {
            return value(0) + at.max(-1.0) * (value((n / 20).max(1)) - value(0));
        }
        let last = n - 1;
        if at > last as f64 {
            return value(last) + (at - last as f64).min(1.0) * (value(last) - value(last - (n / 20).max(1)));
        }
        let (i, share) = (at.floor() as usize, at.fract());
        value(i) + share * (value((i + 1).min(last)) - value(i))
    }

    pub(super) fn bytes(&self) -> usize {
        (self.arrived.capacity() + self.sorted.capacity()) * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_sorted_and_forgets_the_oldest() {
        let mut w = Window::new(50, 1.0);
        for i in 0..500 {
            w.push(f64::from((i * 37) % 101));
        }
        w.push(f64::NAN);
        assert_eq!((w.sorted.len(), w.arrived.len()), (50, 50));
        assert!(w.sorted.is_sorted());
        let mut last: Vec<f32> = (450..500).map(|i| ((i * 37) % 101) as f32).collect();
        last.sort_by(f32::total_cmp);
        assert_eq!(w.sorted, last);
    }

    #[test]
    fn quantiles_are_those_of_the_next_value() {
        let mut w = Window::filled(99, 0.0);
        for i in 1..=99 {
            w.push(f64::from(i));
        }
        // 99 values cut the line into 100 parts of equal probability
        assert!((w.quantile(0.95) - 95.0).abs() < 1e-4);
        assert!((w.quantile(0.5) - 50.0).abs() < 1e-4);
        assert!(w.quantile(0.999) > 99.0 && w.quantile(0.001) < 1.0);
    }
}
