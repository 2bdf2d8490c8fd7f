//! What refusals, time-outs and silence do to the law.

use super::*;

#[test]
fn what_is_refused_at_any_level_lowers_nothing_for_long() {
    // a 503 in so many, whatever is sent; forty are wanted, and never are more in flight than S
    for every in [100_u64, 30, 10] {
        for learning in [Learning::Hosted, Learning::Learn { start: 64 }] {
            let (mut law, mut sent, mut low) = (Concurrency::new(learning, 1000), 0_u64, 0);
            for at in 0..1200 {
                let now = MonoTime::from_secs(at);
                let most = law.limit().unwrap_or(40).min(40);
                for _ in 0..100 {
                    sent += 1;
                    let level = (most / 2 + (sent * 7919 % 97) as u32 * most / 192).max(1);
                    if mixed(sent).is_multiple_of(every) {
                        law.refused(now, level);
                    } else {
                        law.taken(level);
                    }
                    let last = Duration::from_millis(400);
                    law.sample(
                        now,
                        &Sample { output: Tokens(20), first: last, last, ..Sample::default() },
                        level,
                    );
                }
                law.tick(now, most, most < 40);
                low += u32::from(at >= 60 && law.limit().is_some_and(|s| s < 30));
            }
            assert!(low <= 60, "one in {every}, {learning:?}: {low} s below, {:?}", law.limit());
        }
    }
}

#[test]
fn a_head_that_never_comes_is_no_load_where_others_overtake_it() {
    let now = MonoTime::from_secs(1);
    for (overtakers, lowers) in [(100, false), (12, true)] {
        let mut law = learn();
        (0..50).for_each(|n| law.taken(n));
        let before = law.taken_so_far();
        (0..overtakers).for_each(|_| law.taken(12));
        (0..4).for_each(|_| law.timed_out(now, 12, before));
        assert_eq!(law.limit() < Some(64), lowers, "{overtakers}");
    }
}

#[test]
fn after_a_bad_two_minutes_it_comes_back() {
    for share in [20_u64, 31, 40, 45, 60, 100] {
        for learning in [Learning::Hosted, Learning::Learn { start: 64 }] {
            let (mut law, mut sent) = (Concurrency::new(learning, 1000), 0_u64);
            let mut back = None;
            for at in 0..600_u64 {
                let now = MonoTime::from_secs(at);
                let most = law.limit().unwrap_or(40).min(40);
                for n in 0..most * 2 {
                    sent += 1;
                    let level = n % most + 1;
                    let lot = mixed(sent);
                    if (60..180).contains(&at) && lot % 100 < share {
                        law.refused(now, level);
                    } else {
                        law.taken(level);
                        let last = Duration::from_millis(400);
                        let sample = Sample { output: Tokens(20), first: last, last, ..Sample::default() };
                        law.sample(now, &sample, level);
                    }
                }
                law.tick(now, most, most < 40);
                if at >= 180 && law.limit().is_none_or(|s| s >= 12) {
                    back = back.or(Some(at - 180));
                }
            }
            assert!(back.is_some_and(|s| s <= 90), "{share} %, {learning:?}: {back:?}, {:?}", law.limit());
        }
    }
}

#[test]
fn what_is_forgiven_is_found_again_at_once() {
    let found = |forgive: bool| {
        let mut law = learn();
        law.s = 8.0;
        let now = MonoTime::from_secs(1);
        (1..=8).for_each(|level| law.taken(level));
        (0..6).for_each(|_| {
            law.refused(now, 4);
        });
        law.tick(now, 4, true);
        assert!(law.limit() < Some(5), "{:?}", law.limit());
        if forgive {
            law.forgive();
        }
        Server::new(32.0, true, 0.0).run(&mut law, 2..40, 400)
    };
    let (forgiven, not) = (found(true), found(false));
    assert!(forgiven >= 10 && not < 5, "{forgiven}, {not}");
}

#[test]
fn one_at_a_time_is_never_too_many() {
    let mut law = learn();
    let now = MonoTime::from_secs(1);
    assert!((0..50).all(|_| !law.refused(now, 1)));
    assert_eq!(law.limit(), Some(64));
}

#[test]
fn where_answers_tell_nothing_it_grows_until_it_is_refused() {
    let (mut law, mut most) = (learn(), 0);
    // pictures: nobody knows how many tokens they are
    for at in 0..600_u64 {
        let now = MonoTime::from_secs(at);
        let s = law.limit().unwrap_or(1000).min(200);
        (1..=s).for_each(|level| {
            if level > 90 {
                law.refused(now, level);
            } else {
                law.taken(level);
            }
        });
        law.tick(now, s, true);
        most = most.max(s);
        assert!(at < 60 || (45..=100).contains(&s), "{at}: {s}");
    }
    assert!(most > 90, "{most}");
    // but not before answers were seen to tell nothing
    let mut law = learn();
    (1..=64).for_each(|level| law.taken(level));
    assert!((0..20).all(|at| law.tick(MonoTime::from_secs(at), 64, true).is_none()));
    assert_eq!(law.limit(), Some(64));
}

/// Chance, from a number.
fn mixed(n: u64) -> u64 {
    let lot = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    lot >> 33
}
