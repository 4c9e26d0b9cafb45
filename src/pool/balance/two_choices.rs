//! The better of two members that are drawn at random.
//!
//! Two are enough: the longest queue grows with `log log n` instead of `log n / log log n` (Mitzenmacher's "power of
//! two choices"), and unlike the search for the very best, which all workers make at once and with the same result, it
//! does not send everybody to one member.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Instant;

use super::{Draw, Random};
use crate::pool::Member;
use crate::pool::member::Kept;

/// By what two members are compared.
pub trait Cost {
    /// What one more request costs at a member, before its weight counts.
    fn cost(kept: &Kept, now: Instant) -> f64;
}

/// By running requests.
#[derive(Debug)]
pub struct P2c;

impl Cost for P2c {
    fn cost(kept: &Kept, _now: Instant) -> f64 {
        kept.load().in_flight() as f64
    }
}

/// By the expected wait: latency times requests, those that run and the one to come.
#[derive(Debug)]
pub struct Ewma;

/// Seconds: longer than any latency, so that members which are known go first.
const UNKNOWN: f64 = 1e9;

impl Cost for Ewma {
    fn cost(kept: &Kept, now: Instant) -> f64 {
        let in_flight = kept.load().in_flight() as f64;
        match kept.latency().get(now) {
            Some(latency) => latency * (in_flight + 1.0),
            // Its first request tells how quick it is. Until then it gets no second one, unless all are new.
            None if in_flight == 0.0 => 0.0,
            None => UNKNOWN * in_flight,
        }
    }
}

#[derive(Debug)]
pub struct TwoChoices<C> {
    draw: Draw,
    gauges: Box<[(Arc<Kept>, u32)]>,
    cost: PhantomData<C>,
}

impl<C: Cost> TwoChoices<C> {
    pub fn new(members: &[Arc<Member>], shares: &[u32]) -> TwoChoices<C> {
        let gauge = |(member, share): (&Arc<Member>, &u32)| (member.kept().clone(), *share);
        TwoChoices {
            draw: Draw::new(shares),
            gauges: members.iter().zip(shares).map(gauge).collect(),
            cost: PhantomData,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.draw.is_empty()
    }

    pub fn pick(
        &self,
        random: &mut Random,
        now: Instant,
        is_free: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let first = self.draw.pick(random, &is_free)?;
        let other = |index| index != first && is_free(index);
        let Some(second) = self.draw.pick(random, other) else {
            return Some(first);
        };
        // Of equals the first: drawn by weight, where the second is drawn from what is left.
        match self.cost(second, now) < self.cost(first, now) {
            true => Some(second),
            false => Some(first),
        }
    }

    fn cost(&self, index: usize, now: Instant) -> f64 {
        let (kept, share) = &self.gauges[index];
        C::cost(kept, now) / f64::from(*share)
    }
}
