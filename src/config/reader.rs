//! Everything that was written, from the file, the environment and the flags, under its path; with the place
//! it was written at.
//!
//! serde stops at the first fault and forgets lines. So the file is read into a flat map from path
//! (`scaling.article.window`) to value and place, the later sources replace what the earlier ones said, and the
//! sections take from it what they know. What nobody asked for is unknown, and therefore a fault: a misspelt
//! setting that is silently ignored is found out in production. Used by `config::parse` only.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Flag;
use super::faults::{Fault, Place};
use super::nearest::nearest;
use super::values::Value;
use crate::policy::units::Invalid;

/// Begins the name of every variable that is ours.
const PREFIX: &str = "TIDEGATE_";
/// The lists of tables.
pub(super) const LISTS: [&str; 2] = ["upstream", "predict.calendar"];
/// Settings of the upstreams that are tables: a name for a name, in which any name may stand.
const MAPS: [&str; 1] = ["rename"];
/// No section lies deeper. What does is unknown anyway, and a recursion needs an end.
const DEEPEST: usize = 8;

struct Entry {
    place: Place,
    value: Value,
}

/// What was written, what was asked for, and what was wrong with it.
#[derive(Default)]
pub(super) struct Reader {
    entries: BTreeMap<String, Entry>,
    /// Sections the file opens, with their line.
    tables: BTreeMap<String, usize>,
    /// Every setting a section asked for: the settings there are.
    asked: BTreeSet<String>,
    /// Paths whose fault covers all that lies below them.
    closed: Vec<String>,
    faults: Vec<Fault>,
}

impl Reader {
    /// Reads the file.
    ///
    /// A file that is not TOML has one fault: what stands in its other lines cannot be known.
    pub(super) fn file(&mut self, text: &str) -> Result<(), Fault> {
        let starts: Vec<usize> =
            std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let line_of = |offset: usize| starts.partition_point(|start| *start <= offset);
        let document = DeTable::parse(text).map_err(|e| Fault {
            place: e.span().map_or(Place::File, |span| Place::Line(line_of(span.start))),
            key: String::new(),
            message: format!("is not valid TOML: {}", e.message()),
        })?;
        self.table("", document.get_ref(), &line_of, 0);
        Ok(())
    }

    fn table(&mut self, path: &str, table: &DeTable<'_>, line_of: &dyn Fn(usize) -> usize, depth: usize) {
        for (key, value) in table {
            let line = line_of(key.span().start);
            self.value(join(path, key.get_ref()), line, value, line_of, depth);
        }
    }

    fn value(
        &mut self,
        path: String,
        line: usize,
        value: &Spanned<DeValue<'_>>,
        line_of: &dyn Fn(usize) -> usize,
        depth: usize,
    ) {
        match value.get_ref() {
            DeValue::Table(table) if depth < DEEPEST && !is_map(&path) => {
                self.tables.insert(path.clone(), line);
                self.table(&path, table, line_of, depth + 1);
            }
            DeValue::Array(items) if LISTS.contains(&path.as_str()) => {
                for (i, item) in items.iter().enumerate() {
                    // The header of a `[[list]]` has one key for all items, so each item's own span tells its line.
                    self.value(format!("{path}.{i}"), line_of(item.span().start), item, line_of, depth + 1);
                }
            }
            leaf => {
                self.entries.insert(path, Entry { place: Place::Line(line), value: leaf_value(leaf) });
            }
        }
    }

    /// Lays the `TIDEGATE_SECTION__KEY` variables over what was read so far.
    pub(super) fn environment(&mut self, environment: &BTreeMap<String, String>) {
        for (name, text) in environment {
            if let Some(path) = name.strip_prefix(PREFIX).filter(|path| path.contains("__")) {
                let path = path.split("__").map(str::to_ascii_lowercase).collect::<Vec<_>>().join(".");
                self.set(path, Place::Variable(name.clone()), Value::Text(text.clone()));
            }
        }
    }

    /// Lays the command line's flags over what was read so far.
    pub(super) fn flags(&mut self, flags: &[Flag]) {
        for flag in flags {
            self.set(flag.key.to_owned(), Place::Flag(flag.flag), Value::Text(flag.value.clone()));
        }
    }

    /// Sets one value.
    pub(super) fn set(&mut self, path: String, place: Place, value: Value) {
        self.entries.insert(path, Entry { place, value });
    }

    /// Asks for a setting. `None`: not set, or wrong, which is then a fault.
    pub(super) fn take<T>(
        &mut self,
        key: &str,
        convert: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        self.asked.insert(key.to_owned());
        match convert(&self.entries.get(key)?.value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(key, message);
                None
            }
        }
    }

    /// Whether anybody set it.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Whether a fault was already found in it.
    pub(super) fn is_faulty(&self, key: &str) -> bool {
        self.faults.iter().any(|fault| fault.key == key)
    }

    /// Names that follow `section.` in anything that was written.
    pub(super) fn children(&self, section: &str) -> BTreeSet<String> {
        let paths = self.entries.keys().chain(self.tables.keys());
        paths
            .filter_map(|path| path.strip_prefix(section)?.strip_prefix('.'))
            .map(|rest| rest.split('.').next().unwrap_or(rest).to_owned())
            .collect()
    }

    /// Whether a section or a value stands exactly there.
    pub(super) fn is_written(&self, path: &str) -> bool {
        self.entries.contains_key(path) || self.tables.contains_key(path)
    }

    /// Adds a fault, at the place where the setting was made, or else at the section it would belong to.
    pub(super) fn fault(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push(Fault { place: self.place(key), key: key.to_owned(), message: message.into() });
    }

    /// Adds a fault that no single setting has.
    pub(super) fn fault_of_all(&mut self, message: impl Into<String>) {
        self.faults.push(Fault { place: Place::File, key: String::new(), message: message.into() });
    }

    /// Adds a fault that stands for everything below `path`.
    pub(super) fn close(&mut self, path: &str, message: impl Into<String>) {
        self.fault(path, message);
        self.closed.push(path.to_owned());
    }

    /// Where a setting was made, in words: for faults that lie between two settings.
    pub(super) fn made_at(&self, key: &str) -> String {
        match self.entries.get(key).map(|entry| &entry.place) {
            Some(Place::Line(line)) => format!("line {line}"),
            Some(Place::Variable(name)) => name.clone(),
            Some(Place::Flag(flag)) => (*flag).to_owned(),
            Some(Place::File | Place::Unset) | None => "its default".to_owned(),
        }
    }

    fn place(&self, key: &str) -> Place {
        if let Some(entry) = self.entries.get(key) {
            return entry.place.clone();
        }
        let mut section = key;
        loop {
            if let Some(line) = self.tables.get(section) {
                return Place::Line(*line);
            }
            // `upstream.1`, of which only a variable speaks.
            let mut below = self.entries.range(format!("{section}.")..);
            if let Some((path, entry)) = below.next()
                && section == key
                && is_below(path, section)
            {
                return entry.place.clone();
            }
            match section.rsplit_once('.') {
                Some((parent, _)) => section = parent,
                None => return Place::Unset,
            }
        }
    }

    /// The room's verdict: its settings, or its faults, each at the place of the setting it names.
    ///
    /// `sections` are those the room's settings come from; the key a room names is relative to one of them.
    /// With faults the settings come back as they are, for the checks that span rooms.
    pub(super) fn check<P: Clone>(
        &mut self,
        sections: &[&str],
        params: P,
        try_new: fn(P) -> Result<P, Vec<Invalid>>,
    ) -> P {
        let invalids = match try_new(params.clone()) {
            Ok(params) => return params,
            Err(invalids) => invalids,
        };
        let mut found = Vec::new();
        for invalid in invalids {
            let paths = sections.iter().map(|section| format!("{section}.{}", invalid.key));
            let Some(path) = paths.clone().find(|path| self.asked.contains(path)).or(paths.clone().next())
            else {
                continue;
            };
            // Where a setting could not be read its default stood in. A verdict on that, or one that compares with
            // it, would speak of a number nobody wrote.
            let unreadable = self.faults.iter().any(|fault| {
                let (section, name) = fault.key.rsplit_once('.').unwrap_or(("", &fault.key));
                sections.contains(&section) && (fault.key == path || invalid.message.contains(name))
            });
            if !unreadable {
                found.push((path, invalid.message));
            }
        }
        // A default that does not fit is the fault of a setting that was made; only one of the two is news.
        let any_set = found.iter().any(|(path, _)| self.is_set(path));
        for (path, message) in found {
            if !any_set || self.is_set(&path) {
                self.fault(&path, message);
            }
        }
        params
    }

    /// Every setting there is, once all sections have asked.
    pub(super) fn into_asked(self) -> BTreeSet<String> {
        self.asked
    }

    /// Ends the reading: whatever nobody asked for is a fault too.
    pub(super) fn finish(mut self) -> Vec<Fault> {
        let sections: BTreeSet<String> = self
            .asked
            .iter()
            .flat_map(|key| {
                key.match_indices('.').map(|(at, _)| key.get(..at).unwrap_or_default().to_owned())
            })
            .collect();
        for path in self.tables.keys().cloned().collect::<Vec<_>>() {
            if sections.contains(&path) || self.is_closed(&path) {
                continue;
            }
            let message = if self.asked.contains(&path) {
                "expected a value, found a table".to_owned()
            } else {
                let near = nearest(&path, sections.iter().map(String::as_str));
                format!(
                    "unknown section{}",
                    near.map(|s| format!("; did you mean `{s}`?")).unwrap_or_default()
                )
            };
            self.close(&path, message);
        }
        for key in self.entries.keys().cloned().collect::<Vec<_>>() {
            if self.asked.contains(&key) || self.is_closed(&key) {
                continue;
            }
            let message = match self.entries.get(&key) {
                Some(entry) if sections.contains(&key) => {
                    format!("expected a section of settings, found {}", entry.value.kind())
                }
                _ => self.unknown(&key),
            };
            self.fault(&key, message);
        }
        self.faults
    }

    fn is_closed(&self, path: &str) -> bool {
        self.closed.iter().any(|closed| path == closed || is_below(path, closed))
    }

    fn unknown(&self, key: &str) -> String {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let mut siblings =
            self.asked.iter().filter(|k| k.rsplit_once('.').is_some_and(|(s, _)| s == section));
        let has_siblings = siblings.clone().next().is_some();
        let near = nearest(key, siblings.by_ref().map(String::as_str))
            .or_else(|| {
                let mut namesakes =
                    self.asked.iter().filter(|k| k.rsplit_once('.').is_some_and(|(_, n)| n == name));
                namesakes.next().map(String::as_str).filter(|_| namesakes.next().is_none())
            })
            .or_else(|| nearest(key, self.asked.iter().map(String::as_str)).filter(|_| !has_siblings));
        let near = near.map(|near| match self.entries.get(key).map(|entry| &entry.place) {
            Some(Place::Variable(_)) => variable(near),
            _ => near.to_owned(),
        });
        format!("unknown setting{}", near.map(|s| format!("; did you mean `{s}`?")).unwrap_or_default())
    }

    /// Warns of variables that miss a setting's name by one underscore: they would be ignored in silence.
    pub(super) fn near_variables(&self, environment: &BTreeMap<String, String>) -> Vec<String> {
        let names = environment.keys().filter(|name| name.starts_with(PREFIX) && !name.contains("__"));
        names
            .filter_map(|name| {
                let meant =
                    self.asked.iter().map(|key| variable(key)).find(|v| v.replace("__", "_") == *name)?;
                Some(format!("{name} is ignored; did you mean {meant} (two underscores after each section)?"))
            })
            .collect()
    }
}

/// Whether it is `upstream.0.rename` or the like.
fn is_map(path: &str) -> bool {
    let below = path.strip_prefix("upstream.").and_then(|rest| rest.split_once('.'));
    below.is_some_and(|(_, name)| MAPS.contains(&name))
}

fn leaf_value(value: &DeValue<'_>) -> Value {
    // one level deep: what lies deeper is no setting's value, and a recursion needs an end
    let list = |items: &toml::de::DeArray<'_>| items.iter().map(|item| scalar(item.get_ref())).collect();
    match value {
        DeValue::Array(items) => Value::List(list(items)),
        DeValue::Table(table) => {
            let pairs = table.iter().map(|(key, value)| (key.get_ref().to_string(), scalar(value.get_ref())));
            Value::Map(pairs.collect())
        }
        value => scalar(value),
    }
}

fn scalar(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(s) => Value::String(s.to_string()),
        DeValue::Integer(n) => Value::Integer(i64::from_str_radix(n.as_str(), n.radix()).ok()),
        DeValue::Float(x) => Value::Float(x.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(b) => Value::Boolean(*b),
        DeValue::Datetime(_) => Value::Other("a date"),
        DeValue::Array(_) => Value::Other("an array"),
        DeValue::Table(_) => Value::Other("a table"),
    }
}

/// The variable that sets `key`.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

fn is_below(path: &str, section: &str) -> bool {
    path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

/// Appends a key to a path. One that TOML would want quoted is quoted, so that `"a.b"` stays one name.
fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let dot = if path.is_empty() { "" } else { "." };
    if bare { format!("{path}{dot}{key}") } else { format!("{path}{dot}{key:?}") }
}
