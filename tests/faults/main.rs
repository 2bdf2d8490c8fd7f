//! An upstream that misbehaves, in every way we know of: the program itself between it and a load, on loopback
//! sockets and in real time, for a second or two each. The same cases at length: `cargo bench --bench faults`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod cases;
mod rig;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use cases::Scale;
use rig::PATIENCE;

/// Two seconds' worth.
const SHORT: Scale = Scale { requests: 300, rps: 150.0, outage: Duration::from_millis(800) };

const PROGRAM: &str = env!("CARGO_BIN_EXE_tidegate");

async fn play(name: &str) {
    let mut case = cases::all(SHORT).into_iter().find(|c| c.name == name).expect("a case of that name");
    let outcome = case.play(PROGRAM).await;
    let broken = case.broken(&outcome);
    let upstreams = &outcome.upstreams;
    assert!(
        broken.is_empty(),
        "{name} ({}): does not hold: {broken:?}\n{}\n{upstreams:#?}\n{:?}, descriptors {:?}, load {:.2}\n{}",
        case.about,
        outcome.report,
        outcome.held,
        outcome.descriptors,
        outcome.load,
        outcome.said.join("\n")
    );
}

macro_rules! faults {
    ($($name:ident),+ $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),+];
        $(
            #[tokio::test]
            async fn $name() {
                play(stringify!($name)).await;
            }
        )+
    };
}

faults!(
    nothing,
    killed,
    reset,
    closed,
    half_head,
    interim,
    mute,
    stall,
    cut,
    errors,
    slow,
    dead_of_three,
    dead_key,
    retry_after_429,
    retry_after_503,
    retry_after_alone,
    bare_429,
    error_body,
    lie_negative,
    lie_huge,
    lie_not_numbers,
    lie_half,
    lie_past,
    lie_exhausted,
);

/// Its log's reader is gone: it goes on, and ends when it is asked to.
#[test]
fn nobody_reads_the_log() {
    let mut proxy = Command::new(PROGRAM)
        .arg("run")
        .env("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        .env("TIDEGATE_LISTEN__ADDRESS", "127.0.0.1:0")
        .env("TIDEGATE_ADMIN__ADDRESS", "127.0.0.1:0")
        .env("TIDEGATE_RETRY__BACKOFF", "")
        .env("TIDEGATE_BREAKER__FAILURES", "3")
        .env("NO_COLOR", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program");
    let mut log = BufReader::new(proxy.stderr.take().expect("its log"));
    drop(proxy.stdout.take());
    let mut line = String::new();
    while !line.contains("listening") {
        line.clear();
        assert!(log.read_line(&mut line).expect("a line") > 0, "it ended");
    }
    drop(log);
    let address = |name: &str| rig::field(&line, name).expect("an address");
    let ask = |address: SocketAddr, request: &str| {
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        stream.write_all(request.as_bytes()).expect("room");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    // so many that the breaker opens, of which the log would tell
    for _ in 0..3 {
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
        let answer = ask(address("address="), &format!("{head}content-length: 2\r\n\r\n{{}}"));
        assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
    }
    let metrics = ask(address("admin="), "GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert!(metrics.contains("tidegate_breaker_state"), "{metrics}");
    let killed = Command::new("kill").arg(proxy.id().to_string()).status();
    assert!(killed.expect("kill").success());
    let (tell, ended) = mpsc::channel();
    let id = proxy.id();
    std::thread::spawn(move || tell.send(proxy.wait()));
    let Ok(status) = ended.recv_timeout(PATIENCE) else {
        drop(Command::new("kill").args(["-9", &id.to_string()]).status());
        panic!("it does not end");
    };
    assert!(status.expect("a status").success());
}

#[test]
fn every_case_is_played() {
    let all: Vec<&str> = cases::all(SHORT).iter().filter(|c| !c.is_named()).map(|c| c.name).collect();
    assert_eq!(all, NAMES);
}
