//! The circuit breaker as a tower layer: thin, because its state lives in the engine.
//!
//! The verdict is the permit itself: the gate admits nothing that the breaker does not let pass, and
//! makes exactly one request the probe. What this layer adds is the other half: it tells the gate how
//! the attempt went as soon as that is known, long before a stream has ended.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::StatusCode;
use tower::Service;

use crate::policy::units::Outcome;
use crate::proxy::exchange::{Admitted, Failure};
use crate::proxy::forward::{Answer, Unanswered};
use crate::proxy::respond::Trouble;
use crate::upstream::Fault;

/// Makes [`Breaker`].
#[derive(Clone, Copy)]
pub(super) struct Layer;

impl<S> tower::Layer<S> for Layer {
    type Service = Breaker<S>;

    fn layer(&self, inner: S) -> Breaker<S> {
        Breaker { inner }
    }
}

/// Reports how attempts end.
#[derive(Clone)]
pub(super) struct Breaker<S> {
    inner: S,
}

impl<S> Service<Admitted> for Breaker<S>
where
    S: Service<Admitted, Response = Answer, Error = Unanswered>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Admitted) -> Self::Future {
        let attempt = self.inner.call(request);
        Box::pin(async move {
            match attempt.await {
                Ok(answer) => {
                    let status = answer.head.status;
                    answer.permit.first_byte(status.as_u16() < 500);
                    match of_status(status) {
                        // whether it is a success shows when its body has ended
                        Outcome::Success | Outcome::Ignore => {}
                        decided => answer.permit.attempt_ended(decided),
                    }
                    Ok(answer)
                }
                Err(Unanswered { trouble, permit, exchange }) => {
                    permit.finish(of_trouble(&trouble), None);
                    Err(Failure::new(trouble, exchange))
                }
            }
        })
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

fn of_trouble(trouble: &Trouble) -> Outcome {
    match trouble {
        Trouble::Upstream(Fault::Request(_)) => Outcome::Ignore,
        Trouble::Upstream(Fault::Garbage(_) | Fault::Unacceptable(_)) => Outcome::Failure,
        Trouble::Upstream(_) => Outcome::Overload,
        // the client chose the deadline; a short one must not make the upstream look broken
        _ => Outcome::Ignore,
    }
}
