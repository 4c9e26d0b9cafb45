//! Active health checks: who is asked, and who is sent requests.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::certs::Authority;
use crate::harness::client::get;
use crate::harness::grpc::{GrpcOrigin, Says};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::secure::SecureOrigin;
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Setup, Weir};

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

/// A document with a pool `app` and, at `/status`, the status page.
fn with_status(pool: &str) -> String {
    format!(
        "
        listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}
        pools: {{ app: {pool} }}
        sites:
          main: {{ hosts: ['*'], routes: [{{ match: {{ path: /status }}, status: {{}} }}, {{ proxy: app }}] }}
        "
    )
}

/// What the status page says of the first member.
fn member(weir: &Weir) -> Value {
    let page: Value = serde_json::from_str(weir.get("/status").text()).expect("JSON");
    page["pools"][0]["members"][0].clone()
}

#[test]
fn grpc_service_is_asked_whether_it_is_serving() {
    let app = GrpcOrigin::start(Says::Status(1));
    let health =
        "{ grpc: { service: shop.Cart, host: cart.internal }, interval: 20ms, rise: 1, fall: 1 }";
    let weir = Setup::new().allow("is down").start(&with_status(&format!(
        "{{ backends: ['{app}'], health: {health} }}"
    )));
    eventually(PATIENCE, || member(&weir)["probe"]["passed"] == true);
    for (says, reason) in [
        (Says::Status(2), "the service is not serving"),
        (Says::Code(5), "the service is unknown (grpc-status 5)"),
        (
            Says::Code(12),
            "there is no health service (grpc-status 12)",
        ),
    ] {
        app.say(says);
        eventually(PATIENCE, || member(&weir)["reason"] == reason);
        let found = member(&weir);
        assert_eq!(
            (&found["state"], &found["up"]),
            (&"down".into(), &false.into())
        );
        app.say(Says::Status(1));
        eventually(PATIENCE, || member(&weir)["state"] == "up");
    }
    app.say(Says::Reset);
    eventually(PATIENCE, || member(&weir)["state"] == "down");

    let asked = &app.asked()[0];
    assert_eq!(asked.path, "/grpc.health.v1.Health/Check");
    assert_eq!(asked.authority, "cart.internal");
    assert_eq!(asked.headers["content-type"], "application/grpc");
    assert_eq!(asked.headers["te"], "trailers");
    assert_eq!(asked.message, b"\0\0\0\0\x0b\x0a\x09shop.Cart");
}

#[test]
fn backend_without_http2_fails_probes_by_grpc() {
    let app = Origin::fixed("ok");
    let health = "{ grpc: {}, interval: 20ms, timeout: 1s, rise: 1, fall: 1 }";
    let weir = Setup::new().allow("is down").start(&with_status(&format!(
        "{{ backends: ['{app}'], health: {health} }}"
    )));
    eventually(PATIENCE, || member(&weir)["state"] == "down");
    let reason = member(&weir)["reason"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    assert!(!reason.is_empty() && !reason.contains("within"), "{reason}");
}

#[test]
fn nobody_is_served_before_the_first_probes() {
    let app = Origin::start(Behaviour::Held("ok".to_owned()));
    let health = "{ http: { path: /probe }, interval: 1h, timeout: 10s, initial: wait }";
    let weir = Weir::with("app", &app).with("health", health);
    let weir = weir.start_pool("{ backends: ['{app}'], health: {health} }");
    let mut connection = weir.connect();
    let sent = connection.send_request(&get("/"));
    sent.expect("the socket listens");
    eventually(PATIENCE, || app.hits() == 1);
    // the answers to the probe of the start, to that of the first round, and to the request
    app.release(3);
    let answer = connection.read().expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    assert_eq!(app.requests()[0].target(), "/probe");
}

#[test]
fn member_that_fails_its_first_probe_never_gets_a_request() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    a.set_healthy(false);
    let checks = "{ http: { path: /healthz }, interval: 1h, initial: wait }";
    let checked = with_status(&format!("{{ backends: ['{a}', '{b}'], health: {checks} }}"));
    let unchecked = with_status(&format!("{{ backends: ['{a}', '{b}'] }}"));
    let weir = Setup::new().start(&checked);
    let bodies = || (0..6).map(|_| weir.get("/").text().to_owned());
    assert!(bodies().all(|body| body == "b"));
    assert_eq!(member(&weir)["reason"], "status 503, expected 200-299");
    assert!(
        weir.error_log()
            .contains(&format!("{a} is down: status 503"))
    );

    // a pool without checks so far knows nothing of its members
    weir.reload(&unchecked);
    weir.reload(&checked);
    assert!(bodies().all(|body| body == "b"));
    a.set_healthy(true);
    weir.reload(&unchecked);
    weir.reload(&checked);
    assert!(bodies().any(|body| body == "a"));
}

#[test]
fn probes_speak_what_the_pool_speaks() {
    const BOTH: &[u8] = b"\x02h2\x08http/1.1";
    let setup = Setup::new();
    let authority = Authority::new();
    authority.write(setup.dir(), "ca.pem");
    let pair = authority.issue(setup.dir(), "app", &["app.internal"]);
    let (plain, secure) = (SecureOrigin::h2c(), SecureOrigin::tls(&pair, BOTH));
    let trusted = "tls: { sni: app.internal, ca: ca.pem }";
    let says = |text: &str| format!("{{ http: {{ body: {{ contains: '{text}' }} }} }}");
    let pools = [
        (&plain, "protocol: h2c", says("h2 plain"), None),
        (&secure, trusted, says("h1 TLSv1.3 for app.internal"), None),
        (
            &secure,
            &*format!("{trusted}, protocol: h2"),
            says("h2 TLSv1.3 for app.internal"),
            None,
        ),
        (
            &secure,
            trusted,
            "{ grpc: {} }".to_owned(),
            Some("the answer is no message of the health service"),
        ),
        (
            &secure,
            "tls: true",
            "{ tcp: {} }".to_owned(),
            Some("CERTIFICATE_VERIFY_FAILED"),
        ),
    ]
    .map(|(origin, keys, health, reason)| {
        let health = health.replacen('{', "{ interval: 20ms, rise: 1, fall: 1, ", 1);
        let pool = format!("{{ backends: ['{origin}'], {keys}, health: {health} }}");
        (pool, reason)
    });
    let document: String = pools
        .iter()
        .enumerate()
        .map(|(i, (pool, _))| format!("  p{i}: {pool}\n"))
        .collect();
    let weir = setup.allow("is down").start(&format!(
        "listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}\npools:\n{document}\
         sites: {{ main: {{ hosts: ['*'], routes: [{{ status: {{}} }}] }} }}\n"
    ));
    for (i, (pool, reason)) in pools.iter().enumerate() {
        let member = || {
            let page: Value = serde_json::from_str(weir.get("/").text()).expect("JSON");
            page["pools"][i]["members"][0].clone()
        };
        eventually(PATIENCE, || !member()["probe"].is_null());
        let error = member()["probe"]["error"].clone();
        match reason {
            None => assert!(error.is_null(), "{pool}: {error}"),
            Some(reason) => {
                assert!(
                    error.as_str().unwrap_or_default().contains(reason),
                    "{error}"
                );
            }
        }
    }
}
