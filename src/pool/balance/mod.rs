//! How a pool chooses among its members: one file per algorithm.
//!
//! A [`Balancer`] is made anew whenever the shares of its members change, and works out ahead what it can; a pick
//! takes no lock and no memory.

pub mod round_robin;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Member;
use super::roster::Choice;
pub use round_robin::RoundRobin;

/// How requests are spread over the members that are up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Members take turns: in proportion to their weights, and evenly spread rather than in bursts (nginx's default).
    #[default]
    RoundRobin,
}

/// One algorithm over one set of members with their shares.
#[derive(Debug)]
pub enum Balancer {
    RoundRobin(RoundRobin),
}

impl Balancer {
    /// `shares` are by index of the member: its weight, or 0 where it cannot be picked. `previous` is the balancer that
    /// this one takes over from.
    pub fn new(
        balance: &Balance,
        members: &[Arc<Member>],
        shares: &[u32],
        previous: Option<&Balancer>,
    ) -> Balancer {
        debug_assert_eq!(members.len(), shares.len());
        match balance {
            Balance::RoundRobin => {
                let previous = previous.map(|Balancer::RoundRobin(previous)| previous);
                Balancer::RoundRobin(RoundRobin::new(shares, previous))
            }
        }
    }

    /// The index of the member to take among those that have a share and of which `is_free` says yes.
    pub fn pick(
        &self,
        _choice: &Choice,
        _members: &[Arc<Member>],
        is_free: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        match self {
            Balancer::RoundRobin(round_robin) => round_robin.pick(is_free),
        }
    }

    /// Whether no member has a share.
    pub fn is_empty(&self) -> bool {
        match self {
            Balancer::RoundRobin(round_robin) => round_robin.is_empty(),
        }
    }
}
