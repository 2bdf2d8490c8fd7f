//! What can only be wrong between upstreams (names, models that two groups want, tiers with a gap, clients' keys that
//! would go to several providers), and between them and other sections.

use std::collections::BTreeMap;

use super::Config;
use super::reader::Reader;
use super::upstream::LIST;
use crate::policy::supply::{ConcurrencyMode, Routing};
use crate::upstream::Params;

/// Adds every fault that no single `[[upstream]]` has.
pub(super) fn check(reader: &mut Reader, upstreams: &[Params], warnings: &mut Vec<String>) {
    names(reader, upstreams);
    // of a list that could not be read its default stands in, which says nothing about the others
    let (unread, read): (Vec<usize>, Vec<usize>) =
        (0..upstreams.len()).partition(|i| reader.is_faulty(&key(*i, "models")));
    let models = |at: &usize| upstreams.get(*at).map_or(&[][..], |u| u.supply.models.as_slice());
    let lists: Vec<&[String]> = read.iter().map(models).collect();
    for overlap in Routing::new(&lists).err().unwrap_or_default() {
        let at = |position: usize| read.get(position).copied().unwrap_or_default();
        let other = upstreams.get(at(overlap.first)).map_or("", |u| u.name.as_str());
        reader.fault(
            &key(at(overlap.second), "models"),
            format!(
                "{:?} overlaps with {:?} of {other:?}: give both upstreams the same models, or models that have \
                 nothing in common",
                overlap.second_pattern, overlap.first_pattern
            ),
        );
    }
    let mut groups: BTreeMap<Vec<&String>, Vec<usize>> = BTreeMap::new();
    for at in &read {
        let mut list: Vec<&String> = models(at).iter().collect();
        list.sort();
        groups.entry(list).or_default().push(*at);
    }
    for group in groups.values() {
        tiers(reader, upstreams, group, &unread);
        warnings.extend(strangers(upstreams, group));
    }
}

/// Adds the faults between the upstreams and other sections, and warns of what never comes into force.
pub(super) fn with_the_rest(reader: &mut Reader, config: &Config, warnings: &mut Vec<String>) {
    let (max, max_key) = (config.scaling.max_permits, "scaling.max_permits");
    for (at, upstream) in config.upstreams.iter().enumerate() {
        let key = key(at, "concurrency");
        if let ConcurrencyMode::Fixed(n) = upstream.supply.concurrency
            && n > max
            && !reader.is_faulty(&key)
            && !reader.is_faulty(max_key)
        {
            let place = reader.made_at(max_key);
            let message = format!(
                "{n} is more than {max_key} = {max} ({place}), which bounds all upstreams: raise that, or lower this"
            );
            reader.fault(&key, message);
        }
    }
    let (wait, timeout) = (config.queue.failover_wait, config.queue.timeout);
    if wait >= timeout && config.upstreams.iter().any(|u| u.supply.tier > 0) {
        warnings.push(format!(
            "queue.failover_wait = {wait:?} ({}) is not shorter than queue.timeout = {timeout:?} ({}): an upstream \
             of a later tier serves only when the earlier ones fail",
            reader.made_at("queue.failover_wait"),
            reader.made_at("queue.timeout")
        ));
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

/// The tiers of one group count from 0 without a gap: an empty one is a slip, or a line that was forgotten. Who is
/// `unread` may be of this group, and fill it.
fn tiers(reader: &mut Reader, upstreams: &[Params], group: &[usize], unread: &[usize]) {
    let tier = |at: &usize| upstreams.get(*at).map_or(0, |u| u.supply.tier);
    let all = || group.iter().chain(unread);
    if all().any(|at| reader.is_faulty(&key(*at, "tier"))) {
        return;
    }
    for at in group {
        let Some(below) = tier(at).checked_sub(1) else { continue };
        if !all().any(|other| tier(other) == below) {
            let message = format!(
                "is {}, but no upstream with the same models has tier {below}: tiers count from 0 without a gap",
                tier(at)
            );
            reader.fault(&key(*at, "tier"), message);
        }
    }
}

/// Upstreams of different hosts, none of which has a key of its own: whatever key a client sends, each of them sees it.
fn strangers(upstreams: &[Params], group: &[usize]) -> Option<String> {
    let mut keyless =
        group.iter().filter_map(|at| upstreams.get(*at)).filter(|upstream| upstream.takes_clients_keys());
    let first = keyless.next()?;
    let other = keyless.find(|upstream| !upstream.is_of_one_house_with(first))?;
    Some(format!(
        "upstreams {:?} and {:?} have the same models, different hosts and no api_key: each client's own key goes to \
         both, and a request with a key is not tried again; give them keys, or models that differ",
        first.name, other.name
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::Secret;

    #[test]
    fn keys_of_clients_that_would_go_to_several_providers_are_warned_of() {
        let warned = |hosts: &[(&str, bool)]| {
            let upstream = |(host, keyless): &(&str, bool)| Params {
                name: (*host).to_owned(),
                base_url: format!("https://{host}/v1").parse().unwrap(),
                api_key: (!keyless).then(|| Secret::new("k".into())),
                ..Params::default()
            };
            let upstreams: Vec<Params> = hosts.iter().map(upstream).collect();
            strangers(&upstreams, &(0..upstreams.len()).collect::<Vec<_>>())
        };
        let told = warned(&[("a.example", true), ("c.example", false), ("b.example", true)]).unwrap();
        assert!(told.starts_with("upstreams \"a.example\" and \"b.example\" have the same models"), "{told}");
        assert_eq!(warned(&[("a.example", true), ("b.example", false)]), None);
        assert_eq!(warned(&[("a.example", true), ("a.example", true)]), None);
        assert_eq!(warned(&[("10.0.0.1", true), ("10.0.0.2", true)]), None);
    }
}
