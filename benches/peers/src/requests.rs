//! Plain requests: a closed loop (each connection asks again as soon as it is answered) for CPU and
//! throughput, and an open loop (a fixed rate, whatever the answers do) for latency.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::args::Args;
use crate::wire::{Wire, fault};

/// Errors in a row after which a connection gives up: a dead proxy must not be hammered to the end.
const GIVE_UP: u32 = 20;

#[derive(Default)]
struct Seen {
    latencies_us: Vec<u32>,
    errors: u64,
}

struct Plan {
    port: u16,
    request: Vec<u8>,
    connections: u64,
    /// Requests left to send.
    left: AtomicI64,
    /// Requests per second of the open loop; nothing for the closed one.
    rate: Option<u64>,
    start: Instant,
    end: Instant,
}

pub fn run(args: &Args) -> Result<(), String> {
    let seconds = args.or("seconds", 60);
    let start = Instant::now();
    let plan = Arc::new(Plan {
        port: args.port()?,
        request: request("fake-model", false, ""),
        connections: args.or("connections", 64).max(1),
        left: AtomicI64::new(i64::try_from(args.or("requests", u64::MAX >> 1)).unwrap_or(i64::MAX)),
        rate: args.has("rate").then(|| args.or("rate", 1).max(1)),
        // Every thread of the open loop must be up before the first request is due.
        start: start + if args.has("rate") { Duration::from_millis(50) } else { Duration::ZERO },
        end: start + Duration::from_secs(seconds),
    });
    let parts = on_threads(args.or("threads", 1), plan.connections, |range| {
        let plan = Arc::clone(&plan);
        async move {
            let mut tasks = JoinSet::new();
            for nth in range {
                let plan = Arc::clone(&plan);
                tasks.spawn(async move {
                    let mut seen = Seen::default();
                    let late = plan.end + Duration::from_secs(5);
                    if timeout_at(late, connection(&plan, nth, &mut seen)).await.is_err() {
                        seen.errors += 1;
                    }
                    seen
                });
            }
            tasks.join_all().await
        }
    })?;
    let elapsed = plan.start.elapsed().as_secs_f64();
    let errors: u64 = parts.iter().map(|seen| seen.errors).sum();
    let mut latencies: Vec<u32> = parts.into_iter().flat_map(|seen| seen.latencies_us).collect();
    latencies.sort_unstable();
    print_line(&format!(
        "{{\"requests\":{},\"errors\":{errors},\"seconds\":{elapsed:.3},\"rps\":{:.0},\"p50_us\":{},\"p99_us\":{}}}",
        latencies.len(),
        latencies.len() as f64 / elapsed,
        quantile(&latencies, 0.50),
        quantile(&latencies, 0.99),
    ))
}

/// Splits `0..count` over threads with one runtime each and collects what their tasks return.
pub fn on_threads<T: Send, F: Future<Output = Vec<T>>>(
    threads: u64,
    count: u64,
    part: impl Fn(std::ops::Range<u64>) -> F + Sync,
) -> Result<Vec<T>, String> {
    let threads = threads.clamp(1, count.max(1));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|nth| {
                let range = count * nth / threads..count * (nth + 1) / threads;
                let part = &part;
                scope.spawn(move || -> io::Result<Vec<T>> {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                    Ok(runtime.block_on(part(range)))
                })
            })
            .collect();
        let mut all = Vec::new();
        for worker in workers {
            let part = worker.join().map_err(|_| "a load thread panicked".to_owned())?;
            all.extend(part.map_err(|error| format!("load: {error}"))?);
        }
        Ok(all)
    })
}

pub fn print_line(line: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| error.to_string())
}

/// The value below which the share `q` of a sorted list lies; 0 for an empty one.
pub fn quantile(sorted: &[u32], q: f64) -> u32 {
    let at = (sorted.len() as f64 * q).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0)
}

/// A chat request with a body of about 1 KB, in the shape and with the headers the SDKs send.
pub fn request(model: &str, stream: bool, more_headers: &str) -> Vec<u8> {
    let words = "Summarise the following notes for the harbour master in two sentences. ".repeat(12);
    let stream = if stream { r#","stream":true"# } else { "" };
    let body = format!(
        r#"{{"model":"{model}","messages":[{{"role":"system","content":"You are a terse assistant."}},{{"role":"user","content":"{words}"}}],"temperature":0.2,"max_tokens":256{stream}}}"#
    );
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\nContent-Type: application/json\r\nAuthorization: Bearer sk-no-key-required\r\nUser-Agent: OpenAI/Python 2.0.0\r\n{more_headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub async fn connect(port: u16) -> io::Result<Wire> {
    Wire::new(TcpStream::connect(("127.0.0.1", port)).await?)
}

async fn connection(plan: &Plan, nth: u64, seen: &mut Seen) {
    let mut wire = None;
    let mut failed = 0;
    let mut free_at = plan.start;
    for turn in 0u64.. {
        if plan.left.fetch_sub(1, Ordering::Relaxed) <= 0 || failed == GIVE_UP {
            break;
        }
        let asked = match plan.rate {
            None => Instant::now(),
            Some(rate) => {
                let due = plan.start
                    + Duration::from_secs_f64((turn * plan.connections + nth) as f64 / rate as f64);
                if due >= plan.end {
                    break;
                }
                sleep_until(due).await;
                // A request that had to wait for its connection counts from when it was due. If the
                // connection was free, only this driver's timer was late, which is not the proxy's doing.
                if free_at > due { due } else { Instant::now() }
            }
        };
        if asked >= plan.end {
            break;
        }
        match exchange(plan, &mut wire).await {
            Ok(()) => {
                let took = asked.elapsed().as_micros();
                seen.latencies_us.push(u32::try_from(took).unwrap_or(u32::MAX));
                failed = 0;
            }
            Err(error) => {
                if seen.errors == 0 {
                    eprintln!("load: {error}");
                }
                seen.errors += 1;
                failed += 1;
                wire = None;
            }
        }
        free_at = Instant::now();
    }
}

async fn exchange(plan: &Plan, open: &mut Option<Wire>) -> io::Result<()> {
    let wire = match open {
        Some(wire) => wire,
        None => open.insert(connect(plan.port).await?),
    };
    wire.write(&plan.request).await?;
    let head = wire.head().await?.ok_or_else(|| fault("closed instead of answering"))?;
    let mut body = head.body.ok_or_else(|| fault("answer without framing"))?;
    let mut length = 0;
    while let Some(piece) = wire.piece(&mut body).await? {
        length += piece.len();
    }
    if !head.first.starts_with(b"HTTP/1.1 200") {
        return Err(fault(&String::from_utf8_lossy(&head.first)));
    }
    if length < 900 {
        return Err(fault("answer shorter than the upstream's"));
    }
    if head.close {
        *open = None;
    }
    Ok(())
}
