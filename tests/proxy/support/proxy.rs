//! The proxy itself, started as `tidegate run` starts it, on ports that the system picks.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use tidegate::app::{Running, Stop};
use tidegate::config;

use super::wire::{Message, PATIENCE, Wire, within};
use super::{CHAT, CHAT_PATH, JSON};

/// Settings beside the defaults, as the file has them: `limits.body_bytes = 10`.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    settings: BTreeMap<String, String>,
    variables: BTreeMap<String, String>,
}

impl Setup {
    /// One worker and `permits` permits that do not move.
    pub(crate) fn permits(permits: u32) -> Self {
        Self::default().set("scaling.policy", "fixed").set("scaling.max_permits", permits)
    }

    /// Sets one key.
    pub(crate) fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.settings.insert(key.to_owned(), value.to_string());
        self
    }

    /// A variable of the environment that a setting may refer to.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Starts the proxy in front of `http://upstream/v1`.
    pub(crate) fn before(self, upstream: SocketAddr) -> Proxy {
        let base_url = format!("http://{upstream}/v1");
        self.at(&base_url)
    }

    /// Starts the proxy in front of a base URL.
    pub(crate) fn at(mut self, base_url: &str) -> Proxy {
        for (key, value) in [
            ("listen.address", "127.0.0.1:0"),
            ("admin.address", "127.0.0.1:0"),
            ("listen.workers", "1"),
            ("telemetry.access_log", "off"),
            // scripted upstreams count connections and answer them in order
            ("upstream.0.prewarm", "false"),
            // and each request once
            ("retry.budget", "0"),
            ("retry.success_refund", "0"),
            ("upstream.0.name", "up"),
            ("upstream.0.base_url", base_url),
        ] {
            self.settings.entry(key.to_owned()).or_insert(value.to_owned());
        }
        // nor are they asked what nobody scripted
        for n in 0..9 {
            if self.settings.contains_key(&format!("upstream.{n}.name")) {
                self.settings.entry(format!("upstream.{n}.server_metrics")).or_insert("off".to_owned());
            }
        }
        let variable = |key: &str| format!("TIDEGATE_{}", key.replace('.', "__").to_ascii_uppercase());
        let mut environment = self.variables;
        environment.extend(self.settings.into_iter().map(|(k, v)| (variable(&k), v)));
        let no_files = |_: &std::path::Path| Err(io::ErrorKind::NotFound.into());
        let loaded = match config::parse("", "", &environment, &[], &no_files) {
            Ok(loaded) => loaded,
            Err(faults) => panic!("{faults}"),
        };
        let running = Running::start(&loaded.config).unwrap();
        Proxy { address: running.address(), admin: running.admin(), running: Some(running) }
    }
}

/// A proxy that runs. Dropped, it ends at once.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
    running: Option<Running>,
}

impl Proxy {
    /// A connection to it.
    pub(crate) async fn connect(&self) -> Wire {
        Wire::connect(self.address).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, method: &str, path: &str, fields: &[&str], body: &[u8]) -> Message {
        self.connect().await.ask(method, path, fields, body).await
    }

    /// Sends a request that takes a permit and does not wait for what comes of it.
    pub(crate) async fn chat(&self, fields: &[&str]) -> Wire {
        let mut client = self.connect().await;
        let fields = [fields, &[JSON]].concat();
        client.send(super::request("POST", CHAT_PATH, &fields, CHAT)).await;
        client
    }

    /// What ends it.
    pub(crate) fn stop(&self) -> Stop {
        self.running.as_ref().unwrap().stop()
    }

    /// Waits until it has ended.
    pub(crate) async fn join(mut self) {
        let running = self.running.take().unwrap();
        within("the proxy's end", tokio::task::spawn_blocking(move || running.join())).await.unwrap();
    }

    /// Asks the admin service.
    pub(crate) async fn admin(&self, path: &str) -> Message {
        Wire::connect(self.admin).await.ask("GET", path, &["connection: close"], b"").await
    }

    /// The sum of a metric's samples whose labels contain `label`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        sum(&self.admin("/metrics").await.text(), name, label)
    }

    /// Asks for a metric until it is as wanted.
    pub(crate) async fn until(&self, name: &str, label: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        let mut admin = Wire::connect(self.admin).await;
        let mut last = f64::NAN;
        let asking = async {
            loop {
                last = sum(&admin.ask("GET", "/metrics", &[], b"").await.text(), name, label);
                if wanted(last) {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, asking).await.is_err() {
            panic!("{name}{{{label}}} is {last}");
        }
        last
    }

    /// Waits until that many requests hold a permit.
    pub(crate) async fn in_flight(&self, wanted: u32) {
        self.until("tidegate_in_flight", "", |n| n == f64::from(wanted)).await;
    }

    /// Waits until that many requests wait for one.
    pub(crate) async fn queued(&self, wanted: u32) {
        self.until("tidegate_queue_requests", "", |n| n == f64::from(wanted)).await;
    }

    /// Waits until the breaker is in that state.
    pub(crate) async fn breaker(&self, state: &str) {
        let label = format!("state=\"{state}\"");
        self.until("tidegate_breaker_state", &label, |n| n == 1.0).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.stop().now();
        }
    }
}

fn sum(page: &str, name: &str, label: &str) -> f64 {
    page.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let whole_name = labels.is_empty() || labels.starts_with('{');
            (whole_name && labels.contains(label)).then(|| value.parse::<f64>().unwrap_or(f64::NAN))
        })
        .sum()
}
