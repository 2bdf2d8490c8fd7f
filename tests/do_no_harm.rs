//! On every workload and every upstream of the suite, in short: `predictive` is never worse than its ceiling as a fixed
//! limit, by more than half a point in SLO or 5 % of the P99. The long form is in `docs/results.md`.

use tidegate::simulate::suite::harm::{self, Compared};

/// Some minutes of each; more where they would be too few requests for a percentile.
fn short(workload: &str) -> String {
    let length = match workload {
        "idle" => "3000s",
        "spike" => "600s",
        _ => "400s",
    };
    format!("{workload}{}for={length}", if workload.contains(':') { "," } else { ":" })
}

#[test]
fn predictive_is_never_worse_than_its_ceiling() {
    let all = harm::compare(1, &short, &mut |_| {}).expect("the scenarios are right");
    assert_eq!(all.len(), harm::WORKLOADS.len() * harm::UPSTREAMS.len());
    let short_of_requests: Vec<&Compared> = all.iter().filter(|c| c.fixed.requests < 100).collect();
    assert!(short_of_requests.is_empty(), "{short_of_requests:?}");
    let harmed: Vec<&Compared> = all.iter().filter(|c| c.harm()).collect();
    assert!(harmed.is_empty(), "{harmed:#?}");
}

#[test]
fn harm_is_seen() {
    let all =
        harm::compare(1, &|_| "poisson:rps=5,for=60s".into(), &mut |_| {}).expect("the scenarios are right");
    let mut one = all.into_iter().next().expect("a comparison");
    assert!(!one.harm());
    one.ours.p99 = one.fixed.p99 * 1.06;
    assert!(one.harm());
    one.ours.p99 = one.fixed.p99;
    one.ours.in_slo = one.fixed.in_slo - 0.6;
    assert!(one.harm());
}
