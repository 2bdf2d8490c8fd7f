//! One request through everything but the kernel: hyper's server, the whole pipeline, hyper's client, over
//! pipes in memory on one thread. `direct` is the same without the proxy between: the difference is ours.
//!
//! `cargo bench --bench stack`

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on should stop")]

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use prometheus::Registry;
use tidegate::clock::Clock;
use tidegate::listener::{self, Serving};
use tidegate::policy::engine;
use tidegate::policy::predict::PolicyKind;
use tidegate::policy::supply::RetryParams;
use tidegate::proxy::{self, Gate, Group, Memory, Parts, Routes, Tunnels};
use tidegate::telemetry::{self, AccessLog, Telemetry};
use tidegate::upstream::{self, Dial, Dialing, Dialled, Upstream};
use tokio::io::DuplexStream;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const BODY: &str =
    r#"{"model":"tide-1","messages":[{"role":"user","content":"Say hello."}],"max_tokens":16}"#;

/// A server that answers at once with 1 KB.
async fn serve_fast(io: DuplexStream) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| async {
        request.into_body().collect().await.map_err(|e| e.to_string())?;
        Ok::<_, String>(Response::new(Full::new(Bytes::from_static(&[b'x'; 1024]))))
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

struct Pipes(TaskTracker);

impl Dial for Pipes {
    fn dial(&self) -> Dialing<'_> {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        self.0.spawn(serve_fast(theirs));
        Box::pin(async move { Ok(Dialled::new(ours)) })
    }
}

fn proxied(tasks: &TaskTracker, access_log: AccessLog) -> DuplexStream {
    let clock = Clock::start();
    let params = telemetry::Params { access_log, ..telemetry::Params::default() };
    let telemetry = Telemetry::new(&params, clock, 1, &Registry::new()).unwrap();
    let upstream = upstream::Params { base_url: "http://upstream/v1".parse().unwrap(), ..Default::default() };
    let upstream = Upstream::with_dial(upstream, Box::new(Pipes(tasks.clone())), 1, clock).unwrap();
    let mut params = engine::Params::default();
    params.scaling.policy = PolicyKind::Fixed;
    let stack = proxy::stack(Parts {
        worker: 0,
        params: proxy::Params::default(),
        routes: Arc::new(Routes::single(
            Group::new("default", Gate::new(params, clock, |_, _| {}), vec![upstream]),
            RetryParams::default(),
        )),
        memory: Memory::new(1 << 30),
        tunnels: Tunnels::default(),
        telemetry: telemetry.worker(0),
        clock,
    });
    let serving = Serving {
        params: Arc::new(listener::Params::default()),
        clock,
        telemetry,
        drain: CancellationToken::new(),
        draining: Arc::new(AtomicBool::new(false)),
        tasks: tasks.clone(),
    };
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tasks.spawn(async move { listener::serve(theirs, stack, serving).await });
    ours
}

async fn connect(tasks: &TaskTracker, io: DuplexStream) -> SendRequest<Full<Bytes>> {
    let (handle, driver) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await.unwrap();
    tasks.spawn(async move { driver.await.unwrap() });
    handle
}

async fn ask(handle: &mut SendRequest<Full<Bytes>>) -> Result<(), Infallible> {
    let request = Request::post("/v1/chat/completions")
        .header("host", "tidegate")
        .header("content-type", "application/json")
        .header("authorization", "Bearer sk-0123456789abcdef")
        .header("user-agent", "bench/1")
        .header("accept", "application/json")
        .body(Full::new(Bytes::from_static(BODY.as_bytes())))
        .unwrap();
    handle.ready().await.unwrap();
    let response = handle.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 1024);
    Ok(())
}

fn request(c: &mut Criterion) {
    let runtime: Runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = TaskTracker::new();
    let mut group = c.benchmark_group("one request");
    group.throughput(Throughput::Elements(1));
    let mut bench = |name: &str, io: DuplexStream| {
        let mut handle = runtime.block_on(connect(&tasks, io));
        group.bench_function(name, |b| b.iter(|| runtime.block_on(ask(&mut handle))));
    };
    let inside = runtime.enter();
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tasks.spawn(serve_fast(theirs));
    let through = proxied(&tasks, AccessLog::Off);
    let logged = proxied(&tasks, AccessLog::File("/dev/null".into()));
    drop(inside);
    bench("direct", ours);
    bench("through the proxy", through);
    bench("through the proxy, with access log", logged);
}

criterion_group!(benches, request);
criterion_main!(benches);
