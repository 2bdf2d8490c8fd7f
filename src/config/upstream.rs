//! `[[upstream]]`, and the two variables every OpenAI SDK knows, which can stand for it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use hyper::Uri;

use super::faults::Place;
use super::reader::Reader;
use super::secret::{self, Found};
use super::values::{self, Value};
use crate::upstream::{Params, Secret};

const LIST: &str = "upstream";

/// What a reference to a secret may look into.
pub(super) struct Vault<'a> {
    pub(super) environment: &'a BTreeMap<String, String>,
    pub(super) read_file: &'a dyn Fn(&Path) -> io::Result<String>,
}

/// Reads the upstream; that there is none is a fault.
pub(super) fn read(reader: &mut Reader, vault: &Vault<'_>, warnings: &mut Vec<String>) -> Params {
    let described = one_upstream(reader, vault.environment, warnings);
    let d = Params::default();
    let params = Params {
        name: reader.take("upstream.0.name", values::string).unwrap_or(d.name),
        base_url: reader.take("upstream.0.base_url", values::url).unwrap_or(d.base_url),
        api_key: key(reader, vault, warnings),
        http2: reader.take("upstream.0.http2", values::boolean).unwrap_or(d.http2),
        ca_file: reader.take("upstream.0.ca_file", values::path),
        connect_timeout: reader
            .take("upstream.0.connect_timeout", values::duration)
            .unwrap_or(d.connect_timeout),
        first_byte_timeout: reader
            .take("upstream.0.first_byte_timeout", values::duration)
            .unwrap_or(d.first_byte_timeout),
        stream_idle_timeout: reader
            .take("upstream.0.stream_idle_timeout", values::duration)
            .unwrap_or(d.stream_idle_timeout),
        idle_timeout: reader.take("upstream.0.idle_timeout", values::duration).unwrap_or(d.idle_timeout),
        prewarm: reader.take("upstream.0.prewarm", values::boolean).unwrap_or(d.prewarm),
        refresh: reader.take("upstream.0.refresh", values::duration).unwrap_or(d.refresh),
    };
    if described && !reader.is_set("upstream.0.base_url") && !reader.is_faulty("upstream.0.base_url") {
        // Falling back to a default here would send a forgotten line's traffic, keys and all, to somebody else.
        reader.fault(
            "upstream.0.base_url",
            "is missing: write what an SDK has as its base_url, such as \"https://api.openai.com/v1\" \
             (OPENAI_BASE_URL counts only where nothing else describes the upstream)",
        );
    }
    reader.check(&["upstream.0"], params, Params::try_new)
}

/// Sees to it that `upstream.0` and nothing else describes the upstream. False: nothing does.
fn one_upstream(
    reader: &mut Reader,
    environment: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> bool {
    if reader.is_written(LIST) {
        reader.close(LIST, "is a list: write [[upstream]], with two brackets on each side");
        return false;
    }
    let indices = reader.children(LIST);
    if indices.is_empty() {
        return from_openai(reader, environment, warnings);
    }
    for index in indices.iter().filter(|index| *index != "0") {
        let message = if index.parse::<u64>().is_ok() {
            "several upstreams are not supported in this version: keep one, numbered 0"
        } else {
            "upstreams are numbered: TIDEGATE_UPSTREAM__0__BASE_URL"
        };
        reader.close(&format!("{LIST}.{index}"), message);
    }
    if reader.is_set("upstream.0") {
        reader.close("upstream.0", "expected a table of settings, as [[upstream]] begins one");
        return false;
    }
    indices.contains("0")
}

fn from_openai(
    reader: &mut Reader,
    environment: &BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> bool {
    let variable = |name: &str| environment.get(name).map(|value| value.trim().to_owned());
    let Some(base_url) = variable("OPENAI_BASE_URL").filter(|url| !url.is_empty()) else {
        reader.fault_of_all(
            "no upstream: add [[upstream]] with its base_url to the configuration file, or set OPENAI_BASE_URL, \
             for example to https://api.openai.com/v1",
        );
        return false;
    };
    let place = |name: &str| Place::Variable(name.to_owned());
    reader.set("upstream.0.base_url".into(), place("OPENAI_BASE_URL"), Value::Text(base_url));
    match variable("OPENAI_API_KEY") {
        None => {}
        Some(key) if key.is_empty() => warnings
            .push("OPENAI_API_KEY is empty: no key is sent, each client's own key passes through".into()),
        Some(key) => reader.set("upstream.0.api_key".into(), place("OPENAI_API_KEY"), Value::Key(key)),
    }
    true
}

fn key(reader: &mut Reader, vault: &Vault<'_>, warnings: &mut Vec<String>) -> Option<Secret> {
    let found = reader.take("upstream.0.api_key", |value| match value {
        Value::Key(key) => Ok(Found::Secret(key.clone())),
        value => secret::resolve(&values::string(value)?, vault.environment, vault.read_file),
    })?;
    match found {
        Found::Secret(key) => Some(Secret::new(key)),
        Found::Empty(message) => {
            warnings.push(format!("upstream.0.api_key: {message}"));
            None
        }
    }
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
