//! How many TLS handshakes one client has under way.
//!
//! A handshake costs a signature and tens of kilobytes before anything is known of the client. Those beyond the limit
//! wait for their turn, no longer than a handshake may take; other clients notice nothing of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::crowd::network;

/// The clients that have handshakes under way.
#[derive(Default)]
pub struct Handshakes(Mutex<HashMap<IpAddr, Queue>>);

/// The handshakes of one client.
struct Queue {
    /// One for each handshake that may be under way and is not.
    turns: Arc<Semaphore>,
    /// How many are under way or wait.
    length: usize,
}

/// A place in the queue, given back when it is dropped.
pub struct Place<'a> {
    handshakes: &'a Handshakes,
    client: IpAddr,
    turns: Arc<Semaphore>,
    has_turn: bool,
}

impl Handshakes {
    /// Waits until fewer than `limit` handshakes of this client are under way.
    pub async fn enter(&self, client: IpAddr, limit: usize) -> Place<'_> {
        let mut place = self.queue_up(network(client), limit);
        let turn = place.turns.acquire().await;
        // It comes back with the place. None comes only from a semaphore that is closed, which nobody does.
        place.has_turn = turn.map(|turn| turn.forget()).is_ok();
        place
    }

    fn queue_up(&self, client: IpAddr, limit: usize) -> Place<'_> {
        let mut queues = self.0.lock();
        let queue = queues.entry(client).or_insert_with(|| Queue {
            turns: Arc::new(Semaphore::new(limit)),
            length: 0,
        });
        queue.length += 1;
        Place {
            handshakes: self,
            client,
            turns: queue.turns.clone(),
            has_turn: false,
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.has_turn {
            self.turns.add_permits(1);
        }
        if let Entry::Occupied(mut queue) = self.handshakes.0.lock().entry(self.client) {
            queue.get_mut().length -= 1;
            if queue.get().length == 0 {
                queue.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// The place, if there is no need to wait for it.
    fn now<T>(enter: impl Future<Output = T>) -> Option<T> {
        let enter = pin!(tokio::task::unconstrained(enter));
        match enter.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(place) => Some(place),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_client_waits_for_itself_alone() {
        let handshakes = Handshakes::default();
        let enter = |client: &str| handshakes.enter(client.parse().unwrap(), 2);
        let first = now(enter("2001:db8::1")).unwrap();
        let second = now(enter("2001:db8::ffff:2")).unwrap();
        assert!(now(enter("2001:db8::3")).is_none(), "the same network");
        let other = now(enter("2001:db8:0:1::3")).unwrap();
        let plain = now(enter("::ffff:192.0.2.1")).unwrap();
        drop(first);
        let third = now(enter("2001:db8::3")).unwrap();
        assert!(now(enter("2001:db8::4")).is_none());
        drop((second, third, other, plain));
        assert!(handshakes.0.lock().is_empty(), "nothing is kept");
    }

    #[tokio::test]
    async fn whoever_waits_gets_the_turn() {
        let handshakes = Handshakes::default();
        let client = "192.0.2.1".parse().unwrap();
        let first = handshakes.enter(client, 1).await;
        let mut second = pin!(handshakes.enter(client, 1));
        assert!(now(second.as_mut()).is_none());
        drop(first);
        second.await;
        assert!(handshakes.0.lock().is_empty());
    }
}
