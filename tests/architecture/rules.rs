//! The rules, each a function from a file to the lines that break it.

use std::collections::BTreeSet;

use crate::source::{Named, Source, Token};

/// What is wrong, and in which line.
pub(crate) type Findings = Vec<(usize, String)>;

/// A rule.
pub(crate) type Rule = fn(&Source) -> Findings;

/// Every rule, by name.
pub(crate) const RULES: [(&str, Rule); 9] = [
    ("rooms import only rooms of lower rank", ranks),
    ("the folders of policy know only units", folders),
    ("policy is pure", purity),
    ("a file has at most 400 lines without its tests", length),
    ("only telemetry names metrics", metrics),
    ("only the gate and simulate call the engine", engine),
    ("tasks and threads are started where they are tracked", tasks),
    ("no module is a drawer for everything", drawers),
    ("only app and cli see the whole config, only clock.rs the clock", wholes),
];

/// Rooms by rank. `units` is a part of `policy` that everyone may know, `clock` included.
pub(crate) const RANKS: [(&str, u8); 16] = [
    ("units", 0),
    ("policy", 1),
    ("chance", 1),
    ("clock", 1),
    ("wire", 1),
    ("telemetry", 2),
    ("upstream", 3),
    ("store", 3),
    ("listener", 4),
    ("proxy", 4),
    ("simulate", 4),
    ("demo", 4),
    ("config", 5),
    ("app", 6),
    ("cli", 7),
    ("main", 8),
];

const MAX_LINES: usize = 400;

fn rank(room: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == room).map(|(_, rank)| *rank)
}

/// Paths of this crate that a file names: as written, and where they lead.
fn own(source: &Source) -> impl Iterator<Item = (&Named, Vec<String>)> {
    source.paths.iter().filter_map(|named| source.resolve(&named.segments).map(|to| (named, to)))
}

fn starts(source: &Source, places: &[&str]) -> bool {
    places
        .iter()
        .any(|place| source.path == *place || (place.ends_with('/') && source.path.starts_with(place)))
}

fn ranks(source: &Source) -> Findings {
    let room = source.room();
    let mut findings: Findings = source
        .tokens
        .windows(3)
        .filter(|w| w[0].0 == Token::Word("mod".into()) && w[2].0 == Token::Mark('{'))
        .map(|w| (w[0].1, "a module is a file: an inline one would move what `super` means".into()))
        .collect();
    if room == "lib" {
        return findings;
    }
    let Some(mine) = rank(room) else {
        findings.push((1, format!("room `{room}` has no rank: give it one in tests/architecture/rules.rs")));
        return findings;
    };
    for (named, to) in own(source) {
        let written = named.segments.join("::");
        let target = match (to.first().map(String::as_str), to.get(1).map(String::as_str)) {
            (Some("policy"), Some("units")) if room != "policy" => "units",
            (Some(first), _) => first,
            (None, _) => "",
        };
        if target == room {
            continue;
        }
        match rank(target) {
            Some(theirs) if theirs < mine => {}
            Some(theirs) => findings.push((
                named.line,
                format!("`{written}`: `{room}` (rank {mine}) may not know `{target}` (rank {theirs})"),
            )),
            None => {
                findings.push((named.line, format!("`{written}` names no room: it hides what is imported")))
            }
        }
    }
    findings
}

fn folders(source: &Source) -> Findings {
    let module = source.module();
    let Some(folder) = module.get(1).filter(|_| module[0] == "policy") else { return Vec::new() };
    if folder == "engine" {
        return Vec::new();
    }
    own(source)
        .filter(|(_, to)| {
            to.first().is_some_and(|room| room == "policy")
                && !to.get(1).is_some_and(|to| to == "units" && folder != "units" || to == folder)
        })
        .map(|(named, _)| {
            let written = named.segments.join("::");
            (named.line, format!("`{written}`: `policy/{folder}` may know only itself and `policy::units`"))
        })
        .collect()
}

/// Crates that decide nothing and reach nowhere.
const PURE_CRATES: [&str; 7] =
    ["serde", "thiserror", "augurs_ets", "augurs_core", "jiff", "croner", "chrono"];
/// Parts of the standard library without an outside.
const PURE_STD: [&str; 35] = [
    "array",
    "ascii",
    "borrow",
    "boxed",
    "char",
    "clone",
    "cmp",
    "collections",
    "convert",
    "default",
    "error",
    "f32",
    "f64",
    "fmt",
    "hash",
    "hint",
    "i32",
    "i64",
    "iter",
    "marker",
    "mem",
    "num",
    "ops",
    "option",
    "primitive",
    "result",
    "slice",
    "str",
    "string",
    "u16",
    "u32",
    "u64",
    "usize",
    "vec",
    "rc",
];
/// Names that mean time, chance, locks or output wherever they come from. `rand` and its like are no
/// dependencies of the pure crates' kind, so their paths are caught without being named here.
const IMPURE: [&str; 24] = [
    "Instant",
    "SystemTime",
    "Mutex",
    "RwLock",
    "Condvar",
    "OnceLock",
    "LazyLock",
    "OnceCell",
    "LazyCell",
    "Cell",
    "RefCell",
    "UnsafeCell",
    "thread_local",
    "HashMap",
    "HashSet",
    "RandomState",
    "DefaultHasher",
    "println",
    "eprintln",
    "print",
    "eprint",
    "dbg",
    "include_str",
    "include_bytes",
];
const PRIMITIVES: [&str; 17] = [
    "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "i128", "isize", "f32", "f64",
    "bool", "char", "str",
];
/// Attributes of tools, which are paths to look at but none to follow.
const TOOLS: [&str; 3] = ["clippy", "rustdoc", "rustfmt"];

fn purity(source: &Source) -> Findings {
    if source.room() != "policy" {
        return Vec::new();
    }
    let mut findings = Findings::new();
    for (word, line) in source.words() {
        if IMPURE.contains(&word) || (word.starts_with("Atomic") && word.len() > 6) || word == "static" {
            findings.push((line, format!("`{word}`: policy takes time, chance and state as arguments")));
        }
    }
    let declared = source.tokens.windows(2).filter_map(|w| match (&w[0].0, &w[1].0) {
        (Token::Word(m), Token::Word(name)) if m == "mod" => Some(name.as_str()),
        _ => None,
    });
    let imported =
        source.paths.iter().filter(|n| n.is_use() && n.segments.len() > 1).map(|n| n.alias.as_str());
    let known: BTreeSet<&str> = declared.chain(imported).collect();
    for named in &source.paths {
        if let Some(why) = impure(named, &known) {
            findings.push((named.line, format!("`{}`: {why}", named.segments.join("::"))));
        }
    }
    findings
}

fn impure(named: &Named, known: &BTreeSet<&str>) -> Option<&'static str> {
    let segments: Vec<&str> = named.segments.iter().map(String::as_str).collect();
    let (first, rest) = segments.split_first()?;
    if rest.iter().any(|s| ["now", "system", "local", "db"].contains(s)) && !["Self", "self"].contains(first)
    {
        return Some("reads the clock or the system's time zone; both are handed in");
    }
    match *first {
        "crate" | "self" | "super" | "Self" => None,
        "std" | "core" | "alloc" => match rest {
            ["sync", "Arc" | "Weak"] | ["sync", "Arc" | "Weak", ..] | ["time", "Duration", ..] => None,
            [module, ..] if PURE_STD.contains(module) => None,
            _ => Some("not a part of the standard library that policy may use"),
        },
        name if PURE_CRATES.contains(&name) || PRIMITIVES.contains(&name) || TOOLS.contains(&name) => None,
        // imported by another path, or a module declared in this very file
        name if known.contains(name) => None,
        name if name.starts_with(char::is_uppercase) => None,
        _ => Some("not a crate that policy may use"),
    }
}

fn length(source: &Source) -> Findings {
    if source.lines <= MAX_LINES {
        return Vec::new();
    }
    vec![(MAX_LINES + 1, format!("{} lines without tests, {MAX_LINES} are allowed: split it", source.lines))]
}

/// `demo/live.rs` reads the metrics page as any scraper would; it makes none of what it names.
const READS_METRICS: [&str; 1] = ["demo/live.rs"];

fn metrics(source: &Source) -> Findings {
    if source.room() == "telemetry" {
        return Vec::new();
    }
    let mut findings = Findings::new();
    if !starts(source, &READS_METRICS) {
        for (text, line) in source.texts().filter(|(text, _)| names_metric(text)) {
            findings.push((line, format!("\"{text}\" names a metric")));
        }
    }
    if source.room() != "app" {
        let named = source.paths.iter().filter(|named| named.segments[0] == "prometheus");
        findings.extend(
            named.map(|named| (named.line, "metrics are made in `telemetry`, the registry in `app`".into())),
        );
    }
    findings
}

fn names_metric(text: &str) -> bool {
    text.match_indices("tidegate_").any(|(at, prefix)| {
        let before = text[..at].chars().next_back();
        let after = text[at + prefix.len()..].chars().next();
        before.is_none_or(|c| !(c.is_alphanumeric() || c == '_'))
            && after.is_some_and(|c| c.is_ascii_lowercase())
    })
}

const CALLS_ENGINE: [&str; 4] = ["proxy/gate.rs", "simulate/", "policy/engine.rs", "policy/engine/"];

fn engine(source: &Source) -> Findings {
    if starts(source, &CALLS_ENGINE) {
        return Vec::new();
    }
    let mut findings: Findings =
        source.find(". on (").into_iter().map(|line| (line, "`.on(` drives an engine".into())).collect();
    for named in &source.paths {
        let segments: Vec<&str> = named.segments.iter().map(String::as_str).collect();
        let at = segments.iter().position(|s| *s == "engine");
        if at.is_some_and(|at| matches!(segments.get(at + 1), Some(&"Engine" | &"*"))) {
            findings.push((named.line, format!("`{}`: ask the gate instead", segments.join("::"))));
        }
    }
    findings
}

/// `connection.rs` starts hyper's own HTTP/2 streams on the accept loop's tracker. `demo` is a world of its
/// own: its tasks end with `demo/tasks.rs`, the load driver's requests with its `JoinSet`.
const TASKS: [&str; 8] = [
    "app/",
    "cli/",
    "listener/accept.rs",
    "listener/connection.rs",
    "upstream/pool.rs",
    "proxy/detach.rs",
    "demo/tasks.rs",
    "demo/load.rs",
];
/// The access log's writer blocks on a file, the signals' on the kernel; the simulated server of `tidegate demo`
/// lives as long as the process.
const THREADS: [&str; 4] = ["app/", "cli/demo.rs", "cli/signals.rs", "telemetry/writer.rs"];
const STARTS: [&str; 4] = ["spawn", "spawn_local", "spawn_blocking", "spawn_on"];
const STARTERS: [&str; 4] = ["TaskTracker", "JoinSet", "LocalSet", "TokioExecutor"];

fn tasks(source: &Source) -> Findings {
    let mut findings = Findings::new();
    if !starts(source, &THREADS) {
        for named in &source.paths {
            let mut pairs = named.segments.windows(2);
            if pairs.any(|p| p[0] == "thread" && ["spawn", "scope", "Builder"].contains(&p[1].as_str())) {
                findings.push((
                    named.line,
                    format!("`{}`: nobody waits for this thread", named.segments.join("::")),
                ));
            }
        }
    }
    if starts(source, &TASKS) {
        return findings;
    }
    let demo = source.room() == "demo";
    let thread = starts(source, &THREADS);
    for (at, (token, line)) in source.tokens.iter().enumerate() {
        let Token::Word(word) = token else { continue };
        let before = |n: usize| at.checked_sub(n).and_then(|at| source.tokens.get(at)).map(|(t, _)| t);
        let after = source.tokens.get(at + 1).map(|(t, _)| t);
        let called = matches!(after, Some(Token::Mark('(') | Token::Path))
            && before(1) != Some(&Token::Word("fn".into()));
        let of_thread = before(2) == Some(&Token::Word("thread".into()));
        let of_tokio = before(1) == Some(&Token::Path) && !of_thread;
        // in `demo` whoever holds its `Spawner` may use it: `spawner.spawn(…)` or `….spawner().spawn(…)`
        let handed = before(1) == Some(&Token::Mark('.'))
            && (2..=4).any(|n| before(n) == Some(&Token::Word("spawner".into())));
        let tracked = (demo && handed) || (thread && !of_tokio);
        if STARTS.contains(&word.as_str()) && called && !tracked {
            findings.push((*line, format!("`{word}`: a task that no drain waits for")));
        }
        if STARTERS.contains(&word.as_str()) && !is_import(source, word, *line) {
            findings.push((*line, format!("`{word}` starts tasks that no drain waits for")));
        }
    }
    findings
}

/// A name in a `use` does nothing yet; its uses are what is reported.
fn is_import(source: &Source, word: &str, line: usize) -> bool {
    source.paths.iter().any(|named| {
        named.is_use()
            && named.alias == word
            && named.line == line
            && named.segments.last().is_some_and(|s| s == word)
    })
}

const DRAWERS: [&str; 5] = ["utils", "util", "common", "prelude", "helpers"];

fn drawers(source: &Source) -> Findings {
    let mut findings = Findings::new();
    for part in source.path.trim_end_matches(".rs").split('/').filter(|part| DRAWERS.contains(part)) {
        findings.push((1, format!("`{part}` says nothing about what is in it")));
    }
    for name in DRAWERS {
        let lines = source.find(&format!("mod {name}"));
        findings.extend(
            lines.into_iter().map(|line| (line, format!("`{name}` says nothing about what is in it"))),
        );
    }
    findings
}

fn wholes(source: &Source) -> Findings {
    let mut findings = Findings::new();
    if !["app", "cli", "config", "main"].contains(&source.room()) {
        for (named, to) in own(source).filter(|(_, to)| to.first().is_some_and(|room| room == "config")) {
            findings
                .push((named.line, format!("`crate::{}`: a room sees its own Params only", to.join("::"))));
        }
    }
    if source.path != "clock.rs" {
        for named in &source.paths {
            if let [.., of, now] = named.segments.as_slice()
                && now == "now"
                && ["Instant", "SystemTime", "Timestamp", "Zoned"].contains(&of.as_str())
            {
                findings.push((named.line, format!("`{of}::now`: only clock.rs reads the clock")));
            }
        }
    }
    findings
}
