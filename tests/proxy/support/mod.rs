//! What the tests are made of: the real proxy in this process, scripted upstreams, and raw clients.

mod peer;
mod proxy;
mod upstream;
mod wire;

pub(crate) use peer::{Client, Habits, Peer};
pub(crate) use proxy::{Proxy, Setup};
pub(crate) use upstream::{Raw, Upstream, nobody};
pub(crate) use wire::{Head, Message, Wire, request, response, within};

/// A request that takes a permit.
pub(crate) const CHAT: &[u8] = br#"{"model":"m","messages":[]}"#;
/// The same that asks for a stream.
pub(crate) const CHAT_STREAM: &[u8] = br#"{"model":"m","messages":[],"stream":true}"#;
/// The path it goes to.
pub(crate) const CHAT_PATH: &str = "/v1/chat/completions";
/// The field that says what its body is.
pub(crate) const JSON: &str = "content-type: application/json";
