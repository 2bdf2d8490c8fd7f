//! The numbers that a group's models go by.
//!
//! A name comes from a request's body, so anyone can send a million of them. The first [`MODELS`] get a number of
//! their own, all others share one.

use std::collections::BTreeMap;

use crate::policy::units::ModelId;

/// Models with a number of their own in one group.
pub const MODELS: usize = 256;
/// A longer name is nobody's model, and is not kept: it may be as long as a body.
const LONGEST: usize = 256;

/// Which number a name has.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<Box<str>, ModelId>);

impl Names {
    /// Shared by all names past [`MODELS`], and by requests that name no model.
    pub const OTHER: ModelId = ModelId(MODELS as u32);

    /// Numbers for these to begin with, so that those a configuration names never have to share.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut this = Self::default();
        for name in names {
            this.number(name);
        }
        this
    }

    /// The number of `name`: its own, a new one, or the shared one. Allocates only for a new one.
    pub fn number(&mut self, name: &str) -> ModelId {
        if let Some(id) = self.0.get(name) {
            return *id;
        }
        match u32::try_from(self.0.len()) {
            Ok(next) if self.0.len() < MODELS && name.len() <= LONGEST => {
                self.0.insert(name.into(), ModelId(next));
                ModelId(next)
            }
            _ => Self::OTHER,
        }
    }

    /// The name that has this number; `None` for the shared one. Looks through all of them: for the log.
    #[must_use]
    pub fn name(&self, id: ModelId) -> Option<&str> {
        self.0.iter().find(|(_, known)| **known == id).map(|(name, _)| &**name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_have_their_own_and_the_rest_share() {
        let mut names = Names::new(["a", "b", "a"]);
        assert_eq!(names.number(&"x".repeat(257)), Names::OTHER);
        assert_eq!((names.number("b"), names.number("c")), (ModelId(1), ModelId(2)));
        for n in 0..1000 {
            names.number(&format!("m{n}"));
        }
        assert_eq!(names.number("a"), ModelId(0));
        assert_eq!(names.number("m252"), ModelId(255));
        assert_eq!(names.number("m253"), Names::OTHER);
        assert_eq!((names.name(ModelId(1)), names.name(Names::OTHER)), (Some("b"), None));
        assert_eq!(names.0.len(), MODELS);
    }
}
