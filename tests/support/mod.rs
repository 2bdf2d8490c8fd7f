//! What the engine's properties and its fuzz target share.

pub(crate) mod breaker;
pub(crate) mod queue;
pub(crate) mod steps;
pub(crate) mod world;
