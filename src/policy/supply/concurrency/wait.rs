//! How many of the requests in flight wait inside the server.
//!
//! ```text
//! ref       a low quartile of the time to the first token (per prompt token where prompts exceed 256 tokens, and no
//!           less than where they do not)
//! excess W  mean of first − ref · prompt over the heads of one window
//! waiting   = n · W / (W + ref · prompt + D)       D: mean time from the first token to the last   (Little's law)
//! running   = n − waiting
//! ```
//! llama.cpp and vLLM queue inside: the time per token stays flat there and only the first token comes later.
//! The share of the whole stay, not the ratio to the reference, is what counts: a first token that comes
//! after 100 instead of 50 ms is nothing if the answer takes 4 s.

use std::time::Duration;

use crate::policy::units::{MonoTime, Tokens};

/// A low quartile that comes down at once and goes up only where nothing waits.
#[derive(Clone, Copy, Debug, Default)]
struct Reference {
    ln: Option<f64>,
}

const QUARTILE: f64 = 0.25;
const STEP: f64 = 0.1;

impl Reference {
    fn learn(&mut self, value: f64, calm: bool) {
        let ln = value.max(1e-9).ln();
        let known = self.ln.get_or_insert(ln);
        if ln < *known {
            *known += ((ln - *known) * 0.3).max(-STEP);
        } else if calm {
            *known += (ln - *known).min(STEP * QUARTILE / (1.0 - QUARTILE));
        }
    }
}

/// The first tokens of one window.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    heads: f64,
    excess: f64,
    base: f64,
    n: f64,
    since: MonoTime,
}

/// One closed window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Inside {
    /// Mean in flight.
    pub(super) n: f64,
    /// Of these, those that wait.
    pub(super) waiting: f64,
    /// Mean excess, seconds.
    excess: f64,
    /// Mean reference, seconds.
    base: f64,
    /// When the first of them was sent.
    since: MonoTime,
}

impl Inside {
    /// Those that do not wait.
    pub(super) fn running(&self) -> f64 {
        (self.n - self.waiting).max(1.0)
    }

    /// A limit under which next to nothing waits inside and the server never lacks the next one.
    pub(super) fn target(&self) -> f64 {
        self.running() + allowance(self.running())
    }

    /// So little waits that more could be sent.
    pub(super) fn calm(&self) -> bool {
        self.waiting <= 0.5 * allowance(self.running())
    }
}

fn allowance(running: f64) -> f64 {
    (0.1 * running).max(1.0)
}

/// The signal of the first tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Wait {
    short: Reference,
    long: Reference,
    rest: f64,
    rests: f64,
    /// Mean of the whole stay, and of the part of it that was not spent waiting.
    stay: f64,
    active: f64,
    window: Window,
    blamed: Option<Inside>,
    last: Option<(MonoTime, Inside)>,
}

const LONG: u64 = 256;
const HEADS: f64 = 3.0;
const FRESH: Duration = Duration::from_secs(30);

impl Wait {
    /// A first token came `first` after its dispatch at `sent`, with `n` in flight meanwhile.
    pub(super) fn head(&mut self, sent: MonoTime, prompt: Tokens, first: Duration, n: f64, calm: bool) {
        let secs = first.as_secs_f64();
        let (reference, unit) = match prompt.0 {
            0..=LONG => (&mut self.short, 1.0),
            tokens => (&mut self.long, tokens as f64),
        };
        reference.learn(secs / unit, calm);
        let base = self.base(prompt).unwrap_or(secs);
        let w = &mut self.window;
        w.since = if w.heads > 0.0 { w.since.min(sent) } else { sent };
        w.heads += 1.0;
        w.excess += (secs - base).max(0.0);
        w.base += base;
        w.n += n;
    }

    /// Seconds to the first token where nothing waits. A long prompt takes no less than a short one: there is a part that
    /// grows with no token.
    fn base(&self, prompt: Tokens) -> Option<f64> {
        let short = self.short.ln.map(f64::exp);
        match prompt.0 {
            0..=LONG => short,
            tokens => self.long.ln.map(|ln| (ln.exp() * tokens as f64).max(short.unwrap_or(0.0))),
        }
    }

    /// One that was sent with this prompt got its first token after `first` and its last after `last`.
    pub(super) fn done(&mut self, prompt: Tokens, first: Duration, last: Duration) {
        let rest = last.saturating_sub(first).as_secs_f64();
        self.rests = (self.rests + 1.0).min(50.0);
        self.rest += (rest - self.rest) / self.rests;
        let base = self.base(prompt);
        let (stay, first) = (last.as_secs_f64(), first.as_secs_f64());
        let active = rest + base.map_or(first, |base| first.min(base));
        let step = 0.15_f64.max(self.rests.recip());
        self.stay += (stay - self.stay) * step;
        self.active += (active - self.active) * step;
    }

    /// Share of those in flight that do not wait, as the last dozen of responses had it.
    pub(super) fn running_share(&self) -> f64 {
        if self.stay > 0.0 { (self.active / self.stay).clamp(0.0, 1.0) } else { 1.0 }
    }

    /// Closes the window if it has enough heads: the more are in flight, the more come at once.
    pub(super) fn close(&mut self, now: MonoTime) -> Option<Inside> {
        let w = self.window;
        let n = w.n / w.heads.max(1.0);
        if w.heads < HEADS.max(n / 8.0).min(32.0) || self.rests < 1.0 {
            return None;
        }
        self.window = Window::default();
        let (excess, base) = (w.excess / w.heads, w.base / w.heads);
        let waiting = n * excess / (excess + base + self.rest).max(1e-9);
        let inside = Inside { n, waiting, excess, base, since: w.since };
        self.last = Some((now, inside));
        Some(inside)
    }

    /// The last window, unless it is too old.
    pub(super) fn last(&self, now: MonoTime) -> Option<Inside> {
        self.last.filter(|(at, _)| now.since(*at) <= FRESH).map(|(_, inside)| inside)
    }

    /// From now on the limit is another: what comes next is looked at by itself.
    pub(super) fn renew(&mut self) {
        (self.window, self.last) = (Window::default(), None);
    }

    /// The limit is lowered because of this window; what comes of it is to be measured by it.
    pub(super) fn blame(&mut self, now: MonoTime, inside: &Inside) {
        self.blamed.get_or_insert(Inside { since: now, ..*inside });
    }

    /// Half as many in flight, all sent since the limit was lowered, waited as long: then it is not they who make
    /// each other wait, and this is how things are here.
    pub(super) fn was_in_vain(&mut self, inside: &Inside) -> bool {
        let Some(before) = &mut self.blamed else { return false };
        if inside.since < before.since {
            (before.n, before.excess) = (before.n.max(inside.n), before.excess.max(inside.excess));
            return false;
        }
        if inside.n > 0.6 * before.n {
            return false;
        }
        let vain = !inside.calm() && inside.excess >= 0.8 * before.excess;
        self.blamed = None;
        if vain {
            let factor = (1.0 + inside.excess / inside.base.max(1e-9)).ln();
            for reference in [&mut self.short, &mut self.long] {
                reference.ln = reference.ln.map(|ln| ln + factor);
            }
        }
        vain
    }
}
