//! The proxy by its behaviour: the real thing on loopback sockets, scripted upstreams, raw clients.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod support;

mod admission;
mod answers;
mod asked;
mod bodies;
mod breaker;
mod checks;
mod disconnect;
mod drain;
mod framing;
mod garbage;
mod headers;
mod http2_upstream;
mod keys;
mod leaving;
mod lifetimes;
mod log;
mod models;
mod names;
mod paths;
mod pooling;
mod prewarm;
mod protocols;
mod retry;
mod several_upstreams;
mod slow;
mod streaming;
mod timeouts;
mod tunnels;
mod usage;
