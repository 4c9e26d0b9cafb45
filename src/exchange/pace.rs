//! How fast an answer may go to its client.

use std::time::{Duration, Instant};

/// The pace of one answer, and how far it has come.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes per second.
    rate: u64,
    /// Bytes that the rate is not applied to, at the beginning.
    after: u64,
    /// When its body began.
    began: Option<Instant>,
    sent: u64,
}

/// The least that is sent at a time.
const LEAST: u64 = 1024;

impl Pace {
    pub fn new(rate: u64, after: u64) -> Pace {
        Pace {
            rate: rate.max(1),
            after,
            began: None,
            sent: 0,
        }
    }

    /// How long to wait before these bytes go out, which follow those before. As in nginx, what one second allows
    /// goes out at once.
    pub fn send(&mut self, bytes: u64, now: Instant) -> Duration {
        self.send_up_to(self.sent + bytes, now)
    }

    /// As [`Pace::send`], where `total` is what goes out with these bytes and those before. It may turn out to be less than
    /// it was taken for.
    pub fn send_up_to(&mut self, total: u64, now: Instant) -> Duration {
        let began = *self.began.get_or_insert(now);
        self.sent = total;
        let limited = self.sent.saturating_sub(self.after);
        let due = Duration::from_secs(limited / self.rate)
            + Duration::from_nanos(nanos(limited % self.rate, self.rate));
        let ahead = due.saturating_sub(Duration::from_secs(1));
        ahead.saturating_sub(now.saturating_duration_since(began))
    }

    /// How much to send at a time, at most `most`: eight pieces a second and more, so that no client takes it for a
    /// standstill.
    pub fn piece(&self, most: usize) -> usize {
        let piece = (self.rate / 8).max(LEAST);
        usize::try_from(piece).map_or(most, |piece| piece.min(most))
    }
}

/// `bytes` at `rate`, where they are fewer than it, in nanoseconds.
fn nanos(bytes: u64, rate: u64) -> u64 {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
    nanos.try_into().expect("less than a second")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_given_and_then_the_rate_holds() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(1000, 500);
        assert_eq!(pace.send(1500, at(0)), Duration::ZERO);
        assert_eq!(pace.send(100, at(0)), Duration::from_millis(100));
        assert_eq!(pace.send(100, at(100)), Duration::from_millis(100));
        assert_eq!(pace.send(1000, at(5000)), Duration::ZERO);
    }

    #[test]
    fn what_was_taken_for_more_is_made_up_for() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(1000, 0);
        assert_eq!(pace.send_up_to(3000, at(0)), Duration::from_secs(2));
        assert_eq!(pace.send_up_to(2500, at(2000)), Duration::ZERO);
        assert_eq!(pace.send(1000, at(2000)), Duration::from_millis(500));
    }

    #[test]
    fn an_answer_takes_as_long_as_its_rate_says() {
        let start = Instant::now();
        let mut pace = Pace::new(64 * 1024, 0);
        let (mut now, mut sent) = (start, 0u64);
        while sent < 1024 * 1024 {
            let piece = pace.piece(64 * 1024) as u64;
            now += pace.send(piece, now);
            sent += piece;
        }
        assert_eq!((now - start).as_secs(), 15);
    }

    #[test]
    fn pieces_are_neither_tiny_nor_more_than_asked_for() {
        assert_eq!(Pace::new(10, 0).piece(4096), 1024);
        assert_eq!(Pace::new(80 * 1024, 0).piece(64 * 1024), 10 * 1024);
        assert_eq!(Pace::new(u64::MAX, 0).piece(4096), 4096);
    }
}
