//! What is spoken with backends: TLS, HTTP/2, the PROXY protocol, and for how long.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use boring::ssl::SslVersion;

use crate::harness::certs::{Authority, Pair};
use crate::harness::client::{Http2, get, post};
use crate::harness::grpc::{GrpcOrigin, Says};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::secure::{SecureOrigin, Skills, acceptor};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::websocket::Frame;
use crate::harness::{Setup, Weir};
use crate::streaming::open_websocket;

const BOTH: &[u8] = b"\x02h2\x08http/1.1";
const HTTP1: &[u8] = b"\x08http/1.1";

/// A setup with the authority in `ca.pem`, and a certificate of it.
fn secure() -> (Setup, Authority, Pair) {
    let setup = Setup::new();
    let authority = Authority::new();
    authority.write(setup.dir(), "ca.pem");
    let pair = authority.issue(setup.dir(), "app", &["app.internal"]);
    (setup, authority, pair)
}

const TRUSTED: &str = "tls: { sni: app.internal, ca: ca.pem }";

#[test]
fn backend_must_be_who_it_should_be() {
    for (tls, status) in [
        ("{ sni: app.internal, ca: ca.pem }", 200),
        ("{ sni: other.internal, ca: ca.pem }", 502),
        ("{ ca: ca.pem }", 502), // by its address, which is not in the certificate
        ("{ sni: app.internal }", 502),
        ("true", 502),
        ("{ verify: false }", 200),
    ] {
        let (setup, _, pair) = secure();
        let app = SecureOrigin::tls(&pair, HTTP1);
        let weir = setup
            .with("app", &app)
            .allow("")
            .start_pool(&format!("{{ backends: ['{{app}}'], tls: {tls} }}"));
        assert_eq!(weir.get("/").status, status, "{tls}");
    }
}

#[test]
fn own_certificate_is_shown_to_the_backend() {
    let (setup, authority, pair) = secure();
    authority.issue(setup.dir(), "weir", &["weir.internal"]);
    let app = SecureOrigin::tls(&pair, HTTP1);
    let weir = setup.with("app", &app).start_pool(
        "{ backends: ['{app}'], tls: { sni: app.internal, ca: ca.pem, cert: weir.pem, key: weir.key } }",
    );
    assert_eq!(
        weir.get("/").text(),
        "h1 TLSv1.3 for app.internal from weir.internal"
    );
}

#[test]
fn old_versions_are_not_spoken() {
    for (newest, status) in [(SslVersion::TLS1_2, 200), (SslVersion::TLS1_1, 502)] {
        let (setup, _, pair) = secure();
        let app = SecureOrigin::start(Skills {
            tls: Some(acceptor(&pair, HTTP1, newest)),
            ..Skills::default()
        });
        let weir = setup
            .with("app", &app)
            .allow("")
            .start_pool(&format!("{{ backends: ['{{app}}'], {TRUSTED} }}"));
        assert_eq!(weir.get("/").status, status);
    }
}

#[test]
fn backend_chooses_the_protocol_by_alpn() {
    for (alpn, protocol, spoken) in [
        (BOTH, "auto", "h2 "),
        (HTTP1, "auto", "h1 "),
        (BOTH, "h1", "h1 "),
        (BOTH, "h2", "h2 "),
    ] {
        let (setup, _, pair) = secure();
        let app = SecureOrigin::tls(&pair, alpn);
        let weir = setup.with("app", &app).start_pool(&format!(
            "{{ backends: ['{{app}}'], protocol: {protocol}, {TRUSTED} }}"
        ));
        // on one connection: a request on another one may come before the backend's is free
        let mut client = weir.connect();
        for _ in 0..3 {
            let answer = client.fetch(&get("/")).expect("an answer");
            assert_eq!(answer.status, 200, "{protocol}");
            assert!(answer.text().starts_with(spoken), "{}", answer.text());
        }
        assert_eq!(app.connections(), 1, "{protocol}");
    }
}

#[test]
fn http2_alone_is_not_exchanged_for_http1() {
    let (setup, _, pair) = secure();
    let app = SecureOrigin::tls(&pair, HTTP1);
    let weir = setup.with("app", &app).allow("").start_pool(&format!(
        "{{ backends: ['{{app}}'], protocol: h2, {TRUSTED} }}"
    ));
    assert_eq!(weir.get("/").status, 502);
}

#[test]
fn http2_is_not_spoken_for_requests_without_a_host() {
    let app = SecureOrigin::h2c();
    let weir = Weir::with("app", &app).start_pool("{ backends: ['{app}'], protocol: h2c }");
    for head in ["GET / HTTP/1.0", "GET / HTTP/1.1\r\nHost:"] {
        let mut connection = weir.connect();
        let request = format!("{head}\r\n\r\n");
        connection.send(request.as_bytes()).expect("send");
        assert_eq!(connection.read().expect("an answer").status, 400, "{head}");
    }
    let lines = weir.access_lines(2);
    assert!(
        lines.iter().all(|line| line.contains("bad_request")),
        "{lines:?}"
    );
}

#[test]
fn http2_without_tls_is_spoken_by_prior_knowledge() {
    let app = SecureOrigin::h2c();
    let weir = Weir::with("app", &app).start_pool("{ backends: ['{app}'], protocol: h2c }");
    let mut client = weir.connect();
    for _ in 0..3 {
        let answer = client.fetch(&get("/")).expect("an answer");
        assert_eq!(answer.text(), "h2 plain");
    }
    assert_eq!(app.connections(), 1);
}

#[test]
fn grpc_goes_through_with_its_trailers_many_calls_at_once() {
    let app = GrpcOrigin::start(Says::Status(1));
    let weir = Weir::with("app", &app).start(
        "
        listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
        pools: { app: { backends: ['{app}'], protocol: h2c } }
        sites: { main: { hosts: ['*'], tls: { self_signed: true }, routes: [{ proxy: app }] } }
        ",
    );
    let call = post("/grpc.health.v1.Health/Check", [0, 0, 0, 0, 0])
        .header("Content-Type", "application/grpc")
        .header("TE", "trailers");
    let mut client = Http2::connect(weir.address("https"), "localhost").expect("connect");
    for answer in client.fetch_all(&vec![call; 20]) {
        let answer = answer.expect("an answer");
        assert_eq!((answer.status, answer.complete), (200, true));
        assert_eq!(answer.body, [0, 0, 0, 0, 2, 8, 1]);
        assert_eq!(answer.trailers.get("grpc-status"), Some("0"));
    }
    let asked = app.asked();
    assert_eq!(asked.len(), 20);
    assert!(asked.iter().all(|call| call.headers["te"] == "trailers"));
    assert_eq!(asked[0].message, [0; 5]);
}

/// A document with a TLS listener for clients of HTTP/2, and a pool.
fn for_http2(pool: &str) -> String {
    format!(
        "
        listeners: {{ https: {{ bind: '127.0.0.1:{{https}}', tls: {{}} }} }}
        pools: {{ app: {pool} }}
        sites: {{ main: {{ hosts: ['*'], tls: {{ self_signed: true }}, routes: [{{ proxy: app }}] }} }}
        "
    )
}

const H2C: &str = "{ backends: ['{app}'], protocol: h2c }";

#[test]
fn grpc_messages_pass_both_ways_while_the_call_lasts() {
    let app = SecureOrigin::h2c();
    let weir = Weir::with("app", &app).start(&for_http2(H2C));
    let call = post("/echo", "")
        .header("Content-Type", "application/grpc")
        .header("TE", "trailers");
    let mut call = weir.connect_http2("localhost").open(&call).expect("open");
    for message in ["one", "two", "three"] {
        call.say(message, false).expect("send");
        assert_eq!(call.hear().expect("a part").as_deref(), Some(message));
    }
    call.say("", true).expect("send");
    assert_eq!(call.hear().expect("the end"), None);
    let trailers = call.trailers().expect("trailers");
    assert_eq!(trailers.get("grpc-status"), Some("0"));
}

#[test]
fn events_of_an_http2_backend_arrive_one_by_one() {
    let app = SecureOrigin::h2c();
    let weir = Weir::with("app", &app).start_pool(H2C);
    let mut connection = weir.connect();
    let head = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Type: text/event-stream\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    connection.send(head.as_bytes()).expect("send");
    let head = connection.read_final_head().expect("a header");
    assert_eq!(head.headers.get("content-type"), Some("text/event-stream"));
    for event in ["data: one\n\n", "data: two\n\n"] {
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        connection.send(chunk.as_bytes()).expect("send");
        let got = connection.read_chunk().expect("an event");
        assert_eq!(got, event.as_bytes());
    }
    connection.send(b"0\r\n\r\n").expect("send");
    assert_eq!(connection.read_chunk().expect("the last chunk"), b"");
}

#[test]
fn events_of_an_http1_backend_arrive_one_by_one() {
    let app = Origin::start(Behaviour::Steps(3));
    let weir = Weir::with("app", &app).start(&for_http2("{ backends: ['{app}'] }"));
    let request = get("/events").header("Accept", "text/event-stream");
    let mut events = weir
        .connect_http2("localhost")
        .open(&request)
        .expect("open");
    events.say("", true).expect("send");
    for part in ["part 0\n", "part 1\n", "part 2\n"] {
        app.release(1);
        assert_eq!(events.hear().expect("a part").as_deref(), Some(part));
    }
    assert_eq!(events.hear().expect("the end"), None);
}

/// Sends 100 requests at the same time to a backend that answers none before all are there.
fn send_a_crowd(skills: Skills, setup: Setup, pool: &str) {
    const CROWD: usize = 100;
    let app = SecureOrigin::start(skills.in_crowds_of(CROWD));
    let weir = setup.with("app", &app).start(&for_http2(pool));
    let mut client = weir.connect_http2("localhost");
    for _ in 0..3 {
        for answer in client.fetch_all(&vec![get("/"); CROWD]) {
            assert_eq!(answer.expect("an answer").status, 200);
        }
    }
    // One, if all went one after the other: while a stream begins or ends on a connection, another thread does not see it.
    let connections = app.connections();
    assert!(connections <= 8, "{connections} connections");
}

#[test]
fn many_requests_share_a_connection_of_http2() {
    send_a_crowd(Skills::h2c(), Setup::new(), H2C);
}

#[test]
fn many_requests_share_a_connection_of_http2_over_tls() {
    let (setup, _, pair) = secure();
    let pool = format!("{{ backends: ['{{app}}'], {TRUSTED} }}");
    send_a_crowd(Skills::tls(&pair, BOTH), setup, &pool);
}

#[test]
fn backend_may_let_few_requests_share_a_connection() {
    let app = SecureOrigin::start(Skills {
        streams: Some(1),
        ..Skills::h2c()
    });
    let weir = Weir::with("app", &app).start(&for_http2(H2C));
    for answer in weir
        .connect_http2("localhost")
        .fetch_all(&vec![get("/"); 50])
    {
        assert_eq!(answer.expect("an answer").status, 200);
    }
}

#[test]
fn one_try_is_enough_where_others_make_a_connection() {
    let app = SecureOrigin::h2c();
    let document = for_http2(H2C).replace("pools:", "max_retries: 1\n        pools:");
    let weir = Weir::with("app", &app).start(&document);
    for answer in weir
        .connect_http2("localhost")
        .fetch_all(&vec![get("/"); 50])
    {
        assert_eq!(answer.expect("an answer").status, 200);
    }
}

#[test]
fn pools_that_differ_in_tls_share_no_connection() {
    for alpn in [HTTP1, BOTH] {
        let (setup, authority, pair) = secure();
        authority.issue(setup.dir(), "weir", &["weir.internal"]);
        Authority::new().write(setup.dir(), "other-ca.pem");
        let app = SecureOrigin::tls(&pair, alpn);
        let weir = setup.with("app", &app).allow("").start(
            "
            listeners: { http: { bind: '127.0.0.1:{http}' } }
            pools:
              plain: { backends: ['{app}'], tls: { sni: app.internal, ca: ca.pem } }
              known: { backends: ['{app}'], tls: { sni: app.internal, ca: ca.pem, cert: weir.pem, key: weir.key } }
              named: { backends: ['{app}'], tls: { sni: other.internal, verify: false } }
              wary: { backends: ['{app}'], tls: { sni: app.internal, ca: other-ca.pem } }
            sites:
              main:
                hosts: ['*']
                routes:
                  - { match: { path: /plain }, proxy: plain }
                  - { match: { path: /known }, proxy: known }
                  - { match: { path: /named }, proxy: named }
                  - { match: { path: /wary }, proxy: wary }
            ",
        );
        let mut client = weir.connect();
        for _ in 0..2 {
            for (path, facts) in [
                ("/plain", "TLSv1.3 for app.internal from nobody"),
                ("/known", "TLSv1.3 for app.internal from weir.internal"),
                ("/named", "TLSv1.3 for other.internal from nobody"),
            ] {
                let answer = client.fetch(&get(path)).expect("an answer");
                assert!(answer.text().ends_with(facts), "{path}: {}", answer.text());
            }
        }
        assert_eq!(app.connections(), 3);
        assert_eq!(weir.get("/wary").status, 502);
    }
}

#[test]
fn tls_sessions_go_on_with_the_next_connection() {
    for newest in [SslVersion::TLS1_2, SslVersion::TLS1_3] {
        for alpn in [HTTP1, BOTH] {
            let (setup, _, pair) = secure();
            let app = SecureOrigin::start(Skills {
                tls: Some(acceptor(&pair, alpn, newest)),
                ..Skills::default()
            });
            let weir = setup.with("app", &app).start_pool(&format!(
                "{{ backends: ['{{app}}'], {TRUSTED}, timeouts: {{ idle: 1ms }} }}"
            ));
            eventually(PATIENCE, || {
                assert_eq!(weir.get("/").status, 200);
                app.connections() >= 4
            });
            assert_eq!(app.resumptions(), app.connections() - 1);
        }
    }
}

#[test]
fn sessions_of_one_pool_are_not_for_another() {
    let (setup, _, pair) = secure();
    Authority::new().write(setup.dir(), "other-ca.pem");
    let app = SecureOrigin::tls(&pair, HTTP1);
    let weir = setup.with("app", &app).allow("").start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools:
          careless: { backends: ['{app}'], tls: { verify: false, sni: app.internal } }
          wary: { backends: ['{app}'], tls: { sni: app.internal, ca: other-ca.pem } }
        sites:
          main:
            hosts: ['*']
            routes:
              - { match: { path: /careless }, proxy: careless }
              - { match: { path: /wary }, proxy: wary }
        ",
    );
    assert_eq!(weir.get("/careless").status, 200);
    assert_eq!(weir.get("/wary").status, 502);
    assert_eq!(app.resumptions(), 0);
}

#[test]
fn websocket_passes_to_a_backend_over_tls() {
    // one that would speak HTTP/2 if it were asked
    let (setup, _, pair) = secure();
    let app = SecureOrigin::tls(&pair, BOTH);
    let weir = setup
        .with("app", &app)
        .start_pool(&format!("{{ backends: ['{{app}}'], {TRUSTED} }}"));
    assert!(weir.get("/").text().starts_with("h2 "));
    let mut connection = open_websocket(&weir);
    for text in ["hello", &"long ".repeat(20_000)] {
        connection.send_frame(&Frame::text(text)).expect("send");
        assert_eq!(connection.read_frame().expect("a frame"), Frame::text(text));
    }
}

#[test]
fn errors_for_grpc_are_trailers() {
    let weir = Weir::with("app", "127.0.0.1:1")
        .allow("")
        .start_pool("{ backends: ['{app}'], protocol: h2c }");
    let answer = weir.fetch(&post("/a.B/C", "").header("Content-Type", "application/grpc"));
    assert_eq!((answer.status, answer.text()), (200, ""));
    assert_eq!(answer.header("content-type"), Some("application/grpc"));
    assert_eq!(answer.header("grpc-status"), Some("14"));
    assert_eq!(answer.header("grpc-message"), Some("Bad Gateway"));
}

/// A backend that reads until `until` came, sends `answers`, each after a while, and gives back what it read.
fn scripted(
    until: &'static [u8],
    answers: Vec<(Duration, Vec<u8>)>,
) -> (String, thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("bound").to_string();
    let run = move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut got = Vec::new();
        let mut buffer = [0; 4096];
        while !got.windows(until.len()).any(|window| window == until) {
            match stream.read(&mut buffer) {
                Ok(n @ 1..) => got.extend(&buffer[..n]),
                _ => return got,
            }
        }
        for (pause, bytes) in answers {
            thread::sleep(pause);
            if stream.write_all(&bytes).is_err() {
                break;
            }
        }
        got
    };
    (address, thread::spawn(run))
}

const END: &[u8] = b"\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn backend_is_told_of_the_client_by_the_proxy_protocol() {
    for (version, beginning) in [
        ("v1", &b"PROXY TCP4 127.0.0.1 127.0.0.1 "[..]),
        (
            "v2",
            &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01"[..],
        ),
    ] {
        let (app, got) = scripted(b"Host: ", vec![(Duration::ZERO, OK.to_vec())]);
        let weir = Weir::with("app", app).start_pool(&format!(
            "{{ backends: ['{{app}}'], proxy_protocol: {version} }}"
        ));
        assert_eq!(weir.get("/").status, 200);
        let got = got.join().expect("an origin");
        assert!(got.starts_with(beginning), "{}", got.escape_ascii());
    }
}

#[test]
fn header_that_comes_in_drips_is_a_gateway_timeout() {
    let drips = OK.iter().map(|byte| (millis(50), vec![*byte])).collect();
    let (app, _) = scripted(END, drips);
    let weir = Weir::with("app", app)
        .allow("")
        .start_pool("{ backends: ['{app}'], timeouts: { read: 300ms } }");
    let begun = Instant::now();
    assert_eq!(weir.get("/").status, 504);
    assert!(begun.elapsed() < millis(1500));
}

#[test]
fn header_that_is_too_long_is_a_bad_gateway() {
    let long = format!(
        "HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n",
        "x".repeat(65 * 1024)
    );
    let (app, _) = scripted(END, vec![(Duration::ZERO, long.into_bytes())]);
    let weir = Weir::with("app", app)
        .allow("")
        .start_pool("{ backends: ['{app}'] }");
    assert_eq!(weir.get("/").status, 502);
}

#[test]
fn request_may_take_so_long_in_all() {
    let app = Origin::start(Behaviour::Held("late".to_owned()));
    let weir = Weir::with("app", &app)
        .allow("")
        .start_pool("{ backends: ['{app}'], timeouts: { total: 300ms } }");
    assert_eq!(weir.get("/").status, 504);
}

#[test]
fn body_that_never_ends_ends_with_the_total_time() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec();
    let mut parts = vec![(Duration::ZERO, head)];
    parts.extend((0..100).map(|_| (millis(50), b"x".to_vec())));
    let (app, _) = scripted(END, parts);
    let weir = Weir::with("app", app)
        .allow("")
        .start_pool("{ backends: ['{app}'], timeouts: { total: 400ms } }");
    let begun = Instant::now();
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    let whole = connection.read().is_ok_and(|answer| answer.complete);
    assert!(!whole && begun.elapsed() < millis(2000));
}

#[test]
fn request_over_http2_may_take_so_long_in_all() {
    let app = SecureOrigin::start(Skills::h2c().in_crowds_of(2));
    let weir = Weir::with("app", &app)
        .allow("")
        .start_pool("{ backends: ['{app}'], protocol: h2c, timeouts: { total: 300ms } }");
    let begun = Instant::now();
    assert_eq!(weir.get("/").status, 504);
    assert!(begun.elapsed() < millis(1500));
}

#[test]
fn body_over_http2_that_falls_silent_ends_with_the_total_time() {
    let app = SecureOrigin::h2c();
    let weir = Weir::with("app", &app).allow("").start(&for_http2(
        "{ backends: ['{app}'], protocol: h2c, timeouts: { total: 300ms } }",
    ));
    let call = post("/echo", "");
    let mut call = weir.connect_http2("localhost").open(&call).expect("open");
    let begun = Instant::now();
    call.say("one", false).expect("send");
    assert_eq!(call.hear().expect("a part").as_deref(), Some("one"));
    assert!(call.hear().is_err());
    assert!(begun.elapsed() < millis(1500));
}

#[test]
fn stream_of_events_over_http2_outlives_the_other_limits() {
    let app = SecureOrigin::h2c();
    let weir = Weir::with("app", &app).start(&for_http2(
        "{ backends: ['{app}'], protocol: h2c, timeouts: { read: 200ms, total: 300ms } }",
    ));
    let events = post("/echo", "")
        .header("Content-Type", "text/event-stream")
        .header("Accept", "text/event-stream");
    let mut events = weir.connect_http2("localhost").open(&events).expect("open");
    events.say("one", false).expect("send");
    assert_eq!(events.hear().expect("an event").as_deref(), Some("one"));
    thread::sleep(millis(600)); // silence is what is tested
    events.say("two", false).expect("send");
    assert_eq!(events.hear().expect("an event").as_deref(), Some("two"));
}

#[test]
fn websocket_outlives_the_read_limit() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = Weir::with("app", &app).start_pool(
        "{ backends: ['{app}'], timeouts: { read: 200ms, total: 300ms, tunnel: 10s } }",
    );
    let mut connection = open_websocket(&weir);
    thread::sleep(millis(600)); // silence is what is tested
    connection.send_frame(&Frame::text("still")).expect("send");
    assert_eq!(
        connection.read_frame().expect("a frame"),
        Frame::text("still")
    );
}

#[test]
fn silent_websocket_ends_with_the_tunnel_limit() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = Weir::with("app", &app)
        .allow("")
        .start_pool("{ backends: ['{app}'], timeouts: { tunnel: 200ms } }");
    let mut connection = open_websocket(&weir);
    assert!(connection.read_frame().is_err());
}

#[test]
fn stream_of_events_outlives_the_read_limit() {
    let head =
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 6\r\n\r\none";
    let (app, _) = scripted(
        END,
        vec![
            (Duration::ZERO, head.to_vec()),
            (millis(600), b"two".to_vec()),
        ],
    );
    let weir = Weir::with("app", app)
        .start_pool("{ backends: ['{app}'], timeouts: { read: 200ms, total: 300ms } }");
    assert_eq!(weir.get("/").text(), "onetwo");
}

#[test]
fn early_hints_are_passed_on() {
    let hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n".to_vec();
    let (app, _) = scripted(
        END,
        vec![(Duration::ZERO, hints), (millis(50), OK.to_vec())],
    );
    let weir = Weir::with("app", app).start_pool("{ backends: ['{app}'] }");
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    let head = connection.read_head().expect("a header");
    assert_eq!(
        (head.word(1), head.headers.get("link")),
        ("103", Some("</a.css>"))
    );
    assert_eq!(connection.read_head().expect("a header").word(1), "200");
}

#[test]
fn client_is_told_to_go_on_before_it_sends_its_body() {
    let app = Origin::start(Behaviour::Sink);
    let weir = Weir::with("app", &app).start_pool("{ backends: ['{app}'] }");
    let mut connection = weir.connect();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
    connection.send(head).expect("send");
    assert_eq!(connection.read_head().expect("a header").word(1), "100");
    connection.send(b"body").expect("send");
    assert_eq!(connection.read().expect("an answer").text(), "4");
    assert_eq!(app.request().header("expect"), None);
}

#[test]
fn crumbs_of_cookies_are_joined_for_http1() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start(
        "
        listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*'], tls: { self_signed: true }, routes: [{ proxy: app }] } }
        ",
    );
    let request = get("/").header("cookie", "a=1").header("cookie", "b=2");
    weir.connect_http2("localhost")
        .fetch(&request)
        .expect("an answer");
    assert_eq!(app.request().headers().all("cookie"), ["a=1; b=2"]);
}

#[test]
fn client_that_takes_nothing_does_not_hold_up_those_who_share_its_connection() {
    let app = SecureOrigin::h2c();
    let weir = Weir::with("app", &app).start_pool("{ backends: ['{app}'], protocol: h2c }");
    assert_eq!(weir.get("/").status, 200);
    let stalled = (0..4).map(|_| {
        let mut client = weir.connect();
        client.send_request(&get("/large")).expect("send");
        client
    });
    let stalled: Vec<_> = stalled.collect();
    for _ in 0..500 {
        assert_eq!(weir.get("/").status, 200);
    }
    assert!(app.connections() <= 2, "they share");
    // and they get all of it when they take it
    for mut client in stalled {
        let answer = client.read_counting().expect("an answer");
        assert_eq!((answer.length, answer.complete), (64 << 20, true));
    }
}
