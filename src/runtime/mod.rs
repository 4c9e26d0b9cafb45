//! The running configuration: one immutable [`Snapshot`], swapped whole.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use crate::handler::files::Files;
use crate::log;
use crate::net::{Bind, Listeners};
use crate::pool::Pool;
use crate::router::Router;
use crate::tls::{Acceptor, CertifiedKey, Resolver};
use crate::value::Cidr;

pub mod changes;
pub mod compile;
pub mod reload;
pub mod status;
pub mod tasks;

pub use compile::compile;

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

/// Everything that requests are served by. A request takes one and keeps it to its end.
pub struct Snapshot {
    /// Counts the configurations of this process, from 1.
    pub generation: u64,
    /// When it was loaded.
    pub since: SystemTime,
    pub router: Arc<Router>,
    pub pools: BTreeMap<String, Arc<Pool>>,
    pub statics: HashMap<Arc<str>, Arc<Files>>,
    pub trusted_proxies: Vec<Cidr>,
    pub log: log::Compiled,
    pub grace_period: Duration,
    edge: Listeners,
    companion: Listeners,
    /// What handshakes of each TLS listener get, once this snapshot is live.
    resolvers: Vec<(Arc<Acceptor>, Arc<Resolver>)>,
    /// All certificates, by the key path of who shows them.
    certificates: BTreeMap<String, Vec<Arc<CertifiedKey>>>,
    /// Certificates made here, by hosts: a reload goes on with the one that the browser has accepted.
    self_signed: HashMap<Vec<String>, Arc<CertifiedKey>>,
}

impl Snapshot {
    pub fn listeners(&self, part: Part) -> &Listeners {
        match part {
            Part::Edge => &self.edge,
            Part::Companion => &self.companion,
        }
    }
}

/// What lives as long as the process: the snapshot that new requests take, and what outlasts each of them.
pub struct Live {
    snapshot: ArcSwap<Snapshot>,
    started: SystemTime,
    /// Client connections that are open now, of the edge and of the companion.
    open: [Arc<AtomicUsize>; 2],
}

impl Live {
    pub fn new(snapshot: Arc<Snapshot>) -> Live {
        Live {
            started: snapshot.since,
            snapshot: ArcSwap::new(snapshot),
            open: Default::default(),
        }
    }

    pub fn load(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Makes `snapshot` the one that new requests take.
    pub fn store(&self, snapshot: Arc<Snapshot>) {
        self.snapshot.store(snapshot);
    }

    /// When the process began.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// Counts the open connections of one part.
    pub fn open(&self, part: Part) -> &Arc<AtomicUsize> {
        match part {
            Part::Edge => &self.open[0],
            Part::Companion => &self.open[1],
        }
    }

    /// All open connections.
    pub fn connections(&self) -> usize {
        let counts = self.open.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }
}
