//! Which of an upstream's keys goes on a request, and where in it.
//!
//! A key belongs to an attempt, not to a request: the next attempt may go to another upstream, or with another
//! key because this one rests. So it is put into the headers that the client sent, when the attempt is made.

use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};

use crate::policy::units::KeyId;
use crate::upstream::{Params, SetupError, Upstream};

/// Where else than in `Authorization` keys travel: Anthropic's header, and Azure's.
pub static OTHER_KEYS: [HeaderName; 2] =
    [HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];

/// Puts the upstream's key where the client had its own.
pub fn set_key(headers: &mut HeaderMap, key: &HeaderValue) {
    let bare = key.as_bytes().strip_prefix(b"Bearer ").unwrap_or_default();
    let mut elsewhere = false;
    for name in &OTHER_KEYS {
        if headers.contains_key(name)
            && let Ok(mut bare) = HeaderValue::from_bytes(bare)
        {
            bare.set_sensitive(true);
            headers.insert(name, bare);
            elsewhere = true;
        }
    }
    if elsewhere && !headers.contains_key(header::AUTHORIZATION) {
        return;
    }
    headers.insert(header::AUTHORIZATION, key.clone());
}

/// Whether the client sent a key of its own.
#[must_use]
pub fn has_key(headers: &HeaderMap) -> bool {
    headers.contains_key(header::AUTHORIZATION) || OTHER_KEYS.iter().any(|name| headers.contains_key(name))
}

/// The values of `Authorization` for its keys, in the file's order.
pub(super) fn authorizations(params: &Params) -> Result<Vec<HeaderValue>, SetupError> {
    let value = |key: &crate::upstream::Secret| {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.reveal()))
            .map_err(|_| SetupError::Host("api_key".into()))?;
        value.set_sensitive(true);
        Ok(value)
    };
    params.keys().map(value).collect()
}

impl Upstream {
    /// `Authorization` with this key, to send instead of the client's; `None`: it has no key of its own, or not so
    /// many.
    #[must_use]
    pub fn authorization(&self, key: KeyId) -> Option<&HeaderValue> {
        self.keys.get(usize::from(key.0))
    }

    /// How many keys requests can go with: at least 1, the client's own where it has none.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys.len().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> HeaderMap {
        [(HeaderName::from_static(name), HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn the_upstream_s_key_takes_the_place_of_the_client_s() {
        let key = HeaderValue::from_static("Bearer up");
        let mut h = with("x-api-key", "mine");
        set_key(&mut h, &key);
        assert_eq!(h, with("x-api-key", "up"));
        let mut h = with("authorization", "Bearer mine");
        set_key(&mut h, &key);
        assert_eq!(h.get("authorization").unwrap(), "Bearer up");
        let mut h = HeaderMap::new();
        set_key(&mut h, &key);
        assert_eq!(h.get("authorization").unwrap(), "Bearer up");
    }

    #[test]
    fn another_key_takes_the_place_of_the_first() {
        let keys = ["Bearer one", "Bearer two"].map(HeaderValue::from_static);
        for mut headers in [with("api-key", "mine"), with("authorization", "Bearer mine"), HeaderMap::new()] {
            keys.iter().for_each(|key| set_key(&mut headers, key));
            assert_eq!(headers.len(), 1);
            assert!(headers.values().all(|v| v.as_bytes().ends_with(b"two")), "{headers:?}");
        }
    }

    #[test]
    fn keys_are_numbered_as_they_are_written() {
        let of = |keys: &[&str]| {
            let api_keys = keys.iter().map(|k| crate::upstream::Secret::new((*k).to_owned())).collect();
            let params = Params { api_keys, base_url: "http://up/v1".parse().unwrap(), ..Params::default() };
            Upstream::new(params, 1, crate::clock::Clock::start()).unwrap()
        };
        let two = of(&["a", "b"]);
        assert_eq!(two.keys(), 2);
        assert_eq!(two.authorization(KeyId(1)).unwrap(), "Bearer b");
        assert!(two.authorization(KeyId(1)).unwrap().is_sensitive());
        assert_eq!(two.authorization(KeyId(2)), None);
        let none = of(&[]);
        assert_eq!((none.keys(), none.authorization(KeyId(0))), (1, None));
    }
}
