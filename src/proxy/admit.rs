//! Waits in the gate for a permit.
//!
//! Always ready: it waits in its future, not in `poll_ready`, so that dropping the future, which is
//! what hyper does when the client leaves, takes the ticket out of the queue.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower::Service;

use crate::proxy::Shared;
use crate::proxy::exchange::{Admitted, Classified, Failure};
use crate::proxy::respond::Trouble;

/// Makes [`Admit`].
pub(super) struct Layer(pub(super) Arc<Shared>);

impl<S> tower::Layer<S> for Layer {
    type Service = Admit<S>;

    fn layer(&self, inner: S) -> Admit<S> {
        Admit { inner, shared: self.0.clone() }
    }
}

/// Lets requests pass with a permit.
#[derive(Clone)]
pub(super) struct Admit<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Classified> for Admit<S>
where
    S: Service<Admitted, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
    S::Response: Send,
{
    type Response = S::Response;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Classified) -> Self::Future {
        let mut inner = self.inner.clone();
        let shared = self.shared.clone();
        Box::pin(async move {
            let asked = request.exchange.now();
            let takes_permit = request.arrival.kind.takes_permit();
            let record = &mut request.exchange.record;
            if takes_permit {
                record.asked = Some(asked);
            }
            let Some(group) = shared.parts.routes.groups().get(request.group) else {
                return Err(Failure::new(Trouble::NoSuchModel, request.exchange));
            };
            match group.gate().admit(request.arrival, || record.queued = true).await {
                Err(refused) => Err(Failure::new(Trouble::Refused(refused), request.exchange)),
                Ok(permit) => {
                    let now = request.exchange.now();
                    let waited = takes_permit.then(|| now.since(asked));
                    if takes_permit {
                        let record = &mut request.exchange.record;
                        record.admitted = Some(now);
                        (record.permits, record.in_flight) = permit.at_admission();
                    }
                    inner.call(Admitted { request, permit, waited }).await
                }
            }
        })
    }
}
