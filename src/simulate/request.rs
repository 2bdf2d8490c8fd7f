//! What a workload is made of.

use crate::policy::units::MonoTime;

/// One request of a workload, as its client would send it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it arrives.
    pub at: MonoTime,
    /// Prompt tokens.
    pub prompt: u32,
    /// Tokens that the answer will have.
    pub output: u32,
}
