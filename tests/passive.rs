//! Passive health: members at which requests fail get none for a while.

use crate::harness::Weir;
use crate::harness::client::{get, post};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};

/// Two members that are judged by `passive`.
fn start(a: &Origin, b: &Origin, passive: &str) -> Weir {
    let setup = Weir::with("a", a).with("b", b).with("passive", passive);
    setup.start_pool("{ backends: ['{a}', '{b}'], passive: {passive}, timeouts: { read: 300ms } }")
}

/// Sends so many requests, whatever comes of them.
fn send(weir: &Weir, count: usize) -> Vec<u16> {
    (0..count).map(|_| weir.get("/").status).collect()
}

fn log_has(weir: &Weir, text: &str) -> bool {
    weir.error_log().contains(text)
}

/// For ever, as far as a test goes.
const LONG: &str = "{ max_fails: 2, fail_timeout: 10m }";

#[test]
fn member_that_refuses_is_ejected_and_comes_back() {
    let (mut a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = start(&a, &b, "{ max_fails: 2, fail_timeout: 500ms }");
    a.kill();
    assert_eq!(send(&weir, 6), [200; 6]);
    let news = format!(
        "pool app: {a} is ejected for 500ms: connection refused (2 failures in 500ms); 1 of 2 members up"
    );
    eventually(PATIENCE, || log_has(&weir, &news));
    a.revive();
    eventually(PATIENCE, || weir.get("/").text() == "a");
    let news = format!("pool app: {a} is back: a request was answered; 2 of 2 members up");
    eventually(PATIENCE, || log_has(&weir, &news));
    assert_eq!(weir.error_log().matches("is ejected").count(), 1);
}

#[test]
fn ejected_member_is_left_alone() {
    let (mut a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = start(&a, &b, LONG);
    a.kill();
    send(&weir, 6);
    a.revive();
    let hits = a.hits();
    assert_eq!(send(&weir, 10), [200; 10]);
    assert_eq!(a.hits(), hits);
}

#[test]
fn resets_silence_and_garbage_are_failures() {
    for (behaviour, reason) in [
        (
            Behaviour::Close,
            "connection closed before the end of the answer",
        ),
        (
            Behaviour::Held("late".to_owned()),
            "no answer within the time limit",
        ),
        (
            Behaviour::Raw(b"SSH-2.0-x\r\n\r\n".to_vec()),
            "the answer is not HTTP",
        ),
        (
            Behaviour::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".to_vec()),
            "connection closed before the end of the answer",
        ),
    ] {
        let (a, b) = (Origin::start(behaviour), Origin::fixed("b"));
        let weir = start(&a, &b, LONG);
        // not all of them can be tried elsewhere
        for _ in 0..4 {
            let _ = weir.connect().fetch(&get("/"));
        }
        let news = format!("{a} is ejected for 600s: {reason} (2 failures in 600s)");
        eventually(PATIENCE, || log_has(&weir, &news));
        assert_eq!(send(&weir, 4), [200; 4]);
        assert_eq!(a.hits(), 2);
    }
}

#[test]
fn statuses_are_failures_where_they_are_listed() {
    let ill = "HTTP/1.1 503 Ill\r\nContent-Length: 0\r\n\r\n";
    let (a, b) = (Origin::raw(ill), Origin::fixed("b"));
    let weir = start(&a, &b, LONG);
    assert_eq!(
        send(&weir, 10)
            .iter()
            .filter(|status| **status == 503)
            .count(),
        5
    );

    let weir = start(
        &a,
        &b,
        "{ max_fails: 2, fail_timeout: 10m, on_status: [502, 503] }",
    );
    assert_eq!(
        send(&weir, 10)
            .iter()
            .filter(|status| **status == 503)
            .count(),
        2
    );
    assert!(log_has(
        &weir,
        "is ejected for 600s: status 503 (2 failures in 600s)"
    ));
}

#[test]
fn kept_connection_that_turns_out_closed_is_no_failure() {
    let a = Origin::start(Behaviour::Once("a".to_owned()));
    let b = Origin::fixed("b");
    let weir = start(&a, &b, "{ max_fails: 1, fail_timeout: 10m }");
    for _ in 0..10 {
        let _ = weir.connect().fetch(&get("/"));
        // cannot be sent again, so that the client learns of it
        let _ = weir.connect().fetch(&post("/", "body"));
    }
    assert!(a.hits() > 10, "it gets its share: {}", a.hits());
    assert!(!log_has(&weir, "is ejected"));
}

#[test]
fn all_are_tried_when_all_are_ejected() {
    let (mut a, mut b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = start(&a, &b, LONG);
    a.kill();
    b.kill();
    assert_eq!(send(&weir, 4), [502; 4]);
    eventually(PATIENCE, || {
        log_has(
            &weir,
            "0 of 2 members up, so that it gets requests all the same",
        )
    });
    a.revive();
    b.revive();
    assert_eq!(send(&weir, 4), [200; 4]);
    eventually(PATIENCE, || log_has(&weir, "is back"));
}

#[test]
fn backup_serves_for_a_member_that_is_ejected() {
    let (mut a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let setup = Weir::with("a", &a).with("b", &b);
    let weir = setup.start_pool(
        "{ backends: ['{a}', { addr: '{b}', backup: true }], passive: { max_fails: 1, fail_timeout: 10m } }",
    );
    assert_eq!(weir.get("/").text(), "a");
    a.kill();
    assert_eq!(weir.get("/").text(), "b");
    a.revive();
    assert_eq!(weir.get("/").text(), "b");
}

#[test]
fn off_leaves_failures_without_consequence() {
    let (mut a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = start(&a, &b, "off");
    a.kill();
    assert_eq!(send(&weir, 20), [200; 20]);
    a.revive();
    let answers: Vec<_> = (0..2).map(|_| weir.get("/").text().to_owned()).collect();
    assert!(answers.contains(&"a".to_owned()), "{answers:?}");
    assert!(!log_has(&weir, "is ejected"));
}

#[test]
fn ejection_outlives_a_reload_and_is_in_the_status() {
    let (mut a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let document = |weight: u32| {
        format!(
            "
            listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}
            pools: {{ app: {{ backends: ['{a}', {{ addr: '{b}', weight: {weight} }}], passive: {LONG} }} }}
            sites:
              main: {{ hosts: ['*'], routes: [{{ match: {{ path: /status }}, status: {{}} }}, {{ proxy: app }}] }}
            "
        )
    };
    let (before, after) = (document(1), document(2));
    let weir = crate::harness::Setup::new().start(&before);
    a.kill();
    send(&weir, 6);
    let status = || weir.get("/status").text().to_owned();
    let value: serde_json::Value = serde_json::from_str(&status()).expect("JSON");
    let member = &value["pools"][0]["members"][0];
    assert_eq!(
        (&member["state"], &member["up"]),
        (&"ejected".into(), &false.into())
    );
    assert_eq!(member["reason"], "connection refused (2 failures in 600s)");
    assert!(member["since"].is_u64());
    assert_eq!(value["pools"][0]["up"], 1);
    let other = &value["pools"][0]["members"][1];
    assert!(
        other["latency_ms"]
            .as_f64()
            .is_some_and(|latency| latency > 0.0),
        "{other}"
    );

    weir.reload(&after);
    a.revive();
    assert!(status().contains("\"ejected\""), "{}", status());
    assert_eq!(send(&weir, 6), [200; 6]);
    assert_eq!(a.hits(), 0);
}
