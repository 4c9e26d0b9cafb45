//! One backend address within a pool: how to connect to it, and how it fares.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::HttpPeer;

use super::backend;
use super::latency::Latency;
use super::passive::{Blame, Breaker, Passive};
use super::peer::{Connector, Dialer, Line, Needs};
use super::queue::Queue;
use super::sticky::Badge;

/// Where a member is, and what the file says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Position of its backend in the file.
    pub position: usize,
    pub address: SocketAddr,
    /// What its backend was written as: `Host` of a request that is meant for this member itself.
    pub authority: Arc<str>,
    /// Its share; none when it is 0.
    pub weight: u32,
    /// Whether it is for when no ordinary member can serve.
    pub backup: bool,
    /// How many requests it takes at a time.
    pub max_conns: Option<u64>,
}

/// A place that requests of a pool can go to.
#[derive(Debug)]
pub struct Member {
    place: Place,
    name: Arc<str>,
    dialer: Arc<Dialer>,
    health: Arc<Health>,
    breaker: Arc<Breaker>,
    /// What judges the requests that it gets, if anything does.
    passive: Option<Arc<Passive>>,
    kept: Arc<Kept>,
    post: OnceLock<Post>,
}

/// What a member has by belonging to a pool.
#[derive(Debug)]
pub struct Post {
    /// Where requests wait that it has no room for.
    pub queue: Arc<Queue>,
    /// What its clients come back with.
    pub badge: Option<Badge>,
}

/// What a member keeps over reloads. It has its cache lines to itself: each request writes to that of its member.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Kept {
    load: Load,
    latency: Latency,
    draining: Draining,
}

impl Kept {
    pub fn load(&self) -> &Load {
        &self.load
    }

    pub fn latency(&self) -> &Latency {
        &self.latency
    }
}

/// Whether an operator has taken a member out: what runs may finish, nothing new begins.
#[derive(Debug, Default)]
struct Draining {
    now: AtomicBool,
    /// When that was last said or taken back.
    since: Mutex<Option<SystemTime>>,
}

/// Why a member gets no requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Its health checks fail.
    Down,
    /// An operator said so.
    Draining,
    /// Its weight is 0.
    Drained,
    /// Requests failed there lately.
    Ejected,
}

impl Member {
    pub fn new(place: Place, connector: &Connector) -> Member {
        Member {
            name: backend::display_name(&place.address).into(),
            dialer: Arc::new(Dialer::new(
                connector,
                place.address.clone(),
                &place.authority,
            )),
            place,
            health: Arc::default(),
            breaker: Arc::default(),
            passive: None,
            kept: Arc::default(),
            post: OnceLock::new(),
        }
    }

    /// From now on it belongs to a pool. A member belongs to one pool only, and only once.
    pub fn join(&self, post: impl FnOnce() -> Post) {
        self.post.get_or_init(post);
    }

    /// Goes on with the counters of the member at this address before a reload, whose requests are still running, with
    /// what an operator said of it, and with its connections where a new one would be the same.
    pub fn adopt(&mut self, previous: &Member) {
        self.kept = previous.kept.clone();
        self.dialer = Arc::new(self.dialer.adopt(&previous.dialer));
    }

    /// Starts as that member was, and goes its own way from there: the probes of `previous` are about to stop.
    pub fn adopt_health(&mut self, previous: &Member) {
        self.health = Arc::new(previous.health.copy());
    }

    /// Takes the seat of `previous` in the same pool: it is the same server, of which the file or name servers say
    /// something else now, and what probes and requests say of either they say of both.
    pub fn replace(&mut self, previous: &Member) {
        self.adopt(previous);
        self.health = previous.health.clone();
        self.breaker = previous.breaker.clone();
    }

    /// Is down until its first probe, which decides alone.
    pub fn await_probe(&mut self) {
        self.health = Arc::new(Health::unknown());
    }

    /// From now on what comes of requests decides whether it gets more of them.
    pub fn watch(&mut self, passive: Arc<Passive>) {
        self.passive = Some(passive);
    }

    /// Is in or out as that member is, and goes its own way from there.
    pub fn adopt_breaker(&mut self, previous: &Member) {
        self.breaker = Arc::new(previous.breaker.copy());
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The address as in `$upstream_addr`: `127.0.0.1:9001`, `[::1]:9001`, `unix:/run/app.sock`.
    pub fn backend(&self) -> &Arc<str> {
        &self.name
    }

    /// `Host` of a request that is meant for this member itself.
    pub fn authority(&self) -> &Arc<str> {
        &self.place.authority
    }

    pub fn weight(&self) -> u32 {
        self.place.weight
    }

    pub fn address(&self) -> &SocketAddr {
        &self.place.address
    }

    /// How to connect, for Pingora's proxy, and what is known of the connection.
    pub fn peer(&self, needs: Needs) -> (Box<HttpPeer>, Arc<Line>) {
        self.dialer.peer(needs)
    }

    pub fn dialer(&self) -> &Arc<Dialer> {
        &self.dialer
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    pub fn load(&self) -> &Load {
        &self.kept.load
    }

    pub fn kept(&self) -> &Arc<Kept> {
        &self.kept
    }

    /// What a client comes back to this member with, if the pool is sticky.
    pub fn badge(&self) -> Option<&Badge> {
        self.post.get()?.badge.as_ref()
    }

    /// Why it gets no requests; `None` when it does.
    pub fn absence(&self) -> Option<Absence> {
        if self.kept.draining.now.load(Ordering::Relaxed) {
            Some(Absence::Draining)
        } else if self.place.weight == 0 {
            Some(Absence::Drained)
        } else if !self.health.is_up() {
            Some(Absence::Down)
        } else if self.breaker.is_open() {
            Some(Absence::Ejected)
        } else {
            None
        }
    }

    pub fn set_draining(&self, draining: bool, wall: SystemTime) {
        let before = self.kept.draining.now.swap(draining, Ordering::Relaxed);
        if before != draining {
            *self.kept.draining.since.lock() = Some(wall);
        }
    }

    /// When an operator last took it out or put it back.
    pub fn draining_since(&self) -> Option<SystemTime> {
        *self.kept.draining.since.lock()
    }

    /// Whether it may take one more request at this moment.
    pub fn has_room(&self) -> bool {
        // `SeqCst`: see `Queue`
        let in_flight = || self.load().in_flight.load(Ordering::SeqCst);
        let is_full = self.place.max_conns.is_some_and(|max| max <= in_flight());
        !is_full && !self.breaker.is_on_trial()
    }

    /// Counts a request in, for as long as the returned value lives; `None` when it is full.
    pub fn begin(self: &Arc<Self>) -> Option<InFlight> {
        let load = self.load();
        let before = load.in_flight.fetch_add(1, Ordering::Relaxed);
        // From here on it is counted out again, whatever happens.
        let mut request = InFlight {
            member: self.clone(),
            is_trial: false,
        };
        if self.place.max_conns.is_some_and(|max| max <= before) {
            return None;
        }
        request.is_trial = self.breaker.begin()?;
        load.requests.fetch_add(1, Ordering::Relaxed);
        Some(request)
    }
}

/// What a member has to do, and how much of it failed.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU64,
    requests: AtomicU64,
    failures: AtomicU64,
    /// Smoothed, in nanoseconds; 0 before the first answer.
    latency: AtomicU64,
}

/// What one answer counts in the smoothed latency: an eighth, as in TCP's round-trip time (RFC 6298).
const SMOOTHING: u64 = 8;

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

    /// How long it lately took until the header of an answer was there; `None` before the first one.
    pub fn latency(&self) -> Option<Duration> {
        let nanos = self.latency.load(Ordering::Relaxed);
        (nanos != 0).then(|| Duration::from_nanos(nanos))
    }

    /// The header of an answer was there after `latency`.
    pub fn observe(&self, latency: Duration) {
        let new = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
        let smoothed = match self.latency.load(Ordering::Relaxed) {
            0 => new,
            old => old - old / SMOOTHING + new / SMOOTHING,
        };
        // Of two answers at the same moment one may be forgotten, which a mean can bear.
        self.latency.store(smoothed.max(1), Ordering::Relaxed);
    }
}

/// A request that a member is busy with.
#[derive(Debug)]
pub struct InFlight {
    member: Arc<Member>,
    /// Whether the member is out, and what becomes of this request decides about that.
    is_trial: bool,
}

impl InFlight {
    /// The member's answer began, so long after it was given the request.
    pub fn answered(&self, after: Duration, now: Instant) {
        self.load().observe(after);
        self.kept.latency.record(after, now);
    }

    /// The answer that began has this status, which speaks for or against the member.
    pub fn judge(&mut self, status: u16, now: Instant) {
        let Some(passive) = &self.member.passive else {
            return;
        };
        if passive.blames(status) {
            self.blame(Blame::Status(status), now);
        } else if std::mem::take(&mut self.is_trial) {
            passive.passed(&self.member, now);
        }
    }

    /// What became of the request speaks against the member.
    pub fn blame(&mut self, blame: Blame<'_>, now: Instant) {
        let is_trial = std::mem::take(&mut self.is_trial);
        if let Some(passive) = &self.member.passive {
            passive.failed(&self.member, is_trial, blame, now);
        }
    }

    /// The member did not answer: no connection, or one that broke or fell silent.
    pub fn failed(&self, after: Duration, now: Instant) {
        self.load().failures.fetch_add(1, Ordering::Relaxed);
        self.kept.latency.record_failure(after, now);
    }
}

impl Deref for InFlight {
    type Target = Arc<Member>;

    fn deref(&self) -> &Arc<Member> {
        &self.member
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // `SeqCst`: see `Queue`
        self.load().in_flight.fetch_sub(1, Ordering::SeqCst);
        if self.is_trial {
            self.breaker.release();
        }
        if let Some(post) = self.post.get() {
            post.queue.has_room();
        }
    }
}

/// Whether a member is up by its probes, and what they found.
#[derive(Debug)]
pub struct Health {
    up: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Clone, Debug, Default)]
pub struct Record {
    /// When it last went up or down; `None` when it never did.
    pub since: Option<SystemTime>,
    /// Why it is down: what the last failed probe found wrong. `None` while it is up.
    pub reason: Option<Arc<str>>,
    pub probe: Option<Probe>,
    /// How many probes in a row now spoke against the state that it is in.
    against: u32,
}

/// The last probe of a member.
#[derive(Clone, Debug)]
pub struct Probe {
    pub at: SystemTime,
    /// What it found wrong; `None` when it passed.
    pub error: Option<Arc<str>>,
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
    /// Down, until the first probe.
    fn unknown() -> Health {
        let record = Record {
            reason: Some("not probed yet".into()),
            ..Record::default()
        };
        Health {
            up: AtomicBool::new(false),
            record: Mutex::new(record),
        }
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Whether it was ever probed.
    pub fn is_known(&self) -> bool {
        self.record.lock().probe.is_some()
    }

    pub fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// Takes in the result of a probe at `wall`. After `rise` passed ones in a row the member is up, after `fall` failed
    /// ones down; the first probe of one that waits for it decides alone. Answers how many it took when this one was the
    /// last that it needed.
    pub fn observe(
        &self,
        result: Result<(), Arc<str>>,
        rise: u32,
        fall: u32,
        wall: SystemTime,
    ) -> Option<u32> {
        let mut record = self.record.lock();
        let (was_up, passed) = (self.is_up(), result.is_ok());
        let is_first = !was_up && record.probe.is_none();
        record.against = match passed == was_up {
            true => u32::from(is_first),
            false => record.against + 1,
        };
        record.probe = Some(Probe {
            at: wall,
            error: result.err(),
        });
        let needed = if passed { rise } else { fall };
        let changed = is_first || passed != was_up && record.against >= needed;
        let probes = changed.then(|| std::mem::take(&mut record.against));
        if changed {
            self.up.store(passed, Ordering::Relaxed);
            record.since = Some(wall);
        }
        if self.is_up() {
            record.reason = None;
        } else if !passed {
            record.reason = record.probe.as_ref().and_then(|probe| probe.error.clone());
        }
        probes
    }

    fn copy(&self) -> Health {
        Health {
            up: AtomicBool::new(self.is_up()),
            record: Mutex::new(self.record()),
        }
    }
}
