//! Holds what was measured against what a scenario expects, and says everything that is wrong at once.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use toml::Value;

use crate::measure::{Measured, Violation, is_known};

/// The leaves of `[expect]`: `permits.max` and the like.
fn leaves(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let dot = if prefix.is_empty() { "" } else { "." };
                leaves(&format!("{prefix}{dot}{key}"), value, into);
            }
        }
        leaf => {
            into.insert(prefix.to_owned(), leaf.clone());
        }
    }
}

/// What was expected and is not so. What is not mentioned of failures, losses and leavers must be 0.
pub(crate) fn violations(expect: &toml::Table, measured: &Measured) -> Vec<Violation> {
    let mut expected = BTreeMap::new();
    leaves("", &Value::Table(expect.clone()), &mut expected);
    for key in measured.keys() {
        if key == "lost" || key == "left" || key.starts_with("failed.") {
            expected.entry(key.clone()).or_insert(Value::Integer(0));
        }
    }
    let mut wrong = Vec::new();
    for (key, value) in expected {
        assert!(
            is_known(&key, measured),
            "[expect] {key}: nothing of that name is measured; there are {:#?}",
            measured.keys()
        );
        let (low, high) = range(&value, measured).unwrap_or_else(|| {
            panic!("[expect] {key} = {value}: must be a number, [least, most] or the name of another number")
        });
        let got = measured.get(&key).copied().unwrap_or_default();
        if !(low <= got && got <= high) {
            wrong.push(Violation { what: key, expected: value.to_string(), got });
        }
    }
    wrong
}

fn range(value: &Value, measured: &Measured) -> Option<(f64, f64)> {
    let one = |value: &Value| match value {
        Value::Integer(n) => Some(*n as f64),
        Value::Float(x) => Some(*x),
        Value::String(key) => measured.get(key).copied(),
        _ => None,
    };
    match value {
        Value::Array(both) => match both.as_slice() {
            [low, high] => Some((one(low)?, one(high)?)),
            _ => None,
        },
        single => one(single).map(|x| (x, x)),
    }
}

/// All that is wrong as a table, then all that was measured.
pub(crate) fn report(about: &str, wrong: &[Violation], measured: &Measured) -> String {
    let mut text = format!("{about}\n\n{} expectations do not hold:\n", wrong.len());
    for v in wrong {
        let _ = writeln!(text, "  {:<52} expected {:<24} got {}", v.what, v.expected, round(v.got));
    }
    text.push_str("\nmeasured:\n");
    for (key, value) in measured {
        let _ = writeln!(text, "  {key:<52} {}", round(*value));
    }
    text
}

fn round(x: f64) -> f64 {
    (x * 10_000.0).round() / 10_000.0
}
