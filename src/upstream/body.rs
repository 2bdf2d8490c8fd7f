//! The two bodies: what goes up, and what comes down.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::HeaderMap;
use hyper::body::Incoming;
use hyper::header;

use crate::upstream::Fault;
use crate::upstream::pool::Lease;

/// Any error, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body on its way up.
pub enum Payload {
    /// None.
    Empty,
    /// Read whole: it can be sent again.
    Whole(Bytes),
    /// Read whole, with trailers after it.
    WithTrailers(Box<Trailed>),
    /// Passed through as it comes: it can be sent once.
    Stream(Upload),
}

/// A whole body and its trailers; each is gone once it is sent.
#[derive(Clone, Debug)]
pub struct Trailed {
    /// The body.
    pub bytes: Option<Bytes>,
    /// The trailers.
    pub trailers: Option<HeaderMap>,
}

/// A body that passes through, and how much of it has.
pub struct Upload {
    inner: Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>,
    progress: Arc<Progress>,
}

/// Bytes that went up, and whether that was all.
#[derive(Debug, Default)]
pub(super) struct Progress {
    bytes: AtomicU64,
    /// How it went wrong. hyper says so over HTTP/1; over HTTP/2 it looks as if the stream was reset.
    fault: Mutex<Option<Fault>>,
}

const DONE: u64 = u64::MAX;

impl Progress {
    /// `None` once everything is sent.
    pub(super) fn bytes(&self) -> Option<u64> {
        match self.bytes.load(Ordering::Relaxed) {
            DONE => None,
            n => Some(n),
        }
    }

    /// What went wrong with it, once.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Upload {
    /// Wraps a body.
    pub fn new(inner: impl Body<Data = Bytes, Error = BoxError> + Send + 'static) -> Self {
        Self { inner: Box::pin(inner), progress: Arc::default() }
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }
}

impl Payload {
    /// The same body once more, if it can be had.
    #[must_use]
    pub fn again(&self) -> Option<Self> {
        match self {
            Self::Empty => Some(Self::Empty),
            Self::Whole(bytes) => Some(Self::Whole(bytes.clone())),
            Self::WithTrailers(both) => Some(Self::WithTrailers(both.clone())),
            Self::Stream(_) => None,
        }
    }
}

impl Payload {
    /// Makes what the head says of the length true. hyper writes the length that stands in the head, whatever the
    /// body: one that is too long would have the upstream read the connection's next request as this one's body.
    pub(super) fn measure(&self, headers: &mut HeaderMap) {
        let length = match self {
            Self::Empty => 0,
            Self::Whole(bytes) => bytes.len(),
            // what the client said of it is held against what it sends, as it comes
            Self::Stream(_) => return,
            // trailers need the chunked coding
            Self::WithTrailers(_) => {
                headers.remove(header::CONTENT_LENGTH);
                return;
            }
        };
        if headers.contains_key(header::CONTENT_LENGTH) {
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            this @ Self::Whole(_) => match std::mem::replace(this, Self::Empty) {
                Self::Whole(bytes) if !bytes.is_empty() => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                _ => Poll::Ready(None),
            },
            Self::WithTrailers(both) => Poll::Ready(match both.bytes.take() {
                Some(bytes) if !bytes.is_empty() => Some(Ok(Frame::data(bytes))),
                _ => both.trailers.take().map(|t| Ok(Frame::trailers(t))),
            }),
            Self::Stream(upload) => {
                let polled = upload.inner.as_mut().poll_frame(cx);
                let seen = &upload.progress.bytes;
                match &polled {
                    Poll::Ready(Some(Ok(frame))) => {
                        let n = frame.data_ref().map_or(0, Bytes::len) as u64;
                        seen.fetch_add(n.max(1), Ordering::Relaxed);
                        if upload.inner.is_end_stream() {
                            seen.store(DONE, Ordering::Relaxed);
                        }
                    }
                    Poll::Ready(None) => seen.store(DONE, Ordering::Relaxed),
                    Poll::Ready(Some(Err(error))) => {
                        let mut fault = upload.progress.fault.lock().unwrap_or_else(PoisonError::into_inner);
                        *fault = Some(Fault::of_upload(error));
                    }
                    Poll::Pending => {}
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_empty(),
            Self::WithTrailers(both) => both.bytes.is_none() && both.trailers.is_none(),
            Self::Stream(upload) => upload.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            // trailers need the chunked coding, so the length must stay open
            Self::WithTrailers(..) => SizeHint::default(),
            Self::Stream(upload) => upload.inner.size_hint(),
        }
    }
}

/// A response's body on its way down.
///
/// Read to its end it hands its connection back to the pool; dropped before, it closes it.
pub struct ReplyBody {
    inner: Incoming,
    lease: Option<Lease>,
}

impl ReplyBody {
    pub(super) fn new(inner: Incoming, lease: Option<Lease>) -> Self {
        let mut body = Self { inner, lease };
        if body.inner.is_end_stream() {
            body.give_back();
        }
        body
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(None) => this.give_back(),
            // hyper's server does not ask again once the end is known
            Poll::Ready(Some(Ok(_))) if this.inner.is_end_stream() => this.give_back(),
            Poll::Ready(Some(Err(_))) => this.lease = None,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
