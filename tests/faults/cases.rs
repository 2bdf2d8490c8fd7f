//! What can go wrong with an upstream, and what must not come of it.
//!
//! Each case is an upstream or several that misbehave in one way, a load, and what must hold: nothing is lost
//! that could be served, nothing is held at the end, nothing runs hot. Played for some hundred requests by the
//! tests, and for thousands by `benches/faults.rs`.

use std::time::Duration;

use tidegate::demo::workload::Lengths;
use tidegate::demo::{
    Errors, Faults, Law, Lie, Load, LoadReport, OverCapacity, Slow, Stats, Window, Workload,
};

use crate::rig::{Held, Rig, Site, sum};

/// How much of it.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) requests: u32,
    pub(crate) rps: f64,
    /// How long an upstream is away, where it is.
    pub(crate) outage: Duration,
}

/// Something done to the upstreams while the load runs.
#[derive(Clone, Copy, PartialEq)]
enum Act {
    Nothing,
    /// The first upstream is killed after a third of the load, and restarted.
    KillAndRestart,
    /// The name of both leads to the second after a third of the load, and the first dies a little later.
    Move,
}

/// One experiment.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// For the table.
    pub(crate) about: String,
    sites: Vec<Site>,
    settings: String,
    act: Act,
    scale: Scale,
    must: Vec<(&'static str, Check)>,
}

type Check = fn(&Outcome) -> bool;

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) report: LoadReport,
    pub(crate) upstreams: Vec<Stats>,
    pub(crate) page: String,
    pub(crate) held: Held,
    /// Of the proxy, before the load and after it.
    pub(crate) descriptors: (usize, usize),
    pub(crate) said: Vec<String>,
    /// Processor time of the proxy per second of the run.
    pub(crate) load: f64,
}

impl Outcome {
    fn faulted(&self) -> usize {
        self.upstreams.iter().map(|s| s.faulted as usize).sum()
    }

    pub(crate) fn served(&self) -> u64 {
        self.upstreams.iter().map(|s| s.served).sum()
    }

    pub(crate) fn metric(&self, name: &str, label: &str) -> f64 {
        sum(&self.page, name, label)
    }

    /// Answered with tidegate's own refusal or fault of that status.
    fn failed(&self, status: u16) -> usize {
        self.report.failed_with(status)
    }

    fn all_ok(&self) -> bool {
        self.report.ok == self.report.sent()
    }
}

/// 8 tokens of 2 ms after 5 ms of prefill, for hundreds at once: 21 ms.
fn law(faults: Faults) -> Law {
    Law {
        capacity: 200,
        over_capacity: OverCapacity::QueueInside,
        prefill: Duration::from_millis(5),
        prefill_per_1k_tokens: Duration::ZERO,
        per_token: Duration::from_millis(2),
        jitter: 0.0,
        faults,
        ..Law::default()
    }
}

fn site(faults: Faults) -> Site {
    Site { law: law(faults), settings: "" }
}

const EVER: Window = Window::new(Duration::ZERO, Duration::from_secs(1_000_000));

/// File descriptors that come with the first request and stay.
const SPARE: usize = 12;

const ALWAYS: [(&str, Check); 4] = [
    ("nothing is held at the end", |o| o.held == Held::default()),
    ("every request had an end", |o| !o.report.lost.contains_key("timed out")),
    ("no descriptors are left behind", |o| o.descriptors.1 <= o.descriptors.0 + SPARE),
    ("no loop runs hot", |o| o.load < 0.9),
];

/// All of them.
pub(crate) fn all(scale: Scale) -> Vec<Case> {
    let third = Duration::from_secs_f64(f64::from(scale.requests) / scale.rps / 3.0);
    let window = Window::new(third, third + scale.outage);
    let patient = "[queue]\nmax_requests = 10000\ntimeout = \"100s\"\n";
    let outage_ms = scale.outage.as_millis();
    let mut cases = Vec::new();
    let mut case = |name, about: &str, sites, settings: &str, must: &[(&'static str, Check)]| {
        let must = ALWAYS.iter().chain(must).copied().collect();
        let (about, settings) = (about.to_owned(), settings.to_owned());
        cases.push(Case { name, about, sites, settings, act: Act::Nothing, scale, must });
    };

    case(
        "nothing",
        "nothing is wrong",
        vec![site(Faults::default())],
        "",
        &[("every request is answered", Outcome::all_ok)],
    );
    case(
        "killed",
        &format!("killed mid-burst, back after {outage_ms} ms"),
        vec![site(Faults::default())],
        &format!("{patient}[breaker]\nrecovery = \"500ms\"\n"),
        &[("only answers that had begun are lost", |o| {
            o.report.failed_total() == 0 && o.report.lost_total() <= o.faulted()
        })],
    );
    case(
        "reset",
        "every 10th connection is reset at its request",
        vec![site(Faults { reset_connection_every: 10, one_shot: true, ..Faults::default() })],
        "",
        &[("every request is answered", Outcome::all_ok), ("it happened", |o| o.faulted() > 10)],
    );
    case(
        "closed",
        "every 10th request's connection closes before the head",
        vec![site(Faults { reset_every: 10, ..Faults::default() })],
        "",
        &[("every request is answered", Outcome::all_ok), ("it happened", |o| o.faulted() > 10)],
    );
    case(
        "half_head",
        "every 10th connection is reset in the middle of the head",
        vec![site(Faults { half_head_connection_every: 10, one_shot: true, ..Faults::default() })],
        "",
        &[("every request is answered", Outcome::all_ok), ("it happened", |o| o.faulted() > 10)],
    );
    case(
        "interim",
        "every 10th connection sends 103 Early Hints without end",
        vec![site(Faults { interim_connection_every: 10, one_shot: true, ..Faults::default() })],
        "",
        &[
            ("each is answered, or told 502", |o| o.report.ok + o.failed(502) == o.report.sent()),
            ("it happened", |o| o.faulted() > 10),
        ],
    );
    case(
        "mute",
        "every 20th head never comes (first_byte_timeout 1 s)",
        vec![Site {
            law: law(Faults { mute_every: 20, ..Faults::default() }),
            settings: "first_byte_timeout = \"1s\"",
        }],
        // the last ones fail in a row: nobody comes after them
        "[breaker]\nrecovery = \"500ms\"\n",
        &[
            ("each is answered, or told 504", |o| o.report.ok + o.failed(504) == o.report.sent()),
            ("it happened", |o| o.faulted() > 5),
        ],
    );
    case(
        "stall",
        "every 20th answer stops in the middle (stream_idle_timeout 1 s)",
        vec![Site {
            law: law(Faults { stall_every: 20, ..Faults::default() }),
            settings: "stream_idle_timeout = \"1s\"",
        }],
        "",
        &[("only the stalled ones are lost, and cut", |o| {
            o.report.failed_total() == 0 && o.report.lost_total() == o.faulted() && o.faulted() > 5
        })],
    );
    case(
        "cut",
        "5 % of the bodies are cut",
        vec![site(Faults { cut_every: 20, ..Faults::default() })],
        "",
        // one whose head had not left is tried again
        &[("only the cut ones are lost", |o| {
            o.report.failed_total() == 0 && o.report.lost_total() <= o.faulted() && o.faulted() > 5
        })],
    );
    case(
        "errors",
        &format!("500 for {outage_ms} ms"),
        vec![site(Faults { errors: vec![Errors::all(500, window)], ..Faults::default() })],
        &format!("{patient}[breaker]\nrecovery = \"{}ms\"\n", outage_ms + 200),
        &[
            ("every request is answered", Outcome::all_ok),
            ("the breaker opened once", |o| {
                o.metric("tidegate_breaker_transitions_total", "to=\"open\"") == 1.0
            }),
            ("one probe closed it", |o| {
                o.metric("tidegate_breaker_transitions_total", "to=\"half_open\"") == 1.0
                    && o.metric("tidegate_breaker_transitions_total", "to=\"closed\"") == 1.0
            }),
            ("few reached it meanwhile", |o| o.faulted() <= 100),
        ],
    );
    case(
        "slow",
        "one of three endpoints is 20 times slower",
        vec![
            site(Faults::default()),
            site(Faults { slow: vec![Slow { window: EVER, factor: 20.0 }], ..Faults::default() }),
            site(Faults::default()),
        ],
        "",
        &[
            ("every request is answered", Outcome::all_ok),
            ("every endpoint serves", |o| o.upstreams.iter().all(|s| s.served > 0)),
            ("it gets less than its third", |o| 4 * o.upstreams[1].served < o.served()),
        ],
    );
    case(
        "dead_of_three",
        &format!("one of three endpoints is dead for {outage_ms} ms"),
        vec![
            site(Faults { down: vec![window], ..Faults::default() }),
            site(Faults::default()),
            site(Faults::default()),
        ],
        "",
        &[("only answers that had begun are lost", |o| {
            o.report.failed_total() == 0 && o.report.lost_total() <= o.faulted()
        })],
    );
    case(
        "moved",
        "the name leads to another address, the old one dies 3 s later (dns_refresh 1 s)",
        vec![site(Faults::default()), site(Faults::default())],
        "",
        &[
            ("only answers that had begun are lost", |o| {
                o.report.failed_total() == 0 && o.report.lost_total() <= o.faulted()
            }),
            ("both served", |o| o.upstreams.iter().all(|s| s.served > 0)),
        ],
    );
    case(
        "dead_key",
        "one of two keys is answered 401",
        vec![Site {
            law: law(Faults { dead_keys: vec!["dead".into()], ..Faults::default() }),
            settings: "api_keys = [\"env:RIG_DEAD_KEY\", \"env:RIG_GOOD_KEY\"]",
        }],
        "",
        &[
            ("every request is answered", Outcome::all_ok),
            ("the dead key rests", |o| o.faulted() > 0 && o.faulted() < 20),
        ],
    );
    for (name, status) in [("retry_after_429", 429), ("retry_after_503", 503)] {
        let errors =
            vec![Errors { retry_after: Some(Duration::from_secs(3600)), ..Errors::all(status, EVER) }];
        case(
            name,
            &format!("every answer is {status} with Retry-After: 3600, a second tier stands by"),
            vec![
                site(Faults { errors, ..Faults::default() }),
                Site { settings: "tier = 1", ..site(Faults::default()) },
            ],
            "",
            &[
                ("every request is answered", Outcome::all_ok),
                ("it is left alone", |o| o.upstreams[0].faulted < 120),
            ],
        );
    }
    let errors = vec![Errors { retry_after: Some(Duration::from_secs(3600)), ..Errors::all(429, EVER) }];
    case(
        "retry_after_alone",
        "every answer is 429 with Retry-After: 3600, and there is no other upstream",
        vec![site(Faults { errors, ..Faults::default() })],
        "",
        &[
            ("everyone is refused", |o| o.report.failed_total() == o.report.sent()),
            ("at once, so that fallbacks can act", |o| {
                let late = o.report.records.iter().filter(|r| r.total > Duration::from_secs(1)).count();
                100 * late <= o.report.sent()
            }),
            ("it is left alone", |o| o.upstreams[0].faulted < 120),
        ],
    );
    case(
        "bare_429",
        "every 5th answer is 429 without a header",
        vec![site(Faults {
            errors: vec![Errors { every: 5, ..Errors::all(429, EVER) }],
            ..Faults::default()
        })],
        patient,
        &[("every request is answered", Outcome::all_ok)],
    );
    case(
        "error_body",
        "every 5th answer is 200 with an error as its body",
        vec![site(Faults { error_body_every: 5, ..Faults::default() })],
        "",
        &[
            // streams end without [DONE], which the driver calls truncated
            ("what the upstream said is passed on", |o| {
                o.report.failed_total() == 0 && o.report.ok + o.report.lost_total() == o.report.sent()
            }),
            ("the breaker takes no notice", |o| {
                o.metric("tidegate_breaker_transitions_total", "to=\"open\"") == 0.0
            }),
        ],
    );
    for lie in Lie::ALL {
        let (name, must): (_, &[(&'static str, Check)]) = match lie {
            Lie::Negative => ("lie_negative", &[("every request is answered", Outcome::all_ok)]),
            Lie::Huge => ("lie_huge", &[("every request is answered", Outcome::all_ok)]),
            Lie::NotNumbers => ("lie_not_numbers", &[("every request is answered", Outcome::all_ok)]),
            Lie::Half => ("lie_half", &[("every request is answered", Outcome::all_ok)]),
            Lie::Past => ("lie_past", &[("every request is answered", Outcome::all_ok)]),
            // an upstream that says so may be left alone for that hour, as long as everybody is told at once
            Lie::Exhausted => ("lie_exhausted", &[("nobody is lost", |o| o.report.lost_total() == 0)]),
        };
        let faults = Faults { lie: Some(lie), ..Faults::default() };
        case(name, &format!("limit headers that lie: {lie:?}"), vec![site(faults)], "", must);
    }
    for case in &mut cases {
        match case.name {
            "killed" => case.act = Act::KillAndRestart,
            "moved" => case.act = Act::Move,
            // those that wait out an outage hold a connection each
            "errors" | "dead_of_three" => case.scale.rps = case.scale.rps.min(100.0),
            // 600 a minute is what they name, and it is kept: at length that would be hours
            "lie_half" | "lie_past" | "lie_exhausted" if case.scale.requests > 300 => {
                case.scale = Scale { requests: 300, rps: 9.0, ..case.scale };
            }
            _ => {}
        }
        case.about = format!("{}, {} at {}/s", case.about, case.scale.requests, case.scale.rps);
    }
    cases
}

impl Case {
    /// Whether it needs a hosts file of its own.
    pub(crate) fn is_named(&self) -> bool {
        self.act == Act::Move
    }

    /// Plays it.
    pub(crate) async fn play(&mut self, binary: &str) -> Outcome {
        let rig = Rig::start(binary, std::mem::take(&mut self.sites), &self.settings).await;
        self.play_on(rig).await
    }

    /// The same, behind a name; `None` where that is not possible.
    #[allow(dead_code, reason = "it needs rights that tests may not have: only the long run does it")]
    pub(crate) async fn play_named(&mut self, binary: &str) -> Option<Outcome> {
        let rig = Rig::start_named(binary, std::mem::take(&mut self.sites), &self.settings).await?;
        Some(self.play_on(rig).await)
    }

    async fn play_on(&self, rig: Rig) -> Outcome {
        let length = Duration::from_secs_f64(f64::from(self.scale.requests) / self.scale.rps);
        let workload = Workload::steady(1, self.scale.rps, length, Lengths::fixed(50, 8));
        let load = Load { streamed: 0.5, timeout: Duration::from_secs(110), seed: 1, ..Load::default() };
        // it answers only when all of it has started
        rig.metrics().await;
        let before = rig.descriptors();
        let used = rig.processor_seconds();
        let acting = async {
            if self.act == Act::Nothing {
                return;
            }
            tokio::time::sleep(length / 3).await;
            if self.act == Act::Move {
                rig.rename(1);
                tokio::time::sleep(Duration::from_secs(3)).await;
                rig.upstreams[0].kill();
            } else {
                rig.upstreams[0].kill();
                tokio::time::sleep(self.scale.outage).await;
                rig.upstreams[0].restart();
            }
        };
        let (report, ()) = tokio::join!(rig.drive(&workload, load), acting);
        let used = rig.processor_seconds() - used;
        let held = rig.settle().await;
        Outcome {
            load: used / report.took.as_secs_f64().max(1.0),
            report,
            upstreams: rig.upstreams.iter().map(|u| u.stats()).collect(),
            page: rig.metrics().await,
            held,
            descriptors: (before, rig.descriptors_settled(before + SPARE).await),
            said: rig.said(),
        }
    }

    /// What does not hold.
    pub(crate) fn broken(&self, outcome: &Outcome) -> Vec<&'static str> {
        self.must.iter().filter(|(_, holds)| !holds(outcome)).map(|(what, _)| *what).collect()
    }
}
