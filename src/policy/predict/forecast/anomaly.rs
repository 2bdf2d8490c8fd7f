//! Surprise: how far the last minute was from what had been expected of it.
//!
//! ```text
//! z = (count − centre) / (√(centre + 1) · s),   s = median |(count − centre) / √(centre + 1)| / 0.6745
//! ```
//! The median makes z robust: a few spikes among 300 minutes do not move what is normal. A minute with
//! |z| > 8 is an outlier: the experts learn from it only what 8 deviations would have taught them, unless
//! the minute before was one too, which makes it a new level. It counts as demand all the same.
//!
//! Without this one scanner's visit would raise the averages for an hour and bend every regression.

use super::window::Window;

/// What the last minute was like: experts are weighed separately in each.
///
/// After a surprise the last count alone may be the best forecast (a new level) or the worst (a spike); which,
/// is for the data to say, and a blend that only knows long-run averages cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    /// Within 3.5 deviations.
    Calm,
    /// Far more than expected.
    Up,
    /// Far less than expected.
    Down,
}

impl Mood {
    pub(super) const ALL: usize = 3;
}

const SURPRISE: f64 = 3.5;
const OUTLIER: f64 = 8.0;
/// Minutes that say what is normal.
const WINDOW: usize = 300;
/// Median |residual| of a standard normal distribution.
const NORMAL_MEDIAN: f64 = 0.6745;

/// Robust z-score of the minutes, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Anomaly {
    sizes: Window,
    score: f64,
    outlier: bool,
}

impl Anomaly {
    pub(super) fn new() -> Self {
        Self { sizes: Window::filled(WINDOW, NORMAL_MEDIAN), score: 0.0, outlier: false }
    }

    /// Judges one minute of which `centre` had been expected, and gives what the experts should learn of it.
    pub(super) fn judge(&mut self, centre: f64, y: f64) -> f64 {
        let root = (centre + 1.0).sqrt();
        // never tighter than half of what chance alone does to a count
        let deviation = root * (self.sizes.quantile(0.5) / NORMAL_MEDIAN).max(0.5);
        let last = self.score;
        self.score = ((y - centre) / deviation).clamp(-1e6, 1e6);
        self.sizes.push((y - centre).abs() / root);
        let far = self.score.abs() > OUTLIER;
        let again = last.abs() > OUTLIER && (last > 0.0) == (self.score > 0.0);
        self.outlier = far && !again;
        if self.outlier { (centre + OUTLIER * self.score.signum() * deviation).max(0.0) } else { y }
    }

    /// Time passed unwatched: nothing is surprising after a gap.
    pub(super) fn skip(&mut self) {
        (self.score, self.outlier) = (0.0, false);
    }

    /// Deviations between the last minute and its forecast.
    pub(super) fn score(&self) -> f64 {
        self.score
    }

    pub(super) fn mood(&self) -> Mood {
        if self.score > SURPRISE {
            Mood::Up
        } else if self.score < -SURPRISE {
            Mood::Down
        } else {
            Mood::Calm
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.sizes.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_spike_is_an_outlier_and_two_are_a_new_level() {
        let mut a = Anomaly::new();
        for i in 0..100 {
            let y = 100.0 + f64::from(i % 5 - 2) * 5.0;
            assert_eq!(a.judge(100.0, y), y);
            assert_eq!(a.mood(), Mood::Calm);
        }
        let learnt = a.judge(100.0, 5000.0);
        assert!(learnt < 300.0, "{learnt}");
        assert!(a.score() > 100.0);
        assert_eq!(a.mood(), Mood::Up);
        assert_eq!(a.judge(150.0, 5000.0), 5000.0);
        assert!(a.judge(5000.0, 0.0) > 4000.0, "the first empty minute is an outlier");
        assert_eq!(a.judge(4500.0, 0.0), 0.0, "the second is silence");
        assert_eq!(a.mood(), Mood::Down);
        a.skip();
        assert_eq!((a.mood(), a.score()), (Mood::Calm, 0.0));
    }
}
