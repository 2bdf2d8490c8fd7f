//! The rooms' rules, held against every file of `src/`: each place that breaks one is printed as `file:line`.
//!
//! Without it the ranks are a picture in a document, and the first hurried import makes `policy` unreplayable.
//! What a rule lets pass and why is written at the rule, in `architecture/rules.rs`; `architecture/planted.rs`
//! plants violations and demands that each is found where it stands.

#![expect(clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::path::{Path, PathBuf};

#[path = "architecture/planted.rs"]
mod planted;
#[path = "architecture/rules.rs"]
mod rules;
#[path = "architecture/source.rs"]
mod source;

use rules::{RANKS, RULES};
use source::Source;

fn files(under: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(under).unwrap_or_else(|e| panic!("{}: {e}", under.display()));
    for entry in entries {
        let path = entry.unwrap_or_else(|e| panic!("{}: {e}", under.display())).path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&root, &mut found);
    found.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let parts: Vec<_> =
            path.strip_prefix(&root).unwrap_or(path).iter().map(|p| p.to_string_lossy()).collect();
        Source::read(&parts.join("/"), &text)
    };
    found.iter().map(read).collect()
}

#[test]
fn every_file_keeps_every_rule() {
    let sources = sources();
    assert!(sources.iter().any(|s| s.path == "policy/units.rs"), "src/ was not read");
    let mut broken = String::new();
    for (name, rule) in RULES {
        for source in &sources {
            for (line, why) in rule(source) {
                broken += &format!("src/{}:{line}: {name}: {why}\n", source.path);
            }
        }
    }
    assert!(broken.is_empty(), "\n{broken}");
}

/// The map in `lib.rs` is what people read; it says what is enforced.
#[test]
fn the_map_shows_the_ranks() {
    let map = include_str!("../src/lib.rs");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("//! | [`")?.split('|');
        let room = cells.next()?.trim().trim_end_matches("`]").to_owned();
        Some((room, cells.next()?.trim().parse::<u8>().ok()?))
    };
    let rows: Vec<_> = map.lines().filter_map(row).collect();
    let modules = map.lines().filter(|line| line.starts_with("pub mod "));
    assert_eq!(rows.len(), modules.count(), "a row for each room: {rows:?}");
    for (room, shown) in rows {
        let enforced = RANKS.iter().find(|(name, _)| *name == room).map(|(_, rank)| *rank);
        assert_eq!(Some(shown), enforced, "the rank of `{room}`");
    }
}
