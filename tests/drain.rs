//! What a drain tells, to load balancers, clients and operators, and how it ends.

use nix::sys::signal::Signal;

use crate::harness::client::{Connection, Request, Response, get};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::websocket::{self, Frame};
use crate::harness::{Run, Setup, Weir, one_pool, one_site};
use crate::streaming::{open_websocket, open_websocket_on};

const CUT: i32 = 4;

fn ready(setup: &Setup) -> Response {
    let socket = setup.dir().join("admin.sock");
    let mut connection = Connection::unix(&socket).expect("connect to the admin socket");
    let answer = connection.fetch(&Request::new("GET", "/ready"));
    answer.expect("an answer of the admin socket")
}

fn status(weir: &Weir) -> Run {
    weir.setup().run(&["status", "-c", "weir.yaml"])
}

/// A WebSocket by way of weir, and what weir drains by.
fn websocket(drain: &str) -> (Weir, Origin, Connection) {
    let app = Origin::start(Behaviour::WebSocket);
    let document = one_pool("{ backends: ['{app}'] }") + &format!("drain: {drain}\n");
    let weir = Weir::with("app", &app).start(&document);
    let mut connection = open_websocket(&weir);
    connection.send_frame(&Frame::text("hello")).expect("send");
    assert_eq!(
        connection.read_frame().expect("a frame"),
        Frame::text("hello")
    );
    (weir, app, connection)
}

fn close(code: u16) -> Frame {
    Frame {
        opcode: websocket::CLOSE,
        payload: code.to_be_bytes().into(),
    }
}

#[test]
fn load_balancer_hears_of_it_before_anybody_is_turned_away() {
    let mut weir = Weir::start(
        &(one_site("routes: [{ match: { path: /health }, status: {} }, { respond: ok }]")
            + "drain: { announce: 2s }\n"),
    );
    assert_eq!(ready(weir.setup()).text(), "ready\n");
    assert_eq!(weir.get("/health").status, 200);
    let mut kept = weir.connect();
    kept.fetch(&get("/")).expect("an answer");

    weir.signal(Signal::SIGTERM);
    eventually(PATIENCE, || ready(weir.setup()).status == 503);
    assert_eq!(ready(weir.setup()).text(), "draining\n");
    let health = weir.get("/health");
    assert_eq!(health.status, 503);
    assert!(health.text().contains(r#""state": "draining""#));
    // old and new connections are served as ever
    let answer = kept.fetch(&get("/")).expect("an answer");
    assert_eq!(
        (answer.status, answer.header("connection")),
        (200, Some("keep-alive"))
    );
    assert_eq!(weir.get("/").status, 200);
    let said = status(&weir).stdout;
    assert!(said.contains("draining, 1 connection left"), "{said}");

    kept.read_close().expect("a clean end");
    assert!(weir.wait().success());
}

#[test]
fn drain_can_be_watched_to_its_end() {
    let app = Origin::start(Behaviour::Held("in the end".to_owned()));
    let mut weir = Weir::with("app", &app).start_pool("{ backends: ['{app}'] }");
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    eventually(PATIENCE, || app.hits() == 1);
    weir.signal(Signal::SIGTERM);
    eventually(PATIENCE, || Connection::tcp(weir.address("http")).is_err());
    eventually(PATIENCE, || {
        let said = status(&weir).stdout;
        said.contains("draining, 1 connection left")
    });
    let reload = weir.setup().run(&["reload", "-c", "weir.yaml"]);
    assert_eq!(reload.status, 3, "{reload:?}");
    assert!(reload.stderr.contains("about to end"), "{reload:?}");
    app.release(1);
    connection.read().expect("an answer");
    assert!(weir.wait().success());
}

#[test]
fn websockets_are_closed_on_both_sides() {
    let (mut weir, app, mut connection) = websocket("{ tunnels: 50ms }");
    weir.signal(Signal::SIGTERM);
    assert_eq!(connection.read_frame().expect("a frame"), close(1012));
    // a client may have something on its way
    connection
        .send_frame(&Frame::text("too late"))
        .expect("send");
    connection.send_frame(&close(1012)).expect("send");
    connection.read_close().expect("a clean end");
    assert!(weir.wait().success());
    assert_eq!(app.hits(), 1);
    assert!(!weir.error_log().contains("cut"), "{}", weir.error_log());
}

#[test]
fn websocket_over_tls_is_closed_too() {
    let app = Origin::start(Behaviour::WebSocket);
    let mut weir = Weir::with("app", &app).start(
        "
        drain: { tunnels: 50ms }
        listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*'], tls: { self_signed: true }, routes: [{ proxy: app }] } }
        ",
    );
    let mut connection = open_websocket_on(weir.connect_tls("localhost"));
    weir.signal(Signal::SIGTERM);
    assert_eq!(connection.read_frame().expect("a frame"), close(1012));
    connection.send_frame(&close(1012)).expect("send");
    connection.read_close().expect("a clean end");
    assert!(weir.wait().success());
}

#[test]
fn websocket_is_closed_where_a_frame_ends() {
    let (mut weir, _app, mut connection) = websocket("{ tunnels: 50ms }");
    // the client's: the backend has to get the rest of it before it is told
    let frame = Frame::text("in two parts").encode(Some([1, 2, 3, 4]));
    let (before, after) = frame.split_at(9);
    connection.send(before).expect("send");
    weir.signal(Signal::SIGTERM);
    assert_eq!(connection.read_frame().expect("a frame"), close(1012));
    connection.send(after).expect("send");
    connection.send_frame(&close(1012)).expect("send");
    connection.read_close().expect("a clean end");
    assert!(weir.wait().success());
}

#[test]
fn websocket_of_a_silent_client_ends_all_the_same() {
    let (mut weir, _app, mut connection) = websocket("{ tunnels: 50ms }");
    weir.signal(Signal::SIGTERM);
    assert_eq!(connection.read_frame().expect("a frame"), close(1012));
    connection.read_close().expect("a clean end");
    assert!(weir.wait().success());
}

#[test]
fn what_is_cut_is_told_and_shows_in_the_exit_status() {
    let app = Origin::start(Behaviour::Held("never".to_owned()));
    let chat = Origin::start(Behaviour::WebSocket);
    let mut weir = Weir::with("app", &app).with("chat", &chat).start(
        "
        drain: { tunnels: 900ms, deadline: 1s }
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{app}'] }, chat: { backends: ['{chat}'] } }
        sites: { main: { hosts: ['*'], routes: [{ match: { path: /chat }, proxy: chat }, { proxy: app }] } }
        ",
    );
    let mut request = weir.connect();
    request
        .send_request(&get("/slow?x=1").host("shop.example"))
        .expect("send");
    let mut chatting = open_websocket(&weir);
    // in the middle of a frame there is no room to close it
    chatting.send(&[0x81]).expect("send");
    let idle = weir.connect();
    eventually(PATIENCE, || app.hits() == 1);
    weir.signal(Signal::SIGTERM);
    assert_eq!(weir.wait().code(), Some(CUT));
    let log = weir.error_log();
    for told in [
        "cut: request GET shop.example/slow from 127.0.0.1, 1.",
        "cut: WebSocket GET",
        "/chat from 127.0.0.1, ",
        "2 requests were cut",
    ] {
        assert!(log.contains(told), "no `{told}` in {log}");
    }
    drop(idle);
}

#[test]
fn second_signal_ends_at_once() {
    for second in [Signal::SIGTERM, Signal::SIGINT] {
        let app = Origin::start(Behaviour::Held("never".to_owned()));
        let mut weir = Weir::with("app", &app).start_pool("{ backends: ['{app}'] }");
        let mut connection = weir.connect();
        connection.send_request(&get("/")).expect("send");
        eventually(PATIENCE, || app.hits() == 1);
        weir.signal(Signal::SIGTERM);
        eventually(PATIENCE, || ready(weir.setup()).status == 503);
        weir.signal(second);
        assert_eq!(weir.wait().code(), Some(CUT));
        assert!(weir.error_log().contains("1 request was cut"));
    }
}
