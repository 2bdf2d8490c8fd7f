//! What is counted while a simulation runs, and what the table and the charts make of it.
//!
//! Percentiles are exact: nearest rank over every measured request, so that two runs can be compared to the
//! nanosecond. Means of permits, of requests in flight and of replicas are over time, not over requests.

use std::time::Duration;

use crate::policy::units::MonoTime;
use crate::simulate::client::{Measure, Slo};
use crate::simulate::outcome::{Point, Summary};
use crate::simulate::request::Request;

/// What stands at a moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Level {
    pub(super) limit: u32,
    pub(super) need: u32,
    pub(super) in_flight: u32,
    pub(super) queued: u32,
    pub(super) ready: u32,
    pub(super) paid: u32,
}

/// What was said beforehand of an interval, requests per minute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said {
    pub(super) centre: f64,
    pub(super) band: (f64, f64),
}

pub(super) struct Figures {
    measure: Measure,
    slo: Slo,
    step: Duration,
    sum: Summary,
    good: u64,
    latency: Vec<u64>,
    ttft: Vec<u64>,
    upto: MonoTime,
    /// Integrals over the measured time, in seconds.
    permits: f64,
    in_flight: f64,
    paid: f64,
    series: Vec<Point>,
    open: Point,
    open_from: MonoTime,
    arrivals: u32,
    ended: Vec<u64>,
    said: Option<Said>,
}

impl Figures {
    pub(super) fn new(measure: Measure, slo: Slo, step: Duration) -> Self {
        Self {
            measure,
            slo,
            step: step.max(Duration::from_secs(1)),
            sum: Summary::default(),
            good: 0,
            latency: Vec::new(),
            ttft: Vec::new(),
            upto: MonoTime::ZERO,
            permits: 0.0,
            in_flight: 0.0,
            paid: 0.0,
            series: Vec::new(),
            open: Point::default(),
            open_from: MonoTime::ZERO,
            arrivals: 0,
            ended: Vec::new(),
            said: None,
        }
    }

    /// Until when there is something to measure.
    pub(super) fn until(&self) -> MonoTime {
        self.measure.to
    }

    /// Up to `now`, `level` stood.
    pub(super) fn pass(&mut self, now: MonoTime, level: Level) {
        let (from, to) = (self.upto.max(self.measure.from), now.min(self.measure.to));
        let dt = to.since(from).as_nanos() as f64 * 1e-9;
        self.permits += dt * f64::from(level.limit);
        self.in_flight += dt * f64::from(level.in_flight);
        self.paid += dt * f64::from(level.paid);
        self.upto = now;
        self.open.in_flight = self.open.in_flight.max(level.in_flight);
        self.open.queued = self.open.queued.max(level.queued);
    }

    pub(super) fn arrived(&mut self, request: &Request) {
        self.arrivals += 1;
        self.sum.requests += u64::from(self.measure.has(request.at));
    }

    pub(super) fn served(&mut self, request: &Request, first: MonoTime, last: MonoTime) {
        let took = last.since(request.at).as_nanos() as u64;
        self.ended.push(took);
        if self.measure.has(request.at) {
            self.sum.served += 1;
            self.good += u64::from(self.slo.met(request.at, first, last, request.output));
            self.latency.push(took);
            self.ttft.push(first.since(request.at).as_nanos() as u64);
        }
    }

    pub(super) fn lost(&mut self, request: &Request) {
        self.open.lost += 1;
        self.sum.lost += u64::from(self.measure.has(request.at));
    }

    pub(super) fn refused(&mut self, request: &Request, by_upstream: bool, told: bool) {
        let counts = u64::from(self.measure.has(request.at));
        self.sum.upstream_429 += if by_upstream { counts } else { 0 };
        self.sum.client_429 += if told { counts } else { 0 };
    }

    pub(super) fn cold(&mut self, request: &Request) {
        self.sum.cold_connections += u64::from(self.measure.has(request.at));
    }

    /// A second ended. `said` is what the predictor says of the next interval.
    pub(super) fn second(&mut self, now: MonoTime, level: Level, said: impl FnOnce() -> Option<Said>) {
        let span = now.since(self.open_from);
        if span < self.step || now > self.measure.to {
            return;
        }
        let mut point = std::mem::take(&mut self.open);
        point.t = now.as_nanos() as f64 * 1e-9;
        point.arrivals = f64::from(std::mem::take(&mut self.arrivals)) * 60.0 / span.as_secs_f64();
        point.forecast = self.said.map(|s| s.centre);
        point.band = self.said.map(|s| s.band);
        (point.limit, point.need, point.replicas) = (level.limit, level.need, level.ready);
        self.ended.sort_unstable();
        let at = |p| seconds(rank(&self.ended, p));
        point.latency = (!self.ended.is_empty()).then(|| (at(50), at(95), at(99)));
        self.ended.clear();
        self.series.push(point);
        self.open_from = now;
        self.said = said();
    }

    pub(super) fn close(mut self) -> (Summary, Vec<Point>) {
        self.latency.sort_unstable();
        self.ttft.sort_unstable();
        let mut sum = self.sum;
        let percentile = |p| seconds(rank(&self.latency, p));
        (sum.p50, sum.p95, sum.p99) = (percentile(50), percentile(95), percentile(99));
        sum.ttft_p99 = seconds(rank(&self.ttft, 99));
        sum.in_slo = if sum.requests == 0 { 100.0 } else { 100.0 * self.good as f64 / sum.requests as f64 };
        let span = self.measure.to.since(self.measure.from).as_secs_f64();
        if span > 0.0 {
            sum.mean_permits = self.permits / span;
            sum.mean_in_flight = self.in_flight / span;
            sum.mean_replicas = self.paid / span;
        }
        sum.replica_seconds = self.paid;
        (sum, self.series)
    }
}

/// Nearest rank: a value that occurred.
fn rank(sorted: &[u64], percent: usize) -> u64 {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).copied().unwrap_or_default()
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_the_measured_time_and_percentiles_are_values_that_occurred() {
        let s = MonoTime::from_secs;
        let measure = Measure { from: s(10), to: s(20), only: Vec::new() };
        let slo = Slo { latency: Some(Duration::from_secs(2)), ..Slo::default() };
        let mut f = Figures::new(measure, slo, Duration::from_secs(5));
        let level = |limit, paid| Level { limit, paid, ..Level::default() };
        f.pass(s(15), level(10, 1));
        f.pass(s(30), level(20, 3));
        for n in 0..20 {
            let request = Request { at: s(n), prompt: 0, output: 0 };
            f.arrived(&request);
            if n == 19 {
                f.lost(&request);
            } else {
                f.served(&request, s(n + 1), s(n + 1 + u64::from(n == 12) * 4));
            }
        }
        let (sum, _) = f.close();
        assert_eq!((sum.requests, sum.served, sum.lost), (10, 9, 1));
        assert_eq!((sum.p50, sum.p99, sum.ttft_p99), (1.0, 5.0, 1.0));
        assert_eq!((sum.mean_permits, sum.mean_replicas, sum.replica_seconds), (15.0, 2.0, 20.0));
        assert_eq!(sum.in_slo, 80.0);
    }
}
