//! Quantiles, error rate and throughput over the recent past, for one worker.
//!
//! The window is cut into [`SLOTS`] slots that take turns: the oldest is emptied to become the newest.
//! So the window covers between five sixths and the whole of its length. A histogram of cumulative
//! buckets cannot tell the p99 of the last minute without a Prometheus server; this can.
//!
//! Time is handed in. [`Shard`](super::shard::Shard) owns one window per worker; a [`View`] adds them up.

use std::time::Duration;

use hdrhistogram::{CreationError, Histogram};

use crate::policy::units::MonoTime;
use crate::telemetry::record::Spans;

/// Slots of a window.
pub(super) const SLOTS: u64 = 6;

/// The parts of a request that have quantiles, as values of the label `stage`.
pub(super) const STAGES: [&str; 4] = ["queue", "ttft", "upstream", "total"];

/// Two significant digits: a quantile is off by less than one per cent, and a histogram takes 13 KiB.
const DIGITS: u8 = 2;
const LONGEST_MICROS: u64 = 3_600_000_000;

type Stages = [Histogram<u32>; STAGES.len()];

fn stages() -> Result<Stages, CreationError> {
    let one = || Histogram::new_with_bounds(1, LONGEST_MICROS, DIGITS);
    Ok([one()?, one()?, one()?, one()?])
}

#[derive(Debug)]
struct Slot {
    epoch: u64,
    requests: u64,
    errors: u64,
    stages: Stages,
}

/// The recent past of one worker.
#[derive(Debug)]
pub(super) struct Window {
    width: u64,
    slots: Vec<Slot>,
    /// Since the start, as Prometheus demands of a summary's `_count` and `_sum`.
    count: [u64; STAGES.len()],
    sum: [Duration; STAGES.len()],
}

impl Window {
    pub(super) fn new(length: Duration) -> Result<Self, CreationError> {
        let width = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX) / SLOTS;
        let slots = (0..SLOTS)
            .map(|_| Ok(Slot { epoch: 0, requests: 0, errors: 0, stages: stages()? }))
            .collect::<Result<_, CreationError>>()?;
        Ok(Self { width: width.max(1), slots, count: [0; STAGES.len()], sum: [Duration::ZERO; STAGES.len()] })
    }

    /// One request that ended `now`.
    pub(super) fn record(&mut self, now: MonoTime, error: bool, spans: &Spans) {
        let epoch = now.as_nanos() / self.width;
        let Some(slot) = self.slots.get_mut((epoch % SLOTS) as usize) else { return };
        if slot.epoch < epoch {
            slot.epoch = epoch;
            (slot.requests, slot.errors) = (0, 0);
            slot.stages.iter_mut().for_each(Histogram::reset);
        }
        slot.requests += 1;
        slot.errors += u64::from(error);
        let total = (!spans.turned_away_at_once).then_some(spans.total);
        for (i, span) in [spans.queue, spans.ttft, spans.upstream, total].into_iter().enumerate() {
            if let Some(span) = span {
                slot.stages[i].saturating_record(u64::try_from(span.as_micros()).unwrap_or(u64::MAX));
                self.count[i] += 1;
                self.sum[i] = self.sum[i].saturating_add(span);
            }
        }
    }
}

/// Several windows added up, as of one moment.
#[derive(Debug)]
pub(super) struct View {
    now: MonoTime,
    covered: Duration,
    requests: u64,
    errors: u64,
    stages: Stages,
    count: [u64; STAGES.len()],
    sum: [Duration; STAGES.len()],
}

impl View {
    /// Nothing seen yet, for windows of `length`, as of `now`.
    pub(super) fn new(now: MonoTime, length: Duration) -> Result<Self, CreationError> {
        let width = (u64::try_from(length.as_nanos()).unwrap_or(u64::MAX) / SLOTS).max(1);
        let oldest = (now.as_nanos() / width).saturating_sub(SLOTS - 1) * width;
        Ok(Self {
            now,
            covered: now.since(MonoTime::from_nanos(oldest)),
            requests: 0,
            errors: 0,
            stages: stages()?,
            count: [0; STAGES.len()],
            sum: [Duration::ZERO; STAGES.len()],
        })
    }

    /// Adds what is still inside `window`.
    pub(super) fn add(&mut self, window: &Window) {
        let epoch = self.now.as_nanos() / window.width;
        for slot in window.slots.iter().filter(|s| s.epoch + SLOTS > epoch && s.requests > 0) {
            self.requests += slot.requests;
            self.errors += slot.errors;
            for (mine, theirs) in self.stages.iter_mut().zip(&slot.stages) {
                // The bounds are the same constants, so this cannot fail.
                let _ = mine.add(theirs);
            }
        }
        for i in 0..STAGES.len() {
            self.count[i] += window.count[i];
            self.sum[i] = self.sum[i].saturating_add(window.sum[i]);
        }
    }

    /// Seconds below which the share `q` of stage `i` lies; NaN when nothing ended within the window.
    pub(super) fn quantile(&self, i: usize, q: f64) -> f64 {
        match self.stages.get(i) {
            Some(h) if !h.is_empty() => h.value_at_quantile(q) as f64 / 1e6,
            _ => f64::NAN,
        }
    }

    /// Observations of stage `i` since the start.
    pub(super) fn count(&self, i: usize) -> u64 {
        self.count.get(i).copied().unwrap_or(0)
    }

    /// Their sum in seconds.
    pub(super) fn sum(&self, i: usize) -> f64 {
        self.sum.get(i).map_or(0.0, Duration::as_secs_f64)
    }

    /// Errors per request within the window; 0 when there was none.
    pub(super) fn error_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.errors as f64 / self.requests as f64 }
    }

    /// Requests that ended per second of the window.
    pub(super) fn throughput(&self) -> f64 {
        self.requests as f64 / self.covered.as_secs_f64().max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const QUEUE: usize = 0;
    const TOTAL: usize = 3;

    fn spans(total: Duration) -> Spans {
        Spans { queue: None, connect: None, ttft: None, upstream: None, total, turned_away_at_once: false }
    }

    fn view(now: u64, windows: &[&Window]) -> View {
        let mut view = View::new(MonoTime::from_secs(now), MINUTE).unwrap();
        windows.iter().for_each(|w| view.add(w));
        view
    }

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() <= want * 0.01, "{got} is not within 1 % of {want}");
    }

    #[test]
    fn quantiles_are_those_of_the_samples_of_all_workers() {
        let (mut a, mut b) = (Window::new(MINUTE).unwrap(), Window::new(MINUTE).unwrap());
        for ms in 1..=1000_u64 {
            let w = if ms % 2 == 0 { &mut a } else { &mut b };
            w.record(MonoTime::from_secs(100), false, &spans(Duration::from_millis(ms)));
        }
        let view = view(101, &[&a, &b]);
        near(view.quantile(TOTAL, 0.5), 0.5);
        near(view.quantile(TOTAL, 0.95), 0.95);
        near(view.quantile(TOTAL, 0.99), 0.99);
        assert!(view.quantile(QUEUE, 0.5).is_nan());
        assert_eq!(view.count(TOTAL), 1000);
        near(view.sum(TOTAL), 500.5);
    }

    #[test]
    fn the_window_slides_and_empties_while_sum_and_count_stay() {
        let mut w = Window::new(MINUTE).unwrap();
        w.record(MonoTime::from_secs(5), true, &spans(Duration::from_secs(9)));
        w.record(MonoTime::from_secs(55), false, &spans(Duration::from_secs(1)));
        near(view(59, &[&w]).quantile(TOTAL, 0.99), 9.0);
        near(view(60, &[&w]).quantile(TOTAL, 0.99), 1.0);
        assert_eq!(view(60, &[&w]).error_rate(), 0.0, "the error has slid out");
        let late = view(110, &[&w]);
        assert!(late.quantile(TOTAL, 0.5).is_nan());
        assert_eq!((late.count(TOTAL), late.sum(TOTAL)), (2, 10.0));
        assert_eq!(late.throughput(), 0.0);
        // the slot of second 5 is taken again one turn later and holds nothing of before
        w.record(MonoTime::from_secs(61), false, &spans(Duration::from_secs(2)));
        near(view(62, &[&w]).quantile(TOTAL, 0.99), 2.0);
    }

    #[test]
    fn rates_are_of_the_time_that_was_covered() {
        let mut w = Window::new(MINUTE).unwrap();
        for n in 0..100 {
            w.record(MonoTime::from_secs(2), n % 4 == 0, &spans(Duration::from_millis(1)));
        }
        assert_eq!(view(4, &[&w]).throughput(), 25.0);
        assert_eq!(view(4, &[&w]).error_rate(), 0.25);
        // at 65 s the oldest slot begins at 10 s, so the requests of second 2 are gone
        assert_eq!(view(65, &[&w]).throughput(), 0.0);
    }

    #[test]
    fn a_request_turned_away_at_once_is_counted_but_has_no_latency() {
        let mut w = Window::new(MINUTE).unwrap();
        let refused = Spans { turned_away_at_once: true, ..spans(Duration::from_micros(50)) };
        w.record(MonoTime::from_secs(1), true, &refused);
        let view = view(1, &[&w]);
        assert!(view.quantile(TOTAL, 0.5).is_nan());
        assert_eq!(view.error_rate(), 1.0);
    }

    #[test]
    fn a_span_beyond_the_histogram_is_kept_as_its_longest() {
        let mut w = Window::new(MINUTE).unwrap();
        w.record(MonoTime::from_secs(1), false, &spans(Duration::from_secs(100_000)));
        near(view(1, &[&w]).quantile(TOTAL, 0.5), 3600.0);
    }
}
