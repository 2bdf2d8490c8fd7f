//! Where a request goes: the client's path on the upstream's origin.
//!
//! Clients use `http://host:8080/v1` as `base_url`. What they ask for under `/v1` is asked of the
//! upstream's own `base_url`; any other path is asked of the upstream's origin as it is.

use hyper::Uri;
use hyper::header::HeaderValue;
use hyper::http::uri::{Authority, PathAndQuery, Scheme};

use crate::upstream::{Fault, SetupError};

/// An upstream's `base_url`, taken apart once.
#[derive(Clone, Debug)]
pub struct Target {
    scheme: Scheme,
    authority: Authority,
    host: HeaderValue,
    base: String,
}

impl Target {
    /// Takes `base_url` apart.
    ///
    /// # Errors
    /// When it names no host.
    pub fn new(base_url: &Uri) -> Result<Self, SetupError> {
        let wrong = || SetupError::Host(base_url.to_string());
        let authority = base_url.authority().cloned().ok_or_else(wrong)?;
        Ok(Self {
            scheme: base_url.scheme().cloned().unwrap_or(Scheme::HTTP),
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?,
            base: base_url.path().trim_end_matches('/').to_owned(),
            authority,
        })
    }

    /// What belongs in `Host`.
    #[must_use]
    pub fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// The scheme and authority alone, to connect to.
    #[must_use]
    pub fn origin(&self) -> Uri {
        self.absolute(PathAndQuery::from_static("/"))
    }

    /// The client's `uri` on this upstream; absolute for HTTP/2, path and query for HTTP/1.1.
    ///
    /// # Errors
    /// When the two do not make a URI together.
    pub fn uri(&self, uri: &Uri, absolute: bool) -> Result<Uri, Fault> {
        let asked = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let path = asked.path();
        let rest = match path.strip_prefix("/v1") {
            Some(rest) if self.base != "/v1" && (rest.is_empty() || rest.starts_with('/')) => Some(rest),
            _ => None,
        };
        let path_and_query = match rest {
            None => asked,
            Some(rest) => {
                let slash = if self.base.is_empty() && rest.is_empty() { "/" } else { "" };
                let query = asked.query().map_or(String::new(), |q| format!("?{q}"));
                PathAndQuery::try_from(format!("{}{rest}{slash}{query}", self.base))
                    .map_err(|e| Fault::Request(e.to_string()))?
            }
        };
        Ok(if absolute { self.absolute(path_and_query) } else { path_and_query.into() })
    }

    /// A path of the origin itself, for questions of our own.
    pub(super) fn on_origin(&self, path: &str, absolute: bool) -> Result<Uri, Fault> {
        let path = PathAndQuery::try_from(path).map_err(|e| Fault::Request(e.to_string()))?;
        Ok(if absolute { self.absolute(path) } else { path.into() })
    }

    fn absolute(&self, path_and_query: PathAndQuery) -> Uri {
        let mut parts = hyper::http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(path_and_query);
        // scheme, authority and path together are always a URI
        Uri::from_parts(parts).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(base: &str, uri: &str) -> String {
        let target = Target::new(&base.parse().unwrap()).unwrap();
        target.uri(&uri.parse().unwrap(), false).unwrap().to_string()
    }

    #[test]
    fn v1_is_the_upstream_s_base_and_everything_else_its_origin() {
        assert_eq!(map("https://api.openai.com/v1", "/v1/models"), "/v1/models");
        assert_eq!(map("https://x/openai/v1", "/v1/models?a=b"), "/openai/v1/models?a=b");
        assert_eq!(map("https://x/openai/v1/", "/v1/models"), "/openai/v1/models");
        assert_eq!(map("https://x/openai/v1", "/v1"), "/openai/v1");
        assert_eq!(map("https://x", "/v1/models"), "/models");
        assert_eq!(map("https://x", "/v1"), "/");
        assert_eq!(map("https://x/api", "/v12/models"), "/v12/models");
        assert_eq!(map("https://x/api", "/openai/deployments/a%2Fb?v=1"), "/openai/deployments/a%2Fb?v=1");
        assert_eq!(map("https://x/api", "*"), "*");
        assert_eq!(map("https://x/v1", "http://other/v1/models"), "/v1/models");
    }
}
