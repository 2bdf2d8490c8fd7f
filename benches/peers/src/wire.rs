//! Just enough HTTP/1.1 to read what a proxy sends in either direction: a head, then a body by
//! length or in chunks. Anything else is an error, because it would be a fault of the proxy.

use std::io::{self, ErrorKind};
use std::ops::Range;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const BUFFER: usize = 8 * 1024;

/// How a body ends, and how far it has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailer,
    Done,
}

/// A head as found in the buffer.
pub struct Head {
    /// `GET /path HTTP/1.1` or `HTTP/1.1 200 OK`.
    pub first: Vec<u8>,
    pub body: Option<Body>,
    pub close: bool,
    /// `x-chunks` and `x-interval-ms`, by which the load driver tells the upstream what to stream.
    pub chunks: Option<u64>,
    pub interval_ms: Option<u64>,
}

pub struct Wire {
    stream: TcpStream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Reads that brought bytes: fewer than events means that somebody held events back or joined them.
    pub reads: u64,
}

impl Wire {
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; BUFFER].into(), start: 0, end: 0, reads: 0 })
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads once. False at the end of the connection.
    pub async fn fill(&mut self) -> io::Result<bool> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            return Err(fault("a head or line longer than the buffer"));
        }
        let read = self.stream.read(&mut self.buffer[self.end..]).await?;
        self.end += read;
        self.reads += u64::from(read > 0);
        Ok(read > 0)
    }

    async fn must_fill(&mut self) -> io::Result<()> {
        match self.fill().await? {
            true => Ok(()),
            false => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The next head, or nothing if the connection ended before one began.
    pub async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(at) = self.unread().windows(4).position(|w| w == b"\r\n\r\n") {
                let head = parse(&self.unread()[..at])?;
                self.start += at + 4;
                return Ok(Some(head));
            }
            if !self.fill().await? {
                return match self.unread().is_empty() {
                    true => Ok(None),
                    false => Err(ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    /// The next piece of the body, or nothing at its end.
    pub async fn piece(&mut self, body: &mut Body) -> io::Result<Option<&[u8]>> {
        loop {
            match *body {
                Body::Done | Body::Length(0) => return Ok(None),
                Body::Chunk(0) => *body = Body::ChunkEnd,
                Body::Length(left) => {
                    let range = self.take(left).await?;
                    *body = Body::Length(left - range.len() as u64);
                    return Ok(Some(&self.buffer[range]));
                }
                Body::Chunk(left) => {
                    let range = self.take(left).await?;
                    *body = Body::Chunk(left - range.len() as u64);
                    return Ok(Some(&self.buffer[range]));
                }
                Body::ChunkSize => {
                    let line = self.line().await?;
                    let digits = self.buffer[line].split(|b| *b == b';').next().unwrap_or_default();
                    let size = std::str::from_utf8(digits).ok();
                    let size = size.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
                    *body = match size.ok_or_else(|| fault("chunk size"))? {
                        0 => Body::Trailer,
                        size => Body::Chunk(size),
                    };
                }
                Body::ChunkEnd => match self.line().await?.is_empty() {
                    true => *body = Body::ChunkSize,
                    false => return Err(fault("chunk longer than its size")),
                },
                Body::Trailer => {
                    if self.line().await?.is_empty() {
                        *body = Body::Done;
                    }
                }
            }
        }
    }

    async fn take(&mut self, most: u64) -> io::Result<Range<usize>> {
        if self.start == self.end {
            self.must_fill().await?;
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let range = self.start..self.end.min(self.start.saturating_add(most));
        self.start = range.end;
        Ok(range)
    }

    async fn line(&mut self) -> io::Result<Range<usize>> {
        loop {
            if let Some(at) = self.unread().iter().position(|b| *b == b'\n') {
                let from = self.start;
                self.start += at + 1;
                let bare = self.buffer[from..from + at].strip_suffix(b"\r").map_or(at, <[u8]>::len);
                return Ok(from..from + bare);
            }
            self.must_fill().await?;
        }
    }
}

pub fn fault(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

fn parse(head: &[u8]) -> io::Result<Head> {
    let mut lines = head.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    let first = lines.next().unwrap_or_default().to_vec();
    let mut found = Head { first, body: None, close: false, chunks: None, interval_ms: None };
    for line in lines {
        let colon = line.iter().position(|b| *b == b':').ok_or_else(|| fault("header without colon"))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let number = || {
            let text = std::str::from_utf8(value).ok();
            text.and_then(|text| text.parse::<u64>().ok()).ok_or_else(|| fault("header is not a number"))
        };
        if name.eq_ignore_ascii_case(b"content-length") {
            found.body = Some(Body::Length(number()?));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            found.body = Some(Body::ChunkSize);
        } else if name.eq_ignore_ascii_case(b"connection") {
            found.close = value.eq_ignore_ascii_case(b"close");
        } else if name.eq_ignore_ascii_case(b"x-chunks") {
            found.chunks = Some(number()?);
        } else if name.eq_ignore_ascii_case(b"x-interval-ms") {
            found.interval_ms = Some(number()?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `pieces` one after the other over a socket, reads one message and gives its body.
    fn read(pieces: &'static [&'static [u8]]) -> io::Result<(Head, Vec<u8>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
            let mut sender = TcpStream::connect(listener.local_addr()?).await?;
            let mut wire = Wire::new(listener.accept().await?.0)?;
            let send = async {
                for piece in pieces {
                    sender.write_all(piece).await?;
                    tokio::task::yield_now().await;
                }
                sender.shutdown().await
            };
            let receive = async {
                let head = wire.head().await?.ok_or_else(|| fault("no head"))?;
                let mut body = head.body.ok_or_else(|| fault("no body"))?;
                let mut bytes = Vec::new();
                while let Some(piece) = wire.piece(&mut body).await? {
                    bytes.extend_from_slice(piece);
                }
                Ok((head, bytes))
            };
            let (sent, received) = tokio::join!(send, receive);
            sent?;
            received
        })
    }

    #[test]
    fn reads_bodies_by_length_and_in_chunks() {
        let (head, body) =
            read(&[b"POST / HTTP/1.1\r\nX-Chunks: 7\r\nContent-Le", b"ngth: 5\r\n\r\nhel", b"lo"]).unwrap();
        assert_eq!((head.chunks, body.as_slice()), (Some(7), b"hello".as_slice()));
        let (head, body) = read(&[
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab",
            b"c\r\nA;x=1\r\n0123456789\r\n0\r",
            b"\nt: 1\r\n\r\n",
        ])
        .unwrap();
        assert_eq!(
            (head.first.as_slice(), body.as_slice()),
            (b"HTTP/1.1 200 OK".as_slice(), b"abc0123456789".as_slice())
        );
    }

    #[test]
    fn a_cut_or_overlong_body_is_an_error() {
        assert!(read(&[b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell"]).is_err());
        assert!(read(&[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"]).is_err());
        assert!(
            read(&[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n"]).is_err()
        );
    }
}
