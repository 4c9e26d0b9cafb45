//! Requests whose body is received as a whole before a backend is asked.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::client::{Connection, Http2, Request, get, post};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::secure::SecureOrigin;
use crate::harness::wait::{PATIENCE, eventually, holds_within};
use crate::harness::{Setup, Weir};
use crate::streaming::open_websocket;

/// A listener that waits for half a second for more of a body, and a route that holds 16 KiB of it.
fn start_with(setup: Setup, site: &str) -> Weir {
    setup.file("bodies/.keep", "").start(&format!(
        "
        listeners:
          http: {{ bind: '127.0.0.1:{{http}}', http: {{ body_timeout: 500ms }} }}
        pools: {{ app: {{ backends: ['{{app}}'] }} }}
        log: {{ access: {{ file: '{{dir}}/access.log', format: '$status $request_length $upstream_addr $failure' }} }}
        sites:
          main:
            hosts: ['*']
            buffer_request: {{ memory: 16KiB, dir: bodies{site}
            routes: [{{ proxy: app }}]
        "
    ))
}

fn start(app: &Origin) -> Weir {
    start_with(Weir::with("app", app), " }")
}

fn sink() -> Origin {
    Origin::start(Behaviour::Sink)
}

/// How many bodies are in files now.
fn spilled(weir: &Weir) -> usize {
    weir.open_files_in("bodies")
}

/// What no piece of which is like another.
fn bytes(length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| ((i % 251) ^ (i / 65_536)) as u8)
        .collect()
}

/// The body in chunks.
fn chunked(body: &[u8]) -> Vec<u8> {
    let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
    let chunks: Vec<Vec<u8>> = body.chunks(10_000).map(chunk).collect();
    [chunks.concat(), b"0\r\n\r\n".to_vec()].concat()
}

fn assert_no_trace(weir: &Weir) {
    eventually(PATIENCE, || spilled(weir) == 0);
    let folder = fs::read_dir(weir.dir().join("bodies")).expect("the folder");
    assert_eq!(folder.count(), 1, "the file that the test has put there");
}

#[test]
fn backend_is_not_asked_before_the_body_has_come_and_gets_its_length() {
    let app = Origin::echo();
    let weir = start(&app);
    let body = bytes(100_000);
    let mut connection = weir.connect();
    let framings = [
        (format!("Content-Length: {}", body.len()), body.clone()),
        ("Transfer-Encoding: chunked".to_owned(), chunked(&body)),
    ];
    let warm = connection.fetch(&post("/warm", "up")).expect("an answer");
    assert_eq!(warm.status, 200);
    let before = weir.open_files();
    for (number, (framing, sent)) in framings.iter().enumerate() {
        let head = format!("POST /{number} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        let (most, last) = sent.split_at(sent.len() - 1);
        connection.send(head.as_bytes()).expect("send");
        connection.send(most).expect("send");
        eventually(PATIENCE, || spilled(&weir) == 1);
        assert_eq!(app.hits(), 1 + number);
        connection.send(last).expect("send");
        assert_eq!(connection.read().expect("an answer").status, 200);
        let request = app.requests().pop().expect("a request");
        assert_eq!(request.target(), format!("/{number}"));
        assert_eq!(
            request.header("content-length"),
            Some("100000"),
            "{framing}"
        );
        assert_eq!(request.header("transfer-encoding"), None, "{framing}");
        assert!(request.body == body, "{framing}");
        let answer = connection.fetch(&get("/healthz")).expect("kept alive");
        assert_eq!(answer.status, 200);
    }
    assert_no_trace(&weir);
    eventually(PATIENCE, || weir.open_files() == before);
    let lines = weir.access_lines(5);
    for (number, (framing, _)) in framings.iter().enumerate() {
        let head = format!("POST /{number} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        let line = format!("200 {} {app} -", head.len() + body.len());
        assert!(lines.contains(&line), "{line}: {lines:?}");
    }
}

#[test]
fn bodies_that_memory_has_no_room_for_pass_byte_for_byte() {
    let body = bytes(8 << 20);
    let (h1, h2c) = (Origin::echo(), SecureOrigin::h2c());
    for (backend, protocol) in [(h1.to_string(), "h1"), (h2c.to_string(), "h2c")] {
        let weir = Weir::with("app", backend).with("protocol", protocol).start(
            "
            listeners: { http: { bind: '127.0.0.1:{http}' } }
            pools: { app: { backends: ['{app}'], protocol: '{protocol}' } }
            sites: { main: { hosts: ['*'], buffer_request: 64KiB, routes: [{ proxy: app }] } }
            ",
        );
        let upload = post("/echo", body.clone());
        let mut http2 = Http2::tcp(weir.address("http")).expect("connect");
        for answer in [
            weir.fetch(&upload),
            http2.fetch(&upload).expect("an answer"),
        ] {
            assert_eq!((answer.status, answer.complete), (200, true), "{protocol}");
            assert!(answer.body.ends_with(&body), "{protocol}");
        }
    }
    let requests = h1.requests();
    assert_eq!(requests.len(), 2);
    let length = Some("8388608");
    let is_whole = |request: &&_| -> bool {
        let request: &crate::harness::origin::Recorded = request;
        request.body == body && request.header("content-length") == length
    };
    assert_eq!(requests.iter().filter(is_whole).count(), 2);
}

fn put(body: Vec<u8>) -> Request {
    Request {
        method: "PUT".to_owned(),
        ..post("/", body)
    }
}

#[test]
fn another_member_gets_the_whole_body_as_well() {
    // Of HTTP/2, the first one is told by the refusal of a status.
    let bad = Origin::raw("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let good = Origin::echo();
    let body = bytes(1 << 20);
    for behaviour in [None, Some(Behaviour::Close)] {
        if let Some(behaviour) = behaviour {
            bad.behave(behaviour);
        }
        let setup = Weir::with("bad", &bad).with("good", &good).allow("");
        let weir = setup.start(
            "
            listeners: { http: { bind: '127.0.0.1:{http}' } }
            pools: { app: { backends: ['{bad}', '{good}'], passive: off, retry: { on: [connect, reset, 503] } } }
            sites: { main: { hosts: ['*'], buffer_request: 64KiB, routes: [{ proxy: app }] } }
            ",
        );
        let (tried, served) = (bad.hits(), good.hits());
        let mut http2 = Http2::tcp(weir.address("http")).expect("connect");
        for _ in 0..2 {
            assert_eq!(weir.fetch(&put(body.clone())).status, 200);
            let answer = http2.fetch(&put(body.clone())).expect("an answer");
            assert_eq!(answer.status, 200);
        }
        assert!(bad.hits() - tried >= 2, "some come there first");
        assert_eq!(good.hits() - served, 4);
        assert!(good.requests().iter().all(|request| request.body == body));
    }
}

#[test]
fn what_is_too_large_or_too_slow_touches_no_backend() {
    let app = sink();
    let weir = start_with(
        Weir::with("app", &app),
        " }\n            body_limit: 100KiB",
    );
    let mut http2 = Http2::tcp(weir.address("http")).expect("connect");
    let large = "x".repeat(50 << 10);

    let mut connection = weir.connect();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let part = format!("c800\r\n{large}\r\n");
    connection.send(head).expect("send");
    connection.send(part.as_bytes()).expect("send");
    connection.send(part.as_bytes()).expect("send");
    eventually(PATIENCE, || spilled(&weir) == 1);
    connection.send(b"1\r\nx\r\n").expect("send");
    assert_eq!(connection.read().expect("an answer").status, 413);
    let mut dialogue = http2.open(&post("/", "")).expect("a stream");
    for part in [large.as_str(), &large, "x"] {
        dialogue.say(part, false).expect("say");
    }
    assert!(
        dialogue
            .hear()
            .expect("a page")
            .expect("text")
            .contains("413")
    );

    let mut connection = weir.connect();
    connection.send(head).expect("send");
    connection.send(part.as_bytes()).expect("send");
    assert_eq!(connection.read().expect("an answer").status, 408);
    let mut dialogue = http2.open(&post("/", "")).expect("a stream");
    dialogue.say(&large, false).expect("say");
    assert!(
        dialogue
            .hear()
            .expect("a page")
            .expect("text")
            .contains("408")
    );

    let lines = weir.access_lines(4);
    let mut ends: Vec<(&str, bool)> = lines
        .iter()
        .map(|line| (&line[..3], line.contains(" - ")))
        .collect();
    // they may be written by threads in turn
    ends.sort_unstable();
    assert_eq!(
        ends,
        [("408", true), ("408", true), ("413", true), ("413", true)]
    );
    assert_eq!((app.hits(), app.connections()), (0, 0));
    assert_no_trace(&weir);
    // both go on
    assert_eq!(
        http2.fetch(&post("/", "five!")).expect("an answer").text(),
        "5"
    );
    assert_eq!(weir.fetch(&post("/", "five!")).text(), "5");
}

#[test]
fn client_that_leaves_touches_no_backend() {
    let app = sink();
    let weir = start(&app);
    let mut client = TcpStream::connect(weir.address("http")).expect("connect");
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n";
    client.write_all(head.as_bytes()).expect("send");
    client.write_all(&bytes(50_000)).expect("send");
    eventually(PATIENCE, || spilled(&weir) == 1);
    drop(client);
    assert!(weir.access_lines(1)[0].ends_with("client_closed"));
    let mut http2 = Http2::tcp(weir.address("http")).expect("connect");
    let mut dialogue = http2.open(&post("/", "")).expect("a stream");
    dialogue.say(&"x".repeat(50_000), false).expect("say");
    eventually(PATIENCE, || spilled(&weir) == 1);
    drop(dialogue);
    assert!(weir.access_lines(2)[1].ends_with("client_closed"));
    assert_eq!(app.connections(), 0);
    assert_no_trace(&weir);
}

#[test]
fn client_that_leaves_while_members_are_busy_is_noticed() {
    let app = Origin::start(Behaviour::Held("late".to_owned()));
    let weir = Weir::with("app", &app).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: [{ addr: '{app}', max_conns: 1 }], queue: { size: 9, timeout: 1m } } }
        sites: { main: { hosts: ['*'], buffer_request: 1MiB, routes: [{ proxy: app }] } }
        ",
    );
    let mut first = weir.connect();
    first.send_request(&post("/", "x")).expect("send");
    eventually(PATIENCE, || app.hits() == 1);
    let mut second = weir.connect();
    second.send_request(&post("/", "x")).expect("send");
    // it has come as far as the queue when it is answered in time for neither
    assert!(!holds_within(Duration::from_millis(700), || app.hits() > 1));
    drop(second);
    assert!(weir.access_lines(1)[0].ends_with("client_closed"));
    app.release(1);
    assert_eq!(first.read().expect("an answer").text(), "late");
}

#[test]
fn client_is_told_to_go_on_before_a_backend_is_there() {
    let app = Origin::echo();
    let weir = start(&app);
    let mut connection = weir.connect();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    connection.send(head).expect("send");
    assert_eq!(connection.read_head().expect("a head").word(1), "100");
    assert_eq!(app.connections(), 0);
    connection.send(b"body").expect("send");
    let answer = connection.read().expect("an answer");
    assert!(answer.text().ends_with("\r\n\r\nbody"), "{}", answer.text());
    assert_eq!(app.request().header("expect"), None);
}

#[test]
fn bodies_get_no_more_of_the_disk_than_they_may() {
    let app = sink();
    let weir = start_with(Weir::with("app", &app).allow(""), ", max: 64KiB }");
    let before = weir.fetch(&post("/", bytes(70_000))).text().to_owned();
    assert_eq!(before, "70000");
    assert_eq!(weir.fetch(&post("/", bytes(100_000))).status, 507);
    let is_told = |lines: &[String], word: &str| lines.iter().any(|line| line.ends_with(word));
    assert!(is_told(&weir.access_lines(2), "no_room"));
    let log = weir.error_log();
    assert!(
        log.contains("no_room: POST localhost/") && log.contains("65536 bytes"),
        "{log}"
    );
    assert_no_trace(&weir);
    assert_eq!(weir.fetch(&post("/", bytes(70_000))).text(), "70000");

    fs::remove_file(weir.dir().join("bodies/.keep")).expect("remove");
    fs::remove_dir(weir.dir().join("bodies")).expect("remove");
    assert_eq!(weir.fetch(&post("/", bytes(10_000))).text(), "10000");
    assert_eq!(weir.fetch(&post("/", bytes(100_000))).status, 500);
    assert!(is_told(&weir.access_lines(5), "storage"));
    let log = weir.error_log();
    assert!(log.contains("No such file or directory"), "{log}");
    assert_eq!(app.hits(), 3);
}

#[test]
fn conversations_pass_as_they_are() {
    let app = sink();
    let weir = start(&app);
    let mut client = Http2::tcp(weir.address("http")).expect("connect");
    let call = post("/", "").header("content-type", "application/grpc");
    let mut call = client.open(&call).expect("a stream");
    call.say("some", false).expect("say");
    eventually(PATIENCE, || app.received() == 4);
    call.say("more", true).expect("say");
    assert_eq!(call.hear().expect("an answer").as_deref(), Some("8"));
    app.behave(Behaviour::WebSocket);
    open_websocket(&weir);
}

#[test]
fn small_and_empty_bodies_and_old_requests_pass_too() {
    let app = Origin::echo();
    let weir = start(&app);
    let mut connection = weir.connect();
    let empty = b"POST /empty HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    connection.send(empty).expect("send");
    assert_eq!(connection.read().expect("an answer").status, 200);
    let absolute = b"POST http://b/absolute?x HTTP/1.1\r\nHost: b\r\nContent-Length: 2\r\n\r\nhi";
    connection.send(absolute).expect("send");
    assert_eq!(connection.read().expect("an answer").status, 200);
    let none = connection.fetch(&get("/none")).expect("an answer");
    assert_eq!(none.status, 200);
    let requests = app.requests();
    let length = |i: usize| requests[i].header("content-length");
    assert_eq!(
        [length(0), length(1), length(2)],
        [Some("0"), Some("2"), None]
    );
    let (target, host) = (requests[1].target(), requests[1].header("host"));
    assert_eq!((target, host), ("/absolute?x", Some("b")));
    assert_eq!(requests[1].body, b"hi");

    let old = "POST /old HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi";
    let mut connection = Connection::tcp(weir.address("http")).expect("connect");
    connection.send(old.as_bytes()).expect("send");
    assert_eq!(connection.read().expect("an answer").status, 200);
    connection.read_close().expect("the end");
    assert_eq!(app.requests()[3].body, b"hi");
}
