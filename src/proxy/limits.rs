//! Tells the gate what an answer's headers say of the upstream's rate limits.
//!
//! Most answers say nothing, and cost a look at each header's first letter. What cannot be true is left out by
//! the reader (`policy/supply/pace/headers.rs`); here it is said, seldom.

use std::time::UNIX_EPOCH;

use hyper::StatusCode;

use crate::clock;
use crate::policy::supply::pace::RateLimits;
use crate::proxy::forward::Answer;

/// Reads the headers and tells the gate. Before the head itself is told, so that what waits is dispatched under the
/// new limits.
pub(super) fn tell(answer: &mut Answer) {
    let refused = answer.head.status == StatusCode::TOO_MANY_REQUESTS;
    let headers = &answer.head.headers;
    if !refused && !headers.keys().any(|name| RateLimits::is_name(name.as_str())) {
        return;
    }
    let unix = clock::wall().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let fields = headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let limits = RateLimits::parse(answer.head.status.as_u16(), fields, answer.exchange.now(), unix);
    for fault in limits.faults.iter() {
        let (upstream, fault) = (answer.exchange.record.upstream.as_deref(), fault.as_str());
        if let Some(times) = answer.exchange.seldom(fault) {
            tracing::warn!(upstream, fault, times, "a rate-limit header cannot be true and is not believed");
        }
    }
    answer.retry_at = limits.retry_at;
    if refused {
        answer.permit.refused(limits);
    } else if !limits.is_empty() {
        answer.permit.limits(limits);
    }
}
