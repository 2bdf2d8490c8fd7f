//! The simulated upstream itself: an LLM's HTTP API over real HTTP, on any byte stream.
//!
//! It is what `tidegate demo` proxies to and what the scenario tests measure against. It takes time from
//! tokio's timers only, so a paused runtime runs an hour of it in a second, the same way each time.
//! Its connections, and what goes wrong with them, are in `connections.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::ask::{self, Ask, Unreadable};
use super::dialect::{Answer, Dialect};
use super::embed;
use super::faults::Fate;
use super::hosted::Demand;
use super::model::Law;
use super::paced::{Hangup, Pace, SimulatedBody};
use super::respond::{Trouble, bytes, json, respond};
use super::slots::{Slots, Stats, Visit};
use crate::chance::hash;
use crate::clock::Clock;

/// The simulated calendar begins here, so that two runs give the same bytes.
const EPOCH: u64 = 1_767_225_600;
/// The model it lists.
const MODEL: &str = "tide-1";

/// A simulated LLM upstream. Clones are the same upstream.
#[derive(Clone, Debug)]
pub struct SimulatedLlm {
    pub(crate) law: Arc<Law>,
    seed: u64,
    pub(crate) slots: Slots,
    /// It lists these models, and knows no others. Empty: it lists one, and answers for any.
    models: Arc<[String]>,
    requests: Arc<AtomicU64>,
    calls: Arc<AtomicU64>,
    served: Arc<AtomicU64>,
}

/// What a call wants, besides a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Tell(Dialect),
    Embed,
}

impl SimulatedLlm {
    /// An upstream that follows `law`; the fault windows count from now.
    #[must_use]
    pub fn new(law: Law, seed: u64, clock: Clock) -> Self {
        let law = Arc::new(law);
        let slots = Slots::new(Arc::clone(&law), clock);
        let (requests, calls, served) = <(Arc<_>, Arc<_>, Arc<_>)>::default();
        Self { law, seed, slots, models: Arc::default(), requests, calls, served }
    }

    /// The same, with these models and no others.
    #[must_use]
    pub fn with_models(self, models: &[&str]) -> Self {
        Self { models: models.iter().map(|m| (*m).to_owned()).collect(), ..self }
    }

    /// What it has seen so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.slots.stats()
    }

    /// Dies: open connections break, new ones are refused (in memory: closed without a byte).
    pub fn kill(&self) {
        self.slots.kill(true);
    }

    /// Lives again, on the port it had.
    pub fn restart(&self) {
        self.slots.kill(false);
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
        let id = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
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
                self.serve_call(call, &head.headers, ask).await.map(|mut answer| {
                    for (name, value) in self.law.faults.lie.iter().flat_map(|lie| lie.headers()) {
                        answer.headers_mut().insert(*name, HeaderValue::from_static(value));
                    }
                    answer
                })
            }
            Err(Some(ref found)) => Ok(json(&self.slots, StatusCode::OK, found)),
            Err(None) => {
                let message = format!("Unknown request URL: {} {}.", head.method, head.uri.path());
                Ok(self.trouble(None, Trouble::invalid(StatusCode::NOT_FOUND, "unknown_url", &message)))
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

    /// What GET finds.
    fn look_up(&self, path: &str) -> Option<Value> {
        let model =
            |id: &str| json!({ "id": id, "object": "model", "created": EPOCH, "owned_by": "tidegate-demo" });
        let all = || match &*self.models {
            [] => vec![MODEL],
            some => some.iter().map(String::as_str).collect(),
        };
        match path.strip_prefix("/v1/models") {
            Some("") => {
                let data: Vec<Value> = all().into_iter().map(model).collect();
                Some(json!({ "object": "list", "data": data }))
            }
            Some(one) => {
                let name = one.strip_prefix('/')?;
                all().contains(&name).then(|| model(name))
            }
            None if path == "/sim/stats" => serde_json::to_value(self.stats()).ok(),
            None => None,
        }
    }

    /// An error in the shape of the API that was called.
    fn trouble(&self, call: Option<Call>, trouble: Trouble<'_>) -> Response<SimulatedBody> {
        trouble.response(&self.slots, call)
    }

    async fn serve_call(
        &self,
        call: Call,
        headers: &HeaderMap,
        ask: Result<Ask, Unreadable>,
    ) -> Result<Response<SimulatedBody>, Hangup> {
        if self.slots.is_down() {
            self.slots.faulted();
            return Err(Hangup);
        }
        let ask = match ask {
            Ok(ask) => ask,
            Err(e) => {
                let text = e.to_string();
                let trouble = Trouble::invalid(StatusCode::BAD_REQUEST, "invalid_body", &text);
                return Ok(self.trouble(Some(call), trouble));
            }
        };
        let number = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if let Some(error) = self.law.faults.error(self.slots.elapsed(), number) {
            self.slots.faulted();
            return Ok(self.trouble(Some(call), Trouble::fault(error.status, error.retry_after)));
        }
        let key = api_key(headers);
        if self.law.faults.dead_keys.contains(&key) {
            self.slots.faulted();
            return Ok(self.trouble(Some(call), Trouble::fault(401, None)));
        }
        if !self.models.is_empty() && !self.models.contains(&ask.model) {
            let message = format!("The model {:?} does not exist.", ask.model);
            let trouble = Trouble::invalid(StatusCode::NOT_FOUND, "model_not_found", &message);
            return Ok(self.trouble(Some(call), trouble));
        }
        // Its length is known before it is told: what a real server settles afterwards is charged here at once.
        let tokens = match call {
            Call::Embed => ask.prompt_tokens,
            Call::Tell(_) => ask.prompt_tokens + u64::from(ask.output_tokens),
        };
        let demand = Demand { key, model: ask.model.clone(), tokens };
        match self.slots.take(&demand).await {
            Ok(visit) => {
                let standing = visit.standing.clone();
                let mut answer = self.serve_visit(call, ask, visit).await?;
                standing.write(answer.headers_mut());
                Ok(answer)
            }
            Err(refused) => {
                tokio::time::sleep(refused.takes).await;
                let mut answer = self.trouble(Some(call), Trouble::refusal(&self.law.over_capacity));
                refused.standing.write(answer.headers_mut());
                Ok(answer)
            }
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
        match fate {
            Fate::Reset => return Err(Hangup),
            // Until the client leaves: that drops this future.
            Fate::Mute => std::future::pending().await,
            Fate::ErrorBody => return Ok(Trouble::in_a_body().success(&self.slots, call, ask.stream)),
            Fate::Whole | Fate::Cut | Fate::Stall => {}
        }
        let (stream, tokens) = (ask.stream, ask.output_tokens);
        let whole = match call {
            Call::Embed => embed::embeddings(&ask, self.seed, request),
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
            return Ok(bytes(&self.slots, StatusCode::OK, whole));
        }
        let length = whole.len();
        let body = SimulatedBody::half(&whole, pace, fate, visit);
        let mut response = respond(StatusCode::OK, "application/json", body);
        // The promise that the body will break.
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
        Ok(response)
    }
}

/// As OpenAI, Anthropic and Azure take it; empty without one.
fn api_key(headers: &HeaderMap) -> String {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let bearer = text(AUTHORIZATION.as_str()).and_then(|t| t.strip_prefix("Bearer "));
    bearer.or_else(|| text("x-api-key")).or_else(|| text("api-key")).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::faults::{Errors, Faults, Lie, Slow, Window};
    use crate::demo::hosted::Hosted;
    use crate::demo::model::OverCapacity;
    use crate::demo::wire::InMemory;
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use hyper::body::Incoming;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;
    use std::time::Duration;

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
            errors: vec![Errors::all(500, Window::new(Duration::ZERO, SECOND))],
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

    #[tokio::test(start_paused = true)]
    async fn a_hosted_law_says_how_its_budget_stands_and_refuses_after_its_time() {
        let hosted = OverCapacity::Hosted(Hosted { burst: 2.0, tpm: Some(600_000.0), ..Hosted::new(60.0) });
        let world = World::new(law(1000, hosted));
        let answer = world.post("/v1/chat/completions", chat(true)).await.unwrap();
        let head = |answer: &Response<Incoming>, name: &str| {
            answer.headers().get(name).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        assert_eq!(head(&answer, "x-ratelimit-limit-requests"), "60");
        assert_eq!(head(&answer, "x-ratelimit-remaining-requests"), "1");
        assert_eq!(head(&answer, "x-ratelimit-limit-tokens"), "600000");
        // two seconds' worth of tokens, less a prompt of 1,000 and 10 of an answer
        assert_eq!(head(&answer, "x-ratelimit-remaining-tokens"), "18990");
        assert_eq!(head(&answer, "x-ratelimit-reset-tokens"), "101ms");
        drop(answer);
        world.post("/v1/embeddings", json!({ "model": "m", "input": "abcd" })).await.unwrap();
        let before = world.ms();
        let refused = world.post("/v1/chat/completions", chat(false)).await.unwrap();
        assert_eq!((refused.status(), world.ms() - before), (StatusCode::TOO_MANY_REQUESTS, 50));
        assert!(head(&refused, "retry-after-ms").parse::<u64>().unwrap() > 500);
        assert_eq!(head(&refused, "retry-after"), "1");
        // another key has a budget of its own
        let mut other = Request::post("http://sim/v1/chat/completions");
        other.headers_mut().unwrap().insert("api-key", "another".parse().unwrap());
        let other = other.body(Full::from(chat(true).to_string())).unwrap();
        assert_eq!(world.client.request(other).await.unwrap().status(), StatusCode::OK);
        assert_eq!(world.llm.stats().refused_429, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_no_header_names() {
        let hosted = OverCapacity::Hosted(Hosted::new(60_000.0));
        let world = World::new(law(3, hosted));
        let calls = (0..5).map(|_| world.post("/v1/chat/completions", chat(false)));
        let answers = futures_util::future::join_all(calls).await.into_iter().map(Result::unwrap);
        let (passed, refused): (Vec<_>, Vec<_>) = answers.partition(|a| a.status() == StatusCode::OK);
        assert_eq!((passed.len(), refused.len()), (3, 2));
        assert!(passed.iter().all(|a| a.headers().contains_key("x-ratelimit-remaining-requests")));
        let names = |a: &Response<Incoming>| a.headers().keys().map(ToString::to_string).collect::<Vec<_>>();
        assert!(
            refused.iter().all(|a| names(a).iter().all(|n| !n.contains("limit") && !n.contains("retry")))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_knee_server_does_to_prefills_and_tokens() {
        // 4 on 1: everyone takes 4 times as long, and the whole has lost 60 %: 10 times the 0.3 s alone. Who comes
        // first has begun a part of 10 ms when the others come.
        let world = World::new(law(1, OverCapacity::Knee));
        let calls = (0..4).map(|_| async {
            world.chat(true).await.unwrap();
            world.ms()
        });
        let ends = futures_util::future::join_all(calls).await;
        assert!(ends.iter().all(|end| (2910..=3000).contains(end)), "{ends:?}");
        assert_eq!(ends[3], 3000);
        // 8 run at most, 20 times as slow
        let world = World::new(law(1, OverCapacity::Knee));
        let calls = (0..9).map(|_| async {
            world.chat(true).await.unwrap();
            world.ms()
        });
        let ends = futures_util::future::join_all(calls).await;
        assert!(ends[..8].iter().all(|end| (5800..=6000).contains(end)), "{ends:?}");
        assert!((6300..=6500).contains(&ends[8]), "{ends:?}");
        assert_eq!(world.llm.stats().peak_in_flight, 8);
    }

    #[tokio::test(start_paused = true)]
    async fn errors_have_their_window_their_status_and_their_turn() {
        let window = Window::new(Duration::ZERO, SECOND);
        let faults = Faults {
            errors: vec![
                Errors { every: 3, retry_after: Some(Duration::from_secs(3600)), ..Errors::all(429, window) },
                Errors { every: 2, ..Errors::all(529, window) },
            ],
            ..Faults::default()
        };
        let world = World::new(Law { faults, ..law(9, REFUSE) });
        let mut seen = Vec::new();
        for _ in 0..6 {
            let answer = world.post("/v1/messages", json!({ "max_tokens": 1 })).await.unwrap();
            let after = answer.headers().get("retry-after").map(|v| v.to_str().unwrap().to_owned());
            seen.push((answer.status().as_u16(), after));
        }
        let plain = |status| (status, None);
        let long = (429, Some("3600".to_owned()));
        assert_eq!(seen, [plain(200), plain(529), long.clone(), plain(529), plain(200), long]);
        assert_eq!(world.llm.stats().faulted, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_in_a_200_and_a_head_that_never_comes() {
        let world =
            World::new(Law { faults: Faults { error_body_every: 1, ..Faults::default() }, ..law(9, REFUSE) });
        let (status, stream) = world.chat(true).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert!(stream.starts_with("data: {\"error\":") && stream.ends_with("\n\n"), "{stream}");
        let (status, whole) = world.chat(false).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert_eq!(serde_json::from_str::<Value>(&whole).unwrap()["error"]["code"], "overloaded");

        let faults = Faults { mute_every: 2, ..Faults::default() };
        let world = World::new(Law { faults, ..law(9, REFUSE) });
        assert_eq!(world.chat(true).await.unwrap().0, StatusCode::OK);
        assert!(tokio::time::timeout(60 * SECOND, world.chat(true)).await.is_err());
        tokio::time::sleep(Duration::from_millis(1)).await;
        let stats = world.llm.stats();
        assert_eq!((stats.served, stats.faulted, stats.in_flight), (1, 1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn every_lie_is_a_head_that_can_be_sent() {
        for lie in Lie::ALL {
            let faults = Faults { lie: Some(lie), ..Faults::default() };
            let hosted = OverCapacity::Hosted(Hosted::new(600.0));
            let world = World::new(Law { faults, ..law(9, hosted) });
            let answer = world.post("/v1/chat/completions", chat(false)).await.unwrap();
            for (name, value) in lie.headers() {
                assert_eq!(answer.headers()[*name], *value);
                assert_eq!(answer.headers().get_all(*name).iter().count(), 1, "instead of the truth");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_are_dead_and_models_that_are_not_here() {
        let faults = Faults { dead_keys: vec!["spent".into()], ..Faults::default() };
        let mut world = World::new(Law { faults, ..law(9, REFUSE) });
        let upstream = world.llm.clone().with_models(&["large", "small"]);
        let wire = InMemory::new(move |io| {
            let upstream = upstream.clone();
            async move { upstream.serve(io).await }
        });
        world.client = Client::builder(TokioExecutor::new()).build(wire);
        let status = async |key: &str, model: &str| {
            let request = Request::post("http://sim/v1/completions").header("authorization", key);
            let request = request.body(Full::from(json!({ "model": model }).to_string())).unwrap();
            world.client.request(request).await.unwrap().status().as_u16()
        };
        assert_eq!(status("Bearer spent", "large").await, 401);
        assert_eq!(status("Bearer good", "large").await, 200);
        assert_eq!(status("Bearer good", "medium").await, 404);
        let list = world.client.get("http://sim/v1/models".parse().unwrap()).await.unwrap();
        let list: Value =
            serde_json::from_slice(&list.into_body().collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!((&list["data"][0]["id"], &list["data"][1]["id"]), (&json!("large"), &json!("small")));
    }
}
