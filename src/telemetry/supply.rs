//! What the supply side decides, as log events with what it was decided from, and as counts.

use crate::policy::engine::RetryCause;
use crate::policy::supply::Report;
use crate::policy::units::{EndpointId, MonoTime};
use crate::telemetry::Telemetry;

/// All causes, shown at 0 from the start.
pub(super) const RETRY_CAUSES: [RetryCause; 5] =
    [RetryCause::Status, RetryCause::Connect, RetryCause::Reset, RetryCause::Timeout, RetryCause::Key];

impl Telemetry {
    /// Counts a request that waits for another try.
    pub fn requeued(&self, group: &str, cause: RetryCause) {
        self.retry_counter(group, cause, 1);
    }

    /// Counts and logs what a group's endpoints report; `name` knows their names.
    pub fn supply<'n>(&self, now: MonoTime, report: &Report, name: impl Fn(EndpointId) -> &'n str) {
        let left = |until: &MonoTime| until.since(now).as_secs_f64();
        match report {
            Report::Breaker(id, transition) => self.breaker(now, name(*id), *transition),
            Report::Limit(id, change) => tracing::info!(
                upstream = name(*id),
                from = change.from,
                to = change.to,
                cause = change.cause.as_str(),
                inputs = ?change.inputs,
                "learned limit"
            ),
            Report::Stopped { place, model, until, in_flight } => tracing::warn!(
                upstream = name(place.endpoint),
                key = place.key.0,
                model = model.0,
                seconds = left(until),
                in_flight,
                "the upstream refused: this rate stands still"
            ),
            Report::HiddenCap { endpoint, in_flight } => tracing::warn!(
                upstream = name(*endpoint),
                in_flight,
                "the upstream refused with its rates unused: it takes fewer at once"
            ),
            Report::Unrelated { place, model } => tracing::warn!(
                upstream = name(place.endpoint),
                key = place.key.0,
                model = model.0,
                "the upstream refuses a share of this, however little it is sent: only what it refuses waits"
            ),
            Report::KeyRests { place, until } => tracing::warn!(
                upstream = name(place.endpoint),
                key = place.key.0,
                seconds = left(until),
                "a key was refused and rests"
            ),
            Report::Ejected { endpoint, factor, until } => tracing::warn!(
                upstream = name(*endpoint),
                factor,
                seconds = left(until),
                "far slower than its peers: the upstream rests"
            ),
        }
    }
}
