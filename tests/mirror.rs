//! mirror: copies of requests for another pool, at no cost for the original.

use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::Weir;
use crate::harness::client::{Http2, Request, connect, get, post};
use crate::harness::origin::{Behaviour, Origin, Recorded};
use crate::harness::secure::SecureOrigin;
use crate::harness::wait::{PATIENCE, eventually};

/// Everything goes to `app`, with a copy as `mirror` says in a site that the policies `more` are in as well.
fn start(app: &Origin, shadow: &dyn std::fmt::Display, mirror: &str, more: &str) -> Weir {
    let setup = Weir::with("app", app).with("shadow", shadow);
    // What is lost is told there.
    setup.allow("mirror: ").start(&format!(
        "
        listeners: {{ http: {{ bind: '127.0.0.1:{{http}}', protocols: [h1, h2] }} }}
        pools:
          app: {{ backends: ['{{app}}'], protocol: h1 }}
          shadow: {{ backends: ['{{shadow}}'], passive: off }}
        sites:
          main:
            hosts: ['*']
            mirror: {{ pool: shadow, {mirror} }}
            {more}
            routes:
              - match: {{ prefix: /local }}
                respond: local
              - match: {{ prefix: /none }}
                mirror: off
                proxy: app
              - proxy: app
        "
    ))
}

/// The requests of an origin once there are so many.
#[track_caller]
fn requests(origin: &Origin, count: usize) -> Vec<Recorded> {
    eventually(PATIENCE, || origin.hits() >= count);
    let requests = origin.requests();
    assert_eq!(requests.len(), count, "{requests:?}");
    requests
}

#[track_caller]
fn copy(origin: &Origin) -> Recorded {
    requests(origin, 1).remove(0)
}

fn chunked(target: &str, parts: &[&str]) -> Vec<u8> {
    let mut bytes =
        format!("POST {target} HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n");
    for part in parts {
        bytes += &format!("{:x}\r\n{part}\r\n", part.len());
    }
    (bytes + "0\r\n\r\n").into_bytes()
}

#[test]
fn the_copy_is_what_the_backend_gets() {
    let (app, shadow) = (Origin::fixed("app"), Origin::fixed("shadow"));
    let more = "rewrite: { add_prefix: /v2, query: { set: { b: '2' } } }
            headers: { request: { set: { X-Set: yes } } }";
    let weir = start(&app, &shadow, "share: 100%", more);
    let answer = weir.fetch(&post("/x?a=1", "hello").header("X-Own", "o"));
    assert_eq!((answer.status, answer.text()), (200, "app"));
    let (original, copy) = (app.request(), copy(&shadow));
    assert_eq!(copy.head.first_line, "POST /v2/x?a=1&b=2 HTTP/1.1");
    assert_eq!(original.head.first_line, copy.head.first_line);
    assert_eq!(copy.body, b"hello");
    for name in [
        "host",
        "x-own",
        "x-set",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "content-length",
    ] {
        assert!(copy.header(name).is_some(), "{name}");
        assert_eq!(original.headers().all(name), copy.headers().all(name));
    }
    // one line for one request
    assert_eq!(weir.access_lines(1).len(), 1);
}

#[test]
fn bodies_come_in_whatever_framing() {
    let (app, shadow) = (Origin::echo(), Origin::fixed("shadow"));
    let weir = start(&app, &shadow, "", "");
    let big = "0123456789".repeat(30_000);
    let mut client = weir.connect();
    client
        .send(&chunked("/chunked", &["ab", &big, "c"]))
        .unwrap();
    assert_eq!(client.read().unwrap().status, 200);
    let copies = requests(&shadow, 1);
    assert_eq!(copies[0].body, format!("ab{big}c").as_bytes());
    let mut http2 = Http2::tcp(weir.address("http")).unwrap();
    let mut dialogue = http2.open(&post("/http2", "")).unwrap();
    dialogue.say("one ", false).unwrap();
    dialogue.say("two", true).unwrap();
    assert!(dialogue.hear().unwrap().is_some());
    let copies = requests(&shadow, 2);
    assert_eq!(copies[1].body, b"one two");
    assert_eq!(copies[1].header("host"), Some("localhost"));
    // without a body, not even an empty one
    assert_eq!(http2.fetch(&get("/none-at-all")).unwrap().status, 200);
    assert_eq!(weir.get("/nor-here").status, 200);
    for copy in &requests(&shadow, 4)[2..] {
        assert!(copy.body.is_empty());
        assert_eq!(copy.header("transfer-encoding"), None);
        assert_eq!(copy.header("content-length"), None);
    }
}

#[test]
fn a_pool_that_speaks_http2_gets_copies_too() {
    let (app, shadow) = (Origin::fixed("app"), SecureOrigin::h2c());
    let weir = Weir::with("app", &app).with("shadow", &shadow).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools:
          app: { backends: ['{app}'] }
          shadow: { backends: ['{shadow}'], protocol: h2c }
        sites:
          main:
            hosts: ['*']
            mirror: { pool: shadow, share: 100%, max: 1 }
            routes: [{ proxy: app }]
        ",
    );
    for _ in 0..3 {
        assert_eq!(weir.fetch(&post("/", "hello")).text(), "app");
    }
    eventually(PATIENCE, || shadow.connections() == 1);
}

#[test]
fn each_of_several_pools_gets_copies_of_its_own() {
    let (app, one, other) = (
        Origin::fixed("app"),
        Origin::fixed("one"),
        Origin::fixed("other"),
    );
    let setup = Weir::with("app", &app).with("one", &one);
    let weir = setup.with("other", &other).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{app}'] }, one: { backends: ['{one}'] }, other: { backends: ['{other}'] } }
        sites:
          main:
            hosts: ['*']
            mirror: [one, { pool: other }, { pool: other, share: 0% }]
            routes:
              - { match: { path: /one }, mirror: one, proxy: app }
              - proxy: app
        ",
    );
    assert_eq!(weir.fetch(&post("/all", "hello")).text(), "app");
    for pool in [&one, &other] {
        assert_eq!(copy(pool).body, b"hello");
    }
    assert_eq!(weir.fetch(&post("/one", "again")).text(), "app");
    assert_eq!(requests(&one, 2)[1].body, b"again");
    assert_eq!(weir.fetch(&post("/all", "at last")).text(), "app");
    assert_eq!(requests(&other, 2)[1].body, b"at last");
}

#[test]
fn answers_leave_the_connection_for_the_next_copy() {
    let app = Origin::fixed("app");
    let shadow = Origin::start(Behaviour::Big(300_000));
    // with one at a time none begins before the answer of the last one is read
    let weir = start(&app, &shadow, "max: 1", "");
    eventually(PATIENCE, || {
        assert_eq!(weir.fetch(&post("/", "hello")).text(), "app");
        shadow.hits() >= 4
    });
    assert_eq!(shadow.connections(), 1);
}

#[test]
fn a_share_of_requests_is_copied() {
    for (share, least, most) in [("0%", 0, 0), ("50%", 10, 90), ("100%", 100, 100)] {
        let (app, shadow) = (Origin::fixed("app"), Origin::fixed("shadow"));
        let weir = start(&app, &shadow, &format!("share: {share}"), "");
        let mut client = weir.connect();
        for _ in 0..100 {
            assert_eq!(client.fetch(&get("/")).unwrap().text(), "app");
        }
        eventually(PATIENCE, || shadow.hits() >= least);
        assert!(shadow.hits() <= most, "{share}: {}", shadow.hits());
    }
}

#[test]
fn a_pool_that_is_dead_or_silent_does_not_matter() {
    let mut dead = Origin::fixed("dead");
    dead.kill();
    for shadow in [
        dead,
        Origin::start(Behaviour::Held("late".to_owned())),
        Origin::start(Behaviour::Close),
        Origin::start(Behaviour::CloseAtOnce),
        Origin::start(Behaviour::Dribble),
    ] {
        let app = Origin::fixed("app");
        let weir = start(&app, &shadow, "timeout: 30s", "");
        let mut client = weir.connect();
        for _ in 0..20 {
            let began = Instant::now();
            let answer = client.fetch(&post("/", "hello")).unwrap();
            assert_eq!((answer.status, answer.text()), (200, "app"));
            assert!(began.elapsed() < Duration::from_secs(5));
        }
        assert_eq!(app.hits(), 20);
        assert_eq!(weir.access_lines(20).len(), 20);
    }
}

#[test]
fn what_a_slow_pool_does_not_take_is_given_up() {
    let app = Origin::start(Behaviour::Sink);
    // takes nothing of the body
    let shadow = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = shadow.local_addr().unwrap();
    let weir = start(&app, &address, "buffer: 256KiB", "");
    let length = 64 * 1024 * 1024;
    let before = weir.peak_memory();
    let mut client = connect(weir.address("http")).unwrap();
    write!(
        client,
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let piece = vec![7; 1024 * 1024];
    for _ in 0..length / piece.len() {
        client.write_all(&piece).unwrap();
    }
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut client, &mut answer).unwrap();
    assert!(answer.ends_with(&length.to_string()), "{answer}");
    assert!(weir.error_log().contains("too slowly"));
    let grown = weir.peak_memory() - before;
    assert!(grown < 24 * 1024 * 1024, "{grown}");
}

#[test]
fn a_client_that_breaks_off_breaks_its_copy_off() {
    let (app, shadow) = (Origin::fixed("app"), Origin::fixed("shadow"));
    let weir = start(&app, &shadow, "", "");
    let mut client = weir.connect();
    client
        .send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
        .unwrap();
    eventually(PATIENCE, || shadow.open_connections() == 1);
    drop(client);
    eventually(PATIENCE, || shadow.open_connections() == 0);
    assert_eq!(shadow.hits(), 0);
}

#[test]
fn a_retry_sends_no_second_copy() {
    let (bad, good) = (Origin::start(Behaviour::Close), Origin::fixed("good"));
    let shadow = Origin::fixed("shadow");
    let weir = Weir::with("bad", &bad)
        .with("good", &good)
        .with("shadow", &shadow)
        .allow("")
        .start(
            "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools:
          app: { backends: ['{bad}', '{good}'], passive: off }
          shadow: { backends: ['{shadow}'] }
        sites:
          main:
            hosts: ['*']
            mirror: { pool: shadow }
            routes: [{ proxy: app }]
        ",
        );
    let mut request = post("/", "0123456789".repeat(5000));
    request.method = "PUT".to_owned();
    for _ in 0..4 {
        assert_eq!(weir.fetch(&request).text(), "good");
    }
    assert!(bad.hits() >= 2);
    for copy in requests(&shadow, 4) {
        assert!(copy.body == request.body, "{} bytes", copy.body.len());
    }
}

fn upgrade() -> Request {
    get("/")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
}

#[test]
fn some_requests_are_not_copied() {
    let app = Origin::start(Behaviour::WebSocket);
    let shadow = Origin::fixed("shadow");
    let more = "access: { deny: [127.0.0.2/32], allow: [all] }
            auth_basic: off";
    let weir = start(&app, &shadow, "", more);
    let mut client = weir.connect();
    client.send_request(&upgrade()).unwrap();
    assert_eq!(client.read_head().unwrap().word(1), "101");
    app.behave(Behaviour::Fixed("app".to_owned()));
    assert_eq!(weir.get("/none").text(), "app");
    // nobody reads the body of these
    assert_eq!(weir.fetch(&post("/local/post", "body")).text(), "local");
    assert_eq!(weir.get("/local/get").text(), "local");
    let copy = copy(&shadow);
    assert_eq!(copy.head.first_line, "GET /local/get HTTP/1.1");
    assert_eq!(copy.header("x-forwarded-for"), Some("127.0.0.1"));
}

#[test]
fn only_so_many_are_on_their_way() {
    let app = Origin::fixed("app");
    let shadow = Origin::start(Behaviour::Held("late".to_owned()));
    let weir = start(&app, &shadow, "max: 2", "");
    for _ in 0..5 {
        assert_eq!(weir.get("/").text(), "app");
    }
    requests(&shadow, 2);
    let log = weir.error_log();
    assert_eq!(log.matches("2 copies are on their way").count(), 1, "{log}");
    // over a reload, too
    shadow.release(2);
    eventually(PATIENCE, || {
        assert_eq!(weir.get("/").text(), "app");
        shadow.hits() > 2
    });
    shadow.release(100);
}

#[test]
fn copies_do_not_hold_up_the_end() {
    let app = Origin::fixed("app");
    let shadow = Origin::start(Behaviour::Held("late".to_owned()));
    let mut weir = start(&app, &shadow, "", "");
    assert_eq!(weir.get("/").text(), "app");
    requests(&shadow, 1);
    let began = Instant::now();
    weir.signal(Signal::SIGTERM);
    assert!(weir.wait().success());
    assert!(began.elapsed() < Duration::from_secs(5), "{began:?}");
}
