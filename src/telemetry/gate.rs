//! The gauges of queue, permits, breaker and connections.
//!
//! Their owners answer for them when somebody asks, so no request pays for them and no gauge can drift
//! from what it describes. The same answers say whether the proxy is ready.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use crate::policy::supply::BreakerState;
use crate::policy::units::{MonoTime, Priority};
use crate::telemetry::families::Family;
use crate::telemetry::{ConnectReason, Connects};

/// One group's state at one moment.
#[derive(Clone, Debug)]
pub struct GateStatus {
    /// The group.
    pub group: Arc<str>,
    /// Permits.
    pub limit: u32,
    /// Permits that the predicted demand needs.
    pub need: u32,
    /// What `limit` may not exceed now.
    pub ceiling: u32,
    /// What `limit` never goes below.
    pub min: u32,
    /// What `limit` never goes above.
    pub max: u32,
    /// Requests that hold a permit.
    pub in_flight: u32,
    /// Requests in flight that need no permit.
    pub unqueued: u32,
    /// Open WebSocket tunnels.
    pub websockets: u32,
    /// Requests waiting, by [`Priority::index`].
    pub queued: [usize; 3],
    /// Bytes of the waiting requests' bodies.
    pub queue_bytes: u64,
    /// The best of its breakers.
    pub breaker: BreakerState,
    /// With every breaker open: when the first will let its probe pass.
    pub breaker_open_until: Option<MonoTime>,
    /// What is left for retries.
    pub retry_budget: u32,
    /// Whether plans fail to come, so that the static limit stands in.
    pub stale: bool,
    /// Whether the process is shutting down.
    pub draining: bool,
    /// The upstreams behind it.
    pub upstreams: Vec<UpstreamStatus>,
}

/// One upstream's state at one moment.
#[derive(Clone, Debug)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Attempts under way that count against its limit.
    pub in_flight: u32,
    /// What it was found to take at once; none while nothing bounds it.
    pub limit: Option<u32>,
    /// Requests that the scarcest known rate still allows.
    pub requests_remaining: Option<f64>,
    /// Tokens that the scarcest known rate still allows.
    pub tokens_remaining: Option<f64>,
    /// Rates that it has stopped.
    pub rates_stopped: usize,
    /// Whether its last active checks failed.
    pub unhealthy: bool,
    /// Whether it rests because it was far slower than its peers.
    pub ejected: bool,
    /// Keys of it that rest.
    pub keys_resting: usize,
    /// Upstream connections that wait for a request.
    pub connections_idle: usize,
    /// Upstream connections that serve one.
    pub connections_active: usize,
    /// Upstream connections that are to be open, idle and in use together; 0: as many as come about.
    pub connections_target: usize,
    /// How they came about.
    pub connects: Arc<Connects>,
}

/// Whether requests should be sent here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready,
    /// No: nothing is set up yet.
    Starting,
    /// No: the process is shutting down.
    Draining,
    /// No: no upstream can take a request.
    BreakerOpen,
}

impl Readiness {
    /// What `/readyz` says.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Draining => "draining",
            Self::BreakerOpen => "breaker open",
        }
    }
}

type Source = Box<dyn Fn() -> GateStatus + Send + Sync>;

/// Everyone who answers for a group.
#[derive(Clone, Default)]
pub(super) struct Sources(Arc<Mutex<Vec<Source>>>);

impl Sources {
    pub(super) fn add(&self, source: Source) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(source);
    }

    fn read(&self) -> Vec<GateStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|source| source()).collect()
    }

    pub(super) fn readiness(&self, now: MonoTime) -> Readiness {
        let all = self.read();
        // A breaker whose recovery time is over waits for a request to probe with: were it still "not
        // ready", a load balancer would send none and it would stay open for ever.
        let can_serve = |s: &GateStatus| {
            s.breaker != BreakerState::Open || s.breaker_open_until.is_some_and(|until| now >= until)
        };
        match () {
            () if all.is_empty() => Readiness::Starting,
            () if all.iter().any(|s| s.draining) => Readiness::Draining,
            () if !all.iter().any(can_serve) => Readiness::BreakerOpen,
            () => Readiness::Ready,
        }
    }
}

/// Asks the sources.
pub(super) struct GateCollector {
    sources: Sources,
    queue_requests: Family,
    queue_bytes: Family,
    in_flight: Family,
    unqueued: Family,
    websockets: Family,
    permits: Family,
    stale: Family,
    breaker: Family,
    retry_budget: Family,
    upstream_in_flight: Family,
    upstream_limit: Family,
    remaining: Family,
    rates_stopped: Family,
    unhealthy: Family,
    ejected: Family,
    keys_resting: Family,
    connections: Family,
    target: Family,
    connects: Family,
    failures: Family,
    connect_time: Family,
}

impl GateCollector {
    pub(super) fn new(sources: Sources) -> Result<Self, prometheus::Error> {
        Ok(Self {
            sources,
            queue_requests: Family::gauge(
                "tidegate_queue_requests",
                "Requests waiting for a permit, from the queue.",
                &["group", "priority"],
            )?,
            queue_bytes: Family::gauge(
                "tidegate_queue_bytes",
                "Bytes of the bodies of the requests waiting for a permit, from the queue.",
                &["group"],
            )?,
            in_flight: Family::gauge(
                "tidegate_in_flight",
                "Requests holding a permit, from the gate; open WebSocket tunnels are among them.",
                &["group"],
            )?,
            unqueued: Family::gauge(
                "tidegate_unqueued_in_flight",
                "Requests in flight that need no permit, from the gate.",
                &[],
            )?,
            websockets: Family::gauge("tidegate_websockets", "Open WebSocket tunnels, from the gate.", &[])?,
            permits: Family::gauge(
                "tidegate_permits",
                "Permits, from the gate: the limit in force, what the predicted demand needs, the ceiling \
                 learned or set, and the configured bounds.",
                &["group", "kind"],
            )?,
            stale: Family::gauge(
                "tidegate_scaling_stale",
                "1 while so many plans failed to come that the static limit stands in, from the gate.",
                &["group"],
            )?,
            breaker: Family::gauge(
                "tidegate_breaker_state",
                "1 for the state the upstream's circuit breaker is in, 0 for the others.",
                &["upstream", "state"],
            )?,
            retry_budget: Family::gauge(
                "tidegate_retry_budget_tokens",
                "What is left for retries, from the gate: each takes some of it, each success puts some back.",
                &["group"],
            )?,
            upstream_in_flight: Family::gauge(
                "tidegate_upstream_in_flight",
                "Attempts with a permit under way at the upstream, from the gate.",
                &["upstream"],
            )?,
            upstream_limit: Family::gauge(
                "tidegate_upstream_limit",
                "Requests that the upstream was found, or is set, to take at once, from the gate; absent while \
                 nothing bounds it.",
                &["upstream"],
            )?,
            remaining: Family::gauge(
                "tidegate_upstream_ratelimit_remaining",
                "Requests or tokens that the scarcest known rate of the upstream still allows, over all of its \
                 keys and models, from the gate; absent while no rate is known.",
                &["upstream", "kind"],
            )?,
            rates_stopped: Family::gauge(
                "tidegate_upstream_rates_stopped",
                "Rates, of one key and model each, that stand still after a 429 of the upstream, from the gate.",
                &["upstream"],
            )?,
            unhealthy: Family::gauge(
                "tidegate_upstream_unhealthy",
                "1 while the upstream's active check fails (check_path), from the gate: it is used only where \
                 nothing else is left.",
                &["upstream"],
            )?,
            ejected: Family::gauge(
                "tidegate_upstream_ejected",
                "1 while the upstream rests because it was far slower than its peers, from the gate: it is used \
                 only where nothing else is left.",
                &["upstream"],
            )?,
            keys_resting: Family::gauge(
                "tidegate_upstream_keys_resting",
                "Keys of the upstream that rest because it refused them, from the gate.",
                &["upstream"],
            )?,
            connections: Family::gauge(
                "tidegate_upstream_connections",
                "Open connections to the upstream, from the pool.",
                &["upstream", "state"],
            )?,
            target: Family::gauge(
                "tidegate_upstream_connections_target",
                "Connections to the upstream that are to be open before they are needed, idle and active \
                 together, from the predictor; 0 where none are opened ahead.",
                &["upstream"],
            )?,
            connects: Family::counter(
                "tidegate_upstream_connects_total",
                "Connections made to the upstream, from the pool: because a request waited for one (demand), \
                 ahead of need (prewarm), or in place of one that was unused (renew) or open (refresh) for \
                 long enough.",
                &["upstream", "reason"],
            )?,
            failures: Family::counter(
                "tidegate_upstream_connect_failures_total",
                "Connections to the upstream that could not be made, from the pool.",
                &["upstream", "reason"],
            )?,
            connect_time: Family::histogram(
                "tidegate_upstream_connect_seconds",
                "Time to make a connection to the upstream, name look-up, TCP and TLS together, from the pool.",
                &["upstream"],
            )?,
        })
    }
}

impl Collector for GateCollector {
    fn desc(&self) -> Vec<&Desc> {
        [
            &self.queue_requests,
            &self.queue_bytes,
            &self.in_flight,
            &self.unqueued,
            &self.websockets,
            &self.permits,
            &self.stale,
            &self.breaker,
            &self.retry_budget,
            &self.upstream_in_flight,
            &self.upstream_limit,
            &self.remaining,
            &self.rates_stopped,
            &self.unhealthy,
            &self.ejected,
            &self.keys_resting,
            &self.connections,
            &self.target,
            &self.connects,
            &self.failures,
            &self.connect_time,
        ]
        .map(Family::desc)
        .to_vec()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let all = self.sources.read();
        let sum = |family: &Family, of: fn(&GateStatus) -> u32| {
            let total: u64 = all.iter().map(|s| u64::from(of(s))).sum();
            family.with(vec![family.value(&[], total as f64)])
        };
        let (mut queue, mut bytes, mut in_flight) = (Vec::new(), Vec::new(), Vec::new());
        let (mut permits, mut breaker, mut connections) = (Vec::new(), Vec::new(), Vec::new());
        let mut stale = Vec::new();
        let (mut target, mut connects, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        let mut connect_time = Vec::new();
        let (mut limits, mut remaining, mut stopped) = (vec![], vec![], vec![]);
        let (mut budget, mut at_upstream, mut ejected, mut resting) = (vec![], vec![], vec![], vec![]);
        let mut unhealthy = Vec::new();
        for s in &all {
            for (priority, n) in Priority::ALL.into_iter().zip(s.queued) {
                queue.push(self.queue_requests.value(&[&s.group, priority.as_str()], n as f64));
            }
            bytes.push(self.queue_bytes.value(&[&s.group], s.queue_bytes as f64));
            in_flight.push(self.in_flight.value(&[&s.group], f64::from(s.in_flight)));
            for (kind, n) in
                [("limit", s.limit), ("need", s.need), ("ceiling", s.ceiling), ("min", s.min), ("max", s.max)]
            {
                permits.push(self.permits.value(&[&s.group, kind], f64::from(n)));
            }
            stale.push(self.stale.value(&[&s.group], f64::from(u8::from(s.stale))));
            budget.push(self.retry_budget.value(&[&s.group], f64::from(s.retry_budget)));
        }
        // the same series twice would make a scrape fail as a whole; an upstream belongs to one group
        let mut seen = HashSet::new();
        for u in all.iter().flat_map(|s| &s.upstreams).filter(|u| seen.insert(&u.name)) {
            for state in [BreakerState::Closed, BreakerState::Open, BreakerState::HalfOpen] {
                let is = f64::from(u8::from(state == u.breaker));
                breaker.push(self.breaker.value(&[&u.name, state.as_str()], is));
            }
            at_upstream.push(self.upstream_in_flight.value(&[&u.name], f64::from(u.in_flight)));
            limits.extend(u.limit.map(|n| self.upstream_limit.value(&[&u.name], f64::from(n))));
            for (kind, left) in [("requests", u.requests_remaining), ("tokens", u.tokens_remaining)] {
                remaining.extend(left.map(|n| self.remaining.value(&[&u.name, kind], n)));
            }
            stopped.push(self.rates_stopped.value(&[&u.name], u.rates_stopped as f64));
            unhealthy.push(self.unhealthy.value(&[&u.name], f64::from(u8::from(u.unhealthy))));
            ejected.push(self.ejected.value(&[&u.name], f64::from(u8::from(u.ejected))));
            resting.push(self.keys_resting.value(&[&u.name], u.keys_resting as f64));
            for (state, n) in [("idle", u.connections_idle), ("active", u.connections_active)] {
                connections.push(self.connections.value(&[&u.name, state], n as f64));
            }
            target.push(self.target.value(&[&u.name], u.connections_target as f64));
            for reason in ConnectReason::ALL {
                let (made, failed) = u.connects.count(reason);
                let labels = [&*u.name, reason.as_str()];
                connects.push(self.connects.value(&labels, made as f64));
                failures.push(self.failures.value(&labels, failed as f64));
            }
            connect_time.push(self.connect_time.buckets(&[&u.name], &u.connects.took()));
        }
        vec![
            self.queue_requests.with(queue),
            self.queue_bytes.with(bytes),
            self.in_flight.with(in_flight),
            sum(&self.unqueued, |s| s.unqueued),
            sum(&self.websockets, |s| s.websockets),
            self.permits.with(permits),
            self.stale.with(stale),
            self.breaker.with(breaker),
            self.retry_budget.with(budget),
            self.upstream_in_flight.with(at_upstream),
            self.upstream_limit.with(limits),
            self.remaining.with(remaining),
            self.rates_stopped.with(stopped),
            self.unhealthy.with(unhealthy),
            self.ejected.with(ejected),
            self.keys_resting.with(resting),
            self.connections.with(connections),
            self.target.with(target),
            self.connects.with(connects),
            self.failures.with(failures),
            self.connect_time.with(connect_time),
        ]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::telemetry) fn status() -> GateStatus {
        GateStatus {
            group: "default".into(),
            limit: 10,
            need: 7,
            ceiling: 20,
            min: 4,
            max: 1000,
            in_flight: 3,
            unqueued: 2,
            websockets: 1,
            queued: [1, 5, 0],
            queue_bytes: 4096,
            breaker: BreakerState::Closed,
            breaker_open_until: None,
            stale: false,
            draining: false,
            retry_budget: 500,
            upstreams: vec![upstream()],
        }
    }

    fn upstream() -> UpstreamStatus {
        UpstreamStatus {
            name: "openai".into(),
            breaker: BreakerState::Closed,
            in_flight: 5,
            limit: Some(64),
            requests_remaining: Some(599.0),
            tokens_remaining: None,
            rates_stopped: 0,
            unhealthy: true,
            ejected: false,
            keys_resting: 1,
            connections_idle: 8,
            connections_active: 3,
            connections_target: 12,
            connects: Arc::default(),
        }
    }

    fn readiness(all: Vec<GateStatus>, now: u64) -> Readiness {
        let sources = Sources::default();
        for s in all {
            sources.add(Box::new(move || s.clone()));
        }
        sources.readiness(MonoTime::from_secs(now))
    }

    #[test]
    fn ready_means_that_somebody_can_serve_and_nobody_is_leaving() {
        let until = Some(MonoTime::from_secs(30));
        let open = || GateStatus { breaker: BreakerState::Open, breaker_open_until: until, ..status() };
        assert_eq!(readiness(vec![], 0), Readiness::Starting);
        assert_eq!(readiness(vec![status()], 0), Readiness::Ready);
        assert_eq!(readiness(vec![GateStatus { draining: true, ..open() }], 0), Readiness::Draining);
        assert_eq!(readiness(vec![open()], 29), Readiness::BreakerOpen);
        assert_eq!(readiness(vec![open(), status()], 29), Readiness::Ready);
        assert_eq!(readiness(vec![open()], 30), Readiness::Ready, "it needs a request to probe with");
        let half = GateStatus { breaker: BreakerState::HalfOpen, ..status() };
        assert_eq!(readiness(vec![half], 0), Readiness::Ready);
    }

    #[test]
    fn each_series_is_there_once() {
        let sources = Sources::default();
        sources.add(Box::new(status));
        sources.add(Box::new(|| GateStatus { group: "second".into(), ..status() }));
        let registry = prometheus::Registry::new();
        registry.register(Box::new(GateCollector::new(sources).unwrap())).unwrap();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        let lines: HashSet<_> = text.lines().map(|l| l.rsplit_once(' ').unwrap().0).collect();
        assert_eq!(lines.len(), text.lines().count(), "{text}");
        assert!(text.contains("tidegate_permits{group=\"second\",kind=\"ceiling\"} 20\n"));
        assert!(text.contains("tidegate_unqueued_in_flight 4\n"));
        assert!(text.contains("tidegate_queue_requests{group=\"default\",priority=\"normal\"} 5\n"));
        assert!(text.contains("tidegate_breaker_state{upstream=\"openai\",state=\"closed\"} 1\n"));
        assert!(text.contains("tidegate_breaker_state{upstream=\"openai\",state=\"open\"} 0\n"));
        assert!(text.contains("tidegate_upstream_connections_target{upstream=\"openai\"} 12\n"));
        assert!(text.contains("tidegate_upstream_in_flight{upstream=\"openai\"} 5\n"));
        assert!(text.contains("tidegate_upstream_limit{upstream=\"openai\"} 64\n"));
        assert!(text.contains("ratelimit_remaining{upstream=\"openai\",kind=\"requests\"} 599\n"));
        assert!(text.contains("tidegate_upstream_unhealthy{upstream=\"openai\"} 1\n"));
        assert!(text.contains("tidegate_upstream_ejected{upstream=\"openai\"} 0\n"));
        assert!(text.contains("tidegate_upstream_keys_resting{upstream=\"openai\"} 1\n"));
        assert!(text.contains("tidegate_retry_budget_tokens{group=\"second\"} 500\n"));
        assert!(text.contains("connects_total{upstream=\"openai\",reason=\"refresh\"} 0\n"));
    }
}
