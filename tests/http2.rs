//! HTTP/2 over TLS.

use crate::harness::client::{Connection, Http2, Request, get, post};
use crate::harness::frames::{
    self, DATA, END_STREAM, GOAWAY, RST_STREAM, Raw, WINDOW_UPDATE, frame,
};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Setup, Weir};

const DOCUMENT: &str = "
    listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
    pools: { app: { backends: ['{app}'] } }
    sites:
      main:
        hosts: ['*']
        tls: { self_signed: true }
        routes:
          - { match: { path: /local }, respond: { body: local } }
          - { proxy: app }
    ";

fn start(app: &Origin) -> Weir {
    Weir::with("app", app).start(DOCUMENT)
}

#[test]
fn alpn_chooses_http2_or_http1() {
    let app = Origin::fixed("app");
    let weir = start(&app);
    let mut h1 = weir.connect_tls("localhost");
    assert_eq!(h1.protocol.as_deref(), Some("http/1.1"));
    assert_eq!(h1.fetch(&get("/")).expect("an answer").text(), "app");
    let mut h2 = weir.connect_http2("localhost");
    assert_eq!(h2.fetch(&get("/")).expect("an answer").text(), "app");
}

#[test]
fn http2_is_not_offered_where_it_is_not_wanted() {
    let document = DOCUMENT.replace("tls: {} }", "tls: {}, protocols: [h1] }");
    let weir = Weir::with("app", "127.0.0.1:1").start(&document);
    assert!(weir.connect_tls("localhost").fetch(&get("/local")).is_ok());
    // a client that speaks nothing else learns it in the handshake
    let refused = Connection::tls_for_http2(weir.address("https"), "localhost");
    let error = refused.err().expect("no handshake").to_string();
    assert!(error.contains("NO_APPLICATION_PROTOCOL"), "{error}");
}

#[test]
fn many_streams_share_a_connection() {
    let app = Origin::echo();
    let weir = start(&app);
    let mut client = weir.connect_http2("localhost");
    let requests: Vec<Request> = (0..50)
        .map(|i| post(&format!("/{i}"), i.to_string()))
        .collect();
    for (i, answer) in client.fetch_all(&requests).into_iter().enumerate() {
        let answer = answer.expect("an answer");
        assert!(
            answer
                .text()
                .starts_with(&format!("POST /{i} HTTP/1.1\r\n")),
            "{answer:?}"
        );
        assert!(
            answer.text().ends_with(&format!("\r\n\r\n{i}")),
            "{answer:?}"
        );
    }
}

#[test]
fn authority_becomes_the_host_of_the_backend() {
    let app = Origin::fixed("ok");
    let weir = start(&app);
    let request = get("/").host("shop.example:8443");
    let answer = weir.connect_http2("shop.example").fetch(&request);
    assert_eq!(answer.expect("an answer").status, 200);
    let got = app.request();
    assert_eq!(got.headers().all("host"), ["shop.example:8443"]);
    assert_eq!(got.header("x-forwarded-proto"), Some("https"));
    assert_eq!(got.header("x-forwarded-host"), Some("shop.example:8443"));
}

#[test]
fn headers_that_http2_forbids_are_not_sent() {
    let app = Origin::raw(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    );
    let weir = start(&app);
    let answer = weir
        .connect_http2("localhost")
        .fetch(&get("/"))
        .expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    for name in ["transfer-encoding", "keep-alive", "connection"] {
        assert_eq!(answer.header(name), None, "{name}");
    }
}

#[test]
fn an_answer_comes_before_its_request_is_given_up() {
    let weir = Setup::new().start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        sites: { main: { hosts: ['*'], routes: [{ body_limit: 1KiB, respond: ok }] } }
        ",
    );
    let mut connection = Http2::tcp(weir.address("http")).unwrap();
    let request = post("/", "").header("Content-Length", "5000");
    let mut dialogue = connection.open(&request).unwrap();
    assert_eq!(dialogue.status().unwrap(), 413);
    while dialogue.hear().unwrap().is_some() {}
    // the connection goes on
    assert_eq!(connection.fetch(&get("/")).unwrap().text(), "ok");
}

#[test]
fn head_has_no_body() {
    let app = Origin::raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let weir = start(&app);
    let mut client = weir.connect_http2("localhost");
    for target in ["/", "/local"] {
        let answer = client
            .fetch(&Request::new("HEAD", target))
            .expect("an answer");
        assert_eq!((answer.status, answer.length), (200, 0), "{target}");
        assert_eq!(answer.header("content-length"), Some("5"), "{target}");
    }
}

#[test]
fn big_bodies_pass_both_ways() {
    const LENGTH: usize = 3_000_000;
    let app = Origin::echo();
    let weir = start(&app);
    let answer = weir
        .connect_http2("localhost")
        .fetch(&post("/", vec![b'x'; LENGTH]));
    let answer = answer.expect("an answer");
    assert!(answer.complete);
    assert!(answer.body.ends_with(&vec![b'x'; LENGTH]));
}

#[test]
fn body_that_waits_does_not_hold_up_others() {
    let full = Origin::start(Behaviour::Held("late".to_owned()));
    let app = Origin::echo();
    let weir = Weir::with("app", &app).with("full", &full).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools:
          app: { backends: ['{app}'] }
          full: { backends: [{ addr: '{full}', max_conns: 1 }], queue: { size: 1, timeout: 60s } }
        sites:
          main:
            hosts: ['*']
            routes: [{ match: { prefix: /full }, proxy: full }, { proxy: app }]
        ",
    );
    let mut client = Raw::open(weir.address("http"), &[]).expect("connect");
    while client.read().expect("a frame").kind != WINDOW_UPDATE {}
    client.send(&frames::get(1, "/full")).expect("send");
    eventually(PATIENCE, || full.hits() == 1);
    // All that its stream may bring, before a backend has room for it.
    let mut bytes = frames::post(3, "/full");
    for length in [16_384, 16_384, 16_384, 16_383] {
        bytes.extend(frame(DATA, 0, 3, &vec![b'x'; length]));
    }
    bytes.extend(frames::post(5, "/"));
    bytes.extend(frame(DATA, END_STREAM, 5, b"another"));
    client.send(&bytes).expect("send");
    loop {
        let frame = client.read().expect("a frame");
        assert!(![RST_STREAM, GOAWAY].contains(&frame.kind), "{frame:?}");
        if frame.stream == 5 && frame.flags & END_STREAM != 0 {
            break;
        }
    }
    assert_eq!(app.request().body, b"another");
}

#[test]
fn bytes_that_are_not_http2_after_all_do_no_harm() {
    let app = Origin::fixed("app");
    let weir = start(&app);
    let mut connection: Connection = weir.connect_tls("localhost");
    let _ = connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage garbage garbage");
    let answer = connection.read();
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status >= 400));
    assert_eq!(
        weir.connect_http2("localhost")
            .fetch(&get("/"))
            .expect("an answer")
            .status,
        200
    );
}

#[test]
fn connect_is_not_allowed() {
    let app = Origin::fixed("app");
    let weir = start(&app);
    let mut client = weir.connect_http2("localhost");
    let answer = client
        .fetch(&Request::new("CONNECT", "/"))
        .expect("an answer");
    assert_eq!(answer.status, 405);
    assert_eq!(answer.header("server"), Some("weir"));
    assert!(weir.access_lines(1)[0].ends_with(" method_not_allowed"));
    assert_eq!(client.fetch(&get("/")).expect("an answer").text(), "app");
}
