//! SIGTERM and SIGINT: the first one drains, the second ends at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::Stop;

/// Turns signals into calls of `stop`, on a thread of its own, for the rest of the process.
pub(super) fn drain_on_signal(stop: Stop) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut term, mut int) = {
        let _inside = runtime.enter();
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            next(&mut term, &mut int).await;
            stop.drain();
            next(&mut term, &mut int).await;
            stop.now();
        });
    })?;
    Ok(())
}

async fn next(term: &mut Signal, int: &mut Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
