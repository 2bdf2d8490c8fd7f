//! The proxy's seconds, on a thread of their own: the predictor's hourly fits take tens of milliseconds, for
//! which no request, no timer and no scrape has to wait.

use std::sync::Arc;
use std::time::Duration;

use crate::app::{GROUP, Shared};
use crate::clock;
use crate::policy::predict::{self, Mode, Predictor, Ready, Wall};
use crate::policy::supply::BreakerState;
use crate::proxy::Gate;
use crate::telemetry::Telemetry;
use crate::upstream::Upstream;

/// Runs [`keep_time`] until the proxy ends.
pub(super) fn run(shared: Shared, scaling: predict::Params) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            // the engine falls back to its static limit by itself
            tracing::error!(%error, "the predictor has no runtime");
            return;
        }
    };
    let Shared { gate, upstream, telemetry, force, .. } = shared;
    runtime.block_on(async {
        tokio::select! {
            () = keep_time(gate, upstream, telemetry, scaling, wall) => {}
            () = force.cancelled() => {}
        }
    });
}

/// Each second the engine's tick and what should be ready; every [`predict::interval`] a decision. Runs until
/// dropped.
///
/// A tick that comes late is not made up for. `wall` is asked for the time of day. The scenarios run it on a
/// paused clock.
pub async fn keep_time(
    gate: Arc<Gate>,
    upstream: Arc<Upstream>,
    telemetry: Arc<Telemetry>,
    scaling: predict::Params,
    wall: impl Fn() -> Wall,
) {
    // counted, not timed: a tick that comes a moment early must not cost a whole second
    let every = predict::interval(&scaling).as_secs().max(1);
    let acts = scaling.mode == Mode::Act;
    let mut predictor = Predictor::new(scaling);
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut passed = 0;
    seconds.tick().await;
    loop {
        seconds.tick().await;
        gate.tick();
        passed += 1;
        let decide = passed % every == 0;
        let (ready, decision) = gate
            .consult(wall(), |snapshot| (predictor.tick(snapshot), decide.then(|| predictor.plan(snapshot))));
        telemetry.ready(GROUP, ready);
        upstream.prepare(warm(&gate, ready, acts));
        if let Some(decision) = decision {
            gate.install(decision);
        }
        if predictor.refit_due() {
            predictor.refit();
        }
    }
}

/// Connections to have open: none before their time where the upstream fails, a drain has begun or the mode is
/// to watch only.
fn warm(gate: &Gate, ready: Ready, acts: bool) -> usize {
    let status = gate.status();
    let may = acts && !status.draining && status.breaker == BreakerState::Closed;
    if may { usize::try_from(ready.connections).unwrap_or(usize::MAX) } else { 0 }
}

/// The time of day in the system's time zone.
fn wall() -> Wall {
    let Ok(now) = jiff::Timestamp::try_from(clock::wall()) else { return Wall::default() };
    let hour = now.to_zoned_datetime(jiff::tz::TimeZone::system()).hour();
    Wall { unix: now.as_second(), hour: u8::try_from(hour).unwrap_or_default() }
}
