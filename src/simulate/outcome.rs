//! What a simulation found: the figures of the table, and the series behind the charts.

use serde::Serialize;

/// One policy's run over one workload and one upstream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// The policy's name as it was asked for.
    pub policy: String,
    /// The row of the table.
    pub summary: Summary,
    /// What the charts show, one point per interval.
    pub series: Vec<Point>,
}

/// The row of the table. Times in seconds; a percentile of nothing is 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Requests that arrived in the measured window.
    pub requests: u64,
    /// Answered whole.
    pub served: u64,
    /// Everything else: refused for good, timed out, given up.
    pub lost: u64,
    /// Percent of requests whose answer met the SLO. Lost ones are misses.
    pub in_slo: f64,
    /// Latency from arrival to the last byte, median of the served.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99th percentile of the time from arrival to the first token.
    pub ttft_p99: f64,
    /// 429 answers that clients saw, the gate's and the upstream's.
    pub client_429: u64,
    /// 429 answers that the upstream gave.
    pub upstream_429: u64,
    /// Mean of the permits.
    pub mean_permits: f64,
    /// Mean of requests in flight.
    pub mean_in_flight: f64,
    /// Mean of the replicas paid for; 0 where the upstream has none.
    pub mean_replicas: f64,
    /// Replicas paid for, integrated over the measured window, in replica-seconds.
    pub replica_seconds: f64,
    /// New connections that a request had to wait for.
    pub cold_connections: u64,
}

/// The state over one interval of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Point {
    /// End of the interval, seconds since the beginning.
    pub t: f64,
    /// Arrivals, requests per minute.
    pub arrivals: f64,
    /// What the predictor had said of this interval beforehand, requests per minute: its centre.
    pub forecast: Option<f64>,
    /// And its 5 % and 95 % quantiles.
    pub band: Option<(f64, f64)>,
    /// Permits at the end.
    pub limit: u32,
    /// Permits that the last decision found necessary.
    pub need: u32,
    /// Most requests in flight at one moment.
    pub in_flight: u32,
    /// Most requests waiting at one moment.
    pub queued: u32,
    /// Replicas that serve, at the end.
    pub replicas: u32,
    /// Latency percentiles of the requests that ended in the interval, seconds; `None` where none did.
    pub latency: Option<(f64, f64, f64)>,
    /// Requests lost in the interval.
    pub lost: u32,
}
