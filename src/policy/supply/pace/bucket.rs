//! A token bucket that may go into debt.
//!
//! ```text
//! level(t) = min(capacity, level(t₀) + rate · (t − t₀))     an amount passes while level ≥ min(amount, capacity)
//! ```
//! What is charged is an estimate; settling it can push the level below zero, and then everyone waits until the
//! debt is paid. The debt is bounded, so that no single absurd number stops the traffic for hours.
//!
//! Without it a limit per minute would be used up in its first second. Called by `lane` and `guess` only.

use std::time::Duration;

use crate::policy::units::MonoTime;

/// The slowest refill that is reckoned with, per second: every wait stays finite.
const SLOWEST: f64 = 1e-6;
/// Longest wait that is ever named.
const LONGEST: f64 = 86_400.0;
/// Debt is at most what so many seconds refill, at the rate that was sold.
const DEBT: f64 = 60.0;
/// Levels are reckoned to this share of a unit: an amount that is due at `t` must pass at `t`.
const GRAIN: f64 = 1e-6;

#[derive(Clone, Debug)]
pub(super) struct Bucket {
    level: f64,
    capacity: f64,
    rate: f64,
    most_debt: f64,
    at: MonoTime,
}

fn sane(x: f64, least: f64) -> f64 {
    if x.is_finite() { x.clamp(least, 1e15) } else { least }
}

impl Bucket {
    /// A full one; `rate` per second.
    pub(super) fn new(rate: f64, capacity: f64, now: MonoTime) -> Self {
        let capacity = sane(capacity, GRAIN);
        let rate = sane(rate, SLOWEST);
        Self { level: capacity, capacity, rate, most_debt: rate * DEBT, at: now }
    }

    pub(super) const fn rate(&self) -> f64 {
        self.rate
    }

    pub(super) const fn capacity(&self) -> f64 {
        self.capacity
    }

    pub(super) fn level(&self, now: MonoTime) -> f64 {
        (self.level + now.since(self.at).as_secs_f64() * self.rate).min(self.capacity)
    }

    fn refill(&mut self, now: MonoTime) {
        self.level = self.level(now);
        self.at = self.at.max(now);
    }

    /// Another rate for now; what was sold is the same.
    pub(super) fn set_rate(&mut self, now: MonoTime, rate: f64) {
        self.refill(now);
        self.rate = sane(rate, SLOWEST);
    }

    /// Something else was sold.
    pub(super) fn set_sold(&mut self, now: MonoTime, rate: f64) {
        self.set_rate(now, rate);
        self.most_debt = self.rate * DEBT;
        self.level = self.level.max(-self.most_debt);
    }

    /// Another size; what is in it stays, unless it no longer fits.
    pub(super) fn set_capacity(&mut self, now: MonoTime, capacity: f64) {
        self.refill(now);
        self.capacity = sane(capacity, GRAIN);
        self.level = self.level.min(self.capacity);
    }

    /// Adds, or takes where `amount` is negative.
    pub(super) fn add(&mut self, now: MonoTime, amount: f64) {
        self.refill(now);
        let amount = if amount.is_finite() { amount } else { 0.0 };
        self.level = (self.level + amount).max(-self.most_debt).min(self.capacity);
    }

    /// When `amount` passes, and would leave `reserve` behind; `now` if it does already.
    ///
    /// What is larger than the bucket passes when that is full.
    pub(super) fn due(&self, now: MonoTime, amount: f64, reserve: f64) -> MonoTime {
        let wanted = (amount + reserve).min(self.capacity) * (1.0 - GRAIN);
        let lacks = wanted - self.level(now);
        if lacks.is_nan() || lacks <= 0.0 {
            return now;
        }
        // a nanosecond more, because a Duration cuts off
        now + Duration::from_secs_f64((lacks / self.rate).min(LONGEST)) + Duration::from_nanos(1)
    }
}
