//! What waits, and who is next.
//!
//! Three levels:
//! 1. **classes** (high, normal, low) share by smooth weighted round robin, 16 : 4 : 1: the urgent go
//!    first, and the least urgent still go;
//! 2. **tenants** within a class share by deficit round robin (Shreedhar & Varghese 1995) on estimated
//!    tokens: who asks for more waits longer, and a thousand requests of one do not bury another's two;
//! 3. within a tenant, first in, first out.
//!
//! Everything is ordered by value (`BTreeMap`), so that the same events give the same order anywhere.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::policy::units::{MonoTime, Priority, TenantId, Ticket, Tokens};

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number.
    pub ticket: Ticket,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its class.
    pub priority: Priority,
    /// What it will take of the upstream.
    pub cost: Tokens,
    /// Memory its body holds.
    pub bytes: u64,
    /// When its wait ends in vain.
    pub deadline: MonoTime,
    /// When its response's head must be there, if its client said so.
    pub head_by: Option<MonoTime>,
    /// It wants a stream.
    pub stream: bool,
    /// It will become a tunnel.
    pub websocket: bool,
}

/// Weights of the classes, by [`Priority::index`].
const WEIGHTS: [i64; 3] = [16, 4, 1];
/// Tokens a tenant may take per turn.
const QUANTUM: u64 = 1024;
/// What one request counts for at most: `max_tokens` is a bound, rarely a plan.
const MAX_COST: u64 = 16 * QUANTUM;

#[derive(Clone, Debug, Default)]
struct Lane {
    entries: BTreeMap<u64, Waiting>,
    deficit: u64,
    /// Its turn has begun, and it has been given this turn's tokens.
    in_turn: bool,
}

#[derive(Clone, Debug, Default)]
struct Class {
    lanes: BTreeMap<TenantId, Lane>,
    turn: VecDeque<TenantId>,
    len: usize,
    credit: i64,
}

/// The queue. Bounds are the engine's business; this only orders.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    classes: [Class; 3],
    places: BTreeMap<Ticket, (Priority, TenantId, u64)>,
    deadlines: BTreeSet<(MonoTime, Ticket)>,
    arrivals: u64,
    bytes: u64,
}

impl Queue {
    /// Requests that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// This one waits.
    #[must_use]
    pub fn contains(&self, ticket: Ticket) -> bool {
        self.places.contains_key(&ticket)
    }

    /// Bytes their bodies hold.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Requests that wait, by class.
    #[must_use]
    pub fn by_priority(&self) -> [usize; 3] {
        [self.classes[0].len, self.classes[1].len, self.classes[2].len]
    }

    /// The earliest moment at which a wait ends in vain.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Puts a request at the end of its line. A ticket that already waits is not taken twice.
    pub fn push(&mut self, request: Waiting) {
        if self.places.contains_key(&request.ticket) {
            return;
        }
        let seq = self.arrivals;
        self.arrivals += 1;
        self.places.insert(request.ticket, (request.priority, request.tenant, seq));
        self.deadlines.insert((request.deadline, request.ticket));
        self.bytes = self.bytes.saturating_add(request.bytes);
        let class = &mut self.classes[request.priority.index()];
        class.len += 1;
        let lane = class.lanes.entry(request.tenant).or_default();
        if lane.entries.is_empty() {
            class.turn.push_back(request.tenant);
        }
        lane.entries.insert(seq, request);
    }

    /// Takes one out of the middle: its client left, or its time is over.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let (priority, tenant, seq) = self.places.remove(&ticket)?;
        self.take_out(priority, tenant, seq)
    }

    /// Takes out the next one whose turn it is.
    pub fn pop(&mut self) -> Option<Waiting> {
        let priority = self.next_class()?;
        let class = &mut self.classes[priority.index()];
        loop {
            let tenant = *class.turn.front()?;
            let lane = class.lanes.get_mut(&tenant)?;
            let (&seq, head) = lane.entries.first_key_value()?;
            let cost = head.cost.0.clamp(1, MAX_COST);
            // topped up as its turn begins, not as it ends: else a newcomer's first turn would be an empty one
            if !std::mem::replace(&mut lane.in_turn, true) {
                lane.deficit += QUANTUM;
            }
            if lane.deficit >= cost {
                lane.deficit -= cost;
                let ticket = head.ticket;
                self.places.remove(&ticket);
                return self.take_out(priority, tenant, seq);
            }
            lane.in_turn = false;
            class.turn.rotate_left(1);
        }
    }

    /// Every ticket whose deadline is at or before `at`, earliest first.
    #[must_use]
    pub fn expiring(&self, at: MonoTime) -> Vec<Ticket> {
        self.deadlines.iter().take_while(|(d, _)| *d <= at).map(|(_, t)| *t).collect()
    }

    /// About how many requests would be served before one that `tenant` adds now.
    ///
    /// In its class every other tenant gets a turn for each of the tenant's own; other classes take
    /// their weight's share. Never more than all that wait.
    #[must_use]
    pub fn ahead_of(&self, priority: Priority, tenant: TenantId) -> usize {
        let class = &self.classes[priority.index()];
        let own = class.lanes.get(&tenant).map_or(0, |lane| lane.entries.len());
        let in_class = if own == 0 && class.len > 0 {
            class.len.min(class.turn.len())
        } else {
            class.len.min((own + 1).saturating_mul(class.turn.len().max(1)))
        };
        let weight = WEIGHTS[priority.index()] as usize;
        let others: usize = Priority::ALL
            .iter()
            .filter(|p| **p != priority)
            .map(|p| {
                let share = (in_class + 1).saturating_mul(WEIGHTS[p.index()] as usize).div_ceil(weight);
                self.classes[p.index()].len.min(share)
            })
            .sum();
        (in_class + others).min(self.len())
    }

    fn next_class(&mut self) -> Option<Priority> {
        let mut total = 0;
        for p in Priority::ALL {
            let class = &mut self.classes[p.index()];
            if class.len > 0 {
                class.credit += WEIGHTS[p.index()];
                total += WEIGHTS[p.index()];
            } else {
                class.credit = 0;
            }
        }
        let mut best: Option<Priority> = None;
        for p in Priority::ALL {
            let class = &self.classes[p.index()];
            if class.len > 0 && best.is_none_or(|b| class.credit > self.classes[b.index()].credit) {
                best = Some(p);
            }
        }
        let best = best?;
        self.classes[best.index()].credit -= total;
        Some(best)
    }

    fn take_out(&mut self, priority: Priority, tenant: TenantId, seq: u64) -> Option<Waiting> {
        let class = &mut self.classes[priority.index()];
        let lane = class.lanes.get_mut(&tenant)?;
        let request = lane.entries.remove(&seq)?;
        if lane.entries.is_empty() {
            // a lane that is gone takes its unused deficit with it: nobody saves up while absent
            class.lanes.remove(&tenant);
            if let Some(place) = class.turn.iter().position(|t| *t == tenant) {
                class.turn.remove(place);
            }
        }
        class.len -= 1;
        self.deadlines.remove(&(request.deadline, request.ticket));
        self.bytes = self.bytes.saturating_sub(request.bytes);
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn w(ticket: u64, tenant: u64, priority: Priority, cost: u64) -> Waiting {
        Waiting {
            ticket: Ticket(ticket),
            tenant: TenantId(tenant),
            priority,
            cost: Tokens(cost),
            bytes: 10,
            deadline: MonoTime::from_secs(60 + ticket),
            head_by: None,
            stream: false,
            websocket: false,
        }
    }

    fn order(q: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| q.pop()).map(|r| r.ticket.0).collect()
    }

    #[test]
    fn a_newcomer_waits_for_the_rest_of_one_turn() {
        for served in 0..20 {
            let mut q = Queue::default();
            (0..100).for_each(|t| q.push(w(t, 1, Priority::Normal, 1024)));
            (0..served).for_each(|_| assert!(q.pop().is_some()));
            q.push(w(1000, 2, Priority::Normal, 1024));
            let ahead = order(&mut q).iter().position(|t| *t == 1000).unwrap();
            assert!(ahead <= 4, "after {served}: {ahead} of 4 in a turn");
        }
    }

    #[test]
    fn a_tenant_with_a_thousand_requests_does_not_bury_one_with_two() {
        let mut q = Queue::default();
        for t in 0..1000 {
            q.push(w(t, 1, Priority::Normal, 4096));
        }
        q.push(w(5000, 2, Priority::Normal, 4096));
        q.push(w(5001, 2, Priority::Normal, 4096));
        let order = order(&mut q);
        let at = |t| order.iter().position(|x| *x == t).unwrap();
        assert!(at(5000) <= 2 && at(5001) <= 4, "{:?}", &order[..8]);
        let own: Vec<_> = order.iter().filter(|t| **t < 5000).copied().collect();
        assert!(own.is_sorted(), "first in, first out within a tenant");
        assert_eq!((q.len(), q.bytes(), q.next_deadline()), (0, 0, None));
    }

    #[test]
    fn who_asks_for_four_times_the_tokens_gets_a_quarter_of_the_turns() {
        let mut q = Queue::default();
        for t in 0..100 {
            q.push(w(t, 1, Priority::Normal, 4 * QUANTUM));
            q.push(w(1000 + t, 2, Priority::Normal, QUANTUM));
        }
        let first: Vec<_> = order(&mut q).into_iter().take(50).collect();
        let large = first.iter().filter(|t| **t < 1000).count();
        assert!((9..=11).contains(&large), "{large}");
    }

    #[test]
    fn the_urgent_go_first_and_the_least_urgent_still_go() {
        let mut q = Queue::default();
        for t in 0..210 {
            q.push(w(t, 1, Priority::Low, 1));
            q.push(w(1000 + t, 1, Priority::High, 1));
        }
        let first: Vec<_> = order(&mut q).into_iter().take(170).collect();
        assert!(first[0] >= 1000);
        assert_eq!(first.iter().filter(|t| **t < 1000).count(), 10);
    }

    #[test]
    fn one_taken_from_the_middle_is_gone_everywhere() {
        let mut q = Queue::default();
        for t in 0..3 {
            q.push(w(t, t, Priority::Normal, 1));
        }
        assert_eq!(q.remove(Ticket(1)).map(|r| r.ticket), Some(Ticket(1)));
        assert_eq!(q.remove(Ticket(1)), None);
        assert_eq!(q.expiring(MonoTime::from_secs(60)), vec![Ticket(0)]);
        assert_eq!(order(&mut q), vec![0, 2]);
    }

    #[test]
    fn a_newcomer_is_ahead_of_a_hoarder_s_tail() {
        let mut q = Queue::default();
        for t in 0..400 {
            q.push(w(t, 1, Priority::Normal, 1));
        }
        assert_eq!(q.ahead_of(Priority::Normal, TenantId(1)), 400);
        assert_eq!(q.ahead_of(Priority::Normal, TenantId(2)), 1);
        assert_eq!(q.ahead_of(Priority::High, TenantId(2)), 1);
        assert_eq!(q.ahead_of(Priority::Low, TenantId(2)), 4);
    }
}
