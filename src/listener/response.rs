//! Knows when a response is over, and frees one that nobody reads.
//!
//! On HTTP/1 a client that reads nothing stops the connection, which [`super::patience`] sees. On
//! HTTP/2 it can stop one stream by never opening its window: hyper then does not ask the body for
//! more, so no timer in the body would run. The connection watches its streams instead, and takes the
//! body out of one that has been stuck for too long, with the permit and all that it holds.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::clock::Clock;
use crate::listener::patience::Activity;
use crate::policy::units::MonoTime;

/// Counts one request as under way.
pub(super) struct Busy(Arc<Activity>, Clock);

impl Busy {
    pub(super) fn new(activity: &Arc<Activity>, clock: Clock) -> Self {
        activity.begun.fetch_add(1, Ordering::Relaxed);
        activity.busy.fetch_add(1, Ordering::Relaxed);
        Self(activity.clone(), clock)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.idle_since.store(self.1.now().as_nanos(), Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One multiplexed response.
struct Stream<B> {
    body: Option<(B, Busy)>,
    /// When the last piece was handed over, while nobody has asked for the next.
    handed_over: Option<MonoTime>,
}

/// The multiplexed responses of one connection.
pub(super) struct Streams<B>(Arc<Mutex<Vec<WeakStream<B>>>>);

type WeakStream<B> = Weak<Mutex<Stream<B>>>;

impl<B> Clone for Streams<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B> Default for Streams<B> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B> Streams<B> {
    fn add(&self, body: B, busy: Busy) -> Arc<Mutex<Stream<B>>> {
        let stream = Arc::new(Mutex::new(Stream { body: Some((body, busy)), handed_over: None }));
        let mut all = lock(&self.0);
        all.retain(|s| s.strong_count() > 0);
        all.push(Arc::downgrade(&stream));
        stream
    }

    /// Frees what has been stuck since before `now - patience`; how many that were.
    pub(super) fn free_stuck(&self, now: MonoTime, patience: Duration) -> usize {
        let all: Vec<_> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
        let stuck: Vec<(B, Busy)> = all
            .iter()
            .filter_map(|stream| {
                let mut stream = lock(stream);
                let stuck = stream.handed_over.is_some_and(|at| now.since(at) >= patience);
                if stuck { stream.body.take() } else { None }
            })
            .collect();
        stuck.len()
    }
}

/// A response's body that counts its request as under way for as long as it lives.
pub(super) struct Guarded<B> {
    kind: Kind<B>,
    clock: Clock,
}

enum Kind<B> {
    Alone { body: B, _busy: Busy },
    Multiplexed(Arc<Mutex<Stream<B>>>),
}

impl<B: Body> Guarded<B> {
    pub(super) fn new(body: B, streams: Option<&Streams<B>>, clock: Clock, busy: Busy) -> Self {
        let kind = match streams {
            None => Kind::Alone { body, _busy: busy },
            Some(streams) => Kind::Multiplexed(streams.add(body, busy)),
        };
        Self { kind, clock }
    }
}

impl<B> Body for Guarded<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        match &mut this.kind {
            Kind::Alone { body, .. } => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Multiplexed(stream) => {
                let mut stream = lock(stream);
                stream.handed_over = None;
                let Some((body, _)) = &mut stream.body else {
                    return Poll::Ready(Some(Err("the client took nothing for too long".into())));
                };
                let polled = Pin::new(body).poll_frame(cx).map_err(Into::into);
                if let Poll::Ready(Some(Ok(_))) = &polled {
                    stream.handed_over = Some(this.clock.now());
                }
                polled
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Alone { body, .. } => body.is_end_stream(),
            Kind::Multiplexed(stream) => {
                lock(stream).body.as_ref().is_some_and(|(body, _)| body.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Alone { body, .. } => body.size_hint(),
            Kind::Multiplexed(stream) => {
                lock(stream).body.as_ref().map(|(body, _)| body.size_hint()).unwrap_or_default()
            }
        }
    }
}
