//! Requests that wait for room.

use std::time::{Duration, Instant};

use crate::harness::Weir;
use crate::harness::client::{Connection, get, post};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually, holds_within};

fn held() -> Origin {
    Origin::start(Behaviour::Held("held".to_owned()))
}

fn start(app: &Origin, queue: &str) -> Weir {
    Weir::with("app", app).start(&format!(
        "
        log: {{ access: {{ file: '{{dir}}/access.log', format: '$status $failure $uri' }} }}
        listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}
        pools: {{ app: {{ backends: [{{ addr: '{{app}}', max_conns: 1 }}], queue: {queue} }} }}
        sites: {{ main: {{ hosts: ['*'], routes: [{{ proxy: app }}] }} }}
        "
    ))
}

fn sent(weir: &Weir, target: &str) -> Connection {
    let mut connection = weir.connect();
    connection.send_request(&get(target)).expect("send");
    connection
}

#[test]
fn a_request_waits_until_a_member_has_room() {
    let app = held();
    let weir = start(&app, "{ size: 9, timeout: 60s }");
    let mut first = sent(&weir, "/1");
    eventually(PATIENCE, || app.hits() == 1);
    let mut second = weir.connect();
    second.send_request(&post("/2", "its body")).expect("send");
    app.release(1);
    assert_eq!(first.read().expect("an answer").status, 200);
    eventually(PATIENCE, || app.hits() == 2);
    app.release(1);
    assert_eq!(second.read().expect("an answer").text(), "held");
    assert_eq!(app.requests()[1].body, b"its body");
}

#[test]
fn one_too_many_is_refused_at_once() {
    let app = held();
    let weir = start(&app, "{ size: 1, timeout: 60s }");
    let mut running = sent(&weir, "/running");
    eventually(PATIENCE, || app.hits() == 1);
    // Two come while one runs: one waits, the other is refused, whichever is first.
    let mut both = [sent(&weir, "/late"), sent(&weir, "/late")];
    assert_eq!(weir.access_lines(1)[0], "503 pool_busy /late");
    app.release(2);
    assert_eq!(running.read().expect("an answer").status, 200);
    let mut statuses = both
        .each_mut()
        .map(|late| late.read().expect("an answer").status);
    statuses.sort();
    assert_eq!(statuses, [200, 503]);
}

#[test]
fn a_wait_ends_with_its_time_limit() {
    let app = held();
    let weir = start(&app, "{ size: 9, timeout: 200ms }");
    let mut running = sent(&weir, "/running");
    eventually(PATIENCE, || app.hits() == 1);
    let begin = Instant::now();
    assert_eq!(weir.get("/late").status, 503);
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert_eq!(weir.access_lines(1)[0], "503 queue_timeout /late");
    app.release(1);
    assert_eq!(running.read().expect("an answer").status, 200);
    assert_eq!(app.hits(), 1);
}

#[test]
fn a_client_that_leaves_gives_its_place_to_the_next_one() {
    let app = held();
    let weir = start(&app, "{ size: 1, timeout: 60s }");
    let mut running = sent(&weir, "/running");
    eventually(PATIENCE, || app.hits() == 1);
    let left = sent(&weir, "/left");
    // Who ends its side at once may only have nothing more to say.
    assert!(!holds_within(Duration::from_millis(1000), || app.hits() > 1));
    drop(left);
    assert_eq!(weir.access_lines(1)[0], "499 client_closed /left");
    let mut waiting = sent(&weir, "/waiting");
    app.release(2);
    assert_eq!(running.read().expect("an answer").status, 200);
    assert_eq!(waiting.read().expect("an answer").status, 200);
    assert_eq!(app.hits(), 2);
}

#[test]
fn many_wait_and_all_are_served() {
    let app = Origin::fixed("quick");
    let weir = start(&app, "{ size: 500, timeout: 60s }");
    let mut connections: Vec<_> = (0..100).map(|_| weir.connect()).collect();
    for _ in 0..3 {
        for connection in &mut connections {
            connection.send_request(&get("/")).expect("send");
        }
        for connection in &mut connections {
            assert_eq!(connection.read().expect("an answer").status, 200);
        }
    }
    assert_eq!(app.hits(), 300);
}
