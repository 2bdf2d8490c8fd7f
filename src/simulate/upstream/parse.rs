//! Upstream models by name, as the command line and the suite give them: `kind:value,key=value,…`.

use std::time::Duration;

use crate::simulate::options::{Options, seconds};
use crate::simulate::upstream::service::Time;
use crate::simulate::upstream::{
    HandshakeParams, HostedParams, Law, Model, ReplicasParams, SlotsParams, Tell,
};

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
    // the first value may come without its key
    let first = match kind.trim() {
        "constant" | "lognormal" => "mean",
        "llm" => "token",
        "handshake" => "takes",
        _ => "",
    };
    let keyed = rest.split(',').next().is_some_and(|part| part.contains('=') || part.trim().is_empty());
    let spelled = if keyed || first.is_empty() { text.to_owned() } else { format!("{kind}:{first}={rest}") };
    let mut o = Options::parse(&spelled)?;
    let model = match o.name() {
        "constant" => Model::Service(Time::Constant(time(&mut o, "mean", 0.118)?)),
        "lognormal" => Model::Service(lognormal(&mut o)?),
        "llm" => Model::Service(tokens(&mut o)?),
        "hosted" => Model::Hosted(hosted(&mut o)?),
        "batch" => {
            let slots = o.whole("slots", 1, MOST)?.unwrap_or(32);
            Model::Batch(law(&mut o, Law::reference(slots))?)
        }
        "replicas" => Model::Replicas(replicas(&mut o)?),
        "slots" => {
            Model::Slots(SlotsParams { start: time(&mut o, "start", 30.0)?, time: lognormal(&mut o)? })
        }
        "handshake" => Model::Handshake(handshake(&mut o)?),
        other => return Err(format!("there is no upstream model `{other}`; there are:\n{HELP}")),
    };
    o.finish()?;
    Ok(model)
}

const MOST: u32 = 100_000;

fn time(o: &mut Options<'_>, key: &'static str, default: f64) -> Result<Duration, String> {
    Ok(Duration::from_secs_f64(o.seconds(key)?.unwrap_or(default)))
}

fn positive(o: &mut Options<'_>, key: &'static str, default: f64) -> Result<f64, String> {
    match o.number(key, 1e12)?.unwrap_or(default) {
        n if n > 0.0 => Ok(n),
        n => Err(format!("{}: {key}={n} is not above 0", o.name())),
    }
}

fn lognormal(o: &mut Options<'_>) -> Result<Time, String> {
    let mean = time(o, "mean", 0.118)?.as_secs_f64();
    Ok(Time::Lognormal { mean, cv: o.number("cv", 10.0)?.unwrap_or(0.10) })
}

fn tokens(o: &mut Options<'_>) -> Result<Time, String> {
    let token = time(o, "token", 0.020)?.as_secs_f64();
    Ok(Time::Tokens { token, prefill: positive(o, "prefill", 20_000.0)? })
}

fn hosted(o: &mut Options<'_>) -> Result<HostedParams, String> {
    let reference = HostedParams::reference(positive(o, "rpm", 600.0)?);
    let tokens = tokens(o)?;
    let whole = o.seconds("time")?.map(Duration::from_secs_f64);
    let params = HostedParams {
        time: whole.map_or(tokens, Time::Constant),
        burst: positive(o, "burst", reference.burst)?.max(1.0),
        tpm: o.number("tpm", 1e12)?,
        other: o.number("other", 0.999)?.unwrap_or(0.0),
        hidden: o.whole("hidden", 1, MOST)?,
        refuse: time(o, "refuse", 0.050)?,
        cost: o.number("cost", 1.0)?.unwrap_or(reference.cost),
        tell: match o.text("headers") {
            None | Some("on" | "true") => Tell::All,
            Some("retry") => Tell::RetryAfter,
            Some("off" | "false") => Tell::Nothing,
            Some(other) => return Err(format!("hosted: headers={other} is not on, retry or off")),
        },
        ..reference
    };
    if params.tpm.is_some_and(|tpm| tpm <= 0.0) {
        return Err("hosted: tpm=0 is not above 0".into());
    }
    Ok(params)
}

fn law(o: &mut Options<'_>, default: Law) -> Result<Law, String> {
    let Time::Tokens { token, prefill } = tokens(o)? else { return Ok(default) };
    let law = Law {
        slots: default.slots,
        knee: o.whole("knee", 1, MOST)?.unwrap_or(default.knee),
        floor: o.whole("floor", 1, MOST)?.unwrap_or(default.floor),
        worst: positive(o, "worst", default.worst)?.min(1.0),
        run: o.whole("run", 1, MOST)?.unwrap_or(default.run),
        token,
        prefill,
    };
    if law.knee < law.slots || law.floor < law.knee {
        let Law { slots, knee, floor, .. } = law;
        return Err(format!("{}: slots={slots}, knee={knee}, floor={floor} must not fall", o.name()));
    }
    Ok(law)
}

fn replicas(o: &mut Options<'_>) -> Result<ReplicasParams, String> {
    let reference = ReplicasParams::reference(time(o, "start", 30.0)?);
    let slots = o.whole("slots", 1, MOST)?.unwrap_or(reference.law.slots);
    Ok(ReplicasParams {
        law: law(o, Law { run: slots.saturating_mul(4), ..Law::reference(slots) })?,
        per: o.whole("per", 1, MOST)?.unwrap_or(slots.saturating_mul(2)),
        first: o.whole("initial", 1, MOST)?.unwrap_or(reference.first),
        most: o.whole("max", 1, MOST)?.unwrap_or(reference.most),
        ..reference
    })
}

fn handshake(o: &mut Options<'_>) -> Result<HandshakeParams, String> {
    let takes = o.text("takes").unwrap_or("50ms-150ms");
    let (least, most) = takes.split_once('-').unwrap_or((takes, takes));
    let (Some(least), Some(most)) = (seconds(least), seconds(most)) else {
        return Err(format!("handshake: {takes} is not a span like 100ms, or two like 50ms-150ms"));
    };
    if most < least {
        return Err(format!("handshake: {takes} must not fall"));
    }
    Ok(HandshakeParams {
        least: Duration::from_secs_f64(least),
        most: Duration::from_secs_f64(most),
        idle: time(o, "idle", 60.0)?,
        time: lognormal(o)?,
    })
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
        assert_eq!((h.tpm, h.hidden, h.tell), (Some(5000.0), Some(50), Tell::Nothing));
    }

    #[test]
    fn a_fault_is_named() {
        for (text, word) in [
            ("cloud:3", "there is no upstream model `cloud`"),
            ("constant:fast", "mean=fast is not a span like"),
            ("batch:slots=0", "slots=0 is not a whole number from 1"),
            ("batch:slots=32,knee=8", "must not fall"),
            ("hosted:rpm=NaN", "rpm=NaN is not a number"),
            ("hosted:rps=3", "unknown option `rps`"),
            ("slots:start=1s,start=2s", "given twice"),
            ("handshake:150ms-50ms", "must not fall"),
            ("hosted:headers=no", "on, retry or off"),
            ("hosted:tpm=0", "not above 0"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(word), "{text}: {why}");
        }
    }
}
