//! What is told of stops and rests: their beginning with its reasons, and their end.

use super::*;
use crate::policy::units::{ModelId, TenantId};

const AT: fn(u64) -> MonoTime = MonoTime::from_secs;

fn fleet(endpoints: usize) -> Fleet {
    let members = vec![Member { keys: 2, ..Member::default() }; endpoints];
    Fleet::new(Params { members, ..Params::default() }, AT(0))
}

/// One goes to where it is sent.
fn go(fleet: &mut Fleet, now: MonoTime, n: u64, endpoint: u16) -> Attempt {
    let want = Want {
        ticket: Ticket(n),
        tenant: TenantId::default(),
        model: ModelId(7),
        cost: Tokens(10),
        paced: true,
        avoid: None,
        patience: now,
        may_probe: true,
    };
    let place = Place { endpoint: EndpointId(endpoint), key: KeyId(1) };
    fleet.start(now, &want, place, &mut Vec::new())
}

fn told(fleet: &mut Fleet, now: MonoTime) -> Vec<Report> {
    let mut reports = Vec::new();
    fleet.tick(now, false, &mut reports);
    reports
}

#[test]
fn of_an_outlier_it_is_told_what_was_compared_and_when_it_is_back() {
    let mut fleet = fleet(2);
    for n in 0..10 {
        let slow = n % 2;
        let attempt = go(&mut fleet, AT(0), n, u16::try_from(slow).unwrap());
        let (first, rest) = (Duration::from_millis(100 + 700 * slow), Duration::from_millis(900));
        let sample = Sample {
            prompt: Tokens(10),
            output: Tokens(10),
            first,
            last: first + rest,
            stream: true,
            ..Sample::default()
        };
        fleet.release(AT(1), &attempt, Some(&sample));
    }
    let reports = told(&mut fleet, AT(5));
    let [Report::Ejected { endpoint, factor, paces, until }] = reports.as_slice() else {
        panic!("{reports:?}")
    };
    assert_eq!((*endpoint, *until, factor.round()), (EndpointId(1), AT(35), 8.0));
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    close(paces.first.unwrap(), 0.8);
    close(paces.first_of_peers.unwrap(), 0.1);
    close(paces.token.unwrap(), 0.1);
    close(paces.token_of_peers.unwrap(), 0.1);
    assert!(fleet.status(AT(5))[1].ejected && !fleet.status(AT(5))[1].unhealthy);
    assert_eq!(told(&mut fleet, AT(34)), []);
    assert_eq!(told(&mut fleet, AT(36)), [Report::IsBack { endpoint: EndpointId(1) }]);
    assert_eq!(told(&mut fleet, AT(37)), []);
}

#[test]
fn a_failing_check_is_not_the_slowness_of_an_outlier() {
    let mut fleet = fleet(2);
    fleet.checked(AT(0), EndpointId(0), false);
    let status = fleet.status(AT(0));
    assert!(status[0].unhealthy && !status[0].ejected);
}

#[test]
fn of_a_stop_it_is_told_who_named_its_time_what_was_known_and_when_it_is_over() {
    let mut fleet = fleet(1);
    let mut reports = Vec::new();
    let first = go(&mut fleet, AT(0), 0, 0);
    let limits = RateLimits { retry_at: Some(AT(9)), ..RateLimits::default() };
    fleet.refused(AT(1), &first, &limits, &mut reports);
    let [Report::Stopped { model, until, said_by, known, .. }] = reports.as_slice() else {
        panic!("{reports:?}")
    };
    assert_eq!((*model, *until, *said_by), (ModelId(7), AT(9), SaidBy::RetryAfter));
    assert_eq!(known.requests.limit, None);
    assert_eq!(told(&mut fleet, AT(10)), [], "nobody has tried yet");
    let probe = go(&mut fleet, AT(10), 1, 0);
    assert_eq!(told(&mut fleet, AT(11)), []);
    fleet.head(AT(11), &probe, true, false, &mut reports);
    let place = Place { endpoint: EndpointId(0), key: KeyId(1) };
    assert_eq!(told(&mut fleet, AT(12)), [Report::GoesOn { place, model: ModelId(7) }]);
    assert_eq!(told(&mut fleet, AT(13)), []);
}

#[test]
fn of_a_key_it_is_told_that_it_rests_and_that_it_is_back() {
    let mut fleet = fleet(1);
    let mut reports = Vec::new();
    let attempt = go(&mut fleet, AT(0), 0, 0);
    fleet.unauthorized(AT(0), &attempt, &mut reports);
    let place = Place { endpoint: EndpointId(0), key: KeyId(1) };
    assert_eq!(reports, [Report::KeyRests { place, until: AT(60) }]);
    assert_eq!(told(&mut fleet, AT(59)), []);
    assert_eq!(told(&mut fleet, AT(60)), [Report::KeyIsBack { place }]);
    assert_eq!(told(&mut fleet, AT(61)), []);
}
