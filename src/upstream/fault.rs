//! Why there is no answer from the upstream. `proxy/respond.rs` says what that means in HTTP.

use std::time::Duration;

use crate::upstream::BoxError;

/// An upstream that cannot even be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The extra CA file cannot be read or holds no certificate.
    #[error("upstream.ca_file {path}: {reason}")]
    CaFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No trusted certificate authority at all.
    #[error(
        "no trusted certificate authorities were found on this system: install ca-certificates or set \
         upstream.ca_file"
    )]
    NoRoots,
    /// The host cannot stand in a TLS server name or a header.
    #[error("upstream.base_url: {0} is not a usable host name")]
    Host(String),
    /// TLS settings that rustls refuses.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A request's body of which nothing came for too long.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the client paused for {0:?}")]
pub struct Paused(pub Duration);

/// An attempt that brought no response head, or no whole response.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Nobody listens, the name is unknown, or TLS failed.
    #[error("cannot connect: {}", chain(.0))]
    Connect(#[source] std::io::Error),
    /// The connection did not come up in time.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// The head did not come in time.
    #[error("no response head within {0:?}")]
    FirstByteTimeout(Duration),
    /// The connection ended before the head was there.
    #[error("the connection was closed before a response: {0}")]
    Closed(#[source] hyper::Error),
    /// The upstream said that it has not looked at the request (HTTP/2: RFC 9113 §8.7).
    #[error("the upstream did not take the request up: {0}")]
    Unsent(#[source] hyper::Error),
    /// What came is not HTTP.
    #[error("the response is not valid HTTP: {0}")]
    Garbage(#[source] hyper::Error),
    /// It is HTTP, but not what can be passed on.
    #[error("the response cannot be passed on: {0}")]
    Unacceptable(&'static str),
    /// The client's upload broke off: the upstream is not to blame.
    #[error("the request's body broke off: {0}")]
    Upload(#[source] BoxError),
    /// The client's upload paused for too long.
    #[error("{0}")]
    UploadPaused(Paused),
    /// The request cannot be written as it is.
    #[error("the request cannot be sent: {0}")]
    Request(String),
    /// The response body paused for too long.
    #[error("no more of the response within {0:?}")]
    IdleTimeout(Duration),
    /// The whole took too long.
    #[error("the response was not over within {0:?}")]
    TotalTimeout(Duration),
    /// The response body broke off.
    #[error("the response broke off: {0}")]
    Broken(#[source] hyper::Error),
}

/// An error and what it came from: the cause, such as "connection refused", is often the last of them.
fn chain(error: &std::io::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.get_ref().and_then(|inner| inner.source());
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl Fault {
    /// The kind of it, for who counts them.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::ConnectTimeout(_) => "connect_timeout",
            Self::FirstByteTimeout(_) => "first_byte_timeout",
            Self::Closed(_) => "closed",
            Self::Unsent(_) => "unsent",
            Self::Garbage(_) => "garbage",
            Self::Unacceptable(_) => "unacceptable",
            Self::Upload(_) => "upload",
            Self::UploadPaused(_) => "upload_paused",
            Self::Request(_) => "request",
            Self::IdleTimeout(_) => "idle_timeout",
            Self::TotalTimeout(_) => "total_timeout",
            Self::Broken(_) => "broken",
        }
    }

    /// It took too long, as opposed to going wrong.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::ConnectTimeout(_)
                | Self::FirstByteTimeout(_)
                | Self::IdleTimeout(_)
                | Self::TotalTimeout(_)
        )
    }

    /// What hyper says went wrong before the head, if it was not the request's body.
    pub(super) fn before_head(error: hyper::Error) -> Self {
        if error.is_parse() {
            return Self::Garbage(error);
        }
        let untouched = |error: &h2::Error| {
            error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
        };
        if of_http2(&error).is_some_and(untouched) { Self::Unsent(error) } else { Self::Closed(error) }
    }

    /// What went wrong with the request's body on its way up.
    pub(super) fn of_upload(error: &BoxError) -> Self {
        match error.downcast_ref::<Paused>() {
            Some(paused) => Self::UploadPaused(*paused),
            None => Self::Upload(error.to_string().into()),
        }
    }

    /// It ended one stream of an HTTP/2 connection, and the others go on.
    pub(super) fn is_of_one_stream(error: &hyper::Error) -> bool {
        of_http2(error).is_some_and(h2::Error::is_reset)
    }
}

/// The kernel gave up on it.
pub(super) fn timed_out(error: &hyper::Error) -> bool {
    let of_socket =
        || std::error::Error::source(error)?.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    let of_stream = || of_http2(error)?.get_io().map(std::io::Error::kind);
    of_socket().or_else(of_stream) == Some(std::io::ErrorKind::TimedOut)
}

fn of_http2(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}
