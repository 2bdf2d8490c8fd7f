//! `--name number` pairs. Every setting of this tool is a number, so nothing more is needed.

use std::collections::BTreeMap;

const KNOWN: [&str; 10] = [
    "port",
    "threads",
    "connections",
    "requests",
    "seconds",
    "rate",
    "streams",
    "chunks",
    "interval-ms",
    "hold",
];

pub struct Args(BTreeMap<String, u64>);

impl Args {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut found = BTreeMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").filter(|name| KNOWN.contains(name));
            let name = name.ok_or_else(|| format!("unknown argument {word}"))?;
            let value = words.next().ok_or_else(|| format!("{word} needs a number"))?;
            let value = value.parse().map_err(|_| format!("{word} needs a number, not {value}"))?;
            found.insert(name.to_owned(), value);
        }
        Ok(Self(found))
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub fn or(&self, name: &str, default: u64) -> u64 {
        self.0.get(name).copied().unwrap_or(default)
    }

    pub fn port(&self) -> Result<u16, String> {
        let port = self.0.get("port").ok_or("--port is missing")?;
        u16::try_from(*port).map_err(|_| format!("{port} is not a port"))
    }
}
