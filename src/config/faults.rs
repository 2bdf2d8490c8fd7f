//! What is wrong with the settings, and where each fault was made.
//!
//! An operator who is told of one fault at a time restarts once per fault. So nothing here stops at the
//! first: the reader and the sections add to one list, and `run`, `check` and reload print all of it.

use std::fmt;

/// Where a setting was made. The order is the order faults are printed in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A line of the file, counted from 1.
    Line(usize),
    /// An environment variable.
    Variable(String),
    /// A command-line flag.
    Flag(&'static str),
    /// Nowhere: it has its default.
    Unset,
}

/// One thing that has to be put right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where it was made.
    pub place: Place,
    /// The setting's path, such as `scaling.cooldown`; empty where no single setting is at fault.
    pub key: String,
    /// What is wrong and what would be right. It never holds a secret.
    pub message: String,
}

/// Everything that is wrong, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    file: String,
    list: Vec<Fault>,
}

impl Faults {
    pub(super) fn new(file: &str, mut list: Vec<Fault>) -> Self {
        list.sort();
        list.dedup();
        Self { file: file.to_owned(), list }
    }

    /// One fault after the other.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.list.iter()
    }
}

impl fmt::Display for Faults {
    /// One fault a line, in the `file:line: key: message` form that editors can jump to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.list.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            // A variable or a flag names the setting itself: its path would only repeat it.
            let path_helps = match &fault.place {
                Place::Line(line) => write!(f, "{}:{line}: ", self.file).map(|()| true),
                Place::File if self.file.is_empty() => Ok(true),
                Place::File => write!(f, "{}: ", self.file).map(|()| true),
                Place::Variable(name) => write!(f, "{name}: ").map(|()| false),
                Place::Flag(flag) => write!(f, "{flag}: ").map(|()| false),
                Place::Unset => Ok(true),
            }?;
            if path_helps && !fault.key.is_empty() {
                write!(f, "{}: ", fault.key)?;
            }
            f.write_str(&fault.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
