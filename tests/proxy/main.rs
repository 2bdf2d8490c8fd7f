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
mod bodies;
mod breaker;
mod drain;
mod framing;
mod garbage;
mod headers;
mod http2_upstream;
mod leaving;
mod lifetimes;
mod paths;
mod pooling;
mod prewarm;
mod protocols;
mod slow;
mod streaming;
mod tunnels;
