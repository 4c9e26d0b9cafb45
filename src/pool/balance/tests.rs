//! How evenly each algorithm spreads, and what each one is there for.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::pool::peer::Connector;
use pingora::protocols::l4::socket::SocketAddr;

use super::*;
use crate::pool::{InFlight, Place};

fn member(position: usize, weight: u32) -> Arc<Member> {
    // a loopback address for each, a million of them
    let [_, a, b, c] = (position as u32).to_be_bytes();
    let address = SocketAddr::Inet(([127, a, b, c], 80).into());
    named(position, address, weight)
}

fn named(position: usize, address: SocketAddr, weight: u32) -> Arc<Member> {
    let place = Place {
        position,
        address,
        authority: "app:80".into(),
        weight,
        backup: false,
        max_conns: None,
    };
    Arc::new(Member::new(place, &Connector::plain()))
}

/// An algorithm over members with these weights, each with its full share.
struct Fixture {
    members: Vec<Arc<Member>>,
    balancer: Balancer,
}

fn fixture(balance: &Balance, weights: &[u32]) -> Fixture {
    let members = weights.iter().enumerate();
    let members = members.map(|(position, weight)| member(position, *weight));
    let members: Vec<Arc<Member>> = members.collect();
    let balancer = Balancer::new(balance, &members, weights, 1, None);
    Fixture { members, balancer }
}

impl Fixture {
    fn pick(&self, choice: &Choice) -> usize {
        self.balancer.pick(choice, |_| true).expect("all are up")
    }

    fn begin(&self, index: usize) -> InFlight {
        self.members[index].begin().expect("there is room")
    }
}

fn hash() -> Balance {
    Balance::Hash(Template::parse("$uri").expect("a template"))
}

/// Those that have nothing to tell members apart by but their weights, as long as nothing runs.
const BLIND: [Balance; 5] = [
    Balance::RoundRobin,
    Balance::LeastConn,
    Balance::Random,
    Balance::P2c,
    Balance::Ewma,
];

fn every() -> impl Iterator<Item = Balance> {
    BLIND.into_iter().chain([Balance::IpHash, hash()])
}

/// The `number`th request of a fixed sequence, in which everything about requests is different.
fn request(number: u64, now: Instant) -> Choice {
    Choice {
        client: Some(IpAddr::V4((number as u32).into())),
        key: key_of(&number.to_be_bytes()),
        ..Choice::any(now, mix(number))
    }
}

/// How far the counts are from the weights: the statistic of Pearson's test.
fn chi_square(counts: &[usize], weights: &[u32]) -> f64 {
    let picks: usize = counts.iter().sum();
    let sum: u32 = weights.iter().sum();
    let terms = counts.iter().zip(weights).map(|(count, weight)| {
        let expected = picks as f64 * f64::from(*weight) / f64::from(sum);
        (*count as f64 - expected).powi(2) / expected
    });
    terms.sum()
}

/// What four workers pick at the same time, 25,000 requests each.
fn concurrent_picks(fixture: &Fixture) -> Vec<usize> {
    let now = Instant::now();
    let pick = |worker: u64| {
        let mut counts = vec![0; fixture.members.len()];
        for number in 0..25_000 {
            counts[fixture.pick(&request(worker * 25_000 + number, now))] += 1;
        }
        counts
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4).map(|n| scope.spawn(move || pick(n))).collect();
        let mut sum = vec![0; fixture.members.len()];
        for worker in workers {
            let counts = worker.join().expect("a worker does not panic");
            for (sum, count) in sum.iter_mut().zip(counts) {
                *sum += count;
            }
        }
        sum
    })
}

#[test]
fn members_at_rest_get_what_their_weights_say() {
    let weights = [5, 1, 1, 3, 10];
    for balance in BLIND {
        let fixture = fixture(&balance, &weights);
        let counts = concurrent_picks(&fixture);
        let chi_square = chi_square(&counts, &weights);
        // of four degrees of freedom: one in ten thousand is more
        assert!(chi_square < 23.5, "{balance:?}: {counts:?}, {chi_square}");
    }
}

#[test]
fn keys_are_spread_as_the_weights_say() {
    // Points are few: with 160 for each unit a member's part of the ring is within some ten percent of its due.
    for balance in [Balance::IpHash, hash()] {
        for weights in [vec![1; 10], vec![5, 1, 1, 3, 10], vec![1000, 999, 500]] {
            let fixture = fixture(&balance, &weights);
            let counts = concurrent_picks(&fixture);
            let sum: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let due = 100_000.0 * f64::from(*weight) / f64::from(sum);
                let off = (*count as f64 - due).abs() / due;
                assert!(off < 0.25, "{balance:?} {weights:?}: {counts:?}");
            }
        }
    }
}

#[test]
fn nobody_without_share_is_picked_and_everybody_with_one_once() {
    let now = Instant::now();
    for balance in every() {
        for weights in [&[0, 3, 0, 1, 1000][..], &[1; 300], &[7]] {
            let fixture = fixture(&balance, weights);
            assert!(!fixture.balancer.is_empty());
            let mut seen = vec![false; weights.len()];
            let with_share = weights.iter().filter(|weight| **weight != 0).count();
            for number in 0..with_share as u64 {
                let picked = fixture.balancer.pick(&request(number, now), |i| !seen[i]);
                let picked = picked.unwrap_or_else(|| panic!("{balance:?}: somebody is left"));
                assert_ne!(weights[picked], 0, "{balance:?}");
                seen[picked] = true;
            }
            let choice = request(0, now);
            assert_eq!(fixture.balancer.pick(&choice, |i| !seen[i]), None);
        }
        for weights in [&[0, 0][..], &[]] {
            let fixture = fixture(&balance, weights);
            assert!(fixture.balancer.is_empty(), "{balance:?}");
            assert_eq!(fixture.balancer.pick(&request(1, now), |_| true), None);
        }
    }
}

#[test]
fn draws_stay_in_proportion_around_a_member_that_is_full() {
    let weights = [1000, 1, 2, 3];
    let fixture = fixture(&Balance::Random, &weights);
    let mut counts = vec![0; 3];
    for number in 0..60_000 {
        let choice = request(number, Instant::now());
        let picked = fixture.balancer.pick(&choice, |index| index != 0);
        counts[picked.expect("three are free") - 1] += 1;
    }
    let chi_square = chi_square(&counts, &weights[1..]);
    assert!(chi_square < 18.4, "{counts:?}, {chi_square}");
}

#[test]
fn the_least_busy_member_is_picked_in_proportion_to_weights() {
    let fixture = fixture(&Balance::LeastConn, &[1, 3, 1]);
    let choice = request(0, Instant::now());
    let mut running = Vec::new();
    for _ in 0..50 {
        running.push(fixture.begin(fixture.pick(&choice)));
    }
    let in_flight = |index: usize| fixture.members[index].load().in_flight();
    assert_eq!([in_flight(0), in_flight(1), in_flight(2)], [10, 30, 10]);
    running.retain(|request| Arc::ptr_eq(request, &fixture.members[0]));
    for _ in 0..32 {
        let picked = fixture.pick(&choice);
        assert_ne!(picked, 0, "it is busiest");
        running.push(fixture.begin(picked));
    }
    assert_eq!([in_flight(1), in_flight(2)], [24, 8]);
}

#[test]
fn equally_busy_members_take_turns() {
    let fixture = fixture(&Balance::LeastConn, &[5, 1, 1]);
    let choice = request(0, Instant::now());
    let picks: Vec<usize> = (0..7).map(|_| fixture.pick(&choice)).collect();
    assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    // one request for each unit of weight
    let burden = [0, 0, 0, 0, 0, 1, 2].map(|index| fixture.begin(index));
    let picks: Vec<usize> = (0..7).map(|_| fixture.pick(&choice)).collect();
    assert_eq!(picks, [0, 0, 1, 0, 2, 0, 0]);
    drop(burden);
}

#[test]
fn of_many_members_the_only_idle_one_is_found() {
    let fixture = fixture(&Balance::LeastConn, &[1; 128]);
    let busy: Vec<InFlight> = (0..128)
        .filter(|i| *i != 77)
        .map(|i| fixture.begin(i))
        .collect();
    for number in 0..300 {
        assert_eq!(fixture.pick(&request(number, Instant::now())), 77);
    }
    drop(busy);
}

#[test]
fn of_very_many_members_a_busy_one_is_passed_over() {
    let fixture = fixture(&Balance::LeastConn, &[1; 1000]);
    let busy: Vec<InFlight> = (0..1000)
        .filter(|i| i % 10 != 0)
        .map(|i| fixture.begin(i))
        .collect();
    for number in 0..1000 {
        assert_eq!(fixture.pick(&request(number, Instant::now())) % 10, 0);
    }
    drop(busy);
}

#[test]
fn two_choices_keep_the_longest_queue_short() {
    let longest = |balance: &Balance| {
        let fixture = fixture(balance, &[1; 100]);
        let mut running = Vec::new();
        for number in 0..10_000 {
            let picked = fixture.pick(&request(number, Instant::now()));
            running.push(fixture.begin(picked));
        }
        let in_flight = fixture.members.iter().map(|m| m.load().in_flight());
        in_flight.max().expect("there are members")
    };
    // a hundred is the mean
    assert!(longest(&Balance::Random) > 115);
    assert!(longest(&Balance::P2c) <= 103);
    assert_eq!(longest(&Balance::LeastConn), 100);
}

#[test]
fn the_quicker_of_two_is_taken_until_it_is_busy() {
    let fixture = fixture(&Balance::Ewma, &[1, 1]);
    let now = Instant::now();
    for (index, latency) in [(0, 10), (1, 50)] {
        let latency = Duration::from_millis(latency);
        fixture.begin(index).answered(latency, now);
    }
    let mut running = Vec::new();
    for number in 0..30 {
        let picked = fixture.pick(&request(number, now));
        running.push(fixture.begin(picked));
    }
    // requests to latencies as five to one
    assert_eq!(fixture.members[0].load().in_flight(), 25);
    assert_eq!(fixture.members[1].load().in_flight(), 5);
}

#[test]
fn a_new_member_gets_one_request_until_it_has_answered() {
    let fixture = fixture(&Balance::Ewma, &[1, 1]);
    let now = Instant::now();
    fixture.begin(0).answered(Duration::from_millis(10), now);
    assert_eq!(fixture.pick(&request(0, now)), 1);
    let first = fixture.begin(1);
    for number in 0..20 {
        assert_eq!(fixture.pick(&request(number, now)), 0);
    }
    first.answered(Duration::from_millis(1), now);
    drop(first);
    assert_eq!(fixture.pick(&request(0, now)), 1);
}

#[test]
fn a_member_that_was_slow_is_tried_again() {
    let fixture = fixture(&Balance::Ewma, &[1, 1]);
    let start = Instant::now();
    let picks = |now: Instant| {
        let mut picks = (0..20).map(|number| fixture.pick(&request(number, now)));
        picks.any(|picked| picked == 1)
    };
    fixture.begin(1).failed(Duration::from_millis(1), start);
    for second in 0..120 {
        let now = start + Duration::from_secs(second);
        fixture.begin(0).answered(Duration::from_millis(5), now);
        if picks(now) {
            // 1 s * e^-t/10 is less than 5 ms
            assert!((53..=54).contains(&second), "after {second} s");
            return;
        }
    }
    panic!("it is never tried");
}

/// Who serves each of 20,000 keys.
fn owners(members: &[Arc<Member>]) -> Vec<Arc<str>> {
    let shares: Vec<u32> = members.iter().map(|m| m.weight()).collect();
    let balancer = Balancer::new(&hash(), members, &shares, 1, None);
    let owner = |number: u64| {
        let choice = request(number, Instant::now());
        let index = balancer.pick(&choice, |_| true).expect("all are up");
        members[index].backend().clone()
    };
    (0..20_000).map(owner).collect()
}

#[test]
fn a_member_that_comes_or_goes_moves_only_its_own_keys() {
    let mut members: Vec<_> = (0..10).map(|position| member(position, 1)).collect();
    let socket = std::os::unix::net::SocketAddr::from_pathname("/run/app.sock");
    members[3] = named(3, SocketAddr::Unix(socket.expect("a path")), 1);
    let before = owners(&members);
    for gone in [0, 3, 9] {
        let mut fewer = members.clone();
        fewer.remove(gone);
        let after = owners(&fewer);
        let mut moved = 0;
        for (before, after) in before.iter().zip(&after) {
            if before != after {
                assert_eq!(before, members[gone].backend(), "another's key moved");
                moved += 1;
            }
        }
        assert!((1_500..2_500).contains(&moved), "{moved} of 20000");
    }
}

#[test]
fn a_heavier_weight_takes_keys_and_moves_no_others() {
    let mut members: Vec<_> = (0..10).map(|position| member(position, 1)).collect();
    let before = owners(&members);
    members[4] = member(4, 2);
    let after = owners(&members);
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b);
    let moved: Vec<_> = moved.collect();
    assert!(
        moved
            .iter()
            .all(|(_, after)| *after == members[4].backend())
    );
    // from one tenth to two elevenths
    assert!((1_300..2_000).contains(&moved.len()), "{}", moved.len());
}

#[test]
fn keys_of_a_member_that_is_down_spread_over_the_others_and_come_back() {
    let members: Vec<_> = (0..10).map(|position| member(position, 1)).collect();
    let new = |shares: &[u32], previous: Option<&Balancer>| {
        Balancer::new(&hash(), &members, shares, 1, previous)
    };
    let all = new(&[1; 10], None);
    let mut shares = [1; 10];
    shares[6] = 0;
    let without = new(&shares, Some(&all));
    let (Balancer::Hash(ring), Balancer::Hash(same)) = (&all, &without) else {
        panic!("both hash");
    };
    assert!(ring.shares_ring_with(same), "the ring is made anew");
    let mut heirs: HashMap<usize, usize> = HashMap::new();
    for number in 0..20_000 {
        let choice = request(number, Instant::now());
        let pick = |balancer: &Balancer| balancer.pick(&choice, |_| true).expect("nine are up");
        match pick(&all) {
            6 => *heirs.entry(pick(&without)).or_default() += 1,
            owner => assert_eq!(pick(&without), owner),
        }
    }
    assert!(heirs.len() == 9 && !heirs.contains_key(&6), "{heirs:?}");
}

#[test]
fn half_of_a_share_is_half_of_the_keys() {
    let members: Vec<_> = (0..4).map(|position| member(position, 3)).collect();
    let count = |share: u32| {
        let balancer = Balancer::new(&hash(), &members, &[share, 30, 30, 30], 10, None);
        let picks = (0..20_000).map(|number| {
            let choice = request(number, Instant::now());
            balancer.pick(&choice, |_| true).expect("all are up")
        });
        picks.filter(|picked| *picked == 0).count()
    };
    let (full, half) = (count(30), count(15));
    assert!(
        half * 2 > full * 9 / 10 && half * 2 < full * 11 / 10,
        "{half} of {full}"
    );
    assert!((count(30 * 7 / 10) as f64 / full as f64 - 0.7).abs() < 0.05);
}

#[test]
fn heavy_rings_stay_in_proportion_within_their_bounds() {
    let weight = |position| if position == 0 { 1 } else { 1000 };
    let members: Vec<_> = (0..2000).map(|p| member(p, weight(p))).collect();
    let shares: Vec<u32> = members.iter().map(|m| m.weight()).collect();
    let hashing = Hashing::new(&members, &shares, 1, None);
    assert!(hashing.points() <= (1 << 18) + 2000, "{}", hashing.points());
}

#[test]
fn a_client_is_an_address_or_an_ipv6_network() {
    let key = |text: &str| ring::key_of_client(text.parse().expect("an address"));
    assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    assert_eq!(key("2001:db8::1"), key("2001:db8::2:1"));
    assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
    // so that weirs of all versions agree
    assert_eq!(key_of(b"/index.html"), GOLDEN);
}

const GOLDEN: u64 = 17_774_974_476_708_365_351;
