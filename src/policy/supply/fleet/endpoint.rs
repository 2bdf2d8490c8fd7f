//! One endpoint: its breaker, its keys, its load, and how it does beside its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::policy::supply::concurrency::{Change, Concurrency, Learning};
use crate::policy::supply::fleet::quickness::Quickness;
use crate::policy::supply::fleet::{Attempt, Hold, Report, Until, Want};
use crate::policy::supply::pace::{Pace, PaceParams, Pacer, RateLimits};
use crate::policy::supply::{Breaker, BreakerState, ConcurrencyMode, Member, Params, Transition, Verdict};
use crate::policy::units::{EndpointId, KeyId, ModelId, MonoTime, Place, Sample, TenantId, Tokens};

/// How long a key that was refused rests: long enough not to be a nuisance, short enough for a mended one.
const KEY_REST: Duration = Duration::from_secs(60);
/// The share an endpoint that comes back begins with.
const FIRST_SHARE: f64 = 0.1;
/// Permits an endpoint begins with whose limit is to be learned.
const START: u32 = 64;
/// Rates kept at once: keys times models. Where clients bring their own keys, anybody can make new ones.
const MAX_PACERS: usize = 1024;

/// One endpoint in numbers, for metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The breaker's state.
    pub breaker: BreakerState,
    /// When an open breaker lets its probe pass.
    pub breaker_open_until: Option<MonoTime>,
    /// Attempts under way that count against its limit.
    pub in_flight: u32,
    /// What it was found to take; none while nothing bounds it.
    pub limit: Option<u32>,
    /// Requests that the scarcest known rate still allows.
    pub requests_remaining: Option<f64>,
    /// Tokens that the scarcest known rate still allows.
    pub tokens_remaining: Option<f64>,
    /// Rates that the upstream has stopped.
    pub stopped: usize,
    /// The last active check failed.
    pub unhealthy: bool,
    /// It rests because it was far slower than its peers.
    pub ejected: bool,
    /// Keys that rest.
    pub keys_resting: usize,
}

/// Whose rate: the endpoint's key and nobody, or no key of its own and the client.
type Line = (KeyId, TenantId, ModelId);

#[derive(Clone, Debug)]
struct Rate {
    pacer: Pacer,
    used: MonoTime,
    /// Attempts under way.
    open: u32,
}

#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    member: Member,
    pub(super) breaker: Breaker,
    /// Attempts that count against its limit.
    pub(super) in_flight: u32,
    /// The most of them in this second.
    peak: u32,
    /// Attempts beside those.
    others: u32,
    pub(super) law: Concurrency,
    pace_params: PaceParams,
    pacers: BTreeMap<Line, Rate>,
    /// Lines whose stop was told and whose end was not yet.
    stopped: BTreeSet<Line>,
    unhealthy: bool,
    /// When each key's rest is over.
    keys: Vec<MonoTime>,
    next_key: usize,
    /// When it came back, while it is being eased in.
    back_since: Option<MonoTime>,
    pub(super) pace: Quickness,
    pub(super) ejected_until: MonoTime,
    /// Ejections in a row.
    pub(super) ejections: u32,
}

impl Endpoint {
    pub(super) fn new(member: Member, params: &Params, now: MonoTime) -> Self {
        let e = &member.endpoint;
        let learning = match e.concurrency {
            ConcurrencyMode::Fixed(n) => Learning::Fixed(n),
            ConcurrencyMode::Unlimited => Learning::Unlimited,
            ConcurrencyMode::Learn => Learning::Learn { start: START },
            ConcurrencyMode::Auto if !params.learn => Learning::Unlimited,
            ConcurrencyMode::Auto if member.hosted => Learning::Hosted,
            ConcurrencyMode::Auto => Learning::Learn { start: START },
        };
        let most = if params.most == 0 { u32::MAX } else { params.most };
        Self {
            breaker: Breaker::new(params.breaker.clone()),
            in_flight: 0,
            peak: 0,
            others: 0,
            law: Concurrency::new(learning, most),
            pace_params: PaceParams {
                requests_per_minute: e.requests_per_minute.map(|n| n as f64),
                tokens_per_minute: e.tokens_per_minute.map(|n| n as f64),
                buffer: e.rate_limit_buffer,
            },
            pacers: BTreeMap::new(),
            stopped: BTreeSet::new(),
            unhealthy: false,
            keys: vec![MonoTime::ZERO; usize::from(member.keys.max(1))],
            next_key: 0,
            back_since: None,
            pace: Quickness::default(),
            ejected_until: now,
            ejections: 0,
            member,
        }
    }

    /// The key `want` may go with now.
    pub(super) fn opening(&self, now: MonoTime, want: &Want) -> Result<KeyId, Hold> {
        let verdict = self.breaker.peek(now);
        match verdict {
            Verdict::Pass => {}
            Verdict::Probe if want.may_probe => {}
            Verdict::OpenUntil(at) => return Err(Hold { until: Until::Up, at }),
            Verdict::Probe | Verdict::Probing => {
                return Err(Hold { until: Until::Probed, at: MonoTime::MAX });
            }
        }
        let key = self.key(now, want);
        // a stop is told of also where it is full: it may end the wait. And where all hang that it takes, a probe tells
        let full = want.paced && verdict == Verdict::Pass && self.is_full();
        let stopped = matches!(key, Err(Hold { until: Until::Rate { stopped: true }, .. }));
        if full && !stopped { Err(Hold::ROOM) } else { key }
    }

    /// What it has in flight, and its probe where that is due.
    pub(super) fn wanted(&self, now: MonoTime) -> u32 {
        self.in_flight.saturating_add(u32::from(self.breaker.peek(now) == Verdict::Probe))
    }

    /// It has as many in flight as it takes.
    fn is_full(&self) -> bool {
        self.law.limit().is_some_and(|limit| self.in_flight >= limit.max(1))
    }

    /// In turn, without those that rest and those whose rate is used up; if all rest, the one whose rest ends first.
    fn key(&self, now: MonoTime, want: &Want) -> Result<KeyId, Hold> {
        let n = self.keys.len();
        let in_turn = || (0..n).map(|i| (self.next_key + i) % n);
        let any_awake = self.keys.iter().any(|until| *until <= now);
        let wakes_first = in_turn().min_by_key(|k| self.keys[*k]);
        let mut held: Option<Hold> = None;
        for k in in_turn() {
            let usable = if any_awake { self.keys[k] <= now } else { Some(k) == wakes_first };
            if !usable {
                continue;
            }
            let key = KeyId(u16::try_from(k).unwrap_or_default());
            match self.rate(now, want, key) {
                None => return Ok(key),
                Some(hold) => held = Some(held.map_or(hold, |h| h.or(hold))),
            }
        }
        Err(held.unwrap_or(Hold::ROOM))
    }

    /// `failed` rests or its rate is stopped, and another key neither.
    pub(super) fn another_key(&self, now: MonoTime, want: &Want, failed: KeyId) -> bool {
        let barred = |key: KeyId| {
            let rate = self.pacers.get(&self.line(key, want.tenant, want.model));
            let rests = self.keys.get(usize::from(key.0)).is_none_or(|until| *until > now);
            rests || rate.is_some_and(|rate| rate.pacer.refused_until(now).is_some())
        };
        let all = (0..).zip(&self.keys).map(|(key, _)| KeyId(key));
        barred(failed) && all.filter(|key| *key != failed).any(|key| !barred(key))
    }

    /// What the rate of `key` makes `want` wait for.
    fn rate(&self, now: MonoTime, want: &Want, key: KeyId) -> Option<Hold> {
        if !want.paced {
            return None;
        }
        let Some(Rate { pacer, .. }) = self.pacers.get(&self.line(key, want.tenant, want.model)) else {
            // nothing is known of it; what is configured begins full
            return None;
        };
        let stopped = pacer.refused_until(now).is_some();
        match pacer.ready(now, want.cost) {
            Pace::Now => None,
            Pace::At(at) | Pace::Probing(at) => Some(Hold { until: Until::Rate { stopped }, at }),
        }
    }

    fn line(&self, key: KeyId, tenant: TenantId, model: ModelId) -> Line {
        (key, if self.member.keys == 0 { tenant } else { TenantId::default() }, model)
    }

    /// The pacer of an attempt under way.
    pub(super) fn pacer(&mut self, attempt: &Attempt) -> Option<&mut Pacer> {
        if !attempt.paced {
            return None;
        }
        let line = self.line(attempt.place.key, attempt.tenant, attempt.model);
        self.pacers.get_mut(&line).map(|rate| &mut rate.pacer)
    }

    /// The attempt's rate was stopped, and that was told.
    pub(super) fn stopped(&mut self, attempt: &Attempt) {
        self.stopped.insert(self.line(attempt.place.key, attempt.tenant, attempt.model));
    }

    /// Tells of rests and stops that were told of and have ended since `before`.
    pub(super) fn tell_what_is_over(
        &mut self,
        endpoint: EndpointId,
        before: MonoTime,
        now: MonoTime,
        reports: &mut Vec<Report>,
    ) {
        let ended = |until: MonoTime| before < until && until <= now;
        if ended(self.ejected_until) {
            reports.push(Report::IsBack { endpoint });
        }
        for (key, _) in (0..).zip(&self.keys).filter(|(_, until)| ended(**until)) {
            reports.push(Report::KeyIsBack { place: Place { endpoint, key: KeyId(key) } });
        }
        let pacers = &self.pacers;
        self.stopped.retain(|line| {
            let stands = pacers.get(line).is_some_and(|rate| !rate.pacer.is_open());
            if !stands {
                let (key, _, model) = *line;
                reports.push(Report::GoesOn { place: Place { endpoint, key }, model });
            }
            stands
        });
    }

    fn charge(&mut self, now: MonoTime, want: &Want, key: KeyId) {
        let line = self.line(key, want.tenant, want.model);
        if self.pacers.len() >= MAX_PACERS && !self.pacers.contains_key(&line) {
            // the one that was not used for the longest; not first of all those that are stopped, for those are not used
            // and must not be forgotten, nor those whose charges are not settled yet
            let worth = |rate: &Rate| (rate.pacer.stopped_until(now).is_some(), rate.open > 0, rate.used);
            let least = self.pacers.iter().min_by_key(|(_, rate)| worth(rate)).map(|(line, _)| *line);
            least.map(|line| self.pacers.remove(&line));
        }
        let new = || Rate { pacer: Pacer::new(&self.pace_params, now), used: now, open: 0 };
        let rate = self.pacers.entry(line).or_insert_with(new);
        (rate.used, rate.open) = (now, rate.open.saturating_add(1));
        rate.pacer.charge(now, want.ticket, want.cost);
    }

    pub(super) fn start(&mut self, now: MonoTime, want: &Want, key: KeyId) -> (Verdict, Option<Transition>) {
        if want.paced {
            self.in_flight = self.in_flight.saturating_add(1);
            self.peak = self.peak.max(self.in_flight);
            self.charge(now, want, key);
        } else {
            self.others = self.others.saturating_add(1);
        }
        self.next_key = (usize::from(key.0) + 1) % self.keys.len();
        self.breaker.start(now, want.ticket)
    }

    pub(super) fn release(&mut self, now: MonoTime, attempt: &Attempt, sample: Option<&Sample>) {
        if let Some(sample) = sample {
            self.pace.observe(sample);
            if attempt.paced {
                self.law.sample(now, sample, self.in_flight);
            }
        }
        let used =
            sample.map(|s| Tokens(s.prompt.0.saturating_sub(s.uncounted.0).saturating_add(s.output.0)));
        if attempt.paced {
            let line = self.line(attempt.place.key, attempt.tenant, attempt.model);
            if let Some(rate) = self.pacers.get_mut(&line) {
                rate.pacer.settle(now, attempt.ticket, used);
                rate.open = rate.open.saturating_sub(1);
            }
            self.in_flight = self.in_flight.saturating_sub(1);
        } else {
            self.others = self.others.saturating_sub(1);
        }
        let eased = self.member.endpoint.slow_start;
        if self.back_since.is_some_and(|since| now.since(since) >= eased) {
            self.back_since = None;
        }
    }

    /// An answer of it names a rate limit: where nobody said otherwise, it is hosted, whatever its address looks like.
    pub(super) fn told(&mut self, limits: &RateLimits) {
        let named = limits.requests.limit.is_some() || limits.tokens.limit.is_some();
        if named && self.member.endpoint.concurrency == ConcurrencyMode::Auto {
            self.law.hosted();
        }
    }

    /// Its breaker changed state: one that closes again is eased in.
    pub(super) fn turned(&mut self, now: MonoTime, transition: Option<Transition>) {
        if transition.is_some_and(|t| t.to == BreakerState::Closed) {
            self.comes_back(now);
        }
    }

    /// Closes a second.
    pub(super) fn second(&mut self, now: MonoTime, waiting: bool) -> Option<Change> {
        let peak = std::mem::replace(&mut self.peak, self.in_flight);
        self.law.tick(now, peak, waiting)
    }

    /// An active check failed or passed.
    pub(super) fn checked(&mut self, now: MonoTime, healthy: bool) {
        if std::mem::replace(&mut self.unhealthy, !healthy) && healthy {
            self.comes_back(now);
        }
    }

    pub(super) fn comes_back(&mut self, now: MonoTime) {
        self.law.reset(now);
        self.back_since = (!self.member.endpoint.slow_start.is_zero()).then_some(now);
        self.pace = Quickness::default();
    }

    /// Lets a key rest, unless it is the client's own or the last one that does not rest.
    pub(super) fn rest(&mut self, now: MonoTime, key: KeyId) -> Option<MonoTime> {
        let others = self.keys.iter().enumerate().filter(|(k, _)| *k != usize::from(key.0));
        if self.member.keys < 2 || others.map(|(_, until)| *until).all(|until| until > now) {
            return None;
        }
        let until = now + KEY_REST;
        let rests = self.keys.get_mut(usize::from(key.0))?;
        *rests = until;
        Some(until)
    }

    /// It is to be used only where nothing else is left.
    pub(super) fn ejected(&self, now: MonoTime) -> bool {
        self.unhealthy || now < self.ejected_until
    }

    /// In flight, `of_limit`: over what it takes; what a new request would make of it, so that empty ones differ too.
    pub(super) fn load(&self, now: MonoTime, of_limit: bool) -> f64 {
        let ramp = self.member.endpoint.slow_start.as_secs_f64();
        let share = match self.back_since {
            Some(since) if ramp > 0.0 => (now.since(since).as_secs_f64() / ramp).clamp(FIRST_SHARE, 1.0),
            _ => 1.0,
        };
        let takes = self.law.limit().filter(|_| of_limit).map_or(1.0, |limit| f64::from(limit.max(1)));
        let weight = f64::from(self.member.endpoint.weight.max(1));
        let open = self.in_flight.saturating_add(self.others).saturating_add(1);
        f64::from(open) / (weight * share * takes)
    }

    pub(super) fn status(&self, now: MonoTime) -> Status {
        Status {
            breaker: self.breaker.state(),
            breaker_open_until: self.breaker.open_until(),
            in_flight: self.in_flight,
            limit: self.law.limit(),
            requests_remaining: least(self.pacers.values().map(|r| r.pacer.status(now).requests.remaining)),
            tokens_remaining: least(self.pacers.values().map(|r| r.pacer.status(now).tokens.remaining)),
            stopped: self.pacers.values().filter(|r| r.pacer.stopped_until(now).is_some()).count(),
            unhealthy: self.unhealthy,
            ejected: now < self.ejected_until,
            keys_resting: self.keys.iter().filter(|until| **until > now).count(),
        }
    }
}

fn least(all: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    all.flatten().min_by(f64::total_cmp)
}
