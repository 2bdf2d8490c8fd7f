//! One connection's dates: when it was made, when another has to be ready to take its place.
//!
//! A connection is replaced for two reasons. Unused, the upstream will close it: its replacement is made
//! before `upstream.idle_timeout` is over. And no connection is to grow older than `upstream.refresh`:
//! one that lives for ever goes on to an address that DNS has long replaced, to the server a load balancer
//! wanted to empty, or to one of many after the others were restarted.
//!
//! ```text
//! renew   = last use + idle_timeout · (0.60 + 0.25 u)
//! retire  = made     + refresh      · (0.70 + 0.20 u)        u = frac(n · 0.618…), n = its number
//! ```
//!
//! The multiples of the golden ratio lie as evenly in [0, 1) as points can that come one by one (a
//! Weyl sequence): connections made in one second are not all replaced in one second.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::policy::units::MonoTime;

/// 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// `base · (from + span · u)` for the `n`th connection, in thousandths: no float, nothing to overflow.
fn spread(base: Duration, from: u32, span: u32, n: u64) -> Duration {
    let u = u32::try_from(n.wrapping_mul(GOLDEN) >> 54).unwrap_or_default();
    (base / 1000).saturating_mul(from + span * u / 1024)
}

/// How long connections of one upstream live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    /// Unused for so long, a connection is closed.
    pub(super) idle_timeout: Duration,
    /// The age no connection is to pass; zero: none.
    pub(super) refresh: Duration,
}

impl Lifetime {
    /// How often to look, where a second is too long to find what is due before it is too late.
    pub(super) fn glance(&self) -> Option<Duration> {
        let shortest = match self.refresh {
            Duration::ZERO => self.idle_timeout,
            refresh => refresh.min(self.idle_timeout),
        };
        let tenth = (shortest / 10).max(Duration::from_millis(20));
        (tenth < Duration::from_secs(1)).then_some(tenth)
    }
}

/// What is known of one open connection. The pool's list has it, and so does whoever holds the connection.
#[derive(Debug)]
pub(super) struct Card {
    /// The worker that drives it.
    pub(super) home: usize,
    /// Where it leads.
    address: Option<IpAddr>,
    pub(super) made: MonoTime,
    retire: MonoTime,
    renew_after: Duration,
    /// A request has been on it.
    used: AtomicBool,
    /// It serves what it has and no more: it no longer counts as ready.
    retired: AtomicBool,
}

impl Card {
    /// The card of a connection made `now`; `numbers` counts them.
    pub(super) fn new(
        home: usize,
        address: Option<IpAddr>,
        lifetime: &Lifetime,
        numbers: &AtomicU64,
        now: MonoTime,
    ) -> Arc<Self> {
        let n = numbers.fetch_add(1, Ordering::Relaxed);
        let retire = match lifetime.refresh {
            Duration::ZERO => MonoTime::MAX,
            refresh => now + spread(refresh, 700, 200, n),
        };
        Arc::new(Self {
            home,
            address,
            made: now,
            retire,
            renew_after: spread(lifetime.idle_timeout, 600, 250, n),
            used: AtomicBool::new(false),
            retired: AtomicBool::new(false),
        })
    }

    /// It is old enough for another to take its place.
    pub(super) fn is_old(&self, now: MonoTime) -> bool {
        now >= self.retire
    }

    /// Unused since `since`, it may soon be closed by the upstream.
    pub(super) fn is_stale(&self, since: MonoTime, now: MonoTime) -> bool {
        now >= since + self.renew_after
    }

    /// It leads to none of these addresses; one that leads to no address has nothing to leave.
    pub(super) fn is_elsewhere(&self, present: &[IpAddr]) -> bool {
        self.address.is_some_and(|address| !present.contains(&address))
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }

    pub(super) fn set_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    pub(super) fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn cards(n: usize, lifetime: Lifetime) -> Vec<Arc<Card>> {
        let numbers = AtomicU64::new(0);
        (0..n).map(|_| Card::new(0, None, &lifetime, &numbers, MonoTime::from_secs(100))).collect()
    }

    #[test]
    fn connections_made_at_once_are_replaced_one_by_one_and_all_in_time() {
        let lifetime = Lifetime { idle_timeout: 50 * S, refresh: 300 * S };
        let cards = cards(600, lifetime);
        let mut per_second = [[0; 400]; 2];
        for card in &cards {
            let old = card.retire.since(card.made).as_secs() as usize;
            let stale = card.renew_after.as_secs() as usize;
            assert!((210..270).contains(&old) && (30..43).contains(&stale), "{old} {stale}");
            per_second[0][old] += 1;
            per_second[1][stale] += 1;
        }
        // 600 over 60 s and over 12.5 s
        assert!(per_second[0].iter().all(|n| *n <= 13), "{:?}", per_second[0]);
        assert!(per_second[1].iter().all(|n| *n <= 52), "{:?}", per_second[1]);
    }

    #[test]
    fn any_setting_gives_dates() {
        for time in [Duration::ZERO, Duration::from_nanos(1), S, Duration::MAX] {
            let lifetime = Lifetime { idle_timeout: time, refresh: time };
            for card in cards(3, lifetime) {
                let now = MonoTime::from_secs(101);
                assert_eq!(card.is_old(now), !time.is_zero() && time <= S, "{time:?}");
                assert_eq!(card.is_stale(card.made, now), time <= S, "{time:?}");
            }
            let _ = lifetime.glance();
        }
    }

    #[test]
    fn a_glance_is_only_for_what_a_second_would_miss() {
        let of = |idle_timeout, refresh| Lifetime { idle_timeout, refresh }.glance();
        assert_eq!(of(50 * S, 300 * S), None);
        assert_eq!(of(50 * S, Duration::ZERO), None);
        assert_eq!(of(5 * S, 300 * S), Some(S / 2));
        assert_eq!(of(50 * S, S), Some(S / 10));
        assert_eq!(of(S / 1000, S), Some(Duration::from_millis(20)));
    }
}
