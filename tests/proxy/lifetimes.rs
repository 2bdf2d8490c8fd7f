//! When connections are opened, renewed, refreshed and given up, on virtual time.

use std::time::Duration;

use futures_util::future::join_all;
use tidegate::policy::units::MonoTime;
use tidegate::telemetry::ConnectReason;
use tidegate::upstream::Params;

use crate::support::{Client, Habits, Peer};

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

fn params() -> Params {
    Params { base_url: "http://peer/v1".parse().unwrap(), ..Params::default() }
}

fn over_http2() -> Params {
    Params { http2: true, ..params() }
}

/// A second of the pool's own pace passes.
async fn after(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The largest number of connections made within one second.
fn busiest_second(peer: &Peer, from: u64) -> usize {
    let mut per_second = std::collections::BTreeMap::<u64, usize>::new();
    for seen in peer.seen().iter().filter(|seen| seen.made.as_secs() >= from) {
        *per_second.entry(seen.made.as_secs()).or_default() += 1;
    }
    per_second.values().copied().max().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_burst_finds_its_connections_open_and_waits_for_no_handshake() {
    let peer = Peer::new(Habits::default());
    let client = Client::of(&peer, params(), 1);
    client.aim(40);
    after(2 * S).await;
    assert_eq!((client.idle(), client.upstream.warm()), (40, 40));
    assert!(peer.most_at_once() <= 16, "{}", peer.most_at_once());
    let began = peer.clock.now();
    let answers = join_all((0..40).map(|_| client.ask(0))).await;
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(peer.clock.now().since(began), 150 * MS, "the answer's time and nothing else");
    assert_eq!((client.on_demand(), peer.attempts()), (0, 40));
    assert_eq!(client.made(ConnectReason::Prewarm), 40);
}

#[tokio::test(start_paused = true)]
async fn without_a_target_or_with_prewarm_off_nothing_is_opened() {
    for (prewarm, target) in [(true, 0), (false, 40)] {
        let peer = Peer::new(Habits::default());
        let client = Client::of(&peer, Params { prewarm, ..params() }, 2);
        client.aim(target);
        after(30 * S).await;
        assert_eq!((peer.attempts(), client.upstream.warm()), (0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_target_counts_connections_in_use_as_well() {
    let peer = Peer::new(Habits { service: 10 * S, ..Habits::default() });
    let client = Client::of(&peer, params(), 1);
    let asking = join_all((0..6).map(|_| client.ask(0)));
    let aiming = async {
        after(S).await;
        client.aim(8);
        after(3 * S).await;
        assert_eq!(client.upstream.connections(), (2, 6));
    };
    tokio::join!(asking, aiming);
    assert_eq!(client.upstream.connections(), (8, 0));
}

#[tokio::test(start_paused = true)]
async fn a_target_of_any_size_opens_a_bounded_number() {
    let peer = Peer::new(Habits { handshake: MS, ..Habits::default() });
    let client = Client::of(&peer, params(), 4);
    client.aim(usize::MAX);
    after(20 * S).await;
    assert_eq!(peer.attempts(), 4096);
    assert!(peer.most_at_once() <= 4 * 16);
}

#[tokio::test(start_paused = true)]
async fn unused_connections_are_renewed_before_the_upstream_closes_them_and_not_all_at_once() {
    for keeps in [5 * S, 60 * S] {
        let peer = Peer::new(Habits { keeps, ..Habits::default() });
        let params = Params { idle_timeout: keeps * 9 / 10, refresh: Duration::ZERO, ..params() };
        let client = Client::of(&peer, params, 1);
        client.aim(20);
        after(2 * S).await;
        for _ in 0..4 * keeps.as_secs() * 10 {
            after(100 * MS).await;
            assert!(client.idle() >= 20, "{keeps:?}: {}", client.idle());
        }
        let closed = peer.seen().iter().filter(|seen| seen.closed_by_upstream).count();
        assert_eq!(closed, 0, "{keeps:?}: we are always first");
        let renewed = client.made(ConnectReason::Renew);
        assert!((80..=160).contains(&renewed), "{keeps:?}: {renewed} for 20 over four times {keeps:?}");
        assert_eq!(client.on_demand() + client.made(ConnectReason::Refresh), 0);
        // 20 within a quarter of the idle time-out
        let fair = (20 * 4 / keeps.as_secs() as usize).max(1) * 2;
        assert!(busiest_second(&peer, 3) <= fair + 6, "{keeps:?}: {}", busiest_second(&peer, 3));
    }
}

#[tokio::test(start_paused = true)]
async fn a_quiet_minute_costs_the_next_burst_nothing() {
    let peer = Peer::new(Habits { keeps: 5 * S, ..Habits::default() });
    let client = Client::of(&peer, Params { idle_timeout: 4500 * MS, ..params() }, 1);
    client.aim(10);
    for quiet in [60, 7, 33, 4] {
        after(S * quiet).await;
        let began = peer.clock.now();
        let answers = join_all((0..10).map(|_| client.ask(0))).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(peer.clock.now().since(began), 150 * MS, "after {quiet} s");
    }
    assert_eq!(client.on_demand(), 0);
}

#[tokio::test(start_paused = true)]
async fn under_load_every_connection_is_replaced_and_no_request_notices() {
    for workers in [1, 2] {
        let peer = Peer::new(Habits { service: 500 * MS, ..Habits::default() });
        let refresh = 20 * S;
        let client = Client::of(&peer, Params { refresh, ..params() }, workers);
        client.aim(12);
        after(3 * S).await;
        let (asked, slowest) = load(&client, &peer, 10, 125, workers).await;
        assert_eq!((asked, slowest), (1250, 500 * MS), "none failed and none waited");
        assert_eq!(client.on_demand(), 0);
        let now = peer.clock.now();
        assert!(now.since(MonoTime::ZERO) > refresh * 3);
        for seen in peer.seen() {
            let age = seen.ended.unwrap_or(now).since(seen.made);
            assert!(age <= refresh, "{workers} {now:?} {age:?} {seen:?}");
        }
        assert!(client.made(ConnectReason::Refresh) >= 36, "{}", client.made(ConnectReason::Refresh));
        assert_eq!(client.made(ConnectReason::Prewarm), 12);
        assert!(busiest_second(&peer, 4) <= 6, "{}", busiest_second(&peer, 4));
    }
}

/// `clients` that ask one after the other, each `times`: requests answered, and the slowest answer.
async fn load(client: &Client, peer: &Peer, clients: u64, times: u32, workers: usize) -> (u32, Duration) {
    let one = |n: u64| async move {
        let mut slowest = Duration::ZERO;
        let mut asked = 0;
        after(MS * (n as u32 * 7)).await;
        for _ in 0..times {
            let began = peer.clock.now();
            client.ask(n as usize % workers).await.unwrap();
            asked += 1;
            slowest = slowest.max(peer.clock.now().since(began));
            after(MS * 13).await;
        }
        (asked, slowest)
    };
    let all = join_all((0..clients).map(one)).await;
    all.into_iter().fold((0, Duration::ZERO), |(n, slowest), (asked, s)| (n + asked, slowest.max(s)))
}

#[tokio::test(start_paused = true)]
async fn a_request_that_outlives_the_refresh_is_left_alone() {
    let peer = Peer::new(Habits { service: 100 * S, ..Habits::default() });
    let client = Client::of(&peer, Params { refresh: 10 * S, ..params() }, 1);
    client.aim(2);
    after(2 * S).await;
    let (answer, ()) = tokio::join!(client.ask(0), async {
        after(90 * S).await;
        assert!(client.idle() >= 2, "it is old, so another is ready in its place: {}", client.idle());
        assert_eq!(client.upstream.connections(), (2, 1));
    });
    assert_eq!(answer.unwrap(), "body");
    after(S).await;
    assert_eq!(client.upstream.connections(), (2, 0), "and it went when it was done");
}

#[tokio::test(start_paused = true)]
async fn with_prewarm_off_an_old_connection_is_not_used_again() {
    let peer = Peer::new(Habits::default());
    let client = Client::of(&peer, Params { prewarm: false, refresh: 20 * S, ..params() }, 1);
    for _ in 0..60 {
        client.ask(0).await.unwrap();
        after(S).await;
    }
    let seen = peer.seen();
    assert!((4..=6).contains(&seen.len()), "{seen:?}");
    for seen in &seen[..seen.len() - 1] {
        let age = seen.ended.unwrap().since(seen.made);
        assert!(age >= 14 * S && age <= 21 * S, "{age:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_no_new_connection_can_be_had_the_old_ones_go_on() {
    let peer = Peer::new(Habits::default());
    let client = Client::of(&peer, Params { refresh: 10 * S, ..params() }, 1);
    client.aim(3);
    after(2 * S).await;
    peer.listens(false);
    for _ in 0..100 {
        assert_eq!(client.ask(0).await.unwrap(), "body");
        let answers = join_all((0..3).map(|_| client.ask(0))).await;
        assert!(answers.iter().all(Result::is_ok));
        after(S).await;
    }
    assert_eq!(peer.seen().len(), 3);
    peer.listens(true);
    after(45 * S).await;
    assert!(peer.seen()[..3].iter().all(|seen| seen.ended.is_some()), "replaced at last");
    assert!(client.idle() >= 3);
}

#[tokio::test(start_paused = true)]
async fn a_dead_upstream_is_not_stormed_and_found_alive_again() {
    let peer = Peer::new(Habits::default());
    peer.listens(false);
    let client = Client::of(&peer, params(), 2);
    client.aim(200);
    after(120 * S).await;
    assert!((10..=20).contains(&peer.attempts()), "two workers in two minutes: {}", peer.attempts());
    let failed = client.upstream.connects().count(ConnectReason::Prewarm).1;
    assert_eq!(failed as usize, peer.attempts());
    peer.listens(true);
    after(33 * S).await;
    assert_eq!(client.idle(), 200);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_hangs_up_on_whoever_waits_is_not_stormed() {
    let peer = Peer::new(Habits { keeps: 50 * MS, ..Habits::default() });
    let client = Client::of(&peer, params(), 1);
    client.aim(30);
    after(10 * S).await;
    let before = peer.attempts();
    assert!(before < 100, "{before}");
    after(120 * S).await;
    assert!(peer.attempts() - before <= 8, "{} more in two minutes", peer.attempts() - before);
    // and then it keeps them
    peer.change(|habits| habits.keeps = 3600 * S);
    after(60 * S).await;
    assert_eq!(client.idle(), 30);
}

#[tokio::test(start_paused = true)]
async fn connections_that_die_while_idle_are_replaced_within_a_second() {
    let peer = Peer::new(Habits::default());
    let client = Client::of(&peer, params(), 1);
    client.aim(5);
    after(20 * S).await;
    peer.close_all();
    after(MS).await;
    assert_eq!(client.idle(), 0);
    after(1500 * MS).await;
    assert_eq!(client.idle(), 5, "a look within a second, three rounds of handshakes");
    join_all((0..5).map(|_| client.ask(0))).await.into_iter().for_each(|answer| drop(answer.unwrap()));
    assert_eq!(client.on_demand(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_worker_may_use_what_the_other_has_ready_where_a_handshake_is_dear() {
    let peer = Peer::new(Habits::default());
    let url = "https://peer/v1".parse().unwrap();
    let client = Client::of(&peer, Params { base_url: url, ..params() }, 2);
    client.aim(10);
    after(2 * S).await;
    assert_eq!(client.idle(), 10);
    for worker in [0, 1, 0] {
        let answers = join_all((0..10).map(|_| client.ask(worker))).await;
        assert!(answers.iter().all(Result::is_ok));
        after(S).await;
    }
    assert_eq!((client.on_demand(), peer.attempts()), (0, 10));
}

#[tokio::test(start_paused = true)]
async fn a_target_that_sinks_lets_connections_idle_out() {
    let peer = Peer::new(Habits::default());
    let client = Client::of(&peer, Params { idle_timeout: 20 * S, ..params() }, 1);
    client.aim(30);
    after(5 * S).await;
    client.aim(4);
    after(30 * S).await;
    assert!((4..=8).contains(&client.idle()), "{}", client.idle());
    client.aim(0);
    after(30 * S).await;
    assert_eq!(client.upstream.connections(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_long_after_its_request_was_not_found_dead() {
    for http2 in [false, true] {
        for (breaks, sent) in [(900 * MS, 2), (1100 * MS, 1)] {
            let peer = Peer::new(Habits { http2, service: 10 * S, ..Habits::default() });
            let client = Client::of(&peer, Params { http2, ..params() }, 1);
            client.aim(1);
            after(2 * S).await;
            let breaking = async {
                after(breaks).await;
                peer.close_all();
            };
            let (answer, ()) = tokio::join!(client.ask(0), breaking);
            assert_eq!(
                answer.is_ok(),
                sent == 2,
                "{breaks:?}, http2 {http2}: what it died of may be the request"
            );
            assert_eq!(peer.seen().iter().map(|seen| seen.requests).sum::<usize>(), sent);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn over_http_2_a_connection_is_kept_ready_for_a_hundred_requests() {
    for (workers, target, connections) in [(1, 1, 1), (1, 100, 1), (1, 250, 3), (2, 250, 4), (2, 1, 1)] {
        let peer = Peer::new(Habits { http2: true, ..Habits::default() });
        let client = Client::of(&peer, over_http2(), workers);
        client.aim(target);
        after(5 * S).await;
        assert_eq!((client.idle(), client.upstream.warm()), (connections, connections), "{target}");
        let burst = join_all((0..target).map(|n| client.ask(n % workers)));
        let began = peer.clock.now();
        assert!(burst.await.iter().all(Result::is_ok));
        assert_eq!(peer.clock.now().since(began), 150 * MS, "{target} requests of {workers} workers");
        assert_eq!((client.on_demand(), peer.attempts()), (0, connections));
    }
}

#[tokio::test(start_paused = true)]
async fn over_http_2_a_burst_that_finds_nothing_ready_makes_a_connection_for_a_hundred() {
    for listens in [true, false] {
        let peer = Peer::new(Habits { http2: true, service: 10 * S, ..Habits::default() });
        let client = Client::of(&peer, over_http2(), 1);
        peer.listens(listens);
        let burst = join_all((0..250).map(|_| client.ask(0))).await;
        assert!(burst.iter().all(|answer| answer.is_ok() == listens));
        if listens {
            assert_eq!((peer.attempts(), peer.most_at_once()), (3, 1));
        } else {
            assert_eq!(peer.clock.now().as_secs(), 0, "nobody waits for more than one that fails");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn over_http_2_a_refresh_lets_streams_end_and_new_ones_begin_elsewhere() {
    let peer = Peer::new(Habits { http2: true, service: 1500 * MS, ..Habits::default() });
    let client = Client::of(&peer, Params { refresh: 20 * S, ..over_http2() }, 1);
    client.aim(20);
    after(2 * S).await;
    let (asked, slowest) = load(&client, &peer, 8, 80, 1).await;
    assert_eq!((asked, slowest), (640, 1500 * MS), "none failed and none waited");
    assert_eq!((client.on_demand(), client.made(ConnectReason::Prewarm)), (0, 1));
    let seen = peer.seen();
    assert!(seen.len() >= 6, "{seen:?}");
    for seen in &seen[..seen.len() - 1] {
        let age = seen.ended.unwrap().since(seen.made);
        assert!(age <= 23 * S, "20 s, and a request's time: {age:?}");
    }
    assert!(client.upstream.connections().0 + client.upstream.connections().1 <= 2);
}

#[tokio::test(start_paused = true)]
async fn an_unused_connection_of_http_2_is_closed_after_its_time() {
    let peer = Peer::new(Habits { http2: true, ..Habits::default() });
    let client = Client::of(&peer, Params { idle_timeout: 10 * S, ..over_http2() }, 1);
    client.ask(0).await.unwrap();
    after(8 * S).await;
    assert_eq!(client.upstream.connections(), (1, 0));
    after(4 * S).await;
    assert_eq!(client.upstream.connections(), (0, 0));
    let ended = peer.seen()[0].ended.map(MonoTime::as_secs);
    assert!((10..=12).contains(&ended.unwrap()), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_of_http_2_in_use_now_and_then_is_not_unused() {
    let peer = Peer::new(Habits { http2: true, ..Habits::default() });
    let client = Client::of(&peer, Params { idle_timeout: 10 * S, ..over_http2() }, 1);
    // never at the moment the pool looks
    after(500 * MS).await;
    for _ in 0..40 {
        client.ask(0).await.unwrap();
        after(850 * MS).await;
    }
    assert_eq!(peer.attempts(), 1);
}
