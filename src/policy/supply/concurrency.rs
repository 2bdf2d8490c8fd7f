//! The learned limit S of one endpoint: how many requests it may have in flight.
//!
//! Three things are learnt, and the worst decides once a second:
//! - `curve`: how fast one request is among n, hence the *knee*, where the server's whole output stops growing. S stays
//!   under 1.6 times the knee and off the point from which the output falls.
//! - `wait`: how many wait inside the server for their first token. S leaves room for one, or a tenth.
//!   `server`: where it tells how many wait itself, that counts instead.
//! - refusals: 429 that no rate limit explains, 503, 529, timeouts. Where it is the higher levels that are refused, S
//!   goes under what was in flight, and comes back to it ever more rarely.
//!
//! It grows only when it was reached, and only when responses made near it have been seen, if they tell anything: ×1.5
//! before the first congestion, then + max(1, √S / 2) per second. `look` moves it on purpose for some seconds: lower
//! where the knee is merely the least n seen, higher where first tokens are late and it is not known whether they wait.
//! Whole-response latency decides nothing where tokens are known: LLM answers differ a hundredfold in length under no
//! load at all.
//!
//! Without it a limit must be configured per server, and is wrong after the first restart with another size. The
//! fleet asks it for [`Concurrency::limit`]; `docs/decisions.md` says where it departs from the first design and why.

use std::time::Duration;

use crate::policy::supply::ServerLoad;
use crate::policy::units::{MonoTime, Sample, Tokens};

mod curve;
mod levels;
mod load;
mod look;
mod pace;
mod refusals;
mod report;
mod server;
mod wait;

use curve::{Curve, Knee};
use load::Load;
use look::{Look, Trial};
use pace::{Kind, Pace};
use refusals::Refusals;
pub use report::{Cause, Change, Inputs, Learning, Status};
use server::Server;
use wait::{Inside, Wait};

/// The law.
#[derive(Clone, Debug)]
pub struct Concurrency {
    learning: Learning,
    max: f64,
    /// S; infinite while nothing bounds it.
    s: f64,
    slow_start: bool,
    load: Load,
    curves: [Curve; 3],
    /// Share of each kind among the last hundred responses.
    shares: [f64; 3],
    wait: Wait,
    heads_told: bool,
    look: Option<Look>,
    next_look: MonoTime,
    trial: Trial,
    refusals: Refusals,
    server: Server,
    cause: Option<Cause>,
    reported: Option<u32>,
    peak: u32,
    /// Answers that were no refusals; how many of them there were at the last one that told of its pace.
    taken: u64,
    told: u64,
}

/// Share of S that counts as reached.
const REACHED: f64 = 0.8;
const SLOW_START: f64 = 1.5;
/// Above the cap by this much before it is lowered to it.
const SLACK: f64 = 1.05;
/// A shrink leaves at least this share of what was.
const LEAST_LEFT: f64 = 0.35;

impl Concurrency {
    /// Nothing seen yet. `max` bounds whatever is learnt.
    #[must_use]
    pub fn new(learning: Learning, max: u32) -> Self {
        let max = f64::from(max.max(1));
        let s = match learning {
            Learning::Learn { start } => f64::from(start.max(1)),
            Learning::Fixed(n) => f64::from(n.max(1)),
            Learning::Hosted | Learning::Unlimited => f64::INFINITY,
        };
        let s = if s.is_finite() { s.min(max) } else { s };
        let mut law = Self {
            learning,
            max,
            s,
            slow_start: true,
            load: Load::default(),
            curves: Default::default(),
            shares: [0.0; 3],
            wait: Wait::default(),
            heads_told: false,
            look: None,
            next_look: MonoTime::ZERO,
            trial: Trial::default(),
            refusals: Refusals::default(),
            server: Server::default(),
            cause: None,
            reported: None,
            peak: 0,
            taken: 0,
            told: 0,
        };
        law.reported = law.limit();
        law
    }

    const fn learns(&self) -> bool {
        matches!(self.learning, Learning::Learn { .. })
    }

    /// The limit; `None` while nothing bounds it.
    #[must_use]
    pub fn limit(&self) -> Option<u32> {
        self.s.is_finite().then_some(self.s as u32)
    }

    /// A response ended well. `in_flight` counts it still.
    pub fn sample(&mut self, now: MonoTime, sample: &Sample, in_flight: u32) {
        if !self.learns() {
            return;
        }
        self.told = self.taken;
        self.load.set(now, in_flight);
        if sample.stream && !self.heads_told {
            let n = self.load.mean(sample.last);
            self.first_token(now - sample.last, sample.prompt, sample.first, n);
        }
        let pace = Pace::of(sample);
        let mut n = self.load.mean(pace.took);
        if matches!(pace.kind, Kind::Stream) {
            self.wait.done(sample.prompt, sample.first, sample.last);
            n *= self.wait.running_share();
        }
        let kind = pace.kind as usize;
        for (i, share) in self.shares.iter_mut().enumerate() {
            *share += (f64::from(u8::from(i == kind)) - *share) * 0.01;
        }
        let changed = self.curves[kind].observe(now, n, pace.per_second(), pace.weight);
        if changed == Some(true) {
            self.slow_start = true;
        }
    }

    /// A stream's first token came `first` after its dispatch: known long before the end.
    pub fn head(&mut self, now: MonoTime, prompt: Tokens, first: Duration, in_flight: u32) {
        if !self.learns() {
            return;
        }
        self.heads_told = true;
        self.load.set(now, in_flight);
        let n = self.load.mean(first);
        self.first_token(now - first, prompt, first, n);
    }

    fn first_token(&mut self, sent: MonoTime, prompt: Tokens, first: Duration, n: f64) {
        let calm = n <= self.s / 2.0 && self.wait.last(sent).is_none_or(|inside| inside.calm());
        self.wait.head(sent, prompt, first, n, calm);
    }

    const fn heeds_refusals(&self) -> bool {
        matches!(self.learning, Learning::Learn { .. } | Learning::Hosted)
    }

    /// What left with `level` in flight, itself included, was taken: it is answered, and not with a refusal.
    pub fn taken(&mut self, level: u32) {
        self.taken += 1;
        if self.heeds_refusals() {
            self.refusals.taken(level);
        }
    }

    /// What left with `level` in flight, itself included, was refused for want of capacity: with a 429 that no rate
    /// limit explains, a 503, a 529. Says whether `level` was too much; else such things happen at any.
    pub fn refused(&mut self, now: MonoTime, level: u32) -> bool {
        if !self.heeds_refusals() {
            return false;
        }
        let Some(to) = self.refusals.refused(now, self.s, level) else { return false };
        self.look = None;
        self.trial.end();
        self.slow_start = false;
        self.shrink(now, to, Cause::Refused);
        true
    }

    /// The refusals until now were nobody's limit: what they made of S is to be found again.
    pub fn forgive(&mut self) {
        (self.refusals, self.slow_start) = (Refusals::default(), true);
    }

    /// Answers so far that were no refusals.
    #[must_use]
    pub const fn taken_so_far(&self) -> u64 {
        self.taken
    }

    /// An attempt that left with `level` in flight, itself included, and `taken` answers so far, timed out: a
    /// refusal that came late, unless twice as many as were before it were answered in its place.
    pub fn timed_out(&mut self, now: MonoTime, level: u32, taken: u64) {
        let overtaken = self.taken.saturating_sub(taken) >= 2 * u64::from(level).max(10);
        // a hosted API's timeout says nothing of how many it would take; and one alone has nobody to blame
        if self.learns() && level > 1 && !overtaken {
            self.refused(now, level);
        }
    }

    /// The upstream announced rate limits, so it is a hosted API: from now on only refusals bound it.
    pub fn hosted(&mut self) {
        if self.learns() {
            let max = self.max.min(f64::from(u32::MAX)) as u32;
            *self = Self { reported: self.reported, ..Self::new(Learning::Hosted, max) };
        }
    }

    /// What the server itself says.
    pub fn server(&mut self, now: MonoTime, load: ServerLoad) {
        if !self.learns() {
            return;
        }
        if let Some(to) = self.server.read(now, load, self.load.in_flight(), self.s) {
            self.slow_start = false;
            self.trial.end();
            self.shrink(now, to.max(LEAST_LEFT * self.s), Cause::ServerSaid);
        }
    }

    /// The endpoint was away and came back, perhaps as another: what was learnt is forgotten, the limit is not.
    pub fn reset(&mut self, now: MonoTime) {
        if let Some(from) = self.look.take().map(|look| look.from).or(self.trial.from()) {
            self.s = from;
        }
        self.trial = Trial::default();
        self.curves = Default::default();
        (self.wait, self.refusals, self.server) = Default::default();
        self.next_look = now;
        (self.slow_start, self.cause) = (true, Some(Cause::Restarted));
    }

    /// Closes a second. `peak`: the most in flight in it; `waiting`: whether a request waited for this endpoint.
    pub fn tick(&mut self, now: MonoTime, peak: u32, waiting: bool) -> Option<Change> {
        self.peak = peak;
        // where responses take long, nothing else tells of those that were sent meanwhile
        self.load.set_if_silent(now, peak);
        match self.learning {
            Learning::Learn { .. } => self.learn(now, waiting),
            Learning::Hosted if self.reached() => self.grow(now, f64::INFINITY),
            _ => {}
        }
        self.refusals.tick();
        self.report(now)
    }

    fn learn(&mut self, now: MonoTime, waiting: bool) {
        let calm = self.waiting_inside(now);
        let knee = self.knee(now);
        if let Some(look) = self.look {
            self.looking(now, look, knee);
            return;
        }
        if self.trying(now) {
            return;
        }
        if let Some(knee) = knee
            && knee.cap * SLACK < self.s
            && knee.seen > knee.cap
            // a limit that was never nearly reached did no harm, and of what lies there nothing is known
            && knee.seen >= LEAST_LEFT * self.s
        {
            self.slow_start = false;
            self.shrink(now, knee.cap.max(LEAST_LEFT * self.s), Cause::NoGain);
            return;
        }
        let known = knee.filter(|k| k.seen >= REACHED * self.s.floor() - 0.5);
        if !self.reached() || self.server.full(now) {
            return;
        }
        if !calm {
            if let Some(knee) = known.filter(|_| waiting && !self.server.speaks(now)) {
                self.start_trial(now, knee.cap);
            }
            return;
        }
        match known {
            Some(knee) if self.wants_look(now, &knee, waiting) => self.start_look(now, knee.least),
            Some(knee) => self.grow(now, knee.cap),
            None if self.silent() => self.grow(now, f64::INFINITY),
            None => {}
        }
    }

    /// More were answered since the last that told of its pace than can be in flight: pictures, sound and what is encoded
    /// tell nothing, and only refusals bound them.
    fn silent(&self) -> bool {
        (self.taken - self.told) as f64 > (2.0 * self.s).max(64.0)
    }

    /// Closes the window of first tokens; says whether nothing speaks against more.
    fn waiting_inside(&mut self, now: MonoTime) -> bool {
        let speaks = self.server.speaks(now);
        if let Some(inside) = self.wait.close(now)
            && !self.wait.was_in_vain(&inside)
            && (inside.crowded() || self.wait.steady().crowded())
            && inside.target() < (self.s - 0.5).min(inside.n - 0.25)
            && !speaks
            && self.trial.from().is_none()
        {
            self.slow_start = false;
            self.look = None;
            self.wait.blame(now, &inside);
            self.shrink(now, inside.target().max(LEAST_LEFT * self.s.min(inside.n)), Cause::WaitingInside);
        }
        let streams =
            self.shares[Kind::Stream as usize] > 0.2 * self.shares.iter().sum::<f64>() && !self.silent();
        let tried = |inside: Inside| inside.calm() && inside.n >= REACHED * self.s.floor() - 0.5;
        if speaks {
            return self.server.calm(now);
        }
        !streams || self.wait.last(now).is_some_and(tried)
    }

    /// The worst of the kinds that matter.
    fn knee(&self, now: MonoTime) -> Option<Knee> {
        let most = self.shares.iter().copied().fold(0.0, f64::max);
        let kinds = self.curves.iter().zip(self.shares).filter(|(_, share)| *share >= 0.2 * most);
        let speaks = self.server.speaks(now);
        let heeded = |k: Knee| if speaks { Knee { cap: k.collapse, bracketed: true, ..k } } else { k };
        kinds.filter_map(|(curve, _)| curve.knee(now)).map(heeded).min_by(|a, b| a.cap.total_cmp(&b.cap))
    }

    /// Without a limit nothing is reached.
    fn reached(&self) -> bool {
        f64::from(self.peak) >= (REACHED * self.s).floor().max(1.0)
    }

    fn grow(&mut self, now: MonoTime, cap: f64) {
        let more =
            if self.slow_start { self.s * SLOW_START } else { self.s + (self.s.sqrt() / 2.0).max(1.0) };
        let to = more.min(cap).min(self.max).min(self.refusals.ceiling(now));
        if more > cap {
            self.slow_start = false;
        }
        if to > self.s {
            self.s = to;
            self.cause = Some(Cause::Reached);
            self.wait.renew(now);
        }
    }

    fn shrink(&mut self, now: MonoTime, to: f64, cause: Cause) {
        let to = to.clamp(1.0, self.max);
        if to < self.s {
            self.s = to;
            self.cause = Some(cause);
            self.wait.renew(now);
        }
    }
}

#[cfg(test)]
mod tests;
