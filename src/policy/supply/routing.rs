//! Which group of upstreams serves a model.
//!
//! A pattern is a model's name, the beginning of one (`gpt-*`), or `*` for everything that no other pattern of
//! any upstream names. Upstreams with the same patterns form a group, which shares one queue. Two groups never
//! want the same model, but for `*`: then a name would go where the order of the file says, and a model added
//! to one list would silently move between queues. `config` refuses such lists with their lines; `app` makes
//! the groups; the proxy asks [`Routing::group_of`] for each request.
//!
//! ```text
//! group of a name = its exact pattern's, else that of the one prefix that it begins with, else that of `*`
//! ```

/// What is wrong with one upstream's list of patterns.
#[must_use]
pub fn faults_of(patterns: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    if patterns.is_empty() {
        faults.push("names no model: write [\"*\"] for all of them".to_owned());
    }
    for (i, pattern) in patterns.iter().enumerate() {
        let name = pattern.strip_suffix('*').unwrap_or(pattern);
        if pattern.is_empty() {
            faults.push("has an empty name".to_owned());
        } else if name.contains('*') {
            faults.push(format!("{pattern:?} has a `*` that is not its end"));
        } else if pattern.trim() != pattern {
            faults.push(format!("{pattern:?} has white space around it"));
        }
        if patterns.iter().take(i).any(|earlier| earlier == pattern) {
            faults.push(format!("{pattern:?} stands there twice"));
        }
    }
    faults
}

/// Whether one of the patterns is for this model.
#[must_use]
pub fn serves(patterns: &[String], model: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => model.starts_with(prefix),
        None => pattern == model,
    })
}

/// Two upstreams that want the same model and are not of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The one that stands first, by its position among the lists.
    pub first: usize,
    /// Its pattern.
    pub first_pattern: String,
    /// The one that stands later.
    pub second: usize,
    /// Its pattern.
    pub second_pattern: String,
}

/// The groups, and which models go to which. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Of each group its lists, by their position.
    groups: Vec<Vec<usize>>,
    /// Sorted.
    exact: Vec<(Box<str>, usize)>,
    /// Sorted, and none begins with another.
    prefixes: Vec<(Box<str>, usize)>,
    /// The group with `*`.
    rest: Option<usize>,
}

impl Routing {
    /// Groups the lists, one per upstream in the file's order. The order within a list says nothing.
    ///
    /// # Errors
    /// Every pair of lists that differ and want the same model; of each pair the first two such patterns.
    pub fn new(lists: &[&[String]]) -> Result<Self, Vec<Overlap>> {
        let sorted = |list: &[String]| {
            let mut patterns = list.to_vec();
            patterns.sort();
            patterns.dedup();
            patterns
        };
        let mut distinct: Vec<Vec<String>> = Vec::new();
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut overlaps = Vec::new();
        for (at, list) in lists.iter().enumerate() {
            let patterns = sorted(list);
            if let Some(group) = distinct.iter().position(|known| *known == patterns) {
                groups.get_mut(group).into_iter().for_each(|members| members.push(at));
                continue;
            }
            for (known, members) in distinct.iter().zip(&groups) {
                if let (Some((a, b)), Some(first)) = (overlap(known, &patterns), members.first()) {
                    let (first_pattern, second_pattern) = (a.to_owned(), b.to_owned());
                    overlaps.push(Overlap { first: *first, first_pattern, second: at, second_pattern });
                }
            }
            distinct.push(patterns);
            groups.push(vec![at]);
        }
        if !overlaps.is_empty() {
            return Err(overlaps);
        }
        let mut routing = Self { groups, exact: Vec::new(), prefixes: Vec::new(), rest: None };
        for (group, patterns) in distinct.iter().enumerate() {
            patterns.iter().for_each(|pattern| routing.add(pattern, group));
        }
        routing.exact.sort();
        // a longer prefix of the same group says nothing new
        routing.prefixes.sort();
        routing.prefixes.dedup_by(|longer, kept| longer.0.starts_with(&*kept.0));
        Ok(routing)
    }

    fn add(&mut self, pattern: &str, group: usize) {
        match pattern.strip_suffix('*') {
            Some("") => self.rest = Some(group),
            Some(prefix) => self.prefixes.push((prefix.into(), group)),
            None => self.exact.push((pattern.into(), group)),
        }
    }

    /// The group that serves this model; `None`: no upstream does.
    #[must_use]
    pub fn group_of(&self, model: &str) -> Option<usize> {
        if let Ok(at) = self.exact.binary_search_by(|(name, _)| (**name).cmp(model)) {
            return self.exact.get(at).map(|(_, group)| *group);
        }
        // No prefix begins with another, so only the last one that is not greater can be the name's beginning.
        let after = self.prefixes.partition_point(|(prefix, _)| **prefix <= *model);
        let last = after.checked_sub(1).and_then(|at| self.prefixes.get(at));
        last.filter(|(prefix, _)| model.starts_with(&**prefix)).map(|(_, group)| *group).or(self.rest)
    }

    /// The group for requests that name no model: the one with `*`, else the first.
    #[must_use]
    pub fn default_group(&self) -> usize {
        self.rest.unwrap_or_default()
    }

    /// Of each group the positions of its lists, in order.
    #[must_use]
    pub fn groups(&self) -> &[Vec<usize>] {
        &self.groups
    }
}

/// The first two patterns of different lists that want the same model. `*` wants only what is left.
fn overlap<'a>(one: &'a [String], other: &'a [String]) -> Option<(&'a str, &'a str)> {
    let same = |a: &str, b: &str| match (a.strip_suffix('*'), b.strip_suffix('*')) {
        (Some(""), Some("")) => true,
        (Some(""), _) | (_, Some("")) => false,
        (None, None) => a == b,
        (Some(prefix), None) => b.starts_with(prefix),
        (None, Some(prefix)) => a.starts_with(prefix),
        (Some(x), Some(y)) => x.starts_with(y) || y.starts_with(x),
    };
    one.iter().find_map(|a| other.iter().find(|b| same(a, b)).map(|b| (a.as_str(), b.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|p| (*p).to_owned()).collect()
    }

    fn routing(lists: &[&[&str]]) -> Result<Routing, Vec<Overlap>> {
        let lists: Vec<Vec<String>> = lists.iter().map(|l| list(l)).collect();
        Routing::new(&lists.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    #[test]
    fn a_name_goes_to_its_own_pattern_then_to_its_beginning_then_to_the_rest() {
        let r = routing(&[&["*"], &["gpt-*", "o1"], &["llama-3"], &["o1", "gpt-*"], &["*"]]).unwrap();
        assert_eq!(r.groups(), [vec![0, 4], vec![1, 3], vec![2]]);
        for (model, group) in [
            ("gpt-4o", 1),
            ("gpt-", 1),
            ("gpt", 0),
            ("o1", 1),
            ("o1-mini", 0),
            ("llama-3", 2),
            ("llama-3.1", 0),
            ("", 0),
            ("é", 0),
            ("*", 0),
        ] {
            assert_eq!(r.group_of(model), Some(group), "{model}");
        }
        assert_eq!(r.default_group(), 0);
    }

    #[test]
    fn without_a_rest_an_unknown_model_has_no_group() {
        let r = routing(&[&["a"], &["b*"]]).unwrap();
        assert_eq!(
            (r.group_of("a"), r.group_of("ab"), r.group_of("bc"), r.group_of("c")),
            (Some(0), None, Some(1), None)
        );
        assert_eq!(r.default_group(), 0);
        assert_eq!(routing(&[&["a"], &["*"]]).unwrap().default_group(), 1);
    }

    #[test]
    fn prefixes_within_prefixes_of_one_list_do_not_hide_each_other() {
        let r = routing(&[&["gpt-*", "gpt-4*", "gpt-4"], &["z*"], &["*"]]).unwrap();
        for model in ["gpt-5", "gpt-35", "gpt-4", "gpt-4o", "gpt-"] {
            assert_eq!(r.group_of(model), Some(0), "{model}");
        }
        assert_eq!((r.group_of("gz"), r.group_of("za")), (Some(2), Some(1)));
    }

    #[test]
    fn lists_that_share_a_model_and_are_not_the_same_are_refused() {
        for (lists, wanted) in [
            (&[&["a"][..], &["a", "b"]][..], Some((0, "a", 1, "a"))),
            (&[&["a*"], &["ab"]], Some((0, "a*", 1, "ab"))),
            (&[&["ab"], &["a*"]], Some((0, "ab", 1, "a*"))),
            (&[&["a*"], &["ab*"]], Some((0, "a*", 1, "ab*"))),
            (&[&["*"], &["*", "a"]], Some((0, "*", 1, "*"))),
            (&[&["x"], &["*"], &["x"], &["y", "x"]], Some((0, "x", 3, "x"))),
            (&[&["*"], &["a"]], None),
            (&[&["a*"], &["*"]], None),
            (&[&["a*"], &["b*"]], None),
            (&[&["a", "b"], &["b", "a"]], None),
        ] {
            let found = routing(lists).err().map(|o| {
                let Overlap { first, first_pattern, second, second_pattern } = o[0].clone();
                (first, first_pattern, second, second_pattern)
            });
            let wanted = wanted.map(|(a, x, b, y)| (a, x.to_owned(), b, y.to_owned()));
            assert_eq!(found, wanted, "{lists:?}");
        }
    }

    #[test]
    fn a_list_s_own_faults() {
        let none: [&str; 0] = [];
        assert_eq!(faults_of(&list(&["*", "gpt-*", "o1"])), none);
        for (patterns, part) in [
            (&[][..], "names no model"),
            (&[""][..], "empty name"),
            (&["a*b"], "not its end"),
            (&["**"], "not its end"),
            (&["a", "b", "a"], "\"a\" stands there twice"),
            (&[" a"], "white space"),
        ] {
            let faults = faults_of(&list(patterns));
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(faults[0].contains(part), "{faults:?}");
        }
    }

    fn pattern() -> impl proptest::strategy::Strategy<Value = String> {
        "[ab]{0,3}\\*?".prop_filter("not empty", |p| !p.is_empty())
    }

    use proptest::strategy::Strategy;

    proptest::proptest! {
        /// Against the plain definition: look at every pattern of every list.
        #[test]
        fn it_finds_what_a_search_through_all_patterns_finds(
            lists in proptest::collection::vec(proptest::collection::vec(pattern(), 1..4), 1..4),
            model in "[abc]{0,4}",
        ) {
            let slices: Vec<&[String]> = lists.iter().map(Vec::as_slice).collect();
            let Ok(routing) = Routing::new(&slices) else { return Ok(()) };
            let special = |list: &[String]| {
                let named: Vec<String> = list.iter().filter(|p| *p != "*").cloned().collect();
                serves(&named, &model)
            };
            let plain = slices.iter().position(|l| special(l)).or(slices.iter().position(|l| serves(l, &model)));
            let found = routing.group_of(&model);
            let group = plain.map(|at| routing.groups().iter().position(|g| g.contains(&at)).unwrap());
            proptest::prop_assert_eq!(found, group);
        }
    }
}
