//! Whose turn it is within one class: deficit round robin over the tenants, first in, first out per model.

use std::collections::{BTreeMap, VecDeque};

use crate::policy::admission::Waiting;
use crate::policy::units::{ModelId, TenantId};

/// Tokens a tenant may take per turn.
pub(super) const QUANTUM: u64 = 1024;
/// What one request counts for at most: `max_tokens` is a bound, rarely a plan.
const MAX_COST: u64 = 16 * QUANTUM;

#[derive(Clone, Debug, Default)]
pub(super) struct Lane {
    pub(super) lines: BTreeMap<ModelId, BTreeMap<u64, Waiting>>,
    pub(super) len: usize,
    pub(super) deficit: u64,
    /// Its turn has begun, and it has been given this turn's tokens.
    in_turn: bool,
}

/// What a request takes of its tenant's turn.
pub(super) fn turn_cost(request: &Waiting) -> u64 {
    request.cost.0.clamp(1, MAX_COST)
}

impl Lane {
    /// The first that may go.
    fn head(&self, may: &mut impl FnMut(&Waiting) -> bool) -> Option<&Waiting> {
        let heads = self.lines.values().filter_map(BTreeMap::first_key_value);
        heads.filter(|(_, w)| may(w)).min_by_key(|(seq, _)| **seq).map(|(_, w)| w)
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Class {
    /// Those that came back, in the order they did.
    pub(super) returned: BTreeMap<u64, Waiting>,
    pub(super) lanes: BTreeMap<TenantId, Lane>,
    pub(super) turn: VecDeque<TenantId>,
    pub(super) len: usize,
    pub(super) credit: i64,
}

/// What `may` said about the heads of a class; each is asked once, for it may answer otherwise later: who was found to
/// go still may when its turn comes round.
#[derive(Debug, Default)]
pub(super) struct Asked {
    returned: Option<Waiting>,
    heads: BTreeMap<TenantId, Option<Waiting>>,
}

impl Asked {
    /// Somebody may go.
    pub(super) fn any(&self) -> bool {
        self.returned.is_some() || self.heads.values().any(Option::is_some)
    }
}

impl Class {
    /// Asks until one may go, in the order of their turns.
    pub(super) fn ask(&self, may: &mut impl FnMut(&Waiting) -> bool) -> Asked {
        let mut asked =
            Asked { returned: self.returned.values().find(|w| may(w)).copied(), ..Asked::default() };
        if asked.returned.is_none() {
            for tenant in &self.turn {
                let head = self.lanes.get(tenant).and_then(|lane| lane.head(may)).copied();
                asked.heads.insert(*tenant, head);
                if head.is_some() {
                    break;
                }
            }
        }
        asked
    }

    /// Who is next by deficit round robin. Lanes that cannot pay yet go to the back; those of which nobody may go
    /// keep their place.
    pub(super) fn head(
        &mut self,
        mut asked: Asked,
        may: &mut impl FnMut(&Waiting) -> bool,
    ) -> Option<Waiting> {
        if asked.returned.is_some() {
            return asked.returned;
        }
        loop {
            let lanes = &self.lanes;
            let mut head_of = |tenant: &TenantId| {
                let ask = || lanes.get(tenant).and_then(|lane| lane.head(may)).copied();
                *asked.heads.entry(*tenant).or_insert_with(ask)
            };
            let mut turn = self.turn.iter().enumerate();
            let (place, tenant, head) = turn.find_map(|(i, t)| Some((i, *t, head_of(t)?)))?;
            let lane = self.lanes.get_mut(&tenant)?;
            // topped up as its turn begins, not as it ends: else a newcomer's first turn would be an empty one
            if !std::mem::replace(&mut lane.in_turn, true) {
                lane.deficit += QUANTUM;
            }
            if lane.deficit >= turn_cost(&head) {
                return Some(head);
            }
            lane.in_turn = false;
            self.turn.remove(place);
            self.turn.push_back(tenant);
        }
    }
}
