//! What the endpoints' breakers come to together: whether the group serves, and when it is worth another try. The engine
//! asks.

use std::time::Duration;

use crate::policy::supply::BreakerState;
use crate::policy::supply::fleet::Fleet;
use crate::policy::units::MonoTime;

impl Fleet {
    /// Some endpoint takes requests.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.endpoints.iter().any(|e| e.breaker.state() == BreakerState::Closed)
    }

    /// The state that describes the group: the best of its endpoints.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        let states = || self.endpoints.iter().map(|e| e.breaker.state());
        [BreakerState::Closed, BreakerState::HalfOpen]
            .into_iter()
            .find(|s| states().any(|x| x == *s))
            .unwrap_or(BreakerState::Open)
    }

    /// With every breaker open: when the first lets its probe pass.
    #[must_use]
    pub fn open_until(&self) -> Option<MonoTime> {
        let mut first: Option<MonoTime> = None;
        for endpoint in &self.endpoints {
            let until = endpoint.breaker.open_until()?;
            first = Some(first.map_or(until, |f| f.min(until)));
        }
        first
    }

    /// The next moment after `now` at which a broken endpoint lets its probe pass.
    #[must_use]
    pub fn next_probe(&self, now: MonoTime) -> Option<MonoTime> {
        self.endpoints.iter().filter_map(|e| e.breaker.open_until()).filter(|at| *at > now).min()
    }

    /// For how long a probe has been wanted, where no endpoint takes requests.
    #[must_use]
    pub fn due_since(&self) -> Option<MonoTime> {
        if self.serves() { None } else { self.endpoints.iter().filter_map(|e| e.breaker.due_since()).min() }
    }

    /// How long a breaker stays open.
    #[must_use]
    pub fn recovery(&self) -> Duration {
        self.params.breaker.recovery
    }
}
