//! Tries again what may be tried again, as long as nothing of an answer has gone to the client.
//!
//! Whether a request may be sent twice is known here; when and where, and whether at all, is the gate's word. It
//! takes the permit back while the request waits. When there is no further try, the client gets the upstream's own
//! last answer, or ours where there was none.
//!
//! ```text
//! may be sent twice = its body is kept (limits.replay_bytes, no upload that passes through)
//!                   ∧ it has no client's own key that another endpoint of its group is not to see
//!                   ∧ ( GET, HEAD, inference that leaves nothing behind, or an Idempotency-Key
//!                     ∨ it was proven unsent, or refused (401, 429, 503) )
//! ```

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::header::{HeaderMap, HeaderName};
use hyper::{Method, Request, StatusCode, Uri, Version};
use tower::Service;

use crate::policy::engine::RetryCause;
use crate::policy::supply::RetryParams;
use crate::policy::units::MonoTime;
use crate::proxy::breaker::{of_status, of_trouble};
use crate::proxy::exchange::{Admitted, Attempt, Exchange, Failure, Model};
use crate::proxy::forward::{Answer, Unanswered};
use crate::proxy::intake::Held;
use crate::proxy::respond::Trouble;
use crate::proxy::{Group, Pending, Permit, Refused, Shared};
use crate::upstream::{Fault, OnDisconnect, Payload, Repeat, ReplyBody, clean_request, has_key};

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// A refused attempt's answer up to this long is read to its end, so that its connection can be used again.
const SMALL_ANSWER: u64 = 64 << 10;

/// Makes [`Retry`].
pub(super) struct Layer(pub(super) Arc<Shared>);

impl<S> tower::Layer<S> for Layer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Retry<S> {
        Retry { inner, shared: self.0.clone() }
    }
}

/// Makes attempts.
#[derive(Clone)]
pub(super) struct Retry<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Admitted> for Retry<S>
where
    S: Service<Attempt, Response = Answer, Error = Unanswered> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Admitted) -> Self::Future {
        Box::pin(attempts(self.inner.clone(), self.shared.clone(), request))
    }
}

async fn attempts<S>(mut inner: S, shared: Arc<Shared>, admitted: Admitted) -> Result<Answer, Failure>
where
    S: Service<Attempt, Response = Answer, Error = Unanswered>,
    S::Future: Send + 'static,
{
    let Admitted { request, permit, waited } = admitted;
    let mut head = request.head;
    clean_request(&mut head.headers, request.upgrade.is_some());
    // an attempt holds a copy of the body: the memory it takes is let go of with the last one
    let mut memory = request.memory;
    let kept = request.arrival.bytes <= shared.parts.params.replay_bytes;
    let repeat = if !kept {
        Repeat::Never
    } else if request.inference {
        // beyond RFC 9110 §9.2.2: the worst that can come of it is an answer that nobody reads
        Repeat::Always
    } else {
        Repeat::IfIdempotent
    };
    let rules = Rules {
        params: shared.parts.routes.retry(),
        twice: request.inference
            || matches!(head.method, Method::GET | Method::HEAD)
            || (head.method == Method::POST && head.headers.contains_key(&IDEMPOTENCY_KEY)),
    };
    let group = shared.parts.routes.groups().get(request.group);
    // where it would go next is the gate's word
    let confided = group.is_some_and(Group::has_strangers) && has_key(&head.headers);
    let kept = kept && request.upgrade.is_none() && !rules.params.backoff.is_empty() && !confided;
    let mut next = Attempt {
        head,
        payload: request.payload,
        upgrade: request.upgrade,
        group: request.group,
        model: request.model,
        repeat,
        sent: None,
        answer_by: request.answer_by,
        permit,
        waited,
        exchange: request.exchange,
    };
    loop {
        let copy = if kept { Copy::of(&next) } else { None };
        let drain = drain_limit(&shared, &next);
        let ended = match drain {
            None => inner.call(next).await,
            Some(limit) => {
                let sent = next.sent.insert(Arc::default()).clone();
                let attempt = Some(Box::pin(inner.call(next)));
                Kept { attempt, sent, memory: &mut memory, shared: &shared, limit }.await
            }
        };
        let Some(copy) = copy else { return ended.map_err(given_up) };
        let again = match ended {
            Ok(answer) => {
                let Some(cause) = rules.after_answer(&shared, &answer) else { return Ok(answer) };
                let hint = answer.retry_at.map(|at| at.since(answer.exchange.now()));
                let Answer { head, body, tunnel, group, permit, retry_at, waited, exchange } = answer;
                match permit.retry(of_status(head.status), cause, hint) {
                    Err(permit) => {
                        return Ok(Answer { head, body, tunnel, group, permit, retry_at, waited, exchange });
                    }
                    Ok(pending) => Again { pending, refused: Some(body), waited, exchange },
                }
            }
            Err(unanswered) => {
                let Some(cause) = rules.after_trouble(&unanswered.trouble) else {
                    return Err(given_up(unanswered));
                };
                let Unanswered { trouble, permit, waited, exchange } = unanswered;
                match permit.retry(of_trouble(&trouble), cause, None) {
                    Err(permit) => return Err(given_up(Unanswered { trouble, permit, waited, exchange })),
                    Ok(pending) => Again { pending, refused: None, waited, exchange },
                }
            }
        };
        next = copy.go(again).await?;
    }
}

/// How long this attempt goes on after its client has left; `None`: not at all, since its answer will tell of no
/// usage.
fn drain_limit(shared: &Shared, attempt: &Attempt) -> Option<Duration> {
    let params = shared.endpoint(attempt.group, attempt.permit.place().endpoint)?.params();
    let drains = params.on_disconnect == OnDisconnect::Drain && attempt.exchange.expected.is_some();
    drains.then_some(params.drain_limit)
}

/// An attempt that goes on without its client, if the upstream has seen it.
struct Kept<'s, F: Future<Output = Result<Answer, Unanswered>> + Send + 'static> {
    attempt: Option<Pin<Box<F>>>,
    sent: Arc<AtomicBool>,
    memory: &'s mut Option<Held>,
    shared: &'s Arc<Shared>,
    limit: Duration,
}

impl<F: Future<Output = Result<Answer, Unanswered>> + Send + 'static> Future for Kept<'_, F> {
    type Output = Result<Answer, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(attempt) = &mut self.attempt else { return Poll::Pending };
        let ended = ready!(attempt.as_mut().poll(cx));
        self.attempt = None;
        Poll::Ready(ended)
    }
}

impl<F: Future<Output = Result<Answer, Unanswered>> + Send + 'static> Drop for Kept<'_, F> {
    fn drop(&mut self) {
        if let Some(attempt) = self.attempt.take()
            && self.sent.load(Ordering::Relaxed)
        {
            let (shared, memory) = (self.shared.clone(), self.memory.take());
            self.shared.parts.tunnels.see_through(shared, self.limit, memory, attempt);
        }
    }
}

fn given_up(Unanswered { trouble, permit, exchange, .. }: Unanswered) -> Failure {
    permit.finish(of_trouble(&trouble), None);
    Failure::new(trouble, exchange)
}

/// After what this request may be sent again.
struct Rules<'p> {
    params: &'p RetryParams,
    /// Doing it twice does no harm.
    twice: bool,
}

impl Rules<'_> {
    fn after_answer(&self, shared: &Shared, answer: &Answer) -> Option<RetryCause> {
        let status = answer.head.status;
        if status == StatusCode::UNAUTHORIZED {
            // a client's own key is the client's to mend
            let ours = shared.is_ours(answer.group, answer.permit.place());
            return (ours && answer.exchange.blames_key).then_some(RetryCause::Key);
        }
        let refused = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        ((self.twice || refused) && self.params.covers(status.as_u16())).then_some(RetryCause::Status)
    }

    fn after_trouble(&self, trouble: &Trouble) -> Option<RetryCause> {
        let Trouble::Upstream(fault) = trouble else { return None };
        match fault {
            Fault::Connect(_) => self.params.on_connect.then_some(RetryCause::Connect),
            Fault::ConnectTimeout(_) => self.params.on_connect.then_some(RetryCause::Timeout),
            Fault::Unsent(_) => self.params.on_reset.then_some(RetryCause::Reset),
            Fault::Closed(_) => (self.twice && self.params.on_reset).then_some(RetryCause::Reset),
            // it was sent and nothing came of it, as with a reset
            Fault::FirstByteTimeout(_) => (self.twice && self.params.on_reset).then_some(RetryCause::Timeout),
            _ => None,
        }
    }
}

/// A request between two attempts.
struct Again {
    pending: Pending,
    /// The answer that is not passed on.
    refused: Option<ReplyBody>,
    waited: Option<Duration>,
    exchange: Box<Exchange>,
}

/// What the next attempt is made of. The head's extensions stay behind: they belong to one connection.
struct Copy {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    payload: Payload,
    group: usize,
    model: Option<Model>,
    repeat: Repeat,
    answer_by: Option<MonoTime>,
}

impl Copy {
    fn of(attempt: &Attempt) -> Option<Self> {
        let head = &attempt.head;
        Some(Self {
            payload: attempt.payload.again()?,
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            headers: head.headers.clone(),
            group: attempt.group,
            model: attempt.model.clone(),
            repeat: attempt.repeat,
            answer_by: attempt.answer_by,
        })
    }

    /// Waits for the permit of the next attempt.
    async fn go(self, again: Again) -> Result<Attempt, Failure> {
        let Again { pending, refused, waited, mut exchange } = again;
        let began = exchange.now();
        exchange.record.another_try();
        let permit = match admitted(pending, refused).await {
            Ok(permit) => permit,
            Err(refused) => return Err(Failure::new(Trouble::Refused(refused), exchange)),
        };
        let more = exchange.now().since(began);
        exchange.record.waited_again += more;
        let mut request = Request::new(());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers;
        Ok(Attempt {
            head: request.into_parts().0,
            payload: self.payload,
            upgrade: None,
            group: self.group,
            model: self.model,
            repeat: self.repeat,
            sent: None,
            answer_by: self.answer_by,
            permit,
            waited: waited.map(|waited| waited + more),
            exchange,
        })
    }
}

/// Waits for the permit, and meanwhile reads the refused answer to its end, if that is near.
async fn admitted(pending: Pending, refused: Option<ReplyBody>) -> Result<Permit, Refused> {
    let mut admitted = pin!(pending.admitted());
    if let Some(body) = refused {
        tokio::select! {
            biased;
            () = read_out(body) => {}
            verdict = &mut admitted => return verdict,
        }
    }
    admitted.await
}

async fn read_out(mut body: ReplyBody) {
    let mut left = SMALL_ANSWER;
    if body.size_hint().lower() > left {
        return;
    }
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        match left.checked_sub(length) {
            Some(less) => left = less,
            None => return,
        }
    }
}
