//! One horizon: what was said about each minute ahead, held until the minute has passed and can be judged.

use std::collections::VecDeque;

use super::anomaly::Mood;
use super::calibrate::{Answer, Calibrators};
use super::distribution::{Forecast, N};
use super::experts::{EXPERTS, HORIZONS, Said, Saying};
use super::hedge::Hedge;

/// No quantile may be above this many times what an expert may say, plus [`FLOOR`]: a spread in proportion to
/// the centre, learnt near zero, is absurd at a hundred.
const SPREAD: f64 = 1.2;
/// Requests per minute that chance alone may bring where next to nothing was ever counted.
const FLOOR: f64 = 10.0;

/// Blend and calibrators of one horizon.
#[derive(Clone, Debug)]
pub(super) struct Outlook {
    ahead: usize,
    hedge: Hedge,
    calibrators: Calibrators,
    /// Oldest first; at most `ahead` of them.
    waiting: VecDeque<Option<(Saying, Answer)>>,
    now: Forecast,
}

impl Outlook {
    pub(super) fn new(horizon: usize) -> Self {
        Self {
            ahead: HORIZONS[horizon],
            hedge: Hedge::default(),
            calibrators: Calibrators::new(),
            waiting: VecDeque::new(),
            now: Forecast::new(0.0, [0.0; N]),
        }
    }

    /// A minute closed: whoever spoke about it learns how it came out.
    pub(super) fn judge(&mut self, y: Option<f64>) {
        if self.waiting.len() < self.ahead {
            return;
        }
        if let (Some(Some((saying, answer))), Some(y)) = (self.waiting.pop_front(), y) {
            self.hedge.learn(&saying, y);
            self.calibrators.learn(&answer, y);
        }
    }

    /// Trusts all experts alike again, and forgets what they have said of the minutes to come.
    pub(super) fn afresh(&mut self) {
        self.hedge = Hedge::default();
        self.waiting.iter_mut().for_each(|spoken| *spoken = None);
    }

    /// Looks ahead; `None` before anything was seen. `most` is what no expert may exceed.
    pub(super) fn look(&mut self, mood: Mood, said: Option<Said>, most: f64) {
        let spoken = said.map(|said| {
            let saying = Saying { mood, said };
            let centre = self.hedge.blend(&saying);
            let answer = self.calibrators.answer(centre, SPREAD * most + FLOOR);
            self.now = Forecast::new(centre, answer.mixed);
            (saying, answer)
        });
        self.waiting.push_back(spoken);
    }

    /// The forecast made after the last closed minute.
    pub(super) fn now(&self) -> &Forecast {
        &self.now
    }

    /// What each expert said after the last closed minute.
    pub(super) fn said(&self) -> Option<Said> {
        self.waiting.back()?.as_ref().map(|(saying, _)| saying.said)
    }

    /// The experts' weights after the last closed minute.
    pub(super) fn weights(&self) -> [f64; EXPERTS] {
        let mood = self.waiting.back().and_then(Option::as_ref).map_or(Mood::Calm, |(saying, _)| saying.mood);
        self.hedge.weights(mood)
    }

    pub(super) fn bytes(&self) -> usize {
        self.calibrators.bytes() + self.waiting.capacity() * size_of::<Option<(Saying, Answer)>>()
    }
}
