//! The vocabulary every room shares: time, identifiers, outcomes, and what a bad setting looks like.
//!
//! Nothing here decides anything. Durations are the standard library's.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment, in nanoseconds since the process (or the simulation) began.
///
/// It is handed in, never read: see `clock.rs` for the one place that reads a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MonoTime(u64);

impl MonoTime {
    /// The beginning.
    pub const ZERO: Self = Self(0);
    /// Later than any moment that will be seen: 584 years.
    pub const MAX: Self = Self(u64::MAX);

    /// The moment `nanos` nanoseconds after the beginning.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The moment `secs` seconds after the beginning.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since the beginning.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole seconds since the beginning.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000_000
    }

    /// How long after `earlier` this is; zero if it is not later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for MonoTime {
    type Output = Self;
    /// Saturates at [`MonoTime::MAX`].
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for MonoTime {
    type Output = Self;
    /// Saturates at [`MonoTime::ZERO`].
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// One request's number in the engine, unique for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Who sent a request: a keyed hash of the client's credential, never the credential.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u64);

/// A count of model tokens, usually an estimate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tokens(pub u64);

/// An endpoint's number within its group: one `[[upstream]]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u16);

/// A key's number within its endpoint; 0 also stands for the client's own key where none is configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u16);

/// A model's number within its group. Names are interned at the edge; past a bound they share one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(pub u32);

/// Where an attempt goes: which endpoint, with which of its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its key.
    pub key: KeyId,
}

/// What one finished response says of the upstream's pace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Prompt tokens, real or estimated.
    pub prompt: Tokens,
    /// Of them: what the upstream's limits do not count.
    pub uncounted: Tokens,
    /// Output tokens; 0: not a tokenised call, such as embeddings.
    pub output: Tokens,
    /// From dispatch to the first token of a stream, else to the head.
    pub first: Duration,
    /// From dispatch to the last token, or to the end of the response.
    pub last: Duration,
    /// It was a stream.
    pub stream: bool,
}

/// The class a request queues in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Served first: a person is waiting.
    High,
    /// What a request is unless it says otherwise.
    #[default]
    Normal,
    /// Background work. Never starved, only last.
    Low,
}

impl Priority {
    /// All classes, most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The name used in headers, labels and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// Position in [`Priority::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// How an attempt at the upstream ended, as far as limits and breakers care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The upstream answered, whole.
    Success,
    /// 429: the upstream refused for want of capacity. It lives, so a breaker does not count it.
    Refused,
    /// 503, 529, a timeout or a reset: overload and a failure.
    Overload,
    /// Any other 5xx or a broken answer: a failure, but no sign of overload.
    Failure,
    /// Says nothing about the upstream: the client left, another 4xx, our own refusal.
    Ignore,
}

/// Why the engine turned a request away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The queue holds as many requests, or bytes, as it may.
    QueueFull,
    /// It waited as long as it was allowed to.
    QueueTimeout,
    /// It could not have been answered in time, so it was not made to wait for that.
    DeadlineUnreachable,
    /// The breaker is open for longer than the request can wait.
    UpstreamUnavailable,
    /// The process is shutting down.
    Draining,
    /// Too many requests outside the queue, or too many tunnels.
    Overloaded,
}

/// A setting a room cannot work with: which one, and what would be right.
///
/// The key is relative to the room's section (`"cooldown"`); the reader of the file adds path and line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The setting at fault.
    pub key: &'static str,
    /// What is wrong with it and what is allowed.
    pub message: String,
}

impl Invalid {
    /// A fault in `key`.
    pub fn new(key: &'static str, message: impl Into<String>) -> Self {
        Self { key, message: message.into() }
    }
}

/// `params` if nothing was found wrong with it, else everything that was.
///
/// # Errors
/// The faults, when there are any.
pub fn checked<P>(params: P, faults: Vec<Invalid>) -> Result<P, Vec<Invalid>> {
    if faults.is_empty() { Ok(params) } else { Err(faults) }
}
