//! Upstream models by name, as the command line and the suite give them: `kind:value,key=value,…`.

use std::time::Duration;

use crate::simulate::upstream::service::Time;
use crate::simulate::upstream::{HandshakeParams, HostedParams, Law, Model, ReplicasParams, SlotsParams};

/// What can be written, one model a paragraph.
pub const HELP: &str = "\
constant:118ms                        always the same time, any number at once
lognormal:118ms,cv=0.10               lognormal with this mean and coefficient of variation, any number at once
llm:20ms,prefill=20000                time per token of the answer, prompt tokens per second; any number at once
hosted:rpm=600,burst=20,tpm=400000    a hosted API: buckets, 429 beyond them, then as llm
  refuse=50ms cost=0.25               how long a refusal takes, and what it costs in requests
  other=0.33 hidden=50 headers=off    another client's share; a cap on requests at once; no Retry-After
  token=20ms prefill=20000 time=118ms (time: a constant time instead of tokens)
batch:slots=32                        a batch server: full speed up to slots, then shared
  knee=64 floor=128 worst=0.4         beyond knee the throughput falls, to worst at floor
  run=256 token=20ms prefill=20000    at most run at once, the rest wait inside
replicas:start=30s,per=32             batch servers that take `start` to serve, given at most `per` each
  slots=16 knee=32 floor=64 worst=0.4 run=64 token=20ms prefill=20000 initial=2 max=1000
slots:start=30s,mean=118ms,cv=0.10    each permit a replica that does one request at a time
handshake:50ms-150ms,idle=60s         a connection that is not warm costs that; idle ones are closed
  mean=118ms cv=0.10                  the time on a warm one";

/// The model that `text` names.
///
/// # Errors
/// What is wrong with it, for the person who wrote it.
pub fn parse(text: &str) -> Result<Model, String> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    let mut words = Words::new(text, rest)?;
    let model = match kind.trim() {
        "constant" => Model::Service(Time::Constant(words.main().unwrap_or(Ok(Duration::from_millis(118)))?)),
        "lognormal" => {
            let mean = words.main().unwrap_or(Ok(Duration::from_millis(118)))?.as_secs_f64();
            Model::Service(Time::Lognormal { mean, cv: words.number("cv", 0.10, 0.0, 10.0)? })
        }
        "llm" => {
            let token = words.main().unwrap_or(Ok(Duration::from_millis(20)))?.as_secs_f64();
            Model::Service(Time::Tokens { token, prefill: words.number("prefill", 20_000.0, 1e-3, 1e12)? })
        }
        "hosted" => Model::Hosted(hosted(&mut words)?),
        "batch" => {
            let slots = words.count("slots", 32)?;
            Model::Batch(law(&mut words, Law::reference(slots))?)
        }
        "replicas" => Model::Replicas(replicas(&mut words)?),
        "slots" => {
            Model::Slots(SlotsParams { start: words.time("start", 30_000)?, time: words.lognormal()? })
        }
        "handshake" => Model::Handshake(handshake(&mut words)?),
        other => return Err(format!("{text}: there is no upstream model `{other}`; there are:\n{HELP}")),
    };
    words.done(kind)?;
    Ok(model)
}

fn hosted(words: &mut Words<'_>) -> Result<HostedParams, String> {
    let rpm = words.number("rpm", 600.0, 1e-3, 1e9)?;
    let reference = HostedParams::reference(rpm);
    let tokens = Time::Tokens {
        token: words.time("token", 20)?.as_secs_f64(),
        prefill: words.number("prefill", 20_000.0, 1e-3, 1e12)?,
    };
    Ok(HostedParams {
        time: if words.has("time") { Time::Constant(words.time("time", 118)?) } else { tokens },
        burst: words.number("burst", 20.0, 1.0, 1e9)?,
        tpm: if words.has("tpm") { Some(words.number("tpm", 0.0, 1e-3, 1e12)?) } else { None },
        other: words.number("other", 0.0, 0.0, 0.999)?,
        hidden: if words.has("hidden") { Some(words.count("hidden", 0)?) } else { None },
        refuse: words.time("refuse", 50)?,
        cost: words.number("cost", 0.25, 0.0, 1.0)?,
        headers: match words.take("headers") {
            None | Some("on") => true,
            Some("off") => false,
            Some(other) => return Err(format!("headers={other}: on or off")),
        },
        ..reference
    })
}

fn law(words: &mut Words<'_>, default: Law) -> Result<Law, String> {
    let law = Law {
        slots: default.slots,
        knee: words.count("knee", default.knee)?,
        floor: words.count("floor", default.floor)?,
        worst: words.number("worst", default.worst, 0.01, 1.0)?,
        run: words.count("run", default.run)?,
        token: words.time("token", 20)?.as_secs_f64(),
        prefill: words.number("prefill", default.prefill, 1e-3, 1e12)?,
    };
    if law.knee < law.slots || law.floor < law.knee {
        return Err(format!("slots={} knee={} floor={}: they must not fall", law.slots, law.knee, law.floor));
    }
    Ok(law)
}

fn replicas(words: &mut Words<'_>) -> Result<ReplicasParams, String> {
    let start = words.time("start", 30_000)?;
    let reference = ReplicasParams::reference(start);
    let slots = words.count("slots", reference.law.slots)?;
    let law = law(words, Law { run: 4 * slots, ..Law::reference(slots) })?;
    Ok(ReplicasParams {
        law,
        start,
        per: words.count("per", 2 * slots)?,
        first: words.count("initial", reference.first)?,
        most: words.count("max", reference.most)?,
    })
}

fn handshake(words: &mut Words<'_>) -> Result<HandshakeParams, String> {
    let (least, most) = match words.take("") {
        None => (Duration::from_millis(50), Duration::from_millis(150)),
        Some(span) => match span.split_once('-') {
            Some((least, most)) => (duration(least)?, duration(most)?),
            None => (duration(span)?, duration(span)?),
        },
    };
    if most < least {
        return Err("a handshake's span must not fall: 50ms-150ms".into());
    }
    Ok(HandshakeParams { least, most, idle: words.time("idle", 60_000)?, time: words.lognormal()? })
}

/// The values of a model or a policy, each taken once.
pub(in crate::simulate) struct Words<'a> {
    text: &'a str,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    pub(in crate::simulate) fn new(text: &'a str, rest: &'a str) -> Result<Self, String> {
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        for part in rest.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or(("", part));
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(format!("{text}: `{part}` says again what was said"));
            }
            pairs.push((key.trim(), value.trim()));
        }
        Ok(Self { text, pairs })
    }

    pub(in crate::simulate) fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|(known, _)| *known == key)
    }

    pub(in crate::simulate) fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.pairs.iter().position(|(known, _)| *known == key)?;
        Some(self.pairs.swap_remove(at).1)
    }

    /// The value without a key.
    fn main(&mut self) -> Option<Result<Duration, String>> {
        self.take("").map(duration)
    }

    pub(in crate::simulate) fn time(&mut self, key: &str, default_ms: u64) -> Result<Duration, String> {
        self.take(key).map_or(Ok(Duration::from_millis(default_ms)), |v| {
            duration(v).map_err(|why| format!("{}: {key}={why}", self.text))
        })
    }

    pub(in crate::simulate) fn number(
        &mut self,
        key: &str,
        default: f64,
        least: f64,
        most: f64,
    ) -> Result<f64, String> {
        let Some(value) = self.take(key) else { return Ok(default) };
        match value.parse::<f64>() {
            Ok(n) if (least..=most).contains(&n) => Ok(n),
            _ => Err(format!("{}: {key}={value}: must be a number from {least} to {most}", self.text)),
        }
    }

    pub(in crate::simulate) fn count(&mut self, key: &str, default: u32) -> Result<u32, String> {
        let Some(value) = self.take(key) else { return Ok(default) };
        match value.parse::<u32>() {
            Ok(n) if (1..=100_000).contains(&n) => Ok(n),
            _ => Err(format!("{}: {key}={value}: must be a whole number from 1 to 100000", self.text)),
        }
    }

    fn lognormal(&mut self) -> Result<Time, String> {
        let mean = self.time("mean", 118)?.as_secs_f64();
        Ok(Time::Lognormal { mean, cv: self.number("cv", 0.10, 0.0, 10.0)? })
    }

    /// Nothing is left that nobody asked for.
    pub(in crate::simulate) fn done(&self, kind: &str) -> Result<(), String> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, value)) => {
                Err(format!("{}: `{kind}` has no `{}`", self.text, if key.is_empty() { value } else { key }))
            }
        }
    }
}

/// `118ms`, `30s`, `2m`, `1h`.
pub(in crate::simulate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text}: must be a time like 118ms, 30s, 2m, 1h")),
    };
    match digits.parse::<f64>() {
        Ok(n) if n >= 0.0 && n * unit <= 1e9 => Ok(Duration::from_secs_f64(n * unit)),
        _ => Err(format!("{text}: must be a time like 118ms, 30s, 2m, 1h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_is_read_with_its_defaults() {
        let ms = Duration::from_millis;
        assert_eq!(parse("constant:118ms"), Ok(Model::Service(Time::Constant(ms(118)))));
        assert_eq!(parse("lognormal"), Ok(Model::Service(Time::Lognormal { mean: 0.118, cv: 0.10 })));
        assert_eq!(parse("batch:slots=32"), Ok(Model::Batch(Law::reference(32))));
        let thirty = ReplicasParams::reference(Duration::from_secs(30));
        assert_eq!(parse("replicas:start=30s,per=32"), Ok(Model::Replicas(thirty)));
        assert_eq!(parse("hosted:rpm=600"), Ok(Model::Hosted(HostedParams::reference(600.0))));
        let Ok(Model::Handshake(h)) = parse("handshake:50ms-150ms,idle=5s") else { panic!("a handshake") };
        assert_eq!((h.least, h.most, h.idle), (ms(50), ms(150), ms(5000)));
        let Ok(Model::Hosted(h)) = parse("hosted: rpm=100, tpm=5000, hidden=50, headers=off") else {
            panic!("a hosted one")
        };
        assert_eq!((h.tpm, h.hidden, h.headers), (Some(5000.0), Some(50), false));
    }

    #[test]
    fn a_fault_is_named() {
        for (text, word) in [
            ("cloud:3", "there is no upstream model `cloud`"),
            ("constant:118", "must be a time like"),
            ("batch:slots=0", "slots=0: must be a whole number from 1"),
            ("batch:slots=32,knee=8", "must not fall"),
            ("hosted:rpm=NaN", "rpm=NaN: must be a number"),
            ("hosted:rps=3", "`hosted` has no `rps`"),
            ("slots:start=1s,start=2s", "says again"),
            ("handshake:150ms-50ms", "must not fall"),
            ("hosted:headers=no", "on or off"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }
}
