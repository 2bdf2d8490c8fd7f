//! The policies that a simulation compares: the live ones, and baselines that exist only here.
//!
//! | name | permits | replicas |
//! |---|---|---|
//! | `fixed` `fixed:N` | N (1000) | what N permits fill |
//! | `reactive` `article`, with `:min/initial/max` | the live rules | what their permits fill |
//! | `predictive` | the live rule | the live signal |
//! | `aimd` `gradient` | a limit learned from refusals, from latency | what their permits fill |
//! | `static:N` `hpa` `rate` | as many as the replicas take | N; by concurrency; by arrivals |
//! | `oracle` | at the upstream's best | knows every arrival beforehand |
//! | `paced` | no limit, but nothing is sent that a hosted API would refuse | as `oracle`'s, none |
//!
//! `hpa:1.3` sets the headroom, also of `rate`, `predictive` and `oracle`. What is added at the end:
//!
//! | suffix | means |
//! |---|---|
//! | `+learned` | the gate learns what the upstream takes, as it does live: limit headers, 429s, the answers' pace |
//! | `+gate` | after the upstream's 429 the gate tries again, without a permit |
//! | `+hold` `+return` `+never` | the loop around the call sleeps with its permit; the client comes back; nobody tries |
//!
//! `predictive` is `predictive+learned+gate`, which is what runs live; the other live rules learn only when asked to, and are
//! otherwise the baselines without supply. `pilot.rs` is a policy at work; the event loop asks it.

mod aimd;
mod autoscale;
mod gradient;
mod oracle;
mod pilot;

pub(super) use pilot::{Order, Pilot, Sample, View};

use std::time::Duration;

use crate::policy::predict::{self, PolicyKind};
use crate::simulate::client::Retry;

/// A policy as it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name, as it was written.
    pub name: String,
    /// Which.
    pub kind: Kind,
    /// What it multiplies its need of replicas by; a live policy has its own among its settings.
    pub headroom: f64,
    /// What happens after the upstream's 429.
    pub retry: Retry,
    /// The gate learns what the upstream takes.
    pub learned: bool,
}

/// Which policy.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there are a handful of policies in a process")]
pub enum Kind {
    /// One that runs live, with its settings.
    Live(predict::Params),
    /// Additive increase, multiplicative decrease on refusals.
    Aimd,
    /// Netflix's second gradient limit, on latency.
    Gradient,
    /// So many replicas.
    Static(u32),
    /// Autoscaling on concurrency with a panic window.
    Hpa,
    /// Replicas by arrival rate; held for so long before any is given up.
    Rate {
        /// How long.
        hold: Duration,
    },
    /// Knows the future.
    Oracle,
    /// Knows what the upstream would refuse, and does not send it.
    Paced,
}

/// What can be written, for a command's help.
pub const HELP: &str = "\
fixed, fixed:N            always N permits (1000)
reactive, article         the live rules; article:1/1/100 sets minimum, initial and maximum
predictive                the live rule
aimd, gradient            learned limits: by refusals; by latency (Gradient2)
static:N                  N replicas
hpa, rate                 replicas by concurrency with a 6 s panic window; by arrivals (rate:1.3/180 holds 180 s)
oracle                    knows every arrival beforehand
paced                     knows what a hosted API would refuse, and sends it the moment it passes
NAME:1.3                  headroom of replicas for hpa, rate, predictive and oracle
NAME+learned              the gate learns what the upstream takes, as `predictive` always does
NAME+gate +hold           after the upstream's 429: the gate tries again; the call sleeps with its permit and tries again
NAME+return +never        the client comes back later; nobody tries again";

/// The policy that `text` names.
///
/// # Errors
/// What is wrong with it, for the person who wrote it.
pub fn parse(text: &str) -> Result<Policy, String> {
    let name = text.trim();
    let mut words = name.split('+');
    let body = words.next().unwrap_or_default();
    let (mut retry, mut learned) = (None, false);
    for word in words {
        match word {
            "learned" => learned = true,
            "gate" => retry = Some(Retry::Gate),
            "hold" => retry = Some(Retry::Hold),
            "return" => retry = Some(Retry::Return),
            "never" => retry = Some(Retry::Never),
            other => {
                return Err(format!(
                    "{name}: after `+` comes learned, gate, hold, return or never, not `{other}`"
                ));
            }
        }
    }
    let (kind, value) = body.split_once(':').map_or((body, None), |(kind, value)| (kind, Some(value)));
    let mut headroom = 1.0;
    let kind = match kind {
        "fixed" => {
            let max = value.map_or(Ok(1000), |v| count(name, v))?;
            Kind::Live(live(name, PolicyKind::Fixed, [max; 3])?)
        }
        "reactive" => Kind::Live(live(name, PolicyKind::Reactive, bounds(name, value)?)?),
        "article" => Kind::Live(live(name, PolicyKind::Article, bounds(name, value)?)?),
        "predictive" => {
            let mut params = predict::Params::of(PolicyKind::Predictive);
            if let Some(value) = value {
                params.replicas.headroom = factor(name, value)?;
            }
            Kind::Live(params)
        }
        "static" => Kind::Static(count(name, value.ok_or(format!("{name}: how many? static:5"))?)?),
        "hpa" => {
            headroom = value.map_or(Ok(1.0), |v| factor(name, v))?;
            Kind::Hpa
        }
        "rate" => {
            let (factor_, hold) =
                value.unwrap_or("1").split_once('/').unwrap_or((value.unwrap_or("1"), "60"));
            headroom = factor(name, factor_)?;
            Kind::Rate { hold: Duration::from_secs(count(name, hold)?.into()) }
        }
        "oracle" => {
            headroom = value.map_or(Ok(1.0), |v| factor(name, v))?;
            Kind::Oracle
        }
        "aimd" | "gradient" | "paced" if value.is_some() => {
            return Err(format!("{name}: `{kind}` has no settings"));
        }
        "aimd" => Kind::Aimd,
        "gradient" => Kind::Gradient,
        "paced" => Kind::Paced,
        other => return Err(format!("{name}: there is no policy `{other}`; there are:\n{HELP}")),
    };
    let of = |policy| matches!(&kind, Kind::Live(p) if p.policy == policy);
    if learned && !matches!(kind, Kind::Live(_)) {
        return Err(format!("{name}: only what runs live can be +learned"));
    }
    let learned = learned || of(PolicyKind::Predictive);
    let retry = retry.unwrap_or(match () {
        // the article's code sleeps between its tries with the permit in its hand
        () if of(PolicyKind::Article) => Retry::Hold,
        () if learned => Retry::Gate,
        () => Retry::Return,
    });
    Ok(Policy { name: name.to_owned(), kind, headroom, retry, learned })
}

fn live(name: &str, policy: PolicyKind, [min, initial, max]: [u32; 3]) -> Result<predict::Params, String> {
    let params = predict::Params {
        min_permits: min,
        initial_permits: initial,
        max_permits: max,
        ..predict::Params::of(policy)
    };
    params.try_new().map_err(|faults| {
        let all: Vec<String> = faults.into_iter().map(|f| format!("{} {}", f.key, f.message)).collect();
        format!("{name}: {}", all.join("; "))
    })
}

fn bounds(name: &str, value: Option<&str>) -> Result<[u32; 3], String> {
    let Some(value) = value else { return Ok([10, 20, 100]) };
    let all: Vec<u32> = value.split('/').map(|v| count(name, v)).collect::<Result<_, _>>()?;
    all.try_into().map_err(|_| format!("{name}: minimum, initial and maximum, as in 10/20/100"))
}

fn count(name: &str, text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(n @ 1..=100_000) => Ok(n),
        _ => Err(format!("{name}: `{text}` must be a whole number from 1 to 100000")),
    }
}

fn factor(name: &str, text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(f) if (0.05..=100.0).contains(&f) => Ok(f),
        _ => Err(format!("{name}: `{text}` must be a headroom from 0.05 to 100")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_read() {
        let live = |text: &str| match parse(text).unwrap().kind {
            Kind::Live(p) => (p.policy, p.min_permits, p.initial_permits, p.max_permits),
            other => panic!("{other:?}"),
        };
        assert_eq!(live("fixed").3, 1000);
        assert_eq!(live("fixed:20").3, 20);
        assert_eq!(live("article"), (PolicyKind::Article, 10, 20, 100));
        assert_eq!(live("article:1/1/100"), (PolicyKind::Article, 1, 1, 100));
        assert_eq!(parse("hpa:1.3").map(|p| (p.kind, p.headroom)), Ok((Kind::Hpa, 1.3)));
        assert_eq!(parse("rate:2/180").map(|p| p.kind), Ok(Kind::Rate { hold: Duration::from_secs(180) }));
        assert_eq!(parse("fixed:9+hold").map(|p| p.retry), Ok(Retry::Hold));
        assert_eq!(parse("article").map(|p| p.retry), Ok(Retry::Hold));
        let supply = |text: &str| parse(text).map(|p| (p.learned, p.retry)).unwrap();
        assert_eq!(supply("fixed"), (false, Retry::Return));
        assert_eq!(supply("fixed:9+learned"), (true, Retry::Gate));
        assert_eq!(supply("fixed+learned+never"), (true, Retry::Never));
        assert_eq!(supply("predictive"), (true, Retry::Gate));
        assert_eq!(supply("predictive:2+return"), (true, Retry::Return));
        for name in ["paced", "predictive", "aimd", "gradient", "oracle", "static:3", "reactive"] {
            assert_eq!(parse(name).map(|p| p.name).as_deref(), Ok(name));
        }
    }

    #[test]
    fn a_fault_is_named() {
        for (text, word) in [
            ("magic", "no policy `magic`"),
            ("fixed:0", "must be a whole number"),
            ("article:5/1/10", "initial_permits"),
            ("article:5", "10/20/100"),
            ("hpa:nan", "headroom"),
            ("static", "how many"),
            ("aimd:3", "no settings"),
            ("fixed+later", "hold, return or never"),
            ("aimd+learned", "only what runs live"),
            ("paced:600", "no settings"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }
}
