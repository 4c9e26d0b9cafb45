//! Answers that clients do not take, and which of them are given up when there are too many.
//!
//! An answer whose client opens no window, or does not read what is sent, keeps what it holds until the time limit of
//! writing ends it; and a client may ask for a hundred on each of its connections. So what they hold together is bounded.
//! Beyond that, the connection with most of them loses the one that has waited longest, and gets no new ones (RFC 9113
//! section 8.7) while it leaves others waiting. Clients that take what they ask for, however slowly, and those that
//! leave a few answers waiting, are not the ones with most. (Envoy: `reset_high_memory_stream`.)
//!
//! Nothing is noted down here before an answer has stalled for a while: the others cost nothing.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What an answer that waits holds at most: the state of its request, pieces of it, and where the next one is read to.
pub(super) const HOLD: usize = 64 * 1024;

/// All answers of one service that wait for their clients.
#[derive(Debug, Default)]
pub struct Stalled {
    ledger: Mutex<Ledger>,
    /// How many connections get no new requests.
    closed: AtomicUsize,
}

#[derive(Debug, Default)]
struct Ledger {
    /// How many answers wait, in all.
    count: usize,
    /// The number of the answer that came last.
    last: u64,
    connections: HashMap<u64, Share>,
}

/// The answers that wait for one connection.
#[derive(Debug, Default)]
struct Share {
    /// The longest waiting first.
    answers: VecDeque<Answer>,
    /// Whether it has lost one.
    closed: bool,
}

#[derive(Debug)]
struct Answer {
    number: u64,
    /// Dropped to give it up.
    _keep: oneshot::Sender<()>,
}

/// One answer that waits, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    stalled: Arc<Stalled>,
    connection: u64,
    number: u64,
    keep: oneshot::Receiver<()>,
}

impl Stalled {
    /// Notes down an answer of that connection. All that wait may hold `most` bytes.
    pub(super) fn enter(self: &Arc<Stalled>, connection: u64, most: usize) -> Place {
        let (keep, kept) = oneshot::channel();
        let mut ledger = self.ledger.lock();
        ledger.last += 1;
        let number = ledger.last;
        let share = ledger.connections.entry(connection).or_default();
        share.answers.push_back(Answer {
            number,
            _keep: keep,
        });
        ledger.count += 1;
        while ledger.count > 1 && ledger.count.saturating_mul(HOLD) > most {
            self.give_up_one(&mut ledger);
        }
        Place {
            stalled: self.clone(),
            connection,
            number,
            keep: kept,
        }
    }

    /// Whether a connection gets no new requests for now.
    pub(super) fn refuses(&self, connection: u64) -> bool {
        if self.closed.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let ledger = self.ledger.lock();
        let share = ledger.connections.get(&connection);
        share.is_some_and(|share| share.closed)
    }

    fn give_up_one(&self, ledger: &mut Ledger) {
        let order = |share: &Share| {
            let first = share.answers.front().map(|answer| answer.number);
            (share.answers.len(), Reverse(first))
        };
        let shares = ledger.connections.iter();
        let most = shares.max_by_key(|(_, share)| order(share));
        let Some(connection) = most.map(|(connection, _)| *connection) else {
            return;
        };
        if let Some(share) = ledger.connections.get_mut(&connection)
            && !std::mem::replace(&mut share.closed, true)
            && self.closed.fetch_add(1, Ordering::Relaxed) == 0
        {
            log::warn!("too many answers wait for clients of HTTP/2, the oldest are given up");
        }
        self.remove(ledger, connection, None);
    }

    /// Removes that answer of a connection, or the first one.
    fn remove(&self, ledger: &mut Ledger, connection: u64, number: Option<u64>) {
        let Some(share) = ledger.connections.get_mut(&connection) else {
            return;
        };
        let position = match number {
            Some(number) => share.answers.iter().position(|a| a.number == number),
            None => Some(0),
        };
        if position.is_some_and(|position| share.answers.remove(position).is_some()) {
            ledger.count -= 1;
        }
        if share.answers.is_empty() {
            if share.closed {
                self.closed.fetch_sub(1, Ordering::Relaxed);
            }
            ledger.connections.remove(&connection);
        }
    }
}

impl Place {
    /// Ready when it is given up for others.
    pub(super) async fn given_up(&mut self) {
        // Nothing is ever sent: the other end is dropped.
        let _ = (&mut self.keep).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut ledger = self.stalled.ledger.lock();
        let (connection, number) = (self.connection, self.number);
        self.stalled.remove(&mut ledger, connection, Some(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_given_up(place: &mut Place) -> bool {
        place.keep.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn who_has_most_loses_the_oldest_and_gets_no_new_ones() {
        let stalled = Arc::new(Stalled::default());
        let most = 4 * HOLD;
        let mut modest = stalled.enter(1, most);
        let mut greedy: Vec<Place> = (0..3).map(|_| stalled.enter(2, most)).collect();
        assert!(!greedy.iter_mut().any(is_given_up));
        assert!(!stalled.refuses(2));

        greedy.push(stalled.enter(2, most));
        let given_up: Vec<bool> = greedy.iter_mut().map(is_given_up).collect();
        assert_eq!(given_up, [true, false, false, false]);
        assert!(!is_given_up(&mut modest));
        assert!(stalled.refuses(2) && !stalled.refuses(1));

        greedy.clear();
        assert!(!stalled.refuses(2));
        drop(modest);
        let ledger = stalled.ledger.lock();
        assert_eq!((ledger.count, ledger.connections.len()), (0, 0));
        assert_eq!(stalled.closed.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn among_equals_the_oldest_goes() {
        let stalled = Arc::new(Stalled::default());
        let mut places: Vec<Place> = (0..5).map(|n| stalled.enter(n, 3 * HOLD)).collect();
        let given_up: Vec<bool> = places.iter_mut().map(is_given_up).collect();
        assert_eq!(given_up, [true, true, false, false, false]);
    }

    #[test]
    fn one_may_always_wait() {
        let stalled = Arc::new(Stalled::default());
        assert!(!is_given_up(&mut stalled.enter(1, 1)));
    }
}
