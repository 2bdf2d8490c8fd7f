//! The file, the environment and the flags, made into each room's checked settings.
//!
//! Order: defaults, then the file, then `TIDEGATE_SECTION__KEY` variables, then flags; the later wins. All faults are
//! found in one pass and reported together, each with the place it was made at. Without this room every room
//! would read its own variables, and a wrong setting would show itself one restart at a time, or never.
//! `app` and `cli` call it; they alone see the whole [`Config`].

mod faults;
mod foresight;
mod nearest;
mod reader;
mod secret;
mod sections;
mod together;
mod upstream;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use faults::{Fault, Faults, Place};

use crate::policy::supply::{BreakerParams, RetryParams};
use crate::policy::{admission, predict};
use crate::{listener, proxy, telemetry};
use reader::Reader;
use upstream::Vault;

/// Everything that was set, checked room by room.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[listen]`, and the peers' side of `[limits]`.
    pub listen: listener::Params,
    /// `[telemetry]` and `[admin]`.
    pub telemetry: telemetry::Params,
    /// The bodies' side of `[limits]`.
    pub limits: proxy::Params,
    /// `[queue]`, and the engine's side of `[limits]`.
    pub queue: admission::Params,
    /// `[scaling]`.
    pub scaling: predict::Params,
    /// `[breaker]`.
    pub breaker: BreakerParams,
    /// `[retry]`.
    pub retry: RetryParams,
    /// Every `[[upstream]]`, in the file's order. There is at least one.
    pub upstreams: Vec<crate::upstream::Params>,
}

impl Config {
    /// The first upstream.
    #[must_use]
    pub fn first_upstream(&self) -> crate::upstream::Params {
        self.upstreams.first().cloned().unwrap_or_default()
    }
}

/// A setting made on the command line.
#[derive(Clone)]
pub struct Flag {
    /// The setting's path, such as `listen.address`.
    pub key: &'static str,
    /// What it was set to.
    pub value: String,
    /// The flag's own name, such as `--listen`, for messages.
    pub flag: &'static str,
}

/// Where settings come from. It holds the environment, secrets and all, so it has no `Debug`.
#[derive(Clone, Default)]
pub struct Sources {
    /// The configuration file, if there is one.
    pub file: Option<PathBuf>,
    /// The process's environment.
    pub environment: BTreeMap<String, String>,
    /// Settings made on the command line.
    pub flags: Vec<Flag>,
}

/// Settings that can be run with.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What the operator should know, though it stops nothing.
    pub warnings: Vec<String>,
}

/// Reads all sources.
///
/// # Errors
/// Every fault in them, or why the file cannot be read.
pub fn load(sources: &Sources) -> Result<Loaded, Faults> {
    let (text, name) = text_of(sources)?;
    parse(&text, &name, &sources.environment, &sources.flags, &secret::read_file)
}

/// Where the admin service listens by these sources, whatever else is wrong or missing in them: a container's
/// health check sees the environment of the proxy it asks about, but not the flags that named its file.
///
/// # Errors
/// The file cannot be read, or it is this one setting that is at fault.
pub fn admin_address(sources: &Sources) -> Result<SocketAddr, Faults> {
    let (text, name) = text_of(sources)?;
    let mut reader = Reader::default();
    reader.file(&text).map_err(|fault| Faults::new(&name, vec![fault]))?;
    reader.environment(&sources.environment);
    reader.flags(&sources.flags);
    let address = reader.take("admin.address", values::address);
    if reader.is_faulty("admin.address") {
        let faults = reader.finish().into_iter().filter(|fault| fault.key == "admin.address").collect();
        return Err(Faults::new(&name, faults));
    }
    Ok(address.unwrap_or(telemetry::Params::default().admin_address))
}

fn text_of(sources: &Sources) -> Result<(String, String), Faults> {
    let Some(path) = &sources.file else { return Ok((String::new(), String::new())) };
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| {
        let message = format!("cannot be read: {e}");
        Faults::new(&name, vec![Fault { place: Place::File, key: String::new(), message }])
    })?;
    Ok((text, name))
}

/// Reads settings from `text` instead of a file; `name` is what faults call it, empty where there is no file.
///
/// It is a pure function of its arguments: files that hold secrets are read through `read_file`.
///
/// # Errors
/// Every fault in them.
pub fn parse(
    text: &str,
    name: &str,
    environment: &BTreeMap<String, String>,
    flags: &[Flag],
    read_file: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Loaded, Faults> {
    let mut reader = Reader::default();
    reader.file(text).map_err(|fault| Faults::new(name, vec![fault]))?;
    reader.environment(environment);
    reader.flags(flags);
    let mut warnings = Vec::new();
    let config = sections::read(&mut reader, &Vault { environment, read_file }, &mut warnings);
    warnings.extend(reader.near_variables(environment));
    let faults = reader.finish();
    if faults.is_empty() { Ok(Loaded { config, warnings }) } else { Err(Faults::new(name, faults)) }
}

/// The path of every setting there is; those of `[[upstream]]` begin with `upstream.0.`.
///
/// It is what the sections ask for, so it cannot fall behind them: `tests/config_docs.rs` holds the documentation
/// against it.
#[must_use]
pub fn keys() -> BTreeSet<String> {
    let mut reader = Reader::default();
    let vault = Vault { environment: &BTreeMap::new(), read_file: &|_| Err(io::ErrorKind::NotFound.into()) };
    sections::read(&mut reader, &vault, &mut Vec::new());
    reader.into_asked()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::policy::predict::{ArticleWindow, PolicyKind};

    const UPSTREAM: &str = "[[upstream]]\nname = \"one\"\nbase_url = \"http://model:8000/v1\"\n";

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn read(text: &str, environment: &[(&str, &str)], flags: &[Flag]) -> Result<Loaded, Faults> {
        let files = |path: &Path| match path.to_str() {
            Some("key.txt") => Ok("sk-from-file\n".to_owned()),
            Some("empty.txt") => Ok("\n".to_owned()),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        parse(text, "t.toml", &env(environment), flags, &files)
    }

    /// With an upstream above it, so that `text` begins at line 4.
    fn good(text: &str) -> Config {
        read(&format!("{UPSTREAM}{text}"), &[], &[]).unwrap_or_else(|f| panic!("{f}")).config
    }

    /// The faults as printed, one a line.
    fn bad(text: &str, environment: &[(&str, &str)]) -> Vec<String> {
        let faults = read(text, environment, &[]).err().unwrap_or_else(|| panic!("accepted: {text}"));
        faults.to_string().lines().map(str::to_owned).collect()
    }

    fn one(text: &str) -> String {
        let faults = bad(&format!("{UPSTREAM}{text}"), &[]);
        assert_eq!(faults.len(), 1, "{faults:#?}");
        faults[0].clone()
    }

    fn begins(faults: &[String], wanted: &[&str]) {
        assert_eq!(faults.len(), wanted.len(), "{faults:#?}");
        for (fault, wanted) in faults.iter().zip(wanted) {
            assert!(fault.starts_with(wanted), "{fault}\nshould begin with\n{wanted}");
        }
    }

    #[test]
    fn all_faults_come_at_once_in_the_order_of_the_file() {
        let text = "\
[listen]
address = \"localhost\"
colour = \"red\"
[scaling]
policy = \"predictiv\"
cooldown = 30
warm_up = \"0s\"
[queue]
timeout = \"-1s\"
[breaker]
failures = 0
[[upstream]]
base_url = \"ftp://model\"
api_key = \"sk-SECRET\"
http2 = \"yes\"
[nonsense]
a = 1
b = 2
";
        let environment = [("TIDEGATE_QUEUE__MAX_REQUESTS", "many"), ("TIDEGATE_QUEUE__TIMOUT", "1s")];
        begins(
            &bad(text, &environment),
            &[
                "t.toml:2: listen.address: expected an IP address and port",
                "t.toml:3: listen.colour: unknown setting",
                "t.toml:5: scaling.policy: ",
                "t.toml:6: scaling.cooldown: expected a time with its unit such as",
                "t.toml:7: scaling.warm_up: must be between 1s and 10m",
                "t.toml:9: queue.timeout: must not be negative",
                "t.toml:11: breaker.failures: must be at least 1",
                "t.toml:13: upstream.0.base_url: ",
                "t.toml:14: upstream.0.api_key: must be \"env:NAME\"",
                "t.toml:15: upstream.0.http2: expected true or false, found a string",
                "t.toml:16: nonsense: unknown section",
                "TIDEGATE_QUEUE__MAX_REQUESTS: expected a whole number, found \"many\"",
                "TIDEGATE_QUEUE__TIMOUT: unknown setting; did you mean `TIDEGATE_QUEUE__TIMEOUT`?",
            ],
        );
    }

    #[test]
    fn an_unknown_setting_is_a_fault_with_its_nearest_name() {
        assert_eq!(
            one("[listen]\nadress = 1"),
            "t.toml:5: listen.adress: unknown setting; did you mean `listen.address`?"
        );
        assert_eq!(
            one("[listen]\nmax_connections = 1"),
            "t.toml:5: listen.max_connections: unknown setting; did you mean `limits.max_connections`?"
        );
        assert_eq!(one("[lisen]\naddress = 1"), "t.toml:4: lisen: unknown section; did you mean `listen`?");
        assert_eq!(one("keep_alive = 1\n").split(": ").nth(1), Some("upstream.0.keep_alive"));
        // A quoted name with a dot in it is one name, not a path.
        begins(
            &[one("[scaling]\n\"article.window\" = 300")],
            &["t.toml:5: scaling.\"article.window\": unknown setting"],
        );
    }

    #[test]
    fn a_wrong_type_names_what_was_expected_and_what_was_found() {
        for (text, message) in [
            (
                "[listen]\nworkers = \"two\"",
                "t.toml:5: listen.workers: expected a whole number, found a string",
            ),
            ("[listen]\nworkers = 1.5", "t.toml:5: listen.workers: expected a whole number, found a float"),
            (
                "[listen]\naddress = [1]",
                "t.toml:5: listen.address: expected an IP address and port such as \"127.0.0.1:8080\" or \"[::]:8080\", found an array",
            ),
            ("[listen.address]\nx = 1", "t.toml:4: listen.address: expected a value, found a table"),
            ("[[listen]]\nworkers = 1", "t.toml:4: listen: expected a section of settings, found an array"),
            (
                "[queue]\non_drain = \"wait\"",
                "t.toml:5: queue.on_drain: expected \"reject\" or \"finish\", found \"wait\"",
            ),
            (
                "[queue]\ntimeout = 30",
                "t.toml:5: queue.timeout: expected a time with its unit such as \"500ms\", \"30s\", \"5m\" or \"1h\", found the bare number 30: write \"30s\" for seconds",
            ),
        ] {
            assert_eq!(one(text), message);
        }
    }

    #[test]
    fn a_file_that_is_not_toml_has_one_fault_with_its_line() {
        let faults = bad("[listen]\nworkers = 2\naddress = \n[queue]\nx = 1", &[("TIDEGATE_X__Y", "1")]);
        begins(&faults, &["t.toml:3: is not valid TOML: "]);
        begins(
            &bad("[listen]\nworkers = 2\nworkers = 3\n", &[]),
            &["t.toml:3: is not valid TOML: duplicate key"],
        );
    }

    #[test]
    fn a_variable_beats_the_file_and_a_flag_beats_both() {
        let text = format!("{UPSTREAM}[listen]\naddress = \"127.0.0.1:1\"\n[queue]\nmax_requests = 1\n");
        let environment =
            [("TIDEGATE_LISTEN__ADDRESS", "127.0.0.1:2"), ("TIDEGATE_QUEUE__MAX_REQUESTS", "2")];
        let flag = |value: &str| Flag { key: "listen.address", value: value.into(), flag: "--listen" };
        let config = read(&text, &environment, &[flag("127.0.0.1:3")]).unwrap().config;
        assert_eq!(config.listen.address.port(), 3);
        assert_eq!(config.queue.max_requests, 2);
        let faults = read(&text, &environment, &[flag("3")]).unwrap_err();
        assert!(faults.to_string().starts_with("--listen: expected an IP address"), "{faults}");
        assert_eq!(faults.iter().next().map(|f| f.key.as_str()), Some("listen.address"));
    }

    #[test]
    fn a_variable_is_read_as_the_type_its_setting_has() {
        let environment = [
            ("TIDEGATE_UPSTREAM__0__NAME", "x"),
            ("TIDEGATE_UPSTREAM__0__BASE_URL", "https://model/v1"),
            ("TIDEGATE_UPSTREAM__0__HTTP2", "true"),
            ("TIDEGATE_UPSTREAM__0__CA_FILE", "ca.pem"),
            ("TIDEGATE_UPSTREAM__0__API_KEY", "env:KEY"),
            ("KEY", " sk-1 "),
            ("TIDEGATE_LISTEN__WORKERS", "3"),
            ("TIDEGATE_ADMIN__ADDRESS", "[::1]:9"),
            ("TIDEGATE_LIMITS__BODY_BYTES", "1MiB"),
            ("TIDEGATE_QUEUE__MAX_BYTES", "1000"),
            ("TIDEGATE_QUEUE__TIMEOUT", "5s"),
            ("TIDEGATE_QUEUE__ON_DRAIN", "finish"),
            ("TIDEGATE_SCALING__SCALE_UP_THRESHOLD", "0.9"),
            ("TIDEGATE_SCALING__POLICY", "article"),
            ("TIDEGATE_SCALING__ARTICLE__WINDOW", "400"),
            ("TIDEGATE_TELEMETRY__ACCESS_LOG", "access.log"),
            ("TIDEGATE_CONFIG", "ignored"),
            ("TIDEGATE_QUEUE_TIMEOUT", "7s"),
        ];
        let Loaded { config, warnings } = read("", &environment, &[]).unwrap_or_else(|f| panic!("{f}"));
        assert_eq!(config.first_upstream().name, "x");
        assert_eq!(config.first_upstream().base_url, "https://model/v1");
        assert!(config.first_upstream().http2);
        assert_eq!(config.first_upstream().ca_file, Some("ca.pem".into()));
        assert_eq!(config.first_upstream().api_key.map(|k| k.reveal().to_owned()), Some("sk-1".into()));
        assert_eq!(config.listen.workers, 3);
        assert_eq!(config.telemetry.admin_address, "[::1]:9".parse().unwrap());
        assert_eq!(config.limits.body_bytes, 1 << 20);
        assert_eq!(config.queue.max_bytes, 1000);
        assert_eq!(config.queue.timeout, Duration::from_secs(5));
        assert_eq!(config.queue.on_drain, admission::OnDrain::Finish);
        assert_eq!(config.scaling.scale_up_threshold, 0.9);
        assert_eq!(config.scaling.policy, PolicyKind::Article);
        assert_eq!(config.scaling.article_window, ArticleWindow::Requests(400));
        assert_eq!(config.telemetry.access_log, telemetry::AccessLog::File("access.log".into()));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].starts_with("TIDEGATE_QUEUE_TIMEOUT is ignored"), "{warnings:?}");
        let window = [("OPENAI_BASE_URL", "http://m/v1"), ("TIDEGATE_SCALING__ARTICLE__WINDOW", "5m")];
        let config = read("", &window, &[]).unwrap().config;
        assert_eq!(config.scaling.article_window, ArticleWindow::Time(Duration::from_secs(300)));
    }

    #[test]
    fn openai_base_url_alone_is_enough() {
        let Loaded { config, warnings } = read("", &[("OPENAI_BASE_URL", "http://m:1/v1")], &[]).unwrap();
        assert_eq!(
            (config.first_upstream().name.as_str(), config.first_upstream().api_key.is_none()),
            ("default", true)
        );
        assert_eq!(config.first_upstream().base_url, "http://m:1/v1");
        assert!(warnings.is_empty());
        let with_key = [("OPENAI_BASE_URL", "http://m:1/v1"), ("OPENAI_API_KEY", "sk-1")];
        let key = read("", &with_key, &[]).unwrap().config.first_upstream().api_key;
        assert_eq!(key.map(|k| k.reveal().to_owned()), Some("sk-1".into()));
        let empty = read("", &[("OPENAI_BASE_URL", "http://m:1/v1"), ("OPENAI_API_KEY", "")], &[]).unwrap();
        assert!(empty.config.first_upstream().api_key.is_none());
        assert!(empty.warnings[0].starts_with("OPENAI_API_KEY is empty"), "{:?}", empty.warnings);
        begins(&bad("", &[("OPENAI_BASE_URL", " ")]), &["t.toml: no upstream: add [[upstream]]"]);
        begins(&bad("", &[("OPENAI_BASE_URL", "model")]), &["OPENAI_BASE_URL: "]);
    }

    #[test]
    fn a_described_upstream_takes_nothing_from_openai_variables() {
        let environment = [("OPENAI_BASE_URL", "http://other/v1"), ("OPENAI_API_KEY", "sk-other")];
        let config = read(UPSTREAM, &environment, &[]).unwrap().config;
        assert_eq!(config.first_upstream().base_url, "http://model:8000/v1");
        assert!(config.first_upstream().api_key.is_none());
        begins(
            &bad("[[upstream]]\nname = \"x\"", &environment),
            &["t.toml:1: upstream.0.base_url: is missing"],
        );
    }

    #[test]
    fn there_are_as_many_upstreams_as_are_described_and_at_least_one() {
        let two =
            format!("{UPSTREAM}\n[[upstream]]\nname = \"two\"\nbase_url = \"http://two/v1\"\ntier = 1\n");
        let config = read(&two, &[("TIDEGATE_UPSTREAM__1__WEIGHT", "3")], &[]).unwrap().config;
        let told = |u: &crate::upstream::Params| (u.name.clone(), u.base_url.to_string(), u.supply.tier);
        assert_eq!(
            config.upstreams.iter().map(told).collect::<Vec<_>>(),
            [
                ("one".to_owned(), "http://model:8000/v1".to_owned(), 0),
                ("two".to_owned(), "http://two/v1".to_owned(), 1)
            ]
        );
        assert_eq!(config.upstreams[1].supply.weight, 3);
        // by variables alone, and added to those of the file
        let third = [
            ("TIDEGATE_UPSTREAM__2__NAME", "three"),
            ("TIDEGATE_UPSTREAM__2__BASE_URL", "http://three/v1"),
            ("TIDEGATE_UPSTREAM__2__MODELS", "gpt-*, o1"),
        ];
        assert_eq!(read(&two, &third, &[]).unwrap().config.upstreams[2].supply.models, ["gpt-*", "o1"]);
        begins(
            &bad(UPSTREAM, &third),
            &[
                "TIDEGATE_UPSTREAM__2__BASE_URL: there is no upstream 1: they are numbered from 0 without a gap",
            ],
        );
        begins(
            &bad(UPSTREAM, &[("TIDEGATE_UPSTREAM__01__NAME", "b")]),
            &["TIDEGATE_UPSTREAM__01__NAME: upstreams are numbered"],
        );
        begins(
            &bad(&format!("{UPSTREAM}[[upstream]]\nname = \"two\"\ncolour = 1"), &[]),
            &["t.toml:4: upstream.1.base_url: is missing", "t.toml:6: upstream.1.colour: unknown setting"],
        );
        begins(
            &bad(UPSTREAM, &[("TIDEGATE_UPSTREAM__NAME", "b")]),
            &["TIDEGATE_UPSTREAM__NAME: upstreams are numbered"],
        );
        begins(&bad("[upstream]\nname = \"x\"", &[]), &["t.toml:1: upstream: is a list: write [[upstream]]"]);
        begins(&bad("upstream = [1]", &[]), &["t.toml:1: upstream.0: expected a table"]);
        begins(&bad("upstream = []", &[]), &["t.toml: no upstream"]);
        let many: String = (0..1001)
            .map(|i| format!("[[upstream]]\nname = \"u{i}\"\nbase_url = \"http://u/v1\"\n"))
            .collect();
        begins(&bad(&many, &[]), &["t.toml:3001: upstream.1000: there are at most 1000 upstreams"]);
    }

    #[test]
    fn upstreams_that_get_in_each_other_s_way_are_refused_with_their_lines() {
        let with = |entries: &[&str]| -> String {
            let entry = |(i, more): (usize, &&str)| {
                format!("[[upstream]]\nname = \"u{i}\"\nbase_url = \"http://u{i}/v1\"\n{more}\n")
            };
            entries.iter().enumerate().map(entry).collect()
        };
        let accepted =
            |entries: &[&str]| drop(read(&with(entries), &[], &[]).unwrap_or_else(|f| panic!("{f}")));
        let refused = |entries: &[&str], wanted: &[&str]| begins(&bad(&with(entries), &[]), wanted);
        accepted(&[
            "",
            "models = [\"a*\", \"b\"]",
            "tier = 1",
            "models = [\"b\", \"a*\"]\ntier = 1",
            "tier = 1",
        ]);
        begins(
            &bad(&format!("{UPSTREAM}{UPSTREAM}"), &[]),
            &["t.toml:5: upstream.1.name: \"one\" is also the name of upstream.0"],
        );
        refused(
            &["models = [\"gpt-*\"]", "", "models = [\"gpt-4o\"]", "models = [\"*\", \"o1\"]"],
            &[
                "t.toml:12: upstream.2.models: \"gpt-4o\" overlaps with \"gpt-*\" of \"u0\"",
                "t.toml:16: upstream.3.models: \"*\" overlaps with \"*\" of \"u1\"",
            ],
        );
        refused(
            &["models = []", "models = [\"a\", \"a\"]", "models = [\"a*b\", 1]", "models = \"a\""],
            &[
                "t.toml:4: upstream.0.models: names no model",
                "t.toml:8: upstream.1.models: \"a\" stands there twice",
                "t.toml:12: upstream.2.models: in the list: expected a string, found an integer",
                "t.toml:16: upstream.3.models: expected a list such as [\"a\", \"b\"], found a string",
            ],
        );
        refused(
            &["weight = 0", "tier = 2", "tier = 4"],
            &[
                "t.toml:4: upstream.0.weight: must be at least 1",
                "t.toml:8: upstream.1.tier: is 2, but no upstream with the same models has tier 1",
                "t.toml:12: upstream.2.tier: is 4, but no upstream with the same models has tier 3",
            ],
        );
        refused(
            &["tier = 1"],
            &["t.toml:4: upstream.0.tier: is 1, but no upstream with the same models has tier 0"],
        );
        // one fault hides no other
        refused(
            &["models = 1", "models = [\"a*\"]", "models = [\"ab\"]", "models = [\"c\"]\ntier = 2"],
            &[
                "t.toml:4: upstream.0.models: expected a list",
                "t.toml:12: upstream.2.models: \"ab\" overlaps with \"a*\" of \"u1\"",
                "t.toml:17: upstream.3.tier: is 2, but no upstream with the same models has tier 1",
            ],
        );
        // but one that is not known may be what is missed
        refused(
            &["models = 1\ntier = 1", "models = [\"c\"]\ntier = 2", "models = [\"c\"]"],
            &["t.toml:4: upstream.0.models: expected a list"],
        );
    }

    #[test]
    fn what_bounds_all_upstreams_bounds_each() {
        good("concurrency = 1000");
        begins(
            &[one("concurrency = 1001")],
            &["t.toml:4: upstream.0.concurrency: 1001 is more than scaling.max_permits = 1000 (its default)"],
        );
        begins(
            &[one("concurrency = 64\n[scaling]\nmax_permits = 32")],
            &["t.toml:4: upstream.0.concurrency: 64 is more than scaling.max_permits = 32 (line 6)"],
        );
    }

    #[test]
    fn a_later_tier_that_only_failures_lead_to_is_told() {
        let second = "[[upstream]]\nname = \"two\"\nbase_url = \"http://two/v1\"\ntier = 1\n";
        let warned = |text: &str| read(&format!("{UPSTREAM}{text}"), &[], &[]).unwrap().warnings;
        let short = "[queue]\ntimeout = \"3s\"";
        assert_eq!(warned(short).len() + warned(second).len(), 0);
        let warnings = warned(&format!("{second}{short}"));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let begins = "queue.failover_wait = 5s (its default) is not shorter than queue.timeout = 3s (line 9)";
        assert!(warnings[0].starts_with(begins), "{warnings:?}");
    }

    #[test]
    fn what_retries_cost_gives_way_to_a_small_budget() {
        let costs = |text: &str| {
            let r = good(&format!("[retry]\n{text}")).retry;
            (r.budget, r.retry_cost, r.timeout_cost)
        };
        assert_eq!(costs(""), (500, 5, 10));
        assert_eq!(costs("budget = 7"), (7, 5, 7));
        assert_eq!(costs("budget = 0"), (0, 1, 1));
        begins(
            &[one("[retry]\nbudget = 7\ntimeout_cost = 8")],
            &["t.toml:6: retry.timeout_cost: 8 is more than budget = 7: nothing would ever be retried"],
        );
    }

    #[test]
    fn what_an_upstream_can_take_and_how_patient_to_be_with_it() {
        use crate::policy::supply::ConcurrencyMode as Mode;
        use crate::upstream::{OnDisconnect, ServerMetrics};
        let read = |text: &str| good(text).first_upstream();
        let up = read(
            "models = [\"a\", \"b*\"]\nrename = { a = \"x.1\", \"b.c\" = \"y\" }\nconcurrency = 8\n\
             requests_per_minute = 600\ntokens_per_minute = 30000\nrate_limit_buffer = 0.9\n\
             total_timeout = \"20m\"\non_disconnect = \"drain\"\ndrain_limit = \"5s\"\nslow_start = \"0s\"\n\
             dns_refresh = \"0s\"\ncheck_path = \"/health\"\ncheck_interval = \"2s\"\nserver_metrics = \"/m\"",
        );
        assert_eq!(up.rename, [("a", "x.1"), ("b.c", "y")].map(|(a, b)| (a.to_owned(), b.to_owned())).into());
        assert_eq!(up.supply.concurrency, Mode::Fixed(8));
        assert_eq!((up.supply.requests_per_minute, up.supply.tokens_per_minute), (Some(600), Some(30_000)));
        assert_eq!((up.supply.rate_limit_buffer, up.supply.slow_start), (Some(0.9), Duration::ZERO));
        assert_eq!((up.total_timeout.as_secs(), up.drain_limit.as_secs()), (1200, 5));
        assert_eq!((up.on_disconnect, up.dns_refresh), (OnDisconnect::Drain, Duration::ZERO));
        assert_eq!((up.check_path.as_deref(), up.check_interval.as_secs()), (Some("/health"), 2));
        assert_eq!(up.server_metrics, ServerMetrics::Path("/m".into()));
        assert_eq!(read("[upstream.rename]\na = \"b\"").rename.len(), 1);
        assert_eq!(read("concurrency = \"learn\"").supply.concurrency, Mode::Learn);
        assert_eq!(read("server_metrics = \"off\"").server_metrics, ServerMetrics::Off);
        for (text, message) in [
            (
                "concurrency = \"many\"",
                "concurrency: expected \"auto\" or \"learn\" or \"unlimited\", found \"many\"; or a number of requests such as 16",
            ),
            ("concurrency = 0", "concurrency: must be 1 to 100000"),
            ("concurrency = 1.5", "concurrency: expected \"auto\""),
            (
                "server_metrics = \"metrics\"",
                "server_metrics: expected \"auto\" or \"off\", found \"metrics\"; or a path",
            ),
            ("check_path = \"health\"", "check_path: must be a path"),
            ("rename = { a = 1 }", "rename: of \"a\": expected a string, found an integer"),
            ("rename = \"a\"", "rename: expected names for names"),
            ("rename = { a = \"\" }", "rename: has an empty name"),
            ("rename = { a = { b = 1 } }", "rename: of \"a\": expected a string, found a table"),
            ("requests_per_minute = 0", "requests_per_minute: must be at least 1"),
            ("rate_limit_buffer = 1.1", "rate_limit_buffer: must be above 0 and at most 1"),
            ("drain_limit = \"0s\"", "drain_limit: must be at least 1ms"),
            ("drain_limit = \"61m\"", "drain_limit: must be at most 1h"),
            ("connect_timeout = \"1us\"", "connect_timeout: must be at least 1ms"),
            ("total_timeout = \"1us\"", "total_timeout: must be at least 1ms, or 0s"),
            ("idle_timeout = \"1ms\"", "idle_timeout: must be at least 100ms"),
            ("dns_refresh = \"1ms\"", "dns_refresh: must be at least 1s"),
        ] {
            begins(&[one(text)], &[&format!("t.toml:4: upstream.0.{message}")]);
        }
    }

    #[test]
    fn lists_and_names_are_variables_too_and_a_name_s_case_is_not_lost() {
        let base = ("OPENAI_BASE_URL", "http://m/v1");
        let with = |name: &'static str, value: &'static str| {
            [("TIDEGATE_UPSTREAM__0__BASE_URL", "http://m/v1"), (name, value), ("A", "ka"), ("B", "kb"), base]
        };
        let read = |name, value| read("", &with(name, value), &[]).unwrap_or_else(|f| panic!("{f}")).config;
        let up = read("TIDEGATE_UPSTREAM__0__RENAME", "GPT-4o=llama, x=y").first_upstream();
        assert_eq!(up.rename.get("GPT-4o").map(String::as_str), Some("llama"));
        let up = read("TIDEGATE_UPSTREAM__0__API_KEYS", "env:A,env:B").first_upstream();
        assert_eq!(up.keys().map(crate::upstream::Secret::reveal).collect::<Vec<_>>(), ["ka", "kb"]);
        let up = read("TIDEGATE_UPSTREAM__0__CONCURRENCY", "12").first_upstream();
        assert_eq!(up.supply.concurrency, crate::policy::supply::ConcurrencyMode::Fixed(12));
        begins(
            &bad("", &with("TIDEGATE_UPSTREAM__0__RENAME__GPT", "llama")),
            &[
                "TIDEGATE_UPSTREAM__0__RENAME__GPT: write all names in one variable: TIDEGATE_UPSTREAM__0__RENAME=alias=name",
            ],
        );
    }

    #[test]
    fn several_keys_have_all_to_be_good_and_exclude_the_one() {
        let environment =
            [("A", "sk-a"), ("B", "sk-b"), ("AGAIN", "sk-a"), ("EMPTY_KEY", ""), ("SAMPLE", "YOUR_API_KEY")];
        let with = |lines: &str| format!("{UPSTREAM}{lines}\n");
        let keys = |lines: &str| {
            let loaded = read(&with(lines), &environment, &[]).unwrap_or_else(|f| panic!("{f}"));
            assert!(!format!("{loaded:?}").contains("sk-"));
            let keys = loaded.config.first_upstream();
            (keys.keys().map(|k| k.reveal().to_owned()).collect::<Vec<_>>(), loaded.warnings)
        };
        assert_eq!(keys("api_keys = [\"env:A\", \"file:key.txt\"]").0, ["sk-a", "sk-from-file"]);
        let (some, warnings) = keys("api_keys = [\"env:A\", \"env:EMPTY_KEY\"]");
        assert_eq!(some, ["sk-a"]);
        let told = "upstream.0.api_keys: key 2: the variable EMPTY_KEY is empty: the other keys are used";
        assert_eq!(warnings, [told]);
        let (none, warnings) = keys("api_keys = [\"env:EMPTY_KEY\"]");
        assert!(
            none.is_empty() && warnings[0].ends_with("each client's own key passes through"),
            "{warnings:?}"
        );
        for (lines, message) in [
            ("api_keys = [\"env:A\", \"sk-literal\"]", "4: upstream.0.api_keys: key 2: must be \"env:NAME\""),
            (
                "api_keys = [\"env:A\", \"env:NONE_SUCH\"]",
                "4: upstream.0.api_keys: key 2: the variable NONE_SUCH is not set",
            ),
            (
                "api_keys = [\"env:A\", \"env:B\", \"env:AGAIN\"]",
                "4: upstream.0.api_keys: keys 1 and 3 are the same",
            ),
            ("api_keys = [\"env:A\", \"env:SAMPLE\"]", "4: upstream.0.api_keys: key 2 is a placeholder"),
            (
                "api_keys = [\"env:EMPTY_KEY\", \"env:EMPTY_KEY\", \"env:SAMPLE\"]",
                "4: upstream.0.api_keys: key 3 is a placeholder",
            ),
            ("api_keys = []", "4: upstream.0.api_keys: names no key"),
            ("api_keys = \"env:A\"", "4: upstream.0.api_keys: expected a list"),
            ("api_key = \"env:A\"\napi_keys = [\"env:B\"]", "5: upstream.0.api_keys: api_key is set as well"),
            (
                "api_key = \"env:EMPTY_KEY\"\napi_keys = [\"env:B\"]",
                "5: upstream.0.api_keys: api_key is set as well",
            ),
        ] {
            let faults = bad(&with(lines), &environment);
            begins(&faults, &[&format!("t.toml:{message}")]);
            assert!(!faults[0].contains("sk-") && !faults[0].contains("YOUR"), "{faults:?}");
        }
    }

    #[test]
    fn a_key_is_a_reference_and_is_never_shown() {
        let with = |key: &str| format!("{UPSTREAM}api_key = \"{key}\"\n");
        let environment = [("A_KEY", "sk-1"), ("EMPTY_KEY", ""), ("EXAMPLE_KEY", "YOUR_API_KEY")];
        let key = |reference: &str| {
            let loaded = read(&with(reference), &environment, &[]).unwrap_or_else(|f| panic!("{f}"));
            assert!(!format!("{loaded:?}").contains("sk-"));
            (loaded.config.first_upstream().api_key.map(|k| k.reveal().to_owned()), loaded.warnings)
        };
        assert_eq!(key("env:A_KEY"), (Some("sk-1".into()), vec![]));
        assert_eq!(key("file:key.txt"), (Some("sk-from-file".into()), vec![]));
        for (reference, source) in
            [("env:EMPTY_KEY", "the variable EMPTY_KEY"), ("file:empty.txt", "the file it names")]
        {
            let (absent, warnings) = key(reference);
            assert_eq!(absent, None);
            assert!(
                warnings[0].starts_with(&format!("upstream.0.api_key: {source} is empty")),
                "{warnings:?}"
            );
        }
        for (reference, message) in [
            ("env:NOT_SET", "the variable NOT_SET is not set"),
            ("file:none.txt", "the file it names cannot be read"),
            ("env:EXAMPLE_KEY", "is a placeholder from an example"),
            ("sk-literal", "must be \"env:NAME\" (a variable) or \"file:PATH\", never the key itself"),
        ] {
            let faults = bad(&with(reference), &environment);
            begins(&faults, &[&format!("t.toml:4: upstream.0.api_key: {message}")]);
            assert!(!faults[0].contains("sk-literal") && !faults[0].contains("YOUR_API_KEY"), "{faults:?}");
        }
        let placeholder = [("OPENAI_BASE_URL", "http://m/v1"), ("OPENAI_API_KEY", "sk-xxx")];
        begins(&bad("", &placeholder), &["OPENAI_API_KEY: is a placeholder"]);
    }

    #[test]
    fn default_permits_give_way_to_those_that_were_set() {
        let permits = |text: &str| {
            let s = good(&format!("[scaling]\n{text}")).scaling;
            (s.min_permits, s.initial_permits, s.max_permits)
        };
        assert_eq!(permits(""), (4, 1000, 1000));
        assert_eq!(permits("max_permits = 2"), (2, 2, 2));
        assert_eq!(permits("max_permits = 15"), (4, 15, 15));
        assert_eq!(permits("policy = \"reactive\""), (10, 20, 100));
        assert_eq!(permits("policy = \"reactive\"\nmax_permits = 4"), (4, 4, 4));
        assert_eq!(permits("policy = \"reactive\"\nmin_permits = 50"), (50, 50, 100));
        assert_eq!(permits("policy = \"reactive\"\ninitial_permits = 5"), (5, 5, 100));
        begins(
            &[one("[scaling]\npolicy = \"reactive\"\nmin_permits = 200")],
            &["t.toml:6: scaling.min_permits: 200 is more than max_permits = 100"],
        );
        begins(&[one("[scaling]\nmin_permits = 8\nmax_permits = 4")], &["t.toml:5: scaling.min_permits: 8"]);
        begins(&[one("[scaling]\nmax_permits = 0")], &["t.toml:5: scaling.max_permits: must be 1"]);
        // The default 1000 stands in for what could not be read: nothing is said about 2000 against it.
        begins(
            &[one("[scaling]\nmax_permits = \"many\"\nmin_permits = 2000")],
            &["t.toml:5: scaling.max_permits: "],
        );
    }

    #[test]
    fn the_calendar_is_a_list_whose_faults_have_their_lines() {
        let good = good(
            "[[predict.calendar]]\ncron = \"0 9 * * 1-5\"\nfactor = 2\ntime_zone = \"Europe/Berlin\"\n\
             [[predict.calendar]]\ncron = \"0 0 * * *\"\nfloor_rpm = 60",
        );
        // 2026-07-06 is a Monday; 07:00Z is 09:00 in Berlin
        let at = |unix| {
            let f = good.scaling.calendar.foreseen(unix, std::time::Duration::ZERO);
            (f.factor, f.floor_rpm)
        };
        assert_eq!(at(1_783_321_200), (2.0, 0.0));
        assert_eq!(at(1_783_296_000), (1.0, 60.0));
        let faults = bad(
            &format!(
                "{UPSTREAM}[[predict.calendar]]\ncron = \"9\"\nduration = \"1s\"\ntime_zone = \"Mars\"\n\
                 [[predict.calendar]]\nfactor = -1\n"
            ),
            &[],
        );
        begins(
            &faults,
            &[
                "t.toml:5: predict.calendar.0.cron: must have five fields",
                "t.toml:6: predict.calendar.0.duration: must be between 1m and 7 days",
                "t.toml:7: predict.calendar.0.time_zone: \"Mars\" is no time zone",
                "t.toml:8: predict.calendar.1.cron: is missing",
                "t.toml:9: predict.calendar.1.factor: must be above 0",
            ],
        );
        begins(
            &[one("[predict.calendar]\ncron = \"0 0 * * *\"")],
            &["t.toml:4: predict.calendar: is a list"],
        );
        begins(&[one("[predict]\nbaseline = \"9: 1\"")], &["t.toml:5: predict.baseline: `9: 1`"]);
    }

    #[test]
    fn the_articles_emergency_keeps_a_maximum_that_was_set() {
        let emergency =
            |text: &str| good(&format!("[scaling]\npolicy = \"article\"\n{text}")).scaling.article_emergency;
        assert_eq!(emergency(""), 150);
        assert_eq!(emergency("max_permits = 40"), 40);
        assert_eq!(emergency("max_permits = 400"), 150);
        assert_eq!(emergency("max_permits = 40\n[scaling.article]\nemergency_permits = 30"), 30);
        begins(
            &[one(
                "[scaling]\npolicy = \"article\"\nmax_permits = 40\n[scaling.article]\nemergency_permits = 41",
            )],
            &["t.toml:8: scaling.article.emergency_permits: 41 is more than max_permits = 40"],
        );
        begins(
            &[one("[scaling.article]\nwindow = 5")],
            &["t.toml:5: scaling.article.window: must be 60 to 100000 requests"],
        );
    }

    #[test]
    fn no_two_sockets_want_one_port_and_no_upstream_leads_back() {
        let text = |listen: &str, admin: &str| {
            format!("[listen]\naddress = \"{listen}\"\n[admin]\naddress = \"{admin}\"")
        };
        for (listen, admin) in
            [("127.0.0.1:1", "127.0.0.1:1"), ("0.0.0.0:1", "127.0.0.1:1"), ("10.0.0.1:1", "[::]:1")]
        {
            begins(&[one(&text(listen, admin))], &["t.toml:7: admin.address: "]);
        }
        for (listen, admin) in
            [("127.0.0.1:0", "127.0.0.1:0"), ("127.0.0.1:1", "127.0.0.2:1"), ("127.0.0.1:1", "127.0.0.1:2")]
        {
            good(&text(listen, admin));
        }
        begins(
            &bad("", &[("OPENAI_BASE_URL", "http://localhost:8080/v1")]),
            &["OPENAI_BASE_URL: leads back to tidegate itself"],
        );
    }

    #[test]
    fn a_rooms_fault_stands_at_the_setting_or_at_its_section() {
        begins(
            &[one("[limits]\nbody_memory = \"1MiB\"")],
            &["t.toml:5: limits.body_memory: must be at least body_bytes"],
        );
        begins(
            &[one("[limits]\nbody_bytes = \"1GiB\"")],
            &["t.toml:4: limits.body_memory: must be at least body_bytes"],
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_a_fault() {
        let sources = Sources { file: Some("no/such/file.toml".into()), ..Sources::default() };
        let message = load(&sources).unwrap_err().to_string();
        assert!(message.starts_with("no/such/file.toml: cannot be read: "), "{message}");
    }

    #[test]
    fn a_path_without_end_is_a_fault_and_not_a_stack_overflow() {
        for text in [
            format!("a{} = 1", ".a".repeat(100_000)),
            format!("[a{}]", ".a".repeat(100_000)),
            format!("a = {}", "[".repeat(100_000)),
            "[a.".repeat(9),
        ] {
            bad(&text, &[]);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            let _ = read(&text, &[], &[]).map_err(|f| f.to_string());
        }

        /// Of the right shape, so that it gets past the TOML parser.
        #[test]
        fn no_value_makes_it_panic(
            pairs in proptest::collection::vec((0usize..100, "[-+]?[0-9]{1,25}|[0-9.]{1,9}(e[0-9]{1,4})?|\"[ -!#-\\[\\]-~é]{0,12}\"|\"[0-9]{1,20} ?[a-zA-Z]{0,3}\"|true|inf|\\[\\]|\\[\"[ab*]{0,2}\", 1\\]|\\{\\}|\\{a=\"b\"\\}|2020-01-01"), 0..12),
            text in "[ -~]{0,20}",
        ) {
            let keys: Vec<String> = keys().into_iter().collect();
            let mut document = BTreeMap::new();
            for (at, value) in pairs {
                let key = keys[at % keys.len()].replace("upstream.0.", "upstream.");
                document.insert(key, value);
            }
            let in_list = |key: &str| key.starts_with("upstream.");
            let mut lines: Vec<String> =
                document.iter().filter(|(k, _)| !in_list(k)).map(|(k, v)| format!("{k} = {v}")).collect();
            lines.push("[[upstream]]".into());
            lines.extend(document.iter().filter(|(k, _)| in_list(k)).map(|(k, v)| format!("{} = {v}", &k[9..])));
            let variable = [("TIDEGATE_SCALING__ARTICLE__WINDOW", text.as_str()), ("OPENAI_BASE_URL", &text)];
            let _ = read(&lines.join("\n"), &variable, &[]).map_err(|f| f.to_string());
            let _ = read("", &variable, &[]).map_err(|f| f.to_string());
        }
    }
}
