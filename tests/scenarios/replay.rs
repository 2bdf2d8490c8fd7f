//! Twenty minutes of a real chat service in two, through the live stack on virtual time.
//!
//! The trace is not part of the project; where it is missing, the seeded generator that resembles it
//! takes its place.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tidegate::demo::{Law, Load, Slo, Workload};
use tidegate::policy::predict::{Direction, Reason};

use crate::format::config;

use crate::live::{Plan, Traffic, run};

const TRACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/traces/azure_llm_2023_conv.csv.gz");
const MINUTES: u64 = 20;
const SPEED: f64 = 10.0;
const SEED: u64 = 12;
/// One token stands for so many: a tenth of the events shows the same, ten times as fast.
const COARSE: u32 = 10;

/// `SPEED` times as fast as it was recorded, in coarse tokens.
fn workload() -> Workload {
    let length = Duration::from_secs(MINUTES * 60);
    let real = Path::new(TRACE).exists().then(|| Command::new("gzip").args(["-dc", TRACE]).output());
    let (source, text) = match real {
        Some(Ok(unpacked)) if unpacked.status.success() => {
            ("the recorded trace", String::from_utf8(unpacked.stdout).expect("the trace is text"))
        }
        _ => ("the generator", csv(&Workload::synthetic_conversation(SEED, length), 1)),
    };
    let workload = Workload::parse(&text, SPEED, Some(length)).expect("a trace");
    println!("{} requests of {source}", workload.arrivals().len());
    Workload::parse(&csv(&workload, COARSE), 1.0, None).expect("a trace")
}

fn csv(workload: &Workload, coarse: u32) -> String {
    let mut text = "t_s,prompt_tokens,output_tokens\n".to_owned();
    for a in workload.arrivals() {
        let (prompt, output) = (a.prompt_tokens.div_ceil(coarse), a.output_tokens.div_ceil(coarse));
        writeln!(text, "{:.6},{prompt},{output}", a.at.as_secs_f64()).expect("a string grows");
    }
    text
}

#[tokio::test(start_paused = true)]
async fn trace_replay() {
    // The demo's law, as much faster as the trace is: 0.15 s, 0.05 s per 1,000 prompt tokens, 20 ms a token.
    // A mean request (1,155 prompt tokens, 211 of an answer) takes 4.4 s at 5.55 a second: 24.5 at once.
    let fast = |ms: f64| Duration::from_secs_f64(ms / 1000.0 / SPEED);
    let law = Law {
        capacity: 100,
        prefill: fast(150.0),
        prefill_per_1k_tokens: fast(50.0 * f64::from(COARSE)),
        per_token: fast(20.0 * f64::from(COARSE)),
        ..Law::default()
    };
    // The defaults, in the trace's time: 30 s are 3, 10 s are 1.
    let proxy = "[scaling]\npolicy = \"reactive\"\ncooldown = \"3s\"\nwarm_up = \"1s\"";
    let workload = workload();
    let sent = workload.arrivals().len();
    let run = run(Plan {
        law,
        config: config(&toml::from_str(proxy).expect("TOML")),
        seed: SEED,
        hour: 19,
        traffic: vec![Traffic {
            client: "azure".into(),
            from: Duration::ZERO,
            workload,
            load: Load {
                base_url: "http://tidegate/v1".into(),
                streamed: 0.25,
                seed: SEED,
                ..Load::default()
            },
            headers: BTreeMap::new(),
        }],
        after: Duration::from_secs(10),
        drain_at: None,
    })
    .await;

    // 24.5 at once on average need 24.5 / 0.75 = 33 permits; the mean of one second varies by a third
    // around it (sigma of a Poisson's 24.5 is 5), so does what is asked for. Then nobody comes any more: 10.
    let expect = format!(
        "sent = {sent}\nok = \"sent\"\nqueue.p50 = 0\n\
         [permits]\nmin = 10\nmax = [33, 100]\nend = 10\n\
         [decisions]\nscale_up = [1, 40]\nscale_down = [1, 40]\nemergency = 0\n\
         [breaker]\nopened = 0"
    );
    super::judge(
        "a recorded hour's first 20 minutes",
        &toml::from_str(&expect).expect("TOML"),
        &Slo::default(),
        &run,
    );
    for d in &run.decisions {
        let ordered = match d.direction {
            Direction::Up => d.reason == Reason::ScaleUp && d.to > d.from && d.utilisation > 0.75,
            Direction::Down => d.reason == Reason::ScaleDown && d.to < d.from && d.utilisation < 0.40,
            Direction::Hold => d.to == d.from,
        };
        assert!(ordered, "the rule does not say that: {d:?}");
    }
    let chained = run.decisions.windows(2).all(|pair| pair[0].to == pair[1].from);
    assert!(chained, "a decision begins where the one before it ended");
}
