//! The resizable semaphore: two integers, one object for the life of the process.
//!
//! `free = limit − in_flight` may be negative after a shrink: that debt is worked off by requests
//! that end, and nothing is admitted until it is gone. Replacing a semaphore by a smaller or larger
//! one instead lets the old one's holders run beside the new one's, far past either limit.

/// How many requests may be in flight, and how many are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permits {
    limit: u32,
    in_flight: u32,
}

impl Permits {
    /// `limit` permits, none taken.
    #[must_use]
    pub const fn new(limit: u32) -> Self {
        Self { limit, in_flight: 0 }
    }

    /// The bound.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Permits taken.
    #[must_use]
    pub const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Permits that can be taken now. A debt counts as none.
    #[must_use]
    pub const fn free(&self) -> u32 {
        self.limit.saturating_sub(self.in_flight)
    }

    /// Takes one if there is one.
    pub const fn take(&mut self) -> bool {
        if self.free() == 0 {
            return false;
        }
        self.in_flight += 1;
        true
    }

    /// Gives one back.
    pub const fn give_back(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Moves the bound; what is in flight stays in flight.
    pub const fn resize(&mut self, limit: u32) {
        self.limit = limit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shrink_is_worked_off_before_anything_is_admitted() {
        let mut p = Permits::new(3);
        assert!(p.take() && p.take() && p.take() && !p.take());
        p.resize(1);
        p.give_back();
        assert!(!p.take(), "two are in flight under a limit of one");
        p.give_back();
        assert!(!p.take());
        p.give_back();
        assert!(p.take());
        assert_eq!((p.limit(), p.in_flight(), p.free()), (1, 1, 0));
    }
}
