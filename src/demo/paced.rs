//! The answer's body: each event leaves the moment its token is due, alone in its write.
//!
//! Batched or early events would hide every fault of a proxy that buffers. Dropping the body frees the slot.
//! Called by the simulated upstream once a request has its slot.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

use super::dialect::Answer;
use super::faults::Fate;
use super::model::{Draw, Law};
use super::slots::{Slots, Visit};

/// The simulated upstream breaks the connection here, as its faults say.
#[derive(Debug, thiserror::Error)]
#[error("the simulated upstream breaks the connection")]
pub struct Hangup;

/// A body of the simulated upstream.
pub struct SimulatedBody(Kind);

enum Kind {
    Whole(Full<Bytes>),
    Paced(Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Hangup>> + Send>>),
}

impl SimulatedBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self(Kind::Whole(Full::new(bytes)))
    }

    /// The answer as server-sent events. The prefill is over.
    pub(crate) fn events(answer: Answer, pace: Pace, fate: Fate, visit: Visit) -> Self {
        let mut ready = VecDeque::from(answer.opening());
        if answer.ask.output_tokens == 0 && fate == Fate::Whole {
            ready.extend(answer.closing());
        }
        let told = Told {
            tokens: answer.ask.output_tokens,
            answer: Some(answer),
            ready,
            pace,
            fate,
            visit,
            k: 0,
            started: false,
        };
        Self(Kind::Paced(Box::pin(futures_util::stream::unfold(Some(told), next))))
    }

    /// The first half of a body that will not be finished.
    pub(crate) fn half(bytes: &Bytes, pace: Pace, fate: Fate, visit: Visit) -> Self {
        let ready = VecDeque::from([bytes.slice(..bytes.len() / 2)]);
        let told = Told { tokens: 1, answer: None, ready, pace, fate, visit, k: 0, started: false };
        Self(Kind::Paced(Box::pin(futures_util::stream::unfold(Some(told), next))))
    }
}

impl std::fmt::Debug for SimulatedBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Kind::Whole(_) => "SimulatedBody::Whole",
            Kind::Paced(_) => "SimulatedBody::Paced",
        })
    }
}

impl Body for SimulatedBody {
    type Data = Bytes;
    type Error = Hangup;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Hangup>>> {
        match &mut self.0 {
            Kind::Whole(full) => Pin::new(full).poll_frame(cx).map_err(|never| match never {}),
            Kind::Paced(stream) => stream.as_mut().poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Kind::Whole(full) if full.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(full) => full.size_hint(),
            Kind::Paced(_) => SizeHint::default(),
        }
    }
}

/// When each token of one request is due.
///
/// Due times add up exactly; sleeping for each gap instead would add the timer's rounding at every token.
pub(crate) struct Pace {
    pub(crate) law: std::sync::Arc<Law>,
    pub(crate) slots: Slots,
    pub(crate) seed: u64,
    pub(crate) request: u64,
    pub(crate) due: Duration,
    pub(crate) step: u64,
}

impl Pace {
    /// Waits until the prompt has been read.
    pub(crate) async fn prefill(&mut self, prompt_tokens: u64) {
        let draw = self.draw();
        let mut left = self.law.prefill_time(prompt_tokens, self.due, draw);
        if let Some(slice) = self.law.slice() {
            while left > slice {
                left -= slice;
                self.work(slice).await;
            }
            return self.work(left).await;
        }
        self.due += left;
        self.sleep().await;
    }

    /// Waits until this much has been done, at the speed of now.
    async fn work(&mut self, alone: Duration) {
        self.due += alone.mul_f64(self.law.crowd(self.slots.running()));
        self.sleep().await;
    }

    /// Waits for the next token.
    pub(crate) async fn token(&mut self) {
        let draw = self.draw();
        self.due += self.law.token_time(self.slots.running(), self.due, draw);
        self.sleep().await;
    }

    const fn draw(&mut self) -> Draw {
        self.step += 1;
        Draw { seed: self.seed, request: self.request, step: self.step }
    }

    async fn sleep(&self) {
        tokio::time::sleep_until(self.slots.instant(self.due)).await;
    }
}

struct Told {
    /// Absent for half a body: it has no tokens to tell.
    answer: Option<Answer>,
    ready: VecDeque<Bytes>,
    pace: Pace,
    fate: Fate,
    visit: Visit,
    tokens: u32,
    k: u32,
    started: bool,
}

type Step = Option<(Result<Frame<Bytes>, Hangup>, Option<Told>)>;

async fn next(told: Option<Told>) -> Step {
    let mut told = told?;
    if let Some(event) = told.ready.pop_front() {
        if told.started {
            // hyper writes when a body is pending: one pending poll between two events is one write each.
            tokio::task::yield_now().await;
        }
        return Some(told.send(event));
    }
    if told.fate != Fate::Whole && told.k >= told.tokens / 2 {
        if told.fate == Fate::Stall {
            std::future::pending::<()>().await;
        }
        told.pace.token().await;
        return Some((Err(Hangup), None));
    }
    if told.k >= told.tokens {
        return None;
    }
    told.pace.token().await;
    let event = told.answer.as_ref().map(|a| a.token(told.k)).unwrap_or_default();
    told.k += 1;
    if told.k == told.tokens {
        told.ready.extend(told.answer.iter().flat_map(Answer::closing));
    }
    Some(told.send(event))
}

impl Told {
    fn send(mut self, event: Bytes) -> (Result<Frame<Bytes>, Hangup>, Option<Self>) {
        self.started = true;
        self.pace.slots.sent(event.len());
        if self.fate == Fate::Whole && self.ready.is_empty() && self.k == self.tokens {
            // Before the bytes leave: who has read the last of them may look at the slots.
            self.visit.finish();
        }
        (Ok(Frame::data(event)), Some(self))
    }
}
