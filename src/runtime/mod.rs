//! The running configuration: one immutable [`Snapshot`], swapped whole.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use http::HeaderName;
use parking_lot::Mutex;

use crate::build::Carry;
use crate::exchange::named::Named;
use crate::filter::Chain;
use crate::handler::Handler;
use crate::handler::files::Files;
use crate::log::{self, AccessLogs};
use crate::net::{Bind, Crowd, Listeners, Open, Room};
use crate::pool::Pool;
use crate::router::Router;
use crate::tls::TicketKeys;
use crate::value::Cidr;

mod certificates;
pub mod changes;
pub mod compile;
pub mod cuts;
pub mod figures;
pub mod reload;
mod renewals;
pub mod status;
pub mod tasks;
pub mod watch;

use certificates::Certificates;
pub use compile::compile;
pub use cuts::Cuts;
pub use figures::Figures;
use renewals::Renewals;

/// What a configuration compiles to.
pub struct Plan {
    pub boot: Boot,
    pub snapshot: Snapshot,
}

/// What a running process cannot change.
#[derive(Clone, Debug, PartialEq)]
pub struct Boot {
    pub threads: usize,
    pub pid_file: Option<PathBuf>,
    pub upgrade_sock: PathBuf,
    /// The admin socket.
    pub admin: Option<Bind>,
    /// Whether the file says so; else the process does without where there can be none.
    pub admin_is_given: bool,
    pub user: Option<String>,
    pub group: Option<String>,
    pub daemon: bool,
    pub error_log: PathBuf,
    pub working_directory: PathBuf,
    pub work_stealing: bool,
    pub listener_tasks_per_fd: usize,
    pub upstream_keepalive_pool_size: Option<usize>,
    pub max_retries: usize,
}

impl Boot {
    /// Keys whose values differ.
    pub fn differences(&self, other: &Boot) -> Vec<&'static str> {
        let mut keys = Vec::new();
        macro_rules! compare {
            ($($key:ident),*) => {
                $(if self.$key != other.$key { keys.push(stringify!($key)); })*
            };
        }
        compare!(
            threads,
            pid_file,
            upgrade_sock,
            admin,
            user,
            group,
            daemon,
            error_log,
            working_directory,
            work_stealing,
            listener_tasks_per_fd,
            upstream_keepalive_pool_size,
            max_retries
        );
        keys
    }
}

/// Which of the two services a listener belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `listeners:`, in front of the sites.
    Edge,
    /// `static:`, in front of files.
    Companion,
}

/// How the process ends.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long it still accepts, having said that it will end.
    pub announce: Duration,
    /// How long tunnels may go on after that.
    pub tunnels: Duration,
    /// When it ends at the latest, from the beginning.
    pub deadline: Duration,
}

/// Everything that requests are served by. A request takes one and keeps it to its end.
pub struct Snapshot {
    /// Counts the configurations of this process, from 1.
    pub generation: u64,
    /// When it was loaded.
    pub since: SystemTime,
    pub router: Arc<Router>,
    pub pools: BTreeMap<String, Arc<Pool>>,
    pub statics: HashMap<Arc<str>, Arc<Files>>,
    /// Whether there is a route that needs no backend.
    pub answers_itself: bool,
    pub trusted_proxies: Vec<Cidr>,
    /// The variables that the document defines, if it does.
    pub named: Option<Arc<Named>>,
    /// Fields of backends' headers that variables ask for; mostly none.
    pub upstream_fields: Vec<HeaderName>,
    pub log: log::Compiled,
    pub drain: Drain,
    /// Whether to reload when the files change.
    pub watch: bool,
    /// What is cut off when the process ends; one for all snapshots.
    pub cuts: Arc<Cuts>,
    /// Counts that the next configuration goes on with.
    carry: Carry,
    /// Requests under it that became tunnels and still are.
    pub tunnels: AtomicUsize,
    edge: Listeners,
    companion: Listeners,
    /// What handshakes get once this snapshot is live; of all that is in it, these alone change meanwhile.
    certificates: Arc<ArcSwap<Certificates>>,
    renewals: Arc<Mutex<Renewals>>,
    /// Keys of session tickets for listeners that name none.
    ticket_keys: Arc<TicketKeys>,
}

impl Snapshot {
    /// The keys of session tickets that are made here: the same ones in all snapshots.
    pub fn ticket_keys(&self) -> &Arc<TicketKeys> {
        &self.ticket_keys
    }

    /// Requests that the live snapshot serves: each holds it, and beside them only [`Live`] and the caller.
    fn holders(self: &Arc<Self>) -> usize {
        Arc::strong_count(self).saturating_sub(2)
    }

    pub fn listeners(&self, part: Part) -> &Listeners {
        match part {
            Part::Edge => &self.edge,
            Part::Companion => &self.companion,
        }
    }

    /// The access logs of all levels, some of them several times.
    pub fn access_logs(&self) -> impl Iterator<Item = &AccessLogs> {
        let own = self.router.chains().filter_map(Chain::own_access_logs);
        std::iter::once(&self.log.access).chain(own)
    }

    /// The logs that a request goes to which has these policies.
    pub fn access_logs_of<'a>(&'a self, chain: &'a Chain) -> &'a AccessLogs {
        chain.own_access_logs().unwrap_or(&self.log.access)
    }

    /// All files that logs are written to.
    pub fn log_files(&self) -> impl Iterator<Item = &Path> {
        let error = self.log.error.file().into_iter();
        error.chain(self.access_logs().flat_map(AccessLogs::files))
    }

    /// All folders that files are served from, by who does: `static.assets`, `shop.routes[1]`.
    pub fn files(&self) -> BTreeMap<String, &Files> {
        let statics = self.statics.iter();
        let statics = statics.map(|(name, files)| (format!("static.{name}"), &**files));
        let routes = self
            .router
            .routes()
            .filter_map(|route| match &route.handler {
                Handler::Files(files) => Some((route.name.to_string(), &**files)),
                _ => None,
            });
        statics.chain(routes).collect()
    }
}

/// What lives as long as the process: the snapshot that new requests take, and what outlasts each of them.
pub struct Live {
    snapshot: ArcSwap<Snapshot>,
    started: SystemTime,
    /// Client connections, of the edge and of the companion.
    crowds: [Arc<Crowd>; 2],
    /// What could not be read as a request.
    pub malformed: AtomicU64,
    draining: AtomicBool,
    /// What requests come to.
    pub figures: Figures,
    /// The new process that is to take over if it does well.
    probation: Mutex<Option<Candidate>>,
    /// Former snapshots that requests are still served by, oldest first.
    older: Mutex<Vec<Older>>,
}

/// A new process on probation.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub process: u32,
    pub version: String,
    /// When it takes over, if nothing comes in between.
    pub until: SystemTime,
}

/// A snapshot that is not live any more.
struct Older {
    snapshot: Weak<Snapshot>,
    generation: u64,
    since: SystemTime,
    /// When the next one took its place.
    until: SystemTime,
    /// Connections of the listeners that the next one does not have.
    leaving: Vec<Arc<Open>>,
}

impl Older {
    fn is_in_use(&self) -> bool {
        self.snapshot.strong_count() > 0 || self.connections() > 0
    }

    fn connections(&self) -> usize {
        self.leaving.iter().map(|open| open.count()).sum()
    }
}

impl Live {
    /// Clients come into `room`.
    pub fn new(snapshot: Arc<Snapshot>, room: Arc<Room>) -> Live {
        Live {
            started: snapshot.since,
            snapshot: ArcSwap::new(snapshot),
            crowds: [Crowd::new(room.clone()), Crowd::new(room)],
            malformed: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            figures: Figures::default(),
            probation: Mutex::default(),
            older: Mutex::default(),
        }
    }

    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Makes `snapshot` the one that new requests take.
    pub fn store(&self, snapshot: Arc<Snapshot>) {
        let until = snapshot.since;
        let last = self.snapshot.swap(snapshot);
        let mut older = self.older.lock();
        older.retain(Older::is_in_use);
        older.push(Older {
            generation: last.generation,
            since: last.since,
            until,
            leaving: Vec::new(),
            snapshot: Arc::downgrade(&last),
        });
    }

    /// Notes the connections of a listener that the live snapshot does not have any more.
    pub fn leave(&self, connections: Arc<Open>) {
        if let Some(last) = self.older.lock().last_mut() {
            last.leaving.push(connections);
        }
    }

    /// From now on, whoever asks is told that the process will end.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whoever asks is told which process is on probation, if one is.
    pub fn set_candidate(&self, candidate: Option<Candidate>) {
        *self.probation.lock() = candidate;
    }

    /// When the process began.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// The connections of one part.
    pub fn crowd(&self, part: Part) -> &Arc<Crowd> {
        match part {
            Part::Edge => &self.crowds[0],
            Part::Companion => &self.crowds[1],
        }
    }

    /// What still goes on under former snapshots.
    fn older(&self) -> Vec<status::Generation> {
        let older = self.older.lock();
        let in_use = older.iter().filter(|older| older.is_in_use());
        let status = in_use.map(|older| {
            let holders = older.snapshot.strong_count();
            let snapshot = older.snapshot.upgrade();
            let tunnels = snapshot.map_or(0, |snapshot| snapshot.tunnels.load(Ordering::Relaxed));
            status::Generation {
                generation: older.generation,
                since: status::seconds(older.since),
                until: status::seconds(older.until),
                requests: holders.saturating_sub(tunnels) as u64,
                tunnels: tunnels as u64,
                connections: older.connections() as u64,
            }
        });
        status.collect()
    }

    /// WebSockets and the like that are open now.
    pub fn tunnels(&self) -> usize {
        let older = self.older.lock();
        let older = older.iter().filter_map(|older| older.snapshot.upgrade());
        let snapshots = older.chain([self.load()]);
        snapshots
            .map(|snapshot| snapshot.tunnels.load(Ordering::Relaxed))
            .sum()
    }

    /// Requests that are served now, under whichever snapshot.
    pub fn requests(&self) -> usize {
        let live = self.load();
        let older = self.older.lock();
        let older = older.iter().map(|older| older.snapshot.strong_count());
        live.holders() + older.sum::<usize>()
    }

    /// All open connections.
    pub fn connections(&self) -> usize {
        self.crowds.iter().map(|crowd| crowd.open()).sum()
    }
}
