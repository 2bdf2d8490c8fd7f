//! One `[[upstream]]`.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;

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

/// Where requests go, and how patient to be with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Its name on metrics, in logs and in `x-tidegate-upstream`.
    pub name: String,
    /// What stands before `/chat/completions`, as in an SDK's `base_url`.
    pub base_url: Uri,
    /// The key to send instead of the client's; absent: the client's own passes.
    pub api_key: Option<Secret>,
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
    /// How long an unused connection is kept: a little less than the upstream keeps it.
    pub idle_timeout: Duration,
    /// Open connections before the requests come that need them.
    pub prewarm: bool,
    /// The age at which a connection has been replaced; zero: never because of its age.
    pub refresh: Duration,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            name: "default".into(),
            base_url: Uri::from_static("https://api.openai.com/v1"),
            api_key: None,
            http2: false,
            ca_file: None,
            connect_timeout: Duration::from_secs(10),
            first_byte_timeout: Duration::from_secs(600),
            stream_idle_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(50),
            prewarm: true,
            refresh: Duration::from_secs(300),
        }
    }
}

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
        if let Some(key) = &self.api_key {
            if is_placeholder(key.reveal()) {
                faults.push(Invalid::new(
                    "api_key",
                    "is a placeholder from an example, not a key: set it to your provider's key, or remove \
                     it so that each client's own key passes through",
                ));
            } else if !key.reveal().bytes().all(|b| (0x21..=0x7e).contains(&b)) {
                faults.push(Invalid::new(
                    "api_key",
                    "contains a space, a line break or a character outside ASCII, which no HTTP header can carry",
                ));
            }
        }
        for (key, value) in [
            ("connect_timeout", self.connect_timeout),
            ("first_byte_timeout", self.first_byte_timeout),
            ("stream_idle_timeout", self.stream_idle_timeout),
            ("idle_timeout", self.idle_timeout),
        ] {
            if value.is_zero() {
                faults.push(Invalid::new(key, "must be longer than 0s"));
            }
        }
        if !self.refresh.is_zero() && self.refresh < Duration::from_secs(10) {
            faults.push(Invalid::new("refresh", "must be at least 10s, or 0s for never"));
        }
        checked(self, faults)
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
