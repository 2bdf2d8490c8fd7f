//! One new connection: name look-up, TCP (both address families, whichever answers first), TLS.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::GaiResolver;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tower::ServiceExt;

use crate::telemetry::ConnectReason;
use crate::upstream::{Fault, Params, SetupError, Target, Trace, Upstream};
use crate::wire::poll_write_slices;

/// A byte stream to an upstream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection in the making.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send + 'a>>;

/// Makes connections to one upstream. The network does in production; tests hand in pipes.
pub trait Dial: Send + Sync {
    /// A connection that is ready for HTTP.
    fn dial(&self) -> Dialing<'_>;
}

/// Connections over the network.
pub struct Network {
    tcp: HttpConnector<GaiResolver>,
    origin: Uri,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Network {
    /// Prepares connections to `params.base_url`, with TLS where its scheme asks for it.
    ///
    /// # Errors
    /// When the CA file, the system's roots or the host name cannot be used.
    pub fn new(params: &Params) -> Result<Self, SetupError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let tls = if params.base_url.scheme_str() == Some("https") { Some(tls(params)?) } else { None };
        Ok(Self { tcp, origin: Target::new(&params.base_url)?.origin(), tls })
    }
}

fn tls(params: &Params) -> Result<(TlsConnector, ServerName<'static>), SetupError> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_native_certs::load_native_certs().certs {
        // a system's store may hold certificates that rustls cannot use; the others still count
        let _ = roots.add(certificate);
    }
    if let Some(path) = &params.ca_file {
        let wrong = |reason: String| SetupError::CaFile { path: path.display().to_string(), reason };
        let certificates = CertificateDer::pem_file_iter(path)
            .map_err(|e| wrong(e.to_string()))?
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| wrong(e.to_string()))?;
        if certificates.is_empty() {
            return Err(wrong("holds no certificate".into()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
        }
    }
    if roots.is_empty() {
        return Err(SetupError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if params.http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    let host = params.base_url.host().unwrap_or_default();
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(name.to_owned()).map_err(|_| SetupError::Host(host.to_owned()))?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

impl Dial for Network {
    fn dial(&self) -> Dialing<'_> {
        Box::pin(async move {
            let tcp = self.tcp.clone().oneshot(self.origin.clone()).await.map_err(io::Error::other)?;
            let tcp = tcp.into_inner();
            match &self.tls {
                None => Ok(Box::new(tcp) as Box<dyn Io>),
                Some((connector, name)) => {
                    let stream = connector.connect(name.clone(), tcp).await?;
                    Ok(Box::new(stream) as Box<dyn Io>)
                }
            }
        })
    }
}

impl Upstream {
    /// A connection that a request waits for.
    pub(super) async fn connect_now(&self, dial: &dyn Dial, trace: &mut Trace) -> Result<Box<dyn Io>, Fault> {
        let (io, took) = self.connect(dial, ConnectReason::Demand).await?;
        trace.connect = Some(took);
        Ok(io)
    }

    /// A connection, and how long it took to make.
    pub(super) async fn connect(
        &self,
        dial: &dyn Dial,
        reason: ConnectReason,
    ) -> Result<(Box<dyn Io>, Duration), Fault> {
        let limit = self.params.connect_timeout;
        let began = self.clock.now();
        let dialled = match tokio::time::timeout(limit, dial.dial()).await {
            Ok(dialled) => dialled.map_err(Fault::Connect),
            Err(_) => Err(Fault::ConnectTimeout(limit)),
        };
        let took = self.clock.now().since(began);
        match dialled {
            Ok(io) => {
                self.connects.opened(reason, took);
                Ok((io, took))
            }
            Err(fault) => {
                self.connects.failed(reason);
                Err(fault)
            }
        }
    }
}

/// A connection that writes small things in one piece.
pub(super) struct Joined(pub(super) Box<dyn Io>);

impl AsyncRead for Joined {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Joined {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_write_slices(Pin::new(&mut *self.get_mut().0), cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
