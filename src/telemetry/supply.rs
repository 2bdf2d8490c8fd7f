//! What the supply side decides, as log events with what it was decided from, and as counts.

use crate::policy::engine::RetryCause;
use crate::policy::supply::Report;
use crate::policy::units::{EndpointId, ModelId, MonoTime, Place};
use crate::telemetry::Telemetry;

/// All causes, shown at 0 from the start.
pub(super) const RETRY_CAUSES: [RetryCause; 5] =
    [RetryCause::Status, RetryCause::Connect, RetryCause::Reset, RetryCause::Timeout, RetryCause::Key];

impl Telemetry {
    /// Counts a request that waits for another try.
    pub fn requeued(&self, group: &str, cause: RetryCause) {
        self.retry_counter(group, cause, 1);
    }

    /// Counts and logs what a group's endpoints report; `name` and `model` know the names. Keys count from 1, as they
    /// do in the configuration's faults.
    pub fn supply<'n>(
        &self,
        now: MonoTime,
        report: &Report,
        name: impl Fn(EndpointId) -> &'n str,
        model: impl Fn(ModelId) -> String,
    ) {
        let left = |until: &MonoTime| until.since(now).as_secs_f64();
        let key = |place: &Place| u32::from(place.key.0) + 1;
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
            Report::Stopped { place, model: of, until, said_by, known, in_flight } => tracing::warn!(
                upstream = name(place.endpoint),
                key = key(place),
                model = model(*of),
                seconds = left(until),
                said_by = said_by.as_str(),
                requests_per_minute = known.requests.limit,
                requests_remaining = known.requests.remaining,
                tokens_per_minute = known.tokens.limit,
                tokens_remaining = known.tokens.remaining,
                searched_per_minute = known.searched,
                in_flight,
                "the upstream refused: this rate stands still"
            ),
            Report::GoesOn { place, model: of } => tracing::info!(
                upstream = name(place.endpoint),
                key = key(place),
                model = model(*of),
                "this rate goes on"
            ),
            Report::HiddenCap { endpoint, in_flight } => tracing::warn!(
                upstream = name(*endpoint),
                in_flight,
                "the upstream refused with its rates unused: it takes fewer at once"
            ),
            Report::Unrelated { place, model: of } => tracing::warn!(
                upstream = name(place.endpoint),
                key = key(place),
                model = model(*of),
                "the upstream refuses a share of this, however little it is sent: only what it refuses waits"
            ),
            Report::KeyRests { place, until } => tracing::warn!(
                upstream = name(place.endpoint),
                key = key(place),
                seconds = left(until),
                "a key was refused and rests"
            ),
            Report::KeyIsBack { place } => tracing::info!(
                upstream = name(place.endpoint),
                key = key(place),
                "a key that was refused has rested and is used again"
            ),
            Report::Ejected { endpoint, factor, paces, until } => tracing::warn!(
                upstream = name(*endpoint),
                factor,
                first_token_s = paces.first,
                first_token_of_peers_s = paces.first_of_peers,
                per_token_s = paces.token,
                per_token_of_peers_s = paces.token_of_peers,
                seconds = left(until),
                "far slower than its peers: the upstream rests"
            ),
            Report::IsBack { endpoint } => {
                tracing::info!(upstream = name(*endpoint), "has rested, and is used again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use prometheus::Registry;

    use super::*;
    use crate::clock::Clock;
    use crate::policy::supply::SaidBy;
    use crate::policy::supply::pace::{LaneStatus, PacerStatus};
    use crate::policy::units::KeyId;
    use crate::telemetry::{AccessLog, Params};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(line)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stop_says_which_model_and_key_who_named_its_time_and_what_was_left() {
        let params = Params { access_log: AccessLog::Off, ..Params::default() };
        let telemetry = Telemetry::new(&params, Clock::start(), 1, &Registry::new()).unwrap();
        let page = Page::default();
        let written = page.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || written.clone()).finish();
        let requests = LaneStatus { limit: Some(600.0), remaining: Some(2.5), ..LaneStatus::default() };
        let stopped = Report::Stopped {
            place: Place { endpoint: EndpointId(0), key: KeyId(1) },
            model: ModelId(3),
            until: MonoTime::from_secs(12),
            said_by: SaidBy::RetryAfter,
            known: PacerStatus { requests, ..PacerStatus::default() },
            in_flight: 4,
        };
        let model = |id: ModelId| format!("model {}\n", id.0);
        tracing::subscriber::with_default(log, || {
            telemetry.supply(MonoTime::from_secs(2), &stopped, |_| "openai", model);
        });
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        for part in [
            "upstream=\"openai\" key=2 model=\"model 3\\n\" seconds=10.0 said_by=\"retry_after\"",
            "requests_per_minute=600.0 requests_remaining=2.5 in_flight=4",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
