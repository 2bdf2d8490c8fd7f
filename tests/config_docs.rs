//! `config/default.toml` is the documentation of the settings. It is held against the code here, so that neither
//! a default nor a setting can change in one of the two only.

#![expect(clippy::panic, clippy::expect_used, reason = "a helper that fails is a test that fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use tidegate::config::{Config, Loaded, keys, parse};

const DEFAULT: &str = include_str!("../config/default.toml");

/// A line that holds a setting, possibly commented out: the setting without its `#`.
fn setting(line: &str) -> Option<&str> {
    let bare = line.trim_start_matches(['#', ' ']);
    let name = bare.split(" = ").next().filter(|name| name.len() < bare.len())?;
    name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_').then_some(bare)
}

/// The file with everything in it that is commented out.
fn full() -> String {
    let bare = |line: &'static str| match line.strip_prefix("# ").filter(|rest| rest.starts_with("[[")) {
        Some(header) => header,
        None => setting(line).unwrap_or(line),
    };
    DEFAULT.lines().map(bare).collect::<Vec<_>>().join("\n")
}

fn environment(pairs: impl IntoIterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let keys = [("OPENAI_API_KEY", "sk-test"), ("KEY_A", "sk-a"), ("KEY_B", "sk-b")];
    pairs.into_iter().chain(keys.map(|(name, key)| (name.to_owned(), key.to_owned()))).collect()
}

fn read(text: &str, environment: &BTreeMap<String, String>) -> Config {
    let no_file = |_: &Path| Err(io::ErrorKind::NotFound.into());
    let Loaded { config, warnings } = parse(text, "config/default.toml", environment, &[], &no_file)
        .unwrap_or_else(|faults| panic!("{faults}"));
    assert!(warnings.is_empty(), "{warnings:?}");
    config
}

/// Every setting of a document, with its value as a variable would hold it.
fn settings(path: &str, value: &toml::Value, found: &mut BTreeMap<String, String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let text = |v: &toml::Value| v.as_str().map(str::to_owned);
    match value {
        // names for names
        toml::Value::Table(table) if path.ends_with(".rename") => {
            let pairs = table.iter().filter_map(|(name, v)| Some(format!("{name}={}", text(v)?)));
            found.insert(path.to_owned(), pairs.collect::<Vec<_>>().join(","));
        }
        toml::Value::Array(items) if !items.iter().any(toml::Value::is_table) => {
            let all = items.iter().map(|v| text(v).unwrap_or_else(|| v.to_string()));
            found.insert(path.to_owned(), all.collect::<Vec<_>>().join(","));
        }
        toml::Value::Table(table) => table.iter().for_each(|(name, v)| settings(&below(name), v, found)),
        toml::Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, v)| settings(&below(&i.to_string()), v, found));
        }
        toml::Value::String(text) => drop(found.insert(path.to_owned(), text.clone())),
        other => drop(found.insert(path.to_owned(), other.to_string())),
    }
}

fn documented() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    settings("", &toml::Value::Table(full().parse().expect("default.toml is TOML")), &mut found);
    found
}

#[test]
fn the_documented_defaults_are_the_codes() {
    let described = read(DEFAULT, &BTreeMap::new());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert_eq!(
        described,
        Config {
            listen: tidegate::listener::Params { workers: cores.min(4), ..Default::default() },
            telemetry: Default::default(),
            limits: Default::default(),
            queue: Default::default(),
            scaling: Default::default(),
            breaker: Default::default(),
            retry: Default::default(),
            upstreams: vec![Default::default()],
        }
    );
    // And what is left out is what is written: all sections but the upstream, which has to be there.
    let upstream = "[[upstream]]\nbase_url = \"https://api.openai.com/v1\"";
    assert_eq!(described, read(upstream, &BTreeMap::new()));
}

#[test]
fn every_setting_is_documented_and_every_documented_setting_exists() {
    // the second upstream shows what the first cannot have at the same time
    let first = |key: String| key.replace("upstream.1.", "upstream.0.");
    let documented: BTreeSet<String> = documented().into_keys().map(first).collect();
    let known = keys();
    let missing: Vec<_> = known.difference(&documented).collect();
    let unknown: Vec<_> = documented.difference(&known).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing: {missing:?}, unknown: {unknown:?}");
}

#[test]
fn every_setting_says_what_it_is_for() {
    for line in DEFAULT.lines().filter(|line| setting(line).is_some()) {
        let (_, comment) =
            setting(line).unwrap_or(line).split_once(" # ").unwrap_or_else(|| panic!("{line}"));
        assert!(comment.len() > 10, "{line}");
    }
}

#[test]
fn a_setting_that_is_commented_out_can_be_commented_in() {
    let config = read(&full(), &environment([]));
    assert_eq!(config.scaling.article_emergency, 150);
    let keys = |at: usize| config.upstreams[at].keys().map(|key| key.reveal().to_owned()).collect::<Vec<_>>();
    assert_eq!((keys(0), keys(1)), (vec!["sk-test".to_owned()], vec!["sk-a".to_owned(), "sk-b".to_owned()]));
    assert_eq!(config.upstreams[0].ca_file, Some("ca.pem".into()));
    assert_eq!(config.upstreams[0].rename.get("gpt-4o").map(String::as_str), Some("llama-3.3-70b"));
}

#[test]
fn every_setting_is_also_a_variable() {
    let variables = documented()
        .into_iter()
        .map(|(key, value)| (format!("TIDEGATE_{}", key.to_ascii_uppercase().replace('.', "__")), value));
    assert_eq!(read("", &environment(variables)), read(&full(), &environment([])));
}
