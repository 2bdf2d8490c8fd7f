//! What can only be wrong between upstreams: names, models that two groups want, tiers with a gap.

use std::collections::BTreeMap;

use super::reader::Reader;
use super::upstream::LIST;
use crate::policy::supply::Routing;
use crate::upstream::Params;

/// Adds every fault that no single `[[upstream]]` has.
pub(super) fn check(reader: &mut Reader, upstreams: &[Params]) {
    names(reader, upstreams);
    // of a list that could not be read its default stands in, which says nothing about the others
    if (0..upstreams.len()).any(|i| reader.is_faulty(&key(i, "models"))) {
        return;
    }
    let lists: Vec<&[String]> = upstreams.iter().map(|u| u.supply.models.as_slice()).collect();
    match Routing::new(&lists) {
        Ok(routing) => routing.groups().iter().for_each(|group| tiers(reader, upstreams, group)),
        Err(overlaps) => {
            for overlap in overlaps {
                let other = upstreams.get(overlap.first).map_or("", |u| u.name.as_str());
                reader.fault(
                    &key(overlap.second, "models"),
                    format!(
                        "{:?} overlaps with {:?} of {other:?}: give both upstreams the same models, or models \
                         that have nothing in common",
                        overlap.second_pattern, overlap.first_pattern
                    ),
                );
            }
        }
    }
}

fn key(at: usize, name: &str) -> String {
    format!("{LIST}.{at}.{name}")
}

fn names(reader: &mut Reader, upstreams: &[Params]) {
    let mut known = BTreeMap::new();
    for (at, upstream) in upstreams.iter().enumerate() {
        let name_key = key(at, "name");
        match known.insert(&upstream.name, at) {
            Some(first) if !reader.is_faulty(&name_key) && !reader.is_faulty(&key(first, "name")) => {
                let message = format!(
                    "{:?} is also the name of {LIST}.{first}: metrics and logs could not tell them apart",
                    upstream.name
                );
                reader.fault(&name_key, message);
            }
            _ => {}
        }
    }
}

/// The tiers of one group count from 0 without a gap: an empty one is a slip, or a line that was forgotten.
fn tiers(reader: &mut Reader, upstreams: &[Params], group: &[usize]) {
    let tier = |at: &usize| upstreams.get(*at).map_or(0, |u| u.supply.tier);
    if group.iter().any(|at| reader.is_faulty(&key(*at, "tier"))) {
        return;
    }
    for at in group {
        let Some(below) = tier(at).checked_sub(1) else { continue };
        if !group.iter().any(|other| tier(other) == below) {
            let message = format!(
                "is {}, but no upstream with the same models has tier {below}: tiers count from 0 without a gap",
                tier(at)
            );
            reader.fault(&key(*at, "tier"), message);
        }
    }
}
