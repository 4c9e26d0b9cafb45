//! Consistent hashing: the same key comes to the same member, and few keys move when members come and go.
//!
//! Each member has points on a ring of 2^32 places, in proportion to its weight and where hashes of its name put them; a
//! key belongs to the first point from its own place on ("ketama"). Points depend on nothing but names and
//! weights, so that every weir with the same pool comes to the same members, before and after a restart.
//!
//! The ring holds all members. It is made when they change, not when one goes down: a pick walks on to the next
//! point of somebody who can be picked, which is where the key would belong without those in between.

use std::net::IpAddr;
use std::sync::Arc;

use super::{mix, scale};
use crate::pool::Member;

/// Points of the lightest weight.
const POINTS: u64 = 160;
/// Points in all, unless there are more members. 2 MiB of memory; made in tens of milliseconds.
const MOST_POINTS: u64 = 1 << 18;
/// How many points per member a pick goes past before it looks for anybody.
const PATIENCE: usize = 8;

/// Members by the keys of requests.
#[derive(Debug)]
pub struct Hashing {
    ring: Arc<Ring>,
    shares: Box<[u32]>,
    /// The share of a weight of 1.
    full: u32,
}

impl Hashing {
    pub fn new(
        members: &[Arc<Member>],
        shares: &[u32],
        full: u32,
        previous: Option<&Hashing>,
    ) -> Hashing {
        let previous = previous.map(|previous| &previous.ring);
        let ring = match previous.filter(|ring| ring.stands_for(members)) {
            Some(ring) => ring.clone(),
            None => Arc::new(Ring::new(members)),
        };
        Hashing {
            ring,
            shares: shares.into(),
            full,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.shares.iter().all(|share| *share == 0)
    }

    pub fn pick(&self, key: u64, is_free: impl Fn(usize) -> bool) -> Option<usize> {
        let points = &self.ring.points;
        let members = self.shares.len();
        let place = (key >> 32) as u32;
        let first = points.partition_point(|point| point.place < place);
        let (before, after) = points.split_at(first);
        let around = after.iter().chain(before).take(members * PATIENCE);
        around
            .map(|point| point.member as usize)
            .find(|index| self.admits(*index, key) && is_free(*index))
            .or_else(|| {
                // Nearly nobody is left, and on the ring they may be far away.
                let from = scale(key, members);
                let all = (from..members).chain(0..from);
                all.into_iter()
                    .find(|index| self.shares[*index] != 0 && is_free(*index))
            })
    }

    #[cfg(test)]
    pub fn shares_ring_with(&self, other: &Hashing) -> bool {
        Arc::ptr_eq(&self.ring, &other.ring)
    }

    #[cfg(test)]
    pub fn points(&self) -> usize {
        self.ring.points.len()
    }

    /// Whether a key may go to a member that has only a part of its full share: to the same part of all keys.
    fn admits(&self, index: usize, key: u64) -> bool {
        let share = u64::from(self.shares[index]);
        let full = u64::from(self.ring.nodes[index].weight) * u64::from(self.full);
        share != 0 && (full <= share || scale(mix(key), full as usize) < share as usize)
    }
}

#[derive(Debug)]
struct Ring {
    nodes: Box<[Node]>,
    /// By place.
    points: Box<[Point]>,
}

#[derive(Debug)]
struct Node {
    name: Arc<str>,
    weight: u32,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    place: u32,
    member: u32,
}

impl Ring {
    fn new(members: &[Arc<Member>]) -> Ring {
        let node = |member: &Arc<Member>| Node {
            name: member.backend().clone(),
            weight: member.weight(),
        };
        let nodes: Box<[Node]> = members.iter().map(node).collect();
        let weights = || nodes.iter().map(|node| u64::from(node.weight));
        let lightest = weights().filter(|weight| *weight != 0).min().unwrap_or(1);
        let wanted = (weights().sum::<u64>() * POINTS / lightest).max(1);
        let mut points = Vec::with_capacity(wanted.min(MOST_POINTS) as usize + nodes.len());
        for (index, node) in nodes.iter().enumerate() {
            let all = u64::from(node.weight) * POINTS / lightest;
            let count = match wanted <= MOST_POINTS {
                true => all,
                false => (all * MOST_POINTS / wanted).max(all.min(1)),
            };
            let name = hash(node.name.as_bytes());
            points.extend((0..count).map(|number| Point {
                place: (mix(name ^ mix(number + 1)) >> 32) as u32,
                member: index as u32,
            }));
        }
        points.sort_unstable();
        Ring {
            nodes,
            points: points.into(),
        }
    }

    fn stands_for(&self, members: &[Arc<Member>]) -> bool {
        let nodes = self.nodes.iter().map(|node| (&node.name, node.weight));
        nodes.eq(members.iter().map(|m| (m.backend(), m.weight())))
    }
}

/// What a text is on the ring.
pub fn key_of(text: &[u8]) -> u64 {
    mix(hash(text))
}

pub(super) fn key_of_client(client: IpAddr) -> u64 {
    match client {
        IpAddr::V4(address) => key_of(&address.octets()),
        IpAddr::V6(address) => key_of(&address.octets()[..8]),
    }
}

/// FNV-1a: nothing that a library may change from one version to the next.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
