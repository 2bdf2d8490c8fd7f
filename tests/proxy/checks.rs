//! Our own questions to the server: is it well, and what does it say of its load. Over pipes, on virtual time.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tidegate::clock::Clock;
use tidegate::upstream::{Dial, Dialing, Dialled, Fault, Params, Secret, Unwell, Upstream};
use tokio_util::task::TaskTracker;

#[derive(Clone, Default)]
struct Pipes {
    tasks: TaskTracker,
    dialled: Arc<AtomicUsize>,
}

impl Dial for Pipes {
    fn dial(&self) -> Dialing<'_> {
        self.dialled.fetch_add(1, Ordering::Relaxed);
        let (near, far) = tokio::io::duplex(4096);
        self.tasks.spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            let serving = builder.serve_connection(TokioIo::new(far), hyper::service::service_fn(answer));
            drop(serving.await);
        });
        Box::pin(async move { Ok(Dialled::new(near)) })
    }
}

struct Nobody;

impl Dial for Nobody {
    fn dial(&self) -> Dialing<'_> {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let key = request.headers().get("authorization").map(|v| v.to_str().unwrap().to_owned());
    let (status, body) = match request.uri().path() {
        "/health" => (200, String::new()),
        "/v1/key" => (204, String::new()),
        "/metrics" if key.as_deref() == Some("Bearer one") => (200, "vllm:num_requests_running 3".into()),
        "/largest" => (200, "x".repeat(1 << 20)),
        "/large" => (200, "x".repeat((1 << 20) + 1)),
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(1900)).await;
            (200, "late".into())
        }
        "/hangs" => std::future::pending().await,
        "/sick" => (503, "loading".into()),
        other => (404, other.into()),
    };
    Ok(Response::builder().status(status).body(Full::new(body.into())).unwrap())
}

fn upstream(http2: bool, dial: impl Dial + 'static, clock: Clock) -> Arc<Upstream> {
    let params = Params {
        base_url: "http://peer/openai/v1".parse().unwrap(),
        api_keys: ["one", "two"].map(|key| Secret::new(key.into())).to_vec(),
        http2,
        ..Params::default()
    };
    Upstream::with_dial(params, Box::new(dial), 1, clock).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_check_passes_with_any_2xx_in_time_and_with_nothing_else() {
    for http2 in [false, true] {
        let (pipes, clock) = (Pipes::default(), Clock::start());
        let upstream = upstream(http2, pipes.clone(), clock);
        upstream.check("/health").await.unwrap();
        upstream.check("/v1/key?of=the-origin").await.unwrap();
        upstream.check("/slow").await.unwrap();
        assert!(matches!(
            upstream.check("/sick").await,
            Err(Unwell::Status(StatusCode::SERVICE_UNAVAILABLE))
        ));
        assert!(matches!(upstream.check("/nothing").await, Err(Unwell::Status(StatusCode::NOT_FOUND))));
        assert_eq!(pipes.dialled.load(Ordering::Relaxed), 5, "each over a connection of its own");
        let began = clock.now();
        let hung = upstream.check("/hangs").await.unwrap_err().to_string();
        assert_eq!(clock.now().since(began), Duration::from_secs(5), "{hung}");
        assert_eq!(upstream.connections(), (0, 0), "the pool has no part in it");
        pipes.tasks.close();
        pipes.tasks.wait().await;
    }
    let nobody = upstream(false, Nobody, Clock::start()).check("/health").await;
    assert!(matches!(nobody, Err(Unwell::Fault(Fault::Connect(_)))));
}

#[tokio::test(start_paused = true)]
async fn metrics_are_read_with_its_key_up_to_their_bounds() {
    for http2 in [false, true] {
        let (pipes, clock) = (Pipes::default(), Clock::start());
        let upstream = upstream(http2, pipes.clone(), clock);
        assert_eq!(upstream.fetch_metrics("/metrics").await.unwrap(), "vllm:num_requests_running 3");
        assert_eq!(upstream.fetch_metrics("/largest").await.unwrap().len(), 1 << 20);
        assert_eq!(upstream.fetch_metrics("/slow").await.unwrap(), "late");
        let fault = async |path: &str| upstream.fetch_metrics(path).await.unwrap_err().to_string();
        assert!(fault("/large").await.contains("larger than 1 MiB"));
        assert!(fault("/nothing").await.contains("no metrics there"));
        assert!(fault("not a path").await.contains("cannot be sent"));
        let began = clock.now();
        assert!(fault("/hangs").await.contains("5s"));
        assert_eq!(clock.now().since(began), Duration::from_secs(5));
        pipes.tasks.close();
        pipes.tasks.wait().await;
    }
}
