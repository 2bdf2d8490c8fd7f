//! The simulated upstream's connections: how they are taken, served, broken, and refused while it is dead.
//!
//! What a well-behaved HTTP server never sends (half a head, interim answers without end) is written here by
//! hand. Called by the demo's command, by tests, and by whoever connects pipes in memory.

use std::future::Future;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::faults::Manners;
use super::server::SimulatedLlm;
use super::tasks::{Spawner, Tasks};

/// The longest head that is read by hand.
const HEAD_LIMIT: usize = 64 << 10;
/// Without end, as far as any client is concerned.
const FLOOD: usize = 10_000;
const INTERIM: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </tide>; rel=preload\r\n\r\n";
const HALF_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: appl";

impl SimulatedLlm {
    /// Serves one connection, HTTP/1.1 or HTTP/2, until it ends or a fault ends it.
    pub async fn serve<IO>(&self, io: IO)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if self.slots.is_down() {
            return;
        }
        let manners = self.law.faults.manners(self.slots.connected());
        // Ends h2's streams with the connection.
        let tasks = Tasks::new();
        let mut builder = hyper_util::server::conn::auto::Builder::new(tasks.spawner());
        builder.http1().keep_alive(!self.law.faults.one_shot);
        let service = hyper::service::service_fn(|request| {
            let upstream = self.clone();
            async move { upstream.handle(request).await }
        });
        let connection = async {
            match manners {
                // It ends in an error when the client vanishes or a fault hangs up: `stats` tells which.
                Manners::Proper => drop(builder.serve_connection(TokioIo::new(io), service).await),
                rude => self.misbehave(rude, io).await,
            }
        };
        tokio::select! {
            () = connection => {}
            () = self.slots.death() => {}
        }
    }

    /// Waits for a request and answers it as no server should.
    async fn misbehave<IO: AsyncRead + AsyncWrite + Unpin>(&self, manners: Manners, mut io: IO) {
        if !matches!(io.read(&mut [0]).await, Ok(1)) {
            return;
        }
        self.slots.faulted();
        match manners {
            // A socket that is closed with unread bytes in it resets its connection.
            Manners::Reset | Manners::Proper => {}
            Manners::HalfHead => {
                read_head(&mut io).await;
                if io.write_all(HALF_HEAD).await.is_ok() {
                    let _ = io.flush().await;
                }
            }
            Manners::Interim => {
                read_head(&mut io).await;
                for _ in 0..FLOOD {
                    if io.write_all(INTERIM).await.is_err() {
                        break;
                    }
                }
            }
        }
    }

    /// Serves every connection of `listener` until `shutdown`, then drops those still open. While the upstream
    /// is dead its port is closed.
    ///
    /// # Errors
    /// What `accept` failed with, if it cannot go on, and what binding the port again failed with.
    pub async fn listen(
        self,
        mut listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> std::io::Result<()> {
        let address = listener.local_addr()?;
        tokio::pin!(shutdown);
        loop {
            let tasks = Tasks::new();
            let end = tokio::select! {
                () = &mut shutdown => Some(Ok(())),
                e = self.accept(&listener, tasks.spawner()) => Some(Err(e)),
                () = self.slots.death() => None,
            };
            drop(listener);
            tasks.end().await;
            if let Some(end) = end {
                return end;
            }
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                () = self.slots.life() => {}
            }
            listener = TcpListener::bind(address).await?;
        }
    }

    /// Takes connections until that fails.
    async fn accept(&self, listener: &TcpListener, spawner: Spawner) -> std::io::Error {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    // Without it each event waits for the acknowledgement of the one before.
                    if stream.set_nodelay(true).is_ok() {
                        let upstream = self.clone();
                        spawner.spawn(async move { upstream.serve(stream).await });
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => {}
                Err(e) => return e,
            }
        }
    }
}

/// Up to the empty line.
async fn read_head<IO: AsyncRead + Unpin>(io: &mut IO) {
    let (mut seen, mut last) = (0, [0; 4]);
    let mut byte = [0];
    while seen < HEAD_LIMIT && last != *b"\r\n\r\n" && matches!(io.read(&mut byte).await, Ok(1)) {
        last.rotate_left(1);
        last[3] = byte[0];
        seen += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::demo::faults::{Faults, Window};
    use crate::demo::model::Law;
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;
    use serde_json::Value;
    use std::net::SocketAddr;
    use std::time::Duration;
    use tokio::io::DuplexStream;
    use tokio::net::TcpStream;
    use tokio::task::JoinSet;

    #[tokio::test]
    async fn it_listens_on_a_socket_until_told_to_stop() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let llm = SimulatedLlm::new(Law { prefill: Duration::ZERO, ..Law::default() }, 1, Clock::start());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut server = tokio::task::JoinSet::new();
        server.spawn(llm.clone().listen(listener, async { drop(stopped.await) }));
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let get = async |path: &str| {
            let uri = format!("http://{address}{path}").parse().unwrap();
            let bytes = client.get(uri).await.unwrap().into_body().collect().await.unwrap().to_bytes();
            serde_json::from_slice::<Value>(&bytes).unwrap()
        };
        assert_eq!(get("/v1/models").await["data"][0]["id"], "tide-1");
        assert_eq!(get("/v1/models/tide-1").await["object"], "model");
        assert_eq!(get("/sim/stats").await["in_flight"], 0);
        stop.send(()).unwrap();
        server.join_next().await.unwrap().unwrap().unwrap();
        assert!(tokio::net::TcpStream::connect(address).await.is_err());
    }

    const GET: &[u8] = b"GET /v1/models HTTP/1.1\r\nhost: sim\r\n\r\n";

    fn sim(faults: Faults) -> SimulatedLlm {
        SimulatedLlm::new(Law { faults, ..Law::default() }, 1, Clock::start())
    }

    /// What comes back on the `n`th connection, up to its end or to `most` bytes.
    async fn talk(llm: &SimulatedLlm, most: usize) -> String {
        let (mut near, far): (DuplexStream, DuplexStream) = tokio::io::duplex(8 << 10);
        let mut tasks = JoinSet::new();
        let serving = llm.clone();
        tasks.spawn(async move { serving.serve(far).await });
        near.write_all(GET).await.unwrap();
        let mut text = Vec::new();
        let mut chunk = [0; 256];
        while text.len() < most {
            match near.read(&mut chunk).await {
                Ok(n) if n > 0 => text.extend_from_slice(&chunk[..n]),
                _ => break,
            }
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn chosen_connections_misbehave() {
        let llm = sim(Faults {
            reset_connection_every: 2,
            half_head_connection_every: 3,
            interim_connection_every: 5,
            ..Faults::default()
        });
        let mut said = Vec::new();
        for _ in 0..5 {
            said.push(talk(&llm, 100).await);
        }
        assert!(said[0].starts_with("HTTP/1.1 200 OK\r\n"), "{}", said[0]);
        assert_eq!((said[1].as_str(), said[3].as_str()), ("", ""));
        assert_eq!(said[2].as_bytes(), HALF_HEAD);
        assert!(said[4].len() >= 100 && said[4].starts_with("HTTP/1.1 103 Early Hints\r\n"));
        let stats = llm.stats();
        assert_eq!((stats.connections, stats.faulted), (5, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn interim_answers_come_without_end_until_the_client_leaves() {
        let llm = sim(Faults { interim_connection_every: 1, ..Faults::default() });
        assert!(talk(&llm, 200_000).await.len() >= 200_000);
    }

    async fn listening(llm: &SimulatedLlm, tasks: &mut JoinSet<()>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = llm.clone();
        tasks.spawn(async move { serving.listen(listener, std::future::pending()).await.unwrap() });
        address
    }

    async fn refused(address: SocketAddr) {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    async fn connects(address: SocketAddr) -> TcpStream {
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn a_reset_is_one_of_the_transport() {
        let llm = sim(Faults { reset_connection_every: 1, ..Faults::default() });
        let mut tasks = JoinSet::new();
        let address = listening(&llm, &mut tasks).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        let error = stream.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn killed_it_closes_its_port_and_what_is_open_and_restarted_it_has_the_same_port() {
        let llm = sim(Faults::default());
        let mut tasks = JoinSet::new();
        let address = listening(&llm, &mut tasks).await;
        let mut open = TcpStream::connect(address).await.unwrap();
        open.write_all(GET).await.unwrap();
        assert!(open.read(&mut [0; 16]).await.unwrap() > 0);
        llm.kill();
        let mut rest = Vec::new();
        // to its end, whatever it is
        let _ = open.read_to_end(&mut rest).await;
        refused(address).await;
        llm.restart();
        let mut again = connects(address).await;
        again.write_all(GET).await.unwrap();
        assert!(again.read(&mut [0; 16]).await.unwrap() > 0);
    }

    #[tokio::test]
    async fn a_window_of_death_closes_the_port_too() {
        let window = Window::new(Duration::ZERO, Duration::from_millis(50));
        let llm = sim(Faults { down: vec![window], ..Faults::default() });
        let mut tasks = JoinSet::new();
        let address = listening(&llm, &mut tasks).await;
        refused(address).await;
        connects(address).await;
        assert!(llm.slots.elapsed() >= window.to);
    }
}
