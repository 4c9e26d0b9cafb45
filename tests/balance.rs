//! How requests spread over the members of a pool.

use std::collections::BTreeMap;

use crate::harness::Weir;
use crate::harness::origin::Origin;

/// Who answered `count` requests, one after another.
fn answers(weir: &Weir, count: usize) -> String {
    let mut connection = weir.connect();
    let request = crate::harness::client::get("/");
    (0..count)
        .map(|_| {
            let answer = connection.fetch(&request).expect("an answer");
            assert_eq!(answer.status, 200);
            answer.text().to_owned()
        })
        .collect()
}

#[test]
fn round_robin_takes_turns() {
    let (a, b, c) = (Origin::fixed("a"), Origin::fixed("b"), Origin::fixed("c"));
    let weir = Weir::with("a", &a).with("b", &b).with("c", &c);
    let weir = weir.start_pool("{ backends: ['{a}', '{b}', '{c}'] }");
    let order = answers(&weir, 9);
    let turn = &order[..3];
    assert_eq!(order, turn.repeat(3));
    assert!(["abc", "bca", "cab"].contains(&turn), "{order}");
}

#[test]
fn weights_interleave_smoothly() {
    let (a, b, c) = (Origin::fixed("a"), Origin::fixed("b"), Origin::fixed("c"));
    let weir = Weir::with("a", &a).with("b", &b).with("c", &c);
    let weir = weir.start_pool(
        "{ balance: round_robin, backends: [{ addr: '{a}', weight: 5 }, '{b}', '{c}'] }",
    );
    // nginx's order, from whichever place the first request takes
    let order = answers(&weir, 21);
    assert!("aabacaa".repeat(4).contains(&order), "{order}");
}

#[test]
fn weights_are_kept_over_many_connections() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = Weir::with("a", &a).with("b", &b);
    let weir = weir.start_pool("{ backends: [{ addr: '{a}', weight: 3 }, '{b}'] }");
    let mut counts = BTreeMap::new();
    for _ in 0..40 {
        *counts.entry(weir.get("/").text().to_owned()).or_insert(0) += 1;
    }
    assert_eq!(counts["a"], 30, "{counts:?}");
    assert_eq!(counts["b"], 10, "{counts:?}");
}

#[test]
fn member_that_refuses_is_passed_over() {
    let (mut a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = Weir::with("a", &a)
        .with("b", &b)
        .start_pool("{ backends: ['{a}', '{b}'] }");
    a.kill();
    assert_eq!(answers(&weir, 10), "b".repeat(10));
    a.revive();
    assert!(answers(&weir, 10).contains('a'));
}

#[test]
fn each_member_is_tried_at_most_once() {
    let (mut a, mut b, mut c) = (Origin::fixed("a"), Origin::fixed("b"), Origin::fixed("c"));
    let weir = Weir::with("a", &a).with("b", &b).with("c", &c);
    let weir = weir.start(
        "
        log: { access: { file: '{dir}/access.log', format: '$status [$upstream_addr]' } }
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{a}', '{b}', '{c}'] } }
        sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
        ",
    );
    for origin in [&mut a, &mut b, &mut c] {
        origin.kill();
    }
    assert_eq!(weir.get("/").status, 502);
    let line = &weir.access_lines(1)[0];
    let tried = line
        .strip_prefix("502 [")
        .and_then(|rest| rest.strip_suffix(']'));
    let mut tried: Vec<_> = tried.expect("the addresses").split(", ").collect();
    tried.sort();
    let mut members = [a.to_string(), b.to_string(), c.to_string()];
    members.sort();
    assert_eq!(tried, members);
}
