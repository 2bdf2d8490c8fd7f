//! One `[[upstream]]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use hyper::http::uri::PathAndQuery;

use crate::policy::supply::{EndpointParams, routing};
use crate::policy::units::{Invalid, checked};

/// A secret: it can be used, but not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one header it belongs in.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// What becomes of a response whose client has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDisconnect {
    /// Its connection is closed, which servers take as a word to stop.
    #[default]
    Cancel,
    /// It is read to its end, for its `usage`, within `drain_limit`.
    Drain,
}

/// Whether the server's own metrics are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServerMetrics {
    /// From `/metrics` of a self-hosted upstream, as long as it answers there with names that are known.
    #[default]
    Auto,
    /// No.
    Off,
    /// From this path of its origin.
    Path(String),
}

/// Where requests go, and how patient to be with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Its name on metrics, in logs and in `x-tidegate-upstream`.
    pub name: String,
    /// What stands before `/chat/completions`, as in an SDK's `base_url`.
    pub base_url: Uri,
    /// The key to send instead of the client's; absent: the client's own passes.
    pub api_key: Option<Secret>,
    /// Several keys to send in turn, in place of the one. An empty one is not sent.
    pub api_keys: Vec<Secret>,
    /// The models it has under other names: what clients ask for, and what it calls that.
    pub rename: BTreeMap<String, String>,
    /// What the choice between upstreams has to know: models, weight, tier, limits.
    pub supply: EndpointParams,
    /// Speak HTTP/2 to it.
    pub http2: bool,
    /// PEM file with further certificate authorities to trust.
    pub ca_file: Option<PathBuf>,
    /// For name look-up, TCP and TLS together.
    pub connect_timeout: Duration,
    /// From the request's start to the response's head.
    pub first_byte_timeout: Duration,
    /// Between two pieces of a response.
    pub stream_idle_timeout: Duration,
    /// From the request's start to the response's end; zero: as long as it takes.
    pub total_timeout: Duration,
    /// What becomes of a response whose client has left.
    pub on_disconnect: OnDisconnect,
    /// How long such a response may still be read.
    pub drain_limit: Duration,
    /// How long an unused connection is kept: a little less than the upstream keeps it.
    pub idle_timeout: Duration,
    /// Open connections before the requests come that need them.
    pub prewarm: bool,
    /// The age at which a connection has been replaced; zero: never because of its age.
    pub refresh: Duration,
    /// How often its name is looked up again, for connections to addresses that have left; zero: each new connection
    /// looks it up, and no connection leaves its address.
    pub dns_refresh: Duration,
    /// The path of its origin that answers 2xx while it is well; absent: nobody asks.
    pub check_path: Option<String>,
    /// Time between two such questions.
    pub check_interval: Duration,
    /// Whether the server's own metrics are read.
    pub server_metrics: ServerMetrics,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            name: "default".into(),
            base_url: Uri::from_static("https://api.openai.com/v1"),
            api_key: None,
            api_keys: Vec::new(),
            rename: BTreeMap::new(),
            supply: EndpointParams::default(),
            http2: false,
            ca_file: None,
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(600),
            stream_idle_timeout: Duration::from_secs(120),
            total_timeout: Duration::ZERO,
            on_disconnect: OnDisconnect::Cancel,
            drain_limit: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(50),
            prewarm: true,
            refresh: Duration::from_secs(300),
            dns_refresh: Duration::from_secs(30),
            check_path: None,
            check_interval: Duration::from_secs(10),
            server_metrics: ServerMetrics::Auto,
        }
    }
}

/// One upstream's keys are tried in turn: more of them are a mistake, not a plan.
const MAX_KEYS: usize = 1000;
/// Said by `config` too, which alone sees a key that is set and empty.
pub const BOTH_KEYS: &str = "api_key is set as well: put that key into api_keys, or remove one of the two";

/// Keys that stand in examples. Sent to a provider they only earn a 401 that says nothing of the cause.
fn is_placeholder(key: &str) -> bool {
    let lower = key.to_ascii_lowercase();
    lower.starts_with("your_")
        || lower.starts_with("your-")
        || lower.starts_with("sk-your")
        || lower.starts_with("sk-...")
        || lower.starts_with("<")
        || (lower.starts_with("sk-x") && lower[3..].bytes().all(|b| b == b'x'))
        || lower == "changeme"
        || lower == "sk-..."
}

impl Params {
    /// Checks the settings.
    ///
    /// # Errors
    /// Every setting the upstream's client cannot work with, a placeholder key among them.
    pub fn try_new(self) -> Result<Self, Vec<Invalid>> {
        let mut faults = Vec::new();
        if self.name.is_empty()
            || self.name.len() > 64
            || !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            faults.push(Invalid::new("name", "must be 1 to 64 of a-z A-Z 0-9 - _ ."));
        }
        match self.base_url.scheme_str() {
            Some("http" | "https") => {}
            _ => faults.push(Invalid::new("base_url", "must begin with http:// or https://")),
        }
        if self.base_url.authority().is_none_or(|a| a.host().is_empty()) {
            faults.push(Invalid::new("base_url", "names no host"));
        }
        if self.base_url.authority().is_some_and(|a| a.as_str().contains('@')) {
            faults.push(Invalid::new("base_url", "must not contain a user or password; use api_key"));
        }
        if self.base_url.query().is_some() {
            faults.push(Invalid::new("base_url", "must not contain a query (`?`)"));
        }
        faults.extend(self.key_faults());
        faults.extend(self.rename_faults());
        faults.extend(self.path_faults());
        if let Err(supply) = self.supply.clone().try_new() {
            faults.extend(supply);
        }
        for (key, value, least, or) in [
            ("connect_timeout", self.connect_timeout, 1, ""),
            ("first_byte_timeout", self.first_byte_timeout, 1, ""),
            ("stream_idle_timeout", self.stream_idle_timeout, 1, ""),
            ("total_timeout", self.total_timeout, 1, ", or 0s for as long as it takes"),
            ("idle_timeout", self.idle_timeout, 100, ""),
            ("drain_limit", self.drain_limit, 1, ""),
        ] {
            if value < Duration::from_millis(least) && (or.is_empty() || !value.is_zero()) {
                faults.push(Invalid::new(key, format!("must be at least {least}ms{or}")));
            }
        }
        if self.drain_limit > Duration::from_secs(3600) {
            faults.push(Invalid::new("drain_limit", "must be at most 1h: nobody waits for what is drained"));
        }
        if !self.refresh.is_zero() && self.refresh < Duration::from_secs(10) {
            faults.push(Invalid::new("refresh", "must be at least 10s, or 0s for never"));
        }
        if !self.dns_refresh.is_zero() && self.dns_refresh < Duration::from_secs(1) {
            faults.push(Invalid::new("dns_refresh", "must be at least 1s, or 0s for each new connection"));
        }
        if self.check_interval < Duration::from_secs(1) {
            faults.push(Invalid::new("check_interval", "must be at least 1s"));
        }
        checked(self, faults)
    }

    /// The keys to send in place of the client's; none: the client's own passes.
    pub fn keys(&self) -> impl Iterator<Item = &Secret> {
        self.api_key.iter().chain(&self.api_keys).filter(|key| !key.reveal().is_empty())
    }

    /// Whether each client's own key passes to it.
    #[must_use]
    pub fn takes_clients_keys(&self) -> bool {
        self.keys().next().is_none()
    }

    /// Whether a client's key that is meant for the one may as well go to the other: it is the same host, or both
    /// are servers of one's own, where the key is a word that nobody looks at.
    #[must_use]
    pub fn is_of_one_house_with(&self, other: &Self) -> bool {
        let host = |params: &Self| params.base_url.host().map(str::to_ascii_lowercase);
        host(self) == host(other) || (self.looks_self_hosted() && other.looks_self_hosted())
    }

    /// The models that its settings name whole.
    pub fn named_models(&self) -> impl Iterator<Item = &str> {
        let patterns = self.supply.models.iter().filter(|pattern| !pattern.ends_with('*'));
        patterns.chain(self.rename.keys()).map(String::as_str)
    }

    /// Whether it is likely a server of one's own, as opposed to a provider's: over plain HTTP, under an address,
    /// or under a name that no public DNS has. Asking a provider for `/metrics` each second would be rude.
    #[must_use]
    pub fn looks_self_hosted(&self) -> bool {
        const PRIVATE: [&str; 6] = [".local", ".internal", ".lan", ".home.arpa", ".svc", ".localhost"];
        let host = self.base_url.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
        let host = host.trim_end_matches('.');
        self.base_url.scheme_str() != Some("https")
            || host.parse::<std::net::IpAddr>().is_ok()
            || !host.contains('.')
            || PRIVATE.iter().any(|ending| host.ends_with(ending))
    }

    fn key_faults(&self) -> Vec<Invalid> {
        let mut faults = Vec::new();
        if let Some(wrong) = self.api_key.as_ref().and_then(fault_of_key) {
            faults.push(Invalid::new("api_key", wrong));
        }
        if self.api_key.is_some() && !self.api_keys.is_empty() {
            faults.push(Invalid::new("api_keys", BOTH_KEYS));
        }
        for (i, key) in self.api_keys.iter().enumerate() {
            let same = |other: &Secret| other == key && !key.reveal().is_empty();
            let earlier = self.api_keys.iter().take(i).position(same);
            if let Some(wrong) = fault_of_key(key) {
                faults.push(Invalid::new("api_keys", format!("key {} {wrong}", i + 1)));
            } else if let Some(first) = earlier {
                faults
                    .push(Invalid::new("api_keys", format!("keys {} and {} are the same", first + 1, i + 1)));
            }
        }
        if self.api_keys.len() > MAX_KEYS {
            faults.push(Invalid::new("api_keys", format!("must be at most {MAX_KEYS} keys")));
        }
        faults
    }

    fn rename_faults(&self) -> Vec<Invalid> {
        let wrong = self.rename.iter().filter_map(|(alias, name)| {
            if alias.is_empty() || name.is_empty() {
                Some("has an empty name".to_owned())
            } else if !routing::serves(&self.supply.models, alias) {
                Some(format!("{alias:?} is none of the models this upstream serves: add it to models"))
            } else {
                None
            }
        });
        wrong.map(|message| Invalid::new("rename", message)).collect()
    }

    fn path_faults(&self) -> Vec<Invalid> {
        let metrics = match &self.server_metrics {
            ServerMetrics::Path(path) => Some(path),
            ServerMetrics::Auto | ServerMetrics::Off => None,
        };
        let paths = [("check_path", self.check_path.as_ref()), ("server_metrics", metrics)];
        let wrong = |path: &&String| !path.starts_with('/') || path.parse::<PathAndQuery>().is_err();
        paths
            .into_iter()
            .filter(|(_, path)| path.as_ref().is_some_and(wrong))
            .map(|(key, _)| Invalid::new(key, "must be a path such as \"/health\", without the host"))
            .collect()
    }
}

fn fault_of_key(key: &Secret) -> Option<&'static str> {
    if is_placeholder(key.reveal()) {
        Some(
            "is a placeholder from an example, not a key: set it to your provider's key, or remove \
             it so that each client's own key passes through",
        )
    } else if !key.reveal().bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        Some("contains a space, a line break or a character outside ASCII, which no HTTP header can carry")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_is_never_or_not_too_often() {
        let with = |secs| Params { refresh: Duration::from_secs(secs), ..Params::default() }.try_new();
        assert!(with(0).is_ok() && with(10).is_ok());
        assert_eq!(with(9).unwrap_err()[0].key, "refresh");
    }

    fn faults(params: Params) -> Vec<String> {
        let faults = params.try_new().err().unwrap_or_default();
        faults.into_iter().map(|i| format!("{}: {}", i.key, i.message)).collect()
    }

    #[test]
    fn several_keys_are_all_real_and_all_different() {
        let keys = |keys: &[&str]| Params {
            api_keys: keys.iter().map(|k| Secret::new((*k).to_owned())).collect(),
            ..Params::default()
        };
        assert!(faults(keys(&["a", "b"])).is_empty());
        assert_eq!(faults(keys(&["a", "b", "a"])), ["api_keys: keys 1 and 3 are the same"]);
        assert!(faults(keys(&["a", "sk-xxx"]))[0].starts_with("api_keys: key 2 is a placeholder"));
        assert!(faults(keys(&["a", "b c"]))[0].starts_with("api_keys: key 2 contains a space"));
        let both = Params { api_key: Some(Secret::new("c".into())), ..keys(&["a"]) };
        assert_eq!(both.keys().count(), 2);
        assert_eq!(faults(both), [format!("api_keys: {BOTH_KEYS}")]);
    }

    #[test]
    fn a_name_is_changed_only_where_the_upstream_serves_it() {
        let with = |models: &[&str], alias: &str, name: &str| Params {
            rename: [(alias.to_owned(), name.to_owned())].into(),
            supply: EndpointParams {
                models: models.iter().map(|m| (*m).to_owned()).collect(),
                ..Default::default()
            },
            ..Params::default()
        };
        assert!(faults(with(&["*"], "a", "b")).is_empty());
        assert!(faults(with(&["a"], "a", "b")).is_empty());
        assert!(faults(with(&["b"], "a", "b"))[0].starts_with("rename: \"a\" is none of the models"));
        assert_eq!(faults(with(&["*"], "a", "")), ["rename: has an empty name"]);
        assert_eq!(faults(with(&["*"], "", "b")), ["rename: has an empty name"]);
    }

    #[test]
    fn paths_begin_with_a_slash_and_the_policy_s_faults_are_told() {
        let check = |path: &str| faults(Params { check_path: Some(path.into()), ..Params::default() });
        assert!(check("/health?x=1").is_empty());
        for path in ["", "health", "http://x/health", "/a b"] {
            assert!(check(path)[0].starts_with("check_path: must be a path"), "{path}");
        }
        let metrics = ServerMetrics::Path("metrics".into());
        assert!(
            faults(Params { server_metrics: metrics, ..Params::default() })[0].starts_with("server_metrics")
        );
        let supply = EndpointParams { weight: 0, ..EndpointParams::default() };
        assert!(faults(Params { supply, ..Params::default() })[0].starts_with("weight: must be at least 1"));
    }

    #[test]
    fn a_provider_is_told_from_a_server_of_one_s_own() {
        let own = |url: &'static str| {
            Params { base_url: Uri::from_static(url), ..Params::default() }.looks_self_hosted()
        };
        for url in ["http://llm.example.com/v1", "https://10.0.0.7/v1", "https://[::1]/v1", "https://vllm/v1"]
        {
            assert!(own(url), "{url}");
        }
        assert!(own("https://vllm.models.svc.cluster.local/v1") && own("https://vllm.models.svc/v1"));
        for url in
            ["https://api.openai.com/v1", "https://x.openai.azure.com", "https://api.anthropic.com./v1"]
        {
            assert!(!own(url), "{url}");
        }
    }

    #[test]
    fn a_client_s_key_is_for_one_house() {
        let one = |a: &'static str, b: &'static str| {
            let of = |url| Params { base_url: Uri::from_static(url), ..Params::default() };
            of(a).is_of_one_house_with(&of(b))
        };
        assert!(one("http://10.0.0.1:8000/v1", "http://10.0.0.2:8000/v1"));
        assert!(one("https://api.openai.com/v1", "https://API.openai.com/v2"));
        assert!(!one("https://api.openai.com/v1", "https://openrouter.ai/api/v1"));
        assert!(!one("https://api.openai.com/v1", "http://10.0.0.1:8000/v1"));
    }

    #[test]
    fn placeholder_keys_are_refused_and_the_dummies_of_local_servers_are_not() {
        for key in ["YOUR_API_KEY", "your-key", "sk-xxx", "sk-XXXXXXXX", "<key>", "sk-your-key", "sk-..."] {
            assert!(is_placeholder(key), "{key}");
        }
        for key in ["EMPTY", "dummy", "sk-no-key-required", "sk-proj-abc", "none", "sk-x1y2"] {
            assert!(!is_placeholder(key), "{key}");
        }
    }
}
