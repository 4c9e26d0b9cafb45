//! How a pool chooses among its members: one file per algorithm.

pub mod round_robin;

use std::collections::BTreeSet;
use std::sync::Arc;

use pingora_load_balancing::Backend;
use pingora_load_balancing::selection::{BackendIter, BackendSelection};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Member, Tried};
pub use round_robin::SmoothRoundRobin;

/// How requests are spread over the members that are up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Members take turns: in proportion to their weights, and evenly spread rather than in bursts (nginx's default).
    #[default]
    RoundRobin,
}

/// What Pingora's `LoadBalancer` chooses with: the pool's own balancer, so that `LoadBalancer::select` and `Pool::pick`
/// give turns of the same sequence.
pub struct Selection {
    /// By member index.
    backends: Box<[Backend]>,
    balancer: Arc<SmoothRoundRobin>,
}

impl BackendSelection for Selection {
    type Iter = Candidates;
    type Config = Arc<SmoothRoundRobin>;

    fn build(backends: &BTreeSet<Backend>) -> Selection {
        let backends = by_member(backends);
        let weights = backends.iter().map(|backend| backend.weight as u32);
        let balancer = Arc::new(SmoothRoundRobin::new(weights));
        Selection { backends, balancer }
    }

    fn build_with_config(backends: &BTreeSet<Backend>, config: &Self::Config) -> Selection {
        Selection {
            backends: by_member(backends),
            balancer: config.clone(),
        }
    }

    fn iter(self: &Arc<Self>, _key: &[u8]) -> Candidates {
        Candidates {
            selection: self.clone(),
            tried: Tried::default(),
        }
    }
}

/// The set is ordered by address; turns go by the order in the file.
fn by_member(backends: &BTreeSet<Backend>) -> Box<[Backend]> {
    let mut backends: Vec<Backend> = backends.iter().cloned().collect();
    backends.sort_by_key(|backend| {
        backend
            .ext
            .get::<Arc<Member>>()
            .map(|member| member.index())
    });
    backends.into()
}

/// The members that are up, each once, from the one whose turn it is.
pub struct Candidates {
    selection: Arc<Selection>,
    tried: Tried,
}

impl BackendIter for Candidates {
    fn next(&mut self) -> Option<&Backend> {
        let index = self.selection.balancer.pick(&self.tried)?;
        self.tried.insert(index);
        self.selection.backends.get(index)
    }
}
