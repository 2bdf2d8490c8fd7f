//! Each section's settings, made into the `Params` of the room they belong to.
//!
//! This is the one list of the settings there are: what is not asked for here or in `upstream.rs` is unknown.

use std::net::{IpAddr, SocketAddr};

use super::Config;
use super::foresight;
use super::reader::Reader;
use super::together;
use super::upstream::{self, Vault, leads_back};
use super::values::{self, Value, choice};
use crate::policy::admission::{self, OnDrain};
use crate::policy::predict::{self, ArticleWindow, Mode, PolicyKind};
use crate::policy::supply::{BreakerParams, RetryParams};
use crate::telemetry::{self, AccessLog};
use crate::{listener, proxy};

/// Reads every section. Faults go to the reader; the settings are good only if it has none.
pub(super) fn read(reader: &mut Reader, vault: &Vault<'_>, warnings: &mut Vec<String>) -> Config {
    let config = Config {
        listen: listen(reader),
        telemetry: telemetry(reader),
        limits: limits(reader),
        queue: queue(reader),
        scaling: scaling(reader),
        breaker: breaker(reader),
        retry: retry(reader),
        upstreams: upstream::read(reader, vault, warnings),
    };
    let (listen, admin) = (config.listen.address, config.telemetry.admin_address);
    let readable = !reader.is_faulty("listen.address");
    if readable && !reader.is_faulty("admin.address") && clash(listen, admin) {
        reader.fault(
            "admin.address",
            format!("{admin} is also listen.address ({listen}): give each a port of its own"),
        );
    }
    for (at, upstream) in config.upstreams.iter().enumerate() {
        let key = format!("upstream.{at}.base_url");
        if readable && !reader.is_faulty(&key) && leads_back(&upstream.base_url, listen) {
            let message = format!(
                "leads back to tidegate itself, which listens on {listen}: every request would go in circles"
            );
            reader.fault(&key, message);
        }
    }
    together::with_the_rest(reader, &config, warnings);
    config
}

/// Whether two sockets would want the same port. Port 0 is a different one each time.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |x: IpAddr, y: IpAddr| x.is_unspecified() && (x.is_ipv6() || y.is_ipv4());
    let (x, y) = (a.ip(), b.ip());
    a.port() == b.port() && a.port() != 0 && (x == y || covers(x, y) || covers(y, x))
}

/// As many workers as there are cores, up to four: beyond that a proxy in front of a model only wakes more threads.
pub(super) fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4))
}

fn listen(r: &mut Reader) -> listener::Params {
    let d = listener::Params::default();
    let params = listener::Params {
        address: r.take("listen.address", values::address).unwrap_or(d.address),
        workers: r.take("listen.workers", values::count).unwrap_or_else(default_workers),
        drain_timeout: r.take("listen.drain_timeout", values::duration).unwrap_or(d.drain_timeout),
        max_connections: r.take("limits.max_connections", values::count).unwrap_or(d.max_connections),
        header_timeout: r.take("limits.header_timeout", values::duration).unwrap_or(d.header_timeout),
        keep_alive_idle: r.take("limits.keep_alive_idle", values::duration).unwrap_or(d.keep_alive_idle),
        write_timeout: r.take("limits.write_timeout", values::duration).unwrap_or(d.write_timeout),
    };
    r.check(&["listen", "limits"], params, listener::Params::try_new)
}

fn telemetry(r: &mut Reader) -> telemetry::Params {
    let d = telemetry::Params::default();
    let access_log = |value: &Value| match values::string(value)?.as_str() {
        "stdout" => Ok(AccessLog::Stdout),
        "off" => Ok(AccessLog::Off),
        _ => values::path(value).map(AccessLog::File),
    };
    let params = telemetry::Params {
        admin_address: r.take("admin.address", values::address).unwrap_or(d.admin_address),
        access_log: r.take("telemetry.access_log", access_log).unwrap_or(d.access_log),
        log: r.take("telemetry.log", values::string).unwrap_or(d.log),
        quantile_window: r.take("telemetry.quantile_window", values::duration).unwrap_or(d.quantile_window),
    };
    r.check(&["telemetry", "admin"], params, telemetry::Params::try_new)
}

fn limits(r: &mut Reader) -> proxy::Params {
    let d = proxy::Params::default();
    let params = proxy::Params {
        body_bytes: r.take("limits.body_bytes", values::size).unwrap_or(d.body_bytes),
        replay_bytes: r.take("limits.replay_bytes", values::size).unwrap_or(d.replay_bytes),
        body_memory: r.take("limits.body_memory", values::size).unwrap_or(d.body_memory),
        body_timeout: r.take("limits.body_timeout", values::duration).unwrap_or(d.body_timeout),
    };
    r.check(&["limits"], params, proxy::Params::try_new)
}

fn queue(r: &mut Reader) -> admission::Params {
    let d = admission::Params::default();
    let on_drain = choice(&[("reject", OnDrain::Reject), ("finish", OnDrain::Finish)]);
    let params = admission::Params {
        max_requests: r.take("queue.max_requests", values::count).unwrap_or(d.max_requests),
        max_bytes: r.take("queue.max_bytes", values::size).unwrap_or(d.max_bytes),
        timeout: r.take("queue.timeout", values::duration).unwrap_or(d.timeout),
        failover_wait: r.take("queue.failover_wait", values::duration).unwrap_or(d.failover_wait),
        on_drain: r.take("queue.on_drain", on_drain).unwrap_or(d.on_drain),
        max_unqueued: r.take("limits.max_unqueued", values::count).unwrap_or(d.max_unqueued),
        max_websockets: r.take("limits.max_websockets", values::count).unwrap_or(d.max_websockets),
    };
    r.check(&["queue", "limits"], params, admission::Params::try_new)
}

fn breaker(r: &mut Reader) -> BreakerParams {
    let d = BreakerParams::default();
    let params = BreakerParams {
        failures: r.take("breaker.failures", values::count).unwrap_or(d.failures),
        failure_rate: r.take("breaker.failure_rate", values::fraction).unwrap_or(d.failure_rate),
        min_samples: r.take("breaker.min_samples", values::count).unwrap_or(d.min_samples),
        window: r.take("breaker.window", values::duration).unwrap_or(d.window),
        recovery: r.take("breaker.recovery", values::duration).unwrap_or(d.recovery),
    };
    r.check(&["breaker"], params, BreakerParams::try_new)
}

fn retry(r: &mut Reader) -> RetryParams {
    let d = RetryParams::default();
    let budget = r.take("retry.budget", values::count).unwrap_or(d.budget);
    // a default gives way to the budget that was set: it may be small, but has to be enough for one retry
    let cost = |default: u32| default.min(budget).max(1);
    let params = RetryParams {
        statuses: r.take("retry.statuses", values::list(values::count)).unwrap_or(d.statuses),
        on_connect: r.take("retry.on_connect", values::boolean).unwrap_or(d.on_connect),
        on_reset: r.take("retry.on_reset", values::boolean).unwrap_or(d.on_reset),
        backoff: r.take("retry.backoff", values::list(values::duration)).unwrap_or(d.backoff),
        budget,
        retry_cost: r.take("retry.retry_cost", values::count).unwrap_or_else(|| cost(d.retry_cost)),
        timeout_cost: r.take("retry.timeout_cost", values::count).unwrap_or_else(|| cost(d.timeout_cost)),
        success_refund: r.take("retry.success_refund", values::count).unwrap_or(d.success_refund),
    };
    r.check(&["retry"], params, RetryParams::try_new)
}

fn policy(value: &Value) -> Result<PolicyKind, String> {
    choice(&PolicyKind::ALL.map(|kind| (kind.as_str(), kind)))(value)
}

/// A number of requests, or a time.
fn article_window(value: &Value) -> Result<ArticleWindow, String> {
    match value {
        Value::Integer(_) => values::count(value).map(ArticleWindow::Requests),
        Value::Text(s) if s.bytes().all(|b| b.is_ascii_digit()) => {
            values::count(value).map(ArticleWindow::Requests)
        }
        _ => values::duration(value)
            .map(ArticleWindow::Time)
            .map_err(|message| format!("{message}; or a number of requests such as 300")),
    }
}

fn scaling(r: &mut Reader) -> predict::Params {
    let mode = choice(&[("act", Mode::Act), ("shadow", Mode::Shadow)]);
    let policy = r.take("scaling.policy", policy).unwrap_or(PolicyKind::Predictive);
    let d = predict::Params::of(policy);
    let set_max = r.take("scaling.max_permits", values::count);
    let set_min = r.take("scaling.min_permits", values::count);
    let set_initial = r.take("scaling.initial_permits", values::count);
    let set_emergency: Option<u32> = r.take("scaling.article.emergency_permits", values::count);
    // A default gives way to what was set: whoever writes `max_permits = 4` and no more has said all that is needed.
    let max_permits: u32 = set_max.unwrap_or(d.max_permits);
    let min_permits: u32 =
        set_min.unwrap_or_else(|| d.min_permits.min(max_permits).min(set_initial.unwrap_or(u32::MAX)).max(1));
    let initial_permits = set_initial.unwrap_or_else(|| d.initial_permits.max(min_permits).min(max_permits));
    // The article's own numbers jump past its maximum (150 over 100), and its table is reproduced with them. An
    // operator's own maximum is a promise to the upstream, and holds.
    let ceiling = set_max.filter(|_| policy == PolicyKind::Article);
    let article_emergency = match (set_emergency, ceiling) {
        (Some(emergency), Some(max)) if emergency > max => {
            r.fault(
                "scaling.article.emergency_permits",
                format!("{emergency} is more than max_permits = {max}"),
            );
            emergency
        }
        (Some(emergency), _) => emergency,
        (None, max) => d.article_emergency.min(max.unwrap_or(u32::MAX)),
    };
    if set_emergency.is_some_and(|permits| permits == 0 || permits > 100_000) {
        r.fault("scaling.article.emergency_permits", format!("must be 1 to 100000, is {article_emergency}"));
    }
    let params = predict::Params {
        policy,
        mode: r.take("scaling.mode", mode).unwrap_or(d.mode),
        min_permits,
        initial_permits,
        max_permits,
        cooldown: r.take("scaling.cooldown", values::duration).unwrap_or(d.cooldown),
        warm_up: r.take("scaling.warm_up", values::duration).unwrap_or(d.warm_up),
        scale_up_threshold: r
            .take("scaling.scale_up_threshold", values::fraction)
            .unwrap_or(d.scale_up_threshold),
        scale_down_threshold: r
            .take("scaling.scale_down_threshold", values::fraction)
            .unwrap_or(d.scale_down_threshold),
        emergency_queue: r.take("scaling.emergency_queue", values::count).unwrap_or(d.emergency_queue),
        horizon: r.take("predict.horizon", values::duration).unwrap_or(d.horizon),
        quantile: r.take("predict.quantile", values::fraction).unwrap_or(d.quantile),
        confidence: r.take("predict.confidence", values::fraction).unwrap_or(d.confidence),
        calendar: foresight::calendar(r),
        replicas: foresight::replicas(r),
        baseline: r.take("predict.baseline", foresight::baseline).unwrap_or(d.baseline),
        article_window: r.take("scaling.article.window", article_window).unwrap_or(d.article_window),
        article_emergency,
    };
    r.check(&["scaling", "predict"], params, predict::Params::try_new)
}
