//! How requests spread over the members of a pool.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::harness::Weir;
use crate::harness::client::{Connection, get};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};

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
        .start_pool("{ backends: ['{a}', '{b}'], passive: off }");
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

#[test]
fn least_conn_goes_where_least_is_going_on() {
    let held = Origin::start(Behaviour::Held("a".to_owned()));
    let quick = Origin::fixed("b");
    let weir = Weir::with("a", &held).with("b", &quick);
    let weir =
        weir.start_pool("{ balance: least_conn, backends: ['{a}', { addr: '{b}', weight: 3 }] }");
    let mut first = occupy(&weir, &held, &quick);
    // Round robin would have sent two or three of them to `a`.
    assert_eq!(answers(&weir, 10), "b".repeat(10));
    held.release(1);
    assert_eq!(first.read().expect("an answer").text(), "a");
}

/// A connection on which a request is held, whoever answers before.
fn occupy(weir: &Weir, held: &Origin, other: &Origin) -> Connection {
    let mut connection = weir.connect();
    loop {
        let before = other.hits();
        connection.send_request(&get("/")).expect("send");
        eventually(PATIENCE, || held.hits() > 0 || other.hits() > before);
        if held.hits() > 0 {
            return connection;
        }
        connection.read().expect("an answer");
    }
}

#[test]
fn draws_reach_every_member() {
    let (a, b, c) = (Origin::fixed("a"), Origin::fixed("b"), Origin::fixed("c"));
    for balance in ["random", "p2c", "ewma"] {
        let weir = Weir::with("a", &a).with("b", &b).with("c", &c);
        let weir = weir.start_pool(&format!(
            "{{ balance: {balance}, backends: ['{{a}}', '{{b}}', '{{c}}'] }}"
        ));
        // one of them in vain in one of a hundred thousand runs, if drawn evenly
        let all = answers(&weir, 40);
        let fair = |name| all.contains(name);
        let reached = ["a", "b", "c"].into_iter().filter(|name| fair(*name));
        // `ewma` may well find one to be slower for all of that time
        let least = if balance == "ewma" { 2 } else { 3 };
        assert!(reached.count() >= least, "{balance}: {all}");
    }
}

#[test]
fn ewma_prefers_the_quicker_member() {
    let slow = Origin::start(Behaviour::Held("slow".to_owned()));
    let quick = Origin::fixed("quick");
    let weir = Weir::with("a", &slow).with("b", &quick);
    let weir = weir.start_pool("{ balance: ewma, backends: ['{a}', '{b}'] }");
    let mut first = occupy(&weir, &slow, &quick);
    // half a second from now it has answered, far later than the other ever does
    let begin = Instant::now();
    eventually(PATIENCE, || begin.elapsed() > Duration::from_millis(500));
    slow.release(1);
    assert_eq!(first.read().expect("an answer").text(), "slow");
    assert_eq!(answers(&weir, 20), "quick".repeat(20));
    // and over a reload
    let pool = "{ balance: ewma, backends: ['{b}', '{a}'] }";
    weir.reload(&crate::harness::one_pool(pool));
    assert_eq!(answers(&weir, 20), "quick".repeat(20));
}

#[test]
fn a_hash_sends_the_same_to_the_same() {
    let (a, b, c) = (Origin::fixed("a"), Origin::fixed("b"), Origin::fixed("c"));
    let weir = Weir::with("a", &a).with("b", &b).with("c", &c);
    let pool = "{ balance: { hash: '$host$arg_id' }, backends: ['{a}', '{b}', '{c}'] }";
    let weir = weir.start_pool(pool);
    let owner = |id: usize| weir.get(&format!("/x?id={id}&y={id}")).text().to_owned();
    let owners: Vec<String> = (0..40).map(owner).collect();
    for name in ["a", "b", "c"] {
        assert!(owners.iter().any(|owner| owner == name), "{owners:?}");
    }
    assert_eq!((0..40).map(owner).collect::<Vec<_>>(), owners);
    // without `c` only its own move
    weir.reload(&crate::harness::one_pool(&pool.replace(", '{c}'", "")));
    for (id, before) in owners.iter().enumerate() {
        let after = owner(id);
        assert!(after == *before || before == "c", "{id}: {before}, {after}");
    }
}

#[test]
fn a_client_stays_with_its_member() {
    let (a, b, c) = (Origin::fixed("a"), Origin::fixed("b"), Origin::fixed("c"));
    let weir = Weir::with("a", &a).with("b", &b).with("c", &c).start(
        "
        trusted_proxies: [127.0.0.0/8]
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { balance: ip_hash, backends: ['{a}', '{b}', '{c}'] } }
        sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
        ",
    );
    let mut seen = BTreeMap::new();
    for client in 1..40 {
        let request = get("/").header("X-Forwarded-For", &format!("192.0.2.{client}"));
        let member = weir.fetch(&request).text().to_owned();
        for _ in 0..2 {
            assert_eq!(weir.fetch(&request).text(), member);
        }
        *seen.entry(member).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}

#[test]
fn a_member_that_comes_back_starts_slowly() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = Weir::with("a", &a).with("b", &b);
    let weir = weir.start_pool(
        "{ backends: ['{a}', '{b}'], slow_start: 1h,
           health: { http: { path: /healthz }, interval: 50ms, rise: 1, fall: 1 } }",
    );
    assert_eq!(
        answers(&weir, 4).replace('b', "").len(),
        2,
        "both from the start"
    );
    a.set_healthy(false);
    eventually(PATIENCE, || answers(&weir, 2) == "bb");
    a.set_healthy(true);
    eventually(PATIENCE, || answers(&weir, 11).contains('a'));
    // one tenth of the other's share
    assert_eq!(answers(&weir, 110).replace('b', "").len(), 10);
}
