//! How the process is doing: what the `status` action and the admin socket answer, and `weir status` reads.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Live;
use crate::pool::PoolStatus;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub process: u32,
    /// When the process began, in seconds since 1970.
    pub started: u64,
    /// Seconds since then.
    pub uptime: u64,
    /// Counts the configurations that this process has loaded.
    pub generation: u64,
    /// When the configuration was loaded, in seconds since 1970.
    pub since: u64,
    /// Client connections that are open now.
    pub connections: usize,
    pub pools: Vec<PoolStatus>,
}

impl Status {
    pub fn of(live: &Live, now: SystemTime) -> Status {
        let snapshot = live.load();
        let uptime = now.duration_since(live.started()).unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process: std::process::id(),
            started: seconds(live.started()),
            uptime: uptime.as_secs(),
            generation: snapshot.generation,
            since: seconds(snapshot.since),
            connections: live.connections(),
            pools: snapshot.pools.values().map(|pool| pool.status()).collect(),
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

fn seconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
