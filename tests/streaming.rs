//! Bodies of any size in bounded memory, and WebSocket.

use std::time::Duration;

use crate::harness::Weir;
use crate::harness::client::{Connection, get};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::holds_within;
use crate::harness::websocket::{self, Frame};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What one body in flight may cost: buffers, not the body.
const ALLOWANCE: u64 = 32 * MIB;

/// 10 GiB take minutes on a small machine: CI makes do with one.
fn large() -> u64 {
    match std::env::var_os("WEIR_TEST_LARGE") {
        Some(_) => 10 * GIB,
        None => GIB,
    }
}

fn start(app: &Origin) -> Weir {
    Weir::with("app", app).start_site("routes: [{ proxy: app }]")
}

/// Peak memory after a small request, so that only what a body adds is counted.
fn warmed_up(weir: &Weir) -> u64 {
    weir.get("/healthz");
    weir.peak_memory()
}

#[test]
fn huge_download_needs_little_memory() {
    let app = Origin::start(Behaviour::Big(large()));
    let weir = start(&app);
    let before = warmed_up(&weir);
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    let answer = connection.read_counting().expect("an answer");
    assert_eq!((answer.length, answer.complete), (large(), true));
    let grown = weir.peak_memory() - before;
    assert!(grown < ALLOWANCE, "memory grew by {} KiB", grown / 1024);
}

/// While it pauses, nothing is read for it: that has to go on again.
#[test]
fn client_that_pauses_gets_the_rest() {
    const LENGTH: u64 = 24 * MIB;
    let app = Origin::start(Behaviour::Big(LENGTH));
    let weir = Weir::with("app", &app).start(
        "
        listeners:
          http: { bind: '127.0.0.1:{http}' }
          https: { bind: '127.0.0.1:{https}', tls: {} }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*', localhost], tls: { self_signed: true }, routes: [{ proxy: app }] } }",
    );
    let plain = Connection::tcp(weir.address("http")).expect("connect");
    let secure = Connection::tls(weir.address("https"), "localhost").expect("TLS");
    for mut connection in [plain, secure] {
        connection.send_request(&get("/")).expect("send");
        connection.read_head().expect("a head");
        for _ in 0..3 {
            assert!(!holds_within(Duration::from_millis(200), || false));
            connection
                .read_length(LENGTH / 3, &mut |_| {})
                .expect("a third");
        }
    }
}

#[test]
fn download_to_a_slow_client_needs_little_memory() {
    let app = Origin::start(Behaviour::Big(GIB));
    let weir = start(&app);
    let before = warmed_up(&weir);
    let mut connections: Vec<Connection> = Vec::new();
    for _ in 0..8 {
        let mut connection = weir.connect();
        connection.send_request(&get("/")).expect("send");
        connection.read_head().expect("a head"); // and nothing more
        connections.push(connection);
    }
    // meanwhile others are served
    for _ in 0..20 {
        assert_eq!(weir.get("/healthz").status, 200);
    }
    let grown = weir.peak_memory() - before;
    assert!(grown < ALLOWANCE, "memory grew by {} KiB", grown / 1024);
}

#[test]
fn huge_upload_needs_little_memory() {
    let app = Origin::start(Behaviour::Sink);
    let weir = start(&app);
    let before = warmed_up(&weir);
    let length = large();
    let mut connection = weir.connect();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    connection.send(head.as_bytes()).expect("send");
    let block = vec![b'x'; MIB as usize];
    for _ in 0..length / MIB {
        connection.send(&block).expect("send");
    }
    assert_eq!(
        connection.read().expect("an answer").text(),
        length.to_string()
    );
    let grown = weir.peak_memory() - before;
    assert!(grown < ALLOWANCE, "memory grew by {} KiB", grown / 1024);
}

#[test]
fn websocket_frames_pass_both_ways() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = start(&app);
    let mut connection = open_websocket(&weir);
    for text in ["hello", &"long ".repeat(20_000)] {
        connection.send_frame(&Frame::text(text)).expect("send");
        assert_eq!(connection.read_frame().expect("a frame"), Frame::text(text));
    }
    let close = Frame {
        opcode: websocket::CLOSE,
        payload: Vec::new(),
    };
    connection.send_frame(&close).expect("send");
    assert_eq!(connection.read_frame().expect("a frame"), close);
    connection.read_close().expect("a clean end");
    assert_eq!(app.request().header("upgrade"), Some("websocket"));
}

#[test]
fn backend_that_accepts_an_upgrade_at_once_is_not_too_fast() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = start(&app);
    for _ in 0..100 {
        let mut connection = open_websocket(&weir);
        connection.send_frame(&Frame::text("hello")).expect("send");
        let echo = connection.read_frame().expect("a frame");
        assert_eq!(echo, Frame::text("hello"));
    }
}

#[test]
fn backend_may_refuse_an_upgrade() {
    let app = Origin::raw("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    let weir = start(&app);
    let answer = weir.fetch(&websocket_request());
    assert_eq!((answer.status, answer.text()), (403, "no"));
}

/// A WebSocket through weir, right after its handshake.
pub fn open_websocket(weir: &Weir) -> Connection {
    open_websocket_on(weir.connect())
}

pub fn open_websocket_on(mut connection: Connection) -> Connection {
    let answer = connection.fetch(&websocket_request()).expect("an answer");
    assert_eq!(answer.status, 101);
    let accept = answer.header("sec-websocket-accept");
    assert_eq!(accept, Some(websocket::accept(KEY).as_str()));
    connection
}

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn websocket_request() -> crate::harness::client::Request {
    get("/chat")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", KEY)
}
