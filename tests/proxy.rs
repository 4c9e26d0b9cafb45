//! What reaches the backend, and what comes back.

use crate::harness::Weir;
use crate::harness::client::{Connection, Request, get, post};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};

#[test]
fn request_arrives_as_the_client_sent_it() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let request = post("/a%2fb//c/../d?x=%20&y", "some body")
        .host("shop.example:8080")
        .header("Content-Type", "text/plain")
        .header("X-Twice", "1")
        .header("X-Twice", "2");
    assert_eq!(weir.fetch(&request).status, 200);
    let got = app.request();
    assert_eq!(got.method(), "POST");
    assert_eq!(got.target(), "/a%2fb//c/../d?x=%20&y");
    assert_eq!(got.header("host"), Some("shop.example:8080"));
    assert_eq!(got.header("content-type"), Some("text/plain"));
    assert_eq!(got.headers().all("x-twice"), ["1", "2"]);
    assert_eq!(got.body, b"some body");
}

#[test]
fn url_for_a_target_arrives_as_a_path() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let mut connection = weir.connect();
    for (target, path) in [
        ("http://shop.example/a?b", "/a?b"),
        ("http://shop.example?b", "/?b"),
        ("http://shop.example", "/"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\n\r\n");
        connection.send(request.as_bytes()).expect("send");
        assert_eq!(connection.read().expect("an answer").status, 200);
        let requests = app.requests();
        let got = requests.last().expect("a request");
        assert_eq!(
            (got.target(), got.header("host")),
            (path, Some("shop.example"))
        );
    }
}

#[test]
fn forwarded_headers_tell_of_the_client_and_nothing_else_is_added() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let forged = get("/")
        .host("shop.example")
        .header("X-Forwarded-For", "192.0.2.1")
        .header("X-Forwarded-Proto", "https")
        .header("X-Forwarded-Host", "forged.example");
    weir.fetch(&forged);
    let got = app.request();
    assert_eq!(got.headers().all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(got.headers().all("x-forwarded-proto"), ["http"]);
    assert_eq!(got.headers().all("x-forwarded-host"), ["shop.example"]);
    let mut names: Vec<_> = got
        .headers()
        .0
        .iter()
        .map(|(name, _)| name.to_lowercase())
        .collect();
    names.sort();
    names.retain(|name| name != "connection"); // hop by hop: weir's own
    assert_eq!(
        names,
        [
            "host",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto"
        ]
    );
}

#[test]
fn forwarded_headers_of_a_trusted_proxy_are_appended_to() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        trusted_proxies: [127.0.0.1]
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
        ",
    );
    let request = get("/")
        .header("X-Forwarded-For", "192.0.2.1")
        .header("X-Forwarded-Proto", "https");
    weir.fetch(&request);
    let got = app.request();
    assert_eq!(
        got.headers().all("x-forwarded-for").join(", "),
        "192.0.2.1, 127.0.0.1"
    );
    assert_eq!(got.headers().all("x-forwarded-proto"), ["https"]);
}

#[test]
fn forwarded_is_passed_on_only_for_a_trusted_proxy() {
    let app = Origin::fixed("ok");
    for (trusted, expected) in [("10.0.0.0/8", &[][..]), ("127.0.0.1", &["for=192.0.2.1"])] {
        let weir = Weir::with("app", &app).with("trusted", trusted).start(
            "
            listeners: { http: { bind: '127.0.0.1:{http}' } }
            trusted_proxies: ['{trusted}']
            log: { access: { file: access.log, format: '$remote_addr' } }
            pools: { app: { backends: ['{app}'] } }
            sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
            ",
        );
        weir.fetch(&get("/").header("Forwarded", "for=192.0.2.1"));
        let got = app.requests().pop().expect("a request");
        assert_eq!(got.headers().all("forwarded"), expected);
        let client = if expected.is_empty() {
            "127.0.0.1"
        } else {
            "192.0.2.1"
        };
        assert_eq!(weir.access_lines(1), [client]);
    }
}

#[test]
fn scheme_of_a_tls_client_is_forwarded() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start(
        "
        listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*'], tls: { self_signed: true }, routes: [{ proxy: app }] } }
        ",
    );
    let answer = weir.connect_tls("localhost").fetch(&get("/"));
    assert_eq!(answer.expect("an answer").status, 200);
    assert_eq!(app.request().header("x-forwarded-proto"), Some("https"));
}

#[test]
fn host_is_not_forwarded_on_the_word_of_a_client_that_names_none() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let mut connection = weir.connect();
    let request = "GET / HTTP/1.0\r\nX-Forwarded-Host: forged.example\r\n\r\n";
    connection.send(request.as_bytes()).expect("send");
    assert_eq!(connection.read().expect("an answer").text(), "ok");
    assert_eq!(app.request().header("x-forwarded-host"), None);
}

#[test]
fn hop_by_hop_headers_end_at_weir_both_ways() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Hop\r\n\
        Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nTrailer: X-T\r\nX-Hop: 1\r\nX-End: 1\r\n\r\nok";
    let app = Origin::raw(ANSWER);
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let request = get("/")
        .header("Connection", "keep-alive, X-Hop")
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Authorization", "Basic eA==")
        .header("Proxy-Connection", "keep-alive")
        .header("TE", "trailers")
        .header("Upgrade", "h2c")
        .header("X-Hop", "1")
        .header("X-End", "1");
    let answer = weir.fetch(&request);
    assert_eq!(answer.text(), "ok");
    let got = app.request();
    for name in [
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "upgrade",
        "x-hop",
    ] {
        assert_eq!(got.header(name), None, "to the backend: {name}");
    }
    for name in ["keep-alive", "proxy-authenticate", "trailer", "x-hop"] {
        assert_eq!(answer.header(name), None, "to the client: {name}");
    }
    assert_eq!(got.header("x-end"), Some("1"));
    assert_eq!(answer.header("x-end"), Some("1"));
    assert!(
        !answer
            .header("connection")
            .unwrap_or_default()
            .contains("X-Hop")
    );
}

#[test]
fn upstream_connections_are_kept_and_used_again() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    for _ in 0..10 {
        assert_eq!(weir.get("/").status, 200);
    }
    assert_eq!(app.hits(), 10);
    assert!(app.connections() <= 2, "{} connections", app.connections()); // one for each thread
}

#[test]
fn no_more_upstream_connections_are_kept_than_asked_for() {
    let app = Origin::start(Behaviour::Held("ok".to_owned()));
    let weir = Weir::with("app", &app).start_pool("{ backends: ['{app}'], keepalive: 1 }");
    for round in 1..=2 {
        let mut clients = [weir.connect(), weir.connect(), weir.connect()];
        for client in &mut clients {
            client.send_request(&get("/")).expect("send");
        }
        eventually(PATIENCE, || app.hits() == 3 * round);
        app.release(3);
        for client in &mut clients {
            assert_eq!(client.read().expect("an answer").text(), "ok");
        }
        eventually(PATIENCE, || app.open_connections() == 1);
    }
    // one of the first three is used again
    assert_eq!(app.connections(), 5);
}

#[test]
fn upstream_connection_that_was_closed_meanwhile_does_no_harm() {
    let mut app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    for _ in 0..5 {
        assert_eq!(weir.get("/").status, 200);
        app.kill();
        app.revive();
    }
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let app = Origin::raw("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX-A: 1\r\n\r\n");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let mut connection = weir.connect();
    for _ in 0..2 {
        let answer = connection.fetch(&Request::new("HEAD", "/"));
        let answer = answer.expect("an answer on the same connection");
        assert_eq!(answer.header("content-length"), Some("1000"));
        assert_eq!(answer.header("x-a"), Some("1"));
    }
    assert!(
        app.requests()
            .iter()
            .all(|request| request.method() == "HEAD")
    );
}

#[test]
fn statuses_and_bodies_of_the_backend_pass_unchanged() {
    for (status, body) in [
        ("204 No Content", ""),
        ("304 Not Modified", ""),
        ("418 Teapot", "short"),
        ("500 Oh", "own page"),
    ] {
        let framing = match body {
            "" => String::new(),
            body => format!("Content-Length: {}\r\n", body.len()),
        };
        let app = Origin::raw(&format!("HTTP/1.1 {status}\r\n{framing}\r\n{body}"));
        let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
        let answer = weir.get("/");
        assert_eq!(answer.status.to_string(), status[..3]);
        assert_eq!((answer.text(), answer.complete), (body, true), "{status}");
    }
}

#[test]
fn answer_that_ends_with_its_connection_is_passed_in_full() {
    let app = Origin::raw("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let answer = weir.get("/");
    assert_eq!((answer.text(), answer.complete), ("until the end", true));
}

#[test]
fn answer_is_passed_on_as_it_comes() {
    let app = Origin::start(Behaviour::Steps(3));
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    assert_eq!(
        connection
            .read_head()
            .expect("a head before the body")
            .word(1),
        "200"
    );
    for part in ["part 0\n", "part 1\n", "part 2\n"] {
        app.release(1);
        let chunk = connection
            .read_chunk()
            .expect("a chunk before the next one is made");
        assert_eq!(chunk, part.as_bytes());
    }
    assert_eq!(connection.read_chunk().expect("the last chunk"), b"");
}

#[test]
fn request_body_is_passed_on_as_it_comes() {
    let app = Origin::start(Behaviour::Sink);
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let mut connection = weir.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.send(head.as_bytes()).expect("send");
    for sent in 1..=3 {
        connection.send(b"4\r\npart\r\n").expect("send");
        eventually(PATIENCE, || app.received() == sent * 4);
    }
    connection.send(b"0\r\n\r\n").expect("send");
    assert_eq!(connection.read().expect("an answer").text(), "12");
    let got = app.request();
    assert_eq!(got.headers().all("transfer-encoding"), ["chunked"]);
}

#[test]
fn client_that_expects_continue_gets_its_answer() {
    let app = Origin::start(Behaviour::Sink);
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let request = post("/", "some body").header("Expect", "100-continue");
    assert_eq!(weir.fetch(&request).text(), "9");
}

#[test]
fn backend_on_a_unix_socket_is_reached() {
    let setup = Weir::with("name", "app.sock");
    let path = setup.dir().join("app.sock");
    let app = Origin::start_on_unix_socket(&path, Behaviour::Fixed("by unix socket".to_owned()));
    let weir = setup
        .with("app", &app)
        .start_site("routes: [{ proxy: app }]");
    assert_eq!(weir.get("/").text(), "by unix socket");
}

#[test]
fn route_and_site_choose_the_pool() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = Weir::with("a", &a).with("b", &b).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools:
          a: { backends: ['{a}'] }
          b: { backends: ['{b}'] }
        sites:
          main:
            hosts: ['*']
            routes:
              - { match: { prefix: /b }, proxy: { pool: b } }
              - { proxy: a }
        ",
    );
    assert_eq!(weir.get("/").text(), "a");
    assert_eq!(weir.get("/b/x").text(), "b");
}

#[test]
fn client_that_leaves_ends_the_request_upstream() {
    let app = Origin::start(Behaviour::Big(1 << 40));
    let weir = Weir::with("app", &app).start_site("routes: [{ proxy: app }]");
    let mut connection: Connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    connection.read_head().expect("a head");
    drop(connection);
    let line = &weir.access_lines(1)[0];
    assert!(line.contains("\"GET / HTTP/1.1\" 200"), "{line}");
}
