//! Background work that follows the live snapshot: started for what appears, stopped for what is gone.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::Snapshot;
use crate::pool::{HealthTask, Pool};

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

/// The health checks that run now; dropping one ends it.
#[derive(Default)]
pub struct Tasks {
    health: Vec<(Arc<Pool>, Option<HealthTask>)>,
}

impl Tasks {
    /// Must be called within a runtime, which the tasks then live in.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        let runs = |pool: &Arc<Pool>| snapshot.pools.values().any(|live| Arc::ptr_eq(live, pool));
        self.health.retain(|(pool, _)| runs(pool));
        for pool in snapshot.pools.values() {
            if !self
                .health
                .iter()
                .any(|(known, _)| Arc::ptr_eq(known, pool))
            {
                self.health.push((pool.clone(), pool.spawn_health()));
            }
        }
    }
}
