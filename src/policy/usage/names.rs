//! The numbers that a group's models go by.
//!
//! A name comes from a request's body, so anyone can send a million of them, of any length. Those that the
//! configuration names have a number of their own for good. [`MODELS`] others have one: while there is room the first
//! that ask, after that a name that the upstream has answered for, in place of the one that has been of least use. All
//! others share one. So nobody's inventions can keep a model from a number, nor take it away from one that is used.
//!
//! ```text
//! of least use = never answered before once answered, then the longest unused
//! ```
//! A number is never given twice: whatever is kept by it, and whatever is still under way, goes on to mean what it
//! meant.

use std::collections::BTreeMap;

use crate::policy::units::ModelId;

/// Models with a number of their own in one group, beside those that are configured.
pub const MODELS: usize = 256;
/// The longest name that is kept.
pub const LONGEST_NAME: usize = 128;

/// Which number a name has.
#[derive(Clone, Debug, Default)]
pub struct Names {
    known: BTreeMap<Box<str>, Known>,
    configured: usize,
    next: u32,
    /// Counts uses.
    uses: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    id: ModelId,
    standing: Standing,
    /// The last use.
    used: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Asked,
    Answered,
    Configured,
}

/// The number that an answer's model goes by, and the one that was given up for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// Its number.
    pub id: ModelId,
    /// Nobody will go by this one any more.
    pub gone: Option<ModelId>,
}

impl Names {
    /// Shared by all names that have none of their own, and by requests that name no model.
    pub const OTHER: ModelId = ModelId(u32::MAX);

    /// These never have to share.
    pub fn keep<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            if !self.known.contains_key(name) {
                self.add(name, Standing::Asked);
            }
            if let Some(known) = self.known.get_mut(name) {
                let before = std::mem::replace(&mut known.standing, Standing::Configured);
                self.configured += usize::from(before != Standing::Configured);
            }
        }
    }

    /// The number to ask for `name` by. Allocates only for a new one.
    pub fn number(&mut self, name: &str) -> ModelId {
        self.uses += 1;
        if let Some(known) = self.known.get_mut(name) {
            known.used = self.uses;
            return known.id;
        }
        let takes = name.len() <= LONGEST_NAME && self.has_room();
        if takes { self.add(name, Standing::Asked) } else { Self::OTHER }
    }

    /// The name that has this number; `None` for the shared one. Looks through all of them: for the log.
    #[must_use]
    pub fn name(&self, id: ModelId) -> Option<&str> {
        self.known.iter().find(|(_, known)| known.id == id).map(|(name, _)| &**name)
    }

    /// The upstream has answered for `name`: it deserves a number.
    pub fn answered(&mut self, name: &str) -> Numbered {
        self.uses += 1;
        if let Some(known) = self.known.get_mut(name) {
            known.standing = known.standing.max(Standing::Answered);
            return Numbered { id: known.id, gone: None };
        }
        if name.len() > LONGEST_NAME {
            return Numbered { id: Self::OTHER, gone: None };
        }
        let gone = if self.has_room() { None } else { self.give_up() };
        Numbered { id: self.add(name, Standing::Answered), gone }
    }

    fn has_room(&self) -> bool {
        self.known.len() - self.configured < MODELS
    }

    fn add(&mut self, name: &str, standing: Standing) -> ModelId {
        let id = ModelId(self.next);
        // after four billion names all new ones share
        self.next = self.next.saturating_add(1);
        self.known.insert(name.into(), Known { id, standing, used: self.uses });
        id
    }

    fn give_up(&mut self) -> Option<ModelId> {
        let others = self.known.iter().filter(|(_, known)| known.standing != Standing::Configured);
        let least = others.min_by_key(|(_, known)| (known.standing, known.used));
        let name = least.map(|(name, _)| name.clone())?;
        self.known.remove(&name).map(|known| known.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(list: &[&str]) -> Names {
        let mut names = Names::default();
        names.keep(list.iter().copied());
        names
    }

    /// As many as there is room for, none of which anybody answers for.
    fn full_of_junk(list: &[&str]) -> Names {
        let mut names = configured(list);
        for n in 0..MODELS {
            assert_ne!(names.number(&format!("junk{n}")), Names::OTHER);
        }
        names
    }

    #[test]
    fn those_that_are_configured_have_their_own_for_good_and_the_rest_share() {
        let mut names = full_of_junk(&["a", "b", "a"]);
        assert_eq!(names.number("more"), Names::OTHER);
        assert_eq!((names.number("a"), names.number("b")), (ModelId(0), ModelId(1)));
        for n in 0..1000 {
            names.answered(&format!("model{n}"));
        }
        assert_eq!((names.number("a"), names.number("b")), (ModelId(0), ModelId(1)));
        assert_eq!(names.known.len(), MODELS + 2);
    }

    #[test]
    fn a_model_that_is_answered_for_takes_the_place_of_one_that_is_not() {
        let mut names = full_of_junk(&[]);
        assert_eq!(names.number("real"), Names::OTHER);
        let numbered = names.answered("real");
        assert_eq!(numbered, Numbered { id: ModelId(MODELS as u32), gone: Some(ModelId(0)) });
        // no more junk takes it away
        for n in 0..10_000 {
            names.number(&format!("more{n}"));
        }
        assert_eq!(names.number("real"), numbered.id);
        assert_eq!(names.number("junk0"), Names::OTHER, "its number is not given twice");
    }

    #[test]
    fn among_those_that_were_answered_for_the_longest_unused_goes() {
        let mut names = Names::default();
        for n in 0..MODELS {
            names.answered(&format!("model{n}"));
        }
        names.number("model0");
        assert_eq!(names.answered("new").gone, Some(ModelId(1)));
        assert_eq!(names.answered("new").gone, None);
        assert_eq!(names.number("model0"), ModelId(0));
    }

    #[test]
    fn a_long_name_is_not_kept() {
        let mut names = Names::default();
        let (long, longest) = ("x".repeat(LONGEST_NAME + 1), "x".repeat(LONGEST_NAME));
        assert_eq!((names.number(&long), names.answered(&long).id), (Names::OTHER, Names::OTHER));
        assert_eq!(names.number(&longest), ModelId(0));
        assert_eq!(names.known.len(), 1);
    }

    #[test]
    fn one_that_is_configured_later_keeps_its_number() {
        let mut names = Names::default();
        assert_eq!(names.number("a"), ModelId(0));
        names.keep(["a", "b"]);
        assert_eq!((names.number("a"), names.number("b"), names.configured), (ModelId(0), ModelId(1), 2));
        assert_eq!((names.name(ModelId(1)), names.name(Names::OTHER)), (Some("b"), None));
    }
}
