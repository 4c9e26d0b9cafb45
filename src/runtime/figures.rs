//! What requests come to: how many there are, how many fail, and how long they take. By these a new process is judged that
//! is on probation.

use std::array;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Threads that count beside each other without sharing a cache line; further ones share.
const SHARDS: usize = 16;
/// Buckets of times for each doubling: one is an eighth wide at most.
const PER_DOUBLING: usize = 8;
/// The last one begins at a good two minutes.
const BUCKETS: usize = 25 * PER_DOUBLING;
/// Requests of so many minutes are those of lately.
const LATELY: usize = 10;

/// Counts the requests of this process. One addition for each, to memory that hardly another thread writes.
#[derive(Debug, Default)]
pub struct Figures {
    shards: Box<[Shard; SHARDS]>,
}

#[derive(Debug)]
#[repr(align(128))]
struct Shard {
    times: [AtomicU64; BUCKETS],
    failed: AtomicU64,
}

impl Default for Shard {
    fn default() -> Shard {
        Shard {
            times: array::from_fn(|_| AtomicU64::default()),
            failed: AtomicU64::default(),
        }
    }
}

impl Figures {
    /// For a request that was answered with `status`, which began after `time`.
    pub fn count(&self, status: u16, time: Duration) {
        let shard = &self.shards[shard()];
        // Relaxed: whoever reads them wants to know roughly.
        shard.times[bucket(time)].fetch_add(1, Ordering::Relaxed);
        if status >= 500 {
            shard.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All of them so far.
    pub fn totals(&self) -> Totals {
        let sum = |count: &dyn Fn(&Shard) -> u64| self.shards.iter().map(count).sum();
        Totals {
            times: (0..BUCKETS)
                .map(|i| sum(&|shard| shard.times[i].load(Ordering::Relaxed)))
                .collect(),
            failed: sum(&|shard| shard.failed.load(Ordering::Relaxed)),
        }
    }
}

/// Which shard is this thread's.
fn shard() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    OWN.get()
}

/// Microseconds up to 7 have a bucket each; from there on, each doubling has eight.
fn bucket(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let Some(doublings) = micros.checked_ilog2().and_then(|log| log.checked_sub(3)) else {
        return micros as usize;
    };
    let eighth = (micros >> doublings) as usize % PER_DOUBLING;
    ((doublings as usize + 1) * PER_DOUBLING + eighth).min(BUCKETS - 1)
}

/// Where the next bucket begins.
fn end_of(bucket: usize) -> Duration {
    let next = bucket + 1;
    let micros = match (next / PER_DOUBLING).checked_sub(1) {
        None => next as u64,
        Some(doublings) => ((PER_DOUBLING + next % PER_DOUBLING) as u64) << doublings,
    };
    Duration::from_micros(micros)
}

/// All requests up to a moment.
#[derive(Clone, Debug)]
pub struct Totals {
    times: Box<[u64]>,
    failed: u64,
}

impl Totals {
    /// What has come since an `earlier` moment.
    pub fn since(&self, earlier: &Totals) -> Summary {
        // Counted while they were read: one may be missing where the other has it.
        let pairs = self.times.iter().zip(&earlier.times);
        let times: Vec<u64> = pairs.map(|(now, then)| now.saturating_sub(*then)).collect();
        let requests: u64 = times.iter().sum();
        Summary {
            requests,
            failed: self.failed.saturating_sub(earlier.failed).min(requests),
            p99: percentile(&times, requests, 99),
        }
    }
}

/// The time within which `percent` of the requests were answered, as exactly as the buckets are wide.
fn percentile(times: &[u64], requests: u64, percent: u64) -> Duration {
    let rank = (requests * percent).div_ceil(100);
    let mut count = 0;
    let found = times.iter().position(|times| {
        count += times;
        count >= rank
    });
    match (requests, found) {
        (1.., Some(bucket)) => end_of(bucket),
        _ => Duration::ZERO,
    }
}

/// Requests of some time, in three numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub requests: u64,
    /// Those that were answered with a status from 500 on.
    pub failed: u64,
    /// The time that 99 of a hundred were answered in; zero without requests.
    #[serde(rename = "p99_us", with = "micros")]
    pub p99: Duration,
}

impl Summary {
    /// The share of those that failed.
    pub fn failures(&self) -> f64 {
        match self.requests {
            0 => 0.0,
            requests => self.failed as f64 / requests as f64,
        }
    }
}

/// Whole microseconds.
mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_micros)
    }
}

/// What the requests of lately are told by: the totals of every minute.
#[derive(Debug, Default)]
pub struct Recent(VecDeque<Totals>);

impl Recent {
    /// Must be called once in a minute.
    pub fn mark(&mut self, totals: Totals) {
        if self.0.len() > LATELY {
            self.0.pop_front();
        }
        self.0.push_back(totals);
    }

    /// The last ten minutes before `now`, or all there is of a younger process.
    pub fn until(&self, now: &Totals) -> Summary {
        self.0
            .front()
            .map_or_else(Summary::default, |oldest| now.since(oldest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_failures_and_the_slowest_hundredth_are_told() {
        let figures = Figures::default();
        let begin = figures.totals();
        for i in 0..1000 {
            let slow = i % 50 == 0;
            let time = if slow { 400 } else { 3 };
            figures.count(if slow { 502 } else { 404 }, Duration::from_millis(time));
        }
        let summary = figures.totals().since(&begin);
        assert_eq!((summary.requests, summary.failed), (1000, 20));
        assert!(
            (400..=450).contains(&summary.p99.as_millis()),
            "{summary:?}"
        );
        assert_eq!(summary.failures(), 0.02);
        let now = figures.totals();
        assert_eq!(now.since(&now), Summary::default());
        for _ in 0..99 {
            figures.count(200, Duration::from_micros(5));
        }
        figures.count(200, Duration::from_secs(9));
        assert_eq!(figures.totals().since(&now).p99, Duration::from_micros(6));
    }

    #[test]
    fn what_is_long_ago_is_not_of_lately() {
        let (figures, mut recent) = (Figures::default(), Recent::default());
        assert_eq!(recent.until(&figures.totals()), Summary::default());
        figures.count(500, Duration::ZERO);
        recent.mark(figures.totals());
        for _ in 0..LATELY {
            figures.count(200, Duration::ZERO);
            recent.mark(figures.totals());
        }
        assert_eq!(recent.until(&figures.totals()).requests, 10);
        assert_eq!(recent.until(&figures.totals()).failed, 0);
        recent.mark(figures.totals());
        assert_eq!(recent.until(&figures.totals()).requests, 9);
    }

    proptest! {
        #[test]
        fn a_time_lies_in_its_bucket_which_is_narrow(micros in 0_u64..200_000_000) {
            let index = bucket(Duration::from_micros(micros));
            let begin = index.checked_sub(1).map_or(Duration::ZERO, end_of);
            let end = end_of(index);
            prop_assert!(begin <= Duration::from_micros(micros));
            if index < BUCKETS - 1 {
                prop_assert!(Duration::from_micros(micros) < end);
                prop_assert!((end - begin).as_micros() as u64 <= micros / 8 + 1);
            }
        }
    }
}
