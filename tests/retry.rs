//! Another member after a failed try: when it is safe and wanted, and never otherwise.

use std::ops::Range;

use serde_json::Value;

use crate::harness::Weir;
use crate::harness::client::{Request, get, post};
use crate::harness::origin::{Behaviour, Origin};

/// A pool of `bad` and `good` with `more` keys. Faults are errors of the backends, and may be called so in the log.
fn start(bad: &Origin, good: &Origin, more: &str) -> Weir {
    let setup = Weir::with("bad", bad).with("good", good).allow("");
    // the bad one is to get its share to the end
    setup.start_pool(&format!(
        "{{ backends: ['{{bad}}', '{{good}}'], passive: off, {more} }}"
    ))
}

/// The statuses of some requests, one after another, each on a connection of its own.
fn statuses(weir: &Weir, request: &Request, count: usize) -> Vec<u16> {
    let status = |_: usize| weir.fetch(request).status;
    (0..count).map(status).collect()
}

/// Two of four go to the bad member first.
const MADE_GOOD: [u16; 4] = [200; 4];

#[track_caller]
fn assert_half_fail(weir: &Weir, request: &Request, status: u16) {
    let mut statuses = statuses(weir, request, 4);
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, status, status]);
}

fn put(length: usize) -> Request {
    let mut request = post("/", vec![b'x'; length]);
    request.method = "PUT".to_owned();
    request
}

fn unavailable(body: &str) -> Origin {
    let length = body.len();
    Origin::raw(&format!(
        "HTTP/1.1 503 Busy\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
}

#[test]
fn broken_connection_is_made_good_by_default() {
    for behaviour in [Behaviour::Close, Behaviour::CloseAtOnce] {
        let (bad, good) = (Origin::start(behaviour), Origin::fixed("good"));
        let weir = start(&bad, &good, "");
        assert_eq!(statuses(&weir, &get("/"), 4), MADE_GOOD);
    }
}

#[test]
fn silence_is_made_good_by_default() {
    let bad = Origin::start(Behaviour::Held("late".to_owned()));
    let good = Origin::fixed("good");
    let weir = start(&bad, &good, "timeouts: { read: 200ms }");
    assert_eq!(statuses(&weir, &get("/"), 4), MADE_GOOD);
}

#[test]
fn post_is_sent_again_only_if_it_was_not_sent_at_all() {
    let (mut bad, good) = (Origin::start(Behaviour::Close), Origin::fixed("good"));
    let weir = start(&bad, &good, "");
    assert_half_fail(&weir, &post("/", "order"), 502);
    assert_eq!((bad.hits(), good.hits()), (2, 2));
    bad.kill();
    assert_eq!(statuses(&weir, &post("/", "order"), 4), MADE_GOOD);
}

#[test]
fn post_is_sent_again_where_that_is_said_to_be_safe() {
    let (bad, good) = (Origin::start(Behaviour::Close), Origin::fixed("good"));
    let weir = start(&bad, &good, "retry: { non_idempotent: true }");
    assert_eq!(statuses(&weir, &post("/", "order"), 4), MADE_GOOD);
    assert!(
        good.requests()
            .iter()
            .all(|request| request.body == b"order")
    );
}

#[test]
fn bodies_that_fit_into_memory_are_sent_again_whole() {
    let (bad, good) = (Origin::start(Behaviour::Close), Origin::fixed("good"));
    let weir = start(&bad, &good, "");
    const FITS: usize = 60 * 1024;
    assert_eq!(statuses(&weir, &put(FITS), 4), MADE_GOOD);
    assert!(
        good.requests()
            .iter()
            .all(|request| request.body.len() == FITS)
    );
    assert_half_fail(&weir, &put(200 * 1024), 502);
}

#[test]
fn statuses_are_answers_unless_they_are_listed() {
    let (bad, good) = (unavailable("busy"), Origin::fixed("good"));
    assert_half_fail(&start(&bad, &good, ""), &get("/"), 503);
    let weir = start(&bad, &good, "retry: { on: [502, 503] }");
    assert_eq!(statuses(&weir, &get("/"), 4), MADE_GOOD);
    assert_half_fail(&weir, &post("/", "order"), 503);
    assert_half_fail(&start(&bad, &good, "retry: { on: 500 }"), &get("/"), 503);
}

#[test]
fn status_is_made_good_for_http2_clients() {
    let (bad, good) = (unavailable("busy"), Origin::fixed("good"));
    let setup = Weir::with("bad", &bad).with("good", &good);
    let weir = setup.start(
        "
        listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
        pools: { app: { backends: ['{bad}', '{good}'], retry: { on: 503 } } }
        sites: { main: { hosts: ['*'], tls: { self_signed: true }, routes: [{ proxy: app }] } }
        ",
    );
    let mut client = weir.connect_http2("localhost");
    for _ in 0..4 {
        let answer = client.fetch(&put(1000)).expect("an answer");
        assert_eq!((answer.status, answer.text()), (200, "good"));
    }
    assert!(
        good.requests()
            .iter()
            .all(|request| request.body.len() == 1000)
    );
}

#[test]
fn last_bad_answer_is_passed_on_as_it_is() {
    let (a, b) = (unavailable("a is busy"), unavailable("b is busy"));
    let weir = start(&a, &b, "retry: { on: 503 }");
    let answer = weir.get("/");
    assert_eq!((answer.status, answer.complete), (503, true));
    assert!(answer.text().ends_with(" is busy"), "{}", answer.text());
    assert_eq!((a.hits(), b.hits()), (1, 1));
}

#[test]
fn off_is_the_first_try_only() {
    let (mut bad, good) = (Origin::fixed("bad"), Origin::fixed("good"));
    let weir = start(&bad, &good, "retry: off");
    bad.kill();
    assert_half_fail(&weir, &get("/"), 502);
}

#[test]
fn attempts_count_the_first_try() {
    let bad = [(); 3].map(|()| Origin::start(Behaviour::Close));
    let setup = Weir::with("a", &bad[0])
        .with("b", &bad[1])
        .with("c", &bad[2]);
    let weir = setup.start_pool("{ backends: ['{a}', '{b}', '{c}'], retry: { attempts: 2 } }");
    assert_eq!(weir.get("/").status, 502);
    assert_eq!(bad.iter().map(Origin::hits).sum::<usize>(), 2);
}

#[test]
fn no_member_is_asked_twice() {
    let (a, b) = (
        Origin::start(Behaviour::Close),
        Origin::start(Behaviour::Close),
    );
    let weir = start(&a, &b, "retry: { attempts: 10, on: [connect, reset, 502] }");
    assert_eq!(weir.get("/").status, 502);
    assert_eq!((a.hits(), b.hits()), (1, 1));
}

#[test]
fn budget_bounds_what_a_failing_pool_is_given() {
    let (a, b) = (
        Origin::start(Behaviour::Close),
        Origin::start(Behaviour::Close),
    );
    let weir = start(&a, &b, "retry: { budget: 10% }");
    const REQUESTS: usize = 50;
    assert_eq!(statuses(&weir, &get("/"), REQUESTS), [502; REQUESTS]);
    let retries = a.hits() + b.hits() - REQUESTS;
    // ten are always allowed within ten seconds
    const ALLOWED: Range<usize> = 10..21;
    assert!(ALLOWED.contains(&retries), "{retries} retries");
}

#[test]
fn kept_connection_that_closes_is_no_failed_try() {
    let app = Origin::start(Behaviour::Once("once".to_owned()));
    let weir = Weir::with("app", &app);
    let weir = weir.start_pool("{ backends: ['{app}'], retry: off }");
    assert_eq!(statuses(&weir, &get("/"), 6), [200; 6]);
    assert!(app.hits() > 6, "no kept connection was used");
}

#[test]
fn log_lists_every_try() {
    let (bad, good) = (unavailable("busy"), Origin::fixed("good"));
    let mut dead = Origin::fixed("dead");
    let template = "$upstream_addr|$upstream_status|$upstream_connect_time|$upstream_header_time|$upstream_response_time";
    let setup = Weir::with("bad", &bad)
        .with("good", &good)
        .with("dead", &dead);
    let weir = setup.start(&format!(
        "
        listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}
        pools: {{ app: {{ backends: ['{{dead}}', '{{bad}}', '{{good}}'], retry: {{ on: [connect, 503] }} }} }}
        sites: {{ main: {{ hosts: ['*'], routes: [{{ proxy: app }}] }} }}
        log: {{ access: {{ file: '{{dir}}/access.log', format: '{template}' }} }}
        "
    ));
    dead.kill();
    assert_eq!(statuses(&weir, &get("/"), 3), [200; 3]);
    let lines = weir.access_lines(3);
    let all = lines.iter().find(|line| line.matches(", ").count() == 10);
    let all = all.unwrap_or_else(|| panic!("no request was tried three times: {lines:?}"));
    let lists: Vec<Vec<&str>> = all
        .split('|')
        .map(|list| list.split(", ").collect())
        .collect();
    assert_eq!(
        lists[0],
        [dead.to_string(), bad.to_string(), good.to_string()]
    );
    assert_eq!(lists[1], ["502", "503", "200"]);
    for (list, unknown) in [(2, 1), (3, 1), (4, 0)] {
        let times = lists[list].iter().map(|time| time.parse::<f64>().is_ok());
        let expected = [unknown == 0, true, true];
        assert!(times.eq(expected), "{:?}", lists[list]);
    }

    let log = weir.error_log();
    for (member, reason) in [(&dead, "ConnectRefused"), (&bad, "status 503")] {
        let start = format!("retry: {member} of pool `app`: ");
        let told = |line: &str| line.contains(&start) && line.contains(reason);
        assert!(log.lines().any(told), "{start}{reason}: {log}");
    }
}

#[test]
fn json_log_lists_every_try() {
    let (bad, good) = (Origin::start(Behaviour::Close), Origin::fixed("good"));
    let setup = Weir::with("bad", &bad).with("good", &good);
    let weir = setup.start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{bad}', '{good}'] } }
        sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
        log: { access: { file: '{dir}/access.log', format: json } }
        ",
    );
    assert_eq!(statuses(&weir, &get("/"), 2), [200; 2]);
    let lines = weir.access_lines(2);
    let tries = lines.iter().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["upstream"].as_array().expect("a list").clone()
    });
    let tries = tries.max_by_key(Vec::len).expect("two lines");
    assert_eq!(tries.len(), 2);
    assert_eq!(tries[0]["addr"], bad.to_string());
    assert_eq!(tries[0]["status"], 502);
    assert!(tries[0]["header_time"].is_null() && tries[0]["response_time"].is_number());
    assert_eq!(
        (&tries[1]["status"], &tries[1]["addr"]),
        (&200.into(), &good.to_string().into())
    );
}
