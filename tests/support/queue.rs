//! The queue again, the slow way: one list in order of arrival, searched from the front each time.

use tidegate::policy::admission::{Queue, Waiting};
use tidegate::policy::units::{MonoTime, Priority, TenantId, Ticket};

/// What a request in line is like.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) tenant: u64,
    pub(crate) priority: Priority,
    pub(crate) cost: u64,
    pub(crate) bytes: u64,
}

/// What the queue is held against.
#[derive(Default)]
pub(crate) struct PlainQueue {
    all: Vec<Waiting>,
    /// Per class: whose turn it is next, and what each may still take. The first one's turn has begun when its
    /// tenant is in `begun`.
    turns: [Vec<(TenantId, u64)>; 3],
    begun: [Option<TenantId>; 3],
    credit: [i64; 3],
}

/// Tokens a tenant may take per turn.
pub(crate) const TURN: u64 = 1024;
/// What one request counts for at most.
pub(crate) const LARGEST: u64 = 16 * TURN;

impl PlainQueue {
    pub(crate) fn pick(&self, n: u8) -> Option<Waiting> {
        self.all.get(usize::from(n) % self.all.len().max(1)).copied()
    }

    pub(crate) fn push(&mut self, w: Waiting) {
        self.all.push(w);
        let turns = &mut self.turns[w.priority.index()];
        if turns.iter().all(|(tenant, _)| *tenant != w.tenant) {
            turns.push((w.tenant, 0));
        }
    }

    pub(crate) fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let at = self.all.iter().position(|w| w.ticket == ticket)?;
        let w = self.all.remove(at);
        if self.head(w.priority, w.tenant).is_none() {
            let begun = &mut self.begun[w.priority.index()];
            *begun = begun.filter(|tenant| *tenant != w.tenant);
            self.turns[w.priority.index()].retain(|(tenant, _)| *tenant != w.tenant);
        }
        Some(w)
    }

    /// Smooth weighted round robin over the classes, deficit round robin over the tenants of one.
    pub(crate) fn pop(&mut self) -> Option<Waiting> {
        let present = |p: &Priority| self.all.iter().any(|w| w.priority == *p);
        let weight = |p: Priority| [16, 4, 1][p.index()];
        let here: Vec<Priority> = Priority::ALL.into_iter().filter(present).collect();
        if here.is_empty() {
            // classes keep what they had until somebody is served again; absent ones have nothing
            self.credit = [0; 3];
            return None;
        }
        for p in Priority::ALL {
            let credit = &mut self.credit[p.index()];
            *credit = if here.contains(&p) { *credit + weight(p) } else { 0 };
        }
        let most = here.iter().map(|p| self.credit[p.index()]).max()?;
        let class = *here.iter().find(|p| self.credit[p.index()] == most)?;
        self.credit[class.index()] -= here.iter().map(|p| weight(*p)).sum::<i64>();
        loop {
            let (tenant, mut left) = self.turns[class.index()].remove(0);
            if self.begun[class.index()].replace(tenant) != Some(tenant) {
                left += TURN;
            }
            let head = self.head(class, tenant)?;
            let cost = head.cost.0.clamp(1, LARGEST);
            if left >= cost {
                self.turns[class.index()].insert(0, (tenant, left - cost));
                return self.remove(head.ticket);
            }
            self.begun[class.index()] = None;
            self.turns[class.index()].push((tenant, left));
        }
    }

    fn head(&self, priority: Priority, tenant: TenantId) -> Option<Waiting> {
        self.all.iter().find(|w| w.priority == priority && w.tenant == tenant).copied()
    }

    /// The queue's own numbers are what the list says.
    pub(crate) fn same_as(&self, queue: &Queue) {
        assert_eq!((queue.len(), queue.is_empty()), (self.all.len(), self.all.is_empty()));
        assert_eq!(queue.bytes(), self.all.iter().map(|w| w.bytes).sum::<u64>());
        let by_class = Priority::ALL.map(|p| self.all.iter().filter(|w| w.priority == p).count());
        assert_eq!(queue.by_priority(), by_class);
        let mut deadlines: Vec<_> = self.all.iter().map(|w| (w.deadline, w.ticket)).collect();
        deadlines.sort_unstable();
        assert_eq!(queue.next_deadline(), deadlines.first().map(|(at, _)| *at));
        let tickets = |until: MonoTime| -> Vec<Ticket> {
            deadlines.iter().filter(|(at, _)| *at <= until).map(|(_, ticket)| *ticket).collect()
        };
        for until in [MonoTime::ZERO, MonoTime::from_secs(15), MonoTime::MAX] {
            assert_eq!(queue.expiring(until), tickets(until));
        }
        for p in Priority::ALL {
            assert!(queue.ahead_of(p, TenantId(1)) <= queue.len());
        }
    }
}
