//! What may not travel along: hop-by-hop fields (RFC 9110 §7.6.1) and our own.

use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
static HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
/// Fields that carry keys.
static KEYS: [HeaderName; 3] =
    [header::AUTHORIZATION, HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];
const OURS: &str = "x-tidegate-";

/// Whether the message asks for a WebSocket on its connection.
///
/// Other protocols end here: with `h2c` a client would speak to the upstream past every permit.
#[must_use]
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|v| v.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket"))
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .any(|v| names(v).any(|n| n.eq_ignore_ascii_case("upgrade")))
}

/// Takes out of a request what ends here. With `upgrade`, the asked-for protocol stays.
///
/// `TE: trailers` stays too: it says that the client can read trailers, and they are passed on.
pub fn clean_request(headers: &mut HeaderMap, upgrade: bool) {
    let trailers =
        headers.get_all(header::TE).iter().any(|v| names(v).any(|n| n.eq_ignore_ascii_case("trailers")));
    let protocol = if upgrade { headers.get(header::UPGRADE).cloned() } else { None };
    hop_by_hop(headers);
    headers.remove(header::EXPECT);
    headers.remove(header::PROXY_AUTHORIZATION);
    headers.remove(&HTTP2_SETTINGS);
    ours(headers);
    if let Some(protocol) = protocol {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

/// Takes out of a response what ends here. A response with a transfer coding loses its length (RFC 9112 §6.3).
pub fn clean_response(headers: &mut HeaderMap, upgrade: bool) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let protocol = if upgrade { headers.get(header::UPGRADE).cloned() } else { None };
    hop_by_hop(headers);
    headers.remove(header::PROXY_AUTHENTICATE);
    // they say whose answer it is
    ours(headers);
    if let Some(protocol) = protocol {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// One `Cookie` field out of the several that HTTP/2 allows (RFC 9113 §8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if all.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

fn ours(headers: &mut HeaderMap) {
    if headers.keys().any(|n| n.as_str().starts_with(OURS)) {
        let ours: Vec<HeaderName> =
            headers.keys().filter(|n| n.as_str().starts_with(OURS)).cloned().collect();
        for name in ours {
            headers.remove(name);
        }
    }
}

fn hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(names)
            .filter_map(|n| HeaderName::from_bytes(n.as_bytes()).ok())
            // end-to-end (RFC 9110 §7.6.1 forbids to name such); the key in it may be the upstream's own, and by its
            // type a body is read here and there
            .filter(|n| !KEYS.contains(n) && !n.as_str().starts_with("content-"))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    headers.remove(header::TE);
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::UPGRADE);
    headers.remove(&KEEP_ALIVE);
    headers.remove(&PROXY_CONNECTION);
}

fn names(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|n| !n.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn hop_by_hop_fields_and_those_that_connection_names_end_here() {
        let mut h = map(&[
            ("connection", "close, X-Private, Content-Type"),
            ("content-type", "application/json"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers, gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("expect", "100-continue"),
            ("x-tidegate-priority", "high"),
            ("authorization", "Bearer k"),
            ("x-stainless-retry-count", "1"),
        ]);
        clean_request(&mut h, false);
        let mut left: Vec<_> = h.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(
            left,
            [
                "authorization: Bearer k",
                "connection: te",
                "content-type: application/json",
                "te: trailers",
                "x-stainless-retry-count: 1"
            ]
        );
    }

    #[test]
    fn an_answer_does_not_say_that_it_is_ours() {
        let mut h =
            map(&[("x-tidegate-reason", "queue_full"), ("x-tidegate-queue-ms", "1"), ("x-tide", "1")]);
        clean_response(&mut h, false);
        assert_eq!(h, map(&[("x-tide", "1")]));
    }

    #[test]
    fn an_upgrade_keeps_its_protocol() {
        let mut h = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(is_upgrade(&h));
        clean_request(&mut h, true);
        assert_eq!(h, map(&[("upgrade", "websocket"), ("connection", "upgrade")]));
        assert!(!is_upgrade(&map(&[("upgrade", "websocket")])));
    }
}
