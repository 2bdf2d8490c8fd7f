//! One end of a byte stream, read and written as HTTP/1.1 by hand, so that tests see exact bytes.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// How long a test listens to find out that nothing comes.
const SILENCE: Duration = Duration::from_millis(60);

/// Waits for `future`, but not for ever.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(crate) struct Wire {
    io: Box<dyn Io>,
    buf: Vec<u8>,
}

/// A start line and its fields. Names are in lower case, in the order they came.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) line: String,
    pub(crate) fields: Vec<(String, String)>,
}

/// A whole message.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
}

impl Head {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        Self { line, fields: lines.filter(|l| !l.is_empty()).map(field).collect() }
    }

    pub(crate) fn status(&self) -> u16 {
        let status = self.line.split(' ').nth(1).and_then(|s| s.parse().ok());
        status.unwrap_or_else(|| panic!("not a status line: {:?}", self.line))
    }

    pub(crate) fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    pub(crate) fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    }

    fn is_chunked(&self) -> bool {
        self.all("transfer-encoding").iter().any(|v| v.eq_ignore_ascii_case("chunked"))
    }

    fn length(&self) -> Option<usize> {
        self.get("content-length").and_then(|v| v.parse().ok())
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    (name.to_ascii_lowercase(), value.trim().to_owned())
}

impl Message {
    pub(crate) fn status(&self) -> u16 {
        self.head.status()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.head.get(name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// `error.code` of a body in OpenAI's shape.
    pub(crate) fn code(&self) -> String {
        self.error("code")
    }

    pub(crate) fn error(&self, key: &str) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {} {:?}", self.head.line, self.text()));
        json["error"][key].as_str().unwrap_or_default().to_owned()
    }
}

impl Wire {
    pub(crate) fn new(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), buf: Vec::new() }
    }

    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let stream = within("a connection", TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::new(stream)
    }

    /// Writes; that the other side is gone shows when its answer is read.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = within("room to write", self.io.write_all(bytes.as_ref())).await;
        let _ = within("a flush", self.io.flush()).await;
    }

    /// The same, saying whether it worked.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        within("room to write", self.io.write_all(bytes)).await.is_ok()
    }

    /// Says that nothing more will be written.
    pub(crate) async fn finish(&mut self) {
        let _ = self.io.shutdown().await;
    }

    /// Waits for as long as it takes until something comes; `false` if that is the end.
    pub(crate) async fn wait(&mut self) -> bool {
        let mut piece = [0; 1024];
        let n = if self.buf.is_empty() { self.io.read(&mut piece).await.unwrap_or(0) } else { 0 };
        self.buf.extend_from_slice(&piece[..n]);
        !self.buf.is_empty()
    }

    /// Reads more; `false` at the end. A reset is an end too.
    async fn more(&mut self, what: &str) -> bool {
        let mut piece = [0; 16 << 10];
        match tokio::time::timeout(PATIENCE, self.io.read(&mut piece)).await {
            Ok(Ok(n)) => {
                self.buf.extend_from_slice(&piece[..n]);
                n > 0
            }
            Ok(Err(_)) => false,
            Err(_) => {
                panic!("waited in vain for {what:?}; so far: {:?}", String::from_utf8_lossy(&self.buf))
            }
        }
    }

    /// Everything up to and with `marker`.
    pub(crate) async fn until(&mut self, marker: &[u8]) -> Vec<u8> {
        match self.find(marker).await {
            Some(found) => found,
            None => panic!(
                "the stream ended before {:?}: {:?}",
                String::from_utf8_lossy(marker),
                String::from_utf8_lossy(&self.buf)
            ),
        }
    }

    async fn find(&mut self, marker: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buf.windows(marker.len()).position(|w| w == marker) {
                return Some(self.buf.drain(..at + marker.len()).collect());
            }
            if !self.more(&String::from_utf8_lossy(marker)).await {
                return None;
            }
        }
    }

    /// The next head, or `None` if the stream ended without one.
    pub(crate) async fn try_head(&mut self) -> Option<Head> {
        let head = self.find(b"\r\n\r\n").await?;
        Some(Head::parse(&head))
    }

    pub(crate) async fn head(&mut self) -> Head {
        let bytes = self.until(b"\r\n\r\n").await;
        Head::parse(&bytes)
    }

    pub(crate) async fn take(&mut self, n: usize) -> Vec<u8> {
        while self.buf.len() < n {
            let (have, more) = (self.buf.len(), self.more("bytes of a known length").await);
            assert!(more, "the stream ended after {have} of {n} bytes");
        }
        self.buf.drain(..n).collect()
    }

    /// The next chunk of a chunked body; empty is the last one, whose trailers still follow.
    pub(crate) async fn chunk(&mut self) -> Vec<u8> {
        let line = self.until(b"\r\n").await;
        let size = String::from_utf8_lossy(&line);
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|e| panic!("{e}: {size:?}"));
        if size == 0 {
            return Vec::new();
        }
        let data = self.take(size).await;
        assert_eq!(self.take(2).await, b"\r\n");
        data
    }

    /// A chunk's data if the next one is whole, `None` if the stream ended instead.
    pub(crate) async fn try_chunk(&mut self) -> Option<Vec<u8>> {
        let line = self.find(b"\r\n").await?;
        let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16).unwrap();
        if size == 0 {
            return Some(Vec::new());
        }
        let data = self.take(size).await;
        self.take(2).await;
        Some(data)
    }

    /// A request or the response to one, with its body.
    pub(crate) async fn message(&mut self) -> Message {
        let head = self.head().await;
        self.body_of(head).await
    }

    /// A response, past the interim ones.
    pub(crate) async fn response(&mut self) -> Message {
        loop {
            let head = self.head().await;
            if head.status() >= 200 {
                return self.body_of(head).await;
            }
        }
    }

    pub(crate) async fn body_of(&mut self, head: Head) -> Message {
        let (mut body, mut trailers) = (Vec::new(), Vec::new());
        if head.is_chunked() {
            loop {
                let chunk = self.chunk().await;
                if chunk.is_empty() {
                    break;
                }
                body.extend(chunk);
            }
            loop {
                let line = self.until(b"\r\n").await;
                if line == b"\r\n" {
                    break;
                }
                trailers.push(field(String::from_utf8_lossy(&line).trim_end()));
            }
        } else if let Some(length) = head.length() {
            body = self.take(length).await;
        } else if head.line.starts_with("HTTP/") && !matches!(head.status(), 204 | 304) {
            body = self.rest().await;
        }
        Message { head, body, trailers }
    }

    /// Everything until the stream ends.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.more("the stream's end").await {}
        std::mem::take(&mut self.buf)
    }

    /// The stream ends, and nothing comes before that.
    pub(crate) async fn ends(&mut self) {
        let rest = self.rest().await;
        assert_eq!(String::from_utf8_lossy(&rest), "", "expected nothing but the end");
    }

    /// Nothing comes, not even the end.
    pub(crate) async fn is_silent(&mut self) -> bool {
        let mut piece = [0; 1024];
        match tokio::time::timeout(SILENCE, self.io.read(&mut piece)).await {
            Err(_) => self.buf.is_empty(),
            Ok(Ok(n)) => {
                self.buf.extend_from_slice(&piece[..n]);
                false
            }
            Ok(Err(_)) => false,
        }
    }

    /// Sends a request and reads its response.
    pub(crate) async fn ask(&mut self, method: &str, path: &str, fields: &[&str], body: &[u8]) -> Message {
        self.send(request(method, path, fields, body)).await;
        self.response().await
    }
}

/// A request's bytes. `Host` and, where there is a body, `Content-Length` are added.
pub(crate) fn request(method: &str, path: &str, fields: &[&str], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nhost: tidegate\r\n");
    for field in fields {
        text.push_str(field);
        text.push_str("\r\n");
    }
    if !body.is_empty() || method == "POST" {
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    text.push_str("\r\n");
    [text.as_bytes(), body].concat()
}

/// A response's bytes with its length stated.
pub(crate) fn response(status: u16, fields: &[&str], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} Whatever\r\n");
    for field in fields {
        text.push_str(field);
        text.push_str("\r\n");
    }
    text.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    [text.as_bytes(), body].concat()
}
