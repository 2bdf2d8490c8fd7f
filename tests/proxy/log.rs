//! What the log hears of an upstream that fails: each kind once, and then how often.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use crate::support::{Setup, Upstream};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn fifty_failures_of_a_kind_are_few_lines() {
    let log = Log::default();
    let writer = log.clone();
    // the only one in this process; other tests' upstreams have other names
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(move || writer.clone()).init();
    let mut upstream = Upstream::start().await;
    let proxy = Setup::permits(4)
        .set("upstream.0.name", "noisy")
        .set("breaker.failures", 1000)
        .set("breaker.min_samples", 1000)
        .before(upstream.address);
    for _ in 0..50 {
        let mut client = proxy.chat(&[]).await;
        upstream.next().await.raw("nonsense\r\n\r\n").await;
        assert_eq!(client.response().await.status(), 502);
        let mut client = proxy.chat(&[]).await;
        let fields = ["content-type: application/json"];
        upstream.next().await.answer(200, &fields, br#"{"error":{"message":"no"}}"#).await;
        assert_eq!(client.response().await.status(), 200);
        let mut client = proxy.chat(&[]).await;
        let mut call = upstream.next().await;
        call.wire.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
        drop(call);
        assert_eq!(client.head().await.status(), 200);
        client.rest().await;
        let mut client = proxy.chat(&[]).await;
        let limits = ["x-ratelimit-limit-requests: -1", "x-ratelimit-remaining-requests: NaN"];
        upstream.next().await.answer(200, &limits, b"{}").await;
        assert_eq!(client.response().await.status(), 200);
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("noisy")).collect();
    for what in ["no answer", "tells of an error", "its answer broke off", "cannot be true"] {
        let found = lines.iter().filter(|line| line.contains(what)).count();
        // one, or two of the limits, unless it takes longer than a line keeps
        assert!((1..=5).contains(&found), "{what}: {found} lines of {lines:#?}");
    }
    assert!(lines.len() < 20, "{lines:#?}");
}
