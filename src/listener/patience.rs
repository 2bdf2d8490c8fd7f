//! A byte stream that does not wait for ever.
//!
//! hyper's own head timer also ends idle keep-alive connections, and its version sniffing has none at
//! all, so the timers sit here, below both:
//!
//! | the connection is | from | at most |
//! |---|---|---|
//! | new | its accept | `header_timeout` |
//! | reading a head | its first byte | `header_timeout` |
//! | idle between requests | the last response's end | `keep_alive_idle` |
//! | serving | – | (bodies have timers of their own) |
//! | not taking what is written | the last byte taken | `write_timeout` |
//! | closed by us, while the client still sends | the close | 2 s, and what comes is thrown away |
//!
//! The last: a socket that is closed with something unread in it is reset, and the reset may overtake the answer, such as
//! a 413, that was sent before (RFC 9112 §9.6).
//!
//! A timer is armed only while the stream is pending, and moved only when it fires too early.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::clock::Clock;
use crate::listener::Params;
use crate::policy::units::MonoTime;
use crate::telemetry::ConnectionFault;
use crate::wire::poll_write_slices;

/// What the stream has to know of the requests on it.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Requests whose response is not over.
    pub(super) busy: AtomicUsize,
    /// Requests so far.
    pub(super) begun: AtomicUsize,
    /// When the last response was over, in nanoseconds of the clock.
    pub(super) idle_since: AtomicU64,
    /// HTTP/2, where bytes between requests are not a head.
    pub(super) multiplexed: AtomicBool,
    /// The client or a drain wants no request after this one, and all of this one is there.
    pub(super) last: AtomicBool,
    /// Another protocol now: nothing on it is a head, and its silence is its own affair.
    pub(super) upgraded: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    New,
    Idle,
    Head,
    Busy,
}

/// Why a stream was ended, as the source of its error.
#[derive(Debug, thiserror::Error)]
pub(super) enum Impatience {
    #[error("the request's head did not come in time")]
    Head,
    #[error("idle for too long")]
    Idle,
    #[error("the client takes nothing")]
    Write,
}

impl Impatience {
    /// What it is counted as; an idle connection that is closed is no fault.
    pub(super) fn fault(&self) -> Option<ConnectionFault> {
        match self {
            Self::Head => Some(ConnectionFault::HeaderTimeout),
            Self::Idle => None,
            Self::Write => Some(ConnectionFault::WriteTimeout),
        }
    }
}

/// The stream.
pub(super) struct Patient<IO> {
    io: IO,
    activity: Arc<Activity>,
    params: Arc<Params>,
    clock: Clock,
    phase: Phase,
    since: MonoTime,
    /// Requests that `phase` takes account of.
    begun: usize,
    reading: Option<Pin<Box<Sleep>>>,
    stuck_since: Option<MonoTime>,
    writing: Option<Pin<Box<Sleep>>>,
    /// Read already, to be read again.
    sniffed: Vec<u8>,
    /// The client sends nothing more.
    ended: bool,
    lingers: Option<Lingers>,
}

/// Our side is closed, and the client's is not.
struct Lingers {
    since: MonoTime,
    /// The client is known to send still.
    sends: bool,
}

/// What an HTTP/2 client sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes to sniff with: most heads come whole, and are then parsed in one go.
const SNIFF: usize = 4096;
/// How long a client may still send once our side is closed.
const LINGER: Duration = Duration::from_secs(2);
/// Reads in a row, before others have their turn.
const READS: usize = 32;

impl<IO> Patient<IO> {
    pub(super) fn new(io: IO, activity: Arc<Activity>, params: Arc<Params>, clock: Clock) -> Self {
        Self {
            io,
            activity,
            params,
            clock,
            phase: Phase::New,
            since: clock.now(),
            begun: 0,
            reading: None,
            stuck_since: None,
            writing: None,
            sniffed: Vec::new(),
            ended: false,
            lingers: None,
        }
    }

    /// Follows the requests. One may have come and gone since it was last called.
    fn follow(&mut self) {
        let begun = self.activity.begun.load(Ordering::Relaxed);
        let upgraded = self.activity.upgraded.load(Ordering::Relaxed);
        if upgraded || self.activity.busy.load(Ordering::Relaxed) > 0 {
            self.phase = Phase::Busy;
        } else if self.phase == Phase::Busy || begun != self.begun {
            self.phase = Phase::Idle;
            self.since = MonoTime::from_nanos(self.activity.idle_since.load(Ordering::Relaxed));
        }
        self.begun = begun;
    }

    fn received(&mut self) {
        if self.phase == Phase::Idle && !self.activity.multiplexed.load(Ordering::Relaxed) {
            self.phase = Phase::Head;
            self.since = self.clock.now();
        }
    }

    fn poll_reading(&mut self, cx: &mut Context<'_>) -> Poll<Impatience> {
        let (limit, impatience) = match self.phase {
            Phase::Busy => return Poll::Pending,
            Phase::New | Phase::Head => (self.params.header_timeout, Impatience::Head),
            Phase::Idle => (self.params.keep_alive_idle, Impatience::Idle),
        };
        ready!(poll_until(&mut self.reading, self.since + limit, self.clock, cx));
        Poll::Ready(impatience)
    }

    fn poll_stuck(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = match self.stuck_since {
            Some(since) => since,
            None => *self.stuck_since.insert(self.clock.now()),
        };
        poll_until(&mut self.writing, since + self.params.write_timeout, self.clock, cx)
    }

    fn written<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stuck_since = None;
            return polled;
        }
        ready!(self.poll_stuck(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Impatience::Write)))
    }
}

/// Ready once `until` has come. The timer is kept and moved, not made anew.
fn poll_until(
    timer: &mut Option<Pin<Box<Sleep>>>,
    until: MonoTime,
    clock: Clock,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let at = clock.instant(until);
    loop {
        let sleep = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        // set for later than it should be: after a long idle phase, say
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        ready!(sleep.as_mut().poll(cx));
        if clock.now() >= until {
            return Poll::Ready(());
        }
        sleep.as_mut().reset(at);
    }
}

impl<IO: AsyncRead + Unpin> Patient<IO> {
    /// Whether the client speaks HTTP/2; what had to be read for that is read again later.
    ///
    /// # Errors
    /// Those of the stream, its impatience among them.
    pub(super) async fn sniff(&mut self) -> io::Result<bool> {
        let mut sniffed = Vec::with_capacity(SNIFF);
        let http2 = loop {
            if !PREFACE.starts_with(&sniffed[..sniffed.len().min(PREFACE.len())]) {
                break false;
            }
            if sniffed.len() >= PREFACE.len() {
                break true;
            }
            if self.read_buf(&mut sniffed).await? == 0 {
                break false;
            }
        };
        self.sniffed = sniffed;
        Ok(http2)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Patient<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.sniffed.is_empty() {
            let n = this.sniffed.len().min(buf.remaining());
            buf.put_slice(&this.sniffed[..n]);
            this.sniffed.drain(..n);
            if this.sniffed.is_empty() {
                this.sniffed = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        this.follow();
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(result) => {
                if buf.filled().len() > before {
                    this.received();
                } else if result.is_ok() && buf.remaining() > 0 {
                    this.ended = true;
                }
                Poll::Ready(result)
            }
            Poll::Pending => {
                let impatience = ready!(this.poll_reading(cx));
                // it was waited for long enough
                this.ended = true;
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, impatience)))
            }
        }
    }
}

impl<IO: AsyncRead + Unpin> Patient<IO> {
    /// Throws away what still comes, until it ends. Where the end was agreed, only one who sends just now is waited for.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.clock.now();
        // nobody asked for the end: a body was not read to its own
        let sends = !self.ended && !self.activity.last.load(Ordering::Relaxed);
        let lingers = self.lingers.get_or_insert(Lingers { since: now, sends });
        let until = lingers.since + LINGER;
        if now >= until {
            return Poll::Ready(());
        }
        let mut thrown_away = [0; 8 << 10];
        for _ in 0..READS {
            let mut buf = ReadBuf::new(&mut thrown_away);
            match Pin::new(&mut self.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => lingers.sends = true,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if lingers.sends => {
                    return poll_until(&mut self.reading, until, self.clock, cx);
                }
                Poll::Pending => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_write(cx, buf);
        this.written(polled, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingers.is_none() {
            let polled = Pin::new(&mut this.io).poll_shutdown(cx);
            ready!(this.written(polled, cx))?;
        }
        // HTTP/2 reads on by itself, and what a tunnel's end means is not ours to know
        let http1 = !this.activity.multiplexed.load(Ordering::Relaxed)
            && !this.activity.upgraded.load(Ordering::Relaxed);
        if http1 {
            ready!(this.poll_linger(cx));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = poll_write_slices(Pin::new(&mut this.io), cx, bufs);
        this.written(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
