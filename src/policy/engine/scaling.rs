//! How the limit moves: plans, work conservation between them, the learned ceiling above them, and the static
//! limit where they fail to come.
//!
//! ```text
//! limit = clamp(max(plan, held), min, ceiling)      ceiling = min(max_permits, learned limit)
//! plan  = what was installed last; before, and in shadow mode, the initial permits
//! held  = in_flight + 1 + ⌈√in_flight⌉ where an arrival would have waited, for one stable window
//! ```

use crate::policy::engine::{Effect, Engine};
use crate::policy::predict::{self, Decision, Direction, Mode, PolicyKind, Reason};
use crate::policy::units::MonoTime;

/// Plans in a row that may fail to come before the static limit stands in.
const MISSED_PLANS: u32 = 3;

impl Engine {
    pub(super) fn install(&mut self, now: MonoTime, mut decision: Decision, effects: &mut Vec<Effect>) {
        (self.stale_at, self.stale) = (stale_at(&self.params.scaling, now), false);
        self.need = decision.need;
        if decision.applied {
            self.planned = decision.to;
        }
        decision.to = self.bounded(now, decision.to);
        // what is told is the move that is made, not the one that was asked for before others moved it
        if decision.applied {
            decision.from = self.permits.limit();
            decision.direction = Direction::of(decision.from, decision.to);
        }
        if decision.applied && decision.to != self.permits.limit() {
            self.permits.resize(decision.to);
            self.changed = Some(now);
        }
        effects.push(Effect::Decided(decision));
    }

    /// Moves the limit between two decisions.
    fn resize(&mut self, now: MonoTime, to: u32, reason: Reason, effects: &mut Vec<Effect>) {
        let from = self.permits.limit();
        if from != to {
            self.permits.resize(to);
            self.changed = Some(now);
            effects.push(Effect::Resized { from, to, reason });
        }
    }

    /// Whether a permit is free. Under `predictive` nobody waits for one below the ceiling: a permit adds no
    /// capacity, so withholding it would only add waiting. What is missing is added, with some to spare for
    /// those who come next.
    pub(super) fn free(&mut self, now: MonoTime, effects: &mut Vec<Effect>) -> bool {
        if self.permits.free() > 0 || !self.may_free() {
            return self.permits.free() > 0;
        }
        let in_flight = self.permits.in_flight();
        let spare = f64::from(in_flight).sqrt().ceil() as u32;
        let to = (in_flight + 1 + spare).min(self.ceiling());
        self.resize(now, to, Reason::WorkConserving, effects);
        self.held = (to, now + predict::STABLE_WINDOW);
        true
    }

    /// Whether [`Engine::free`] would find a permit.
    pub(super) fn may_free(&self) -> bool {
        let s = &self.params.scaling;
        let adds = s.policy == PolicyKind::Predictive && s.mode == Mode::Act;
        self.permits.free() > 0 || (adds && self.permits.in_flight() < self.ceiling())
    }

    /// What the upstream was said to take. It wins over every plan, at once.
    pub(super) fn supply(&mut self, now: MonoTime, told: Option<u32>, effects: &mut Vec<Effect>) {
        self.supply = told;
        self.bound(now, effects);
    }

    /// What the fleet was found to take: the same.
    pub(super) fn relearn(&mut self, now: MonoTime, effects: &mut Vec<Effect>) {
        let learned = self.fleet.ceiling(now);
        if learned != self.learned {
            self.learned = learned;
            self.bound(now, effects);
        }
    }

    /// The ceiling moved: up to it goes what was planned, so that a dip leaves no trace where no plan follows.
    fn bound(&mut self, now: MonoTime, effects: &mut Vec<Effect>) {
        let to = self.bounded(now, self.planned);
        self.resize(now, to, Reason::Supply, effects);
    }

    fn bounded(&self, now: MonoTime, plan: u32) -> u32 {
        let held = if now < self.held.1 { self.held.0 } else { 0 };
        let ceiling = self.ceiling();
        plan.max(held).clamp(self.floor().min(ceiling), ceiling)
    }

    /// Plans that stay away must not leave the limit where an old one put it: it goes back to the static one.
    /// Whatever happens asks, not only the tick: what sends plans may be what sends ticks.
    pub(super) fn fall_back(&mut self, now: MonoTime, effects: &mut Vec<Effect>) {
        if self.stale || now <= self.stale_at {
            return;
        }
        self.stale = true;
        let s = &self.params.scaling;
        if s.mode == Mode::Act {
            self.planned = s.initial_permits;
            let limit = s.initial_permits.min(self.ceiling());
            self.resize(now, limit, Reason::Stale, effects);
        }
    }
}

/// When a plan that does not come after `now` is missing.
pub(super) fn stale_at(s: &predict::Params, now: MonoTime) -> MonoTime {
    if s.policy == PolicyKind::Fixed { MonoTime::MAX } else { now + predict::interval(s) * MISSED_PLANS }
}
