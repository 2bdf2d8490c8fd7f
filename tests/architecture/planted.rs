//! Planted violations: a rule that finds nothing must be known to be able to.

use crate::rules::RULES;
use crate::source::Source;

/// The lines that the rule whose name contains `rule` finds in `text`.
fn found(rule: &str, path: &str, text: &str) -> Vec<usize> {
    let source = Source::read(path, text);
    let mut lines: Vec<usize> = RULES
        .iter()
        .filter(|(name, _)| name.contains(rule))
        .flat_map(|(_, judge)| judge(&source))
        .map(|(line, _)| line)
        .collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

/// Every line marked `// BAD` is found, and no other.
fn exactly_the_marked(rule: &str, path: &str, text: &str) {
    assert!(RULES.iter().any(|(name, _)| name.contains(rule)), "there is no rule `{rule}`");
    let marked: Vec<usize> =
        (1..).zip(text.lines()).filter(|(_, l)| l.contains("// BAD")).map(|(n, _)| n).collect();
    assert!(!marked.is_empty(), "nothing planted");
    assert_eq!(found(rule, path, text), marked, "{rule} in {path}:\n{text}");
}

const NOTHING: [usize; 0] = [];

#[test]
fn an_import_of_a_higher_or_an_equal_rank() {
    let text = r##"//! Prose may speak of `crate::app` and /* of */ crate::cli.
use std::fmt;
use crate::clock::Clock;
use crate::proxy::route::{self, Route};
use crate::listener::Params; // BAD
pub use crate::demo; // BAD
use crate::{
    clock,
    config::{
        Config, // BAD
        Flag as F, // BAD
    },
    upstream::{self, Fault},
    app as harmless, // BAD
};
use super::super::cli::Settings; // BAD
use self::inner::Thing;
use crate::*; // BAD
use crate as root; // BAD
/* use crate::app::A; /* nested */ use crate::app::B; */
const PROSE: &str = "use crate::app::Running; // \" crate::app::Running";
const RAW: &str = r#"crate::app::Running "quoted" "#;
const CHAR: char = '"'; fn after_a_quote(_: crate::cli::Settings) {} // BAD
const BYTE: u8 = b'\''; fn after_another<'a>(_: &'a crate::config::Config) {} // BAD
fn inline() -> crate::policy::units::Ticket { crate::app::run() } // BAD
fn turbofish() { Vec::<crate::simulate::World>::new(); } // BAD
macro_rules! m { () => { $crate::app::run() } } // BAD
fn unknown(_: crate::attic::Thing) {} // BAD
pub(in crate::proxy) fn visible() {}
mod inline { use super::super::app::Running; } // BAD

#[cfg(test)]
mod tests {
    use crate::app::Running;
}
"##;
    exactly_the_marked("lower rank", "proxy/gate.rs", text);
    let from_the_middle = "#[cfg(test)]\n#[allow(dead_code)]\npub(crate) mod tests {\n    use crate::app::A; }\nuse crate::app::B; // BAD\n";
    exactly_the_marked("lower rank", "proxy/gate.rs", from_the_middle);
    exactly_the_marked("lower rank", "attic/old.rs", "// BAD: a room without a rank\n");
    exactly_the_marked(
        "lower rank",
        "clock.rs",
        "use crate::policy::units::MonoTime;\nuse crate::policy::engine::Event; // BAD\n",
    );
    exactly_the_marked("lower rank", "policy/units.rs", "use crate::clock::Clock; // BAD\n");
    assert_eq!(found("lower rank", "main.rs", "use tidegate::cli;\n"), NOTHING);
    assert_eq!(found("lower rank", "lib.rs", "pub mod app;\npub mod cli;\n"), NOTHING);
}

#[test]
fn a_folder_of_policy_that_knows_another() {
    let text = "use crate::policy::units::{Ticket, Tokens};
use crate::policy::admission::queue::Queue;
use crate::policy::supply::Breaker; // BAD
use crate::policy::{units, engine::Event}; // BAD
use crate::policy; // BAD
use super::super::predict::plan; // BAD
use super::permits::Permits;
use super::super::units::MonoTime;
use super::super::*; // BAD
fn f(_: crate::policy::predict::Decision) {} // BAD
";
    exactly_the_marked("folders", "policy/admission/queue.rs", text);
    exactly_the_marked("folders", "policy/units.rs", "use super::admission::Queue; // BAD\n");
    assert_eq!(found("folders", "policy/engine.rs", text), NOTHING);
    assert_eq!(found("folders", "policy/engine/words.rs", text), NOTHING);
    assert_eq!(found("folders", "proxy/gate.rs", text), NOTHING);
}

#[test]
fn a_policy_that_reads_the_world() {
    let text = r#"use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use std::{cmp::Ordering, fmt, mem};
use serde::Deserialize;
use jiff::civil::Time;
use queue::Queue;
use crate::policy::admission::{self, Params};
use std::collections::HashMap; // BAD
use std::collections::{
    BTreeSet,
    HashSet, // BAD
};
use std::time::{Duration, Instant}; // BAD
use std::sync::{Arc, Mutex}; // BAD
use std::sync::*; // BAD
use std::{fs, env}; // BAD
use std::io::Read; // BAD
use tokio::sync::Notify; // BAD
use tracing::info; // BAD
use rand; // BAD
extern crate hyper; // BAD
mod queue;
#[derive(thiserror::Error)]
#[allow(clippy::unwrap_used)]
struct S { seen: AtomicU64 } // BAD
static COUNT: u32 = 0; // BAD
fn f(now: u64, s: &'static str) -> u64 { u64::from(now as u32) + f64::MAX as u64 + admission::count() }
fn g() { let x: usize = std::thread::available_parallelism(); } // BAD
fn h() { jiff::Timestamp::now(); } // BAD
fn i() { jiff::tz::TimeZone::system(); } // BAD
fn j() { println!("{}", 1); } // BAD
fn k() { tracing::info!("x"); } // BAD
fn l() { ::std::process::abort(); } // BAD
fn m() { fastrand::u64(..); } // BAD
fn n() { let t = "Instant::now() in a string"; /* Mutex */ let o = Ordering::Less; Self::now(); }
// HashMap in prose
#[cfg(test)]
mod tests { use std::collections::HashMap; }
"#;
    exactly_the_marked("pure", "policy/admission/mod.rs", text);
    assert_eq!(found("pure", "proxy/gate.rs", text), NOTHING);
}

#[test]
fn a_file_that_is_too_long() {
    let line = "fn f() {}\n";
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", line.repeat(500));
    assert_eq!(found("400", "app/mod.rs", &(line.repeat(400) + &tests)), NOTHING);
    assert_eq!(found("400", "app/mod.rs", &(line.repeat(401) + &tests)), [401]);
    assert_eq!(found("400", "app/mod.rs", &(tests + &line.repeat(401))), [401], "tests first");
}

#[test]
fn a_metric_named_elsewhere() {
    let text = r##"const A: &str = "tidegate_requests_total"; // BAD
const B: &str = r#"sum(rate(tidegate_requests_total[5m]))"#; // BAD
const C: &[u8] = b"# TYPE tidegate_in_flight gauge"; // BAD
const D: &str = "my_tidegate_x, TIDEGATE_LISTEN, tidegate_";
// tidegate_requests_total
fn tidegate_requests_total() {}
use prometheus::Registry; // BAD
"##;
    exactly_the_marked("metrics", "proxy/meter.rs", text);
    exactly_the_marked("metrics", "demo/load.rs", text);
    assert_eq!(found("metrics", "telemetry/gate.rs", text), NOTHING);
    assert_eq!(found("metrics", "demo/live.rs", text), [7], "it reads names, it makes no metrics");
}

#[test]
fn an_engine_driven_elsewhere() {
    let text = "use crate::policy::engine::{Arrival, Kind};
use crate::policy::engine::{
    Event,
    Engine, // BAD
};
use crate::policy::engine::*; // BAD
fn f(e: &mut engine::Engine) { // BAD
    e.on(now, event, &mut effects); // BAD
    // e.on(now)
    e . on
        (1); // prose
    e.only(); turn.on;
}
";
    let marked_or_split = found("engine", "proxy/admit.rs", text);
    assert_eq!(marked_or_split, [4, 6, 7, 8, 10]);
    assert_eq!(found("engine", "proxy/gate.rs", text), NOTHING);
    assert_eq!(found("engine", "simulate/replay.rs", text), NOTHING);
}

#[test]
fn a_task_that_nobody_tracks() {
    let text = "use tokio::task::JoinSet;
fn spawn(x: u32) {}
fn f() { tokio::spawn(async {}); } // BAD
fn g() { tracker.spawn(async {}); } // BAD
fn h() { tokio::task::spawn_blocking(|| ()); } // BAD
fn i() { let set = JoinSet::new(); } // BAD
fn j() { http2::Builder::new(TokioExecutor::new()); } // BAD
fn k() { spawn::<F>(x); } // BAD
fn l() { std::thread::spawn(|| ()); } // BAD
fn m() { thread::Builder::new(); } // BAD
fn n() { let s = \"spawn(\"; respawn(); }
";
    exactly_the_marked("tracked", "proxy/forward.rs", text);
    assert_eq!(found("tracked", "upstream/pool.rs", text), [9, 10]);
    assert_eq!(found("tracked", "app/worker.rs", text), NOTHING);
    assert_eq!(found("tracked", "telemetry/writer.rs", text), [3, 5, 6, 7], "a thread is no leave for tasks");
    let handed = "fn f() { spawner.spawn(async {}); }\nfn g() { self.tasks.spawner().spawn(x); }\nfn h() { tokio::spawn(x); } // BAD\n";
    exactly_the_marked("tracked", "demo/wire.rs", handed);
    assert_eq!(found("tracked", "proxy/forward.rs", handed), [1, 2, 3]);
}

#[test]
fn a_drawer_for_everything() {
    exactly_the_marked(
        "drawer",
        "proxy/mod.rs",
        "mod common; // BAD\npub(crate) mod utils { } // BAD\nuse hyper_util::rt;\n",
    );
    assert_eq!(found("drawer", "proxy/utils.rs", ""), [1]);
    assert_eq!(found("drawer", "prelude/mod.rs", ""), [1]);
    assert_eq!(found("drawer", "proxy/route.rs", "use std::prelude::v1::*;\n"), NOTHING);
}

#[test]
fn a_room_that_sees_the_whole_config_or_the_clock() {
    let text = "use crate::config::Config; // BAD
fn f(c: &crate::config::Loaded) {} // BAD
fn g() { std::time::Instant::now(); } // BAD
fn h() { jiff::Zoned::now(); } // BAD
fn i() { clock.now(); } // Instant::now
";
    exactly_the_marked("config", "demo/load.rs", text);
    assert_eq!(found("config", "app/mod.rs", text), [3, 4]);
    assert_eq!(found("config", "clock.rs", text), [1, 2]);
}
