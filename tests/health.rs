//! Active health checks: who is asked, and who is sent requests.

use std::time::{Duration, Instant};

use crate::harness::Weir;
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};

const CHECKS: &str = "{ http: { path: /healthz }, interval: 50ms, timeout: 1s, rise: 2, fall: 2 }";

fn start(a: &Origin, b: &Origin, health: &str) -> Weir {
    let setup = Weir::with("a", a).with("b", b).with("health", health);
    let setup = setup.allow("is down");
    setup.start_pool("{ backends: ['{a}', '{b}'], health: {health} }")
}

/// Whether `body` is (not) among the next answers.
fn answers_with(weir: &Weir, body: &str) -> bool {
    (0..6).any(|_| weir.get("/").text() == body)
}

#[test]
fn sick_member_gets_nothing_until_it_is_well_again() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = start(&a, &b, CHECKS);
    eventually(PATIENCE, || {
        answers_with(&weir, "a") && answers_with(&weir, "b")
    });
    a.set_healthy(false);
    eventually(PATIENCE, || !answers_with(&weir, "a"));
    a.set_healthy(true);
    eventually(PATIENCE, || answers_with(&weir, "a"));
}

#[test]
fn dead_member_is_found_by_tcp_and_taken_back() {
    let (mut a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let checks = "{ tcp: {}, interval: 50ms, timeout: 1s, rise: 2, fall: 2 }";
    let weir = start(&a, &b, checks);
    a.kill();
    eventually(PATIENCE, || !answers_with(&weir, "a"));
    a.revive();
    eventually(PATIENCE, || answers_with(&weir, "a"));
}

#[test]
fn no_request_fails_while_a_member_dies_and_returns() {
    use crate::harness::load::{Kind, Load};
    let (mut a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = start(&a, &b, CHECKS);
    let load = Load::start(Kind::KeepAlive, weir.address("http"), 2);
    load.wait_for_answers(50);
    for _ in 0..3 {
        a.kill();
        load.wait_for_answers(50);
        a.revive();
        let hits = a.hits();
        eventually(PATIENCE, || a.hits() > hits);
    }
    load.stop_without_failure();
}

#[test]
fn all_down_is_unavailable_at_once() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    a.set_healthy(false);
    b.set_healthy(false);
    let weir = start(&a, &b, CHECKS);
    eventually(PATIENCE, || weir.get("/").status == 503);
    let (hits, start) = (a.hits() + b.hits(), Instant::now());
    let answer = weir.get("/");
    assert_eq!((answer.status, answer.complete), (503, true));
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!(a.hits() + b.hits(), hits, "a member that is down was asked");
    a.set_healthy(true);
    eventually(PATIENCE, || weir.get("/").status == 200);
}

#[test]
fn members_are_checked_in_parallel() {
    // one that never answers its probes must not hold up the others
    let slow = Origin::start(Behaviour::Held("never".to_owned()));
    let b = Origin::fixed("b");
    let checks = "{ http: { path: /slow }, interval: 50ms, timeout: 10s, rise: 1, fall: 1 }";
    let _weir = start(&slow, &b, checks);
    let probes = |origin: &Origin| {
        let requests = origin.requests();
        requests
            .iter()
            .filter(|request| request.target() == "/slow")
            .count()
    };
    eventually(PATIENCE, || probes(&slow) == 1);
    eventually(Duration::from_secs(8), || probes(&b) >= 1);
}

#[test]
fn probe_carries_the_host_and_judges_by_the_expected_status() {
    let a = Origin::raw("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let b = Origin::raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nb");
    let checks = "{ http: { path: /probe, host: app.internal, expect: [404] }, interval: 50ms, timeout: 1s, rise: 1, fall: 1 }";
    let weir = start(&a, &b, checks);
    eventually(PATIENCE, || (0..6).all(|_| weir.get("/").status == 404));
    let requests = a.requests();
    let probe = requests.iter().find(|request| request.target() == "/probe");
    assert_eq!(probe.expect("a probe").header("host"), Some("app.internal"));
}

#[test]
fn member_without_checks_is_never_asked_for_its_health() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    for _ in 0..5 {
        weir.get("/");
    }
    assert_eq!((app.probes(), app.hits()), (0, 5));
}
