//! `tidegate probe`: is the key right, and how fast and how often does the endpoint answer?

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use hdrhistogram::Histogram;
use http_body_util::BodyExt;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::policy::units::KeyId;
use crate::upstream::{Params, Payload, Repeat, Secret, Trace, Upstream};

#[derive(Args)]
pub(super) struct Options {
    /// Base URL, as an SDK would have it [default: OPENAI_BASE_URL, else http://127.0.0.1:8080/v1]
    #[arg(long)]
    url: Option<String>,
    /// Environment variable that holds the key.
    #[arg(long, default_value = "OPENAI_API_KEY", value_name = "NAME")]
    key_env: String,
    /// Model to ask [default: the first that /models lists]
    #[arg(long)]
    model: Option<String>,
    /// Requests to send.
    #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    samples: u32,
    /// Requests under way at once.
    #[arg(long, short, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    concurrency: u32,
    /// Tokens to ask for in each answer.
    #[arg(long, default_value_t = 16)]
    max_tokens: u32,
    /// Seconds to wait for each answer.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    /// Print JSON for programs.
    #[arg(long)]
    json: bool,
}

/// Microseconds in an hour: more than any answer takes.
const LONGEST: u64 = 3_600_000_000;

/// What the samples came to.
struct Samples {
    latency: Histogram<u64>,
    first_byte: Histogram<u64>,
    errors: Vec<String>,
    left: u32,
}

struct Prober {
    upstream: Arc<Upstream>,
    key: Option<HeaderValue>,
    timeout: Duration,
    clock: Clock,
}

pub(super) fn probe(options: &Options) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tidegate probe: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("tidegate probe: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<bool, String> {
    let url = options
        .url
        .clone()
        .or_else(|| std::env::var("OPENAI_BASE_URL").ok().filter(|v| !v.is_empty()))
        .unwrap_or_else(|| "http://127.0.0.1:8080/v1".into());
    let key = std::env::var(&options.key_env).ok().filter(|v| !v.is_empty());
    let prober = Prober::new(&url, key.as_deref(), Duration::from_secs(options.timeout))?;

    let (models, verdict, key_works) = prober.verify_key(key.is_some()).await;
    let model = options.model.clone().or_else(|| models.first().cloned());
    let began = prober.clock.now();
    let samples = prober.sample(options, model.as_deref()).await?;
    let took = prober.clock.now().since(began).as_secs_f64();

    let errors = samples.errors.len() as f64;
    let answered = samples.latency.len();
    let error_rate = errors / f64::from(options.samples);
    let throughput = if took > 0.0 { answered as f64 / took } else { 0.0 };
    let ms = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64 / 1000.0;
    if options.json {
        let quantiles =
            |h: &Histogram<u64>| json!({ "p50": ms(h, 0.5), "p95": ms(h, 0.95), "p99": ms(h, 0.99) });
        let report = json!({
            "url": url, "key": verdict, "model": model, "samples": options.samples, "answered": answered,
            "latency_ms": quantiles(&samples.latency), "first_byte_ms": quantiles(&samples.first_byte),
            "error_rate": error_rate, "throughput_per_second": throughput, "errors": samples.errors,
        });
        println!("{report}");
    } else {
        println!("endpoint      {url}");
        println!("key           {verdict}");
        println!("model         {}", model.as_deref().unwrap_or("none: GET /models was sampled instead"));
        println!("samples       {} ({} at once)", options.samples, options.concurrency);
        let row = |name, h: &Histogram<u64>| {
            println!(
                "{name}  p50 {:.1} ms   p95 {:.1} ms   p99 {:.1} ms",
                ms(h, 0.5),
                ms(h, 0.95),
                ms(h, 0.99)
            );
        };
        if answered > 0 {
            row("latency     ", &samples.latency);
            row("first byte  ", &samples.first_byte);
        }
        println!("error_rate    {error_rate:.3}");
        println!("throughput    {throughput:.2} requests/s");
        for error in samples.errors.iter().take(5) {
            println!("error         {error}");
        }
    }
    Ok(key_works && samples.errors.is_empty())
}

impl Prober {
    fn new(url: &str, key: Option<&str>, timeout: Duration) -> Result<Self, String> {
        let base_url: Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
        let clock = Clock::start();
        let api_key = key.map(|k| Secret::new(k.to_owned()));
        let params = Params { name: "probe".into(), base_url, api_key, ..Params::default() }
            .try_new()
            .map_err(|faults| {
                faults.into_iter().map(|f| format!("{}: {}", f.key, f.message)).collect::<Vec<_>>().join("; ")
            })?;
        let upstream = Upstream::new(params, 1, clock).map_err(|e| e.to_string())?;
        let key = upstream.authorization(KeyId(0)).cloned();
        Ok(Self { upstream, key, timeout, clock })
    }

    /// Asks `/models`: the models there are, a sentence about the key, and whether it is good for anything.
    async fn verify_key(&self, has_key: bool) -> (Vec<String>, String, bool) {
        match self.ask(Method::GET, "/v1/models", Payload::Empty).await {
            Err(error) => (Vec::new(), format!("unknown: {error}"), false),
            Ok((status, _, body)) => {
                let models: Vec<String> = serde_json::from_slice::<Value>(&body)
                    .ok()
                    .and_then(|v| v.get("data")?.as_array().cloned())
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|m| m.get("id")?.as_str().map(str::to_owned))
                    .collect();
                match status {
                    s if s.is_success() && has_key => (models, "accepted by /models".into(), true),
                    s if s.is_success() => (models, "none sent, and /models asks for none".into(), true),
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if has_key => {
                        (models, format!("refused by /models with {status}"), false)
                    }
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        (models, format!("none sent, and /models asks for one ({status})"), false)
                    }
                    // not every server has /models; that says nothing of the key
                    s => (models, format!("unknown: /models answered {s}"), true),
                }
            }
        }
    }

    async fn sample(&self, options: &Options, model: Option<&str>) -> Result<Samples, String> {
        let empty = || Histogram::new_with_bounds(1, LONGEST, 3).map_err(|e| e.to_string());
        let samples =
            Samples { latency: empty()?, first_byte: empty()?, errors: Vec::new(), left: options.samples };
        let samples = Mutex::new(samples);
        let body = model.map(|model| {
            let messages = json!([{ "role": "user", "content": "Count from one to ten." }]);
            json!({ "model": model, "max_tokens": options.max_tokens, "messages": messages }).to_string()
        });
        let one_by_one = (0..options.concurrency).map(|_| async {
            loop {
                {
                    let mut s = samples.lock().await;
                    if s.left == 0 {
                        return;
                    }
                    s.left -= 1;
                }
                let began = self.clock.now();
                let asked = match &body {
                    Some(body) => {
                        let payload = Payload::Whole(body.clone().into());
                        self.ask(Method::POST, "/v1/chat/completions", payload).await
                    }
                    None => self.ask(Method::GET, "/v1/models", Payload::Empty).await,
                };
                let took = self.clock.now().since(began);
                let mut s = samples.lock().await;
                match asked {
                    Ok((status, first_byte, _)) if status.is_success() => {
                        s.latency.saturating_record(micros(took));
                        s.first_byte.saturating_record(micros(first_byte));
                    }
                    Ok((status, _, body)) => {
                        let text = String::from_utf8_lossy(&body);
                        s.errors.push(format!("{status}: {}", text.chars().take(200).collect::<String>()));
                    }
                    Err(error) => s.errors.push(error),
                }
            }
        });
        futures_util::future::join_all(one_by_one).await;
        Ok(samples.into_inner())
    }

    async fn ask(
        &self,
        method: Method,
        path: &'static str,
        payload: Payload,
    ) -> Result<(StatusCode, Duration, bytes::Bytes), String> {
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_static(path);
        if let Some(key) = &self.key {
            request.headers_mut().insert(AUTHORIZATION, key.clone());
        }
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let (head, ()) = request.into_parts();
        let began = self.clock.now();
        let mut trace = Trace::default();
        let answering = async {
            let response = self
                .upstream
                .send(0, head, payload, self.timeout, Repeat::Always, &mut trace)
                .await
                .map_err(|fault| fault.to_string())?;
            let first_byte = self.clock.now().since(began);
            let status = response.status();
            let body =
                response.into_body().collect().await.map_err(|e| format!("the answer broke off: {e}"))?;
            Ok((status, first_byte, body.to_bytes()))
        };
        tokio::time::timeout(self.timeout, answering)
            .await
            .unwrap_or_else(|_| Err(format!("no whole answer within {:?}", self.timeout)))
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}
