//! Every decision, and nothing else: no I/O, no clock, no task, no chance.
//!
//! The live proxy drives this code through `proxy::gate`; a simulation drives the very same code on
//! virtual time. That is what makes a simulated night worth believing. Time is an argument, timers
//! and answers are return values, and every type here is deterministic.
//!
//! | folder | question it answers |
//! |---|---|
//! | [`admission`] | who may run now, who waits, who is told to come back |
//! | [`supply`] | what the upstream can take |
//! | [`predict`] | how many permits there should be |
//! | [`usage`] | what a request costs: estimated before it is sent, read from its answer |
//! | [`engine`] | the three together: one event in, effects out |

pub mod admission;
pub mod engine;
pub mod predict;
pub mod supply;
pub mod units;
pub mod usage;
