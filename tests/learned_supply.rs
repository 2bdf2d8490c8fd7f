//! What is learned of the upstream, on the suite's scenarios, against who knows it from inside: exact pacing of a hosted
//! API, the best fixed limit of a batch server. With more seeds these are the tables of `docs/results.md`.

use tidegate::simulate::suite::{batch, hosted};

fn long(workload: &str) -> String {
    workload.to_owned()
}

#[test]
fn a_hosted_api_is_paced_as_if_its_buckets_were_known() {
    let all = hosted::compare(5, &long, &mut |_| {}).expect("the scenarios are right");
    assert_eq!(all.len(), 16);
    let said = |c: &hosted::Compared| {
        format!(
            "{} (deadlines: {}): {:.3} of exact pacing ({:.2} / {:.2}), {:.2} % refused, {} told ({})",
            c.row,
            c.deadlines,
            c.share(),
            c.ours.in_slo,
            c.exact.in_slo,
            100.0 * c.refusals(),
            c.ours.client_429,
            c.exact.client_429
        )
    };
    let good = |c: &hosted::Compared| {
        // below the limit nobody is refused by anybody, unless their own deadline is too short even for exact pacing, and
        // then not many more: who is told at once instead of being served too late is one of them
        let told = c.ours.client_429 == 0 || (c.deadlines && c.ours.client_429 * 2 <= c.exact.client_429 * 3);
        c.share() >= 0.97 && c.refusals() <= 0.005 && (c.beyond || told)
    };
    let short_of_it: Vec<String> = all.iter().filter(|c| !good(c)).map(said).collect();
    assert!(short_of_it.is_empty(), "{short_of_it:#?}");
}

#[test]
fn a_batch_server_s_limit_is_found_whatever_its_size() {
    let all = batch::compare(5, &long, &mut |_| {}).expect("the scenarios are right");
    assert_eq!(all.iter().map(|c| c.slots).collect::<Vec<_>>(), [32, 16, 64]);
    let said = |c: &batch::Compared| {
        let (share, best, ours) = (c.share(), c.fixed.in_slo, c.ours.in_slo);
        format!(
            "{} slots: {share:.3} of fixed:{} ({ours:.2} / {best:.2}), TTFT {:.2}",
            c.slots, c.limit, c.ours.ttft_p99
        )
    };
    // and whoever is admitted has the first token within 2 s
    let good = |c: &batch::Compared| c.share() >= 0.97 && c.ours.ttft_p99 <= 2.0;
    let short_of_it: Vec<String> = all.iter().filter(|c| !good(c)).map(said).collect();
    assert!(short_of_it.is_empty(), "{short_of_it:#?}");
}
