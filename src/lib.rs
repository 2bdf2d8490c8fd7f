//! tidegate: a reverse proxy for OpenAI-style APIs in which bursts wait instead of failing.
pub mod clock;
pub mod policy;
pub mod upstream;
