//! The proxy's seconds, on a thread of their own: the predictor's hourly fits take tens of milliseconds, for
//! which no request, no timer and no scrape has to wait.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::app::Shared;
use crate::clock;
use crate::policy::predict::{self, Mode, Predictor, Ready, Wall};
use crate::policy::supply::{BreakerState, EndpointParams};
use crate::proxy::{Group, Routes};
use crate::telemetry::Telemetry;

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
    let Shared { routes, telemetry, force, .. } = shared;
    let all = (0..routes.groups().len())
        .map(|group| keep_time(routes.clone(), group, telemetry.clone(), scaling.clone(), wall));
    runtime.block_on(async {
        tokio::select! {
            _ = join_all(all) => {}
            () = force.cancelled() => {}
        }
    });
}

/// For one group, by its number: each second the engine's tick and what should be ready; every [`predict::interval`] a decision. Runs until
/// dropped.
///
/// A tick that comes late is not made up for. `wall` is asked for the time of day. The scenarios run it on a
/// paused clock.
pub async fn keep_time(
    routes: Arc<Routes>,
    group: usize,
    telemetry: Arc<Telemetry>,
    scaling: predict::Params,
    wall: impl Fn() -> Wall,
) {
    let Some(group) = routes.groups().get(group) else { return };
    let gate = group.gate();
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
        telemetry.ready(group.name(), ready);
        prepare(group, if acts { ready } else { Ready::default() });
        if let Some(decision) = decision {
            gate.install(decision);
        }
        if predictor.refit_due() {
            predictor.refit();
        }
    }
}

/// Has each endpoint open its share of the connections, by weight among those that are used first: none before
/// their time where all of them fail, a drain has begun or the mode is to watch only.
fn prepare(group: &Group, ready: Ready) {
    let status = group.gate().status();
    let closed = |i: usize| status.endpoints.get(i).is_some_and(|e| e.breaker == BreakerState::Closed);
    let settings = || group.endpoints().iter().map(|upstream| &upstream.params().supply).enumerate();
    let tier = settings().filter(|(i, _)| closed(*i)).map(|(_, s)| s.tier).min();
    let weight = |(i, s): (usize, &EndpointParams)| {
        let used = closed(i) && Some(s.tier) == tier && !status.draining;
        if used { u64::from(s.weight) } else { 0 }
    };
    let all: u64 = settings().map(weight).sum();
    for (upstream, own) in group.endpoints().iter().zip(settings().map(weight)) {
        let part = (u64::from(ready.connections) * own).div_ceil(all.max(1));
        upstream.prepare(usize::try_from(part).unwrap_or(usize::MAX));
    }
}

/// The time of day in the system's time zone.
fn wall() -> Wall {
    let Ok(now) = jiff::Timestamp::try_from(clock::wall()) else { return Wall::default() };
    let hour = now.to_zoned_datetime(jiff::tz::TimeZone::system()).hour();
    Wall { unix: now.as_second(), hour: u8::try_from(hour).unwrap_or_default() }
}
