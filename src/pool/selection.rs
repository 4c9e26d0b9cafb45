//! The pool as Pingora's `LoadBalancer` sees it: membership that it keeps becomes the roster's, and what it selects is
//! what the roster would pick.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use pingora_load_balancing::selection::{BackendIter, BackendSelection};
use pingora_load_balancing::{Backend, Extensions};

use super::roster::{Choice, Roster, Rules};
use super::{Member, Tried};

/// What Pingora's `LoadBalancer` chooses with: the pool's own roster, so that `LoadBalancer::select` and `Pool::pick`
/// give turns of the same sequence.
pub struct Selection {
    backends: Box<[Backend]>,
    roster: Arc<Roster>,
}

impl BackendSelection for Selection {
    type Iter = Candidates;
    type Config = Arc<Roster>;

    fn build(backends: &BTreeSet<Backend>) -> Selection {
        let roster = Arc::new(Roster::new(Rules::default(), None));
        Selection::build_with_config(backends, &roster)
    }

    /// Called by Pingora for each change of membership, and once before it knows of any member.
    fn build_with_config(backends: &BTreeSet<Backend>, roster: &Self::Config) -> Selection {
        let mut members: Vec<Arc<Member>> = backends.iter().filter_map(member_of).collect();
        // The set is ordered by address; turns go by the order in the file.
        members.sort_by_key(|member| member.place().position);
        // A roster that goes on from an earlier one would forget it over a moment without members.
        if !members.is_empty() {
            // Pingora brings no time along.
            roster.set_members(members.into(), Instant::now());
        }
        Selection {
            backends: backends.iter().cloned().collect(),
            roster: roster.clone(),
        }
    }

    fn iter(self: &Arc<Self>, _key: &[u8]) -> Candidates {
        Candidates {
            selection: self.clone(),
            tried: Tried::default(),
        }
    }
}

/// The members that can be picked, each once, from the one whose turn it is.
pub struct Candidates {
    selection: Arc<Selection>,
    tried: Tried,
}

impl BackendIter for Candidates {
    fn next(&mut self) -> Option<&Backend> {
        let choice = Choice::any(Instant::now(), fastrand::u64(..));
        let member = self.selection.roster.choose(&choice, &self.tried)?;
        self.tried.insert(member.clone());
        let mut backends = self.selection.backends.iter();
        backends.find(|backend| backend.addr == *member.address())
    }
}

/// A member as one of Pingora's backends.
pub fn backend_of(member: &Arc<Member>) -> Backend {
    let mut ext = Extensions::new();
    ext.insert(member.clone());
    Backend {
        addr: member.address().clone(),
        weight: member.weight() as usize,
        ext,
    }
}

pub fn member_of(backend: &Backend) -> Option<Arc<Member>> {
    backend.ext.get::<Arc<Member>>().cloned()
}
