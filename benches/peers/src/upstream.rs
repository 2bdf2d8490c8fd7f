//! The fake upstream: answers a chat completion at once with 1 KB of JSON, or with a paced event
//! stream if the body asks for one. One thread accepts and deals connections out in turn, so that
//! the workers are evenly loaded whatever the proxy's pool does.

use std::io::{self, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::args::Args;
use crate::event::{DONE, Stamp};
use crate::wire::Wire;

const STREAM_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-request-id: req_peers\r\ntransfer-encoding: chunked\r\n\r\n";
const STREAM_MARK: &[u8] = b"\"stream\":true";

struct Answers {
    completion: Vec<u8>,
    models: Vec<u8>,
    missing: Vec<u8>,
    /// Streams begun so far: each starts its ticks a little later than the one before.
    streams: AtomicU64,
}

pub fn run(args: &Args) -> Result<(), String> {
    serve(args).map_err(|error| format!("upstream: {error}"))
}

fn serve(args: &Args) -> io::Result<()> {
    let answers = Arc::new(Answers {
        completion: answer("200 OK", &completion()),
        models: answer("200 OK", r#"{"object":"list","data":[{"id":"fake-model","object":"model"}]}"#),
        missing: answer("404 Not Found", r#"{"error":{"message":"no such path"}}"#),
        streams: AtomicU64::new(0),
    });
    let mut workers = Vec::new();
    for _ in 0..args.or("threads", 2).clamp(1, 64) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let answers = Arc::clone(&answers);
        std::thread::spawn(move || runtime.block_on(work(receiver, answers)));
        workers.push(sender);
    }
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    println!("{{\"port\":{}}}", listener.local_addr()?.port());
    io::stdout().flush()?;
    // The script holds the other end: if it dies, this must not live on.
    std::thread::spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(0);
    });
    for worker in workers.iter().cycle() {
        let (stream, _) = listener.accept()?;
        stream.set_nonblocking(true)?;
        if worker.send(stream).is_err() {
            break;
        }
    }
    Ok(())
}

async fn work(mut streams: mpsc::UnboundedReceiver<std::net::TcpStream>, answers: Arc<Answers>) {
    while let Some(stream) = streams.recv().await {
        let answers = Arc::clone(&answers);
        tokio::spawn(async move {
            // A proxy that closes or resets is its own business here; the load driver counts what got lost.
            if let Ok(wire) = tokio::net::TcpStream::from_std(stream).and_then(Wire::new) {
                let _ = converse(wire, &answers).await;
            }
        });
    }
}

async fn converse(mut wire: Wire, answers: &Answers) -> io::Result<()> {
    let mut bytes = Vec::new();
    while let Some(head) = wire.head().await? {
        bytes.clear();
        if let Some(mut body) = head.body {
            while let Some(piece) = wire.piece(&mut body).await? {
                bytes.extend_from_slice(piece);
            }
        }
        if head.first.starts_with(b"GET /v1/models") {
            wire.write(&answers.models).await?;
        } else if !head.first.starts_with(b"POST /v1/chat/completions") {
            wire.write(&answers.missing).await?;
        } else if bytes.windows(STREAM_MARK.len()).any(|window| window == STREAM_MARK) {
            let nth = answers.streams.fetch_add(1, Ordering::Relaxed);
            let interval = Duration::from_millis(head.interval_ms.unwrap_or(10).max(1));
            if !stream(&mut wire, head.chunks.unwrap_or(200), interval, nth).await? {
                return Ok(());
            }
        } else {
            wire.write(&answers.completion).await?;
        }
        if head.close {
            break;
        }
    }
    Ok(())
}

/// Each event is one write, never before its time and never two at once: a late one moves those after
/// it, so that a busy machine makes the stream longer, not the proxy's work per event smaller.
/// False if the client left.
async fn stream(wire: &mut Wire, chunks: u64, interval: Duration, nth: u64) -> io::Result<bool> {
    wire.write(STREAM_HEAD).await?;
    let mut stamp = Stamp::new();
    let phase = interval.min(Duration::from_millis(100)) / 16 * u32::try_from(nth % 16).unwrap_or(0);
    let mut due = Instant::now() + phase;
    let tick = sleep_until(due);
    tokio::pin!(tick);
    for _ in 0..chunks {
        tick.as_mut().reset(due);
        loop {
            tokio::select! {
                () = &mut tick => break,
                more = wire.fill() => if !more? { return Ok(false) },
            }
        }
        wire.write(stamp.stamped()).await?;
        due = Instant::now().max(due) + interval;
    }
    let last = [format!("{:x}\r\n", DONE.len()).as_bytes(), DONE, b"\r\n0\r\n\r\n"].concat();
    wire.write(&last).await?;
    Ok(true)
}

fn answer(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-request-id: req_peers\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn completion() -> String {
    let words = "tide gate berth harbour lock quay ".repeat(20);
    format!(
        r#"{{"id":"chatcmpl-peers","object":"chat.completion","created":1760000000,"model":"fake-model","choices":[{{"index":0,"message":{{"role":"assistant","content":"{words}","refusal":null}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":200,"completion_tokens":140,"total_tokens":340}},"system_fingerprint":"fp_peers"}}"#
    )
}
