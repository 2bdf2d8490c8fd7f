//! What a server's own metrics say of how many run and wait in it.

use super::*;

#[test]
fn a_server_that_tells_how_many_wait_gets_what_it_runs() {
    // one processor: six at once make no more than one, so without its word there would be no reason to send six
    let (mut law, mut server) = (learn(), Server::new(6.0, false, 1.0));
    let mut seen = Vec::new();
    for at in 0..360 {
        server.second(&mut law, at, 24);
        law.server(MonoTime::from_secs(at + 1), server.says());
        seen.extend(law.limit().filter(|_| at >= 240));
    }
    assert!(seen.iter().all(|s| (6..=13).contains(s)), "{seen:?}");
}

#[test]
fn a_machine_that_is_quicker_now_and_then_does_not_hide_the_slots_a_server_tells_of() {
    let mut missed = Vec::new();
    for (seed, kind) in (0..60).flat_map(|seed| [(seed, Answers::Streams), (seed, Answers::Whole)]) {
        // restarted, and five was right for what was there before
        let mut law = learn();
        law.s = 5.0;
        law.reset(MonoTime::ZERO);
        let mut server =
            Server { drift: (0.25, seed), kind, alike: Some(32), ..Server::new(6.0, false, 1.0) };
        for at in 0..50 {
            server.second(&mut law, at, 24);
            law.server(MonoTime::from_secs(at + 1), server.says());
            let limit = law.limit().unwrap();
            if at >= 30 && !(6..=13).contains(&limit) {
                missed.push((seed, kind, limit));
                break;
            }
        }
    }
    assert!(missed.len() <= 2, "{missed:?}");
}

#[test]
fn a_server_that_says_that_nothing_waits_while_it_collapses_is_kept_from_it() {
    let (mut law, mut server) = (learn(), Server::new(16.0, true, 0.0));
    (law.s, law.slow_start) = (8.0, false);
    let mut seen = Vec::new();
    for at in 0..240 {
        server.second(&mut law, at, 400);
        let running = Some(server.jobs.len() as f64);
        law.server(MonoTime::from_secs(at + 1), ServerLoad { running, waiting: Some(0.0), kv_use: None });
        seen.extend(law.limit().filter(|_| at >= 120));
    }
    // all it makes to twice its size, 0.75 of it at 45, 0.4 from four times on
    seen.sort_unstable();
    assert!((16..=48).contains(&seen[seen.len() / 2]) && seen.iter().all(|s| *s <= 64), "{seen:?}");
}

#[test]
fn where_a_server_tells_how_many_wait_the_kind_that_collapses_first_counts() {
    let mut law = learn();
    law.server(MonoTime::ZERO, ServerLoad { running: Some(9.0), waiting: Some(0.0), kv_use: None });
    for n in (1..=32).map(f64::from) {
        // whole answers: as much at 2 as at 32, which is a knee and no collapse; streams: all at 16, a third at 32
        let (whole, stream) = ((1.0 / n).min(0.5), if n <= 16.0 { 1.0 } else { (16.0 / n).powi(3) });
        for (kind, speed) in [(Kind::Whole, whole), (Kind::Stream, stream)] {
            law.shares[kind as usize] = 0.5;
            (0..12).for_each(|_| {
                law.curves[kind as usize].observe(MonoTime::ZERO, n, speed, 1.0);
            });
        }
    }
    let cap = law.knee(MonoTime::ZERO).map(|knee| knee.cap);
    assert!(cap.is_some_and(|cap| (16.0..=24.0).contains(&cap)), "{cap:?}");
}

#[test]
fn what_the_server_says_counts_whatever_the_latencies() {
    let mut law = learn();
    let now = MonoTime::from_secs(1);
    law.head(now, Tokens(10), Duration::from_millis(50), 60);
    let queues = ServerLoad { running: Some(8.0), waiting: Some(52.0), kv_use: None };
    law.server(now, queues);
    assert_eq!(law.limit(), Some(64), "once may be chance");
    law.server(now + Duration::from_secs(1), queues);
    let change = law.tick(now + Duration::from_secs(1), 60, true).unwrap();
    assert_eq!((change.cause, change.from), (Cause::ServerSaid, Some(64)));
    assert!(change.to < Some(30), "{change:?}");
}

#[test]
fn what_waits_for_others_alone_bounds_the_limit_by_all_that_runs() {
    for (in_flight, limits) in [(0, 7..=7), (1, 7..=7), (2, 7..=7), (9, 2..=4)] {
        let mut law = learn();
        (law.s, law.slow_start) = (9.0, false);
        for at in (1..60).map(MonoTime::from_secs) {
            let ours = law.limit().unwrap().min(in_flight);
            law.tick(at, ours, false);
            // of the six slots another proxy's nine have most
            let waiting = Some(f64::from(ours) + 9.0 - 6.0);
            law.server(at, ServerLoad { running: Some(6.0), waiting, kv_use: None });
        }
        assert!(limits.contains(&law.limit().unwrap()), "{in_flight} in flight: {:?}", law.limit());
    }
}

#[test]
fn a_page_that_tells_of_one_replica_of_several_does_not_bound_what_all_may_have() {
    let mut law = learn();
    (law.s, law.slow_start) = (30.0, false);
    for at in (1..60).map(MonoTime::from_secs) {
        law.tick(at, 30, false);
        law.server(at, ServerLoad { running: Some(10.0), waiting: Some(1.0), kv_use: None });
    }
    assert_eq!(law.limit(), Some(30));
}
