//! One backend address within a pool: how to connect to it, and how it fares.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::{HttpPeer, PeerOptions, Scheme};

use super::backend;

/// A place that requests of a pool can go to.
#[derive(Debug)]
pub struct Member {
    index: usize,
    name: Arc<str>,
    authority: Arc<str>,
    weight: u32,
    peer: HttpPeer,
    health: Health,
    load: Arc<Load>,
}

impl Member {
    /// `authority` is what its backend was written as; `options` and `group_key` make up the connections to it.
    pub fn new(
        index: usize,
        address: SocketAddr,
        authority: Arc<str>,
        weight: u32,
        options: PeerOptions,
        group_key: u64,
    ) -> Member {
        Member {
            index,
            name: backend::display_name(&address).into(),
            authority,
            weight,
            // The constructors of `HttpPeer` would resolve a name here, and panic when they cannot.
            peer: HttpPeer {
                _address: address,
                scheme: Scheme::HTTP,
                sni: String::new(),
                proxy: None,
                client_cert_key: None,
                group_key,
                options,
            },
            health: Health::default(),
            load: Arc::default(),
        }
    }

    /// Shares the counters with the member at this address before a reload: its requests are still running.
    pub fn adopt_load(&mut self, previous: &Member) {
        self.load = previous.load.clone();
    }

    /// Starts as that member was, and goes its own way from there: the probes of `previous` are about to stop.
    pub fn adopt_health(&mut self, previous: &Member) {
        self.health = previous.health.copy();
    }

    /// Position in its pool.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The address as in `$upstream_addr`: `127.0.0.1:9001`, `[::1]:9001`, `unix:/run/app.sock`.
    pub fn backend(&self) -> &Arc<str> {
        &self.name
    }

    /// `Host` of a request that is meant for this member itself.
    pub fn authority(&self) -> &Arc<str> {
        &self.authority
    }

    pub fn weight(&self) -> u32 {
        self.weight
    }

    pub fn address(&self) -> &SocketAddr {
        &self.peer._address
    }

    /// How to connect, for Pingora's proxy.
    pub fn peer(&self) -> Box<HttpPeer> {
        Box::new(self.peer.clone())
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Counts a request in, for as long as the returned value lives.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.load.in_flight.fetch_add(1, Ordering::Relaxed);
        self.load.requests.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }
}

/// What a member has to do, and how much of it failed.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
}

impl Load {
    /// Requests that it is busy with.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Requests that it was ever given, tries that failed included.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Those of them that it did not answer.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// A request that a member is busy with.
#[derive(Debug)]
pub struct InFlight(Arc<Member>);

impl InFlight {
    /// The member did not answer: no connection, or one that broke or fell silent.
    pub fn failed(&self) {
        self.0.load.failures.fetch_add(1, Ordering::Relaxed);
    }
}

impl Deref for InFlight {
    type Target = Arc<Member>;

    fn deref(&self) -> &Arc<Member> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.load.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a member is up, since when, and what its last probe found wrong.
#[derive(Debug)]
pub struct Health {
    up: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When it last went up or down; `None` when it never did.
    pub since: Option<SystemTime>,
    /// Why the last failed probe failed; `None` after a passed one, except that a member that is down keeps its reason
    /// until it is up.
    pub reason: Option<Arc<str>>,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            up: AtomicBool::new(true),
            record: Mutex::default(),
        }
    }
}

impl Health {
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub fn record(&self) -> Record {
        self.record.lock().clone()
    }

    pub fn failed(&self, reason: Arc<str>) {
        self.record.lock().reason = Some(reason);
    }

    pub fn passed(&self) {
        if self.is_up() {
            self.record.lock().reason = None;
        }
    }

    pub fn change(&self, up: bool, now: SystemTime) {
        let mut record = self.record.lock();
        self.up.store(up, Ordering::Relaxed);
        record.since = Some(now);
        if up {
            record.reason = None;
        }
    }

    fn copy(&self) -> Health {
        Health {
            up: AtomicBool::new(self.is_up()),
            record: Mutex::new(self.record()),
        }
    }
}
