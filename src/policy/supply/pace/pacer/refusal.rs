//! What a 429 means, and how long it stops the rate. The table is in the documentation of [`super`].

use std::time::Duration;

use super::{Flight, Pacer, Refusal429, State};
use crate::policy::supply::pace::headers::RateLimits;
use crate::policy::units::{MonoTime, Ticket};

/// First wait after a refusal that names no time, and the least after a second one in a row that does.
const PAUSE: Duration = Duration::from_secs(1);
const HINTED: Duration = Duration::from_millis(100);
/// Longest wait that refusals in a row lead to by themselves.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The longest that nothing is tried, whatever the refusal says: resets may be wrong by hours, and some answer
/// `Retry-After: 86400` to who is over a limit per minute.
const LONGEST_STOP: Duration = Duration::from_secs(600);

impl Pacer {
    /// What it was refused for; a rate that names no time has until `now`.
    pub(super) fn cause(&mut self, now: MonoTime, flight: &Flight, limits: &RateLimits) -> Refusal429 {
        let lanes = [(&limits.requests, &self.requests, 1.0), (&limits.tokens, &self.tokens, flight.cost)];
        let (mut empty, mut too_large) = (None, false);
        for (reading, lane, wanted) in lanes {
            if reading.limit.or(lane.limit()).is_some_and(|limit| wanted > limit) {
                too_large = true;
                continue;
            }
            if reading.remaining.is_some_and(|r| r < wanted) {
                let lacks = wanted - reading.remaining.unwrap_or(0.0);
                let refill =
                    lane.refill_seconds(lacks).map(|s| now + Duration::from_secs_f64(s.clamp(0.0, 86_400.0)));
                let until = match (refill, reading.reset) {
                    (Some(refill), Some(reset)) => refill.min(reset),
                    (refill, reset) => refill.or(reset).unwrap_or(now),
                };
                empty = empty.max(Some(until.max(lane.hold())));
            }
        }
        let hinted = limits.retry_at.filter(|at| *at > now);
        if let Some(until) = empty {
            return Refusal429::Rate { until: hinted.unwrap_or(until) };
        }
        if too_large {
            return Refusal429::Unrelated { news: false };
        }
        let said = limits.requests.remaining.is_some() || limits.tokens.remaining.is_some();
        if let Some(until) = hinted.filter(|_| said) {
            return Refusal429::Rate { until };
        }
        let unsaid = || [limits.requests.reset, limits.tokens.reset].into_iter().flatten().max();
        if !said
            && hinted.is_none()
            && let Some(until) = unsaid().filter(|at| *at > now)
        {
            return Refusal429::Rate { until };
        }
        if self.guess.refused(now, hinted.is_some()) {
            return Refusal429::Unrelated { news: false };
        }
        let known = !said && (self.requests.is_empty(now, 1.0) || self.tokens.is_empty(now, flight.cost));
        if hinted.is_some() || known {
            // it was the rate, and what is known of it did not foresee that, nor does it learn from this
            self.requests.emptied(now);
            self.tokens.emptied(now);
        } else if !self.guess.is_rate(now, flight.others) {
            return Refusal429::HiddenCap;
        } else if self.guess.is_rare() {
            return Refusal429::Unrelated { news: false };
        }
        if self.guess.cut(now, flight.sent) {
            return Refusal429::Unrelated { news: true };
        }
        Refusal429::Rate { until: hinted.unwrap_or(now) }
    }

    /// Stops, at least until `until`; longer each time a probe fails.
    pub(super) fn stop(
        &mut self,
        now: MonoTime,
        ticket: Ticket,
        flight: &Flight,
        until: MonoTime,
    ) -> MonoTime {
        // what left before the stop tells nothing that the probe, now out, will not tell better
        if let State::Probing { ticket: probe, until } = self.state
            && probe != ticket
            && flight.sent < self.stopped
            && now < until
        {
            return until;
        }
        // of those that left before the stop, the first was counted
        if self.fails == 0 || flight.sent >= self.stopped {
            self.fails = self.fails.saturating_add(1);
        }
        let hinted = until > now;
        let doublings = self.fails.saturating_sub(1).min(10);
        let base = if hinted { HINTED } else { PAUSE };
        let own = (base * 2_u32.saturating_pow(doublings)).min(LONGEST_PAUSE);
        let least = if hinted && doublings == 0 { now } else { now + own };
        let mut until = until.clamp(least, now + LONGEST_STOP);
        if let State::Stopped { until: before } = self.state {
            until = until.max(before);
        } else {
            self.stopped = now;
        }
        self.state = State::Stopped { until };
        until
    }
}
