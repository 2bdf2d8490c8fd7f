//! Takes in a request's body: whole and counted, or through and timed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::Incoming;
use tokio::time::Sleep;

use crate::clock::Clock;
use crate::policy::units::MonoTime;
use crate::proxy::respond::Trouble;
use crate::upstream::{BoxError, Paused, Payload, Trailed, Upload};

/// Memory for all request bodies of the process.
#[derive(Clone, Debug)]
pub struct Memory {
    used: Arc<AtomicU64>,
    limit: u64,
}

impl Memory {
    /// `limit` bytes, none used.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { used: Arc::default(), limit }
    }

    pub(super) fn hold(&self) -> Held {
        Held { memory: self.clone(), bytes: 0 }
    }
}

/// Some of the memory, given back on drop.
#[derive(Debug)]
pub(super) struct Held {
    memory: Memory,
    bytes: u64,
}

impl Held {
    /// Takes `bytes` more, or none.
    fn grow(&mut self, bytes: u64) -> bool {
        let before = self.memory.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.memory.limit {
            self.memory.used.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        self.bytes += bytes;
        true
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A body that was read to its end.
pub(super) struct Whole {
    pub(super) bytes: Bytes,
    trailers: Option<HeaderMap>,
    pub(super) held: Held,
}

impl Whole {
    pub(super) fn into_payload(self) -> (Payload, Held) {
        let payload = match self.trailers {
            Some(trailers) => {
                Payload::WithTrailers(Box::new(Trailed { bytes: Some(self.bytes), trailers: Some(trailers) }))
            }
            None if self.bytes.is_empty() => Payload::Empty,
            None => Payload::Whole(self.bytes),
        };
        (payload, self.held)
    }
}

/// Reads a body to its end. Memory is taken as bytes arrive: a length that is only claimed costs nothing.
pub(super) async fn read_whole(
    mut body: Incoming,
    limit: u64,
    pause: Duration,
    memory: &Memory,
) -> Result<Whole, Trouble> {
    let mut held = memory.hold();
    if body.is_end_stream() {
        return Ok(Whole { bytes: Bytes::new(), trailers: None, held });
    }
    if body.size_hint().lower() > limit {
        return Err(Trouble::BodyTooLarge { limit });
    }
    let (mut first, mut more, mut trailers) = (Bytes::new(), BytesMut::new(), None);
    loop {
        let frame = match tokio::time::timeout(pause, body.frame()).await {
            Err(_) => return Err(Trouble::BodyTimeout { pause }),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(Trouble::ClientBody(error.to_string())),
            Ok(Some(Ok(frame))) => frame,
        };
        match frame.into_data() {
            Ok(data) => {
                if held.bytes + data.len() as u64 > limit {
                    return Err(Trouble::BodyTooLarge { limit });
                }
                if !held.grow(data.len() as u64) {
                    return Err(Trouble::BodyMemory);
                }
                // most bodies come in one piece, which then needs no copy
                if first.is_empty() {
                    first = data;
                } else {
                    if more.is_empty() {
                        more.extend_from_slice(&first);
                    }
                    more.extend_from_slice(&data);
                }
            }
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if body.is_end_stream() {
            break;
        }
    }
    let bytes = if more.is_empty() { first } else { more.freeze() };
    Ok(Whole { bytes, trailers, held })
}

/// A body that passes through as it comes, but not for ever.
pub(super) fn pass_through(body: Incoming, pause: Duration, clock: Clock) -> Payload {
    if body.is_end_stream() {
        return Payload::Empty;
    }
    Payload::Stream(Upload::new(Paced { body, pause, clock, waiting: None, since: clock.now() }))
}

/// Ends a body that pauses for longer than `pause`.
struct Paced {
    body: Incoming,
    pause: Duration,
    clock: Clock,
    waiting: Option<Pin<Box<Sleep>>>,
    since: MonoTime,
}

impl Body for Paced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                // the pause is the client's: time in which nobody asked for more does not count
                this.waiting = None;
                Poll::Ready(frame.map(|f| f.map_err(Into::into)))
            }
            Poll::Pending => {
                if this.waiting.is_none() {
                    this.since = this.clock.now();
                }
                let until = this.clock.instant(this.since + this.pause);
                let timer = this.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                match timer.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => Poll::Ready(Some(Err(Paused(this.pause).into()))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
