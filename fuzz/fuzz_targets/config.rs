//! Any text is a configuration or a list of faults, never a panic, and it prints no secret.
//!
//! Lines that begin with `TIDEGATE_…=` or `OPENAI_…=` are the environment, the rest is the file.

#![no_main]

use std::collections::BTreeMap;
use std::io;

use libfuzzer_sys::fuzz_target;
use tidegate::config;

const SECRET: &str = "sk-s3cr3t-0f-th3-f1l3";

fuzz_target!(|text: &str| {
    let mut environment = BTreeMap::from([("A_KEY".to_owned(), SECRET.to_owned())]);
    let mut file = String::new();
    for line in text.lines() {
        match line.split_once('=') {
            Some((name, value)) if name.starts_with("TIDEGATE_") || name.starts_with("OPENAI_") => {
                environment.insert(name.to_owned(), value.to_owned());
            }
            _ => {
                file.push_str(line);
                file.push('\n');
            }
        }
    }
    let read_file = |path: &std::path::Path| match path.to_str() {
        Some("key") => Ok(SECRET.to_owned()),
        _ => Err(io::ErrorKind::NotFound.into()),
    };
    let read = || config::parse(&file, "fuzz.toml", &environment, &[], &read_file);
    let printed = match (read(), read()) {
        (Ok(first), Ok(second)) => {
            assert_eq!(first, second, "the same text was read in two ways");
            format!("{first:?}")
        }
        (Err(first), Err(second)) => {
            assert_eq!(first.to_string(), second.to_string(), "the same faults were told in two ways");
            first.to_string()
        }
        _ => panic!("the same text is right and wrong"),
    };
    assert!(!printed.contains(SECRET), "a secret was printed: {printed}");
});
