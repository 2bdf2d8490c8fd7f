//! The simulated upstream itself: an LLM's HTTP API over real HTTP, on any byte stream.
//!
//! It is what `tidegate demo` proxies to and what the scenario tests measure against. It takes time from
//! tokio's timers only, so a paused runtime runs an hour of it in a second, the same way each time.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use super::ask::{self, Ask, Unreadable};
use super::dialect::{Answer, Dialect};
use super::model::{Fate, Law, OverCapacity};
use super::paced::{Hangup, Pace, SimulatedBody};
use super::slots::{Slots, Stats, Visit};
use super::tasks::Tasks;
use crate::chance::{hash, unit};
use crate::clock::Clock;

/// The simulated calendar begins here, so that two runs give the same bytes.
const EPOCH: u64 = 1_767_225_600;
/// The model it lists.
const MODEL: &str = "tide-1";
/// The longest embedding it gives.
const MAX_DIMENSIONS: usize = 4096;

/// A simulated LLM upstream. Clones are the same upstream.
#[derive(Clone, Debug)]
pub struct SimulatedLlm {
    law: Arc<Law>,
    seed: u64,
    slots: Slots,
    calls: Arc<AtomicU64>,
    served: Arc<AtomicU64>,
}

/// What a call wants, besides a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Tell(Dialect),
    Embed,
}

impl SimulatedLlm {
    /// An upstream that follows `law`; the fault windows count from now.
    #[must_use]
    pub fn new(law: Law, seed: u64, clock: Clock) -> Self {
        let law = Arc::new(law);
        let slots = Slots::new(Arc::clone(&law), clock);
        Self { law, seed, slots, calls: Arc::default(), served: Arc::default() }
    }

    /// What it has seen so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.slots.stats()
    }

    /// Answers one request; the future ends when the head may leave.
    ///
    /// # Errors
    /// [`Hangup`] where the faults say that the connection closes without an answer.
    pub async fn handle<B>(&self, request: Request<B>) -> Result<Response<SimulatedBody>, Hangup>
    where
        B: hyper::body::Body,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let id = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let (head, body) = request.into_parts();
        let call = match (&head.method, head.uri.path()) {
            (&Method::POST, "/v1/chat/completions") => Ok(Call::Tell(Dialect::Chat)),
            (&Method::POST, "/v1/completions") => Ok(Call::Tell(Dialect::Completions)),
            (&Method::POST, "/v1/responses") => Ok(Call::Tell(Dialect::Responses)),
            (&Method::POST, "/v1/messages") => Ok(Call::Tell(Dialect::Messages)),
            (&Method::POST, "/v1/embeddings") => Ok(Call::Embed),
            (&Method::GET, path) => Err(self.look_up(path)),
            _ => Err(None),
        };
        let answer = match call {
            Ok(call) => {
                let bytes = ask::read(body).await;
                let ask = bytes.and_then(|bytes| Ask::parse(&head.headers, &bytes, &self.law));
                self.serve_call(call, ask).await
            }
            Err(Some(ref found)) => Ok(self.json(StatusCode::OK, found)),
            Err(None) => {
                let text = format!("Unknown request URL: {} {}.", head.method, head.uri.path());
                Ok(self.error(None, StatusCode::NOT_FOUND, "invalid_request_error", "unknown_url", &text))
            }
        };
        answer.map(|mut answer| {
            let text = format!("req_{:016x}", hash(self.seed, id, 0));
            if let Ok(value) = HeaderValue::from_str(&text) {
                if call == Ok(Call::Tell(Dialect::Messages)) {
                    answer.headers_mut().insert("request-id", value.clone());
                }
                answer.headers_mut().insert("x-request-id", value);
            }
            answer
        })
    }

    /// Serves one connection, HTTP/1.1 or HTTP/2, until it ends or a fault ends it.
    pub async fn serve<IO>(&self, io: IO)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let now = self.slots.elapsed();
        if self.law.faults.is_down(now) {
            return;
        }
        let death = self.law.faults.next_down(now);
        // Ends h2's streams with the connection.
        let tasks = Tasks::new();
        let builder = hyper_util::server::conn::auto::Builder::new(tasks.spawner());
        let service = hyper::service::service_fn(|request| {
            let upstream = self.clone();
            async move { upstream.handle(request).await }
        });
        let connection = builder.serve_connection(TokioIo::new(io), service);
        tokio::select! {
            // It ends in an error when the client vanishes or a fault hangs up: `stats` tells which.
            _ = connection => {}
            () = async {
                match death {
                    Some(at) => tokio::time::sleep_until(self.slots.instant(at)).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }

    /// Serves every connection of `listener` until `shutdown`, then drops those still open.
    ///
    /// # Errors
    /// What `accept` failed with, if it cannot go on.
    pub async fn listen(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        let tasks = Tasks::new();
        let spawner = tasks.spawner();
        tokio::pin!(shutdown);
        let end = loop {
            tokio::select! {
                () = &mut shutdown => break Ok(()),
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        // Without it each event waits for the acknowledgement of the one before.
                        if stream.set_nodelay(true).is_ok() {
                            let upstream = self.clone();
                            spawner.spawn(async move { upstream.serve(stream).await });
                        }
                    }
                    Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
                    Err(e) => break Err(e),
                },
            }
        };
        tasks.end().await;
        end
    }

    /// What GET finds.
    fn look_up(&self, path: &str) -> Option<Value> {
        let model = json!({ "id": MODEL, "object": "model", "created": EPOCH, "owned_by": "tidegate-demo" });
        match path.strip_prefix("/v1/models") {
            Some("") => Some(json!({ "object": "list", "data": [model] })),
            Some(one) if one.strip_prefix('/') == Some(MODEL) => Some(model),
            _ if path == "/sim/stats" => serde_json::to_value(self.stats()).ok(),
            _ => None,
        }
    }

    async fn serve_call(
        &self,
        call: Call,
        ask: Result<Ask, Unreadable>,
    ) -> Result<Response<SimulatedBody>, Hangup> {
        let now = self.slots.elapsed();
        if self.law.faults.is_down(now) {
            self.slots.faulted();
            return Err(Hangup);
        }
        let ask = match ask {
            Ok(ask) => ask,
            Err(e) => {
                let text = e.to_string();
                let status = StatusCode::BAD_REQUEST;
                return Ok(self.error(Some(call), status, "invalid_request_error", "invalid_body", &text));
            }
        };
        if self.law.faults.fails(now) {
            self.slots.faulted();
            let text = "The server had an error while processing your request.";
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Ok(self.error(Some(call), status, "server_error", "internal_error", text));
        }
        match self.slots.take().await {
            Some(visit) => self.serve_visit(call, ask, visit).await,
            None => Ok(self.refuse(call)),
        }
    }

    async fn serve_visit(
        &self,
        call: Call,
        ask: Ask,
        mut visit: Visit,
    ) -> Result<Response<SimulatedBody>, Hangup> {
        let request = self.served.fetch_add(1, Ordering::Relaxed) + 1;
        let fate = self.law.faults.fate(request);
        if fate != Fate::Whole {
            visit.will_break();
        }
        let mut pace = Pace {
            law: Arc::clone(&self.law),
            slots: self.slots.clone(),
            seed: self.seed,
            request,
            due: self.slots.elapsed(),
            step: 0,
        };
        pace.prefill(ask.prompt_tokens).await;
        if fate == Fate::Reset {
            return Err(Hangup);
        }
        let (stream, tokens) = (ask.stream, ask.output_tokens);
        let whole = match call {
            Call::Embed => self.embeddings(&ask, request),
            Call::Tell(dialect) => {
                let created = EPOCH + self.slots.elapsed().as_secs();
                let answer = Answer::new(dialect, ask, self.seed, request, created);
                if stream {
                    let body = SimulatedBody::events(answer, pace, fate, visit);
                    return Ok(respond(StatusCode::OK, "text/event-stream; charset=utf-8", body));
                }
                for _ in 0..tokens {
                    pace.token().await;
                }
                answer.whole()
            }
        };
        if fate == Fate::Whole {
            visit.finish();
            return Ok(self.bytes(StatusCode::OK, whole));
        }
        let length = whole.len();
        let body = SimulatedBody::half(&whole, pace, fate, visit);
        let mut response = respond(StatusCode::OK, "application/json", body);
        // The promise that the body will break.
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        Ok(response)
    }

    fn refuse(&self, call: Call) -> Response<SimulatedBody> {
        let text = "Rate limit reached for requests.";
        let status = StatusCode::TOO_MANY_REQUESTS;
        let mut response = self.error(Some(call), status, "requests", "rate_limit_exceeded", text);
        if let OverCapacity::Refuse429 { retry_after } = self.law.over_capacity {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(whole_seconds(retry_after)));
        }
        response
    }

    /// The error shape of the API that was called.
    fn error(
        &self,
        call: Option<Call>,
        status: StatusCode,
        kind: &str,
        code: &str,
        message: &str,
    ) -> Response<SimulatedBody> {
        if call == Some(Call::Tell(Dialect::Messages)) {
            let kind = match status {
                StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
                StatusCode::INTERNAL_SERVER_ERROR => "api_error",
                _ => "invalid_request_error",
            };
            let error = json!({ "type": "error", "error": { "type": kind, "message": message } });
            return self.json(status, &error);
        }
        let error = json!({ "error": { "message": message, "type": kind, "param": null, "code": code } });
        self.json(status, &error)
    }

    fn json(&self, status: StatusCode, value: &Value) -> Response<SimulatedBody> {
        self.bytes(status, Bytes::from(value.to_string()))
    }

    fn bytes(&self, status: StatusCode, bytes: Bytes) -> Response<SimulatedBody> {
        self.slots.sent(bytes.len());
        respond(status, "application/json", SimulatedBody::whole(bytes))
    }

    fn embeddings(&self, ask: &Ask, request: u64) -> Bytes {
        let size = ask.dimensions.unwrap_or(256).min(MAX_DIMENSIONS);
        let data: Vec<Value> = (0..ask.inputs.len())
            .map(|index| {
                let seed = hash(self.seed, request, index as u64);
                let raw: Vec<f64> = (0..size).map(|i| unit(hash(seed, i as u64, 0)) - 0.5).collect();
                // Unit length, as clients that use a dot product for the cosine expect.
                let norm = raw.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
                let vector: Vec<f32> = raw.iter().map(|x| (x / norm) as f32).collect();
                let embedding = if ask.base64 {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    Value::String(base64(&bytes))
                } else {
                    json!(vector)
                };
                json!({ "object": "embedding", "index": index, "embedding": embedding })
            })
            .collect();
        let usage = json!({ "prompt_tokens": ask.prompt_tokens, "total_tokens": ask.prompt_tokens });
        let answer = json!({ "object": "list", "model": ask.model, "data": data, "usage": usage });
        Bytes::from(answer.to_string())
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: SimulatedBody) -> Response<SimulatedBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn whole_seconds(d: Duration) -> u64 {
    (d.as_secs() + u64::from(d.subsec_nanos() > 0)).max(1)
}

/// RFC 4648 §4, with padding: openai-python asks for its vectors so.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |all, b| all << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let sextet = (group >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[sextet as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::model::{Faults, Slow, Window};
    use crate::demo::wire::InMemory;
    use http_body_util::{BodyExt as _, Full};
    use hyper::body::Incoming;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    const SECOND: Duration = Duration::from_secs(1);

    /// 0.1 s of prefill, 0.1 s per 1,000 prompt tokens, 10 ms a token, 10 tokens, no jitter.
    fn law(capacity: usize, over_capacity: OverCapacity) -> Law {
        Law {
            capacity,
            over_capacity,
            prefill: Duration::from_millis(100),
            prefill_per_1k_tokens: Duration::from_millis(100),
            per_token: Duration::from_millis(10),
            output_tokens: 10,
            jitter: 0.0,
            faults: Faults::default(),
        }
    }

    const REFUSE: OverCapacity = OverCapacity::Refuse429 { retry_after: Duration::from_millis(1500) };

    #[derive(Clone)]
    struct World {
        clock: Clock,
        llm: SimulatedLlm,
        client: Client<InMemory, Full<Bytes>>,
    }

    impl World {
        fn new(law: Law) -> Self {
            let clock = Clock::start();
            let llm = SimulatedLlm::new(law, 1, clock);
            let upstream = llm.clone();
            let wire = InMemory::new(move |io| {
                let upstream = upstream.clone();
                async move { upstream.serve(io).await }
            });
            Self { clock, llm, client: Client::builder(TokioExecutor::new()).build(wire) }
        }

        fn ms(&self) -> u128 {
            self.clock.now().since(crate::policy::units::MonoTime::ZERO).as_millis()
        }

        async fn post(&self, path: &str, body: Value) -> Result<Response<Incoming>, String> {
            let request =
                Request::post(format!("http://sim{path}")).body(Full::from(body.to_string())).unwrap();
            self.client.request(request).await.map_err(|e| e.to_string())
        }

        async fn chat(&self, stream: bool) -> Result<(StatusCode, String), String> {
            let answer = self.post("/v1/chat/completions", chat(stream)).await?;
            let status = answer.status();
            let bytes = answer.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
            Ok((status, String::from_utf8(bytes.to_vec()).unwrap()))
        }
    }

    /// A prompt of 1,000 tokens.
    fn chat(stream: bool) -> Value {
        json!({ "model": "m", "stream": stream, "stream_options": { "include_usage": true },
            "messages": [{ "role": "user", "content": "x".repeat(4000) }] })
    }

    #[tokio::test(start_paused = true)]
    async fn each_event_of_a_stream_comes_alone_at_its_time() {
        let world = World::new(law(1, REFUSE));
        let answer = world.post("/v1/chat/completions", chat(true)).await.unwrap();
        assert_eq!(world.ms(), 200, "the head leaves when the prefill is done");
        assert_eq!(answer.headers()["content-type"], "text/event-stream; charset=utf-8");
        assert!(answer.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
        let (mut body, mut events, mut times) = (answer.into_body(), Vec::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            events.push(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap());
            times.push(world.ms());
        }
        // Role, ten tokens, finish, usage, [DONE].
        let tokens = (1..=10).map(|k| 200 + 10 * k);
        let expected: Vec<u128> = std::iter::once(200).chain(tokens).chain([300, 300, 300]).collect();
        assert_eq!(times, expected);
        assert!(events.iter().all(|e| e.matches("data: ").count() == 1), "{events:?}");
        assert!(events[0].contains(r#""role":"assistant""#));
        assert!(events[11].contains(r#""finish_reason":"stop""#));
        let usage: Value = serde_json::from_str(events[12].trim().trim_start_matches("data: ")).unwrap();
        assert_eq!(
            usage["usage"],
            json!({ "prompt_tokens": 1000, "completion_tokens": 10, "total_tokens": 1010 })
        );
        assert_eq!(events[13], "data: [DONE]\n\n");
        let stats = world.llm.stats();
        assert_eq!((stats.in_flight, stats.served, stats.cancelled), (0, 1, 0));
        assert_eq!(stats.bytes, events.iter().map(|e| e.len() as u64).sum::<u64>());
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_answer_takes_as_long_as_a_streamed_one() {
        let world = World::new(law(1, REFUSE));
        let (status, body) = world.chat(false).await.unwrap();
        assert_eq!((status, world.ms()), (StatusCode::OK, 300));
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["usage"]["completion_tokens"], 10);
        assert_eq!(body["choices"][0]["message"]["content"].as_str().unwrap().split(' ').count(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_capacity_it_refuses_and_never_runs_more() {
        let world = World::new(law(3, REFUSE));
        let calls = (0..10).map(|_| world.post("/v1/chat/completions", chat(false)));
        let answers = futures_util::future::join_all(calls).await;
        let refused: Vec<_> = answers
            .into_iter()
            .map(Result::unwrap)
            .filter(|a| a.status() == StatusCode::TOO_MANY_REQUESTS)
            .collect();
        assert_eq!(refused.len(), 7);
        assert_eq!(refused[0].headers()["retry-after"], "2");
        let stats = world.llm.stats();
        assert_eq!((stats.peak_in_flight, stats.served, stats.refused_429, stats.in_flight), (3, 3, 7, 0));
        assert_eq!(world.ms(), 300);
    }

    #[tokio::test(start_paused = true)]
    async fn inside_its_own_queue_everyone_is_served_in_turn() {
        let world = World::new(law(2, OverCapacity::QueueInside));
        let calls = (0..6).map(|_| async {
            world.chat(false).await.unwrap();
            world.ms()
        });
        assert_eq!(futures_util::future::join_all(calls).await, [300, 300, 600, 600, 900, 900]);
        assert_eq!(world.llm.stats().peak_in_flight, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_server_slows_down_for_all() {
        let world = World::new(law(2, OverCapacity::SlowDown));
        let calls = (0..6).map(|_| async {
            world.chat(true).await.unwrap();
            world.ms()
        });
        assert_eq!(
            futures_util::future::join_all(calls).await,
            [500; 6],
            "6 on 2: each token takes 3 times as long"
        );
        assert_eq!(world.llm.stats().peak_in_flight, 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_frees_its_slot_at_once() {
        let world = World::new(law(1, OverCapacity::QueueInside));
        let mut streaming = world.post("/v1/chat/completions", chat(true)).await.unwrap().into_body();
        streaming.frame().await.unwrap().unwrap();
        let waiting = world.clone();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { waiting.chat(true).await.map(|_| waiting.ms()) });
        let leaving = world.clone();
        let leaving = tokio::time::timeout(Duration::from_millis(5), leaving.chat(true));
        assert!(leaving.await.is_err());
        // Virtual: the runtime idles until everyone has seen who left.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let before = world.llm.stats();
        assert_eq!((before.in_flight, before.waiting), (1, 1), "the one that left while waiting is gone");
        drop(streaming);
        assert_eq!(
            tasks.join_next().await.unwrap().unwrap(),
            Ok(206 + 300),
            "served from the moment the other left"
        );
        let stats = world.llm.stats();
        assert_eq!((stats.served, stats.cancelled, stats.in_flight, stats.waiting), (1, 2, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn every_nth_request_breaks_as_told() {
        let faults = Faults { reset_every: 2, cut_every: 3, stall_every: 5, ..Faults::default() };
        let world = World::new(Law { faults, ..law(9, REFUSE) });
        for stream in [true, false] {
            let mut ends = Vec::new();
            for _ in 0..6 {
                let end = tokio::time::timeout(10 * SECOND, world.chat(stream)).await;
                ends.push(match end {
                    Ok(Ok((StatusCode::OK, _))) => "whole",
                    Ok(Ok(_)) => "refused",
                    Ok(Err(e)) if e.contains("SendRequest") => "no head",
                    Ok(Err(_)) => "cut",
                    Err(_) => "stalled",
                });
            }
            if stream {
                assert_eq!(ends, ["whole", "no head", "cut", "no head", "stalled", "no head"]);
            } else {
                // Numbers 7 to 12.
                assert_eq!(ends, ["whole", "no head", "cut", "no head", "whole", "no head"]);
            }
        }
        let stats = world.llm.stats();
        assert_eq!((stats.served, stats.faulted, stats.cancelled, stats.in_flight), (3, 9, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_upstream_breaks_what_is_open_and_takes_nothing_new() {
        let faults = Faults { down: vec![Window::new(SECOND, 2 * SECOND)], ..Faults::default() };
        let world = World::new(Law { per_token: SECOND, faults, ..law(9, REFUSE) });
        let open = world.chat(true).await;
        assert!(open.is_err() && world.ms() == 1000, "{open:?} at {}", world.ms());
        assert!(world.chat(true).await.is_err());
        tokio::time::sleep_until(world.clock.instant(crate::policy::units::MonoTime::from_secs(2))).await;
        assert_eq!(world.chat(true).await.unwrap().0, StatusCode::OK);
        let stats = world.llm.stats();
        assert_eq!((stats.served, stats.cancelled, stats.faulted), (1, 0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn windows_of_errors_and_of_slowness() {
        let faults = Faults {
            error_500: vec![Window::new(Duration::ZERO, SECOND)],
            slow: vec![Slow { window: Window::new(SECOND, 9 * SECOND), factor: 3.0 }],
            ..Faults::default()
        };
        let world = World::new(Law { faults, ..law(9, REFUSE) });
        let (status, body) = world.chat(true).await.unwrap();
        assert_eq!((status, world.ms()), (StatusCode::INTERNAL_SERVER_ERROR, 0));
        assert!(body.contains("server_error"));
        tokio::time::sleep(SECOND).await;
        world.chat(true).await.unwrap();
        assert_eq!(world.ms(), 1900);
    }

    #[tokio::test(start_paused = true)]
    async fn http2_with_prior_knowledge_and_its_streams_end_with_the_client() {
        let world = World::new(law(9, REFUSE));
        let upstream = world.llm.clone();
        let wire = InMemory::new(move |io| {
            let upstream = upstream.clone();
            async move { upstream.serve(io).await }
        });
        let client: Client<InMemory, Full<Bytes>> =
            Client::builder(TokioExecutor::new()).http2_only(true).build(wire);
        let post = || {
            Request::post("http://sim/v1/chat/completions").body(Full::from(chat(true).to_string())).unwrap()
        };
        let answer = client.request(post()).await.unwrap();
        assert_eq!(answer.version(), hyper::Version::HTTP_2);
        assert!(answer.into_body().collect().await.unwrap().to_bytes().ends_with(b"[DONE]\n\n"));
        drop(client.request(post()).await.unwrap());
        tokio::time::sleep(Duration::from_millis(1)).await;
        let stats = world.llm.stats();
        assert_eq!((stats.served, stats.cancelled, stats.in_flight), (1, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_seed_gives_the_same_bytes_at_the_same_time() {
        let mut runs = Vec::new();
        for _ in 0..2 {
            let world = World::new(Law { jitter: 0.3, ..law(9, REFUSE) });
            let calls = (0..5).map(|_| async { (world.chat(true).await, world.ms()) });
            runs.push(futures_util::future::join_all(calls).await);
        }
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0][0], runs[0][1]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_it_does_not_know_and_cannot_read_has_openais_error_shape() {
        let world = World::new(law(9, REFUSE));
        let error = async |path: &str, body: &str| {
            let request =
                Request::post(format!("http://sim{path}")).body(Full::from(body.to_owned())).unwrap();
            let answer = world.client.request(request).await.unwrap();
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            (status, serde_json::from_slice::<Value>(&body).unwrap()["error"].clone())
        };
        let (status, unknown) = error("/v1/nothing", "{}").await;
        assert_eq!((status, &unknown["code"]), (404, &json!("unknown_url")));
        let (status, broken) = error("/v1/chat/completions", "{").await;
        assert_eq!((status, &broken["type"]), (400, &json!("invalid_request_error")));
        assert_eq!(world.llm.stats().in_flight, 0);
    }

    #[tokio::test]
    async fn it_listens_on_a_socket_until_told_to_stop() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let llm = SimulatedLlm::new(Law { prefill: Duration::ZERO, ..law(9, REFUSE) }, 1, Clock::start());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut server = tokio::task::JoinSet::new();
        server.spawn(llm.clone().listen(listener, async { drop(stopped.await) }));
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let get = async |path: &str| {
            let uri = format!("http://{address}{path}").parse().unwrap();
            let bytes = client.get(uri).await.unwrap().into_body().collect().await.unwrap().to_bytes();
            serde_json::from_slice::<Value>(&bytes).unwrap()
        };
        assert_eq!(get("/v1/models").await["data"][0]["id"], "tide-1");
        assert_eq!(get("/v1/models/tide-1").await["object"], "model");
        assert_eq!(get("/sim/stats").await["in_flight"], 0);
        stop.send(()).unwrap();
        server.join_next().await.unwrap().unwrap().unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }

    #[test]
    fn base64_is_rfc_4648s() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
