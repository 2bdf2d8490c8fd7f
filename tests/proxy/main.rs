//! The proxy by its behaviour: the real thing on loopback sockets, scripted upstreams, raw clients.

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
mod paths;
mod pooling;
mod protocols;
mod slow;
mod streaming;
mod tunnels;
