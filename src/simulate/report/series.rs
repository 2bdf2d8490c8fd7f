//! A run's points made few enough for a chart, so that the page of fourteen days is no larger than an hour's.
//!
//! What must not be smoothed away keeps its maximum (queue, in flight, P99) or its sum (losses); the rest is a
//! mean.

use crate::simulate::Point;

/// Joins neighbours until there are at most `most` points.
pub(super) fn thinned(points: &[Point], most: usize) -> Vec<Point> {
    let per = points.len().div_ceil(most.max(1)).max(1);
    points.chunks(per).map(joined).collect()
}

fn joined(points: &[Point]) -> Point {
    let peak = |of: fn(&Point) -> u32| points.iter().map(of).max().unwrap_or_default();
    let last = points.last();
    let percentile = |of: fn((f64, f64, f64)) -> f64| points.iter().filter_map(move |p| p.latency.map(of));
    let slowest = percentile(|l| l.2).fold(f64::NAN, f64::max);
    let latency = mean(percentile(|l| l.0)).zip(mean(percentile(|l| l.1)));
    let low = mean(points.iter().filter_map(|p| p.band.map(|band| band.0)));
    let high = mean(points.iter().filter_map(|p| p.band.map(|band| band.1)));
    Point {
        t: last.map_or(0.0, |p| p.t),
        arrivals: mean(points.iter().map(|p| p.arrivals)).unwrap_or_default(),
        forecast: mean(points.iter().filter_map(|p| p.forecast)),
        band: low.zip(high),
        limit: last.map_or(0, |p| p.limit),
        need: last.map_or(0, |p| p.need),
        in_flight: peak(|p| p.in_flight),
        queued: peak(|p| p.queued),
        replicas: peak(|p| p.replicas),
        latency: latency.map(|(p50, p95)| (p50, p95, slowest)),
        lost: points.iter().map(|p| p.lost).fold(0, u32::saturating_add),
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.filter(|v| v.is_finite()).fold((0.0, 0_u32), |(sum, n), v| (sum + v, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_stay_and_means_are_means() {
        let point = |t, arrivals, queued, latency| Point {
            t,
            arrivals,
            queued,
            latency,
            lost: 1,
            ..Point::default()
        };
        let points = [
            point(1.0, 10.0, 0, None),
            point(2.0, 20.0, 7, Some((1.0, 2.0, 9.0))),
            point(3.0, 30.0, 2, Some((2.0, 3.0, 4.0))),
            point(4.0, 40.0, 1, None),
        ];
        let few = thinned(&points, 2);
        assert_eq!(few.len(), 2);
        assert_eq!((few[0].t, few[0].arrivals, few[0].queued, few[0].lost), (2.0, 15.0, 7, 2));
        assert_eq!(few[1].latency, Some((2.0, 3.0, 4.0)));
        assert_eq!(thinned(&points, 600), points);
        assert_eq!(thinned(&[], 600), []);
        assert!(thinned(&points, 0).len() == 1);
    }
}
