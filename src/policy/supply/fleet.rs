//! The endpoints of one upstream group: which of them takes a request, and whether any can.
//!
//! A request goes to the first tier that has an endpoint for it. Within a tier the less loaded of two drawn at
//! random takes it (Mitzenmacher 2001), load being in flight over what the endpoint takes, where both have a limit;
//! a broken one that is due for its probe is tried first. [`Fleet::choose`] only looks; [`Fleet::start`] takes what
//! was chosen. The engine asks it for every admission, and tells it how attempts end.
//!
//! The limit of the group is the sum of what its endpoints were found to take (`concurrency`), and each key's rate is
//! kept (`pace`): what has to wait for either waits in the queue, not at the upstream.
//!
//! ```text
//! usable = breaker closed ∧ not ejected ∧ in_flight < S ∧ a key that does not rest and has rate left
//! ```

mod endpoint;
mod health;
mod outlier;
mod quickness;
mod terms;

use std::time::Duration;

pub use endpoint::Status as EndpointStatus;
pub use terms::{Attempt, Choice, Hold, Paces, Report, SaidBy, Until, Want};

use crate::policy::supply::pace::{RateLimits, Refusal429};
use crate::policy::supply::{BreakerState, Member, Params, ServerLoad, Transition, Verdict};
use crate::policy::units::{EndpointId, KeyId, MonoTime, Outcome, Place, Sample, Ticket, Tokens};
use endpoint::Endpoint;

/// The endpoints of a group.
#[derive(Clone, Debug)]
pub struct Fleet {
    params: Params,
    endpoints: Vec<Endpoint>,
    /// Indices by tier, first choice first.
    tiers: Vec<Vec<usize>>,
    outliers_at: MonoTime,
    /// When the current second began.
    second: MonoTime,
}

impl Fleet {
    /// A fleet with nothing in flight. Without endpoints in `params` it has one that takes everything.
    #[must_use]
    pub fn new(mut params: Params, now: MonoTime) -> Self {
        if params.members.is_empty() {
            params.members.push(Member::default());
        }
        let endpoints: Vec<Endpoint> =
            params.members.iter().map(|m| Endpoint::new(m.clone(), &params, now)).collect();
        let mut levels: Vec<u32> = params.members.iter().map(|m| m.endpoint.tier).collect();
        levels.sort_unstable();
        levels.dedup();
        let at = |level: &u32| {
            let of = |(i, m): (usize, &Member)| (m.endpoint.tier == *level).then_some(i);
            params.members.iter().enumerate().filter_map(of).collect()
        };
        let tiers = levels.iter().map(at).collect();
        Self { params, endpoints, tiers, outliers_at: now, second: now }
    }

    /// Where `want` may go now.
    #[must_use]
    pub fn choose(&self, now: MonoTime, want: &Want) -> Choice {
        let may_return = want.avoid.is_none_or(|(_, until)| until <= now);
        if let [only] = self.endpoints.as_slice()
            && may_return
        {
            return match only.opening(now, want) {
                Ok(key) => Choice::Go(Place { endpoint: EndpointId(0), key }),
                Err(hold) => Choice::Wait(hold),
            };
        }
        match self.seek(now, want) {
            Choice::Wait(_) if may_return => self.seek(now, &Want { avoid: None, ..*want }),
            choice => choice,
        }
    }

    fn seek(&self, now: MonoTime, want: &Want) -> Choice {
        let mut holds: Option<Hold> = None;
        // of the first tier that has any: an ejected endpoint still beats none
        let mut ejected = Vec::new();
        for tier in &self.tiers {
            let mut down = true;
            let (mut sound, mut unsound) = (Vec::new(), Vec::new());
            for &i in tier {
                let id = endpoint_id(i);
                if let Some((avoided, until)) = want.avoid
                    && avoided == id
                {
                    let hold = Hold { until: Until::Up, at: until };
                    holds = Some(holds.map_or(hold, |h| h.or(hold)));
                    continue;
                }
                let endpoint = &self.endpoints[i];
                match endpoint.opening(now, want) {
                    Ok(key) => {
                        let place = Place { endpoint: id, key };
                        if endpoint.breaker.peek(now) == Verdict::Probe {
                            return Choice::Go(place);
                        }
                        if endpoint.ejected(now) {
                            unsound.push((i, place));
                        } else {
                            down = false;
                            sound.push((i, place));
                        }
                    }
                    Err(hold) => {
                        down &= endpoint.ejected(now)
                            || match hold.until {
                                Until::Up | Until::Probed => true,
                                Until::Rate { .. } => hold.at > want.patience,
                                Until::Room => false,
                            };
                        holds = Some(holds.map_or(hold, |h| h.or(hold)));
                    }
                }
            }
            if let Some(place) = self.lighter(now, want.ticket, &sound) {
                return Choice::Go(place);
            }
            if ejected.is_empty() {
                ejected = unsound;
            }
            if !down && now < want.patience {
                break;
            }
        }
        let place = self.lighter(now, want.ticket, &ejected);
        place.map_or(Choice::Wait(holds.unwrap_or(Hold::ROOM)), Choice::Go)
    }

    /// The less loaded of two drawn at random.
    fn lighter(&self, now: MonoTime, ticket: Ticket, usable: &[(usize, Place)]) -> Option<Place> {
        match usable {
            [] => None,
            [(_, only)] => Some(*only),
            many => {
                let n = many.len() as u64;
                let drawn = mix(self.params.seed, ticket.0);
                let first = usize::try_from(drawn % n).unwrap_or_default();
                let second = usize::try_from((drawn / n) % (n - 1)).unwrap_or_default();
                let second = if second >= first { second + 1 } else { second };
                let (a, b) = (many.get(first)?, many.get(second)?);
                // of what has no limit no share is taken: their numbers are compared then
                let of_limit = [a.0, b.0].iter().all(|i| self.endpoints[*i].law.limit().is_some());
                let load = |i: usize| self.endpoints[i].load(now, of_limit);
                Some(if load(b.0) < load(a.0) { b.1 } else { a.1 })
            }
        }
    }

    /// Starts the attempt that [`Fleet::choose`] chose.
    pub fn start(&mut self, now: MonoTime, want: &Want, place: Place, reports: &mut Vec<Report>) -> Attempt {
        let mut attempt = Attempt {
            ticket: want.ticket,
            tenant: want.tenant,
            model: want.model,
            place,
            probe: false,
            generation: 0,
            paced: want.paced,
            level: 0,
            taken: 0,
        };
        if let Some(endpoint) = self.of(place) {
            let (verdict, transition) = endpoint.start(now, want, place.key);
            attempt.probe = verdict == Verdict::Probe;
            attempt.generation = endpoint.breaker.generation();
            attempt.level = endpoint.in_flight;
            attempt.taken = endpoint.law.taken_so_far();
            reports.extend(transition.map(|t| Report::Breaker(place.endpoint, t)));
        }
        attempt
    }

    /// The headers of an answer that is no 429 told of limits.
    pub fn limits(
        &mut self,
        now: MonoTime,
        attempt: &Attempt,
        limits: &RateLimits,
        reports: &mut Vec<Report>,
    ) {
        let Some(endpoint) = self.of(attempt.place) else { return };
        endpoint.told(limits);
        let in_flight = endpoint.in_flight;
        let (place, model) = (attempt.place, attempt.model);
        let Some(pacer) = endpoint.pacer(attempt) else { return };
        if let Some(until) = pacer.seen(now, attempt.ticket, limits) {
            let (said_by, known) = (SaidBy::Limits, pacer.status(now));
            reports.push(Report::Stopped { place, model, until, said_by, known, in_flight });
            endpoint.stopped(attempt);
        }
    }

    /// The answer is a 429.
    pub fn refused(
        &mut self,
        now: MonoTime,
        attempt: &Attempt,
        limits: &RateLimits,
        reports: &mut Vec<Report>,
    ) {
        let Some(endpoint) = self.of(attempt.place) else { return };
        endpoint.told(limits);
        let in_flight = endpoint.in_flight;
        let Some(pacer) = endpoint.pacer(attempt) else { return };
        let (place, model) = (attempt.place, attempt.model);
        let (stood, known) = (pacer.stopped_until(now).is_some(), pacer.status(now));
        match pacer.refused(now, attempt.ticket, limits) {
            // of a burst that is refused only the first is news
            Refusal429::Rate { .. } if stood => {}
            Refusal429::Rate { until } => {
                let said_by = SaidBy::of(limits, until);
                reports.push(Report::Stopped { place, model, until, said_by, known, in_flight });
                endpoint.stopped(attempt);
            }
            Refusal429::HiddenCap => {
                if endpoint.law.refused(now, attempt.level) {
                    reports.push(Report::HiddenCap { endpoint: place.endpoint, in_flight: attempt.level });
                }
            }
            Refusal429::Unrelated { news: true } => {
                endpoint.law.forgive();
                reports.push(Report::Unrelated { place, model });
            }
            Refusal429::Unrelated { news: false } => {}
        }
    }

    /// A head came. `alive`: its status is below 500; `refused`: it is a 429.
    pub fn head(
        &mut self,
        now: MonoTime,
        attempt: &Attempt,
        alive: bool,
        refused: bool,
        reports: &mut Vec<Report>,
    ) {
        let Some(endpoint) = self.of(attempt.place) else { return };
        if !refused && let Some(pacer) = endpoint.pacer(attempt) {
            pacer.answered(now, attempt.ticket);
        }
        if alive && !refused && attempt.paced {
            endpoint.law.taken(attempt.level);
        }
        if alive {
            let transition = endpoint.breaker.alive(attempt.ticket);
            endpoint.turned(now, transition);
            reports.extend(transition.map(|t| Report::Breaker(attempt.place.endpoint, t)));
        }
    }

    /// A stream's first token came, `first` after its dispatch.
    pub fn first_token(&mut self, now: MonoTime, attempt: &Attempt, prompt: Tokens, first: Duration) {
        if let Some(endpoint) = self.of(attempt.place) {
            endpoint.law.head(now, prompt, first, endpoint.in_flight);
        }
    }

    /// The endpoint's own key was refused (401): it rests while the others go on. The last one goes on too: its
    /// refusals say more to the operator than ours would.
    pub fn unauthorized(&mut self, now: MonoTime, attempt: &Attempt, reports: &mut Vec<Report>) {
        let place = attempt.place;
        if let Some(until) = self.of(place).and_then(|e| e.rest(now, place.key)) {
            reports.push(Report::KeyRests { place, until });
        }
    }

    /// The attempt is decided. `alive`: what its head showed, if there was one.
    pub fn ended(
        &mut self,
        now: MonoTime,
        attempt: &Attempt,
        outcome: Outcome,
        alive: Option<bool>,
        reports: &mut Vec<Report>,
    ) -> Option<Transition> {
        let endpoint = self.of(attempt.place)?;
        // a 503 or a 529; what broke off or never came has many causes
        if outcome == Outcome::Overload && alive == Some(false) && attempt.paced {
            endpoint.law.refused(now, attempt.level);
        }
        let transition = endpoint.breaker.ended(now, attempt.ticket, attempt.generation, outcome);
        endpoint.turned(now, transition);
        reports.extend(transition.map(|t| Report::Breaker(attempt.place.endpoint, t)));
        transition
    }

    /// No connection came about: the upstream has not seen it, and its rate is not charged.
    pub fn never_sent(&mut self, now: MonoTime, attempt: &Attempt) {
        if let Some(pacer) = self.of(attempt.place).and_then(|e| e.pacer(attempt)) {
            pacer.withdrawn(now, attempt.ticket);
        }
    }

    /// No head came in time.
    pub fn timed_out(&mut self, now: MonoTime, attempt: &Attempt) {
        if let Some(endpoint) = self.of(attempt.place) {
            endpoint.law.timed_out(now, attempt.level, attempt.taken);
        }
    }

    /// The attempt is over, its connection too. The sample is what a whole answer says.
    pub fn release(&mut self, now: MonoTime, attempt: &Attempt, sample: Option<&Sample>) {
        if let Some(endpoint) = self.of(attempt.place) {
            endpoint.release(now, attempt, sample);
        }
    }

    /// What an endpoint's own metrics say of its load.
    pub fn server(&mut self, now: MonoTime, id: EndpointId, load: ServerLoad) {
        if let Some(endpoint) = self.of(Place { endpoint: id, key: KeyId(0) }) {
            endpoint.law.server(now, load);
        }
    }

    /// An active check of an endpoint failed or passed.
    pub fn checked(&mut self, now: MonoTime, id: EndpointId, healthy: bool) {
        if let Some(endpoint) = self.of(Place { endpoint: id, key: KeyId(0) }) {
            endpoint.checked(now, healthy);
        }
    }

    /// Some time has passed; every whole second the laws learn from it. `waiting`: requests wait.
    pub fn tick(&mut self, now: MonoTime, waiting: bool, reports: &mut Vec<Report>) {
        if now.since(self.second) >= Duration::from_secs(1) {
            let before = std::mem::replace(&mut self.second, now);
            for (i, endpoint) in self.endpoints.iter_mut().enumerate() {
                endpoint.tell_what_is_over(endpoint_id(i), before, now, reports);
                let change = endpoint.second(now, waiting);
                reports.extend(change.map(|c| Report::Limit(endpoint_id(i), c)));
            }
        }
        if now.since(self.outliers_at) >= outlier::EVERY {
            self.outliers_at = now;
            outlier::eject(&mut self.endpoints, &self.tiers, now, reports);
        }
    }

    /// What the endpoints that can be used take together; `None` while one of them has no limit.
    ///
    /// What is under way at one that broke, or takes less than it did, counts beside that: else it would take the
    /// places of the others, which are free.
    #[must_use]
    pub fn ceiling(&self, now: MonoTime) -> Option<u32> {
        let open = |e: &Endpoint| e.breaker.state() == BreakerState::Open;
        let all_open = self.endpoints.iter().all(open);
        let takes = |e: &Endpoint| if open(e) && !all_open { Some(0) } else { e.law.limit() };
        self.endpoints.iter().try_fold(0_u32, |sum, e| Some(sum.saturating_add(takes(e)?.max(e.wanted(now)))))
    }

    /// The key that `failed` names may not go now, and another one there only waits for its turn.
    #[must_use]
    pub fn another_key(&self, now: MonoTime, want: &Want, failed: Place) -> bool {
        let endpoint = self.endpoints.get(usize::from(failed.endpoint.0));
        endpoint.is_some_and(|e| e.another_key(now, want, failed.key))
    }

    fn of(&mut self, place: Place) -> Option<&mut Endpoint> {
        self.endpoints.get_mut(usize::from(place.endpoint.0))
    }

    /// Each client brings its own key, and with it limits of its own.
    #[must_use]
    pub fn keys_are_clients(&self) -> bool {
        self.params.members.iter().any(|m| m.keys == 0)
    }

    /// There is more than one tier.
    #[must_use]
    pub fn has_tiers(&self) -> bool {
        self.tiers.len() > 1
    }

    /// Each endpoint in numbers.
    #[must_use]
    pub fn status(&self, now: MonoTime) -> Vec<EndpointStatus> {
        self.endpoints.iter().map(|e| e.status(now)).collect()
    }
}

fn endpoint_id(index: usize) -> EndpointId {
    EndpointId(u16::try_from(index).unwrap_or(u16::MAX))
}

/// SplitMix64's finish (Steele, Lea and Flood 2014): chance that is the same wherever it is drawn.
pub(super) fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
