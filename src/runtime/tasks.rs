//! Background work that follows the live snapshot: started for what appears, stopped for what is gone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinSet;

use super::Snapshot;
use crate::pool::{HealthTask, NamesTask, Pool};

/// Probes the members that get no requests before their first probe, and comes back when all are known.
pub async fn first_probes(snapshot: &Snapshot) {
    let pools = snapshot.pools.values();
    let mut probes: JoinSet<()> = pools
        .filter(|pool| pool.awaits_probes())
        .map(|pool| {
            let pool = pool.clone();
            async move { pool.first_probes().await }
        })
        .collect();
    if probes.is_empty() {
        return;
    }
    log::info!("waiting for the first probes of backends");
    while probes.join_next().await.is_some() {}
}

/// How often the log is told of certificates that end.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What runs for a snapshot now; dropping it ends it.
#[derive(Default)]
pub struct Tasks {
    pools: Vec<PoolTasks>,
    certificates: JoinSet<()>,
    /// Keys of tokens that are fetched.
    keys: JoinSet<()>,
}

/// What one pool needs.
struct PoolTasks {
    pool: Arc<Pool>,
    _health: Option<HealthTask>,
    _names: Option<NamesTask>,
}

impl Tasks {
    /// Must be called within a runtime, which the tasks then live in.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        let runs = |pool: &Arc<Pool>| snapshot.pools.values().any(|live| Arc::ptr_eq(live, pool));
        self.pools.retain(|tasks| runs(&tasks.pool));
        for pool in snapshot.pools.values() {
            if !self
                .pools
                .iter()
                .any(|known| Arc::ptr_eq(&known.pool, pool))
            {
                self.pools.push(PoolTasks {
                    pool: pool.clone(),
                    _health: pool.spawn_health(),
                    _names: pool.spawn_names(),
                });
            }
        }
        self.keys = JoinSet::new();
        let mut followed = HashSet::new();
        for jwt in snapshot
            .router
            .routes()
            .filter_map(|route| route.chain.jwt.as_ref())
        {
            if followed.insert(Arc::as_ptr(jwt))
                && let Some(following) = jwt.follow_keys()
            {
                self.keys.spawn(following);
            }
        }
        self.certificates = JoinSet::new();
        let certificates = snapshot.certificates.clone();
        self.certificates.spawn(async move {
            loop {
                certificates.load().warn_of_ends(SystemTime::now());
                tokio::time::sleep(DAY).await;
            }
        });
    }
}
