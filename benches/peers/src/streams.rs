//! Event streams: read to their end for CPU per chunk and delay, or held open for memory.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::args::Args;
use crate::event::{Event, Events, now_us};
use crate::requests::{connect, on_threads, print_line, quantile, request};
use crate::wire::{Wire, fault};

/// Streams being opened at one time: more would measure the accept backlog.
const OPENING: usize = 64;

#[derive(Default)]
struct Seen {
    delays_us: Vec<u32>,
    reads: u64,
    errors: u64,
}

struct Plan {
    port: u16,
    request: Vec<u8>,
    chunks: u64,
    opening: Semaphore,
    opened: AtomicU64,
    broken: AtomicU64,
}

impl Plan {
    fn new(args: &Args, chunks: u64, interval_ms: u64) -> Result<Arc<Self>, String> {
        let headers = format!("x-chunks: {chunks}\r\nx-interval-ms: {interval_ms}\r\n");
        Ok(Arc::new(Self {
            port: args.port()?,
            request: request("fake-model", true, &headers),
            chunks,
            opening: Semaphore::new(OPENING),
            opened: AtomicU64::new(0),
            broken: AtomicU64::new(0),
        }))
    }
}

pub fn run(args: &Args) -> Result<(), String> {
    let (streams, chunks) = (args.or("streams", 1), args.or("chunks", 200));
    let interval_ms = args.or("interval-ms", 10).max(1);
    let plan = Plan::new(args, chunks, interval_ms)?;
    let start = Instant::now();
    // Generous on purpose: a busy machine stretches the pace, a stuck proxy must still end.
    let end = start + Duration::from_millis(chunks * interval_ms * 4) + Duration::from_secs(10);
    let parts = on_threads(args.or("threads", 1), streams, |range| {
        let plan = Arc::clone(&plan);
        async move {
            let mut tasks = JoinSet::new();
            for _ in range {
                let plan = Arc::clone(&plan);
                tasks.spawn(async move {
                    let mut seen = Seen::default();
                    let fault = match timeout_at(end, stream(&plan, &mut seen)).await {
                        Ok(Ok(())) => return seen,
                        Ok(Err(error)) => error.to_string(),
                        Err(_) => "stream did not end in time".to_owned(),
                    };
                    report(&plan, &fault);
                    seen.errors += 1;
                    seen
                });
            }
            tasks.join_all().await
        }
    })?;
    let elapsed = start.elapsed().as_secs_f64();
    let errors: u64 = parts.iter().map(|seen| seen.errors).sum();
    let reads: u64 = parts.iter().map(|seen| seen.reads).sum();
    let mut delays: Vec<u32> = parts.into_iter().flat_map(|seen| seen.delays_us).collect();
    delays.sort_unstable();
    print_line(&format!(
        "{{\"chunks\":{},\"expected\":{},\"reads\":{reads},\"errors\":{errors},\"seconds\":{elapsed:.3},\"p50_us\":{},\"p99_us\":{}}}",
        delays.len(),
        streams * chunks,
        quantile(&delays, 0.50),
        quantile(&delays, 0.99),
    ))
}

/// Opens the streams, says so on standard output, and keeps reading them until standard input closes.
pub fn hold(args: &Args) -> Result<(), String> {
    let streams = args.or("hold", 1);
    let plan = Plan::new(args, 1_000_000, args.or("interval-ms", 5000))?;
    let end = Instant::now() + Duration::from_secs(args.or("seconds", 120));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let held = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for _ in 0..streams {
            let plan = Arc::clone(&plan);
            tasks.spawn(async move {
                let mut seen = Seen::default();
                let fault = stream(&plan, &mut seen).await.err();
                report(&plan, &fault.map_or_else(|| "stream ended".to_owned(), |error| error.to_string()));
            });
        }
        let counts = || (plan.opened.load(Ordering::Relaxed), plan.broken.load(Ordering::Relaxed));
        let line = |(opened, broken): (u64, u64)| {
            print_line(&format!("{{\"opened\":{opened},\"broken\":{broken}}}"))
        };
        while counts().0 + counts().1 < streams && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        line(counts())?;
        let (released, wait) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            let _ = released.send(());
        });
        let _ = timeout_at(end, wait).await;
        line(counts())
    });
    runtime.shutdown_background();
    held
}

fn report(plan: &Plan, fault: &str) {
    if plan.broken.fetch_add(1, Ordering::Relaxed) == 0 {
        eprintln!("load: {fault}");
    }
}

async fn stream(plan: &Plan, seen: &mut Seen) -> io::Result<()> {
    let opening = plan.opening.acquire().await.map_err(io::Error::other)?;
    let mut wire = connect(plan.port).await?;
    wire.write(&plan.request).await?;
    let head = wire.head().await?.ok_or_else(|| fault("closed instead of answering"))?;
    if !head.first.starts_with(b"HTTP/1.1 200") {
        return Err(fault(&String::from_utf8_lossy(&head.first)));
    }
    let before = wire.reads;
    let result = events(plan, &mut wire, head.body, opening, seen).await;
    seen.reads += wire.reads - before;
    result
}

async fn events(
    plan: &Plan,
    wire: &mut Wire,
    body: Option<crate::wire::Body>,
    opening: tokio::sync::SemaphorePermit<'_>,
    seen: &mut Seen,
) -> io::Result<()> {
    let mut body = body.ok_or_else(|| fault("stream without framing"))?;
    let mut opening = Some(opening);
    let mut events = Events::default();
    let (mut count, mut done, mut damaged) = (0, false, false);
    while let Some(piece) = wire.piece(&mut body).await? {
        if opening.take().is_some() {
            plan.opened.fetch_add(1, Ordering::Relaxed);
        }
        let now = now_us();
        events.push(piece, |event| match event {
            Event::Sent { at_us } => {
                count += 1;
                seen.delays_us.push(u32::try_from(now.saturating_sub(at_us)).unwrap_or(u32::MAX));
            }
            Event::Done => done = true,
            Event::Damaged => damaged = true,
        });
    }
    match (damaged, done, count == plan.chunks) {
        (true, ..) => Err(fault("an event arrived changed")),
        (_, false, _) => Err(fault("stream ended without [DONE]")),
        (_, _, false) => Err(fault("stream lost events")),
        _ => Ok(()),
    }
}
