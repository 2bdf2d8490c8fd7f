//! How many of the requests in flight wait inside the server.
//!
//! ```text
//! base      = fixed + each · prompt      seconds to a first token that need not wait; both are low quantiles:
//!             fixed of first − each · prompt over prompts of at most 256 tokens,
//!             each of (first − fixed) / prompt over longer ones; and fixed is at most that of first over all
//! usual     = base · spread              spread: median over windows of mean first ÷ mean base
//! excess W  = mean of first − usual over the heads of one window
//! waiting   = n · W / (W + usual + D)    D: mean time from the first token to the last   (Little's law)
//! running   = n − waiting
//! ```
//! llama.cpp and vLLM queue inside: the time per token stays flat there and only the first token comes later.
//! The share of the whole stay, not the ratio to what is usual, is what counts: a first token that comes
//! after 100 instead of 50 ms is nothing if the answer takes 4 s.
//!
//! Base and spread are learnt twice: where little is in flight, and always. The lesser holds, for load adds to both. Under
//! a backlog that never ends the spread where little is in flight stays at one, and first tokens that are late for other
//! reasons (prompts half of which are cached) look like a wait; [`Wait::accept`] ends that where an experiment
//! has told the two apart (`look`).

use std::time::Duration;

use crate::policy::units::{MonoTime, Tokens};

/// A quantile of a stream of positive values: of their logarithms, moved by bounded steps.
#[derive(Clone, Copy, Debug, Default)]
struct Quantile {
    ln: Option<f64>,
}

const LOW: f64 = 0.05;
const MEDIAN: f64 = 0.5;
const STEP: f64 = 0.1;

impl Quantile {
    fn value(self) -> Option<f64> {
        self.ln.map(f64::exp)
    }

    fn learn(&mut self, value: f64, share: f64) {
        let ln = value.max(1e-9).ln();
        let known = self.ln.get_or_insert(ln);
        *known += ((ln - *known) * 0.3).max(-STEP).min(STEP * share / (1.0 - share));
    }
}

/// How late first tokens are.
#[derive(Clone, Copy, Debug, Default)]
struct Usual {
    fixed: Quantile,
    each: Quantile,
    /// Of whole first tokens, whatever the prompt.
    any: Quantile,
    spread: Quantile,
}

const LONG: u64 = 256;
/// Either part of a first token's time is at least this share of it: what one is thought to take may be wrong.
const LEAST: f64 = 0.1;

impl Usual {
    fn learn(&mut self, prompt: Tokens, secs: f64) {
        let tokens = prompt.0 as f64;
        let without = |other: f64| (secs - other).max(LEAST * secs);
        let each = self.each.value().unwrap_or(0.0) * tokens;
        self.any.learn(secs, LOW);
        if prompt.0 <= LONG {
            self.fixed.learn(without(each), LOW);
        } else {
            self.each.learn(without(self.fixed().unwrap_or(0.0)) / tokens, LOW);
        }
    }

    /// No first token of any prompt comes sooner.
    fn fixed(&self) -> Option<f64> {
        Some(self.fixed.value()?.min(self.any.value()?))
    }

    /// What is known of the base from elsewhere is an upper bound.
    fn lower(&mut self, other: &Self) {
        let parts =
            [(&mut self.fixed, other.fixed), (&mut self.each, other.each), (&mut self.any, other.any)];
        for (known, bound) in parts {
            known.ln = known.ln.map_or(bound.ln, |ln| Some(bound.ln.map_or(ln, |bound| ln.min(bound))));
        }
    }

    fn knows(&self, prompt: Tokens) -> bool {
        if prompt.0 <= LONG { self.fixed.ln.is_some() } else { self.each.ln.is_some() }
    }

    /// Seconds; `None` where no prompt of this length was seen.
    fn base(&self, prompt: Tokens) -> Option<f64> {
        let each = self.each.value().unwrap_or(0.0) * prompt.0 as f64;
        self.knows(prompt).then(|| self.fixed().unwrap_or(0.0) + each)
    }

    fn spread(&self) -> f64 {
        self.spread.value().unwrap_or(1.0)
    }
}

/// The first tokens of one window: sums.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    heads: f64,
    first: f64,
    base: f64,
    /// Of first², first · base and base².
    squares: f64,
    cross: f64,
    bases: f64,
    n: f64,
    since: MonoTime,
    /// Some of them came while more than little was in flight.
    busy: bool,
}

impl Window {
    /// Half as many are remembered, at least.
    const MOST: f64 = 256.0;

    fn forget(&mut self) {
        if self.heads >= Self::MOST {
            let sums = [&mut self.heads, &mut self.first, &mut self.base, &mut self.squares];
            for sum in sums.into_iter().chain([&mut self.cross, &mut self.bases, &mut self.n]) {
                *sum /= 2.0;
            }
        }
    }
}

/// What a window says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Inside {
    /// Mean in flight.
    pub(super) n: f64,
    /// Of these, those that wait.
    pub(super) waiting: f64,
    /// The standard error of that.
    pub(super) noise: f64,
    /// How many first tokens say so.
    pub(super) heads: f64,
    /// Mean excess, seconds.
    excess: f64,
    /// Mean first token over its mean base.
    spread: f64,
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

    /// More wait than S leaves room for, and that is no chance.
    pub(super) fn crowded(&self) -> bool {
        self.waiting - SURE * self.noise > allowance(self.running()) + 0.25
    }

    /// So little waits that more could be sent.
    pub(super) fn calm(&self) -> bool {
        self.waiting <= 0.5 * allowance(self.running())
    }
}

const SURE: f64 = 2.0;

/// How many may wait inside beside so many that run.
pub(super) fn allowance(running: f64) -> f64 {
    (0.1 * running).max(1.0)
}

/// The signal of the first tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Wait {
    calm: Usual,
    always: Usual,
    rest: f64,
    rests: f64,
    /// Mean of the whole stay, and of the part of it that was not spent waiting.
    stay: f64,
    active: f64,
    window: Window,
    /// All that were sent under the limit there is now.
    steady: Window,
    renewed: MonoTime,
    blamed: Option<Inside>,
    last: Option<(MonoTime, Inside)>,
}

const HEADS: f64 = 3.0;
/// With one or two slots three first tokens are late alike often enough by chance.
const VAIN_HEADS: f64 = 4.0;
const FRESH: Duration = Duration::from_secs(30);

impl Wait {
    /// A first token came `first` after its dispatch at `sent`, with `n` in flight meanwhile.
    pub(super) fn head(&mut self, sent: MonoTime, prompt: Tokens, first: Duration, n: f64, calm: bool) {
        let secs = first.as_secs_f64();
        self.always.learn(prompt, secs);
        if calm {
            self.calm.learn(prompt, secs);
        }
        self.calm.lower(&self.always);
        let base = self.calm.base(prompt).unwrap_or(secs);
        for (w, counts) in [(&mut self.window, true), (&mut self.steady, sent >= self.renewed)] {
            if counts {
                w.forget();
                w.since = if w.heads > 0.0 { w.since.min(sent) } else { sent };
                w.heads += 1.0;
                w.first += secs;
                w.squares += secs * secs;
                w.cross += secs * base;
                w.bases += base * base;
                w.base += base;
                w.n += n;
                w.busy |= !calm;
            }
        }
    }

    fn spread(&self) -> f64 {
        self.calm.spread().min(self.always.spread())
    }

    /// One that was sent with this prompt got its first token after `first` and its last after `last`.
    pub(super) fn done(&mut self, prompt: Tokens, first: Duration, last: Duration) {
        let rest = last.saturating_sub(first).as_secs_f64();
        self.rests = (self.rests + 1.0).min(50.0);
        self.rest += (rest - self.rest) / self.rests;
        let usual = self.calm.base(prompt).map(|base| base * self.spread());
        let (stay, first) = (last.as_secs_f64(), first.as_secs_f64());
        let active = rest + usual.map_or(first, |usual| first.min(usual));
        let step = 0.15_f64.max(self.rests.recip());
        self.stay += (stay - self.stay) * step;
        self.active += (active - self.active) * step;
    }

    /// Share of those in flight that do not wait, as the last dozen of responses had it.
    pub(super) fn running_share(&self) -> f64 {
        if self.stay > 0.0 { (self.active / self.stay).clamp(0.0, 1.0) } else { 1.0 }
    }

    fn inside(&self, w: &Window) -> Inside {
        let heads = w.heads.max(1.0);
        let (n, first) = (w.n / heads, w.first / heads);
        let usual = w.base * self.spread() / heads;
        let excess = (first - usual).max(0.0);
        let share = n / (excess + usual + self.rest).max(1e-9);
        // variance of first − spread · base, and the derivative of `waiting`
        let k = self.spread();
        let square = (w.squares - 2.0 * k * w.cross + k * k * w.bases) / heads - (first - usual).powi(2);
        let error = (square.max(0.0) / (heads - 1.0).max(1.0)).sqrt();
        let active = (usual + self.rest) / (excess + usual + self.rest).max(1e-9);
        let spread = (w.first / w.base.max(1e-9)).max(1.0);
        let (waiting, noise) = (share * excess, share * error * active);
        Inside { n, waiting, noise, excess, spread, heads: w.heads, since: w.since }
    }

    /// Closes the window if it has enough heads: the more are in flight, the more come at once.
    pub(super) fn close(&mut self, now: MonoTime) -> Option<Inside> {
        let w = self.window;
        let n = w.n / w.heads.max(1.0);
        if w.heads < HEADS.max(n / 8.0).min(32.0) || self.rests < 1.0 {
            return None;
        }
        self.window = Window::default();
        let inside = self.inside(&w);
        for (usual, learns) in [(&mut self.always, true), (&mut self.calm, !w.busy)] {
            // nothing known is no spread: the first window may be one of waits
            usual.spread.ln.get_or_insert(0.0);
            if learns {
                usual.spread.learn(inside.spread, MEDIAN);
            }
        }
        self.last = Some((now, inside));
        Some(inside)
    }

    /// The last window, unless it is too old.
    pub(super) fn last(&self, now: MonoTime) -> Option<Inside> {
        self.last.filter(|(at, _)| now.since(*at) <= FRESH).map(|(_, inside)| inside)
    }

    /// All that were sent since the limit is what it is.
    pub(super) fn steady(&self) -> Inside {
        self.inside(&self.steady)
    }

    /// From now on the limit is another: what comes next is looked at by itself.
    pub(super) fn renew(&mut self, now: MonoTime) {
        (self.window, self.steady, self.last, self.renewed) =
            (Window::default(), Window::default(), None, now);
    }

    /// These waits are nobody's doing: this is how things are here.
    pub(super) fn accept(&mut self, inside: &Inside) {
        (self.calm.spread.ln, self.always.spread.ln) = (Some(inside.spread.ln()), Some(inside.spread.ln()));
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
        if inside.n > 0.6 * before.n || inside.heads < VAIN_HEADS {
            return false;
        }
        let vain = !inside.calm() && inside.excess >= 0.8 * before.excess;
        self.blamed = None;
        if vain {
            self.accept(inside);
        }
        vain
    }
}
