//! The load driver: fires each request of a workload at its time, whatever became of the ones before.
//!
//! A driver that waits for answers slows down with the server it measures and reports latencies that no
//! client would have seen. Times count from the moment a request was due, and the driver's own lateness is
//! reported. Called by `tidegate demo --load`, the scenarios and the trace replay.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use serde_json::json;
use tokio::task::JoinSet;

use super::ask::OUTPUT_TOKENS;
use super::report::{End, LoadReport, Record};
use super::tasks::Tasks;
use super::workload::{Arrival, Workload};
use crate::chance::{hash, unit};
use crate::clock::Clock;
use crate::policy::units::MonoTime;

/// What the driver sends, and how long it waits.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where the API is, such as `http://127.0.0.1:8080/v1`.
    pub base_url: String,
    /// The model that the requests name.
    pub model: String,
    /// Sent as the bearer token, if there is one.
    pub api_key: Option<String>,
    /// The share of requests that ask for a stream, 0 to 1.
    pub streamed: f64,
    /// Sent with each request.
    pub headers: BTreeMap<String, String>,
    /// How long a client waits for the first byte of the body, if not as long as for the last.
    pub first_byte: Option<Duration>,
    /// How long a client waits for the last byte.
    pub timeout: Duration,
    /// Clients that leave before the end.
    pub leave: Option<Leave>,
    /// Chooses which requests are streamed and which clients leave.
    pub seed: u64,
}

/// Some clients lose patience.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leave {
    /// The share of clients that do, 0 to 1.
    pub share: f64,
    /// How long after their request.
    pub after: Duration,
}

/// Why a load cannot be driven at all. What goes wrong with a request is in its record.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The address cannot be used.
    #[error("base URL {url:?}: {reason}")]
    BaseUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key cannot be a header.
    #[error("the API key has characters that no header can carry")]
    ApiKey,
    /// A header cannot be sent.
    #[error("header {0:?} has a name or a value that cannot be sent")]
    Header(String),
}

/// How far a run has come. Clones watch the same run.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    ok: AtomicU64,
    refused: AtomicU64,
    ended: AtomicU64,
}

impl Progress {
    /// Requests sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.0.sent.load(Ordering::Relaxed)
    }

    /// Answered 2xx, whole.
    #[must_use]
    pub fn ok(&self) -> u64 {
        self.0.ok.load(Ordering::Relaxed)
    }

    /// Answered 429, by whomever.
    #[must_use]
    pub fn refused_429(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    /// Ended, in any way.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.0.ended.load(Ordering::Relaxed)
    }

    fn count(&self, record: &Record) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
        if record.is_ok() {
            self.0.ok.fetch_add(1, Ordering::Relaxed);
        }
        if record.status == Some(429) {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Default for Load {
    fn default() -> Self {
        Self {
            base_url: "http://127.0.0.1:8080/v1".into(),
            model: "tide-1".into(),
            api_key: None,
            streamed: 1.0,
            headers: BTreeMap::new(),
            first_byte: None,
            timeout: Duration::from_secs(120),
            leave: None,
            seed: 0,
        }
    }
}

impl Load {
    /// Drives `workload` over TCP and waits for the last answer.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn run(
        &self,
        workload: &Workload,
        clock: Clock,
        progress: &Progress,
    ) -> Result<LoadReport, LoadError> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        self.run_over(connector, workload, clock, progress).await
    }

    /// Drives `workload` over connections that `connector` makes.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub async fn run_over<C>(
        &self,
        connector: C,
        workload: &Workload,
        clock: Clock,
        progress: &Progress,
    ) -> Result<LoadReport, LoadError>
    where
        C: Connect + Clone + Send + Sync + 'static,
    {
        let template = Arc::new(Template::new(self)?);
        let tasks = Tasks::new();
        // No idle timeout: it would need a timer of its own, and the connections end with the run.
        let client: Client<C, Full<Bytes>> =
            Client::builder(tasks.spawner()).pool_idle_timeout(None).build(connector);
        let start = clock.now();
        let mut running = JoinSet::new();
        for (index, arrival) in workload.arrivals().iter().enumerate() {
            let due = start + arrival.at;
            tokio::time::sleep_until(clock.instant(due)).await;
            let shot = Shot {
                template: Arc::clone(&template),
                client: client.clone(),
                progress: progress.clone(),
                clock,
                due,
                arrival: *arrival,
                index: index as u64,
            };
            progress.0.sent.fetch_add(1, Ordering::Relaxed);
            running.spawn(async move { (index, shot.fire().await) });
        }
        let mut records: Vec<Option<Record>> = vec![None; workload.arrivals().len()];
        while let Some(ended) = running.join_next().await {
            // A task that panicked leaves its place empty: it is recorded as lost below.
            if let Ok((index, record)) = ended {
                records[index] = Some(record);
            }
        }
        let took = clock.now().since(start);
        drop(client);
        tasks.end().await;
        let records = records
            .into_iter()
            .zip(workload.arrivals())
            .map(|(record, arrival)| {
                record.unwrap_or_else(|| Record {
                    end: End::NoAnswer("the request's task failed".into()),
                    ..Record::new(*arrival, false)
                })
            })
            .collect();
        Ok(LoadReport::new(records, took))
    }
}

/// What all requests have in common.
struct Template {
    load: Load,
    uri: Uri,
    headers: HeaderMap,
}

impl Template {
    fn new(load: &Load) -> Result<Self, LoadError> {
        let fault = |reason: String| LoadError::BaseUrl { url: load.base_url.clone(), reason };
        let text = format!("{}/chat/completions", load.base_url.trim_end_matches('/'));
        let uri: Uri = text.parse().map_err(|e: hyper::http::uri::InvalidUri| fault(e.to_string()))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            return Err(fault("must be like http://127.0.0.1:8080/v1".into()));
        }
        let mut headers = HeaderMap::new();
        for (name, value) in &load.headers {
            let fault = || LoadError::Header(name.clone());
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| fault())?;
            headers.insert(name, value.parse().map_err(|_| fault())?);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = &load.api_key {
            headers.insert(AUTHORIZATION, format!("Bearer {key}").parse().map_err(|_| LoadError::ApiKey)?);
        }
        Ok(Self { load: load.clone(), uri, headers })
    }

    fn chosen(&self, share: f64, index: u64, what: u64) -> bool {
        unit(hash(self.load.seed, index, what)) < share
    }

    fn request(&self, arrival: &Arrival, streamed: bool) -> Request<Full<Bytes>> {
        const SENTENCE: &str = "The tide comes in and the tide goes out. ";
        // Four bytes a token is what the simulated upstream counts, and about right for English.
        let length = arrival.prompt_tokens as usize * 4;
        let mut prompt = SENTENCE.repeat(length / SENTENCE.len() + 1);
        prompt.truncate(length);
        let mut body = json!({
            "model": self.load.model,
            "max_tokens": arrival.output_tokens.max(1),
            "messages": [{ "role": "user", "content": prompt }],
        });
        if streamed {
            body["stream"] = json!(true);
            body["stream_options"] = json!({ "include_usage": true });
        }
        let mut request = Request::new(Full::new(Bytes::from(body.to_string())));
        *request.method_mut() = hyper::Method::POST;
        *request.uri_mut() = self.uri.clone();
        request.headers_mut().clone_from(&self.headers);
        request.headers_mut().insert(OUTPUT_TOKENS, arrival.output_tokens.into());
        request
    }
}

/// One request on its way.
struct Shot<C> {
    template: Arc<Template>,
    client: Client<C, Full<Bytes>>,
    progress: Progress,
    clock: Clock,
    due: MonoTime,
    arrival: Arrival,
    index: u64,
}

impl<C: Connect + Clone + Send + Sync + 'static> Shot<C> {
    async fn fire(self) -> Record {
        let load = &self.template.load;
        let streamed = self.template.chosen(load.streamed, self.index, 0);
        let leaves = load.leave.filter(|l| self.template.chosen(l.share, self.index, 1));
        let mut record = Record::new(self.arrival, streamed);
        record.late = self.clock.now().since(self.due);
        let (patience, gone) = match leaves {
            Some(leave) if leave.after < load.timeout => (leave.after, End::Left),
            _ => (load.timeout, End::TimedOut),
        };
        let until = self.clock.instant(self.due + patience);
        let exchange = self.exchange(&mut record);
        record.end = tokio::time::timeout_at(until, exchange).await.unwrap_or(gone);
        record.total = self.clock.now().since(self.due);
        self.progress.count(&record);
        record
    }

    async fn exchange(&self, record: &mut Record) -> End {
        let request = self.template.request(&self.arrival, record.streamed);
        let patience = self.template.load.first_byte.map(|p| self.clock.instant(self.due + p));
        let head = in_time(patience, self.client.request(request)).await;
        let response = match head {
            None => return End::TimedOut,
            Some(Ok(response)) => response,
            Some(Err(e)) => {
                let cause = e.source().map(|s| format!(": {s}")).unwrap_or_default();
                return End::NoAnswer(format!("{e}{cause}"));
            }
        };
        let (head, mut body) = response.into_parts();
        record.status = Some(head.status.as_u16());
        record.reason = text(&head.headers, "x-tidegate-reason");
        record.queue_ms = text(&head.headers, "x-tidegate-queue-ms").and_then(|t| t.parse().ok());
        let mut kept = Vec::new();
        loop {
            let data = match in_time(patience.filter(|_| record.ttft.is_none()), body.frame()).await {
                None => return End::TimedOut,
                Some(None) => break,
                Some(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Some(Some(Err(e))) => return End::Truncated(e.to_string()),
            };
            if record.ttft.is_none() && !data.is_empty() {
                record.ttft = Some(self.clock.now().since(self.due));
            }
            kept.extend_from_slice(&data);
            if record.streamed && kept.len() > 8192 {
                // Only the end of a stream says whether it is whole, and how long it was.
                kept.drain(..kept.len() - TAIL);
            }
        }
        let whole = match (head.status.is_success(), record.streamed) {
            (false, _) => true,
            (true, true) => kept.ends_with(b"data: [DONE]\n\n"),
            (true, false) => serde_json::from_slice::<serde::de::IgnoredAny>(&kept).is_ok(),
        };
        if !whole {
            return End::Truncated("the body ended before the answer did".into());
        }
        if head.status.is_success() {
            record.tokens = tokens(&kept).unwrap_or_default();
        }
        End::Complete
    }
}

/// The end of a stream that is kept: its usage and its last event.
const TAIL: usize = 1024;

/// `None`: it was not there in time.
async fn in_time<F: Future>(until: Option<tokio::time::Instant>, what: F) -> Option<F::Output> {
    match until {
        None => Some(what.await),
        Some(until) => tokio::time::timeout_at(until, what).await.ok(),
    }
}

/// What the usage at the end of an answer says of its length.
fn tokens(body: &[u8]) -> Option<u32> {
    const KEY: &[u8] = b"\"completion_tokens\":";
    let tail = &body[body.len().saturating_sub(TAIL)..];
    let at = tail.windows(KEY.len()).rposition(|w| w == KEY)? + KEY.len();
    let number = tail[at..].trim_ascii_start();
    let digits = number.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&number[..digits]).ok()?.parse().ok()
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::faults::{Errors, Faults, Window};
    use crate::demo::model::{Law, OverCapacity};
    use crate::demo::server::SimulatedLlm;
    use crate::demo::wire::InMemory;
    use crate::demo::workload::Lengths;

    const SECOND: Duration = Duration::from_secs(1);

    fn law() -> Law {
        Law {
            capacity: 4,
            prefill: Duration::from_millis(100),
            prefill_per_1k_tokens: Duration::ZERO,
            per_token: Duration::from_millis(10),
            jitter: 0.0,
            ..Law::default()
        }
    }

    async fn drive(load: &Load, law: Law, workload: &Workload) -> (LoadReport, SimulatedLlm, Progress) {
        let clock = Clock::start();
        let llm = SimulatedLlm::new(law, 1, clock);
        let upstream = llm.clone();
        let wire = InMemory::new(move |io| {
            let upstream = upstream.clone();
            async move { upstream.serve(io).await }
        });
        let progress = Progress::default();
        let report = load.run_over(wire, workload, clock, &progress).await.unwrap();
        (report, llm, progress)
    }

    #[tokio::test(start_paused = true)]
    async fn an_ample_upstream_answers_each_in_the_time_of_its_law() {
        let workload = Workload::steady(5, 10.0, 20 * SECOND, Lengths::fixed(100, 20));
        let load = Load { streamed: 0.5, ..Load::default() };
        let (report, llm, progress) = drive(&load, Law { capacity: 1000, ..law() }, &workload).await;
        assert_eq!((report.ok, report.sent()), (workload.arrivals().len(), workload.arrivals().len()));
        assert_eq!(llm.stats().served, progress.ok());
        assert_eq!((progress.sent(), progress.ended()), (progress.ok(), progress.ok()));
        let streamed = report.records.iter().filter(|r| r.streamed).count();
        assert!((60..140).contains(&streamed), "{streamed}");
        for record in &report.records {
            // The timer's resolution: up to a millisecond to send, and one more at each end.
            let near = |d: Duration, ms: u64| (ms..=ms + 3).contains(&(d.as_millis() as u64));
            assert!(near(record.total, 300), "{record:?}");
            assert!(near(record.ttft.unwrap(), if record.streamed { 100 } else { 300 }), "{record:?}");
        }
        assert!(report.max_late <= Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn it_keeps_firing_while_nothing_is_answered() {
        let workload = Workload::steady(5, 10.0, 10 * SECOND, Lengths::fixed(10, 20));
        let stall = Law { capacity: 1000, faults: Faults { stall_every: 1, ..Faults::default() }, ..law() };
        let load = Load { timeout: 60 * SECOND, ..Load::default() };
        let (report, llm, _) = drive(&load, stall, &workload).await;
        assert_eq!(report.lost.get("timed out"), Some(&report.sent()));
        assert_eq!(llm.stats().peak_in_flight, report.sent());
        assert!(report.max_late <= Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_is_in_exactly_one_place() {
        let workload = Workload::steady(9, 30.0, 30 * SECOND, Lengths::fixed(100, 20));
        let second = |n| n * SECOND;
        let faults = Faults {
            down: vec![Window::new(second(5), second(6))],
            errors: vec![Errors::all(500, Window::new(second(8), second(9)))],
            cut_every: 17,
            reset_every: 19,
            ..Faults::default()
        };
        let refuse = OverCapacity::Refuse429 { retry_after: SECOND };
        let load = Load {
            streamed: 0.7,
            leave: Some(Leave { share: 0.1, after: Duration::from_millis(150) }),
            ..Load::default()
        };
        let tight = Law { over_capacity: refuse, faults, ..law() };
        let (report, llm, progress) = drive(&load, tight, &workload).await;
        let stats = llm.stats();
        assert_eq!(report.ok + report.failed_total() + report.lost_total() + report.left, report.sent());
        assert_eq!(report.sent(), workload.arrivals().len());
        assert_eq!(report.ok as u64, stats.served);
        assert_eq!(report.failed_with(429) as u64, stats.refused_429);
        assert_eq!(progress.refused_429(), stats.refused_429);
        assert_eq!(report.left as u64, stats.cancelled);
        assert!(report.ok > 200 && report.failed_with(429) > 200 && report.failed_with(500) > 10);
        assert!(report.left > 5 && report.lost_total() > 20, "{report}");
        assert!(report.lost.keys().any(|k| k.starts_with("truncated")), "{report}");
        assert_eq!((stats.in_flight, stats.peak_in_flight), (0, 4));
        let text = report.to_string();
        assert!(text.starts_with(&format!("sent {}   ok {}   ", report.sent(), report.ok)), "{text}");
        assert!(text.contains("429 upstream: "), "{text}");
        let json = report.to_json();
        assert_eq!(json["sent"], report.sent());
        assert_eq!(json["failed"][0]["status"], 429);
    }

    #[tokio::test(start_paused = true)]
    async fn two_runs_are_the_same() {
        let workload = Workload::synthetic_conversation(4, 20 * SECOND);
        let jittery = Law { jitter: 0.2, over_capacity: OverCapacity::SlowDown, ..law() };
        let load = Load { streamed: 0.8, ..Load::default() };
        let (first, ..) = drive(&load, jittery.clone(), &workload).await;
        let (second, ..) = drive(&load, jittery, &workload).await;
        assert_eq!(first, second);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_cannot_be_driven_is_said_before_the_first_request() {
        for base_url in ["https://api.example/v1", "/v1", "http://a b"] {
            let load = Load { base_url: base_url.into(), ..Load::default() };
            let run = load.run(&Workload::default(), Clock::start(), &Progress::default()).await;
            assert!(matches!(run, Err(LoadError::BaseUrl { .. })), "{base_url}");
        }
    }
    #[tokio::test(start_paused = true)]
    async fn what_was_told_is_known_and_who_waits_in_vain_for_the_first_byte_leaves() {
        let workload = Workload::steady(5, 5.0, 20 * SECOND, Lengths::lognormal((400.0, 1.0), (40.0, 0.9)));
        let headers = BTreeMap::from([("x-tidegate-priority".to_owned(), "low".to_owned())]);
        let load =
            Load { streamed: 0.5, headers, first_byte: Some(Duration::from_millis(500)), ..Load::default() };
        let one = Law { capacity: 2, over_capacity: OverCapacity::QueueInside, ..law() };
        let (report, llm, _) = drive(&load, one, &workload).await;
        assert!(report.ok > 20 && report.lost_total() > 10, "{report}");
        assert_eq!(report.lost.keys().collect::<Vec<_>>(), ["timed out"]);
        assert_eq!(report.ok as u64, llm.stats().served);
        for record in report.records.iter().filter(|r| r.is_ok()) {
            assert_eq!(record.tokens, record.arrival.output_tokens);
            assert!(record.ttft.unwrap() <= Duration::from_millis(500));
            if record.streamed {
                let itl = record.itl().unwrap().as_secs_f64();
                assert!((0.009..0.012).contains(&itl), "{record:?}");
            }
        }
        let bad = Load { headers: BTreeMap::from([("a b".to_owned(), String::new())]), ..Load::default() };
        let run = bad.run(&Workload::default(), Clock::start(), &Progress::default()).await;
        assert!(matches!(run, Err(LoadError::Header(name)) if name == "a b"));
    }
}
