//! The only door between the pipeline and the engine: one short lock, woken after unlocking.
//!
//! A [`Permit`] is the right to have one request at the upstream. It tells the engine how the request
//! ended when it is dropped, wherever that happens, so none can be lost and none given back twice. A
//! [`Ticket`] that still waits is cancelled by dropping the future that waits for it.

mod permit;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::clock::Clock;
use crate::policy::engine::{Arrival, Effect, Engine, Event, Params, RetryCause, Status};
use crate::policy::predict::{Decision, Reason, Snapshot, Wall};
use crate::policy::supply::{self, ServerLoad};
use crate::policy::units::{EndpointId, MonoTime, Outcome, Refusal, Ticket};
use crate::proxy::Costs;

/// What the engine reports beside its verdicts.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// The predictor's decision was taken note of.
    Decided(Decision),
    /// The limit moved between two decisions.
    Resized {
        /// The limit before.
        from: u32,
        /// The limit now.
        to: u32,
        /// Why.
        reason: Reason,
    },
    /// A request waits for another try.
    Requeued(RetryCause),
    /// A breaker changed state, a key or an endpoint rests.
    Supply(supply::Report),
}

/// The engine's no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// When another try makes sense.
    pub retry_after: Option<Duration>,
}

pub use permit::{Pending, Permit};

type Verdict = Result<Permit, Refused>;

type Observer = Box<dyn Fn(&Costs, Report) + Send + Sync>;
type Watcher = Box<dyn Fn(MonoTime, &Effect) + Send + Sync>;

/// The engine, its lock, and those who wait for it.
pub struct Gate {
    inner: Mutex<Inner>,
    clock: Clock,
    timer: Notify,
    costs: Costs,
    observer: Observer,
    watcher: OnceLock<Watcher>,
}

struct Inner {
    engine: Engine,
    waiting: BTreeMap<Ticket, oneshot::Sender<Verdict>>,
    effects: Vec<Effect>,
    next_ticket: u64,
    timer: Option<MonoTime>,
}

/// What has to happen once the lock is released.
#[derive(Default)]
struct After {
    verdicts: Vec<(Option<oneshot::Sender<Verdict>>, Verdict)>,
    reports: Vec<Report>,
    rearm: bool,
    /// The place in the queue of who asked for another try, and got it.
    again: Option<Wait>,
}

impl Gate {
    /// A gate around a new engine. `observer` hears of decisions and of the breaker, outside the lock; the costs
    /// know the models' names.
    pub fn new(
        params: Params,
        clock: Clock,
        observer: impl Fn(&Costs, Report) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                engine: Engine::new(params, clock.now()),
                waiting: BTreeMap::new(),
                effects: Vec::new(),
                next_ticket: 0,
                timer: None,
            }),
            clock,
            timer: Notify::new(),
            costs: Costs::default(),
            observer: Box::new(observer),
            watcher: OnceLock::new(),
        })
    }

    /// Hears of every effect of the engine from now on, under its lock: for tests that hold a simulation to this
    /// gate. The first watcher stays.
    pub fn watch(&self, watcher: impl Fn(MonoTime, &Effect) + Send + Sync + 'static) {
        drop(self.watcher.set(Box::new(watcher)));
    }

    /// Waits for a permit, or for the reason why there is none. `waiting` is called if it has to wait.
    ///
    /// Dropping the future cancels the ticket.
    ///
    /// # Errors
    /// The engine's refusal.
    pub async fn admit(self: &Arc<Self>, arrival: Arrival, waiting: impl FnOnce()) -> Verdict {
        let (verdict, after, wait) = {
            let mut inner = self.lock();
            let ticket = Ticket(inner.next_ticket);
            inner.next_ticket += 1;
            let mut after = After::default();
            let verdict = self.step(&mut inner, Event::Arrive(ticket, arrival), Some(ticket), &mut after);
            let wait = verdict.is_none().then(|| {
                let (tell, told) = oneshot::channel();
                inner.waiting.insert(ticket, tell);
                Wait { gate: self.clone(), ticket, told }
            });
            (verdict, after, wait)
        };
        self.after(after);
        match (verdict, wait) {
            (Some(verdict), _) => verdict,
            (None, Some(mut wait)) => {
                waiting();
                // the sender is only dropped unsent when the gate itself is gone
                (&mut wait.told)
                    .await
                    .unwrap_or(Err(Refused { refusal: Refusal::Draining, retry_after: None }))
            }
            (None, None) => Err(Refused { refusal: Refusal::Draining, retry_after: None }),
        }
    }

    /// The process is shutting down.
    pub fn drain(self: &Arc<Self>) {
        self.event(Event::Drain);
    }

    /// A second has passed.
    pub fn tick(self: &Arc<Self>) {
        self.event(Event::Tick);
    }

    /// What a predictor may look at. `ask` runs outside the lock, on a copy.
    pub fn consult<T>(&self, wall: Wall, ask: impl FnOnce(&Snapshot<'_>) -> T) -> T {
        let history;
        let snapshot = {
            let inner = self.lock();
            // under the lock, or what others did meanwhile would lie in its future
            let now = self.clock.now();
            history = inner.engine.history().clone();
            inner.engine.snapshot(now, wall, &history)
        };
        ask(&snapshot)
    }

    /// The predictor decided.
    pub fn install(self: &Arc<Self>, decision: Decision) {
        self.event(Event::Install(decision));
    }

    /// What an endpoint's own metrics say of its load.
    pub fn server(self: &Arc<Self>, endpoint: EndpointId, load: ServerLoad) {
        self.event(Event::Server(endpoint, load));
    }

    /// An active check of an endpoint passed, or failed.
    pub fn checked(self: &Arc<Self>, endpoint: EndpointId, healthy: bool) {
        self.event(Event::Checked(endpoint, healthy));
    }

    /// What the requests of its group cost.
    #[must_use]
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// The engine's state in numbers.
    #[must_use]
    pub fn status(&self) -> Status {
        self.lock().engine.status()
    }

    /// Fires the engine's timers. Runs until dropped.
    pub async fn run_timer(self: Arc<Self>) {
        loop {
            let armed = self.timer.notified();
            let at = self.lock().timer;
            match at {
                None => armed.await,
                Some(at) => {
                    tokio::select! {
                        () = armed => {}
                        () = tokio::time::sleep_until(self.clock.instant(at)) => {
                            self.fired(at);
                            self.tick();
                        }
                    }
                }
            }
        }
    }

    /// The timer of `at` rang; one that was set since then stays set.
    fn fired(&self, at: MonoTime) {
        let mut inner = self.lock();
        if inner.timer == Some(at) {
            inner.timer = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // the engine is total: nothing under the lock stops half-way
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn event(self: &Arc<Self>, event: Event) {
        let mut after = After::default();
        self.step(&mut self.lock(), event, None, &mut after);
        self.after(after);
    }

    /// One event under the lock. Returns the verdict on `own`, if there was one.
    fn step(
        self: &Arc<Self>,
        inner: &mut Inner,
        event: Event,
        own: Option<Ticket>,
        after: &mut After,
    ) -> Option<Verdict> {
        let mut effects = std::mem::take(&mut inner.effects);
        let now = self.clock.now();
        inner.engine.on(now, event, &mut effects);
        if let Some(watcher) = self.watcher.get() {
            effects.iter().for_each(|effect| watcher(now, effect));
        }
        let mut verdict = None;
        for effect in effects.drain(..) {
            let (ticket, answer) = match effect {
                Effect::Admit { ticket, place, probe, limit, in_flight } => {
                    let gate = self.clone();
                    let (outcome, sample) = (Outcome::Ignore, None);
                    (
                        ticket,
                        Ok(Permit {
                            gate,
                            ticket,
                            place,
                            probe,
                            limit,
                            in_flight,
                            outcome,
                            sample,
                            spent: false,
                        }),
                    )
                }
                Effect::Reject { ticket, refusal, retry_after } => {
                    (ticket, Err(Refused { refusal, retry_after }))
                }
                Effect::Requeued { ticket, cause } => {
                    after.reports.push(Report::Requeued(cause));
                    let (tell, told) = oneshot::channel();
                    inner.waiting.insert(ticket, tell);
                    after.again = Some(Wait { gate: self.clone(), ticket, told });
                    continue;
                }
                Effect::GivenUp(_) => continue,
                Effect::SetTimer(at) => {
                    // the engine's word is the last one: what was set before may have been seen to by another tick
                    inner.timer = Some(at);
                    after.rearm = true;
                    continue;
                }
                Effect::Decided(decision) => {
                    after.reports.push(Report::Decided(decision));
                    continue;
                }
                Effect::Resized { from, to, reason } => {
                    after.reports.push(Report::Resized { from, to, reason });
                    continue;
                }
                Effect::Supply(report) => {
                    after.reports.push(Report::Supply(report));
                    continue;
                }
            };
            if own == Some(ticket) {
                verdict = Some(answer);
            } else {
                after.verdicts.push((inner.waiting.remove(&ticket), answer));
            }
        }
        inner.effects = effects;
        verdict
    }

    fn after(&self, after: After) {
        for (tell, verdict) in after.verdicts {
            // nobody there to take it: a permit in it is given back by being dropped, here and not under
            // the lock, which giving it back takes
            if let Some(tell) = tell {
                drop(tell.send(verdict));
            }
        }
        if after.rearm {
            self.timer.notify_one();
        }
        for report in after.reports {
            (self.observer)(&self.costs, report);
        }
    }
}

/// A ticket that waits. Dropped, it leaves the queue.
struct Wait {
    gate: Arc<Gate>,
    ticket: Ticket,
    told: oneshot::Receiver<Verdict>,
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut after = After::default();
        {
            let mut inner = self.gate.lock();
            if inner.waiting.remove(&self.ticket).is_some() {
                self.gate.step(&mut inner, Event::Cancel(self.ticket), None, &mut after);
            }
        }
        self.gate.after(after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::engine::Kind;
    use crate::policy::predict::{self, PolicyKind};
    use crate::policy::units::{ModelId, Priority, TenantId, Tokens};

    /// The once-a-second tick may come at the very moment a timer is due, and before it. The engine then
    /// asks for the next one, and that one must not be lost with the one that is due.
    #[tokio::test(start_paused = true)]
    async fn a_tick_that_comes_before_its_timer_loses_no_later_timer() {
        let clock = Clock::start();
        let mut params = Params { scaling: predict::Params::of(PolicyKind::Fixed), ..Params::default() };
        params.scaling.max_permits = 1;
        let gate = Gate::new(params, clock, |_, _| {});
        let arrival = |by: Option<u64>| Arrival {
            kind: Kind::Queued,
            tenant: TenantId(1),
            priority: Priority::Normal,
            model: ModelId::default(),
            cost: Tokens(1),
            prompt: Tokens(0),
            bytes: 0,
            head_by: by.map(MonoTime::from_secs),
            stream: false,
        };
        let _held = gate.admit(arrival(None), || {}).await.ok().unwrap();
        let early = gate.admit(arrival(Some(5)), || {});
        let late = gate.admit(arrival(Some(7)), || {});
        let timer = gate.clone().run_timer();
        tokio::pin!(early, late, timer);
        // everything waits, and the timer is set for 5 s
        assert!(futures_util::poll!(&mut early).is_pending() && futures_util::poll!(&mut late).is_pending());
        assert!(futures_util::poll!(&mut timer).is_pending());
        tokio::time::advance(Duration::from_secs(5)).await;
        gate.tick();
        assert!(early.await.is_err());
        let ended = tokio::select! {
            verdict = &mut late => verdict.is_err().then(|| clock.now().as_secs()),
            () = &mut timer => None,
            () = tokio::time::sleep(Duration::from_secs(60)) => None,
        };
        assert_eq!(ended, Some(7), "the wait ends when its deadline does");
    }
}
