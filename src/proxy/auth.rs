//! Whose request it is.
//!
//! The tenant is a hash of the client's key: fair shares and log lines need to tell clients apart, and
//! nothing needs the key itself. It is the same in every process, so that logs can be compared. The upstream's own
//! key belongs to an attempt, and is put on in `forward.rs`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::task::{Context, Poll};

use hyper::HeaderMap;
use hyper::header::{self, HeaderValue};
use tower::Service;

use crate::policy::units::TenantId;
use crate::proxy::exchange::{Arrived, Authed};
use crate::upstream::OTHER_KEYS;

/// Makes [`Auth`].
#[derive(Clone, Copy)]
pub(super) struct Layer;

impl<S> tower::Layer<S> for Layer {
    type Service = Auth<S>;

    fn layer(&self, inner: S) -> Auth<S> {
        Auth { inner }
    }
}

/// Knows the sender.
#[derive(Clone)]
pub(super) struct Auth<S> {
    inner: S,
}

impl<S: Service<Authed>> Service<Arrived> for Auth<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Arrived) -> S::Future {
        let headers = &mut request.head.headers;
        repair(headers);
        request.exchange.record.tenant = tenant(headers);
        self.inner.call(Authed(request))
    }
}

/// A key without its scheme gets it: `Authorization: sk-…` is a common slip that costs an hour to find.
fn repair(headers: &mut HeaderMap) {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return };
    let key = value.as_bytes().trim_ascii();
    if key.is_empty() || key.contains(&b' ') || key.eq_ignore_ascii_case(b"bearer") {
        return;
    }
    if let Ok(mut repaired) = HeaderValue::from_bytes(&[b"Bearer ", key].concat()) {
        repaired.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, repaired);
    }
}

fn tenant(headers: &HeaderMap) -> TenantId {
    let key = headers
        .get(header::AUTHORIZATION)
        .map(|v| v.as_bytes().trim_ascii())
        .map(|v| match v.iter().position(|b| *b == b' ') {
            Some(space) => v[space..].trim_ascii_start(),
            None => v,
        })
        .or_else(|| OTHER_KEYS.iter().find_map(|name| headers.get(name)).map(HeaderValue::as_bytes));
    match key {
        None => TenantId::default(),
        Some(key) => {
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            TenantId(hasher.finish())
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        [(HeaderName::from_static(name), HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn a_key_without_its_scheme_is_repaired_and_nothing_else_is_touched() {
        for (sent, goes) in [
            ("sk-abc", "Bearer sk-abc"),
            (" sk-abc ", "Bearer sk-abc"),
            ("Bearer sk-abc", "Bearer sk-abc"),
            ("bearer sk-abc", "bearer sk-abc"),
            ("Basic dTpw", "Basic dTpw"),
            ("Bearer", "Bearer"),
            ("", ""),
        ] {
            let mut h = with("authorization", sent);
            repair(&mut h);
            assert_eq!(h.get("authorization").unwrap().to_str().unwrap(), goes);
        }
    }

    #[test]
    fn the_tenant_is_the_key_wherever_it_travels() {
        let by_bearer = tenant(&with("authorization", "Bearer k1"));
        assert_eq!(by_bearer, tenant(&with("x-api-key", "k1")));
        assert_eq!(by_bearer, tenant(&with("api-key", "k1")));
        assert_ne!(by_bearer, tenant(&with("api-key", "k2")));
        assert_eq!(tenant(&HeaderMap::new()), TenantId::default());
    }
}
