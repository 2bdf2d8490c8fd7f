//! tidegate: a reverse proxy for OpenAI-style APIs in which bursts wait in a fair, bounded queue instead
//! of failing with 429.
//!
//! The rooms, and what they may import: only rooms of lower rank. `tests/architecture.rs` holds them to it.
//!
//! | room | rank | what is in it |
//! |---|---|---|
//! | [`cli`] | 7 | one file per command |
//! | [`app`] | 6 | composition: builds everything, runs every long-lived task, drain |
//! | [`config`] | 5 | TOML, environment and flags into each room's checked `Params` |
//! | [`listener`] | 4 | accept, protocol, patience with slow clients |
//! | [`proxy`] | 4 | the request pipeline as a tower stack; the gate |
//! | [`simulate`] | 4 | virtual time: workloads, simulated upstreams, the same engine, reports |
//! | [`demo`] | 4 | the embedded simulated LLM upstream, and the load driver |
//! | [`upstream`] | 3 | connections, TLS, header hygiene |
//! | [`telemetry`] | 2 | metrics, quantiles, access log, the admin service |
//! | [`chance`] | 1 | seeded chance, for simulations |
//! | [`clock`] | 1 | the only reader of the clock |
//! | [`wire`] | 1 | small writes in one piece |
//! | [`policy`] | 1 | pure: every decision, no I/O, no clock |

pub mod app;
pub mod chance;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod listener;
pub mod policy;
pub mod proxy;
pub mod simulate;
pub mod telemetry;
pub mod upstream;
pub mod wire;
