//! A limit as the headers tell of it, and how far they are believed.
//!
//! Called by `lane` only, whose documentation has the whole.

use crate::policy::supply::pace::bucket::Bucket;
use crate::policy::supply::pace::headers::Reading;
use crate::policy::supply::pace::window::Window;
use crate::policy::units::MonoTime;

/// Where nobody knows how much may go at once: what this many seconds refill.
pub(super) const BURST: f64 = 1.0;
/// The share of the limit that is used with headers to go by, where no buffer is configured.
pub(super) const SEEN: f64 = 0.98;
/// The same where they have proved right.
const PROVED: f64 = 1.05;
/// With less doubt than that, headers are trusted with the whole limit. An answer moves doubt by a step, a refusal by its
/// own.
const SURE: f64 = 0.1;
const STEP: f64 = 1.0 / 8.0;
const REFUSED: f64 = 0.2;
/// Others can be seen to take at most this share.
const MOST_LEAK: f64 = 0.95;

/// What is known by headers.
#[derive(Clone, Debug)]
pub(super) struct Learned {
    pub(super) limit: f64,
    pub(super) window: Window,
    pub(super) own: Bucket,
    pub(super) estimate: Bucket,
    /// What others take, per second.
    pub(super) leak: f64,
    /// All corrections of the estimate so far.
    pub(super) corrected: f64,
    /// What was last said to remain, and how little such words have proved worth, 0 to 1.
    said: f64,
    doubt: f64,
    /// A window that is used up ends then.
    pub(super) hold: MonoTime,
}

impl Learned {
    /// The first answer that named `limit`.
    pub(super) fn new(now: MonoTime, limit: f64, buffer: Option<f64>, reading: &Reading) -> Self {
        let mut window = Window::default();
        window.told(now, reading.reset, reading.window);
        let rate = limit / window.seconds();
        let size = (rate * BURST).max(1.0).min(limit);
        Self {
            limit,
            window,
            own: Bucket::new(rate * buffer.unwrap_or(SEEN), size, now),
            estimate: Bucket::new(rate, size, now),
            leak: 0.0,
            corrected: 0.0,
            said: -1.0,
            doubt: 0.5,
            hold: MonoTime::ZERO,
        }
    }

    /// Another answer that names `limit`; `taken`: its request passed.
    pub(super) fn told(
        &mut self,
        now: MonoTime,
        limit: f64,
        buffer: Option<f64>,
        taken: bool,
        reading: &Reading,
    ) {
        let before = self.rate();
        // with nothing left the reset may be a debt's, or of a refusal's own making
        let reset = reading.reset.filter(|_| taken && reading.remaining.is_some_and(|r| r >= 1.0));
        self.window.told(now, reset, reading.window);
        self.limit = limit;
        if self.rate() != before {
            let rate = self.rate();
            self.own.set_sold(now, rate * buffer.unwrap_or(self.share()));
            self.estimate.set_sold(now, rate);
            self.leaks(now, self.leak);
            let size = self.own.capacity().min(limit);
            self.own.set_capacity(now, size);
            self.estimate.set_capacity(now, size);
        }
    }

    /// As it is sold, per second.
    pub(super) fn rate(&self) -> f64 {
        self.limit / self.window.seconds()
    }

    /// Others take `leak` of it.
    pub(super) fn leaks(&mut self, now: MonoTime, leak: f64) {
        self.leak = leak.clamp(0.0, MOST_LEAK * self.rate());
        self.estimate.set_rate(now, self.rate() - self.leak);
    }

    /// The share of the limit at which `own` refills where the operator names none.
    pub(super) fn share(&self) -> f64 {
        if self.doubt < SURE { PROVED } else { SEEN }
    }

    /// What remains was foreseen, or was not; a request was taken, or refused.
    pub(super) fn judge(&mut self, taken: bool, foreseen: bool, remaining: f64) {
        match (taken, foreseen) {
            (false, _) => self.doubt += REFUSED * (1.0 - self.doubt),
            (true, false) => self.doubt += STEP * (1.0 - self.doubt),
            // a figure that stands still may be one that nobody keeps
            (true, true) if remaining != self.said => self.doubt -= STEP * self.doubt,
            (true, true) => {}
        }
        self.said = remaining;
    }
}
