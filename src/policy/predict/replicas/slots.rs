//! Servers for an offered load: the fewest with which a request rarely waits.
//!
//! Erlang's delay formula: with `c` servers and load `a` (Poisson arrivals), `C = B / (1 − (a/c)(1 − B))`, where
//! the blocking probability follows `B₀ = 1, B_k = a·B_{k−1} / (k + a·B_{k−1})`. Exact for exponential service;
//! for less variable service fewer wait, so it errs on the safe side.

/// Above this load the square-root rule is as good, and the recursion no longer cheap.
const LARGE: f64 = 400.0;

/// The fewest servers with which at most the share `target` of requests waits, for an offered load `a`.
///
/// `target` is kept within 0.001 and 0.5. Above a load of 400 it is a + β√a (Halfin and Whitt 1981).
#[must_use]
pub fn slots_for(a: f64, target: f64) -> f64 {
    if a.is_nan() || a <= 0.0 {
        return 0.0;
    }
    let target = if target.is_finite() { target.clamp(0.001, 0.5) } else { 0.1 };
    if a > LARGE {
        let beta = (erlang_slots(LARGE, target) - LARGE) / LARGE.sqrt();
        return (a + beta * a.sqrt()).ceil().min(1e12);
    }
    erlang_slots(a, target)
}

fn erlang_slots(a: f64, target: f64) -> f64 {
    let mut blocking = 1.0;
    let mut servers = 0.0;
    // ten deviations above the load nobody waits, whatever the target
    while servers < a + 10.0 * a.sqrt() + 10.0 {
        servers += 1.0;
        blocking = a * blocking / (servers + a * blocking);
        if servers > a && blocking / (1.0 - a / servers * (1.0 - blocking)) <= target {
            break;
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_erlang_s_formula() {
        // C(3, 1) = 0.0909, C(4, 1) = 0.0204
        assert_eq!(slots_for(1.0, 0.10), 3.0);
        assert_eq!(slots_for(1.0, 0.09), 4.0);
        assert_eq!(slots_for(0.0, 0.1), 0.0);
        assert_eq!(slots_for(f64::NAN, 0.1), 0.0);
        // the square-root rule
        for a in [9.0_f64, 68.0, 300.0] {
            assert!((slots_for(a, 0.22) - a - a.sqrt()).abs() < 1.5, "{a}: {}", slots_for(a, 0.22));
        }
    }

    #[test]
    fn more_load_or_less_waiting_never_needs_fewer() {
        let mut last = 0.0;
        for n in 0..2_000 {
            let now = slots_for(f64::from(n) * 0.3, 0.1);
            assert!(now >= last && now >= slots_for(f64::from(n) * 0.3, 0.3), "{n}");
            last = now;
        }
        assert!(slots_for(1e300, 0.1).is_finite());
        assert!(slots_for(f64::INFINITY, 0.1).is_finite());
    }
}
