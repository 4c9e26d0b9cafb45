//! Fewest running requests in proportion to the weight.
//!
//! The counters of all members are looked at for each request, so they must be few and near: up to [`EXACT`] members
//! each is compared; of more, the next [`EXACT`] in turn are. The least of 128 that change with every pick is as good as
//! the least of all: were one in twenty members idle, one pick in seven hundred would miss them.
//!
//! Equals take turns as in [`RoundRobin`], so that a pool at rest spreads its requests as that does: then the one
//! whose turn it is has nothing to do, which nobody can undercut, and no other is looked at.

use std::sync::Arc;

use super::RoundRobin;
use crate::pool::Member;
use crate::pool::member::Kept;

/// How many members are compared at most.
const EXACT: usize = 128;

#[derive(Debug)]
pub struct LeastConn {
    /// One step away from the counters, rather than the three of a member.
    gauges: Box<[Gauge]>,
    turns: RoundRobin,
}

#[derive(Debug)]
struct Gauge {
    kept: Arc<Kept>,
    share: u32,
}

/// What a member has to do, to be compared with others in proportion to their shares.
#[derive(Clone, Copy)]
struct Burden {
    requests: u64,
    share: u64,
}

impl Burden {
    fn is_less_than(self, other: Burden) -> bool {
        self.requests * other.share < other.requests * self.share
    }
}

impl LeastConn {
    pub fn new(members: &[Arc<Member>], shares: &[u32], turns: RoundRobin) -> LeastConn {
        let gauge = |(member, share): (&Arc<Member>, &u32)| Gauge {
            kept: member.kept().clone(),
            share: *share,
        };
        LeastConn {
            gauges: members.iter().zip(shares).map(gauge).collect(),
            turns,
        }
    }

    pub fn turns(&self) -> &RoundRobin {
        &self.turns
    }

    pub fn pick(&self, is_free: impl Fn(usize) -> bool) -> Option<usize> {
        let mut turns = self.turns.turns();
        let next = turns.clone().next()?;
        if self.burden(next).requests == 0 && is_free(next) {
            return Some(next);
        }
        if EXACT < self.gauges.len() {
            // Where all of these are taken, whoever is next of the others.
            let least = self.least(turns.by_ref().take(EXACT), &is_free);
            return least.or_else(|| turns.find(|index| is_free(*index)));
        }
        let all = 0..self.gauges.len();
        let least = self.least(all.filter(|index| self.gauges[*index].share != 0), &is_free)?;
        let burden = self.burden(least);
        // Whoever is as good and comes first in turn. A heavy member's turns may stand between: not all are looked at.
        let equal = |index: &usize| !burden.is_less_than(self.burden(*index)) && is_free(*index);
        Some(turns.take(EXACT).find(equal).unwrap_or(least))
    }

    /// The least burdened of some members, the first of equals.
    fn least(
        &self,
        members: impl Iterator<Item = usize>,
        is_free: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let mut least: Option<(usize, Burden)> = None;
        for index in members {
            let burden = self.burden(index);
            let better = least.is_none_or(|(_, least)| burden.is_less_than(least));
            if better && is_free(index) {
                least = Some((index, burden));
            }
        }
        least.map(|(index, _)| index)
    }

    fn burden(&self, index: usize) -> Burden {
        let gauge = &self.gauges[index];
        Burden {
            requests: gauge.kept.load().in_flight(),
            share: u64::from(gauge.share),
        }
    }
}
