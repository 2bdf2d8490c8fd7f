//! What goes wrong with an upstream is said once per kind, and from then on how often it has.
//!
//! Without it an upstream that fails writes a line for every request, just when somebody has to read the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::policy::units::MonoTime;

/// Between two lines of one kind.
const EVERY: Duration = Duration::from_secs(10);

/// When each kind was said of each upstream.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<BTreeMap<(Arc<str>, &'static str), Said>>);

#[derive(Clone, Copy, Debug)]
struct Said {
    at: MonoTime,
    /// How often it was kept back since then.
    kept: u64,
}

impl Seldom {
    /// It has happened once more: if it is to be said now, how often it has since it was said last.
    pub(super) fn again(&self, now: MonoTime, upstream: &Arc<str>, kind: &'static str) -> Option<u64> {
        // what is under the lock is whole at any time
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get_mut(&(upstream.clone(), kind)) {
            None => {
                all.insert((upstream.clone(), kind), Said { at: now, kept: 0 });
                Some(1)
            }
            Some(said) if now.since(said.at) < EVERY => {
                said.kept += 1;
                None
            }
            Some(said) => {
                let times = said.kept + 1;
                *said = Said { at: now, kept: 0 };
                Some(times)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_others_are_counted() {
        let seldom = Seldom::default();
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let at = |second: u64| seldom.again(MonoTime::from_secs(second), &one, "reset");
        // two a second, for half a minute
        let said: Vec<_> = (0..60).filter_map(|n| at(100 + n / 2)).collect();
        assert_eq!(said, [1, 20, 20]);
        assert_eq!(seldom.again(MonoTime::from_secs(129), &one, "timeout"), Some(1), "another kind");
        assert_eq!(seldom.again(MonoTime::from_secs(129), &other, "reset"), Some(1), "another upstream");
        assert_eq!(at(1000), Some(20));
        assert_eq!(at(2000), Some(1));
    }
}
