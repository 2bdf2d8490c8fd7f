//! One endpoint: its breaker, its keys, its load, and how it does beside its peers.

use std::time::Duration;

use crate::policy::supply::fleet::{Hold, Want};
use crate::policy::supply::{Breaker, BreakerParams, BreakerState, Member, Transition, Verdict};
use crate::policy::units::{KeyId, MonoTime, Sample};

/// How long a key that was refused rests: long enough not to be a nuisance, short enough for a mended one.
const KEY_REST: Duration = Duration::from_secs(60);
/// The share an endpoint that comes back begins with.
const FIRST_SHARE: f64 = 0.1;
/// Weight of the newest response in the averages.
const NEWEST: f64 = 0.1;

/// One endpoint in numbers, for metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The breaker's state.
    pub breaker: BreakerState,
    /// When an open breaker lets its probe pass.
    pub breaker_open_until: Option<MonoTime>,
    /// Attempts under way.
    pub in_flight: u32,
    /// It rests because it was far slower than its peers.
    pub ejected: bool,
    /// Keys that rest.
    pub keys_resting: usize,
}

/// How quick it is, normalised by length.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Seconds to the first token.
    pub(super) first: f64,
    /// Seconds per output token after it.
    pub(super) token: f64,
    pub(super) samples: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    member: Member,
    pub(super) breaker: Breaker,
    pub(super) in_flight: u32,
    /// When each key's rest is over.
    keys: Vec<MonoTime>,
    next_key: usize,
    /// When it came back, while it is being eased in.
    back_since: Option<MonoTime>,
    pub(super) pace: Pace,
    pub(super) ejected_until: MonoTime,
    /// Ejections in a row.
    pub(super) ejections: u32,
}

impl Endpoint {
    pub(super) fn new(member: Member, breaker: BreakerParams, now: MonoTime) -> Self {
        Self {
            breaker: Breaker::new(breaker),
            in_flight: 0,
            keys: vec![MonoTime::ZERO; usize::from(member.keys.max(1))],
            next_key: 0,
            back_since: None,
            pace: Pace::default(),
            ejected_until: now,
            ejections: 0,
            member,
        }
    }

    /// The key `want` may go with now.
    pub(super) fn opening(&self, now: MonoTime, want: &Want) -> Result<KeyId, Hold> {
        match self.breaker.peek(now) {
            Verdict::Pass => {}
            Verdict::Probe if want.may_probe => {}
            Verdict::OpenUntil(until) => return Err(Hold::Down { until }),
            Verdict::Probe | Verdict::Probing => return Err(Hold::Probe),
        }
        self.key(now)
    }

    /// In turn, without those that rest; if all do, the one whose rest ends first.
    fn key(&self, now: MonoTime) -> Result<KeyId, Hold> {
        let n = self.keys.len();
        let in_turn = (0..n).map(|i| (self.next_key + i) % n);
        let awake = in_turn.clone().find(|k| self.keys[*k] <= now);
        let key = awake.or_else(|| in_turn.min_by_key(|k| self.keys[*k])).unwrap_or_default();
        Ok(KeyId(u16::try_from(key).unwrap_or_default()))
    }

    pub(super) fn start(&mut self, now: MonoTime, want: &Want, key: KeyId) -> (Verdict, Option<Transition>) {
        self.in_flight = self.in_flight.saturating_add(1);
        self.next_key = (usize::from(key.0) + 1) % self.keys.len();
        self.breaker.start(now, want.ticket)
    }

    pub(super) fn release(&mut self, now: MonoTime, sample: Option<&Sample>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(sample) = sample {
            self.pace.observe(sample);
        }
        let eased = self.member.endpoint.slow_start;
        if self.back_since.is_some_and(|since| now.since(since) >= eased) {
            self.back_since = None;
        }
    }

    /// Its breaker changed state: one that closes again is eased in.
    pub(super) fn turned(&mut self, now: MonoTime, transition: Option<Transition>) {
        if transition.is_some_and(|t| t.to == BreakerState::Closed) {
            self.comes_back(now);
        }
    }

    pub(super) fn comes_back(&mut self, now: MonoTime) {
        self.back_since = (!self.member.endpoint.slow_start.is_zero()).then_some(now);
        self.pace = Pace::default();
    }

    /// Lets a key rest, unless it is the client's own or the only one.
    pub(super) fn rest(&mut self, now: MonoTime, key: KeyId) -> Option<MonoTime> {
        if self.member.keys < 2 {
            return None;
        }
        let until = now + KEY_REST;
        let rests = self.keys.get_mut(usize::from(key.0))?;
        *rests = until;
        Some(until)
    }

    pub(super) fn ejected(&self, now: MonoTime) -> bool {
        now < self.ejected_until
    }

    /// In flight over what it takes; what a new request would make of it, so that empty ones differ too.
    pub(super) fn load(&self, now: MonoTime) -> f64 {
        let ramp = self.member.endpoint.slow_start.as_secs_f64();
        let share = match self.back_since {
            Some(since) if ramp > 0.0 => (now.since(since).as_secs_f64() / ramp).clamp(FIRST_SHARE, 1.0),
            _ => 1.0,
        };
        f64::from(self.in_flight.saturating_add(1)) / (f64::from(self.member.endpoint.weight.max(1)) * share)
    }

    pub(super) fn status(&self, now: MonoTime) -> Status {
        Status {
            breaker: self.breaker.state(),
            breaker_open_until: self.breaker.open_until(),
            in_flight: self.in_flight,
            ejected: self.ejected(now),
            keys_resting: self.keys.iter().filter(|until| **until > now).count(),
        }
    }
}

impl Pace {
    fn observe(&mut self, s: &Sample) {
        if s.output.0 == 0 {
            return;
        }
        let tokens = s.output.0 as f64;
        let (first, token) = if s.stream {
            let rest = s.last.saturating_sub(s.first).as_secs_f64();
            (s.first.as_secs_f64(), rest / (tokens - 1.0).max(1.0))
        } else {
            // a whole answer has no first token: only its pace can be compared
            (0.0, s.last.as_secs_f64() / tokens)
        };
        let ease = |old: f64, new: f64| if self.samples == 0 { new } else { old + NEWEST * (new - old) };
        (self.first, self.token) = (ease(self.first, first), ease(self.token, token));
        self.samples = self.samples.saturating_add(1);
    }
}
