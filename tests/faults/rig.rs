//! A proxy process, simulated upstreams on loopback, and a load through both.
//!
//! The proxy is the program itself, started as an operator starts it: what it holds (memory, file descriptors)
//! is its own, and it is asked for its metrics over HTTP. Used by the tests of faults, and by the long runs under
//! `benches/`.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tidegate::clock::Clock;
use tidegate::demo::load::Progress;
use tidegate::demo::{Law, Load, LoadReport, SimulatedLlm, Workload};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// How long something may take that takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that nobody uses go soon, so that those left behind show.
const QUICK: &str = "prewarm = false\nidle_timeout = \"1s\"\ndns_refresh = \"1s\"\n";
/// What sites behind a name are called.
const NAME: &str = "tide.test";

/// One upstream: how it behaves, and its settings beside its address.
pub(crate) struct Site {
    pub(crate) law: Law,
    pub(crate) settings: &'static str,
}

/// Everything, while it runs. Dropped, it ends what it started.
pub(crate) struct Rig {
    proxy: Process,
    pub(crate) upstreams: Vec<SimulatedLlm>,
    _listening: JoinSet<()>,
    clock: Clock,
}

#[derive(Default)]
struct Upstreams {
    clock: Option<Clock>,
    all: Vec<SimulatedLlm>,
    listening: JoinSet<()>,
}

/// The proxy's process and what it said.
struct Process {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    said: Arc<Mutex<Vec<String>>>,
    config: PathBuf,
    hosts: Option<PathBuf>,
}

/// What is held at the end, when nobody asks for anything any more.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Held {
    pub(crate) in_flight: f64,
    pub(crate) queued: f64,
    pub(crate) upstream: usize,
}

impl Rig {
    /// Starts an upstream per site and the proxy before them.
    pub(crate) async fn start(binary: &str, sites: Vec<Site>, settings: &str) -> Self {
        let mut rig = Upstreams::default();
        let mut config = settings.to_owned();
        for (index, site) in sites.into_iter().enumerate() {
            let address = rig.listen("127.0.0.1:0", site.law).await;
            let _ = write!(
                config,
                "\n[[upstream]]\nname = \"up{index}\"\nbase_url = \"http://{address}/v1\"\n{QUICK}{}\n",
                site.settings
            );
        }
        rig.before(Command::new(binary), config, None).await
    }

    /// The same, with all sites behind one name, which leads to the first. `None` where the system does not let
    /// a process have a hosts file of its own.
    #[allow(dead_code, reason = "it needs rights that tests may not have: only the long run does it")]
    pub(crate) async fn start_named(binary: &str, sites: Vec<Site>, settings: &str) -> Option<Self> {
        let own = ["--map-root-user", "--mount"];
        let allowed = Command::new("unshare").args(own).arg("true").stderr(Stdio::null()).status();
        if !allowed.is_ok_and(|s| s.success()) {
            return None;
        }
        let (mut rig, mut port) = (Upstreams::default(), 0);
        let site_settings = sites.first().map_or("", |s| s.settings);
        let config = |port| {
            format!(
                "{settings}\n[[upstream]]\nname = \"up0\"\nbase_url = \"http://{NAME}:{port}/v1\"\n\
                 {QUICK}{site_settings}\n"
            )
        };
        for (index, site) in sites.into_iter().enumerate() {
            port = rig.listen(&format!("127.0.0.{}:{port}", index + 1), site.law).await.port();
        }
        let hosts = scratch("hosts");
        write_hosts(&hosts, 1);
        let mut program = Command::new("unshare");
        let mounted = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
        program.args(own).args(["sh", "-c", mounted]).arg(&hosts).arg(binary);
        Some(rig.before(program, config(port), Some(hosts)).await)
    }

    /// The name leads to the site of this index from now on.
    #[allow(dead_code, reason = "the soak has no names")]
    pub(crate) fn rename(&self, index: usize) {
        if let Some(hosts) = &self.proxy.hosts {
            write_hosts(hosts, index + 1);
        }
    }

    /// Sends a workload through the proxy.
    pub(crate) async fn drive(&self, workload: &Workload, load: Load) -> LoadReport {
        let load = Load { base_url: format!("http://{}/v1", self.proxy.address), ..load };
        load.run(workload, self.clock, &Progress::default()).await.expect("a load that can be driven")
    }

    /// The page that Prometheus would scrape.
    pub(crate) async fn metrics(&self) -> String {
        let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let url = format!("http://{}/metrics", self.proxy.admin).parse().expect("a URL");
        let answer = client.get(url).await.expect("the admin service answers");
        let page = answer.into_body().collect().await.expect("a page").to_bytes();
        String::from_utf8(page.to_vec()).expect("text")
    }

    /// Waits until nothing is held; what still is when patience ends.
    pub(crate) async fn settle(&self) -> Held {
        let mut held = Held::default();
        let settling = async {
            loop {
                let page = self.metrics().await;
                held = Held {
                    in_flight: sum(&page, "tidegate_in_flight", ""),
                    queued: sum(&page, "tidegate_queue_requests", ""),
                    upstream: self.upstreams.iter().map(|u| u.stats().in_flight + u.stats().waiting).sum(),
                };
                if held == Held::default() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, settling).await;
        held
    }

    /// Open file descriptors of the proxy.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.proxy.child.id())).map_or(0, Iterator::count)
    }

    /// The same, once they are at most so many, or patience ends: unused connections live for a second or two.
    #[allow(dead_code, reason = "the soak looks all the time")]
    pub(crate) async fn descriptors_settled(&self, most: usize) -> usize {
        let settling = async {
            while self.descriptors() > most {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, settling).await;
        self.descriptors()
    }

    /// Resident memory of the proxy, in KiB.
    #[allow(dead_code, reason = "the soak reads it, the others do not")]
    pub(crate) fn memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.proxy.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default()
    }

    /// Processor time that the proxy has used, in seconds.
    pub(crate) fn processor_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.proxy.child.id()));
        let stat = stat.unwrap_or_default();
        // user and system time are the 14th and 15th; the name in brackets may hold anything
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        fields.filter_map(|n| n.parse::<f64>().ok()).sum::<f64>() / 100.0
    }

    /// Lines that the proxy logged.
    pub(crate) fn said(&self) -> Vec<String> {
        self.proxy.said.lock().expect("no panic under it").clone()
    }
}

impl Upstreams {
    async fn listen(&mut self, address: &str, law: Law) -> SocketAddr {
        let clock = *self.clock.get_or_insert_with(Clock::start);
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("a port");
        let llm = SimulatedLlm::new(law, self.all.len() as u64, clock);
        let serving = llm.clone();
        self.listening.spawn(async move {
            serving.listen(listener, std::future::pending()).await.expect("its port again");
        });
        self.all.push(llm);
        address
    }

    async fn before(self, program: Command, config: String, hosts: Option<PathBuf>) -> Rig {
        let proxy = tokio::task::spawn_blocking(move || Process::start(program, &config, hosts)).await;
        Rig {
            proxy: proxy.expect("the proxy starts"),
            upstreams: self.all,
            _listening: self.listening,
            clock: self.clock.expect("an upstream"),
        }
    }
}

/// A file's name that nobody else has.
fn scratch(what: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&folder).expect("a folder");
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    folder.join(format!("tidegate-rig-{}-{number}.{what}", std::process::id()))
}

/// In place: the file is mounted somewhere.
fn write_hosts(path: &Path, last: usize) {
    std::fs::write(path, format!("127.0.0.{last} {NAME}\n127.0.0.1 localhost\n")).expect("a file");
}

impl Process {
    fn start(mut program: Command, config: &str, hosts: Option<PathBuf>) -> Self {
        let path = scratch("toml");
        std::fs::write(&path, config).expect("a file");
        let mut child = program
            .args(["run", "--config"])
            .arg(&path)
            .env("NO_COLOR", "1")
            .env("RIG_GOOD_KEY", "good")
            .env("RIG_DEAD_KEY", "dead")
            .env("TIDEGATE_LISTEN__ADDRESS", "127.0.0.1:0")
            .env("TIDEGATE_ADMIN__ADDRESS", "127.0.0.1:0")
            .env("TIDEGATE_TELEMETRY__ACCESS_LOG", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = child.stderr.take().expect("its log");
        let said = Arc::new(Mutex::new(Vec::new()));
        let (heard, (tell, told)) = (said.clone(), mpsc::channel());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let (Some(address), Some(admin)) = (field(&line, "address="), field(&line, "admin=")) {
                    let _ = tell.send((address, admin));
                }
                heard.lock().expect("no panic under it").push(line);
            }
        });
        let Ok((address, admin)) = told.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the proxy did not start: {:?}\n{config}", said.lock().expect("no panic under it"));
        };
        Self { child, address, admin, said, config: path, hosts }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.config);
        let _ = self.hosts.as_ref().map(std::fs::remove_file);
    }
}

pub(crate) fn field(line: &str, name: &str) -> Option<SocketAddr> {
    let rest = &line[line.find(name)? + name.len()..];
    rest.split_whitespace().next()?.parse().ok()
}

/// Adds up the samples of a metric whose labels contain `label`.
pub(crate) fn sum(page: &str, name: &str, label: &str) -> f64 {
    page.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| line.contains(label))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}
