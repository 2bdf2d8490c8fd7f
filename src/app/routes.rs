//! Builds the upstream groups: of each its engine behind a gate, and telemetry told of all it reports.

use std::sync::Arc;

use crate::app::StartError;
use crate::clock::Clock;
use crate::config::Config;
use crate::policy::engine;
use crate::policy::supply::{self, Member, Routing};
use crate::policy::units::{EndpointId, ModelId, MonoTime};
use crate::proxy::{Costs, Gate, Group, Report, Routes};
use crate::telemetry::{GateStatus, Telemetry, UpstreamStatus};
use crate::upstream::Upstream;

/// What every group is called while there is one.
const ONLY_GROUP: &str = "default";

/// The groups of `upstreams`, which stand in the configuration's order. `heard` hears of each report as well, with
/// the group's name.
///
/// # Errors
/// [`StartError::Models`], which a configuration that was checked does not have.
pub fn routes(
    config: &Config,
    clock: Clock,
    telemetry: &Arc<Telemetry>,
    upstreams: &[Arc<Upstream>],
    heard: impl Fn(&str, &Report) + Clone + Send + Sync + 'static,
) -> Result<Arc<Routes>, StartError> {
    let lists: Vec<&[String]> = upstreams.iter().map(|u| u.params().supply.models.as_slice()).collect();
    let routing = Routing::new(&lists).map_err(|overlaps| {
        let first = overlaps.into_iter().next();
        first.map_or(StartError::Models(String::new(), String::new()), |overlap| {
            StartError::Models(overlap.first_pattern, overlap.second_pattern)
        })
    })?;
    let several = routing.groups().len() > 1;
    let groups = routing.groups().iter().enumerate().map(|(number, members)| {
        let endpoints: Vec<Arc<Upstream>> =
            members.iter().filter_map(|at| upstreams.get(*at)).cloned().collect();
        let name: Arc<str> = match endpoints.first() {
            Some(first) if several => first.name().clone(),
            _ => ONLY_GROUP.into(),
        };
        let seed = number as u64;
        group(&name, params(config, &endpoints, seed), clock, telemetry, endpoints, heard.clone())
    });
    let groups = groups.collect();
    Ok(Arc::new(Routes::new(routing, groups, config.retry.clone())))
}

fn params(config: &Config, endpoints: &[Arc<Upstream>], seed: u64) -> engine::Params {
    let member = |upstream: &Arc<Upstream>| Member {
        endpoint: upstream.params().supply.clone(),
        keys: u16::try_from(upstream.params().keys().count()).unwrap_or(u16::MAX),
        hosted: !upstream.params().looks_self_hosted(),
    };
    engine::Params {
        admission: config.queue.clone(),
        scaling: config.scaling.clone(),
        supply: supply::Params {
            breaker: config.breaker.clone(),
            retry: config.retry.clone(),
            members: endpoints.iter().map(member).collect(),
            seed,
            ..supply::Params::default()
        },
    }
}

fn group(
    name: &Arc<str>,
    params: engine::Params,
    clock: Clock,
    telemetry: &Arc<Telemetry>,
    endpoints: Vec<Arc<Upstream>>,
    heard: impl Fn(&str, &Report) + Send + Sync + 'static,
) -> Group {
    let names: Vec<Arc<str>> = endpoints.iter().map(|endpoint| endpoint.name().clone()).collect();
    let (told, group) = (telemetry.clone(), name.clone());
    let gate = Gate::new(params, clock, move |costs, report| {
        heard(&group, &report);
        tell(&told, clock.now(), &group, &names, costs, &report);
    });
    let estimating = gate.clone();
    telemetry.observe_estimates(name, move || estimating.costs().errors());
    let (observed, group, upstreams) = (gate.clone(), name.clone(), endpoints.clone());
    telemetry.observe_gate(move || status(&group, &observed, &upstreams));
    Group::new(name.clone(), gate, endpoints)
}

fn tell(
    telemetry: &Telemetry,
    now: MonoTime,
    group: &str,
    names: &[Arc<str>],
    costs: &Costs,
    report: &Report,
) {
    let name = |id: EndpointId| names.get(usize::from(id.0)).map_or("", |name| &**name);
    let model = |id: ModelId| costs.model(id).unwrap_or_else(|| "other".to_owned());
    match report {
        Report::Decided(decision) => telemetry.decision(group, decision),
        Report::Resized { from, to, reason } => telemetry.resized(group, *from, *to, *reason),
        Report::Requeued(cause) => telemetry.requeued(group, *cause),
        Report::Supply(report) => telemetry.supply(now, report, name, model),
    }
}

fn status(group: &Arc<str>, gate: &Gate, upstreams: &[Arc<Upstream>]) -> GateStatus {
    let s = gate.status();
    let upstream = |(upstream, e): (&Arc<Upstream>, supply::EndpointStatus)| {
        let (idle, active) = upstream.connections();
        UpstreamStatus {
            name: upstream.name().clone(),
            breaker: e.breaker,
            in_flight: e.in_flight,
            limit: e.limit,
            requests_remaining: e.requests_remaining,
            tokens_remaining: e.tokens_remaining,
            rates_stopped: e.stopped,
            unhealthy: e.unhealthy,
            ejected: e.ejected,
            keys_resting: e.keys_resting,
            connections_idle: idle,
            connections_active: active,
            connections_target: upstream.warm(),
            connects: upstream.connects().clone(),
        }
    };
    GateStatus {
        group: group.clone(),
        limit: s.limit,
        need: s.need,
        ceiling: s.ceiling,
        min: s.min,
        max: s.max,
        in_flight: s.in_flight,
        unqueued: u32::try_from(s.unqueued).unwrap_or(u32::MAX),
        websockets: u32::try_from(s.websockets).unwrap_or(u32::MAX),
        queued: s.queued,
        queue_bytes: s.queue_bytes,
        breaker: s.breaker,
        breaker_open_until: s.breaker_open_until,
        retry_budget: s.retry_budget,
        stale: s.stale,
        draining: s.draining,
        upstreams: upstreams.iter().zip(s.endpoints).map(upstream).collect(),
    }
}
