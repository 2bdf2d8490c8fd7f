//! One batch server: [`Law`](super::Law) says how fast, and nobody but the gate keeps anyone out.

use crate::policy::units::MonoTime;
use crate::simulate::request::Request;
use crate::simulate::upstream::sharing::{Law, Server};
use crate::simulate::upstream::{Id, Sign, Upstream};

/// The upstream.
#[derive(Debug)]
pub struct Batch(Server);

impl Batch {
    /// Idle.
    #[must_use]
    pub fn new(law: Law) -> Self {
        Self(Server::new(law))
    }
}

impl Upstream for Batch {
    fn begin(&mut self, now: MonoTime, id: Id, request: &Request) -> bool {
        self.0.begin(now, id, request);
        false
    }

    fn cancel(&mut self, now: MonoTime, id: Id) {
        self.0.cancel(now, id);
    }

    fn next(&self) -> Option<MonoTime> {
        self.0.next()
    }

    fn advance(&mut self, now: MonoTime, signs: &mut Vec<Sign>) {
        self.0.advance(now, signs);
    }
}
