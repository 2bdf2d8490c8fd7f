//! Passive outlier detection: an endpoint that is far slower than its peers rests for a while.
//!
//! Compared is what does not depend on length: time to the first token, and time per token after it, each against
//! the median of the tier's others. At most half of a tier rests at once, and one that comes back is eased in.

use std::time::Duration;

use crate::policy::supply::fleet::endpoint::Endpoint;
use crate::policy::supply::fleet::quickness::{Average, Quickness};
use crate::policy::supply::fleet::{Paces, Report, endpoint_id};
use crate::policy::units::MonoTime;

/// How often the endpoints are compared.
pub(super) const EVERY: Duration = Duration::from_secs(5);
/// Times slower than its peers that is too slow.
const FACTOR: f64 = 5.0;
/// Responses that an average needs to say anything.
const SAMPLES: u32 = 5;
/// The first rest; each further one in a row is as much longer, up to ten.
const REST: Duration = Duration::from_secs(30);
const LONGEST: u32 = 10;

/// Compares the endpoints of each tier with each other.
pub(super) fn eject(
    endpoints: &mut [Endpoint],
    tiers: &[Vec<usize>],
    now: MonoTime,
    reports: &mut Vec<Report>,
) {
    for tier in tiers.iter().filter(|tier| tier.len() > 1) {
        let mut resting = tier.iter().filter(|i| endpoints[**i].ejected(now)).count();
        for &i in tier {
            let e = &endpoints[i];
            if e.ejected(now) || (resting + 1) * 2 > tier.len() {
                continue;
            }
            let own = |e: &Endpoint, of: fn(&Quickness) -> Average| {
                Some(of(&e.pace)).filter(|a| a.samples >= SAMPLES).map(|a| a.mean)
            };
            let peers = |of: fn(&Quickness) -> Average| {
                let others = tier.iter().filter(|o| **o != i).map(|o| &endpoints[*o]);
                median(others.filter(|o| !o.ejected(now)).filter_map(|o| own(o, of)).collect())
            };
            let paces = Paces {
                first: own(e, |pace| pace.first),
                first_of_peers: peers(|pace| pace.first),
                token: own(e, |pace| pace.token),
                token_of_peers: peers(|pace| pace.token),
            };
            let slower = |own: Option<f64>, peers: Option<f64>| Some(own? / peers.filter(|p| *p > 0.0)?);
            let first = slower(paces.first, paces.first_of_peers);
            let token = slower(paces.token, paces.token_of_peers);
            let Some(factor) = first.into_iter().chain(token).max_by(f64::total_cmp) else { continue };
            let e = &mut endpoints[i];
            if factor >= FACTOR {
                e.ejections = (e.ejections + 1).min(LONGEST);
                let until = now + REST * e.ejections;
                // the way back begins when the rest is over
                e.comes_back(until);
                e.ejected_until = until;
                resting += 1;
                reports.push(Report::Ejected { endpoint: endpoint_id(i), factor, paces, until });
            } else {
                e.ejections = 0;
            }
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
