//! `tidegate health`: a container's HEALTHCHECK without a shell or curl in the image.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::cli::Settings;
use crate::config;

#[derive(Args)]
pub(super) struct Options {
    /// Ask whether it can serve (/readyz), not only whether it is alive (/healthz).
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    settings: Settings,
}

const PATIENCE: Duration = Duration::from_secs(2);
/// More than any page of metrics is.
const MAX_ANSWER: u64 = 32 << 20;

pub(super) fn health(options: &Options) -> ExitCode {
    let path = if options.ready { "/readyz" } else { "/healthz" };
    match address(&options.settings).and_then(|address| ask(address, path)) {
        Ok((200, _)) => ExitCode::SUCCESS,
        Ok((status, body)) => {
            eprintln!("{path} answered {status}: {}", body.trim());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{path}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where the running proxy's admin service is, by the same settings it was started with. One that
/// listens everywhere is asked on loopback.
fn address(settings: &Settings) -> io::Result<SocketAddr> {
    let configured = config::admin_address(&settings.sources()).map_err(io::Error::other)?;
    if configured.ip().is_unspecified() {
        let loopback = if configured.is_ipv4() { "127.0.0.1" } else { "::1" };
        return (loopback, configured.port())
            .to_socket_addrs()?
            .next()
            .ok_or(io::ErrorKind::AddrNotAvailable.into());
    }
    Ok(configured)
}

/// One GET of the admin service. Blocks, for a few seconds at most.
pub(super) fn ask(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    status.map(|status| (status, body.to_owned())).ok_or_else(|| io::Error::other("that is not HTTP"))
}
