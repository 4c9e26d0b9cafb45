//! How long a client may keep others waiting for the body of its request.
//!
//! It has a stock of time, `silence` at most, which runs out while it is waited for, and only then: not while a backend is
//! slow to take what has come. What it sends fills the stock again, a second for each `rate` bytes. So a client may be
//! silent for the whole of it once; one that sends less than `rate` for long runs out, however evenly it trickles, and
//! what was sent fast at first does not pay for hours of that.

use std::time::{Duration, Instant};

/// What the bodies of a listener's requests must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The longest wait for more of a body.
    pub silence: Duration,
    /// Bytes per second, on average; 0: any number will do.
    pub rate: u32,
}

/// A client that owes the rest of a body.
#[derive(Clone, Copy, Debug)]
pub struct Owed {
    terms: Terms,
    /// What is left of its stock.
    left: Duration,
    /// Since when it is waited for.
    since: Option<Instant>,
}

impl Owed {
    pub fn new(terms: Terms) -> Owed {
        Owed {
            terms,
            left: terms.silence,
            since: None,
        }
    }

    /// The client is waited for, from now on if it was not before; until then it has time.
    pub fn wait(&mut self, now: Instant) -> Instant {
        *self.since.get_or_insert(now) + self.left
    }

    /// Whether the client is waited for.
    pub fn is_awaited(&self) -> bool {
        self.since.is_some()
    }

    /// The client is not waited for.
    pub fn pause(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.left = self.left.saturating_sub(now.duration_since(since));
        }
    }

    /// So many bytes have come. The clock is asked only if they were waited for.
    pub fn receive(&mut self, bytes: usize, now: impl FnOnce() -> Instant) {
        if self.is_awaited() {
            self.pause(now());
        }
        let earned = match (bytes, self.terms.rate) {
            (0, _) => Duration::ZERO,
            (_, 0) => self.terms.silence,
            (bytes, rate) => Duration::from_secs_f64(bytes as f64 / f64::from(rate)),
        };
        self.left = self.left.saturating_add(earned).min(self.terms.silence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// For how many seconds a client is borne with that sends so many bytes after each wait of so many seconds, up to an
    /// hour.
    fn borne(rate: u32, bytes: usize, wait: u64) -> u64 {
        let silence = seconds(60);
        let begin = Instant::now();
        let mut owed = Owed::new(Terms { silence, rate });
        let mut now = begin;
        loop {
            let until = owed.wait(now);
            now += seconds(wait);
            if now >= until || now > begin + seconds(3600) {
                return until.min(now).duration_since(begin).as_secs();
            }
            owed.receive(bytes, || now);
        }
    }

    #[test]
    fn silence_ends_it_in_time_and_so_does_a_trickle() {
        assert_eq!(borne(500, 0, 100), 60);
        assert_eq!(borne(500, 1, 100), 60);
        assert!((60..62).contains(&borne(500, 1, 1)));
        assert!((119..125).contains(&borne(500, 250, 1)));
        assert!((105..125).contains(&borne(500, 2500, 10)));
    }

    #[test]
    fn who_keeps_the_rate_may_take_for_ever() {
        for (bytes, wait) in [(500, 1), (5000, 10), (25_000, 50)] {
            assert!(borne(500, bytes, wait) >= 3600, "{bytes} in {wait} s");
        }
        assert!(borne(0, 1, 59) >= 3600, "without a rate any byte will do");
        assert_eq!(borne(0, 1, 61), 60);
    }

    #[test]
    fn a_burst_earns_no_more_than_the_stock() {
        let terms = Terms {
            silence: seconds(60),
            rate: 500,
        };
        let now = Instant::now();
        let mut owed = Owed::new(terms);
        owed.receive(100 << 20, || unreachable!("nobody has waited"));
        assert_eq!(owed.wait(now), now + seconds(60));
    }

    #[test]
    fn only_waiting_counts() {
        let terms = Terms {
            silence: seconds(60),
            rate: 500,
        };
        let now = Instant::now();
        let mut owed = Owed::new(terms);
        owed.wait(now);
        owed.pause(now + seconds(10));
        let later = now + seconds(1000);
        assert_eq!(owed.wait(later), later + seconds(50));
        assert_eq!(owed.wait(later + seconds(1)), later + seconds(50));
    }
}
