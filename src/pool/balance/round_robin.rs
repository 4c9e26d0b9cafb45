//! Smooth weighted round robin, with nginx's sequence: weights 5, 1, 1 give `a a b a c a a`.
//!
//! The sequence repeats after `sum of weights / their greatest common divisor` picks, so one period is computed
//! ahead, over the members that are up, whenever that set changes; a pick then is one step of a cursor. nginx
//! keeps a running weight for each member instead and scans all of them under a lock for every request.
//!
//! All workers share one cursor, so that the shares are exact however connections spread over workers. Each pick
//! moves the cursor's cache line to the core that picks: some ten nanoseconds, a hundred when many cores want it at
//! once, beside a proxied request's ten thousand and more. Only from several million requests per second on would a
//! cursor per core pay, and it would interleave as many sequences as there are cores. The cursor has a cache line to
//! itself, so that reading the order beside it costs nothing extra.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Members take turns, in proportion to their shares and evenly spread.
#[derive(Debug)]
pub struct RoundRobin {
    /// One period of the sequence, as member indices; empty when nobody has a share.
    order: Box<[u32]>,
    cursor: Arc<Cursor>,
}

/// How many turns were given. Alone on its cache line (and on the neighbour that x86 fetches along with it).
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cursor(AtomicU64);

impl RoundRobin {
    /// Goes on where `previous` is, so that a pool whose members come and go does not always begin with the first one.
    pub fn new(shares: &[u32], previous: Option<&RoundRobin>) -> RoundRobin {
        RoundRobin {
            order: period(shares),
            cursor: previous.map_or_else(Arc::default, |previous| previous.cursor.clone()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whose turn it is, among the members that are free.
    pub fn pick(&self, is_free: impl Fn(usize) -> bool) -> Option<usize> {
        self.turns().find(|index| is_free(*index))
    }

    /// The members of one period from the one whose turn it is; the next call begins one turn later.
    pub fn turns(&self) -> impl Iterator<Item = usize> + Clone {
        // Nobody to take turns: any length but 0 will do.
        let period = self.order.len().max(1) as u64;
        let turn = self.cursor.0.fetch_add(1, Ordering::Relaxed) % period;
        let (later, now) = self.order.split_at(turn as usize);
        now.iter().chain(later).map(|index| *index as usize)
    }
}

/// One period of the sequence, as indices into `shares`, of the members that have one.
///
/// In nginx's algorithm each member gains its weight at every step; the one that has most (the first of equals) is
/// picked and pays the sum of all weights. At step `t`, a member of weight `w` that was picked `k` times so has
/// `t * w - k * sum`. Members of one weight differ in `k` only and hence are picked in turn: it is enough to compare
/// the next one of each distinct weight, and a thousand members of equal weight cost no scan at all.
fn period(shares: &[u32]) -> Box<[u32]> {
    let mut classes: BTreeMap<u32, Class> = BTreeMap::new();
    for (index, share) in shares.iter().enumerate() {
        if *share != 0 {
            let class = classes.entry(*share).or_default();
            class.members.push(index as u32);
        }
    }
    let divisor = classes.keys().copied().fold(0, greatest_common_divisor);
    for (weight, class) in &mut classes {
        class.weight = i64::from(weight / divisor);
    }
    let mut classes: Vec<Class> = classes.into_values().collect();
    let sum: i64 = classes
        .iter()
        .map(|class| class.weight * class.members.len() as i64)
        .sum();
    let mut order = Vec::with_capacity(sum as usize);
    for step in 1..=sum {
        let next = classes
            .iter_mut()
            .max_by_key(|class| (class.balance(step, sum), Reverse(class.next())));
        if let Some(class) = next {
            order.push(class.next());
            class.picks += 1;
        }
    }
    order.into()
}

/// The members of one weight, and how often one of them was picked.
#[derive(Default)]
struct Class {
    weight: i64,
    members: Vec<u32>,
    picks: usize,
}

impl Class {
    fn next(&self) -> u32 {
        self.members[self.picks % self.members.len()]
    }

    /// What the next member has at this step.
    fn balance(&self, step: i64, sum: i64) -> i64 {
        let picked = (self.picks / self.members.len()) as i64;
        step * self.weight - picked * sum
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn picks(balancer: &RoundRobin, count: usize) -> Vec<usize> {
        (0..count)
            .map(|_| balancer.pick(|_| true).expect("a member is up"))
            .collect()
    }

    /// nginx's algorithm as it is usually written down.
    fn reference(weights: &[u32], is_up: &[bool], count: usize) -> Vec<usize> {
        let up: Vec<usize> = (0..weights.len()).filter(|index| is_up[*index]).collect();
        let sum: i64 = up.iter().map(|index| i64::from(weights[*index])).sum();
        let mut current = vec![0; weights.len()];
        let mut picks = Vec::new();
        for _ in 0..count {
            let mut best = up[0];
            for index in &up {
                current[*index] += i64::from(weights[*index]);
            }
            for index in &up {
                if current[*index] > current[best] {
                    best = *index;
                }
            }
            current[best] -= sum;
            picks.push(best);
        }
        picks
    }

    #[test]
    fn weights_five_one_one_interleave_as_in_nginx() {
        let balancer = RoundRobin::new(&[5, 1, 1], None);
        assert_eq!(picks(&balancer, 7), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(picks(&balancer, 7), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn equal_weights_take_turns_whatever_their_size() {
        let balancer = RoundRobin::new(&[100, 100, 100], None);
        assert_eq!(picks(&balancer, 6), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_member_without_share_gets_nothing_and_the_others_stay_exact() {
        let balancer = RoundRobin::new(&[0, 1, 1], None);
        assert_eq!(picks(&balancer, 4), [1, 2, 1, 2]);
        let balancer = RoundRobin::new(&[5, 1, 0], Some(&balancer));
        let six = picks(&balancer, 6);
        assert_eq!(six.iter().filter(|index| **index == 0).count(), 5);
        assert_eq!(six.iter().filter(|index| **index == 1).count(), 1);
        let balancer = RoundRobin::new(&[5, 1, 1], Some(&balancer));
        let seven = picks(&balancer, 7);
        assert_eq!(seven.iter().filter(|index| **index == 0).count(), 5);
    }

    #[test]
    fn nothing_is_picked_when_nobody_has_a_share_or_there_is_nobody() {
        for shares in [&[0, 0][..], &[]] {
            let balancer = RoundRobin::new(shares, None);
            assert!(balancer.is_empty());
            assert_eq!(balancer.pick(|_| true), None);
        }
    }

    #[test]
    fn each_member_is_tried_once_then_none_is_left() {
        let balancer = RoundRobin::new(&[1000, 1, 7], None);
        let mut seen = Vec::new();
        while let Some(index) = balancer.pick(|index| !seen.contains(&index)) {
            seen.push(index);
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
    }

    /// How often each of four members is picked by eight threads at once.
    fn concurrent_picks(balancer: &RoundRobin, each: usize) -> [usize; 4] {
        let pick = || {
            let mut counts = [0; 4];
            for index in picks(balancer, each) {
                counts[index] += 1;
            }
            counts
        };
        std::thread::scope(|scope| {
            let pickers: Vec<_> = (0..8).map(|_| scope.spawn(pick)).collect();
            let mut sum = [0; 4];
            for picker in pickers {
                let counts = picker.join().expect("a picker does not panic");
                for (sum, count) in sum.iter_mut().zip(counts) {
                    *sum += count;
                }
            }
            sum
        })
    }

    #[test]
    fn concurrent_pickers_share_exactly_also_around_a_member_that_is_down() {
        let balancer = RoundRobin::new(&[5, 1, 1, 3], None);
        let all = [8 * 500, 8 * 100, 8 * 100, 8 * 300];
        assert_eq!(concurrent_picks(&balancer, 1000), all);
        let balancer = RoundRobin::new(&[0, 1, 1, 3], Some(&balancer));
        let without_first = [0, 8 * 100, 8 * 100, 8 * 300];
        assert_eq!(concurrent_picks(&balancer, 500), without_first);
        let balancer = RoundRobin::new(&[5, 1, 1, 3], Some(&balancer));
        assert_eq!(concurrent_picks(&balancer, 1000), all);
    }

    #[test]
    fn large_pools_are_computed_quickly() {
        let shares: Vec<u32> = (0..10_000).map(|index| 1 + index % 3).collect();
        assert_eq!(RoundRobin::new(&shares, None).order.len(), 19_999);
    }

    proptest! {
        #[test]
        fn one_period_is_exact_smooth_and_as_in_nginx(
            members in prop::collection::vec((1u32..=100, any::<bool>()), 1..12)
        ) {
            let (weights, mut is_up): (Vec<u32>, Vec<bool>) = members.into_iter().unzip();
            is_up[0] = true;
            let share = |index: usize| if is_up[index] { weights[index] } else { 0 };
            let shares: Vec<u32> = (0..weights.len()).map(share).collect();
            let balancer = RoundRobin::new(&shares, None);

            let up = || (0..weights.len()).filter(|index| is_up[*index]);
            let divisor = up().map(|index| weights[index]).fold(0, greatest_common_divisor);
            let length: usize = up().map(|index| (weights[index] / divisor) as usize).sum();
            let period = picks(&balancer, length);
            prop_assert_eq!(&period, &reference(&weights, &is_up, length));

            for index in 0..weights.len() {
                let turns: Vec<usize> = (0..length).filter(|turn| period[*turn] == index).collect();
                let share = if is_up[index] { (weights[index] / divisor) as usize } else { 0 };
                prop_assert_eq!(turns.len(), share);
                // from each turn to the next one, over the end of the period
                let fair = length.div_ceil(share.max(1));
                for (i, turn) in turns.iter().enumerate() {
                    let next = turns[(i + 1) % turns.len()];
                    let gap = (next + length - turn - 1) % length + 1;
                    prop_assert!(gap <= 2 * fair, "gap {gap} of member {index}, fair {fair}");
                }
            }
        }
    }
}
