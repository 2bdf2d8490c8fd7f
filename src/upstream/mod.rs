//! The way to the model server: names, connections, TLS, and what may not travel along.
//!
//! [`Upstream::send`] takes a request and gives a response head; the body follows as [`ReplyBody`],
//! which hands the connection back once it was read to its end and closes it otherwise, so that no
//! half-read answer can reach another request. Called by `proxy/forward.rs` and by `cli probe`.

mod body;
mod card;
mod check;
mod connect;
mod fault;
mod headers;
mod keys;
mod names;
mod pace;
mod params;
mod pool;
mod prewarm;
mod race;
mod rename;
mod send;
mod target;

pub use body::{BoxError, Payload, ReplyBody, Trailed, Upload};
pub use check::Unwell;
pub use connect::{Dial, Dialing, Dialled, Io, Network, Present};
pub use fault::{Fault, Paused, SetupError};
pub use headers::{clean_request, clean_response, is_upgrade};
pub use keys::{OTHER_KEYS, has_key, set_key};
pub use names::{Resolve, Resolving, System, follow_dns};
pub use params::{BOTH_KEYS, OnDisconnect, Params, Secret, ServerMetrics};
pub use prewarm::keep_warm;
pub use rename::{rename_in_form, rename_in_path, rename_model};
pub use send::{Repeat, Trace, Upstream};
pub use target::Target;
