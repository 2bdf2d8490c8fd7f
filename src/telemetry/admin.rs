//! The admin service: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever runs the process, and
//! `/replicas` for whoever scales the model servers.
//!
//! It runs on an address of its own, so that nobody who may send requests can read the metrics, and so
//! that a proxy with no connection to spare still answers for itself. `app` accepts the connections.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioTimer;
use prometheus::{Registry, TextEncoder};

use crate::telemetry::{Readiness, Telemetry};

/// How long a peer may take to send a request's head; also how long it may idle between two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";
const JSON_TYPE: &str = "application/json";
const PATHS: &str = "not found; there are /metrics, /healthz, /readyz and /replicas\n";

/// Answers the admin paths. Bodies of requests are ignored.
#[derive(Clone)]
pub struct Admin {
    telemetry: Arc<Telemetry>,
    registry: Registry,
}

impl Admin {
    /// The service that shows `registry` and answers for `telemetry`.
    #[must_use]
    pub fn new(telemetry: Arc<Telemetry>, registry: Registry) -> Self {
        Self { telemetry, registry }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(path, "/metrics" | "/healthz" | "/readyz" | "/replicas") {
            return text(StatusCode::NOT_FOUND, TEXT_TYPE, PATHS);
        }
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut refused =
                text(StatusCode::METHOD_NOT_ALLOWED, TEXT_TYPE, "only GET and HEAD are allowed\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match path {
            "/metrics" => self.metrics(),
            // it says no more than the metrics do
            "/replicas" => text(StatusCode::OK, JSON_TYPE, self.telemetry.replicas()),
            "/healthz" => text(StatusCode::OK, TEXT_TYPE, "ok\n"),
            _ => {
                let readiness = self.telemetry.readiness();
                let ready = readiness == Readiness::Ready;
                let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                text(status, TEXT_TYPE, format!("{}\n", readiness.as_str()))
            }
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match TextEncoder::new().encode_to_string(&self.registry.gather()) {
            Ok(page) => text(StatusCode::OK, METRICS_TYPE, page),
            Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, TEXT_TYPE, format!("{e}\n")),
        }
    }
}

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

impl<B: Body> Service<Request<B>> for Admin {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        ready(Ok(self.answer(request.method(), request.uri().path())))
    }
}

/// Serves one connection until its peer closes it or idles for too long.
///
/// # Errors
/// The connection broke, or what came over it was not HTTP/1.
pub async fn serve_connection<I>(io: I, admin: Admin) -> hyper::Result<()>
where
    I: Read + Write + Unpin,
{
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(io, admin)
        .await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::clock::Clock;
    use crate::policy::predict::{Decision, Desired, Direction, Ready, Reason};
    use crate::policy::supply::{BreakerState, Transition};
    use crate::policy::units::MonoTime;
    use crate::telemetry::gate::tests::status;
    use crate::telemetry::{
        AccessLog, ConnectionFault, Ended, Endpoint, GateStatus, Params, Record, RequestId,
    };

    fn telemetry(clock: Clock) -> (Arc<Telemetry>, Admin) {
        let params = Params { access_log: AccessLog::Off, ..Params::default() };
        let registry = Registry::new();
        let telemetry = Telemetry::new(&params, clock, 2, &registry).unwrap();
        (telemetry.clone(), Admin::new(telemetry, registry))
    }

    /// Sends `request` over an in-memory connection and reads until the peer closes it.
    async fn exchange(admin: Admin, request: &str) -> String {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut answer = String::new();
        let talk = async {
            client.write_all(request.as_bytes()).await.unwrap();
            client.read_to_string(&mut answer).await.unwrap();
        };
        let (served, ()) = tokio::join!(serve_connection(TokioIo::new(server), admin), talk);
        served.unwrap();
        answer
    }

    async fn get(admin: &Admin, path: &str) -> String {
        exchange(admin.clone(), &format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await
    }

    #[tokio::test(start_paused = true)]
    async fn desired_replicas_where_keda_looks_for_them() {
        let (telemetry, admin) = telemetry(Clock::start());
        assert!(
            get(&admin, "/replicas").await.ends_with("\r\n\r\n{\"groups\":{}}\n"),
            "nobody has said a word"
        );
        let desired = Desired { replicas: 3, reason: "season", per_replica: 16.0 };
        telemetry.ready("default", Ready { connections: 9, replicas: Some(desired) });
        let answer = get(&admin, "/replicas").await;
        assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
        let body = answer.rsplit("\r\n\r\n").next().unwrap();
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(json["groups"]["default"]["desired_replicas"], 3);
        assert_eq!(json["groups"]["default"]["reason"], "season");
        let page = get(&admin, "/metrics").await;
        for line in [
            "tidegate_desired_replicas{group=\"default\"} 3\n",
            "tidegate_replica_capacity{group=\"default\"} 16\n",
            "tidegate_desired_connections{group=\"default\"} 9\n",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn health_readiness_and_what_is_not_there() {
        let (telemetry, admin) = telemetry(Clock::start());
        assert!(get(&admin, "/healthz").await.starts_with("HTTP/1.1 200 OK\r\n"));
        let starting = get(&admin, "/readyz").await;
        assert!(starting.starts_with("HTTP/1.1 503") && starting.ends_with("starting\n"), "{starting}");
        telemetry.observe_gate(status);
        let ready = get(&admin, "/readyz?verbose").await;
        assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with("\r\n\r\nready\n"), "{ready}");
        telemetry.observe_gate(|| GateStatus { draining: true, ..status() });
        assert!(get(&admin, "/readyz").await.ends_with("draining\n"));
        let missing = get(&admin, "/").await;
        assert!(missing.starts_with("HTTP/1.1 404") && missing.contains("/metrics"), "{missing}");
        let post = "POST /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
        let refused = exchange(admin.clone(), post).await;
        assert!(refused.starts_with("HTTP/1.1 405") && refused.contains("allow: GET, HEAD\r\n"), "{refused}");
        let head = "HEAD /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let head = exchange(admin.clone(), head).await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(head.contains("content-length: "));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_says_nothing_is_dropped() {
        let (_, admin) = telemetry(Clock::start());
        let (client, server) = tokio::io::duplex(1024);
        let error = serve_connection(TokioIo::new(server), admin).await.unwrap_err();
        assert!(error.is_timeout(), "{error}");
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn the_page_has_every_metric_with_what_was_reported() {
        let clock = Clock::start();
        let (telemetry, admin) = telemetry(clock);
        telemetry.observe_gate(status);
        let decision = Decision {
            at: MonoTime::ZERO,
            direction: Direction::Up,
            reason: Reason::ScaleUp,
            from: 10,
            to: 12,
            need: 12,
            requests_per_minute: 60.0,
            confidence: 0.9,
            queued: 1,
            utilisation: 0.8,
            applied: true,
            since_change: Duration::from_secs(40),
            outlook: None,
        };
        telemetry.decision("default", &decision);
        let (from, to) = (BreakerState::Closed, BreakerState::Open);
        let opened = Transition { from, to, in_a_row: 5, answers: 20, failures: 5, retry_at: None };
        telemetry.breaker(clock.now(), "openai", opened);
        telemetry.connection_fault(ConnectionFault::HeaderTimeout);
        let began = clock.now();
        tokio::time::advance(Duration::from_secs(10)).await;
        let mut r = Record::new(RequestId(1), Endpoint::Chat, "default", began);
        r.model = Some("a \"7b\"\\x".into());
        (r.asked, r.admitted, r.queued) = (Some(began), Some(began + Duration::from_secs(4)), true);
        (r.dispatched, r.first_byte) = (r.admitted, Some(began + Duration::from_secs(6)));
        (r.status, r.ended) = (Some(200), Ended::Success);
        telemetry.worker(0).finish(clock.now(), crate::clock::wall, &r);
        let mut refused = Record::new(RequestId(2), Endpoint::Chat, "default", clock.now());
        (refused.ended, refused.reason) = (Ended::Refused, Some("queue_full"));
        telemetry.worker(1).finish(clock.now(), crate::clock::wall, &refused);

        let page = get(&admin, "/metrics").await;
        assert!(page.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
        for line in [
            r#"tidegate_requests_total{endpoint="chat",model="a \"7b\"\\x",outcome="success"} 1"#,
            r#"tidegate_requests_total{endpoint="chat",model="none",outcome="refused"} 1"#,
            r#"tidegate_requests_total{endpoint="chat",model="none",outcome="success"} 0"#,
            r#"tidegate_queue_wait_seconds_bucket{endpoint="chat",model="a \"7b\"\\x",le="2.5"} 0"#,
            r#"tidegate_queue_wait_seconds_bucket{endpoint="chat",model="a \"7b\"\\x",le="5"} 1"#,
            r#"tidegate_queue_wait_seconds_bucket{endpoint="chat",model="a \"7b\"\\x",le="+Inf"} 1"#,
            r#"tidegate_time_to_first_token_seconds_sum{endpoint="chat",model="a \"7b\"\\x"} 6"#,
            r#"tidegate_upstream_duration_seconds_sum{endpoint="chat",model="a \"7b\"\\x"} 6"#,
            r#"tidegate_request_duration_seconds_sum{endpoint="chat",model="a \"7b\"\\x"} 10"#,
            r#"tidegate_request_duration_seconds_count{endpoint="chat",model="none"} 0"#,
            "# TYPE tidegate_latency_seconds summary",
            r#"tidegate_latency_seconds_count{stage="queue"} 1"#,
            r#"tidegate_latency_seconds_sum{stage="ttft"} 6"#,
            "tidegate_error_rate 0.5",
            "tidegate_throughput_requests_per_second 0.2",
            r#"tidegate_refusals_total{reason="queue_full"} 1"#,
            r#"tidegate_refusals_total{reason="draining"} 0"#,
            r#"tidegate_scale_decisions_total{direction="up",group="default",reason="scale_up"} 1"#,
            r#"tidegate_scale_decisions_total{direction="hold",group="default",reason="cooldown"} 0"#,
            r#"tidegate_breaker_transitions_total{from="closed",to="open",upstream="openai"} 1"#,
            r#"tidegate_breaker_transitions_total{from="half_open",to="closed",upstream="openai"} 0"#,
            r#"tidegate_connection_faults_total{kind="header_timeout"} 1"#,
            r#"tidegate_connection_faults_total{kind="too_many"} 0"#,
            r#"tidegate_upstream_connections{upstream="openai",state="idle"} 8"#,
            r#"tidegate_queue_bytes{group="default"} 4096"#,
            r#"tidegate_in_flight{group="default"} 3"#,
            "tidegate_websockets 1",
            "tidegate_access_log_dropped_total 0",
        ] {
            assert!(page.lines().any(|l| l == line), "no line {line} in\n{page}");
        }
        assert!(page.contains(r#"tidegate_latency_seconds{stage="total",quantile="0.99"} 10"#), "{page}");
        assert!(page.contains("tidegate_build_info{version=\""));
        let helped: BTreeSet<_> =
            page.lines().filter_map(|l| l.strip_prefix("# HELP ")?.split(' ').next()).collect();
        let typed: BTreeSet<_> =
            page.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert_eq!(helped, typed, "every family has a help text");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_proxy_shows_its_quantiles_as_nan() {
        let (_, admin) = telemetry(Clock::start());
        let page = get(&admin, "/metrics").await;
        for stage in ["queue", "ttft", "upstream", "total"] {
            for q in ["0.5", "0.95", "0.99"] {
                let line = format!("tidegate_latency_seconds{{stage=\"{stage}\",quantile=\"{q}\"}} NaN");
                assert!(page.lines().any(|l| l == line), "no line {line} in\n{page}");
            }
        }
        assert!(page.lines().any(|l| l == "tidegate_error_rate 0"));
    }
}
