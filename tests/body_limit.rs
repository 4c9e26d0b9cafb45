//! Requests with bodies that are too large.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::harness::Weir;
use crate::harness::client::{Http2, get, post};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::secure::{SecureOrigin, Skills};
use crate::harness::wait::{PATIENCE, eventually};

/// A site with a limit of 1 KiB, and a route without.
fn start(app: &str) -> Weir {
    Weir::with("app", app).start_site(
        "
        body_limit: 1KiB
        routes:
          - { match: { path: /free }, body_limit: off, proxy: app }
          - { match: { path: /here }, respond: ok }
          - proxy: app
        ",
    )
}

fn sink() -> Origin {
    Origin::start(Behaviour::Sink)
}

#[test]
fn body_that_is_said_to_be_too_large_is_refused_before_any_of_it_has_come() {
    let app = sink();
    let weir = start(&app.to_string());
    for (number, fields) in [
        "Content-Length: 1025",
        "Content-Length: 99999999999",
        "Content-Length: 1025\r\nExpect: 100-continue",
    ]
    .into_iter()
    .enumerate()
    {
        for path in ["/", "/here"] {
            let mut connection = weir.connect();
            let head = format!("POST {path} HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
            connection.send(head.as_bytes()).expect("send");
            // no 100 comes before it
            let answer = connection.read_head().expect("an answer");
            assert_eq!(answer.word(1), "413", "{fields}");
            assert_eq!(answer.headers.get("connection"), Some("close"), "{fields}");
        }
        let lines = weir.access_lines(2 * (number + 1));
        let logged = |line: &String| line.contains(" 413 ") && line.ends_with("body_too_large");
        assert!(lines.iter().all(logged), "{lines:?}");
    }
    assert_eq!((app.hits(), app.connections()), (0, 0));
}

#[test]
fn body_up_to_the_limit_passes_and_so_does_any_without_one() {
    let app = sink();
    let weir = start(&app.to_string());
    let body = "x".repeat(1024);
    assert_eq!(weir.fetch(&post("/", body.as_str())).text(), "1024");
    assert_eq!(weir.get("/").text(), "0");
    let chunked = format!("400\r\n{body}\r\n0\r\n\r\n");
    let mut connection = weir.connect();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for _ in 0..2 {
        let request = [head, chunked.as_bytes()].concat();
        connection.send(&request).expect("send");
        assert_eq!(connection.read().expect("an answer").text(), "1024");
    }
    let large = "x".repeat(100_000);
    assert_eq!(weir.fetch(&post("/free", large)).text(), "100000");
}

#[test]
fn body_that_grows_too_large_breaks_off_for_the_backend() {
    let app = sink();
    let weir = start(&app.to_string());
    let mut connection = weir.connect();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.send(head).expect("send");
    let part = format!("200\r\n{}\r\n", "x".repeat(0x200));
    for count in [512, 1024] {
        connection.send(part.as_bytes()).expect("send");
        eventually(PATIENCE, || app.received() == count);
    }
    connection.send(b"1\r\nx\r\n").expect("send");
    assert_eq!(connection.read().expect("an answer").status, 413);
    eventually(PATIENCE, || app.open_connections() == 0);
    assert_eq!(app.hits(), 0, "no request was complete");
    assert_eq!(weir.get("/").text(), "0");
}

#[test]
fn client_that_goes_on_sending_sees_the_refusal_every_time() {
    let app = sink();
    let weir = start(&app.to_string());
    let piece = [b"10000\r\n".to_vec(), vec![b'x'; 0x10000], b"\r\n".to_vec()].concat();
    for framing in ["Content-Length: 1000000000", "Transfer-Encoding: chunked"] {
        for number in 0..10 {
            let mut client = TcpStream::connect(weir.address("http")).expect("connect");
            client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
            let head = format!("POST /{number} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
            client.write_all(head.as_bytes()).expect("send");
            // Far more than lies in any buffer, and nothing is read meanwhile.
            for _ in 0..256 {
                client.write_all(&piece).expect("it is heard out");
            }
            let mut answer = [0; 12];
            client.read_exact(&mut answer).expect("an answer");
            assert_eq!(&answer, b"HTTP/1.1 413", "{framing}, {number}");
        }
    }
    assert_eq!(app.hits(), 0);
}

#[test]
fn http2_is_limited_alike_whatever_the_backend_speaks() {
    let app = sink();
    let h2c = SecureOrigin::start(Skills::h2c());
    for (backend, protocol) in [(app.to_string(), "h1"), (h2c.to_string(), "h2c")] {
        let weir = Weir::with("app", backend).with("protocol", protocol).start(
            "
            listeners: { http: { bind: '127.0.0.1:{http}' } }
            pools: { app: { backends: ['{app}'], protocol: '{protocol}' } }
            defaults: { body_limit: 1KiB }
            sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
            ",
        );
        let mut client = Http2::tcp(weir.address("http")).expect("connect");
        let said = post("/", "x".repeat(1025)).header("content-length", "1025");
        let answer = client.fetch(&said).expect("an answer");
        assert_eq!(answer.status, 413, "{protocol}");
        // One backend is silent until it has heard the question out, the other answers what it has heard so far, and
        // that answer may have begun before it breaks off.
        let mut grows = client.open(&post("/echo", "")).expect("a stream");
        grows.say(&"x".repeat(1000), false).expect("say");
        grows.say(&"x".repeat(1000), false).expect("say");
        let mut heard = String::new();
        let refused = loop {
            match grows.hear() {
                Ok(Some(part)) => heard += &part,
                Ok(None) => break heard.contains("413"),
                Err(_) => break protocol == "h2c",
            }
        };
        assert!(refused, "{protocol}: {heard}");
        // the connection goes on
        let answer = client.fetch(&get("/")).expect("an answer");
        assert_eq!(answer.status, 200, "{protocol}");
        let lines = weir.access_lines(3);
        let refused = lines.iter().filter(|line| line.ends_with("body_too_large"));
        assert_eq!(refused.count(), 2, "{lines:?}");
    }
    assert_eq!(app.hits(), 1);
}

#[test]
fn answer_without_the_100_that_a_client_waits_for_ends_the_connection() {
    let weir = Weir::start_site("routes: [{ respond: { status: 404, body: no } }]");
    let mut connection = weir.connect();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
    connection.send(head).expect("send");
    let answer = connection.read().expect("an answer");
    assert_eq!(
        (answer.status, answer.header("connection")),
        (404, Some("close"))
    );
    connection.read_close().expect("the end");
}

#[test]
fn answer_without_a_look_at_the_body_ends_the_connection_cleanly() {
    let weir = Weir::start_site("routes: [{ respond: ok }]");
    let mut connection = weir.connect();
    let answer = connection.fetch(&post("/", "x".repeat(5000)));
    let answer = answer.expect("an answer");
    assert_eq!(
        (answer.text(), answer.header("connection")),
        ("ok", Some("close"))
    );
    connection.read_close().expect("the end");
}
