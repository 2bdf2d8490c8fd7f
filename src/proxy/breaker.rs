//! The circuit breaker as a tower layer: thin, because its state lives in the engine.
//!
//! The verdict is the permit itself: the gate admits nothing that the breaker does not let pass, and
//! makes exactly one request the probe. What this layer adds is the other half: it tells the gate how
//! the attempt went as soon as that is known, long before a stream has ended, and whether or not the request is tried
//! again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::StatusCode;
use tower::Service;

use crate::policy::engine::Lost;
use crate::policy::units::Outcome;
use crate::proxy::exchange::{Attempt, Exchange};
use crate::proxy::forward::{Answer, Unanswered};
use crate::proxy::respond::Trouble;
use crate::proxy::{Permit, Shared, limits};
use crate::upstream::Fault;

/// Makes [`Breaker`].
pub(super) struct Layer(pub(super) Arc<Shared>);

impl<S> tower::Layer<S> for Layer {
    type Service = Breaker<S>;

    fn layer(&self, inner: S) -> Breaker<S> {
        Breaker { inner, shared: self.0.clone() }
    }
}

/// Reports how attempts end.
#[derive(Clone)]
pub(super) struct Breaker<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Attempt> for Breaker<S>
where
    S: Service<Attempt, Response = Answer, Error = Unanswered>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Unanswered;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Unanswered>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unanswered>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Attempt) -> Self::Future {
        let attempt = self.inner.call(request);
        let shared = self.shared.clone();
        Box::pin(async move {
            let count = |exchange: &Exchange, status| {
                let upstream = exchange.record.upstream.as_deref().unwrap_or_default();
                shared.parts.telemetry.answered(upstream, status);
            };
            match attempt.await {
                Ok(mut answer) => {
                    let status = answer.head.status;
                    count(&answer.exchange, Some(status.as_u16()));
                    if status == StatusCode::UNAUTHORIZED
                        && shared.is_ours(answer.group, answer.permit.place())
                        && answer.exchange.blames_key
                    {
                        answer.permit.unauthorized();
                    }
                    limits::tell(&mut answer);
                    answer.permit.first_byte(status.as_u16() < 500);
                    match of_status(status) {
                        // whether it is a success shows when its body has ended
                        Outcome::Success | Outcome::Ignore => {}
                        decided => answer.permit.attempt_ended(decided),
                    }
                    Ok(answer)
                }
                Err(unanswered) => {
                    if let Trouble::Upstream(fault) = &unanswered.trouble {
                        tell_lost(&unanswered.permit, fault);
                    }
                    let outcome = of_trouble(&unanswered.trouble);
                    // what the client made fail is no answer of the upstream's
                    let by_client = match &unanswered.trouble {
                        Trouble::Upstream(fault) => matches!(fault, Fault::Request(_)),
                        _ => true,
                    };
                    if !by_client {
                        count(&unanswered.exchange, None);
                    }
                    unanswered.permit.attempt_ended(outcome);
                    Err(unanswered)
                }
            }
        })
    }
}

/// Tells the gate where the request never got to the upstream, or waited for its answer in vain.
pub(super) fn tell_lost(permit: &Permit, fault: &Fault) {
    match fault {
        Fault::Connect(_) | Fault::ConnectTimeout(_) | Fault::Unsent(_) => permit.lost(Lost::Unsent),
        Fault::FirstByteTimeout(_) => permit.lost(Lost::TimedOut),
        _ => {}
    }
}

/// What a response's status says of the upstream. 4xx is the client's doing and never counts.
pub(super) fn of_status(status: StatusCode) -> Outcome {
    match status.as_u16() {
        429 => Outcome::Refused,
        503 | 529 => Outcome::Overload,
        500.. => Outcome::Failure,
        400..=499 => Outcome::Ignore,
        _ => Outcome::Success,
    }
}

pub(super) fn of_trouble(trouble: &Trouble) -> Outcome {
    match trouble {
        Trouble::Upstream(fault) => of_fault(fault),
        // the client chose the deadline; a short one must not make the upstream look broken
        _ => Outcome::Ignore,
    }
}

/// What it says of the upstream that an attempt, or an answer, broke off so.
pub(super) fn of_fault(fault: &Fault) -> Outcome {
    match fault {
        // how long the whole takes is for the client to choose too, by what it asks for and how it reads
        Fault::Request(_) | Fault::TotalTimeout(_) => Outcome::Ignore,
        // it answers, and has its reasons
        Fault::Unsent(_) => Outcome::Ignore,
        Fault::Garbage(_) | Fault::Unacceptable(_) => Outcome::Failure,
        _ => Outcome::Overload,
    }
}
