//! Tells the gate what an answer's headers say of the upstream's rate limits.
//!
//! Most answers say nothing, and cost a look at each header's first letter. What cannot be true is left out by
//! the reader (`policy/supply/pace/headers.rs`); here it is said once per kind.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::UNIX_EPOCH;

use hyper::StatusCode;

use crate::clock;
use crate::policy::supply::pace::{Fault, RateLimits};
use crate::proxy::forward::Answer;

/// The kinds of faults that the log has been told of.
#[derive(Debug, Default)]
pub(super) struct Told(AtomicU8);

impl Told {
    /// Has not been told before.
    fn is_new(&self, fault: Fault) -> bool {
        let bit = 1_u8.checked_shl(fault as u32).unwrap_or_default();
        self.0.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }
}

/// Reads the headers and tells the gate. Before the head itself is told, so that what waits is dispatched under the
/// new limits.
pub(super) fn tell(answer: &mut Answer, told: &Told) {
    let refused = answer.head.status == StatusCode::TOO_MANY_REQUESTS;
    let headers = &answer.head.headers;
    if !refused && !headers.keys().any(|name| RateLimits::is_name(name.as_str())) {
        return;
    }
    let unix = clock::wall().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let fields = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let limits = RateLimits::parse(answer.head.status.as_u16(), fields, answer.exchange.now(), unix);
    for fault in limits.faults.iter().filter(|fault| told.is_new(*fault)) {
        let upstream = answer.exchange.record.upstream.as_deref().unwrap_or_default();
        tracing::warn!(
            upstream,
            fault = fault.as_str(),
            "a rate-limit header cannot be true and is not believed; said once"
        );
    }
    answer.retry_at = limits.retry_at;
    if refused {
        answer.permit.refused(limits);
    } else if !limits.is_empty() {
        answer.permit.limits(limits);
    }
}
