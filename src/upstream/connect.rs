//! One new connection: name look-up (`names.rs`), TCP to whichever address answers first (`race.rs`), TLS.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::telemetry::ConnectReason;
use crate::upstream::names::{Name, Resolve};
use crate::upstream::race::race;
use crate::upstream::{Fault, Params, SetupError, Trace, Upstream};
use crate::wire::poll_write_slices;

/// A byte stream to an upstream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that came up.
pub struct Dialled {
    /// It, ready for HTTP.
    pub io: Box<dyn Io>,
    /// Where it leads, if that is an address that may leave the name.
    pub address: Option<IpAddr>,
}

impl Dialled {
    /// One that leads to no address, such as a pipe.
    pub fn new(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), address: None }
    }
}

/// A connection in the making.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = io::Result<Dialled>> + Send + 'a>>;

/// The addresses that connections may stay with, in the making.
pub type Present<'a> = Pin<Box<dyn Future<Output = Option<Vec<IpAddr>>> + Send + 'a>>;

/// Makes connections to one upstream. The network does in production; tests hand in pipes.
pub trait Dial: Send + Sync {
    /// A connection that is ready for HTTP.
    fn dial(&self) -> Dialing<'_>;

    /// Looks the name up anew: the addresses that connections may stay with. `None`: nothing is known of them.
    fn present(&self) -> Present<'_> {
        Box::pin(async { None })
    }
}

/// An idle connection is asked for a sign of life after this time, and then again after the next.
pub(super) const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15));
/// For so long may bytes go unacknowledged (RFC 5482) before a connection counts as dead: without it a request on
/// a connection whose other end has vanished waits a quarter of an hour for the system to give up.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// Connections over the network.
pub struct Network {
    name: Arc<Name>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Network {
    /// Prepares connections to `params.base_url`, with TLS where its scheme asks for it.
    ///
    /// # Errors
    /// When the CA file, the system's roots or the host name cannot be used.
    pub fn new(params: &Params, resolver: Arc<dyn Resolve>) -> Result<Self, SetupError> {
        let secure = params.base_url.scheme_str() == Some("https");
        let host = params.base_url.host().unwrap_or_default();
        let port = params.base_url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let name = Arc::new(Name::new(host, port, params.dns_refresh, resolver));
        Ok(Self { name, tls: if secure { Some(tls(params)?) } else { None } })
    }

    /// To the same place, with HTTP/1.1 where this one settles on HTTP/2.
    pub(super) fn for_tunnels(&self, params: &Params) -> Result<Self, SetupError> {
        let params = Params { http2: false, ..params.clone() };
        Ok(Self { name: self.name.clone(), tls: Some(tls(&params)?) })
    }

    async fn tcp(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let addresses = self.name.addresses().await?;
        let raced = race(&addresses, tcp_to).await;
        raced.lost.iter().for_each(|address| self.name.failed(*address));
        if raced.won.is_err() {
            self.name.doubt();
        }
        raced.won
    }
}

async fn tcp_to(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let socket = socket2::SockRef::from(&tcp);
    let keep_alive = socket2::TcpKeepalive::new().with_time(KEEP_ALIVE.0).with_interval(KEEP_ALIVE.1);
    socket.set_tcp_keepalive(&keep_alive)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(tcp)
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
            let (tcp, address) = self.tcp().await?;
            let io: Box<dyn Io> = match &self.tls {
                None => Box::new(tcp),
                Some((connector, name)) => Box::new(connector.connect(name.clone(), tcp).await?),
            };
            Ok(Dialled { io, address: Some(address.ip()) })
        })
    }

    fn present(&self) -> Present<'_> {
        Box::pin(self.name.present())
    }
}

impl Upstream {
    /// A connection that a request waits for.
    pub(super) async fn connect_now(&self, dial: &dyn Dial, trace: &mut Trace) -> Result<Dialled, Fault> {
        let (dialled, took) = self.connect(dial, ConnectReason::Demand).await?;
        trace.connect = Some(took);
        Ok(dialled)
    }

    /// A connection, and how long it took to make.
    pub(super) async fn connect(
        &self,
        dial: &dyn Dial,
        reason: ConnectReason,
    ) -> Result<(Dialled, Duration), Fault> {
        let limit = self.params.connect_timeout;
        let began = self.clock.now();
        let dialled = match tokio::time::timeout(limit, dial.dial()).await {
            Ok(dialled) => dialled.map_err(Fault::Connect),
            Err(_) => Err(Fault::ConnectTimeout(limit)),
        };
        let took = self.clock.now().since(began);
        match dialled {
            Ok(dialled) => {
                self.connects.opened(reason, took);
                Ok((dialled, took))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_system_is_told_when_a_silent_connection_is_dead() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = tcp_to(listener.local_addr().unwrap()).await.unwrap();
        let socket = socket2::SockRef::from(&tcp);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
        assert!(socket.keepalive().unwrap() && tcp.nodelay().unwrap());
        let (time, interval) =
            (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
        assert_eq!((time, interval), KEEP_ALIVE);
    }
}
