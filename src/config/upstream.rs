//! `[[upstream]]`, and the two variables every OpenAI SDK knows, which can stand for one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hyper::Uri;

use super::faults::Place;
use super::reader::{Reader, variable};
use super::secret::{self, Found};
use super::together;
use super::values::{self, Value, choice};
use crate::policy::supply::{ConcurrencyMode, EndpointParams};
use crate::upstream::{BOTH_KEYS, OnDisconnect, Params, Secret, ServerMetrics};

pub(super) const LIST: &str = "upstream";
/// Far more than anybody has; it keeps a slip from making a million of them.
const MAX_UPSTREAMS: usize = 1000;

/// What a reference to a secret may look into.
pub(super) struct Vault<'a> {
    pub(super) environment: &'a BTreeMap<String, String>,
    pub(super) read_file: &'a dyn Fn(&Path) -> io::Result<String>,
}

/// Reads the upstreams; that there is none is a fault. There is always one in what comes back.
pub(super) fn read(reader: &mut Reader, vault: &Vault<'_>, warnings: &mut Vec<String>) -> Vec<Params> {
    let described = count(reader);
    if described.is_none() {
        from_openai(reader, vault.environment, warnings);
    }
    let sections = (0..described.unwrap_or(1).max(1)).map(|i| format!("{LIST}.{i}"));
    let upstreams: Vec<Params> = sections
        .map(|section| one(reader, vault, warnings, &section, described.is_some_and(|n| n > 0)))
        .collect();
    together::check(reader, &upstreams, warnings);
    upstreams
}

fn one(
    reader: &mut Reader,
    vault: &Vault<'_>,
    warnings: &mut Vec<String>,
    section: &str,
    described: bool,
) -> Params {
    let key = |name: &str| format!("{section}.{name}");
    let d = Params::default();
    let on_disconnect = choice(&[("cancel", OnDisconnect::Cancel), ("drain", OnDisconnect::Drain)]);
    let mut time =
        |name: &str, default: Duration| reader.take(&key(name), values::duration).unwrap_or(default);
    let d = Params {
        connect_timeout: time("connect_timeout", d.connect_timeout),
        first_byte_timeout: time("first_byte_timeout", d.first_byte_timeout),
        stream_idle_timeout: time("stream_idle_timeout", d.stream_idle_timeout),
        total_timeout: time("total_timeout", d.total_timeout),
        drain_limit: time("drain_limit", d.drain_limit),
        idle_timeout: time("idle_timeout", d.idle_timeout),
        refresh: time("refresh", d.refresh),
        dns_refresh: time("dns_refresh", d.dns_refresh),
        check_interval: time("check_interval", d.check_interval),
        ..d
    };
    let params = Params {
        name: reader.take(&key("name"), values::string).unwrap_or(d.name),
        base_url: reader.take(&key("base_url"), values::url).unwrap_or(d.base_url),
        api_key: api_key(reader, vault, warnings, section),
        api_keys: api_keys(reader, vault, warnings, section),
        rename: rename(reader, section),
        supply: supply(reader, section, d.supply),
        http2: reader.take(&key("http2"), values::boolean).unwrap_or(d.http2),
        ca_file: reader.take(&key("ca_file"), values::path),
        on_disconnect: reader.take(&key("on_disconnect"), on_disconnect).unwrap_or(d.on_disconnect),
        prewarm: reader.take(&key("prewarm"), values::boolean).unwrap_or(d.prewarm),
        check_path: reader.take(&key("check_path"), values::string),
        server_metrics: reader.take(&key("server_metrics"), server_metrics).unwrap_or(d.server_metrics),
        ..d
    };
    let base_url = key("base_url");
    if described && !reader.is_set(&base_url) && !reader.is_faulty(&base_url) {
        // Falling back to a default here would send a forgotten line's traffic, keys and all, to somebody else.
        reader.fault(
            &base_url,
            "is missing: write what an SDK has as its base_url, such as \"https://api.openai.com/v1\" \
             (OPENAI_BASE_URL counts only where nothing else describes the upstream)",
        );
    }
    reader.check(&[section], params, Params::try_new)
}

fn supply(reader: &mut Reader, section: &str, d: EndpointParams) -> EndpointParams {
    let key = |name: &str| format!("{section}.{name}");
    EndpointParams {
        models: reader.take(&key("models"), values::strings).unwrap_or(d.models),
        weight: reader.take(&key("weight"), values::count).unwrap_or(d.weight),
        tier: reader.take(&key("tier"), values::count).unwrap_or(d.tier),
        concurrency: reader.take(&key("concurrency"), concurrency).unwrap_or(d.concurrency),
        requests_per_minute: reader.take(&key("requests_per_minute"), values::count),
        tokens_per_minute: reader.take(&key("tokens_per_minute"), values::count),
        rate_limit_buffer: reader.take(&key("rate_limit_buffer"), values::fraction),
        slow_start: reader.take(&key("slow_start"), values::duration).unwrap_or(d.slow_start),
    }
}

/// A word, or a number of requests.
fn concurrency(value: &Value) -> Result<ConcurrencyMode, String> {
    use ConcurrencyMode as Mode;
    let number = match value {
        Value::Integer(_) => true,
        Value::Text(text) => text.bytes().all(|b| b.is_ascii_digit()),
        _ => false,
    };
    if number {
        return values::count(value).map(Mode::Fixed);
    }
    choice(&[("auto", Mode::Auto), ("learn", Mode::Learn), ("unlimited", Mode::Unlimited)])(value)
        .map_err(|message| format!("{message}; or a number of requests such as 16"))
}

/// A word, or a path.
fn server_metrics(value: &Value) -> Result<ServerMetrics, String> {
    match values::string(value)? {
        path if path.starts_with('/') => Ok(ServerMetrics::Path(path)),
        _ => choice(&[("auto", false), ("off", true)])(value)
            .map(|off| if off { ServerMetrics::Off } else { ServerMetrics::Auto })
            .map_err(|message| format!("{message}; or a path such as \"/metrics\"")),
    }
}

fn rename(reader: &mut Reader, section: &str) -> BTreeMap<String, String> {
    let key = format!("{section}.rename");
    let below = reader.children(&key);
    for name in &below {
        // a variable's name has no case and not every sign: the alias in it would be another one
        let message = format!("write all names in one variable: {}=alias=name,other=name", variable(&key));
        reader.close(&format!("{key}.{name}"), message);
    }
    reader.take(&key, values::names).unwrap_or_default()
}

/// How many upstreams are described: they are numbered from 0, and nothing else stands among them. `None`: none
/// is; `Some(0)`: there are faults in place of one.
fn count(reader: &mut Reader) -> Option<usize> {
    if reader.is_written(LIST) {
        reader.close(LIST, "is a list: write [[upstream]], with two brackets on each side");
        return Some(0);
    }
    let indices = reader.children(LIST);
    if indices.is_empty() {
        return None;
    }
    let mut numbers = BTreeSet::new();
    for index in &indices {
        match index.parse::<usize>().ok().filter(|n| n.to_string() == *index) {
            Some(n) if reader.is_set(&format!("{LIST}.{n}")) => {
                let message = "expected a table of settings, as [[upstream]] begins one";
                reader.close(&format!("{LIST}.{index}"), message);
                return Some(0);
            }
            Some(n) => {
                numbers.insert(n);
            }
            None => {
                let message = "upstreams are numbered: TIDEGATE_UPSTREAM__0__BASE_URL";
                reader.close(&format!("{LIST}.{index}"), message);
            }
        }
    }
    let count = numbers.iter().zip(0..MAX_UPSTREAMS).take_while(|(n, i)| *n == i).count();
    for n in numbers.iter().skip(count) {
        let message = if *n < MAX_UPSTREAMS {
            format!("there is no upstream {count}: they are numbered from 0 without a gap")
        } else {
            format!("there are at most {MAX_UPSTREAMS} upstreams")
        };
        reader.close(&format!("{LIST}.{n}"), message);
    }
    Some(count)
}

/// The two variables that every SDK knows, where nothing else describes an upstream.
fn from_openai(reader: &mut Reader, environment: &BTreeMap<String, String>, warnings: &mut Vec<String>) {
    let variable = |name: &str| environment.get(name).map(|value| value.trim().to_owned());
    let Some(base_url) = variable("OPENAI_BASE_URL").filter(|url| !url.is_empty()) else {
        reader.fault_of_all(
            "no upstream: add [[upstream]] with its base_url to the configuration file, or set OPENAI_BASE_URL, \
             for example to https://api.openai.com/v1",
        );
        return;
    };
    let place = |name: &str| Place::Variable(name.to_owned());
    reader.set("upstream.0.base_url".into(), place("OPENAI_BASE_URL"), Value::Text(base_url));
    match variable("OPENAI_API_KEY") {
        None => {}
        Some(key) if key.is_empty() => warnings.push(format!("OPENAI_API_KEY is empty: {PASSES}")),
        Some(key) => reader.set("upstream.0.api_key".into(), place("OPENAI_API_KEY"), Value::Key(key)),
    }
}

/// What becomes of requests to an upstream without a key.
const PASSES: &str = "no key is sent, each client's own key passes through";

fn api_key(
    reader: &mut Reader,
    vault: &Vault<'_>,
    warnings: &mut Vec<String>,
    section: &str,
) -> Option<Secret> {
    let key = format!("{section}.api_key");
    let found = reader.take(&key, |value| match value {
        Value::Key(key) => Ok(Found::Secret(key.clone())),
        value => secret::resolve(&values::string(value)?, vault.environment, vault.read_file),
    })?;
    match found {
        Found::Secret(key) => Some(Secret::new(key)),
        Found::Empty(source) => {
            warnings.push(format!("{key}: {source} is empty: {PASSES}"));
            None
        }
    }
}

fn api_keys(
    reader: &mut Reader,
    vault: &Vault<'_>,
    warnings: &mut Vec<String>,
    section: &str,
) -> Vec<Secret> {
    let key = format!("{section}.api_keys");
    let resolved = reader.take(&key, |value| {
        let references = values::strings(value)?;
        if references.is_empty() {
            return Err(format!("names no key: write [\"env:NAME\"], or remove it, then {PASSES}"));
        }
        let resolve = |(i, reference): (usize, &String)| {
            secret::resolve(reference, vault.environment, vault.read_file)
                .map_err(|message| format!("key {}: {message}", i + 1))
        };
        references.iter().enumerate().map(resolve).collect::<Result<Vec<_>, _>>()
    });
    if resolved.is_some() && reader.is_set(&format!("{section}.api_key")) {
        reader.fault(&key, BOTH_KEYS);
    }
    let mut empty = Vec::new();
    let mut key_of = |(i, found): (usize, Found)| match found {
        Found::Secret(key) => Secret::new(key),
        // it keeps its place, so that the others keep their numbers
        Found::Empty(source) => {
            empty.push(format!("{key}: key {}: {source} is empty", i + 1));
            Secret::new(String::new())
        }
    };
    let keys: Vec<Secret> = resolved.unwrap_or_default().into_iter().enumerate().map(&mut key_of).collect();
    let so = if empty.len() == keys.len() { PASSES } else { "the other keys are used" };
    warnings.extend(empty.into_iter().map(|told| format!("{told}: {so}")));
    keys
}

/// Whether `url` leads to `listen`. A shell that points its SDKs at tidegate through `OPENAI_BASE_URL` and then
/// starts tidegate would make it its own upstream, and every request would go round until nothing is left.
pub(super) fn leads_back(url: &Uri, listen: SocketAddr) -> bool {
    let default_port = if url.scheme_str() == Some("https") { 443 } else { 80 };
    if url.port_u16().unwrap_or(default_port) != listen.port() {
        return false;
    }
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(ip) => {
            ip == listen.ip() || (listen.ip().is_unspecified() && (ip.is_loopback() || ip.is_unspecified()))
        }
        Err(_) => {
            host.eq_ignore_ascii_case("localhost")
                && (listen.ip().is_loopback() || listen.ip().is_unspecified())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_address_is_recognised_under_its_names() {
        let back =
            |url: &'static str, listen: &str| leads_back(&Uri::from_static(url), listen.parse().unwrap());
        assert!(back("http://127.0.0.1:8080/v1", "127.0.0.1:8080"));
        assert!(back("http://localhost:8080/v1", "127.0.0.1:8080"));
        assert!(back("http://localhost:8080/v1", "[::]:8080"));
        assert!(back("http://[::1]:8080/v1", "[::1]:8080"));
        assert!(back("http://127.0.0.1/v1", "0.0.0.0:80"));
        assert!(!back("http://127.0.0.1:8081/v1", "127.0.0.1:8080"));
        assert!(!back("http://10.0.0.1:8080/v1", "0.0.0.0:8080"));
        assert!(!back("https://api.openai.com/v1", "127.0.0.1:8080"));
    }
}
