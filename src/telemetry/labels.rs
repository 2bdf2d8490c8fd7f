//! The values a label may take.
//!
//! A label is an enum, or it is [`Capped`]: a client chooses the model's name, and without the cap it
//! could make the process and the Prometheus server behind it grow without end.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Which API a request is for, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/embeddings`
    Embeddings,
    /// Anthropic's `/v1/messages`
    Messages,
    /// `/v1/audio/...`
    Audio,
    /// `/v1/images/...`
    Images,
    /// `/v1/moderations`
    Moderations,
    /// `/v1/rerank`
    Rerank,
    /// `/v1/models`
    Models,
    /// `/v1/files`
    Files,
    /// `/v1/batches`
    Batches,
    /// `/v1/realtime`
    Realtime,
    /// Every other path.
    Other,
}

impl Endpoint {
    /// How many there are.
    pub const COUNT: usize = 14;

    /// All of them, in order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Chat,
        Self::Completions,
        Self::Responses,
        Self::Embeddings,
        Self::Messages,
        Self::Audio,
        Self::Images,
        Self::Moderations,
        Self::Rerank,
        Self::Models,
        Self::Files,
        Self::Batches,
        Self::Realtime,
        Self::Other,
    ];

    /// The label's value, also in the access log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Embeddings => "embeddings",
            Self::Messages => "messages",
            Self::Audio => "audio",
            Self::Images => "images",
            Self::Moderations => "moderations",
            Self::Rerank => "rerank",
            Self::Models => "models",
            Self::Files => "files",
            Self::Batches => "batches",
            Self::Realtime => "realtime",
            Self::Other => "other",
        }
    }

    /// Position in [`Endpoint::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// How a request ended for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ended {
    /// The upstream answered below 400, and the whole answer was passed on.
    Success,
    /// The upstream answered 400 or above.
    UpstreamError,
    /// The proxy turned the request away before the upstream saw it.
    Refused,
    /// The upstream gave no usable answer: our own 502 or 504.
    UpstreamFault,
    /// The answer broke after its head had been passed on.
    Aborted,
    /// The client left.
    Cancelled,
}

impl Ended {
    /// How many there are.
    pub const COUNT: usize = 6;

    /// All of them, in order.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Success,
        Self::UpstreamError,
        Self::Refused,
        Self::UpstreamFault,
        Self::Aborted,
        Self::Cancelled,
    ];

    /// The value of the label `outcome`, also in the access log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::UpstreamError => "upstream_error",
            Self::Refused => "refused",
            Self::UpstreamFault => "upstream_fault",
            Self::Aborted => "aborted",
            Self::Cancelled => "cancelled",
        }
    }

    /// Position in [`Ended::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether `tidegate_error_rate` counts it.
    #[must_use]
    pub const fn is_error(self) -> bool {
        !matches!(self, Self::Success | Self::Cancelled)
    }
}

/// What an attempt at an upstream came back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Answered {
    /// A status below 300; a 101 is one too.
    Success,
    /// 3xx
    Redirect,
    /// 4xx, but no 429
    ClientError,
    /// 429
    Refused,
    /// 5xx
    ServerError,
    /// No answer: no connection, a reset, a timeout, or what is not HTTP.
    Nothing,
}

impl Answered {
    pub(super) const COUNT: usize = 6;

    pub(super) const ALL: [Self; Self::COUNT] =
        [Self::Success, Self::Redirect, Self::ClientError, Self::Refused, Self::ServerError, Self::Nothing];

    /// Of an answer's status, if there was one.
    pub(super) const fn of(status: Option<u16>) -> Self {
        match status {
            None => Self::Nothing,
            Some(..300) => Self::Success,
            Some(300..400) => Self::Redirect,
            Some(429) => Self::Refused,
            Some(400..500) => Self::ClientError,
            Some(_) => Self::ServerError,
        }
    }

    /// The value of the label `class`.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::Redirect => "3xx",
            Self::ClientError => "4xx",
            Self::Refused => "429",
            Self::ServerError => "5xx",
            Self::Nothing => "error",
        }
    }
}

/// What went wrong on a client's connection, outside of any request that reached the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionFault {
    /// A head that is not HTTP, or too large: answered 400, 414 or 431 by the HTTP parser.
    MalformedHead,
    /// The head did not arrive in time.
    HeaderTimeout,
    /// The client took no byte for too long.
    WriteTimeout,
    /// Refused: too many connections.
    TooMany,
    /// The connection broke.
    Broken,
}

impl ConnectionFault {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::MalformedHead, Self::HeaderTimeout, Self::WriteTimeout, Self::TooMany, Self::Broken];

    /// The value of the label `kind`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MalformedHead => "malformed_head",
            Self::HeaderTimeout => "header_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::TooMany => "too_many",
            Self::Broken => "broken",
        }
    }
}

/// The error codes whose counters are shown from the start, at 0. A code that is not listed appears
/// when it is first used.
pub const REASONS: [&str; 12] = [
    "bad_request",
    "body_too_large",
    "deadline_unreachable",
    "draining",
    "model_not_found",
    "overloaded",
    "queue_full",
    "queue_timeout",
    "unreadable_body",
    "upstream_error",
    "upstream_timeout",
    "upstream_unavailable",
];

/// The label's value of a request that names no model.
pub(super) const NO_MODEL: &str = "none";
/// The label's value of everything past the cap.
pub(super) const OTHER: &str = "other";
/// Series that are told apart by what clients say: a model at an endpoint each.
pub(super) const MAX_SERIES: usize = 1000;
/// Of them, one in so many may be of models that nobody ever answered for: anybody can invent a name.
const UNANSWERED: usize = 10;
/// A longer value is nobody's model.
const MAX_VALUE_BYTES: usize = 128;

/// A label whose values come from outside: the first so many are kept, the rest become `other`.
#[derive(Debug)]
pub(super) struct Capped {
    max: usize,
    none: Arc<str>,
    other: Arc<str>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    values: HashSet<(Endpoint, Arc<str>)>,
    unanswered: usize,
}

impl Capped {
    pub(super) fn new(max: usize) -> Self {
        Self { max, none: NO_MODEL.into(), other: OTHER.into(), known: Mutex::default() }
    }

    /// `value`, if its series is one of the first `max`; else `other`. `answered`: an upstream knows it.
    ///
    /// Control characters are never let in: NUL ends some scrapers' parse of the whole page.
    pub(super) fn label(&self, endpoint: Endpoint, value: &str, answered: bool) -> Arc<str> {
        // that one is ours, so no crowd of clients may push it out
        if value == NO_MODEL {
            return self.none.clone();
        }
        if value.is_empty() || value.len() > MAX_VALUE_BYTES || value.chars().any(char::is_control) {
            return self.other.clone();
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = (endpoint, Arc::from(value));
        if let Some((_, value)) = known.values.get(&fresh) {
            return value.clone();
        }
        if known.values.len() >= self.max || (!answered && known.unanswered >= self.max.div_ceil(UNANSWERED))
        {
            return self.other.clone();
        }
        known.unanswered += usize::from(!answered);
        known.values.insert(fresh.clone());
        fresh.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(capped: &Capped, value: &str) -> String {
        capped.label(Endpoint::Chat, value, true).to_string()
    }

    #[test]
    fn past_the_cap_new_values_are_other_and_known_ones_stay() {
        let capped = Capped::new(2);
        assert_eq!(
            ["a", "b", "c", "a", NO_MODEL].map(|v| label(&capped, v)),
            ["a", "b", "other", "a", "none"]
        );
        // what counts is how many series they make
        assert_eq!(&*capped.label(Endpoint::Embeddings, "a", true), "other");
    }

    #[test]
    fn names_that_nobody_answers_for_leave_the_others_their_places() {
        let capped = Capped::new(100);
        let kept = (0..1000).filter(|n| &*capped.label(Endpoint::Chat, &format!("no-{n}"), false) != "other");
        assert_eq!(kept.count(), 10);
        let kept = (0..1000).filter(|n| label(&capped, &format!("m-{n}")) != "other");
        assert_eq!(kept.count(), 90);
        // one that was answered for once keeps its name when it fails
        assert_eq!(&*capped.label(Endpoint::Chat, "m-1", false), "m-1");
    }

    #[test]
    fn unreasonable_values_are_other_and_take_no_place() {
        let capped = Capped::new(1);
        let long = "x".repeat(129);
        let values = ["", "nul\0", "line\nbreak", &long, "größe \"7b\"\\"];
        assert_eq!(values.map(|v| label(&capped, v)), ["other", "other", "other", "other", "größe \"7b\"\\"]);
    }

    #[test]
    fn positions_agree_with_the_lists() {
        for (i, e) in Endpoint::ALL.into_iter().enumerate() {
            assert_eq!(e.index(), i);
        }
        for (i, e) in Ended::ALL.into_iter().enumerate() {
            assert_eq!(e.index(), i);
        }
        for (i, a) in Answered::ALL.into_iter().enumerate() {
            assert_eq!(a as usize, i);
        }
    }

    #[test]
    fn a_refusal_is_a_class_of_its_own_among_the_4xx() {
        let classes = [Some(101), Some(200), Some(304), Some(404), Some(429), Some(430), Some(529), None];
        let named = classes.map(|status| Answered::of(status).as_str());
        assert_eq!(named, ["2xx", "2xx", "3xx", "4xx", "429", "4xx", "5xx", "error"]);
    }
}
