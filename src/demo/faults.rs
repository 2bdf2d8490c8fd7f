//! What goes wrong at the simulated upstream, when, and how often.
//!
//! A proxy shows what it is worth when its upstream misbehaves; each way of misbehaving that is known from
//! real servers can be switched on here, by count or by time, so that a test meets it every time. Read by the
//! simulated upstream; set by the scenario files and by tests.

use std::time::Duration;

use crate::policy::units::Invalid;

/// A span of time since the simulated upstream's start: `from` is in it, `to` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First moment.
    pub from: Duration,
    /// First moment after it.
    pub to: Duration,
}

/// A span in which everything takes longer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slow {
    /// When.
    pub window: Window,
    /// How many times as long each token and prefill takes.
    pub factor: f64,
}

/// A span in which calls are answered with an error at once, and take no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errors {
    /// When.
    pub window: Window,
    /// 400 to 599.
    pub status: u16,
    /// `Retry-After`, rounded up to whole seconds; `None`: the answer has no such header.
    pub retry_after: Option<Duration>,
    /// Every how manieth call in the span; 1 is every one.
    pub every: u64,
}

/// What the limit headers say instead of the truth. There are six: limit, remaining and reset, of requests
/// and of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Limits, remainders and resets below 0.
    Negative,
    /// Numbers beyond 64 bits, a reset in thousands of years.
    Huge,
    /// `NaN`, `inf`, words and nothing at all.
    NotNumbers,
    /// Of each kind only some are there: a limit without a remainder, a reset without a limit.
    Half,
    /// The reset is a date of 1994.
    Past,
    /// Nothing remains, for an hour, though everything is served.
    Exhausted,
}

/// What goes wrong, and when. The default is nothing.
///
/// `…_every` counts the requests that got a slot, from 1; `…_connection_every` counts connections, from 1.
/// 0 means never.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Dead: open connections break. New ones are refused by a listener, closed without a byte in memory.
    pub down: Vec<Window>,
    /// Calls that are answered with an error.
    pub errors: Vec<Errors>,
    /// Slower than its law.
    pub slow: Vec<Slow>,
    /// The connection closes after the prefill, before the head.
    pub reset_every: u64,
    /// The connection breaks halfway through the body.
    pub cut_every: u64,
    /// Halfway through the body nothing more comes; the slot stays taken until the client leaves.
    pub stall_every: u64,
    /// The head never comes; the slot stays taken until the client leaves.
    pub mute_every: u64,
    /// The answer is 200, and its body an error: JSON, or the only event of a stream.
    pub error_body_every: u64,
    /// The connection is reset at its first request.
    pub reset_connection_every: u64,
    /// The connection is reset in the middle of its first answer's head.
    pub half_head_connection_every: u64,
    /// The connection's first request is answered with 103 Early Hints without end.
    pub interim_connection_every: u64,
    /// Each connection serves one request, so that `…_connection_every` counts requests too (HTTP/1.1).
    pub one_shot: bool,
    /// Limit headers on every answer to a call, in place of the true ones.
    pub lie: Option<Lie>,
    /// Calls with these keys are answered 401.
    pub dead_keys: Vec<String>,
}

/// What one request has been chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Whole,
    Reset,
    Cut,
    Stall,
    Mute,
    ErrorBody,
}

/// What one connection has been chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    Proper,
    Reset,
    HalfHead,
    Interim,
}

impl Window {
    /// From one moment to another.
    #[must_use]
    pub const fn new(from: Duration, to: Duration) -> Self {
        Self { from, to }
    }

    /// Whether the moment is in it.
    #[must_use]
    pub fn contains(&self, at: Duration) -> bool {
        self.from <= at && at < self.to
    }
}

impl Errors {
    /// Every call in `window` is answered `status`, without `Retry-After`.
    #[must_use]
    pub const fn all(status: u16, window: Window) -> Self {
        Self { window, status, retry_after: None, every: 1 }
    }
}

impl Lie {
    /// Every lie there is.
    pub const ALL: [Self; 6] =
        [Self::Negative, Self::Huge, Self::NotNumbers, Self::Half, Self::Past, Self::Exhausted];

    /// The headers that tell it.
    pub(crate) const fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Negative => &[
                ("x-ratelimit-limit-requests", "-600"),
                ("x-ratelimit-remaining-requests", "-1"),
                ("x-ratelimit-reset-requests", "-1s"),
                ("x-ratelimit-limit-tokens", "-1"),
                ("x-ratelimit-remaining-tokens", "-99999999999"),
                ("x-ratelimit-reset-tokens", "-6m0s"),
            ],
            Self::Huge => &[
                ("x-ratelimit-limit-requests", "99999999999999999999999999"),
                ("x-ratelimit-remaining-requests", "1e400"),
                ("x-ratelimit-reset-requests", "99999999999999h0m0s"),
                ("x-ratelimit-limit-tokens", "18446744073709551616"),
                ("x-ratelimit-remaining-tokens", "18446744073709551615"),
                ("x-ratelimit-reset-tokens", "340282366920938463463374607431768211456"),
            ],
            Self::NotNumbers => &[
                ("x-ratelimit-limit-requests", "NaN"),
                ("x-ratelimit-remaining-requests", "inf"),
                ("x-ratelimit-reset-requests", "NaNs"),
                ("x-ratelimit-limit-tokens", ""),
                ("x-ratelimit-remaining-tokens", "plenty"),
                ("x-ratelimit-reset-tokens", "soon"),
            ],
            Self::Half => &[
                ("x-ratelimit-limit-requests", "600"),
                ("x-ratelimit-reset-requests", "100ms"),
                ("x-ratelimit-remaining-tokens", "1000"),
            ],
            Self::Past => &[
                ("x-ratelimit-limit-requests", "600"),
                ("x-ratelimit-remaining-requests", "600"),
                ("x-ratelimit-reset-requests", "Sun, 06 Nov 1994 08:49:37 GMT"),
                ("x-ratelimit-limit-tokens", "400000"),
                ("x-ratelimit-remaining-tokens", "400000"),
                ("x-ratelimit-reset-tokens", "784111777"),
            ],
            Self::Exhausted => &[
                ("x-ratelimit-limit-requests", "600"),
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", "1h0m0s"),
                ("x-ratelimit-limit-tokens", "400000"),
                ("x-ratelimit-remaining-tokens", "0"),
                ("x-ratelimit-reset-tokens", "1h0m0s"),
            ],
        }
    }
}

/// Whether the `n`th is one of every `every`.
const fn due(every: u64, n: u64) -> bool {
    every > 0 && n.is_multiple_of(every)
}

impl Faults {
    pub(crate) fn is_down(&self, at: Duration) -> bool {
        self.down.iter().any(|w| w.contains(at))
    }

    /// The error that the `n`th call is answered with, if it is.
    pub(crate) fn error(&self, at: Duration, n: u64) -> Option<Errors> {
        self.errors.iter().find(|e| e.window.contains(at) && due(e.every, n)).copied()
    }

    /// When the next death begins.
    pub(crate) fn next_down(&self, after: Duration) -> Option<Duration> {
        self.down.iter().map(|w| w.from).filter(|from| *from > after).min()
    }

    /// When the death under way is over.
    pub(crate) fn next_up(&self, at: Duration) -> Option<Duration> {
        self.down.iter().filter(|w| w.contains(at)).map(|w| w.to).max()
    }

    pub(crate) const fn fate(&self, request: u64) -> Fate {
        if due(self.reset_every, request) {
            Fate::Reset
        } else if due(self.cut_every, request) {
            Fate::Cut
        } else if due(self.stall_every, request) {
            Fate::Stall
        } else if due(self.mute_every, request) {
            Fate::Mute
        } else if due(self.error_body_every, request) {
            Fate::ErrorBody
        } else {
            Fate::Whole
        }
    }

    pub(crate) const fn manners(&self, connection: u64) -> Manners {
        if due(self.reset_connection_every, connection) {
            Manners::Reset
        } else if due(self.half_head_connection_every, connection) {
            Manners::HalfHead
        } else if due(self.interim_connection_every, connection) {
            Manners::Interim
        } else {
            Manners::Proper
        }
    }

    /// How many times as long everything takes at a moment.
    pub(crate) fn slowness(&self, at: Duration) -> f64 {
        self.slow.iter().filter(|s| s.window.contains(at)).map(|s| s.factor).product()
    }

    pub(crate) fn check(&self, bad: &mut Vec<Invalid>) {
        if self.slow.iter().any(|s| !(s.factor.is_finite() && s.factor > 0.0)) {
            bad.push(Invalid::new("faults.slow", "the factor must be a number above 0"));
        }
        if self.errors.iter().any(|e| !(400..600).contains(&e.status) || e.every == 0) {
            bad.push(Invalid::new("faults.errors", "the status must be 400 to 599, and `every` at least 1"));
        }
        let slow = self.slow.iter().map(|s| ("faults.slow", s.window));
        let down = self.down.iter().map(|w| ("faults.down", *w));
        let errors = self.errors.iter().map(|e| ("faults.errors", e.window));
        for (key, _) in slow.chain(down).chain(errors).filter(|(_, w)| w.from >= w.to) {
            bad.push(Invalid::new(key, "a window must end after it begins"));
        }
    }
}
