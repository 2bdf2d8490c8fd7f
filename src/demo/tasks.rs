//! The only place of this room that spawns: tasks that end with their owner.
//!
//! A connection's driver that outlives its owner would keep a port, a slot or a test alive.
//! The simulated upstream holds one set for its connections and one per connection for h2's streams;
//! the load driver's client holds one for its connections.

use std::future::Future;

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// A set of tasks; dropping it ends them at their next await.
#[derive(Debug)]
pub(crate) struct Tasks {
    spawner: Spawner,
    _end: DropGuard,
}

/// The handle that adds tasks to a set. It does not keep the set alive.
#[derive(Clone, Debug)]
pub(crate) struct Spawner {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        let stop = CancellationToken::new();
        let spawner = Spawner { tracker: TaskTracker::new(), stop: stop.clone() };
        Self { spawner, _end: stop.drop_guard() }
    }

    pub(crate) fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Ends the tasks and waits until each is gone.
    pub(crate) async fn end(self) {
        let tracker = self.spawner.tracker.clone();
        drop(self);
        tracker.close();
        tracker.wait().await;
    }
}

impl Spawner {
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            stop.run_until_cancelled_owned(task).await;
        });
    }
}

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}
