//! What an answer's headers say of the limits, without believing everything.
//!
//! | names | read as |
//! |---|---|
//! | `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` | OpenAI, Azure OpenAI (often `remaining` only), Groq, vLLM-like |
//! | `x-ratelimit-{limit,remaining,reset}`, `ratelimit-{limit,remaining,reset}` | requests (OpenRouter; the IETF draft) |
//! | `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}` | Anthropic |
//! | `retry-after`, `retry-after-ms` | of a refusal: when another try makes sense |
//!
//! A header that cannot be true is left out or clamped, and what was wrong is noted by kind, so that the shell
//! can say it once. Of Anthropic's three kinds of tokens `tokens` counts (the tightest limit in force, by their
//! documentation); where it is missing, whichever of input and output has less of its limit left.
//!
//! Without it the pacer would know of a limit only by running into it. Called by the proxy for each answer with
//! such a header, and by `simulate`.

use std::time::Duration;

use super::when;
use crate::policy::units::MonoTime;

/// What was wrong with a limit header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Below zero, or a limit of zero.
    Negative,
    /// No number, duration or date at all, or not ASCII.
    Unreadable,
    /// More than a day ahead, or a count beyond 10¹².
    TooLarge,
    /// A reset that is over.
    Past,
    /// More remaining than the limit allows.
    AboveLimit,
    /// A limit or a reset that says nothing without the number that belongs to it.
    Incomplete,
    /// The same header twice with different values: the more cautious one counts.
    Repeated,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Negative,
        Self::Unreadable,
        Self::TooLarge,
        Self::Past,
        Self::AboveLimit,
        Self::Incomplete,
        Self::Repeated,
    ];

    /// The name used in logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Negative => "negative",
            Self::Unreadable => "unreadable",
            Self::TooLarge => "too_large",
            Self::Past => "past",
            Self::AboveLimit => "above_limit",
            Self::Incomplete => "incomplete",
            Self::Repeated => "repeated",
        }
    }
}

/// The kinds of faults that were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults(u8);

impl Faults {
    /// Notes one.
    pub const fn add(&mut self, fault: Fault) {
        self.0 |= 1 << fault as u8;
    }

    /// Notes those of `other` too; what of them is new.
    pub const fn merge(&mut self, other: Self) -> Self {
        let new = Self(other.0 & !self.0);
        self.0 |= other.0;
        new
    }

    /// Nothing was wrong.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each kind found.
    pub fn iter(self) -> impl Iterator<Item = Fault> {
        Fault::ALL.into_iter().filter(move |f| self.0 & (1 << *f as u8) != 0)
    }
}

/// What was said of one kind of limit. All finite, none below zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// What a full budget holds: per minute, or per the window that `reset` gives away.
    pub limit: Option<f64>,
    /// What is left of it.
    pub remaining: Option<f64>,
    /// When it is whole again.
    pub reset: Option<MonoTime>,
    /// For how long the limit is sold, where that is said.
    pub window: Option<Duration>,
}

impl Reading {
    /// Nothing was said.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.limit.is_none() && self.remaining.is_none() && self.reset.is_none()
    }

    /// What share of the limit is left; 1 where that is not known.
    fn share(&self) -> f64 {
        match (self.remaining, self.limit) {
            (Some(remaining), Some(limit)) => remaining / limit,
            _ => 1.0,
        }
    }

    fn check(&mut self, faults: &mut Faults) {
        match (self.limit, self.remaining) {
            (Some(limit), Some(remaining)) if remaining > limit => {
                faults.add(Fault::AboveLimit);
                self.remaining = Some(limit);
            }
            (Some(_), None) => faults.add(Fault::Incomplete),
            (None, None) if self.reset.is_some() => {
                faults.add(Fault::Incomplete);
                self.reset = None;
            }
            _ => {}
        }
    }
}

/// What an answer's headers said of the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RateLimits {
    /// Requests.
    pub requests: Reading,
    /// Tokens.
    pub tokens: Reading,
    /// When a refused request may come again. Only from a 429, a 503 or a 529.
    pub retry_at: Option<MonoTime>,
    /// What was wrong.
    pub faults: Faults,
}

#[derive(Clone, Copy)]
enum Kind {
    Requests,
    Tokens,
    Input,
    Output,
}

#[derive(Clone, Copy)]
enum Part {
    Limit,
    Remaining,
    Reset,
}

enum Name {
    Of(Kind, Part),
    RetryAfter,
    RetryAfterMs,
}

impl Part {
    fn of(text: &str) -> Option<Self> {
        match text {
            "limit" => Some(Self::Limit),
            "remaining" => Some(Self::Remaining),
            "reset" => Some(Self::Reset),
            _ => None,
        }
    }
}

impl Kind {
    fn of(text: &str) -> Option<Self> {
        match text {
            "requests" => Some(Self::Requests),
            "tokens" => Some(Self::Tokens),
            "input-tokens" => Some(Self::Input),
            "output-tokens" => Some(Self::Output),
            _ => None,
        }
    }
}

fn known(name: &str) -> Option<Name> {
    match name {
        "retry-after" => return Some(Name::RetryAfter),
        "retry-after-ms" => return Some(Name::RetryAfterMs),
        _ => {}
    }
    if let Some(rest) = name.strip_prefix("anthropic-ratelimit-") {
        let (kind, part) = rest.rsplit_once('-')?;
        return Some(Name::Of(Kind::of(kind)?, Part::of(part)?));
    }
    // Azure spells it both ways
    let rest = name.strip_prefix("x-ratelimit-").or_else(|| name.strip_prefix("x-rate-limit-"));
    let rest = rest.or_else(|| name.strip_prefix("ratelimit-"))?;
    match rest.split_once('-') {
        None => Some(Name::Of(Kind::Requests, Part::of(rest)?)),
        Some((part, kind)) => Some(Name::Of(Kind::of(kind)?, Part::of(part)?)),
    }
}

/// A count that no limit reaches.
const MOST: f64 = 1e12;

fn count(text: &str, faults: &mut Faults) -> Option<f64> {
    // the draft's list form: `10, 10;w=1, 50;w=60`
    let first = text.split([',', ';']).next().unwrap_or(text).trim();
    match when::number(first) {
        Some(n) if n > MOST => {
            faults.add(Fault::TooLarge);
            None
        }
        None => {
            faults.add(if first.starts_with('-') { Fault::Negative } else { Fault::Unreadable });
            None
        }
        found => found,
    }
}

/// The window that the draft's list form names beside its own limit: a second in `50, 50;w=1, 1000;w=60`.
fn window(text: &str, limit: f64) -> Option<Duration> {
    let policies = text.split(',').map(|policy| policy.split(';').map(str::trim));
    policies
        .filter_map(|mut parts| {
            let of = when::number(parts.next()?)?;
            let seconds = when::number(parts.find_map(|part| part.strip_prefix("w="))?)?;
            (of == limit).then_some(seconds)
        })
        .find(|seconds| (1.0..=when::LONGEST).contains(seconds))
        .map(Duration::from_secs_f64)
}

/// Takes `value` where nothing was said yet, else whichever `keep` prefers.
fn put<T: PartialEq + Copy>(
    place: &mut Option<T>,
    value: Option<T>,
    keep: fn(T, T) -> T,
    faults: &mut Faults,
) {
    let Some(value) = value else { return };
    *place = Some(match *place {
        Some(old) if old != value => {
            faults.add(Fault::Repeated);
            keep(old, value)
        }
        _ => value,
    });
}

impl RateLimits {
    /// Whether a header's name (lower-case) is one that [`RateLimits::parse`] reads.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        let first = name.as_bytes().first();
        matches!(first, Some(b'x' | b'r' | b'a')) && known(name).is_some()
    }

    /// Reads the headers of an answer with `status`; other headers may be among them, names are lower-case.
    /// `unix_now` is the wall clock's seconds at `now`, for headers that give a date.
    pub fn parse<'a>(
        status: u16,
        headers: impl Iterator<Item = (&'a str, &'a [u8])>,
        now: MonoTime,
        unix_now: f64,
    ) -> Self {
        let mut faults = Faults::default();
        let mut readings = [Reading::default(); 4];
        let (mut retry, mut retry_ms) = (None, None);
        let at = |seconds: f64| now + Duration::from_secs_f64(seconds.clamp(0.0, when::LONGEST));
        for (header, value) in headers {
            let Some(name) = known(header) else { continue };
            let Some(text) = std::str::from_utf8(value).ok().filter(|t| t.is_ascii() && t.len() <= 64) else {
                faults.add(Fault::Unreadable);
                continue;
            };
            let text = text.trim();
            match name {
                Name::RetryAfter => {
                    put(&mut retry, when::seconds_until(text, unix_now, &mut faults), f64::max, &mut faults);
                }
                Name::RetryAfterMs => {
                    put(&mut retry_ms, when::milliseconds(text, &mut faults), f64::max, &mut faults);
                }
                Name::Of(kind, part) => {
                    let reading = &mut readings[kind as usize];
                    match part {
                        Part::Limit => {
                            let limit = count(text, &mut faults);
                            if limit == Some(0.0) {
                                faults.add(Fault::Negative);
                            }
                            let limit = limit.filter(|l| *l > 0.0);
                            put(&mut reading.limit, limit, f64::min, &mut faults);
                            reading.window = limit.and_then(|l| window(text, l)).or(reading.window);
                        }
                        Part::Remaining => {
                            put(&mut reading.remaining, count(text, &mut faults), f64::min, &mut faults);
                        }
                        Part::Reset => {
                            let reset = when::seconds_until(text, unix_now, &mut faults).map(at);
                            put(&mut reading.reset, reset, MonoTime::max, &mut faults);
                        }
                    }
                }
            }
        }
        readings.iter_mut().for_each(|r| r.check(&mut faults));
        let [requests, tokens, input, output] = readings;
        let tightest = if output.is_empty() || !input.is_empty() && input.share() <= output.share() {
            input
        } else {
            output
        };
        let tokens = if tokens.is_empty() { tightest } else { tokens };
        // the finer one is the one that was meant
        let retry_at = retry_ms.or(retry).filter(|_| matches!(status, 429 | 503 | 529)).map(at);
        Self { requests, tokens, retry_at, faults }
    }

    /// Nothing was said.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.tokens.is_empty() && self.retry_at.is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const NOW: MonoTime = MonoTime::from_secs(1000);
    const UNIX: f64 = 1_771_452_000.0; // 2026-02-18T22:00:00Z

    fn parse(status: u16, headers: &[(&str, &str)]) -> RateLimits {
        RateLimits::parse(status, headers.iter().map(|(n, v)| (*n, v.as_bytes())), NOW, UNIX)
    }

    fn after(millis: u64) -> Option<MonoTime> {
        Some(NOW + Duration::from_millis(millis))
    }

    fn reading(limit: f64, remaining: f64, reset: u64) -> Reading {
        Reading { limit: Some(limit), remaining: Some(remaining), reset: after(reset), window: None }
    }

    #[test]
    fn openai_with_both_kinds() {
        let got = parse(
            200,
            &[
                ("content-type", "application/json"),
                ("x-ratelimit-limit-requests", "3000"),
                ("x-ratelimit-limit-tokens", "250000"),
                ("x-ratelimit-remaining-requests", "2999"),
                ("x-ratelimit-remaining-tokens", "249989"),
                ("x-ratelimit-reset-requests", "20ms"),
                ("x-ratelimit-reset-tokens", "6m0s"),
            ],
        );
        assert_eq!(got.requests, reading(3000.0, 2999.0, 20));
        assert_eq!(got.tokens, reading(250_000.0, 249_989.0, 360_000));
        assert_eq!((got.retry_at, got.faults), (None, Faults::default()));
    }

    #[test]
    fn azure_says_what_remains_and_spells_its_reset_differently() {
        let got = parse(
            429,
            &[
                ("x-ratelimit-remaining-requests", "79"),
                ("x-ratelimit-remaining-tokens", "0"),
                ("x-rate-limit-reset-tokens", "55"),
                ("retry-after", "56"),
                ("retry-after-ms", "55500"),
            ],
        );
        assert_eq!(got.requests, Reading { remaining: Some(79.0), ..Reading::default() });
        let tokens = Reading { remaining: Some(0.0), reset: after(55_000), ..Reading::default() };
        assert_eq!((got.tokens, got.retry_at), (tokens, after(55_500)));
        // what it sends for some models
        let got = parse(
            200,
            &[
                ("x-ratelimit-limit-tokens", "-1"),
                ("x-ratelimit-remaining-tokens", "-1"),
                ("x-ratelimit-reset-tokens", "0"),
            ],
        );
        assert!(got.is_empty());
        assert_eq!(got.faults.iter().collect::<Vec<_>>(), [Fault::Negative, Fault::Incomplete]);
    }

    #[test]
    fn anthropic_by_the_tightest_of_its_tokens() {
        let mut headers = vec![
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", "49"),
            ("anthropic-ratelimit-requests-reset", "2026-02-18T22:00:01Z"),
            ("anthropic-ratelimit-input-tokens-limit", "40000"),
            ("anthropic-ratelimit-input-tokens-remaining", "39000"),
            ("anthropic-ratelimit-output-tokens-limit", "8000"),
            ("anthropic-ratelimit-output-tokens-remaining", "1000"),
            ("anthropic-ratelimit-output-tokens-reset", "2026-02-18T22:00:52Z"),
        ];
        let got = parse(200, &headers);
        assert_eq!(got.requests, reading(50.0, 49.0, 1000));
        assert_eq!(got.tokens, reading(8000.0, 1000.0, 52_000));
        headers.push(("anthropic-ratelimit-tokens-limit", "48000"));
        headers.push(("anthropic-ratelimit-tokens-remaining", "40000"));
        headers.push(("anthropic-ratelimit-tokens-reset", "2026-02-18T22:00:10Z"));
        assert_eq!(parse(200, &headers).tokens, reading(48_000.0, 40_000.0, 10_000));
    }

    #[test]
    fn plain_and_draft_names_mean_requests() {
        let plain = [
            ("x-ratelimit-limit", "20"),
            ("x-ratelimit-remaining", "19"),
            ("x-ratelimit-reset", "1771452060000"),
        ];
        assert_eq!(parse(200, &plain).requests, reading(20.0, 19.0, 60_000));
        let draft =
            [("ratelimit-limit", "100, 100;w=60"), ("ratelimit-remaining", "50"), ("ratelimit-reset", "30")];
        let minute = Some(Duration::from_secs(60));
        assert_eq!(parse(200, &draft).requests, Reading { window: minute, ..reading(100.0, 50.0, 30_000) });
        for (text, secs) in [
            ("50, 50;w=1, 1000;w=60", 1),
            ("50, 1000;w=60, 50 ; w=1", 1),
            ("1000, 50;w=1, 1000;w=3600;burst=9", 3600),
        ] {
            let read = parse(200, &[("ratelimit-limit", text), ("ratelimit-remaining", "5")]).requests;
            assert_eq!(read.window, Some(Duration::from_secs(secs)), "{text}");
        }
        for text in ["50, 50;w=0", "50, 50;w=-1", "50, 50;w=1e9", "50;w", "50, 9;w=1"] {
            assert_eq!(
                parse(200, &[("ratelimit-limit", text), ("ratelimit-remaining", "5")]).requests.window,
                None
            );
        }
    }

    #[test]
    fn retry_after_counts_only_on_a_refusal() {
        for (value, expected) in [
            ("7", after(7000)),
            ("0.5", after(500)),
            ("3600", after(3_600_000)),
            ("Wed, 18 Feb 2026 22:00:07 GMT", after(7000)),
            ("86400", after(86_400_000)),
            ("999999", None),
            ("-3", None),
            ("never", None),
        ] {
            assert_eq!(parse(429, &[("retry-after", value)]).retry_at, expected, "{value}");
            assert_eq!(parse(200, &[("retry-after", value)]).retry_at, None);
        }
    }

    #[test]
    fn lies_are_named_and_contained() {
        for (headers, requests, fault) in [
            (
                vec![("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "11")],
                Reading { limit: Some(10.0), remaining: Some(10.0), ..Reading::default() },
                Fault::AboveLimit,
            ),
            (
                vec![("x-ratelimit-limit", "10")],
                Reading { limit: Some(10.0), ..Reading::default() },
                Fault::Incomplete,
            ),
            (vec![("x-ratelimit-reset", "10")], Reading::default(), Fault::Incomplete),
            (vec![("x-ratelimit-limit", "0")], Reading::default(), Fault::Negative),
            (vec![("x-ratelimit-limit", "NaN")], Reading::default(), Fault::Unreadable),
            (vec![("x-ratelimit-remaining", "inf")], Reading::default(), Fault::Unreadable),
            (vec![("x-ratelimit-remaining", "\u{663}")], Reading::default(), Fault::Unreadable),
            (vec![("x-ratelimit-limit", "9999999999999999")], Reading::default(), Fault::TooLarge),
            (
                vec![("x-ratelimit-remaining", "7"), ("x-ratelimit-remaining", "3")],
                Reading { remaining: Some(3.0), ..Reading::default() },
                Fault::Repeated,
            ),
            (
                vec![("x-ratelimit-remaining", "3"), ("x-ratelimit-reset", "1994-11-06T08:49:37Z")],
                Reading { remaining: Some(3.0), reset: Some(NOW), ..Reading::default() },
                Fault::Past,
            ),
        ] {
            let got = parse(200, &headers);
            assert_eq!(got.requests, requests, "{headers:?}");
            assert_eq!(got.faults.iter().collect::<Vec<_>>(), [fault], "{headers:?}");
        }
    }

    #[test]
    fn a_fault_is_new_once() {
        let (mut known, mut some) = (Faults::default(), Faults::default());
        some.add(Fault::Past);
        assert_eq!(known.merge(some), some);
        assert!(known.merge(some).is_empty());
    }

    #[test]
    fn names_are_told_apart() {
        for yes in ["retry-after", "retry-after-ms", "ratelimit-reset", "x-ratelimit-limit-tokens"] {
            assert!(RateLimits::is_name(yes), "{yes}");
        }
        for no in ["", "date", "x-request-id", "x-ratelimit-", "x-ratelimit-limit-cats", "anthropic-version"]
        {
            assert!(!RateLimits::is_name(no), "{no}");
        }
    }

    const NAMES: [&str; 12] = [
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "x-ratelimit-limit-tokens",
        "x-rate-limit-remaining-tokens",
        "x-ratelimit-reset-tokens",
        "anthropic-ratelimit-output-tokens-reset",
        "anthropic-ratelimit-input-tokens-limit",
        "ratelimit-reset",
        "retry-after",
        "retry-after-ms",
        "date",
    ];

    /// Bytes, and strings that look like what belongs there.
    fn values() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            vec(any::<u8>(), 0..40),
            "[-+]?[0-9]{0,30}[.]?[0-9]{0,5}(ms|s|m|h|d|ns)?([0-9.]{0,9}(ms|s))?".prop_map(String::into_bytes),
            "[0-9]{1,4}-[0-9]{1,2}-[0-9]{1,2}T[0-9]{1,2}:[0-9]{2}:[0-9]{2}(Z|[+]99:99)"
                .prop_map(String::into_bytes),
            "(Sun|Wed), [0-9]{2} (Nov|Feb) [0-9]{1,5} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
                .prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_sent_what_comes_out_is_sane(
            sent in vec((0..NAMES.len(), values()), 0..12),
            status in any::<u16>(),
            at in any::<u64>(),
            unix in prop_oneof![Just(UNIX), any::<f64>()],
        ) {
            let now = MonoTime::from_nanos(at);
            let headers = sent.iter().map(|(i, v)| (NAMES[*i], v.as_slice()));
            let got = RateLimits::parse(status, headers, now, unix);
            let latest = now + Duration::from_secs(86_400);
            for r in [got.requests, got.tokens] {
                prop_assert!(r.limit.is_none_or(|l| l > 0.0 && l <= MOST));
                prop_assert!(r.remaining.is_none_or(|l| (0.0..=MOST).contains(&l)));
                prop_assert!(r.reset.is_none_or(|t| t >= now && t <= latest));
                if let (Some(limit), Some(remaining)) = (r.limit, r.remaining) {
                    prop_assert!(remaining <= limit);
                }
            }
            prop_assert!(got.retry_at.is_none_or(|t| t >= now && t <= latest));
        }
    }
}
