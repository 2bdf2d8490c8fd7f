//! The learned limit before servers whose first tokens are late because prompts differ, which is no wait.

use std::ops::Range;

use tidegate::chance::SplitMix64;
use tidegate::policy::supply::concurrency::{Concurrency, Learning};
use tidegate::policy::units::{MonoTime, Sample, Tokens};

/// One request: sent, first token and last token in milliseconds, prompt, tokens, whether it streams.
struct Job {
    sent: u64,
    first: u64,
    last: u64,
    prompt: Tokens,
    output: Tokens,
    stream: bool,
}

/// Milliseconds: to the first token `fixed`, and `per_1k` for each 1,000 tokens of a prompt that is not cached; `token` to
/// each.
#[derive(Clone, Debug)]
struct Server {
    slots: usize,
    fixed: f64,
    per_1k: f64,
    /// Share of prompts that are.
    cached: f64,
    token: f64,
    /// Median tokens of an answer.
    output: f64,
    /// Requests a second, and the share of them that stream.
    rate: f64,
    streams: f64,
    /// Seconds in which each first token comes 2 s later.
    bad: Range<u64>,
    /// From second 300 on first tokens take this many times as long, and this share of prompts is cached.
    later: (f64, f64),
}

/// Prompts and answers of 20 tokens as fast as they come: some 26 in flight where nothing bounds them.
const FAST: Server = Server {
    slots: 1000,
    fixed: 20.0,
    per_1k: 100.0,
    cached: 0.0,
    token: 5.0,
    output: 20.0,
    rate: 150.0,
    streams: 0.5,
    bad: 0..0,
    later: (1.0, 0.0),
};

/// Returns the limit at each second, and how many waited at its end.
fn seconds(law: &mut Concurrency, seconds: u64, server: &Server, seed: u64) -> Vec<(u32, usize)> {
    let at = |ms: u64| MonoTime::from_nanos(ms * 1_000_000);
    let mut chance = SplitMix64::new(seed);
    let (mut jobs, mut waiting, mut seen) = (Vec::<Job>::new(), 0_usize, Vec::new());
    // when each slot is free
    let mut slots = vec![0_u64; server.slots];
    for second in 0..seconds {
        let mut peak = 0;
        let (slower, cached) = if second < 300 { (1.0, server.cached) } else { server.later };
        for ms in second * 1000..(second + 1) * 1000 {
            waiting += usize::from(chance.uniform() < server.rate / 1000.0);
            while waiting > 0 && law.limit().is_none_or(|s| jobs.len() < s as usize) {
                waiting -= 1;
                let prompt = chance.lognormal(300.0, 1.0).clamp(1.0, 8000.0);
                let output = chance.lognormal(server.output, 0.9).clamp(1.0, 20.0 * server.output).round();
                let read = if chance.uniform() < cached { 0.0 } else { prompt };
                let first = server.fixed + server.per_1k * read / 1000.0 + 4.0 * chance.uniform();
                let first = slower * first + if server.bad.contains(&second) { 2000.0 } else { 0.0 };
                let slot = (0..slots.len()).min_by_key(|i| slots[*i]).unwrap_or(0);
                let start = ms.max(slots[slot]);
                let (first, last) = (start + first as u64, start + (first + server.token * output) as u64);
                slots[slot] = last;
                let (prompt, output, stream) =
                    (Tokens(prompt as u64), Tokens(output as u64), chance.uniform() < server.streams);
                jobs.push(Job { sent: ms, first, last, prompt, output, stream });
            }
            peak = peak.max(jobs.len());
            let in_flight = jobs.len() as u32;
            for job in jobs.iter().filter(|job| job.stream && job.first == ms) {
                law.head(at(ms), job.prompt, at(ms).since(at(job.sent)), in_flight);
            }
            for job in jobs.extract_if(.., |job| job.last <= ms) {
                let since = |ms: u64| at(ms).since(at(job.sent));
                let (prompt, output, stream) = (job.prompt, job.output, job.stream);
                let (first, last) = (since(job.first), since(job.last));
                let sample = Sample { prompt, output, stream, first, last, ..Sample::default() };
                law.taken(in_flight);
                law.sample(at(ms), &sample, in_flight);
            }
        }
        law.tick(at((second + 1) * 1000), peak as u32, waiting > 0);
        seen.push((law.limit().unwrap_or(u32::MAX), waiting));
    }
    seen
}

fn servers(slots: usize, bad: &Range<u64>) -> Vec<Server> {
    let all = [
        (20.0, 50.0, 0.0),
        (20.0, 0.0, 0.0),
        (0.0, 60.0, 0.0),
        (50.0, 50.0, 0.0),
        (5.0, 100.0, 0.0),
        (10.0, 100.0, 0.5),
        (10.0, 200.0, 0.8),
    ];
    let server = |(fixed, per_1k, cached)| Server {
        slots,
        fixed,
        per_1k,
        cached,
        bad: bad.clone(),
        later: (1.0, cached),
        ..FAST
    };
    all.map(server).to_vec()
}

#[test]
fn a_limit_that_a_bad_moment_lowered_comes_back_whatever_the_prompts() {
    for server in servers(1000, &(30..50)) {
        for (seed, start) in (1..=6).zip([64, 12].into_iter().cycle()) {
            let mut law = Concurrency::new(Learning::Learn { start }, 1000);
            let seen = seconds(&mut law, 420, &server, seed);
            let least = seen[..60].iter().map(|(s, _)| *s).min();
            let waited = seen[180..].iter().filter(|(_, waiting)| *waiting > 0).count();
            let what = format!("{server:?}, from {start}, seed {seed}: {waited} of 240 s, {seen:?}");
            assert!(waited <= 5 && least < Some(22), "{what}");
        }
    }
}

#[test]
fn slots_are_found_whatever_the_prompts() {
    for slots in [4, 12] {
        for server in servers(slots, &(0..0)) {
            for (seed, start) in (1..=6).zip([64, 3].into_iter().cycle()) {
                let mut law = Concurrency::new(Learning::Learn { start }, 1000);
                let seen = &seconds(&mut law, 600, &server, seed)[120..];
                let beyond = seen.iter().filter(|(s, _)| *s as usize > 2 * slots + 1).count();
                let mean = seen.iter().map(|(s, _)| f64::from(*s)).sum::<f64>() / 480.0 / slots as f64;
                let what = format!("{server:?}, from {start}, seed {seed}: {seen:?}");
                assert!(beyond <= 5 && (0.95..=1.75).contains(&mean), "{beyond} s beyond, {mean}, {what}");
            }
        }
    }
}

#[test]
fn one_or_two_slots_are_found_from_a_few_slow_answers() {
    // a first token each two to four seconds
    for (slots, streams) in [(1, 1.0), (2, 0.5), (2, 1.0)] {
        let rate = 0.27 * slots as f64;
        let server =
            Server { slots, fixed: 50.0, per_1k: 200.0, token: 25.0, output: 200.0, rate, streams, ..FAST };
        let mean = |seed| {
            let mut law = Concurrency::new(Learning::Learn { start: 64 }, 1000);
            let seen = &seconds(&mut law, 1200, &server, seed)[300..];
            seen.iter().map(|(s, _)| f64::from(*s)).sum::<f64>() / seen.len() as f64
        };
        let means: Vec<f64> = (1..=12).map(mean).collect();
        let found = |mean: &f64| (slots as f64..=2.0 * slots as f64 + 1.0).contains(mean);
        assert!(means.iter().all(found), "{server:?}: {means:?}");
    }
}

#[test]
fn a_server_that_got_slower_and_caches_that_are_gone_are_no_wait() {
    let slower = Server { later: (3.0, 0.0), ..FAST };
    let uncached = Server { cached: 0.9, ..FAST };
    for server in [slower, uncached] {
        for (seed, streams) in (1..=4).zip([0.5, 1.0].into_iter().cycle()) {
            let mut law = Concurrency::new(Learning::Learn { start: 12 }, 1000);
            let seen = &seconds(&mut law, 900, &Server { streams, ..server.clone() }, seed)[300..];
            let waited = seen.iter().filter(|(_, waiting)| *waiting > 0).count();
            assert!(waited <= 60, "{server:?}, {streams} streams, seed {seed}: {waited} of 600 s, {seen:?}");
        }
    }
}
