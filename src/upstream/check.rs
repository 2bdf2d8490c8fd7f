//! Questions of our own to the server: whether it is well, and how busy it is.
//!
//! Each goes over a connection of its own, which ends with the answer: a check must not pass because an old
//! connection still works, nor take one that a request could have. Called by `app`, each on its own timer.

use std::future::Future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use crate::upstream::connect::Joined;
use crate::upstream::pool::handshake_http2;
use crate::upstream::{Dialled, Fault, Payload, Upstream};

/// A server that takes longer to say that it is well is not.
const CHECK_PATIENCE: Duration = Duration::from_secs(5);
/// A busy server answers between two of its steps, which may take seconds.
const METRICS_PATIENCE: Duration = Duration::from_secs(5);
/// vLLM's page has some 100 KiB.
const MAX_METRICS: usize = 1 << 20;

/// Why an active check failed.
#[derive(Debug, thiserror::Error)]
pub enum Unwell {
    /// It answered, and not with 2xx.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// It did not answer.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl Upstream {
    /// Asks for `path` of its origin: any 2xx within 5 s is well.
    ///
    /// # Errors
    /// Why it is not.
    pub async fn check(&self, path: &str) -> Result<(), Unwell> {
        match within(CHECK_PATIENCE, self.ask(path, None)).await? {
            (status, _) if status.is_success() => Ok(()),
            (status, _) => Err(Unwell::Status(status)),
        }
    }

    /// Its metrics page, at most 1 MiB and within 5 s.
    ///
    /// # Errors
    /// There is none, it is too large, or it takes too long.
    pub async fn fetch_metrics(&self, path: &str) -> Result<Bytes, Fault> {
        match within(METRICS_PATIENCE, self.ask(path, Some(MAX_METRICS))).await? {
            (status, page) if status.is_success() => Ok(page),
            _ => Err(Fault::Unacceptable("it has no metrics there")),
        }
    }

    /// The status, and the body where no more than `limit` bytes of it are wanted.
    async fn ask(&self, path: &str, limit: Option<usize>) -> Result<(StatusCode, Bytes), Fault> {
        // where TLS settles on HTTP/2, the other dial settles on HTTP/1.1
        let over_http2 = self.params.http2 && self.dial_tunnels.is_none();
        let mut request = Request::new(Payload::Empty);
        *request.uri_mut() = self.target.on_origin(path, over_http2)?;
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static("tidegate"));
        if let Some(key) = self.keys.first() {
            headers.insert(header::AUTHORIZATION, key.clone());
        }
        if !over_http2 {
            headers.insert(header::HOST, self.target.host().clone());
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let Dialled { io, .. } =
            self.dial_tunnels.as_ref().unwrap_or(&self.dial).dial().await.map_err(Fault::Connect)?;
        if over_http2 {
            let (mut handle, driver) = handshake_http2(io).await.map_err(Fault::before_head)?;
            beside(driver, async { read(handle.send_request(request).await, limit).await }).await
        } else {
            let (mut handle, driver) =
                http1::handshake(TokioIo::new(Joined(io))).await.map_err(Fault::before_head)?;
            beside(driver, async { read(handle.send_request(request).await, limit).await }).await
        }
    }
}

async fn read(
    answer: hyper::Result<Response<Incoming>>,
    limit: Option<usize>,
) -> Result<(StatusCode, Bytes), Fault> {
    let (head, mut body) = answer.map_err(Fault::before_head)?.into_parts();
    let mut page = BytesMut::new();
    let Some(limit) = limit else { return Ok((head.status, Bytes::new())) };
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(Fault::Broken)?.into_data() {
            if page.len() + data.len() > limit {
                return Err(Fault::Unacceptable("its metrics are larger than 1 MiB"));
            }
            page.extend_from_slice(&data);
        }
    }
    Ok((head.status, page.freeze()))
}

async fn within<T>(patience: Duration, asking: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    // boxed: a question is rare, and whoever waits for it need not carry its state
    tokio::time::timeout(patience, Box::pin(asking)).await.unwrap_or(Err(Fault::FirstByteTimeout(patience)))
}

/// Runs a connection for as long as its one answer takes. What had come when the connection ended still counts.
async fn beside<T>(driver: impl Future, answer: impl Future<Output = T>) -> T {
    let (mut driver, mut answer) = (std::pin::pin!(driver), std::pin::pin!(answer));
    let mut runs = true;
    loop {
        tokio::select! {
            biased;
            answered = answer.as_mut() => return answered,
            _ = driver.as_mut(), if runs => runs = false,
        }
    }
}
