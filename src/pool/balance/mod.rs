//! How a pool chooses among its members: one file per algorithm.
//!
//! A [`Balancer`] is made anew whenever the shares of its members change, and works out ahead what it can; a pick
//! takes no lock and no memory. It draws no random numbers itself either: a request brings them along.

mod draw;
pub mod least_conn;
pub mod ring;
pub mod round_robin;
pub mod two_choices;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use super::Member;
use super::roster::Choice;
use crate::value::Template;
pub use draw::Draw;
pub use least_conn::LeastConn;
pub use ring::{Hashing, key_of};
pub use round_robin::RoundRobin;
pub use two_choices::{Ewma, P2c, TwoChoices};

/// How requests are spread over the members that can be picked: a word, or `{ hash: TEXT }`. Weights count in each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Members take turns: in proportion to their weights, and evenly spread rather than in bursts (nginx's default).
    #[default]
    RoundRobin,
    /// The member with the fewest running requests in proportion to its weight; of equals, the one whose turn it is.
    /// Beyond 128 members it is the best of the next 128 in turn. nginx: `least_conn`.
    LeastConn,
    /// A random member, in proportion to the weights. nginx: `random`.
    Random,
    /// Of two random members, the one with fewer running requests in proportion to its weight: nearly as even as
    /// `least_conn`, at the same small cost whatever the number of members. nginx: `random two least_conn`.
    P2c,
    /// Of two random members, the one that is probably quicker: the time that it lately took until the header of its
    /// answer, times the requests that it is busy with. A slow answer counts at once, quick ones bit by bit over ten
    /// seconds; a failed try counts as an answer after at least one second. nginx: `random two least_time=header`.
    Ewma,
    /// The same client always comes to the same member, as long as that one can be picked. A client is a whole IPv4 address
    /// (nginx: its first three numbers) or the first 64 bits of an IPv6 address, of which one host has many. Adding or
    /// removing one of `n` members moves about one in `n` clients. A request without address, on a unix socket, goes
    /// to a random member. nginx: `ip_hash`.
    IpHash,
    /// Requests for which this text is the same come to the same member, as long as that one can be picked. Adding or removing
    /// one of `n` members moves about one in `n` texts (a ring of 160 points for each unit of weight, of at most
    /// 262144 in all). nginx: `hash ... consistent`.
    Hash(Template),
}

/// One algorithm over one set of members with their shares.
#[derive(Debug)]
pub enum Balancer {
    RoundRobin(RoundRobin),
    LeastConn(LeastConn),
    Random(Draw),
    P2c(TwoChoices<P2c>),
    Ewma(TwoChoices<Ewma>),
    IpHash(Hashing),
    Hash(Hashing),
}

impl Balancer {
    /// `shares` are by index of the member: in proportion to its weight, or 0 where it cannot be picked. `full` is the
    /// share of a weight of 1. `previous` is the balancer that this one takes over from.
    pub fn new(
        balance: &Balance,
        members: &[Arc<Member>],
        shares: &[u32],
        full: u32,
        previous: Option<&Balancer>,
    ) -> Balancer {
        debug_assert_eq!(members.len(), shares.len());
        let turns = || {
            let previous = previous.and_then(|previous| match previous {
                Balancer::RoundRobin(turns) => Some(turns),
                Balancer::LeastConn(least_conn) => Some(least_conn.turns()),
                _ => None,
            });
            RoundRobin::new(shares, previous)
        };
        let hashing = || {
            let previous = previous.and_then(|previous| match previous {
                Balancer::IpHash(hashing) | Balancer::Hash(hashing) => Some(hashing),
                _ => None,
            });
            Hashing::new(members, shares, full, previous)
        };
        match balance {
            Balance::RoundRobin => Balancer::RoundRobin(turns()),
            Balance::LeastConn => Balancer::LeastConn(LeastConn::new(members, shares, turns())),
            Balance::Random => Balancer::Random(Draw::new(shares)),
            Balance::P2c => Balancer::P2c(TwoChoices::new(members, shares)),
            Balance::Ewma => Balancer::Ewma(TwoChoices::new(members, shares)),
            Balance::IpHash => Balancer::IpHash(hashing()),
            Balance::Hash(_) => Balancer::Hash(hashing()),
        }
    }

    /// The index of the member to take among those that have a share and of which `is_free` says yes.
    pub fn pick(&self, choice: &Choice, is_free: impl Fn(usize) -> bool) -> Option<usize> {
        let mut random = Random(choice.random);
        match self {
            Balancer::RoundRobin(round_robin) => round_robin.pick(is_free),
            Balancer::LeastConn(least_conn) => least_conn.pick(is_free),
            Balancer::Random(draw) => draw.pick(&mut random, is_free),
            Balancer::P2c(two) => two.pick(&mut random, choice.now, is_free),
            Balancer::Ewma(two) => two.pick(&mut random, choice.now, is_free),
            Balancer::IpHash(hashing) => {
                let key = choice
                    .client
                    .map_or_else(|| random.next(), ring::key_of_client);
                hashing.pick(key, is_free)
            }
            Balancer::Hash(hashing) => hashing.pick(choice.key, is_free),
        }
    }

    /// Whether no member has a share.
    pub fn is_empty(&self) -> bool {
        match self {
            Balancer::RoundRobin(round_robin) => round_robin.is_empty(),
            Balancer::LeastConn(least_conn) => least_conn.turns().is_empty(),
            Balancer::Random(draw) => draw.is_empty(),
            Balancer::P2c(two) => two.is_empty(),
            Balancer::Ewma(two) => two.is_empty(),
            Balancer::IpHash(hashing) | Balancer::Hash(hashing) => hashing.is_empty(),
        }
    }
}

/// The random numbers of one pick, all out of the one that the request brought: SplitMix64, whose successive values are
/// independent enough for choices among members.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Spreads each bit over all bits.
fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The part of `range` that the upper half of `bits` stands for, as a number below `range`: no division, and as even as
/// 32 bits allow.
fn scale(bits: u64, range: usize) -> usize {
    ((u128::from(bits) * range as u128) >> 64) as usize
}

#[cfg(test)]
mod tests;
