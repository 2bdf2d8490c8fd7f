//! What waits, and who is next.
//!
//! Three levels:
//! 1. **classes** (high, normal, low) share by smooth weighted round robin, 16 : 4 : 1: the urgent go
//!    first, and the least urgent still go;
//! 2. **tenants** within a class share by deficit round robin (Shreedhar & Varghese 1995) on estimated
//!    tokens: who asks for more waits longer, and a thousand requests of one do not bury another's two;
//! 3. within a tenant, first in, first out per model.
//!
//! A request that was admitted before and comes back for another try stands before all lines of its class; one that
//! takes no permit stands beside them, for it waits for nobody's turn. [`Queue::next`] passes over what cannot go at
//! the moment (a model whose rate limit is used up, a try whose backoff is not over), so that it holds up nobody else.
//!
//! Everything is ordered by value (`BTreeMap`), so that the same events give the same order anywhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::policy::admission::turns::{Class, turn_cost};
use crate::policy::units::{EndpointId, ModelId, MonoTime, Priority, TenantId, Ticket, Tokens};

/// A request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its number.
    pub ticket: Ticket,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its class.
    pub priority: Priority,
    /// What it asks for.
    pub model: ModelId,
    /// What it will take of the upstream.
    pub cost: Tokens,
    /// How much of that is its prompt.
    pub prompt: Tokens,
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
    /// It takes no permit: it waits for another try only.
    pub unqueued: bool,
    /// When it came.
    pub arrived: MonoTime,
    /// Tries it has had.
    pub tries: u8,
    /// Where the last of them failed, and until when it does not go there again.
    pub avoid: Option<(EndpointId, MonoTime)>,
    /// Until when it waits for the first tier rather than go to a later one.
    pub patience: MonoTime,
}

impl Waiting {
    /// When it can do what it could not before.
    fn dues(&self) -> impl Iterator<Item = (MonoTime, Ticket)> {
        let back = self.avoid.map(|(_, until)| until);
        let dues = [Some(self.patience), back].into_iter().flatten();
        let ticket = self.ticket;
        dues.filter(|at| *at < MonoTime::MAX).map(move |at| (at, ticket))
    }
}

/// Weights of the classes, by [`Priority::index`].
const WEIGHTS: [i64; 3] = [16, 4, 1];
/// Where a request stands.
#[derive(Clone, Copy, Debug)]
struct Spot {
    priority: Priority,
    tenant: TenantId,
    model: ModelId,
    seq: u64,
    stands: Stands,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// In its tenant's lane.
    InLine,
    /// Before the lanes of its class.
    Returned,
    /// Beside all classes: it came back, and takes no permit.
    Beside,
}

/// The queue. Bounds are the engine's business; this only orders.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    classes: [Class; 3],
    beside: BTreeMap<u64, Waiting>,
    places: BTreeMap<Ticket, Spot>,
    deadlines: BTreeSet<(MonoTime, Ticket)>,
    /// When backoffs and patience are over.
    dues: BTreeSet<(MonoTime, Ticket)>,
    arrivals: u64,
    bytes: u64,
    /// The classes that had somebody to send when [`Queue::next`] was asked last.
    competing: [bool; 3],
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

    /// The one with this ticket, if it waits.
    #[must_use]
    pub fn get(&self, ticket: Ticket) -> Option<&Waiting> {
        let spot = self.places.get(&ticket)?;
        let class = &self.classes[spot.priority.index()];
        match spot.stands {
            Stands::InLine => class.lanes.get(&spot.tenant)?.lines.get(&spot.model)?.get(&spot.seq),
            Stands::Returned => class.returned.get(&spot.seq),
            Stands::Beside => self.beside.get(&spot.seq),
        }
    }

    /// Bytes their bodies hold.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Requests that wait, by class.
    #[must_use]
    pub fn by_priority(&self) -> [usize; 3] {
        Priority::ALL
            .map(|p| self.classes[p.index()].len + self.beside.values().filter(|w| w.priority == p).count())
    }

    /// Those that wait for another try and take no permit, in the order in which they came back.
    pub fn beside(&self) -> impl Iterator<Item = &Waiting> {
        self.beside.values()
    }

    /// Nobody waits for a permit.
    #[must_use]
    pub fn wants_no_permit(&self) -> bool {
        self.classes.iter().all(|class| class.len == 0)
    }

    /// The earliest moment at which a wait ends in vain.
    #[must_use]
    pub fn next_deadline(&self) -> Option<MonoTime> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// When the next backoff or patience after `now` is over.
    #[must_use]
    pub fn next_due(&self, now: MonoTime) -> Option<MonoTime> {
        self.dues.range((now, Ticket(u64::MAX))..).map(|(at, _)| *at).find(|at| *at > now)
    }

    /// Puts a request at the end of its line. A ticket that already waits is not taken twice.
    pub fn push(&mut self, request: Waiting) {
        if let Some(seq) = self.enter(&request, Stands::InLine) {
            let class = &mut self.classes[request.priority.index()];
            class.len += 1;
            let lane = class.lanes.entry(request.tenant).or_default();
            if lane.len == 0 {
                class.turn.push_back(request.tenant);
            }
            lane.len += 1;
            lane.lines.entry(request.model).or_default().insert(seq, request);
        }
    }

    /// Puts one that was admitted before at the head of its class, after those that came back before it; beside the
    /// classes if it takes no permit.
    pub fn put_back(&mut self, request: Waiting) {
        let stands = if request.unqueued { Stands::Beside } else { Stands::Returned };
        let Some(seq) = self.enter(&request, stands) else { return };
        if request.unqueued {
            self.beside.insert(seq, request);
        } else {
            let class = &mut self.classes[request.priority.index()];
            class.len += 1;
            class.returned.insert(seq, request);
        }
    }

    fn enter(&mut self, request: &Waiting, stands: Stands) -> Option<u64> {
        if self.places.contains_key(&request.ticket) {
            return None;
        }
        let seq = self.arrivals;
        self.arrivals += 1;
        let Waiting { priority, tenant, model, .. } = *request;
        self.places.insert(request.ticket, Spot { priority, tenant, model, seq, stands });
        self.deadlines.insert((request.deadline, request.ticket));
        self.dues.extend(request.dues());
        self.bytes = self.bytes.saturating_add(request.bytes);
        Some(seq)
    }

    /// Takes one out of the middle: its client left, or its time is over.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Waiting> {
        let spot = self.places.remove(&ticket)?;
        let class = &mut self.classes[spot.priority.index()];
        class.len -= usize::from(spot.stands != Stands::Beside);
        let request = match spot.stands {
            Stands::Beside => self.beside.remove(&spot.seq)?,
            Stands::Returned => class.returned.remove(&spot.seq)?,
            Stands::InLine => {
                let lane = class.lanes.get_mut(&spot.tenant)?;
                let line = lane.lines.get_mut(&spot.model)?;
                let request = line.remove(&spot.seq)?;
                if line.is_empty() {
                    lane.lines.remove(&spot.model);
                }
                lane.len -= 1;
                if lane.len == 0 {
                    // a lane that is gone takes its unused deficit with it: nobody saves up while absent
                    class.lanes.remove(&spot.tenant);
                    if let Some(place) = class.turn.iter().position(|t| *t == spot.tenant) {
                        class.turn.remove(place);
                    }
                }
                request
            }
        };
        self.deadlines.remove(&(request.deadline, ticket));
        for due in request.dues() {
            self.dues.remove(&due);
        }
        self.bytes = self.bytes.saturating_sub(request.bytes);
        Some(request)
    }

    /// Takes out the next one whose turn it is.
    pub fn pop(&mut self) -> Option<Waiting> {
        let next = self.next(&mut |_| true)?;
        self.take(next.ticket)
    }

    /// The next one among those that `may` go, whose turn it is. It stays: [`Queue::take`] takes it.
    ///
    /// Of each line only the first is asked about, so that nobody overtakes within one. Where nobody may, each of those
    /// is asked about once.
    pub fn next(&mut self, may: &mut impl FnMut(&Waiting) -> bool) -> Option<Waiting> {
        // nobody saves up while absent
        self.classes.iter_mut().filter(|class| class.len == 0).for_each(|class| class.credit = 0);
        let mut asked = [0, 1, 2].map(|p| self.classes[p].ask(may));
        let competing = [0, 1, 2].map(|p| asked[p].any());
        let priority = self.next_class(competing)?;
        self.competing = competing;
        self.classes[priority.index()].head(std::mem::take(&mut asked[priority.index()]), may)
    }

    /// Takes out one that [`Queue::next`] just named, and charges its class and its tenant for it.
    pub fn take(&mut self, ticket: Ticket) -> Option<Waiting> {
        let spot = *self.places.get(&ticket)?;
        // it was not chosen among the classes
        if spot.stands == Stands::Beside {
            return self.remove(ticket);
        }
        let mut total = 0;
        for p in Priority::ALL {
            let class = &mut self.classes[p.index()];
            if self.competing[p.index()] {
                class.credit += WEIGHTS[p.index()];
                total += WEIGHTS[p.index()];
            }
        }
        let class = &mut self.classes[spot.priority.index()];
        class.credit -= total;
        // who came back has paid its turn already
        if spot.stands == Stands::InLine
            && let Some(lane) = class.lanes.get_mut(&spot.tenant)
            && let Some(request) = lane.lines.get(&spot.model).and_then(|line| line.get(&spot.seq))
        {
            lane.deficit = lane.deficit.saturating_sub(turn_cost(request));
        }
        self.remove(ticket)
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
        let own = class.lanes.get(&tenant).map_or(0, |lane| lane.len);
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

    fn next_class(&self, competing: [bool; 3]) -> Option<Priority> {
        let claim = |p: Priority| self.classes[p.index()].credit + WEIGHTS[p.index()];
        let mut best: Option<Priority> = None;
        for p in Priority::ALL {
            if competing[p.index()] && best.is_none_or(|b| claim(p) > claim(b)) {
                best = Some(p);
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::admission::turns::QUANTUM;

    fn w(ticket: u64, tenant: u64, priority: Priority, cost: u64) -> Waiting {
        Waiting {
            ticket: Ticket(ticket),
            tenant: TenantId(tenant),
            priority,
            cost: Tokens(cost),
            bytes: 10,
            prompt: Tokens(0),
            deadline: MonoTime::from_secs(60 + ticket),
            head_by: None,
            model: ModelId(0),
            stream: false,
            websocket: false,
            unqueued: false,
            arrived: MonoTime::ZERO,
            tries: 0,
            avoid: None,
            patience: MonoTime::MAX,
        }
    }

    fn order(q: &mut Queue) -> Vec<u64> {
        std::iter::from_fn(|| q.pop()).map(|r| r.ticket.0).collect()
    }

    #[test]
    fn one_that_has_to_wait_holds_up_nobody_who_was_found_to_go() {
        // a model's rate pays for small ones only; who was found to wait makes the rest of its line wait
        let ask = |held: &mut Vec<ModelId>, w: &Waiting| {
            if held.contains(&w.model) {
                return false;
            }
            let waits = w.model == ModelId(0) && w.cost.0 > 9000;
            held.extend(waits.then_some(w.model));
            !waits
        };
        let mut q = Queue::default();
        q.push(w(1, 1, Priority::High, 10));
        q.push(w(2, 2, Priority::Normal, 10_000));
        q.push(Waiting { model: ModelId(1), ..w(3, 3, Priority::Low, 10) });
        let go = |q: &mut Queue| {
            let mut held = Vec::new();
            let next = q.next(&mut |w| ask(&mut held, w))?;
            q.take(next.ticket).map(|w| w.ticket.0)
        };
        assert_eq!([go(&mut q), go(&mut q), go(&mut q)], [Some(1), Some(3), None]);
        // within a class: the first may go and cannot pay its turn yet, the second has to wait
        let mut q = Queue::default();
        q.push(w(1, 1, Priority::Normal, 5000));
        q.push(w(2, 2, Priority::Normal, 10_000));
        assert_eq!([go(&mut q), go(&mut q)], [Some(1), None]);
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

    #[test]
    fn where_nobody_may_go_each_line_is_asked_once() {
        let mut q = Queue::default();
        for t in 0..500 {
            q.push(w(t, t, Priority::ALL[(t % 3) as usize], 1));
        }
        let mut asked = 0;
        let mut may = |_: &Waiting| {
            asked += 1;
            false
        };
        assert_eq!(q.next(&mut may), None);
        assert_eq!(asked, 500);
    }

    #[test]
    fn what_takes_no_permit_stands_beside_all_turns() {
        let mut q = Queue::default();
        q.put_back(Waiting { unqueued: true, ..w(1, 1, Priority::Normal, 1) });
        assert_eq!((q.len(), q.by_priority(), q.pop()), (1, [0, 1, 0], None));
        assert!(q.wants_no_permit() && q.contains(Ticket(1)));
        assert_eq!(q.remove(Ticket(1)).map(|r| r.ticket), Some(Ticket(1)));
        assert!(q.is_empty());
    }
}
