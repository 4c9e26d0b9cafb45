//! HTTP/1 as it comes over the wire.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::harness::Weir;
use crate::harness::client::{Connection, Http2, Request, get};
use crate::harness::frames::{Raw, fields, frame};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};

fn start() -> Weir {
    Weir::start_site(
        "routes: [{ match: { path: /b }, respond: { body: b } }, { respond: { body: a } }]",
    )
}

#[test]
fn connection_is_kept() {
    let weir = start();
    let mut connection = weir.connect();
    for _ in 0..5 {
        let answer = connection.fetch(&get("/")).expect("an answer");
        assert_eq!((answer.status, answer.text()), (200, "a"));
        assert_ne!(answer.header("connection"), Some("close"));
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let weir = start();
    let mut connection = weir.connect();
    let pipeline = "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n".repeat(3);
    connection.send(pipeline.as_bytes()).expect("send");
    let bodies = (0..6).map(|_| connection.read().expect("an answer").text().to_owned());
    assert_eq!(bodies.collect::<String>(), "ababab");
}

#[test]
fn pipelined_requests_to_a_backend_are_answered_in_order() {
    let app = Origin::echo();
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let mut connection = weir.connect();
    let pipeline: String = (0..4)
        .map(|i| format!("POST /{i} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n{i}"))
        .collect();
    connection.send(pipeline.as_bytes()).expect("send");
    for i in 0..4 {
        let answer = connection.read().expect("an answer");
        assert!(
            answer.text().starts_with(&format!("POST /{i} ")),
            "{answer:?}"
        );
        assert!(answer.text().ends_with(&format!("\r\n{i}")), "{answer:?}");
    }
}

#[test]
fn connection_ends_when_the_client_asks_for_it() {
    let weir = start();
    let mut connection = weir.connect();
    let answer = connection.fetch(&get("/").header("Connection", "close"));
    assert_eq!(
        answer.expect("an answer").header("connection"),
        Some("close")
    );
    connection.read_close().expect("a clean end");
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let weir = start();
    let mut connection = weir.connect();
    connection
        .send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        .expect("send");
    let answer = connection.read().expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "a"));
    connection.read_close().expect("a clean end");
}

#[test]
fn chunks_are_not_sent_to_http_1_0() {
    let app =
        Origin::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let mut connection = weir.connect();
    connection
        .send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        .expect("send");
    let answer = connection.read().expect("an answer");
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(answer.text(), "body");
}

#[test]
fn backend_of_http_1_0_is_answered_for_in_http_1_1() {
    let app = Origin::raw("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let mut connection = weir.connect();
    for _ in 0..2 {
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        connection.send(request).expect("send");
        let head = connection.read_final_head().expect("a head");
        assert_eq!((head.word(0), head.word(1)), ("HTTP/1.1", "200"));
        connection.read_length(2, &mut |_| {}).expect("a body");
    }
}

#[test]
fn garbage_is_a_bad_request_and_ends_the_connection() {
    let weir = start();
    for garbage in [
        "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        "GET\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nBad Header: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\nx",
        "\0\0\0\0\0\0\0\0\r\n\r\n",
    ] {
        let mut connection = weir.connect();
        connection.send(garbage.as_bytes()).expect("send");
        let answer = connection
            .read()
            .unwrap_or_else(|error| panic!("{garbage:?}: {error}"));
        assert_eq!(answer.status, 400, "{garbage:?}");
        // the rest of such bytes must not be taken for a request
        assert!(connection.read().is_err(), "{garbage:?}");
    }
    assert_eq!(weir.get("/").status, 200);
}

#[test]
fn bad_request_does_not_tell_what_weir_is_built_of() {
    let weir = start();
    let mut connection = weir.connect();
    connection.send(b"GET\r\n\r\n").expect("send");
    let answer = connection.read().expect("an answer");
    assert_eq!(answer.status, 400);
    assert_eq!(answer.header("server"), Some("weir"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(answer.header("date").is_some(), "{answer:?}");
    assert!(answer.text().contains("400 Bad Request"), "{answer:?}");
    connection.read_close().expect("a clean end");
}

#[test]
fn garbage_after_a_request_is_refused_after_its_answer() {
    let app = Origin::echo();
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    for good in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let mut connection = weir.connect();
        let pipeline = format!("{good}{good}GARBAGE\r\n\r\n{good}");
        connection.send(pipeline.as_bytes()).expect("send");
        for status in [200, 200, 400] {
            let answer = connection.read().expect("an answer");
            assert_eq!(answer.status, status, "{answer:?}");
            assert_eq!(answer.header("server"), Some("weir"));
        }
        connection.read_close().expect("a clean end");
    }
}

#[test]
fn refusal_is_not_lost_where_much_is_still_to_be_read() {
    let weir = start();
    let body = vec![b'x'; 8_000_000];
    for _ in 0..3 {
        let mut connection = weir.connect();
        connection
            .send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n")
            .and_then(|()| connection.send(&body))
            .expect("send");
        assert_eq!(connection.read().expect("an answer").status, 400);
        connection.read_close().expect("a clean end");
    }
}

#[test]
fn refusal_has_the_headers_that_every_answer_gets() {
    let weir = Weir::start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        defaults: { headers: { response: { set: { X-Set: always } } } }
        sites: { main: { hosts: ['*'], routes: [{ respond: { body: a } }] } }
        ",
    );
    let mut connection = weir.connect();
    connection.send(b"GET\r\n\r\n").expect("send");
    let answer = connection.read().expect("an answer");
    assert_eq!(answer.header("x-set"), Some("always"));
}

#[test]
fn connect_is_not_allowed() {
    let weir = start();
    let mut connection = weir.connect();
    connection
        .send(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\ntunnelled")
        .expect("send");
    let answer = connection.read().expect("an answer");
    assert_eq!(answer.status, 405);
    assert_eq!(answer.header("server"), Some("weir"));
    assert_eq!(answer.header("allow"), Some(""));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(connection.read().is_err());
    let line = &weir.access_lines(1)[0];
    assert!(
        line.contains("\"CONNECT a:443 HTTP/1.1\" 405 ") && line.ends_with(" method_not_allowed"),
        "{line}"
    );
}

#[test]
fn server_as_a_whole_says_that_it_is_there() {
    let app = Origin::fixed("not for it");
    let weir = Weir::with("app", &app).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}', protocols: [h1, h2] } }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: a.example, routes: [{ proxy: app }] } }
        ",
    );
    let mut connection = weir.connect();
    for host in ["a.example", "elsewhere.example"] {
        let answer = connection.fetch(&Request::new("OPTIONS", "*").host(host));
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.text()), (204, ""));
    }
    let answer = connection.fetch(&Request::new("GET", "*").host("a.example"));
    assert_eq!(answer.expect("an answer").status, 400);
    let mut raw = Raw::open(weir.address("http"), &[]).expect("connect");
    let request = fields(&[
        (":method", "OPTIONS"),
        (":scheme", "http"),
        (":authority", "a.example"),
        (":path", "*"),
    ]);
    let [headers, both_ends] = [1, 0x5];
    raw.send(&frame(headers, both_ends, 1, &request))
        .expect("send");
    let no_content = 0x80 | 9; // of the static table (RFC 7541 appendix A)
    let answer = loop {
        let frame = raw.read().expect("an answer");
        if frame.stream == 1 {
            break frame;
        }
    };
    assert_eq!(answer.payload.first(), Some(&no_content));
    assert_eq!(app.hits(), 0);
}

#[test]
fn request_without_host_is_a_bad_request() {
    let weir = start();
    let mut connection = weir.connect();
    connection.send(b"GET / HTTP/1.1\r\n\r\n").expect("send");
    assert_eq!(connection.read().expect("an answer").status, 400); // RFC 9112 section 3.2
}

#[test]
fn request_may_come_byte_by_byte() {
    let weir = start();
    let mut connection = weir.connect();
    for byte in b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n" {
        connection.send(&[*byte]).expect("send");
    }
    assert_eq!(connection.read().expect("an answer").text(), "b");
}

#[test]
fn slow_client_does_not_hold_up_others() {
    let weir = start();
    let slow: Vec<_> = (0..20)
        .map(|_| {
            let mut connection = weir.connect();
            connection.send(b"GET / HTTP/1.1\r\nHost: ").expect("send");
            connection
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(weir.get("/").status, 200);
    }
    for mut connection in slow {
        connection.send(b"a\r\n\r\n").expect("send");
        assert_eq!(connection.read().expect("an answer").status, 200);
    }
}

#[test]
fn client_that_goes_away_in_the_middle_does_no_harm() {
    let app = Origin::echo();
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    for part in [
        "",
        "GE",
        "GET / HTTP/1.1\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf",
    ] {
        let mut connection = weir.connect();
        connection.send(part.as_bytes()).expect("send");
        drop(connection);
    }
    assert_eq!(weir.get("/").status, 200);
}

#[test]
fn body_that_nobody_reads_does_not_become_a_request() -> io::Result<()> {
    let weir = start();
    let mut connection = weir.connect();
    let inner = "GET /b HTTP/1.1\r\nHost: a\r\n\r\n";
    let outer = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}",
        inner.len()
    );
    connection.send(outer.as_bytes())?;
    assert_eq!(connection.read()?.text(), "a");
    // either the body is skipped and the connection kept, or it is closed
    match connection.fetch(&get("/")) {
        Ok(answer) => assert_eq!(answer.text(), "a"),
        Err(error) => assert!(matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
        )),
    }
    Ok(())
}

#[test]
fn very_long_header_is_refused_and_does_no_harm() {
    let weir = start();
    let mut connection = weir.connect();
    let long = "x".repeat(2_000_000);
    // weir may stop reading and close before all is sent
    let _ =
        connection.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {long}\r\n\r\n").as_bytes());
    if let Ok(answer) = connection.read() {
        assert!((400..500).contains(&answer.status), "{answer:?}");
    }
    assert_eq!(weir.get("/").status, 200);
}

/// A listener with small limits and short times.
fn strict(app: &Origin) -> Weir {
    Weir::with("app", app).start(
        "
        pools: { app: { backends: ['{app}'] } }
        listeners:
          http:
            bind: '127.0.0.1:{http}'
            http:
              header_timeout: 300ms
              keepalive: 300ms
              max_line: 1KiB
              max_header: 2KiB
              max_headers: 5
              keepalive_requests: 3
        sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
        ",
    )
}

#[test]
fn head_beyond_the_limits_of_its_listener_is_refused() {
    let app = Origin::echo();
    let weir = strict(&app);
    let path = "x".repeat(1024);
    let value = "x".repeat(2048);
    let fields = "A: b\r\n".repeat(5);
    let heads = [
        (
            format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n"),
            414,
            "uri_too_long",
        ),
        (format!("GET /{path}"), 414, "uri_too_long"),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {value}\r\n\r\n"),
            431,
            "header_too_large",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\nX: {value}"),
            431,
            "header_too_large",
        ),
        (
            format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"),
            431,
            "header_too_large",
        ),
    ];
    for (number, (head, status, word)) in heads.into_iter().enumerate() {
        let mut connection = weir.connect();
        connection.send(head.as_bytes()).expect("send");
        let answer = connection.read().expect("an answer");
        assert_eq!(answer.status, status, "{head:?}");
        connection.read_close().expect("a clean end");
        let line = weir.access_lines(number + 1).remove(number);
        let logged = line.contains(&format!(" {status} ")) && line.ends_with(word);
        assert!(logged, "{line}");
    }
    assert_eq!(app.hits(), 0);
}

#[test]
fn whole_header_has_one_deadline_however_it_trickles() {
    let app = Origin::echo();
    let weir = strict(&app);
    let mut client = TcpStream::connect(weir.address("http")).expect("connect");
    client
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("a time-out");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
        .expect("send");
    let mut answer = [0; 12];
    eventually(PATIENCE, || {
        // may fail once weir has answered
        let _ = client.write_all(b"x");
        client.read_exact(&mut answer).is_ok()
    });
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[test]
fn idle_connection_is_closed_in_time_after_each_request() {
    let app = Origin::echo();
    let weir = strict(&app);
    let mut connection = weir.connect();
    for _ in 0..2 {
        assert_eq!(connection.fetch(&get("/")).expect("an answer").status, 200);
    }
    connection
        .read_close()
        .expect("it is closed without a word");
}

#[test]
fn client_that_ends_its_side_gets_its_answer() {
    let app = Origin::start(Behaviour::Late("late".to_owned(), Duration::from_secs(1)));
    let weir = Weir::with("app", &app).start_site(
        "
        routes:
          - { match: { path: /local }, respond: { body: local } }
          - proxy: app
        ",
    );
    for (request, answer) in [
        ("GET /local HTTP/1.1\r\nHost: a\r\n\r\n", "local"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "late"),
        ("GET / HTTP/1.0\r\n\r\n", "late"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody",
            "late",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /local HTTP/1.1\r\nHost: a\r\n\r\n",
            "local",
        ),
    ] {
        let mut client = TcpStream::connect(weir.address("http")).expect("connect");
        client.write_all(request.as_bytes()).expect("send");
        client.shutdown(Shutdown::Write).expect("shut down");
        client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut text = String::new();
        client.read_to_string(&mut text).expect("an answer");
        assert!(text.starts_with("HTTP/1.1 200 "), "{request:?}: {text}");
        assert!(text.ends_with(answer), "{request:?}: {text}");
    }
}

#[test]
fn fields_with_underscores_are_as_if_they_had_not_been_sent() {
    let app = Origin::echo();
    let document = "
        pools: { app: { backends: ['{app}'] } }
        listeners:
          http: { bind: '127.0.0.1:{http}' }
          any: { bind: '127.0.0.1:{any}', http: { underscores: true } }
        sites:
          main:
            hosts: ['*']
            routes:
              - { match: { headers: { x_secret: a } }, respond: seen }
              - proxy: app
        ";
    let weir = Weir::with("app", &app).start(document);
    let request = get("/")
        .header("X_Forwarded_For", "10.0.0.1")
        .header("X-Kept", "1");
    let secret = get("/").header("X_Secret", "a");
    let hides = |text: &str| {
        let text = text.to_ascii_lowercase();
        text.contains("x-kept") && !text.contains("x_")
    };
    assert!(hides(weir.fetch(&request).text()));
    assert_ne!(weir.fetch(&secret).text(), "seen");
    let mut http2 = Http2::tcp(weir.address("http")).expect("connect");
    let answer = http2.fetch(&request).expect("an answer");
    assert!(hides(answer.text()), "{}", answer.text());
    let mut any = Connection::tcp(weir.address("any")).expect("connect");
    let answer = any.fetch(&request).expect("an answer");
    assert!(answer.text().contains("X_Forwarded_For: 10.0.0.1"));
    assert_eq!(any.fetch(&secret).expect("an answer").text(), "seen");
}

#[test]
fn last_request_that_a_connection_may_bring_says_so() {
    let app = Origin::echo();
    let weir = strict(&app);
    let mut connection = weir.connect();
    let pipeline = "GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(4);
    connection.send(pipeline.as_bytes()).expect("send");
    for is_last in [false, false, true] {
        let answer = connection.read().expect("an answer");
        assert_eq!(answer.header("connection") == Some("close"), is_last);
    }
    connection.read_close().expect("a clean end");
    assert_eq!(app.hits(), 3);
}
