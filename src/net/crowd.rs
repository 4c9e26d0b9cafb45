//! How many connections there are: of the process, of a listener, of one client.
//!
//! A process has only so many file descriptors. Before they run out it stops accepting, so that clients wait where they
//! cost nothing, in the queue of the socket, and those inside still get what their requests need. A listener and a client
//! have bounds of their own, at which a client is told.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use parking_lot::Mutex;
use pingora_timeout::timeout;
use tokio::sync::Notify;

/// The share of the descriptors, and the least number, that is kept for what those inside still need: backends, files.
const RESERVE: u64 = 8;
const LEAST_RESERVE: u64 = 64;
/// How long to wait for a connection to end before another look: descriptors may be free again for other reasons.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// What happens often is logged once in so long.
const QUIET: Duration = Duration::from_secs(60);

/// The connections of the process, and the room for them.
///
/// The system gives the lowest descriptor that is free. So the number of the last one that was accepted tells how many
/// are in use, whatever for, without counting any.
#[derive(Debug)]
pub struct Room {
    /// Descriptors from this number on are in reserve.
    reserve: u64,
    open: AtomicUsize,
    /// How many connections there may be, as long as descriptors are short.
    limit: AtomicUsize,
    /// One has ended while they were.
    left: Notify,
    /// Times that a socket was not accepted from.
    pub waits: Occasions,
    /// Times that the system had no descriptor.
    pub exhausted: Occasions,
}

impl Room {
    /// For as many connections as this process may have descriptors for.
    pub fn of_process() -> Arc<Room> {
        let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        Room::new(soft.saturating_sub(LEAST_RESERVE.max(soft / RESERVE)))
    }

    fn new(reserve: u64) -> Arc<Room> {
        Arc::new(Room {
            reserve,
            open: AtomicUsize::new(0),
            limit: AtomicUsize::new(usize::MAX),
            left: Notify::new(),
            waits: Occasions::default(),
            exhausted: Occasions::default(),
        })
    }

    /// Waits until there is room for one more.
    pub async fn wait(&self) {
        while self.open.load(Ordering::Acquire) >= self.limit.load(Ordering::Acquire) {
            if self.waits.note(Instant::now()) {
                log::warn!(
                    "{} file descriptors are in use: new connections wait until others end",
                    self.reserve
                );
            }
            if timeout(LOOK_AGAIN, self.left.notified()).await.is_err() {
                return;
            }
        }
    }

    /// A connection came with this descriptor.
    pub(super) fn look(&self, descriptor: RawFd) {
        let is_short = u64::try_from(descriptor).is_ok_and(|number| number >= self.reserve);
        let limit = match is_short {
            true => self.open.load(Ordering::Acquire).max(1),
            false => usize::MAX,
        };
        self.limit.store(limit, Ordering::Release);
    }

    fn enter(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
    }

    fn leave(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) >= self.limit.load(Ordering::Acquire) {
            // It is kept for whoever is about to wait.
            self.left.notify_one();
        }
    }
}

/// Something that happens at a bound: counted each time, told now and then.
#[derive(Debug, Default)]
pub struct Occasions {
    count: AtomicU64,
    told: Mutex<Option<Instant>>,
}

impl Occasions {
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts one; whether it is to be told.
    pub fn note(&self, now: Instant) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut told = self.told.lock();
        let is_due = told.is_none_or(|told| now.duration_since(told) >= QUIET);
        if is_due {
            *told = Some(now);
        }
        is_due
    }
}

/// The connections of one service.
#[derive(Debug)]
pub struct Crowd {
    room: Arc<Room>,
    open: AtomicUsize,
    /// By listener.
    groups: Mutex<HashMap<Arc<str>, Group>>,
}

/// The connections of one listener.
#[derive(Debug, Default)]
struct Group {
    open: usize,
    /// By address, or network.
    clients: HashMap<IpAddr, usize>,
    full: Arc<Occasions>,
    full_of_one: Arc<Occasions>,
}

/// What a listener says of its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub open: usize,
    /// Those that were turned away because it had too many.
    pub refused: u64,
    /// Those that were turned away because their client had.
    pub refused_of_one: u64,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The listener has as many connections as it takes.
    Listener,
    /// The client has.
    Client,
}

/// How many a listener takes.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    pub in_all: usize,
    pub of_one: usize,
}

impl Crowd {
    pub fn new(room: Arc<Room>) -> Arc<Crowd> {
        Arc::new(Crowd {
            room,
            open: AtomicUsize::new(0),
            groups: Mutex::default(),
        })
    }

    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Connections that are open, let in or not.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn come(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.room.enter();
    }

    pub(super) fn go(&self) {
        self.room.leave();
        self.open.fetch_sub(1, Ordering::Release);
    }

    pub fn counts(&self, listener: &str) -> Counts {
        let groups = self.groups.lock();
        groups
            .get(listener)
            .map_or_else(Counts::default, |group| Counts {
                open: group.open,
                refused: group.full.count(),
                refused_of_one: group.full_of_one.count(),
            })
    }

    /// Lets one more connection of a listener in. `client` is `None` for one that stands for many.
    ///
    /// # Errors
    /// When there are too many.
    pub fn enter(
        self: &Arc<Self>,
        listener: &Arc<str>,
        client: Option<IpAddr>,
        most: Most,
    ) -> Result<Place, Full> {
        let client = client.map(network);
        let mut groups = self.groups.lock();
        let group = match groups.get_mut(listener) {
            Some(group) => group,
            None => groups.entry(listener.clone()).or_default(),
        };
        let (occasions, full) = if group.open >= most.in_all {
            (group.full.clone(), Full::Listener)
        } else if client.is_some_and(|client| {
            let clients = &group.clients;
            clients
                .get(&client)
                .is_some_and(|open| *open >= most.of_one)
        }) {
            (group.full_of_one.clone(), Full::Client)
        } else {
            group.open += 1;
            if let Some(client) = client {
                *group.clients.entry(client).or_default() += 1;
            }
            return Ok(Place {
                crowd: self.clone(),
                listener: listener.clone(),
                client,
            });
        };
        drop(groups);
        if occasions.note(Instant::now()) {
            match (full, client) {
                (Full::Client, Some(client)) => log::warn!(
                    "listener {listener}: {} connections of {client}, as many as one may have: \
                     more are refused",
                    most.of_one
                ),
                _ => log::warn!(
                    "listener {listener}: {} connections, as many as it takes: more are refused",
                    most.in_all
                ),
            }
        }
        Err(full)
    }
}

/// A connection that was let in, counted until it is dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Arc<Crowd>,
    listener: Arc<str>,
    client: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut groups = self.crowd.groups.lock();
        let Some(group) = groups.get_mut(&self.listener) else {
            return;
        };
        group.open -= 1;
        if let Some(client) = self.client
            && let Some(open) = group.clients.get_mut(&client)
        {
            *open -= 1;
            if *open == 0 {
                group.clients.remove(&client);
            }
        }
    }
}

/// Whoever has one address of IPv6 has all of its /64.
pub(super) fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() & !u128::from(u64::MAX);
            Ipv6Addr::from_bits(prefix).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listener_and_client_have_bounds_of_their_own() {
        let crowd = Crowd::new(Room::new(100));
        let (web, other): (Arc<str>, Arc<str>) = ("web".into(), "other".into());
        let most = Most {
            in_all: 3,
            of_one: 2,
        };
        let enter = |listener: &Arc<str>, client: &str| {
            crowd.enter(listener, Some(client.parse().unwrap()), most)
        };
        let first = enter(&web, "2001:db8::1").unwrap();
        let second = enter(&web, "2001:db8::ffff:2").unwrap();
        assert_eq!(enter(&web, "2001:db8::3").unwrap_err(), Full::Client);
        let third = enter(&web, "::ffff:192.0.2.1").unwrap();
        assert_eq!(enter(&web, "192.0.2.2").unwrap_err(), Full::Listener);
        let elsewhere = enter(&other, "2001:db8::4").unwrap();
        let counts = Counts {
            open: 3,
            refused: 1,
            refused_of_one: 1,
        };
        assert_eq!(crowd.counts("web"), counts);
        drop(first);
        let fourth = enter(&web, "2001:db8::5").unwrap();
        drop((second, third, fourth, elsewhere));
        assert_eq!(crowd.counts("web").open, 0);
        let groups = crowd.groups.lock();
        assert!(groups.values().all(|group| group.clients.is_empty()));
    }

    #[test]
    fn who_stands_for_many_is_one_of_all_only() {
        let crowd = Crowd::new(Room::new(100));
        let most = Most {
            in_all: 2,
            of_one: 1,
        };
        let enter = || crowd.enter(&"web".into(), None, most);
        let both = (enter().unwrap(), enter().unwrap());
        assert_eq!(enter().unwrap_err(), Full::Listener);
        drop(both);
        assert!(enter().is_ok());
    }

    #[tokio::test]
    async fn whoever_waits_for_room_gets_it() {
        let crowd = Crowd::new(Room::new(20));
        for descriptor in [19, 20] {
            crowd.room().wait().await;
            crowd.come();
            crowd.room().look(descriptor);
        }
        let waiting = {
            let crowd = crowd.clone();
            tokio::spawn(async move { crowd.room().wait().await })
        };
        while crowd.room().waits.count() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        crowd.go();
        waiting.await.unwrap();
        crowd.come();
        crowd.room().look(12);
        crowd.room().wait().await;
        assert_eq!(crowd.room().waits.count(), 1);
    }

    #[test]
    fn occasions_are_told_once_in_a_while() {
        let occasions = Occasions::default();
        let now = Instant::now();
        assert!(occasions.note(now));
        assert!(!occasions.note(now + QUIET / 2));
        assert!(occasions.note(now + QUIET));
        assert_eq!(occasions.count(), 3);
    }
}
