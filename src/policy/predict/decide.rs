//! What a rule may look at, and the rules that do not forecast.

use std::time::Duration;

use crate::policy::predict::article;
use crate::policy::predict::{Decision, Direction, History, Mode, Params, PolicyKind, Reason};
use crate::policy::units::MonoTime;

/// A moment as the calendar has it. It may jump; nothing is measured with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wall {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub unix: i64,
    /// Hour of the day where the process runs, 0 to 23.
    pub hour: u8,
}

/// What a rule may look at.
#[derive(Clone, Debug)]
pub struct Snapshot<'a> {
    /// When it was taken.
    pub at: MonoTime,
    /// The same moment on the wall.
    pub wall: Wall,
    /// Permits now.
    pub limit: u32,
    /// Requests waiting now.
    pub queued: usize,
    /// Requests that hold a permit now.
    pub in_flight: u32,
    /// Permits there can be at most: `max_permits`, or the learned limit where that is lower.
    pub ceiling: u32,
    /// Permits that work conservation brought and that no plan may take away yet.
    pub held: u32,
    /// Time since the permits last changed; `None` if they never did.
    pub since_change: Option<Duration>,
    /// Time since the engine began.
    pub age: Duration,
    /// Demand so far.
    pub history: &'a History,
}

/// How often the rule is asked.
#[must_use]
pub fn interval(params: &Params) -> Duration {
    match params.policy {
        PolicyKind::Article => article::LOOK_EVERY.min(params.cooldown),
        PolicyKind::Predictive | PolicyKind::Fixed | PolicyKind::Reactive => params.cooldown,
    }
}

/// The answer of a rule that does not forecast. Never fewer than `min_permits` (1 under `fixed`) nor more than the ceiling,
/// which the engine enforces once more when it installs the decision.
#[must_use]
pub(super) fn rule(params: &Params, s: &Snapshot<'_>) -> Decision {
    let rpm = arrivals_per_second(s.history, 60) * 60.0;
    let (mean, _) = demand(s.history, params.warm_up);
    let utilisation = mean / f64::from(s.limit.max(1));
    let (to, need, reason, rpm, confidence) = match params.policy {
        PolicyKind::Fixed => (params.max_permits, params.max_permits, Reason::Fixed, rpm, 1.0),
        PolicyKind::Predictive | PolicyKind::Reactive => {
            let (to, need, reason) = reactive(params, s);
            (to, need, reason, rpm, 1.0)
        }
        PolicyKind::Article => {
            let v = article::decide(s, params);
            (v.to, v.required, v.reason, v.prediction.rpm, v.prediction.confidence)
        }
    };
    Decision {
        at: s.at,
        direction: Direction::of(s.limit, to),
        reason,
        from: s.limit,
        to,
        need,
        requests_per_minute: rpm,
        confidence,
        queued: s.queued,
        utilisation,
        applied: params.mode == Mode::Act,
        since_change: s.since_change.unwrap_or(s.age),
        outlook: None,
    }
}

/// Follows measured utilisation: demand (in flight plus waiting) per permit.
///
/// Above the upper threshold it adds what brings utilisation back to it; below the lower one it takes
/// away, but keeps what the busiest second of the last cooldown needed.
fn reactive(params: &Params, s: &Snapshot<'_>) -> (u32, u32, Reason) {
    let per_permit = |demand: f64| {
        ((demand / params.scale_up_threshold).ceil() as u32).clamp(params.min_permits, params.max_permits)
    };
    let (mean, _) = demand(s.history, params.warm_up);
    let need = per_permit(mean);
    if s.age < params.warm_up {
        return (s.limit, need, Reason::WarmUp);
    }
    let utilisation = mean / f64::from(s.limit.max(1));
    if utilisation > params.scale_up_threshold && need > s.limit {
        return (need, need, Reason::ScaleUp);
    }
    if utilisation < params.scale_down_threshold {
        let (_, peak) = demand(s.history, params.cooldown);
        let keep = per_permit(f64::from(peak));
        if keep < s.limit {
            return (keep, need, Reason::ScaleDown);
        }
    }
    (s.limit, need, Reason::Stable)
}

/// Mean and peak demand over the last `span`.
pub(super) fn demand(history: &History, span: Duration) -> (f64, u32) {
    let n = usize::try_from(span.as_secs().max(1)).unwrap_or(usize::MAX);
    let (mut sum, mut peak, mut seconds) = (0.0, 0, 0_u32);
    for (_, second) in history.last(n) {
        sum += second.demand_mean;
        peak = peak.max(second.demand_peak);
        seconds += 1;
    }
    (if seconds == 0 { 0.0 } else { sum / f64::from(seconds) }, peak)
}

/// Arrivals per second over the last `n` seconds, or over as many as there are.
pub(super) fn arrivals_per_second(history: &History, n: usize) -> f64 {
    let (mut arrivals, mut seconds) = (0_u64, 0_u64);
    for (_, second) in history.last(n) {
        arrivals += u64::from(second.arrivals);
        seconds += 1;
    }
    if seconds == 0 { 0.0 } else { arrivals as f64 / seconds as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(demand: u32, seconds: u64) -> History {
        let mut h = History::new(MonoTime::ZERO, 300);
        h.advance(MonoTime::from_secs(seconds), 0, demand, 0);
        h
    }

    fn snapshot(history: &History, limit: u32, age: u64) -> Snapshot<'_> {
        Snapshot {
            at: MonoTime::from_secs(age),
            wall: Wall { unix: 0, hour: 20 },
            limit,
            queued: 0,
            in_flight: 0,
            ceiling: 1000,
            held: 0,
            since_change: None,
            age: Duration::from_secs(age),
            history,
        }
    }

    #[test]
    fn reactive_returns_utilisation_to_its_threshold() {
        let params = Params::of(PolicyKind::Reactive);
        let h = history(30, 60);
        let d = rule(&params, &snapshot(&h, 20, 60));
        assert_eq!((d.direction, d.reason, d.to), (Direction::Up, Reason::ScaleUp, 40));
        let d = rule(&params, &snapshot(&h, 50, 60));
        assert_eq!((d.direction, d.reason, d.to), (Direction::Hold, Reason::Stable, 50));
        let d = rule(&params, &snapshot(&h, 90, 60));
        assert_eq!((d.direction, d.reason, d.to), (Direction::Down, Reason::ScaleDown, 40));
    }

    #[test]
    fn reactive_waits_for_its_warm_up_and_stays_within_bounds() {
        let params = Params::of(PolicyKind::Reactive);
        let h = history(500, 5);
        assert_eq!(rule(&params, &snapshot(&h, 20, 5)).reason, Reason::WarmUp);
        let h = history(500, 60);
        assert_eq!(rule(&params, &snapshot(&h, 20, 60)).to, 100);
        let h = history(0, 60);
        assert_eq!(rule(&params, &snapshot(&h, 20, 60)).to, 10);
    }

    #[test]
    fn the_article_s_reasons_in_its_order() {
        let params = Params::of(PolicyKind::Article);
        let mut h = History::new(MonoTime::ZERO, 300);
        let at = |s: &mut Snapshot<'_>, limit, queued, since: Option<u64>| {
            s.limit = limit;
            s.queued = queued;
            s.since_change = since.map(Duration::from_secs);
            let d = rule(&params, s);
            (d.reason, d.to)
        };
        let mut s = snapshot(&h, 20, 400);
        assert_eq!(at(&mut s, 20, 0, None), (Reason::LowConfidence, 20));
        assert_eq!(at(&mut s, 20, 0, Some(29)), (Reason::Cooldown, 20));
        assert_eq!(at(&mut s, 20, 51, Some(1)), (Reason::Emergency, 150));
        for minute in 0..5 {
            for n in 0..60 {
                let t = MonoTime::from_secs(minute * 60 + n);
                h.advance(t, 0, 0, 0);
                h.arrived(t);
            }
        }
        let mut s = snapshot(&h, 20, 400);
        assert_eq!(
            at(&mut s, 20, 0, None),
            (Reason::ScaleDown, 10),
            "60 RPM need one slot, the floor is ten"
        );
        assert_eq!(at(&mut s, 10, 0, None), (Reason::Stable, 10));
        assert_eq!(at(&mut s, 8, 0, None), (Reason::ScaleUp, 10));
    }
}
