//! The law against small model servers with a queue that never is empty, and against nonsense.

use super::*;

fn of_stream(tokens: u64, first: Duration, last: Duration) -> Sample {
    let (prompt, output) = (Tokens(100), Tokens(tokens));
    Sample { prompt, output, first, last, stream: true, ..Sample::default() }
}

mod refused;
mod told;

/// A server under a backlog: `s` in flight all the time, answers of 20 to 400 tokens.
struct Server {
    slots: f64,
    /// Everyone shares; else the rest wait inside in their order.
    shares: bool,
    /// The time per token grows by this with each further one that runs.
    batching: f64,
    /// Work left before the first token, and in all; when it was sent; whether the first token came.
    jobs: Vec<(f64, f64, MonoTime, Option<MonoTime>, u64)>,
    sent: u64,
    kind: Answers,
    /// The machine is quicker and slower by as much, for ten seconds each, by a seed.
    drift: (f64, u64),
    /// Every answer has so many tokens.
    alike: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Answers {
    Streams,
    Whole,
    Untokenised,
}

impl Server {
    fn new(slots: f64, shares: bool, batching: f64) -> Self {
        Self {
            slots,
            shares,
            batching,
            jobs: Vec::new(),
            sent: 0,
            kind: Answers::Streams,
            drift: (0.0, 0),
            alike: None,
        }
    }

    /// The machine's speed in a second.
    fn machine(&self, at: u64) -> f64 {
        let mixed = (at / 10 + 1000 * self.drift.1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40;
        1.0 + self.drift.0 * (mixed as f64 / 2.0_f64.powi(23) - 1.0)
    }

    /// What a server says of itself that tells how many wait.
    fn says(&self) -> ServerLoad {
        let (all, running) = (self.jobs.len() as f64, (self.jobs.len() as f64).min(self.slots));
        ServerLoad { running: Some(running), waiting: Some(all - running), kv_use: None }
    }

    /// One second, in steps of 10 ms.
    fn second(&mut self, law: &mut Concurrency, at: u64, offered: usize) -> Option<Change> {
        let mut peak = 0;
        for step in 0..100_u64 {
            let now = MonoTime::from_nanos((at * 100 + step) * 10_000_000);
            let limit = law.limit().map_or(offered, |n| n as usize).min(offered);
            while self.jobs.len() < limit {
                self.sent += 1;
                let tokens = self.alike.unwrap_or(20 + self.sent * 7919 % 380);
                self.jobs.push((0.1, 0.1 + tokens as f64 * 0.02, now, None, tokens));
            }
            peak = peak.max(self.jobs.len());
            let n = self.jobs.len() as f64;
            let running = if self.shares { n } else { n.min(self.slots) };
            let beyond = if self.shares { ((n / self.slots - 2.0) / 2.0).clamp(0.0, 1.0) } else { 0.0 };
            let speed = (self.slots / running).min(1.0) * (1.0 - 0.6 * beyond)
                / (1.0 + self.batching * (running - 1.0).max(0.0))
                * self.machine(at);
            let in_flight = self.jobs.len() as u32;
            let end = now + Duration::from_millis(10);
            for job in self.jobs.iter_mut().take(running as usize) {
                (job.0, job.1) = (job.0 - 0.01 * speed, job.1 - 0.01 * speed);
                if job.0 <= 0.0 && job.3.is_none() {
                    job.3 = Some(end);
                    if self.kind == Answers::Streams {
                        law.head(end, Tokens(100), end.since(job.2), in_flight);
                    }
                }
            }
            for (_, _, sent, first, tokens) in self.jobs.extract_if(.., |job| job.1 <= 0.0) {
                let first = first.unwrap_or(end).since(sent);
                let last = end.since(sent);
                let sample = of_stream(tokens, first, last);
                law.sample(end, &sample, in_flight);
            }
        }
        law.tick(MonoTime::from_secs(at + 1), peak as u32, offered > peak)
    }

    fn run(&mut self, law: &mut Concurrency, seconds: std::ops::Range<u64>, offered: usize) -> u32 {
        seconds.for_each(|at| {
            self.second(law, at, offered);
        });
        law.limit().unwrap_or(u32::MAX)
    }
}

fn learn() -> Concurrency {
    Concurrency::new(Learning::Learn { start: 64 }, 1000)
}

#[test]
fn slots_with_a_queue_inside_are_found_and_found_again_after_a_restart() {
    for batching in [0.0, 0.2] {
        let mut law = learn();
        let s = Server::new(2.0, false, batching).run(&mut law, 0..120, 16);
        assert!((2..=5).contains(&s), "-np 2: {s}");
        // restarted with six slots: within a minute, told or not
        for told in [false, true] {
            let mut law = law.clone();
            if told {
                law.reset(MonoTime::from_secs(120));
            }
            let s = Server::new(6.0, false, batching).run(&mut law, 120..180, 24);
            assert!((6..=13).contains(&s), "-np 6, batching {batching}, told {told}: {s}");
            let s = Server::new(2.0, false, batching).run(&mut law, 180..240, 24);
            assert!((2..=5).contains(&s), "-np 2 again: {s}");
        }
    }
}

#[test]
fn a_batch_server_s_size_is_found_from_either_side() {
    for slots in [16.0, 32.0, 64.0] {
        let mut law = learn();
        let s = Server::new(slots, true, 0.0).run(&mut law, 0..120, 400);
        // between full speed and the knee
        assert!((slots..=2.1 * slots).contains(&f64::from(s)), "{slots}: {s}");
        let s = Server::new(48.0, true, 0.0).run(&mut law, 120..180, 400);
        assert!((48..=100).contains(&s), "{slots}, then 48: {s}");
    }
}

#[test]
fn it_grows_only_when_it_is_reached() {
    let mut law = learn();
    assert_eq!(Server::new(200.0, true, 0.0).run(&mut law, 0..60, 40), 64);
    assert!(Server::new(200.0, true, 0.0).run(&mut law, 60..120, 400) > 150);
}

#[test]
fn lengths_are_no_load() {
    let mut law = learn();
    for at in 0..100 {
        // nobody waits, each token takes 20 ms; the answers become 50 times as long
        let (now, tokens) = (MonoTime::from_secs(at), if at < 50 { 20 } else { 1000 });
        let (first, last) = (Duration::from_millis(100), Duration::from_millis(100 + 20 * tokens));
        for _ in 0..8 {
            let sample = of_stream(tokens, first, last);
            law.head(now, Tokens(100), first, 60);
            law.sample(now, &sample, 60);
        }
        law.tick(now, 60, true);
        assert!(law.limit() >= Some(64), "{at}: {:?}", law.status(now));
    }
}

#[test]
fn one_slow_reader_moves_nothing() {
    let mut law = learn();
    Server::new(32.0, true, 0.0).run(&mut law, 0..60, 100);
    let mut other = law.clone();
    let now = MonoTime::from_secs(60);
    let (first, last) = (Duration::from_millis(100), Duration::from_secs(3600));
    law.sample(
        now,
        &Sample { prompt: Tokens(9), output: Tokens(50), first, last, stream: true, ..Sample::default() },
        50,
    );
    law.tick(now, 50, true);
    other.tick(now, 50, true);
    assert_eq!(law.limit(), other.limit());
}

#[test]
fn embeddings_and_whole_answers_are_bounded_too() {
    for kind in [Answers::Whole, Answers::Untokenised] {
        let mut law = learn();
        let s = Server { kind, ..Server::new(8.0, false, 0.0) }.run(&mut law, 0..180, 400);
        assert!((8..=24).contains(&s), "{kind:?}: {s}");
    }
}

#[test]
fn a_hosted_api_has_no_limit_until_it_refuses() {
    let mut law = Concurrency::new(Learning::Hosted, 1000);
    let sample = Sample { last: Duration::from_secs(100), ..Sample::default() };
    for at in 0..60 {
        law.sample(MonoTime::from_secs(at), &sample, 500);
        assert_eq!(law.tick(MonoTime::from_secs(at), 500, true), None);
    }
    assert_eq!(law.limit(), None);
    // a hidden cap of 50: how many are refused in ten minutes of 200 who want in?
    let mut refused = 0;
    for at in 60..660 {
        let (now, peak) = (MonoTime::from_secs(at), law.limit().unwrap_or(200).min(200));
        (1..=peak.min(50)).for_each(|n| law.taken(n));
        for n in 51..=peak {
            law.refused(now, n);
            refused += 1;
        }
        if let Some(change) = law.tick(now, peak, true) {
            assert!(change.from != change.to, "{change:?}");
        }
    }
    assert!((40..=50).contains(&law.limit().unwrap()), "{:?}", law.limit());
    assert!(refused < 260, "{refused}");
}

#[test]
fn fixed_and_unlimited_are_what_they_say() {
    for (learning, limit) in [(Learning::Fixed(7), Some(7)), (Learning::Unlimited, None)] {
        let mut law = Concurrency::new(learning, 100);
        law.refused(MonoTime::ZERO, 3);
        law.timed_out(MonoTime::ZERO, 3, 0);
        law.server(MonoTime::ZERO, ServerLoad { running: Some(1.0), waiting: Some(9.0), kv_use: None });
        assert_eq!((law.tick(MonoTime::ZERO, 3, true), law.limit()), (None, limit));
    }
}

#[test]
fn nonsense_neither_panics_nor_spreads() {
    let times = [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1), Duration::MAX];
    let counts = [0, 1, 2, 257, u64::MAX];
    let mut seed = 1_u64;
    let mut pick = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % n
    };
    for max in [0, 1, 50, u32::MAX] {
        for learning in [Learning::Learn { start: 0 }, Learning::Learn { start: u32::MAX }, Learning::Hosted]
        {
            let mut law = Concurrency::new(learning, max);
            let mut now = MonoTime::ZERO;
            for _ in 0..3000 {
                now = if pick(50) == 0 { now } else { now + Duration::from_millis(pick(3000) as u64) };
                let in_flight = [0, 1, 10, 1000, u32::MAX][pick(5)];
                let sample = Sample {
                    prompt: Tokens(counts[pick(5)]),
                    output: Tokens(counts[pick(5)]),
                    first: times[pick(4)],
                    last: times[pick(4)],
                    stream: pick(2) == 0,
                    ..Sample::default()
                };
                let number = |i| Some([f64::NAN, -1.0, 0.0, 1.0, 1e300][i]);
                match pick(12) {
                    0 => drop(law.refused(now, in_flight)),
                    1 => law.timed_out(now, in_flight, pick(50) as u64),
                    2 => law.reset(now),
                    3 => {
                        let (running, waiting, kv_use) = (number(pick(5)), number(pick(5)), number(pick(5)));
                        law.server(now, ServerLoad { running, waiting, kv_use });
                    }
                    4..=6 => law.head(now, sample.prompt, sample.first, in_flight),
                    7..=9 => law.sample(now, &sample, in_flight),
                    _ => drop(law.tick(now, in_flight, pick(2) == 0)),
                }
                assert!(law.limit().is_none_or(|s| (1..=max.max(1)).contains(&s)), "{:?}", law.limit());
                assert!(!law.s.is_nan());
                assert!(law.status(now).limit == law.limit());
            }
            law.tick(MonoTime::MAX, 1, true);
        }
    }
}

#[test]
fn a_limit_that_is_never_nearly_reached_stays() {
    let mut law = learn();
    // one or two at a time, and whoever comes second needs a new connection: slower, and no fault of the server's
    for at in 0..300_u64 {
        for (n, millis) in [(1, 118), (2, 290), (1, 120)] {
            let now = MonoTime::from_nanos(at * 1_000_000_000 + millis * 1_000_000);
            let last = Duration::from_millis(millis);
            law.sample(now, &Sample { prompt: Tokens(100), first: last, last, ..Sample::default() }, n);
        }
        law.tick(MonoTime::from_secs(at + 1), 2, false);
        assert_eq!(law.limit(), Some(64), "{at}: {:?}", law.status(MonoTime::from_secs(at + 1)));
    }
}

#[test]
fn from_between_one_and_two_it_comes_back() {
    for kind in [Answers::Streams, Answers::Whole, Answers::Untokenised] {
        let mut law = learn();
        (law.s, law.slow_start) = (1.99, false);
        let s = Server { kind, ..Server::new(16.0, true, 0.0) }.run(&mut law, 0..90, 400);
        assert!(s >= 12, "{kind:?}: {s}");
    }
}
