//! The blend of the experts: Hedge (Freund & Schapire 1997) on discounted absolute loss.
//!
//! ```text
//! L ← 0.995 L + |count − forecast|,   w ∝ exp(−η (L / min L − 1)),   η = 30 · n / (n + 20)
//! ```
//! One table for each mood of the last minute. n is the discounted number of minutes in the table: a young
//! one trusts nobody much.

use super::anomaly::Mood;
use super::experts::EXPERTS as E;
use super::experts::Saying;

const DISCOUNT: f64 = 0.995;
const RATE: f64 = 30.0;
const PRIOR: f64 = 20.0;

#[derive(Clone, Copy, Debug, Default)]
struct Table {
    loss: [f64; E],
    seen: f64,
}

/// The experts' records.
#[derive(Clone, Debug, Default)]
pub(super) struct Hedge {
    moods: [Table; Mood::ALL],
}

impl Hedge {
    /// The count that `saying` was about.
    pub(super) fn learn(&mut self, saying: &Saying, y: f64) {
        let table = &mut self.moods[saying.mood as usize];
        table.seen = DISCOUNT * table.seen + 1.0;
        for (loss, said) in table.loss.iter_mut().zip(saying.said) {
            *loss = DISCOUNT * *loss + (said - y).abs();
        }
    }

    /// Weights after a minute of this mood; they sum to one.
    pub(super) fn weights(&self, mood: Mood) -> [f64; E] {
        let table = &self.moods[mood as usize];
        let best = table.loss.iter().copied().fold(f64::INFINITY, f64::min);
        let rate = RATE * table.seen / (table.seen + PRIOR);
        // where the best never erred yet, a request of slack keeps the ratio finite
        let weights = table.loss.map(|loss| (-rate * (loss - best) / best.max(0.01)).exp());
        let sum: f64 = weights.iter().sum();
        weights.map(|w| w / sum)
    }

    /// The weighted mean of what was said.
    pub(super) fn blend(&self, saying: &Saying) -> f64 {
        self.weights(saying.mood).iter().zip(saying.said).map(|(w, said)| w * said).sum()
    }
}
