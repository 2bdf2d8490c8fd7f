//! Replica baselines that know only what was: an autoscaler on concurrency with a panic window, and one on arrivals.
//!
//! ```text
//! hpa:   want = ⌈headroom · mean concurrency of 60 s / full speed⌉
//!        panic when the same of 6 s asks for twice what serves: then never fewer, until 60 s after the last cause
//! rate:  want = ⌈headroom · (a + √a + waiting · work / 30 s) / full speed⌉, a = arrivals of 30 s · work
//!        and the most of the last `hold`
//! ```
//! The first is the published behaviour of Knative's pod autoscaler (stable and panic window); concurrency counts what waits. The
//! second is told the true mean work of a request.

use std::collections::VecDeque;

use crate::policy::predict::History;

const STABLE: usize = 60;
const PANIC: usize = 6;
const RATE: usize = 30;
const PANIC_AT: f64 = 2.0;

#[derive(Clone, Debug)]
pub(super) enum Autoscaler {
    Hpa { panic_until: u64 },
    Rate { work: f64, hold: usize, asked: VecDeque<u32> },
}

/// What it may look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) second: u64,
    pub(super) history: &'a History,
    pub(super) queued: usize,
    pub(super) ready: u32,
    /// Replicas wanted so far.
    pub(super) wanted: u32,
    /// Requests that a replica serves at full speed.
    pub(super) full_speed: f64,
    pub(super) headroom: f64,
}

impl Autoscaler {
    pub(super) fn want(&mut self, s: Seen<'_>) -> u32 {
        let replicas = |load: f64| ((s.headroom * load / s.full_speed).ceil() as u32).max(1);
        match self {
            Self::Hpa { panic_until } => {
                let (stable, panic) =
                    (replicas(demand(s.history, STABLE)), replicas(demand(s.history, PANIC)));
                if f64::from(panic) >= PANIC_AT * f64::from(s.ready.max(1)) {
                    *panic_until = s.second + STABLE as u64;
                }
                if s.second < *panic_until { panic.max(stable).max(s.wanted) } else { stable }
            }
            Self::Rate { work, hold, asked } => {
                let (mut arrivals, mut seconds) = (0.0, 0.0);
                for (_, second) in s.history.last(RATE) {
                    arrivals += f64::from(second.arrivals);
                    seconds += 1.0;
                }
                let a = if seconds > 0.0 { arrivals / seconds * *work } else { 0.0 };
                asked.push_back(replicas(a + a.sqrt() + s.queued as f64 * *work / 30.0));
                while asked.len() > (*hold).max(1) {
                    asked.pop_front();
                }
                asked.iter().copied().max().unwrap_or(1)
            }
        }
    }
}

/// Mean of what was in flight or waiting.
fn demand(history: &History, seconds: usize) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for (_, second) in history.last(seconds) {
        sum += second.demand_mean;
        n += 1.0;
    }
    if n > 0.0 { sum / n } else { 0.0 }
}
