//! The one object everybody reports to, and the handle each worker reports through.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use prometheus::{IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry};

use crate::clock::Clock;
use crate::policy::engine::RetryCause;
use crate::policy::predict::{Decision, Direction, Ready, Reason};
use crate::policy::supply::{BreakerState, Transition};
use crate::policy::units::MonoTime;
use crate::telemetry::access_log::Formatter;
use crate::telemetry::estimates::{EstimateCollector, EstimateErrors, Estimates};
use crate::telemetry::forecast::{ForecastCollector, Forecasts};
use crate::telemetry::gate::{GateCollector, Sources};
use crate::telemetry::labels::{Answered, Capped, MAX_SERIES};
use crate::telemetry::process::ProcessCollector;
use crate::telemetry::requests::RequestCollector;
use crate::telemetry::shard::Shard;
use crate::telemetry::supply::RETRY_CAUSES;
use crate::telemetry::writer::{CAPACITY, Writer};
use crate::telemetry::{AccessLog, ConnectionFault, GateStatus, Params, Readiness, Record};

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The access log's file cannot be opened.
    #[error("access log {path}: {source}")]
    OpenLog {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Standard output cannot be written to, or there is no thread for it.
    #[error("access log: {0}")]
    StartLog(#[from] io::Error),
    /// A metric was registered twice in this registry.
    #[error("metrics: {0}")]
    Register(#[from] prometheus::Error),
    /// The quantile window cannot be made.
    #[error("quantiles: {0}")]
    Quantiles(#[from] hdrhistogram::CreationError),
}

/// Pairs a policy can report, shown at 0 from the start.
const DECISIONS: [(Direction, Reason); 13] = [
    (Direction::Up, Reason::Supply),
    (Direction::Down, Reason::Supply),
    (Direction::Up, Reason::Stale),
    (Direction::Down, Reason::Stale),
    (Direction::Up, Reason::WorkConserving),
    (Direction::Up, Reason::ScaleUp),
    (Direction::Up, Reason::Emergency),
    (Direction::Down, Reason::ScaleDown),
    (Direction::Hold, Reason::Cooldown),
    (Direction::Hold, Reason::LowConfidence),
    (Direction::Hold, Reason::Stable),
    (Direction::Hold, Reason::WarmUp),
    (Direction::Hold, Reason::Fixed),
];

/// Transitions a breaker can make, shown at 0 from the start.
const TRANSITIONS: [(BreakerState, BreakerState); 4] = [
    (BreakerState::Closed, BreakerState::Open),
    (BreakerState::Open, BreakerState::HalfOpen),
    (BreakerState::HalfOpen, BreakerState::Open),
    (BreakerState::HalfOpen, BreakerState::Closed),
];

/// Everything that is told, in one place; `app` makes one and hands it down.
pub struct Telemetry {
    clock: Clock,
    shards: Vec<Arc<Shard>>,
    sources: Sources,
    forecasts: Forecasts,
    estimates: Estimates,
    decisions: IntCounterVec,
    transitions: IntCounterVec,
    retries: IntCounterVec,
    faults: IntCounterVec,
    access_log: Option<Writer>,
}

impl Telemetry {
    /// Registers every metric in `registry` and opens the access log.
    ///
    /// # Errors
    /// The access log cannot be opened, or `registry` already has metrics of these names.
    pub fn new(
        params: &Params,
        clock: Clock,
        workers: usize,
        registry: &Registry,
    ) -> Result<Arc<Self>, TelemetryError> {
        let models = Arc::new(Capped::new(MAX_SERIES));
        let shards = (0..workers.max(1))
            .map(|_| Ok(Arc::new(Shard::new(models.clone(), params.quantile_window)?)))
            .collect::<Result<Vec<_>, hdrhistogram::CreationError>>()?;
        let sources = Sources::default();
        let requests = RequestCollector::new(shards.clone(), clock, params.quantile_window)?;
        registry.register(Box::new(requests))?;
        registry.register(Box::new(GateCollector::new(sources.clone())?))?;
        registry.register(Box::new(ProcessCollector::new()?))?;
        let forecasts = Forecasts::default();
        registry.register(Box::new(ForecastCollector::new(forecasts.clone())?))?;
        let estimates = Estimates::default();
        registry.register(Box::new(EstimateCollector::new(estimates.clone())?))?;

        let counters = |name, help, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let family = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let decisions = counters(
            "tidegate_scale_decisions_total",
            "Decisions of the scaling policy, those of shadow mode included.",
            &["group", "direction", "reason"],
        )?;
        let transitions = counters(
            "tidegate_breaker_transitions_total",
            "Changes of state of an upstream's circuit breaker.",
            &["upstream", "from", "to"],
        )?;
        let retries = counters(
            "tidegate_retries_total",
            "Requests given back to the queue for another try, by what went wrong, from the gate.",
            &["group", "reason"],
        )?;
        let faults = counters(
            "tidegate_connection_faults_total",
            "Faults of client connections that no request stands for, from the listener.",
            &["kind"],
        )?;
        for kind in ConnectionFault::ALL {
            faults.get_metric_with_label_values(&[kind.as_str()])?;
        }
        let dropped = IntCounter::new(
            "tidegate_access_log_dropped_total",
            "Access-log lines lost because the log could not be written fast enough or at all.",
        )?;
        registry.register(Box::new(dropped.clone()))?;
        let build = IntGaugeVec::new(
            Opts::new("tidegate_build_info", "1, with the program's version."),
            &["version"],
        )?;
        build.get_metric_with_label_values(&[env!("CARGO_PKG_VERSION")])?.set(1);
        registry.register(Box::new(build))?;

        let access_log = match open(&params.access_log)? {
            Some(sink) => Some(Writer::start(sink, CAPACITY, dropped)?),
            None => None,
        };
        Ok(Arc::new(Self {
            clock,
            shards,
            sources,
            forecasts,
            estimates,
            decisions,
            transitions,
            retries,
            faults,
            access_log,
        }))
    }

    /// The handle of worker `index`. Handles of the same worker share its counts; workers beyond the
    /// number given to [`Telemetry::new`] share those of others, which is right but slower.
    #[must_use]
    pub fn worker(self: &Arc<Self>, index: usize) -> WorkerTelemetry {
        let shard = self.shards[index % self.shards.len()].clone();
        WorkerTelemetry { hub: self.clone(), shard, formatter: Arc::default() }
    }

    /// Reads the gauges of one group from `source` whenever somebody asks. `source` must not block for
    /// longer than a short lock, and must not call back into telemetry.
    pub fn observe_gate(&self, source: impl Fn() -> GateStatus + Send + Sync + 'static) {
        let status = source();
        for (direction, reason) in DECISIONS {
            self.decision_counter(&status.group, direction, reason, 0);
        }
        for cause in RETRY_CAUSES {
            self.retry_counter(&status.group, cause, 0);
        }
        for upstream in &status.upstreams {
            for (from, to) in TRANSITIONS {
                self.transition_counter(&upstream.name, from, to, 0);
            }
            self.shards.iter().take(1).for_each(|shard| shard.know(&upstream.name));
        }
        self.sources.add(Box::new(source));
    }

    /// Reads how far one group's estimates are off from `source` whenever somebody asks, under the same terms.
    pub fn observe_estimates(
        &self,
        group: &str,
        source: impl Fn() -> EstimateErrors + Send + Sync + 'static,
    ) {
        self.estimates.add(group, Box::new(source));
    }

    /// Counts a decision of the scaling policy and logs everything it was made from.
    pub fn decision(&self, group: &str, d: &Decision) {
        self.decision_counter(group, d.direction, d.reason, 1);
        let outlook = d.outlook.clone().unwrap_or_default();
        if let Some(outlook) = &d.outlook {
            self.forecasts.outlook(group, outlook);
        }
        tracing::info!(
            group,
            direction = d.direction.as_str(),
            reason = d.reason.as_str(),
            from = d.from,
            to = d.to,
            need = d.need,
            requests_per_minute = d.requests_per_minute,
            confidence = d.confidence,
            queued = d.queued,
            utilisation = d.utilisation,
            applied = d.applied,
            forecast_low = outlook.low,
            forecast = outlook.centre,
            forecast_high = outlook.high,
            threshold = outlook.threshold,
            service_s = outlook.service,
            season_s = outlook.season,
            anomaly = outlook.anomaly,
            warm_connections = outlook.ready.connections,
            desired_replicas = outlook.ready.replicas.map(|d| d.replicas),
            since_change_s = d.since_change.as_secs_f64(),
            at_s = d.at.as_secs(),
            "scaling decision"
        );
    }

    /// Counts and logs a move of the limit between two decisions.
    pub fn resized(&self, group: &str, from: u32, to: u32, reason: Reason) {
        self.decision_counter(group, Direction::of(from, to), reason, 1);
        if reason == Reason::Stale {
            tracing::warn!(group, from, to, "no plan came for too long: the static limit stands in");
        } else {
            tracing::debug!(group, from, to, reason = reason.as_str(), "limit moved between decisions");
        }
    }

    /// Takes note of what should be ready.
    pub fn ready(&self, group: &str, ready: Ready) {
        self.forecasts.ready(group, ready);
    }

    /// What each group asks for in replicas, as JSON.
    pub(super) fn replicas(&self) -> String {
        self.forecasts.replicas()
    }

    /// Counts and logs a breaker's change of state.
    pub fn breaker(&self, now: MonoTime, upstream: &str, t: Transition) {
        self.transition_counter(upstream, t.from, t.to, 1);
        tracing::warn!(
            upstream,
            from = t.from.as_str(),
            to = t.to.as_str(),
            failures_in_a_row = t.in_a_row,
            window_answers = t.answers,
            window_failures = t.failures,
            retry_in_s = t.retry_at.map(|at| at.since(now).as_secs_f64()),
            "circuit breaker"
        );
    }

    /// Counts a fault of a client's connection.
    pub fn connection_fault(&self, kind: ConnectionFault) {
        if let Ok(counter) = self.faults.get_metric_with_label_values(&[kind.as_str()]) {
            counter.inc();
        }
    }

    /// Whether requests should be sent here.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.sources.readiness(self.clock.now())
    }

    /// Writes the rest of the access log, waiting for at most 5 s. Blocks; calling it again does nothing.
    pub fn close(&self) {
        if let Some(log) = &self.access_log {
            log.close();
        }
    }

    fn decision_counter(&self, group: &str, direction: Direction, reason: Reason, by: u64) {
        let labels = [group, direction.as_str(), reason.as_str()];
        if let Ok(counter) = self.decisions.get_metric_with_label_values(&labels) {
            counter.inc_by(by);
        }
    }

    pub(super) fn retry_counter(&self, group: &str, cause: RetryCause, by: u64) {
        if let Ok(counter) = self.retries.get_metric_with_label_values(&[group, cause.as_str()]) {
            counter.inc_by(by);
        }
    }

    fn transition_counter(&self, upstream: &str, from: BreakerState, to: BreakerState, by: u64) {
        let labels = [upstream, from.as_str(), to.as_str()];
        if let Ok(counter) = self.transitions.get_metric_with_label_values(&labels) {
            counter.inc_by(by);
        }
    }
}

fn open(to: &AccessLog) -> Result<Option<Box<dyn Write + Send>>, TelemetryError> {
    match to {
        AccessLog::Off => Ok(None),
        // Our own handle: std's is line-buffered, which would undo the batching.
        AccessLog::Stdout => Ok(Some(Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?)))),
        AccessLog::File(path) => match File::options().append(true).create(true).open(path) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(source) => Err(TelemetryError::OpenLog { path: path.clone(), source }),
        },
    }
}

/// What one worker reports through. Clones of it report to the same place.
#[derive(Clone)]
pub struct WorkerTelemetry {
    hub: Arc<Telemetry>,
    shard: Arc<Shard>,
    formatter: Arc<Mutex<Formatter>>,
}

impl WorkerTelemetry {
    /// Takes note of a request that ended `now`. `wall` is called only if there is an access log.
    pub fn finish(&self, now: MonoTime, wall: impl FnOnce() -> SystemTime, record: &Record) {
        let spans = record.spans(now);
        self.shard.record(now, record, &spans);
        if let Some(log) = &self.hub.access_log {
            let wall = wall();
            let arrived = wall.checked_sub(spans.total).unwrap_or(wall);
            let mut formatter = self.formatter.lock().unwrap_or_else(PoisonError::into_inner);
            log.append(formatter.line(arrived, record, &spans));
        }
    }

    /// Takes note of what an attempt at `upstream` came back with: a status, or none.
    pub fn answered(&self, upstream: &str, status: Option<u16>) {
        self.shard.answered(upstream, Answered::of(status));
    }

    /// The object that all workers share.
    #[must_use]
    pub fn hub(&self) -> &Arc<Telemetry> {
        &self.hub
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Ended, Endpoint, RequestId};

    fn telemetry(path: PathBuf) -> Result<Arc<Telemetry>, TelemetryError> {
        let params = Params { access_log: AccessLog::File(path), ..Params::default() };
        Telemetry::new(&params, Clock::start(), 1, &Registry::new())
    }

    #[test]
    fn the_access_log_is_appended_to_and_complete_after_close() {
        let path = std::env::temp_dir().join(format!("tidegate-access-{}.log", std::process::id()));
        for _ in 0..2 {
            let telemetry = telemetry(path.clone()).unwrap();
            let mut r = Record::new(RequestId(7), Endpoint::Chat, "default", MonoTime::from_secs(1));
            r.ended = Ended::Success;
            let wall = || SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100);
            telemetry.worker(0).finish(MonoTime::from_secs(11), wall, &r);
            telemetry.close();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["time"], "1970-01-01T00:01:30.000Z", "when it arrived, 10 s before its end");
            assert_eq!(line["total_ms"], 10_000.0);
        }
    }

    #[test]
    fn a_log_that_cannot_be_opened_is_named() {
        let path = std::env::temp_dir().join("tidegate-no-such-directory").join("access.log");
        let error = telemetry(path).err().unwrap().to_string();
        assert!(error.contains("tidegate-no-such-directory"), "{error}");
    }

    #[test]
    fn one_registry_takes_one_telemetry() {
        let (params, registry) =
            (Params { access_log: AccessLog::Off, ..Params::default() }, Registry::new());
        let _first = Telemetry::new(&params, Clock::start(), 1, &registry).unwrap();
        let second = Telemetry::new(&params, Clock::start(), 1, &registry);
        assert!(matches!(second, Err(TelemetryError::Register(_))));
    }
}
