//! Any bytes are a life of the engine, and every life keeps its promises.
//!
//! The decoder and the checks are those of `tests/engine_properties.rs`, which also runs them on bytes from fixed
//! seeds. A find becomes a test there, as `decode(b"…")`, so that `cargo test` keeps it fixed without a fuzzer.

#![no_main]

#[allow(dead_code, reason = "the queue's plain version is for the properties only")]
#[path = "../../tests/support/mod.rs"]
mod support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (setting, steps) = support::steps::decode(bytes);
    support::world::run(setting.params(), &steps);
});
