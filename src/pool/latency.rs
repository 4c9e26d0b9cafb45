//! How quick a member lately was: a peak-sensitive moving average, as Finagle's and Linkerd's "peak EWMA".
//!
//! A slower answer than expected is believed at once; quicker ones lower the expectation bit by bit, and so does time in
//! which nobody asks, so that a member which was slow is tried again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// After this long, in seconds, two thirds (`1 - 1/e`) of what is known are forgotten.
const DECAY: f32 = 10.0;
/// What a failure counts as, at least: a member that fails quickly must not look quick.
const FAILURE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Latency {
    /// When the first answer came; times are counted from here.
    first: OnceLock<Instant>,
    /// An [`Estimate`], so that it changes as one; 0 before the first answer.
    state: AtomicU64,
}

#[derive(Clone, Copy)]
struct Estimate {
    seconds: f32,
    /// Of the last answer, in milliseconds. It wraps after 49 days, which then may look like none.
    at: u32,
}

impl Estimate {
    fn pack(self) -> u64 {
        u64::from(self.seconds.to_bits()) << 32 | u64::from(self.at)
    }

    fn unpack(state: u64) -> Option<Estimate> {
        (state != 0).then_some(Estimate {
            seconds: f32::from_bits((state >> 32) as u32),
            at: state as u32,
        })
    }

    /// Which part of it still counts.
    fn freshness(self, at: u32) -> f32 {
        // the clock of another thread may have been read earlier
        let age = (at.wrapping_sub(self.at) as i32).max(0);
        match age {
            0 => 1.0,
            age => (-(age as f32) / 1000.0 / DECAY).exp(),
        }
    }
}

impl Latency {
    pub fn record(&self, sample: Duration, now: Instant) {
        let at = self.milliseconds(now);
        // not 0, which stands for nothing known
        let sample = sample.as_secs_f32().max(1e-6);
        let change = |state| {
            let seconds = match Estimate::unpack(state) {
                Some(estimate) if sample < estimate.seconds => {
                    let freshness = estimate.freshness(at);
                    estimate.seconds * freshness + sample * (1.0 - freshness)
                }
                _ => sample,
            };
            Some(Estimate { seconds, at }.pack())
        };
        // Relaxed: nothing else is read by it. It does not fail, for `change` always changes.
        let _ = self
            .state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    pub fn record_failure(&self, after: Duration, now: Instant) {
        self.record(after.max(FAILURE), now);
    }

    /// In seconds; `None` before the first answer.
    pub fn get(&self, now: Instant) -> Option<f64> {
        let estimate = Estimate::unpack(self.state.load(Ordering::Relaxed))?;
        let freshness = estimate.freshness(self.milliseconds(now));
        Some(f64::from(estimate.seconds * freshness))
    }

    fn milliseconds(&self, now: Instant) -> u32 {
        let first = *self.first.get_or_init(|| now);
        now.saturating_duration_since(first).as_millis() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(latency: &Latency, now: Instant) -> f64 {
        (latency.get(now).expect("an answer came") * 1000.0).round()
    }

    #[test]
    fn slow_answers_count_at_once_and_quick_ones_bit_by_bit() {
        let (latency, start) = (Latency::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(latency.get(start), None);
        latency.record(Duration::from_millis(10), start);
        assert_eq!(milliseconds(&latency, start), 10.0);
        latency.record(Duration::from_millis(500), after(1));
        assert_eq!(milliseconds(&latency, after(1)), 500.0);
        latency.record(Duration::from_millis(10), after(11));
        // 500 / e + 10 * (1 - 1 / e)
        assert_eq!(milliseconds(&latency, after(11)), 190.0);
        // so does time alone
        assert_eq!(milliseconds(&latency, after(21)), 70.0);
        latency.record(Duration::from_millis(300), after(21));
        assert_eq!(milliseconds(&latency, after(21)), 300.0);
    }

    #[test]
    fn a_quick_failure_is_not_a_quick_answer() {
        let (latency, now) = (Latency::default(), Instant::now());
        latency.record_failure(Duration::from_micros(50), now);
        assert_eq!(milliseconds(&latency, now), 1000.0);
        latency.record_failure(Duration::from_secs(3), now);
        assert_eq!(milliseconds(&latency, now), 3000.0);
    }

    #[test]
    fn clocks_that_go_backwards_and_answers_without_time_do_no_harm() {
        let (latency, start) = (Latency::default(), Instant::now());
        let later = start + Duration::from_secs(5);
        latency.record(Duration::ZERO, later);
        latency.record(Duration::from_millis(7), start);
        assert_eq!(milliseconds(&latency, start), 7.0);
        assert_eq!(milliseconds(&latency, later), 7.0);
    }
}
