//! The client's side of the wire: accept, protocol, patience, drain.
//!
//! Generic over the byte stream and over the service, so that tests hand in pipes and the pipeline
//! knows nothing of sockets. `app` runs one [`Acceptor`] per worker.
//!
//! | file | what it does |
//! |---|---|
//! | `accept` | sockets, the bound on connections, emptying the backlog when a drain begins |
//! | `connection` | HTTP/1.1 and HTTP/2 on one byte stream |
//! | `patience` | every timeout of a slow or silent client |
//! | `response` | knows when a response is over, and frees one that nobody reads |

mod accept;
mod connection;
mod params;
mod patience;
mod response;

pub use accept::{Acceptor, Connections, bind};
pub use connection::{Serving, serve};
pub use params::Params;
