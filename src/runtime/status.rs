//! How the process is doing: what the `status` action and the admin socket answer, and `weir status` reads.

use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Live, Part, Snapshot};
use crate::handler::files::OpenFiles;
use crate::pool::PoolStatus;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub process: u32,
    /// When the process began, in seconds since 1970.
    pub started: u64,
    /// Seconds since then.
    pub uptime: u64,
    pub state: State,
    /// The new process that is to take over if it does well; it serves meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probation: Option<Probation>,
    /// Counts the configurations that this process has loaded.
    pub generation: u64,
    /// When the configuration was loaded, in seconds since 1970.
    pub since: u64,
    /// Client connections that are open now.
    pub connections: usize,
    /// How often new ones had to wait because descriptors ran short, and how often the system had none.
    #[serde(default)]
    pub waits: u64,
    #[serde(default)]
    pub exhausted: u64,
    /// What could not be read as a request.
    #[serde(default)]
    pub malformed: u64,
    #[serde(default)]
    pub listeners: Vec<ListenerStatus>,
    /// Former configurations that are in use still, oldest first.
    pub older: Vec<Generation>,
    pub pools: Vec<PoolStatus>,
    /// Folders of which files are remembered.
    #[serde(default)]
    pub files: Vec<FilesStatus>,
    pub certificates: Vec<Certificate>,
}

/// A listener, or a `static:` entry, and its bounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// As a key path: `listeners.http`.
    pub name: String,
    pub connections: usize,
    pub most_connections: usize,
    pub most_per_client: usize,
    /// Connections that were turned away because there were too many in all.
    pub refused: u64,
    /// Connections that were turned away because their client had too many.
    pub refused_of_one: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FilesStatus {
    /// Who serves them: `static.assets`, `shop.routes[1]`.
    pub name: String,
    pub open_files: OpenFiles,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Serving,
    /// On its way to the end.
    Draining,
}

/// A new process on probation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probation {
    pub process: u32,
    pub version: String,
    /// Seconds until it takes over, if nothing comes in between.
    pub left: u64,
}

/// A certificate that clients are shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// Who shows it, as a key path: `sites.shop.tls`.
    pub owner: String,
    pub names: Vec<String>,
    /// When it ends, in seconds since 1970.
    pub expires: i64,
    /// Whole days until then; below zero when it is over.
    pub days_left: i64,
    /// Why what its files hold by now is not shown, if they have changed and are bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A former configuration, and what began under it and goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generation {
    pub generation: u64,
    /// When it was loaded, in seconds since 1970.
    pub since: u64,
    /// When the next one took its place.
    pub until: u64,
    pub requests: u64,
    /// WebSockets and the like.
    pub tunnels: u64,
    /// Connections of listeners that the next configuration does not have.
    pub connections: u64,
}

impl Status {
    pub fn of(live: &Live, now: SystemTime) -> Status {
        let snapshot = live.load();
        let room = live.crowd(Part::Edge).room();
        let uptime = now.duration_since(live.started()).unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: std::process::id(),
            started: seconds(live.started()),
            uptime: uptime.as_secs(),
            state: match live.is_draining() {
                true => State::Draining,
                false => State::Serving,
            },
            probation: live.probation.lock().as_ref().map(|candidate| {
                let left = candidate.until.duration_since(now);
                Probation {
                    process: candidate.process,
                    version: candidate.version.clone(),
                    left: left.unwrap_or_default().as_secs_f64().ceil() as u64,
                }
            }),
            generation: snapshot.generation,
            since: seconds(snapshot.since),
            connections: live.connections(),
            waits: room.waits.count(),
            exhausted: room.exhausted.count(),
            malformed: live.malformed.load(Ordering::Relaxed),
            listeners: listeners(live, &snapshot),
            older: live.older(),
            pools: snapshot.pools.values().map(|pool| pool.status()).collect(),
            files: files(&snapshot),
            certificates: snapshot.certificates.load().status(now),
        }
    }

    /// As it is answered.
    pub fn to_json(&self) -> Vec<u8> {
        // Numbers, strings and lists of them: there is nothing in it that JSON cannot say.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

fn listeners(live: &Live, snapshot: &Snapshot) -> Vec<ListenerStatus> {
    let parts = [(Part::Edge, "listeners"), (Part::Companion, "static")];
    let of = |(part, section): (Part, &str)| {
        let crowd = live.crowd(part);
        let each = snapshot.listeners(part).values();
        let status = each.map(|listener| {
            let counts = crowd.counts(&listener.name);
            ListenerStatus {
                name: format!("{section}.{}", listener.name),
                connections: counts.open,
                most_connections: listener.bounds.most.in_all,
                most_per_client: listener.bounds.most.of_one,
                refused: counts.refused,
                refused_of_one: counts.refused_of_one,
            }
        });
        status.collect::<Vec<_>>()
    };
    parts.into_iter().flat_map(of).collect()
}

fn files(snapshot: &Snapshot) -> Vec<FilesStatus> {
    let each = snapshot.files().into_iter();
    each.filter_map(|(name, files)| {
        let open_files = files.open_files()?;
        Some(FilesStatus { name, open_files })
    })
    .collect()
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
