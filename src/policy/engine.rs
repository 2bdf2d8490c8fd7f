//! One event in, effects out: the whole of admission, supply and scaling behind one function.
//!
//! `engine.on(now, event, &mut effects)` is total (any event in any state is fine, in any order) and
//! deterministic. It is called by `proxy::gate` in the live proxy and by nothing else that serves
//! traffic. A ticket gets exactly one verdict, [`Effect::Admit`] or [`Effect::Reject`], unless it is
//! cancelled first; an admitted one holds its permit until [`Event::Finish`].
//!
//! ```text
//!             ┌── Reject (full, hopeless, draining, breaker)
//!   Arrive ───┼── Admit ────────────────────────────────▶ FirstByte ▶ Finish
//!             └── waits ─┬─ Admit (permit free, its turn, breaker lets it)
//!                        ├─ Reject (deadline, breaker, drain)
//!                        └─ Cancel
//! ```

mod attempt;
mod dispatch;
mod event;
mod outlook;
mod retry;
mod scaling;
mod view;

use std::collections::BTreeMap;
use std::time::Duration;

pub use event::{Arrival, Effect, Event, Kind, Lost, Params, Status};
pub use retry::RetryCause;

use crate::policy::admission::{DrainRate, HeadTime, OnDrain, Permits, Queue, Waiting};
use crate::policy::predict::{ArticleWindow, History, PolicyKind};
use crate::policy::supply::retry::Budget;
use crate::policy::supply::{Attempt, Choice, Fleet, Hold, Report, Until};
use crate::policy::units::{MonoTime, Place, Refusal, Ticket};
use dispatch::want;

#[derive(Clone, Copy, Debug)]
struct Flight {
    kind: Kind,
    /// The request, as it would wait again.
    request: Waiting,
    admitted: MonoTime,
    attempt: Attempt,
    /// The answer is a 429.
    refused: bool,
    /// The breaker has heard of its end.
    decided: bool,
    /// Its head came; whether that showed the endpoint alive.
    alive: Option<bool>,
}

/// Admission, supply and scaling of one upstream group.
#[derive(Clone, Debug)]
pub struct Engine {
    params: Params,
    began: MonoTime,
    latest: MonoTime,
    permits: Permits,
    queue: Queue,
    fleet: Fleet,
    retry_budget: Budget,
    history: History,
    drain_rate: DrainRate,
    head_time: HeadTime,
    flights: BTreeMap<Ticket, Flight>,
    unqueued: usize,
    websockets: usize,
    need: u32,
    /// A limit that was told, by [`Event::Supply`].
    supply: Option<u32>,
    /// What the fleet was found to take, once something has been learned.
    learned: Option<u32>,
    /// What the last plan that was acted on wanted.
    planned: u32,
    /// Permits that work conservation brought, and until when no plan may take them away.
    held: (u32, MonoTime),
    changed: Option<MonoTime>,
    /// When the next plan is so late that the static limit stands in, and whether it is.
    stale_at: MonoTime,
    stale: bool,
    draining: bool,
    timer: Option<MonoTime>,
    /// When somebody who waits may be able to go, as the last look found.
    wake: Option<MonoTime>,
    /// Somebody waits for a permit, or for a rate that comes back steadily.
    moves: bool,
    reports: Vec<Report>,
}

impl Engine {
    /// An idle engine that begins at `now`.
    #[must_use]
    pub fn new(params: Params, now: MonoTime) -> Self {
        let mut params = params;
        let s = &params.scaling;
        // where the operator gave the number, or the article did, that number is the limit
        params.supply.learn |= matches!(s.policy, PolicyKind::Predictive | PolicyKind::Reactive);
        params.supply.most = s.max_permits;
        let s = &params.scaling;
        let initial = if s.policy == PolicyKind::Fixed { s.max_permits } else { s.initial_permits };
        let keep = match (s.policy, s.article_window) {
            // under a fixed limit too: the simulation drives the article's rule from an engine that is fixed
            (PolicyKind::Article | PolicyKind::Fixed, ArticleWindow::Requests(n)) => n,
            _ => 0,
        };
        let mut engine = Self {
            began: now,
            latest: now,
            permits: Permits::new(initial),
            queue: Queue::default(),
            fleet: Fleet::new(params.supply.clone(), now),
            retry_budget: Budget::new(&params.supply.retry),
            history: History::new(now, keep),
            drain_rate: DrainRate::default(),
            head_time: HeadTime::default(),
            flights: BTreeMap::new(),
            unqueued: 0,
            websockets: 0,
            need: initial,
            supply: None,
            learned: None,
            planned: initial,
            held: (0, now),
            changed: None,
            stale_at: scaling::stale_at(s, now),
            stale: false,
            draining: false,
            timer: None,
            wake: None,
            moves: false,
            reports: Vec::new(),
            params,
        };
        engine.relearn(now, &mut Vec::new());
        engine
    }

    /// Takes note of `event` and says what follows from it.
    ///
    /// `now` must not run backwards; an earlier one is treated as the latest seen.
    pub fn on(&mut self, now: MonoTime, event: Event, effects: &mut Vec<Effect>) {
        let now = now.max(self.latest);
        self.latest = now;
        self.advance(now);
        self.fall_back(now, effects);
        match event {
            Event::Arrive(ticket, arrival) => self.arrive(now, ticket, arrival, effects),
            Event::Cancel(ticket) => {
                self.queue.remove(ticket);
            }
            Event::FirstByte { ticket, alive } => self.first_byte(now, ticket, alive),
            Event::Lost(ticket, lost) => self.lost(now, ticket, lost),
            Event::AttemptEnd(ticket, outcome) => self.attempt_ended(now, ticket, outcome, effects),
            Event::Limits(ticket, limits) => {
                if let Some(flight) = self.flights.get(&ticket) {
                    self.fleet.limits(now, &flight.attempt, &limits, &mut self.reports);
                }
            }
            Event::Refused(ticket, limits) => {
                if let Some(flight) = self.flights.get_mut(&ticket)
                    && !std::mem::replace(&mut flight.refused, true)
                {
                    self.fleet.refused(now, &flight.attempt, &limits, &mut self.reports);
                    let request = flight.request;
                    self.refused(now, &request, effects);
                }
            }
            Event::FirstToken { ticket, prompt } => {
                if let Some(flight) = self.flights.get(&ticket) {
                    self.fleet.first_token(now, &flight.attempt, prompt, now.since(flight.admitted));
                }
            }
            Event::Server(endpoint, load) => self.fleet.server(now, endpoint, load),
            Event::Checked(endpoint, healthy) => self.fleet.checked(now, endpoint, healthy),
            Event::Unauthorized(ticket) => {
                if let Some(flight) = self.flights.get(&ticket) {
                    self.fleet.unauthorized(now, &flight.attempt, &mut self.reports);
                }
            }
            Event::Retry { ticket, outcome, cause, retry_after } => {
                self.retry(now, ticket, outcome, cause, retry_after, effects);
            }
            Event::Finish(ticket, outcome, sample) => self.finish(now, ticket, outcome, sample, effects),
            Event::Tick => {
                self.fleet.tick(now, !self.queue.is_empty(), &mut self.reports);
                if self.timer.is_some_and(|at| at <= now) {
                    self.timer = None;
                }
            }
            Event::Install(decision) => self.install(now, decision, effects),
            Event::Supply(limit) => self.supply(now, limit, effects),
            Event::Drain => self.drain(effects),
        }
        self.report(effects);
        self.relearn(now, effects);
        self.expire(now, effects);
        self.dispatch(now, effects);
        self.set_timer(now, effects);
    }

    fn report(&mut self, effects: &mut Vec<Effect>) {
        effects.extend(self.reports.drain(..).map(Effect::Supply));
    }

    fn advance(&mut self, now: MonoTime) {
        let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let in_flight = self.permits.in_flight();
        let tunnels = u32::try_from(self.websockets).unwrap_or(u32::MAX);
        self.history.advance(now, waiting, in_flight.saturating_sub(tunnels), tunnels);
        // while the breaker is open or a rate stopped the queue stands still, which says nothing about its pace
        let busy = self.moves && waiting > 0 && self.fleet.serves();
        self.drain_rate.advance(now, busy);
    }

    fn arrive(&mut self, now: MonoTime, ticket: Ticket, a: Arrival, effects: &mut Vec<Effect>) {
        // one request is one verdict and one permit, however often it is announced
        if self.flights.contains_key(&ticket) || self.queue.contains(ticket) {
            return;
        }
        if a.kind.takes_permit() {
            self.history.arrived(now);
        }
        let limits = &self.params.admission;
        let refuse = |refusal, retry_after| Effect::Reject { ticket, refusal, retry_after };
        if self.draining {
            return effects.push(refuse(Refusal::Draining, None));
        }
        if (!a.kind.takes_permit() && self.unqueued >= limits.max_unqueued)
            || (a.kind == Kind::WebSocket && self.websockets >= limits.max_websockets)
        {
            return effects.push(refuse(Refusal::Overloaded, Some(Duration::from_secs(1))));
        }
        let deadline = (now + limits.timeout).min(a.head_by.unwrap_or(MonoTime::MAX));
        let mut request = Waiting {
            ticket,
            tenant: a.tenant,
            priority: a.priority,
            model: a.model,
            cost: a.cost,
            prompt: a.prompt,
            bytes: a.bytes,
            deadline,
            head_by: a.head_by,
            stream: a.stream,
            websocket: a.kind == Kind::WebSocket,
            unqueued: !a.kind.takes_permit(),
            arrived: now,
            tries: 0,
            avoid: None,
            patience: MonoTime::MAX,
        };
        if self.fleet.has_tiers() {
            request.patience = self.patience(now, &request);
        }
        let mut want = want(&request);
        // an upload's client could make everybody wait for as long as it likes: it probes only where nobody else
        // has come to do it
        want.may_probe = a.kind != Kind::Upload || !self.probe_just_due(now);
        let choice = self.fleet.choose(now, &want);
        if !a.kind.takes_permit() {
            return match choice {
                Choice::Go(place) => self.admit(now, a.kind, request, place, effects),
                Choice::Wait(_) => {
                    effects.push(refuse(Refusal::UpstreamUnavailable, self.recovery(now)));
                }
            };
        }
        if let Choice::Wait(hold) = choice
            && let Some(refused) = self.in_vain(now, hold, &request)
        {
            return effects.push(refused);
        }
        if self.hopeless(now, &request) {
            return effects.push(refuse(Refusal::DeadlineUnreachable, Some(Duration::from_secs(1))));
        }
        if let Choice::Go(place) = choice
            && self.queue.is_empty()
            && self.free(now, effects)
        {
            return self.admit(now, a.kind, request, place, effects);
        }
        if matches!(choice, Choice::Go(_)) && self.passes(now, &request, effects) {
            return;
        }
        if self.crowded(a.bytes) {
            return effects.push(refuse(Refusal::QueueFull, self.wait_of(now, a.priority, a.tenant)));
        }
        let ahead = self.queue.ahead_of(a.priority, a.tenant);
        let moves = !matches!(choice, Choice::Wait(Hold { until: Until::Probed | Until::Up, .. }));
        if moves
            && let Some(least) = self.drain_rate.least_wait(now, ahead, self.permits.in_flight())
            && (now + least > deadline || self.hopeless(now + least, &request))
        {
            return effects.push(refuse(Refusal::DeadlineUnreachable, self.drain_rate.wait(now, ahead)));
        }
        self.queue.push(request);
    }

    /// Starts an attempt that the fleet was seen to allow, with a permit that was seen to be free.
    fn admit(
        &mut self,
        now: MonoTime,
        kind: Kind,
        request: Waiting,
        place: Place,
        effects: &mut Vec<Effect>,
    ) {
        let attempt = self.fleet.start(now, &want(&request), place, &mut self.reports);
        self.report(effects);
        match kind {
            Kind::Unqueued | Kind::Upload => self.unqueued += 1,
            Kind::Queued | Kind::WebSocket => {
                self.permits.take();
                self.websockets += usize::from(kind == Kind::WebSocket);
            }
        }
        let ticket = request.ticket;
        let probe = attempt.probe;
        let flight =
            Flight { kind, request, admitted: now, attempt, refused: false, decided: false, alive: None };
        self.flights.insert(ticket, flight);
        let (limit, in_flight) = (self.permits.limit(), self.permits.in_flight());
        effects.push(Effect::Admit { ticket, place, probe, limit, in_flight });
    }

    fn drain(&mut self, effects: &mut Vec<Effect>) {
        self.draining = true;
        if self.params.admission.on_drain == OnDrain::Reject {
            for ticket in self.queue.expiring(MonoTime::MAX) {
                self.queue.remove(ticket);
                effects.push(Effect::Reject { ticket, refusal: Refusal::Draining, retry_after: None });
            }
        }
    }

    fn expire(&mut self, now: MonoTime, effects: &mut Vec<Effect>) {
        if self.queue.next_deadline().is_none_or(|at| at > now) {
            return;
        }
        for ticket in self.queue.expiring(now) {
            if let Some(w) = self.queue.remove(ticket) {
                effects.push(self.too_late(now, &w));
            }
        }
    }
}
