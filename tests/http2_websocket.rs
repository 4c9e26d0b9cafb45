//! WebSocket over HTTP/2 (RFC 8441), as one of HTTP/1.1 to the backend.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::Weir;
use crate::harness::frames::{
    DATA, END_HEADERS, END_STREAM, Frame as Http2Frame, HEADERS, RST_STREAM, Raw, SETTINGS,
    WINDOW_UPDATE, fields, frame,
};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::secure::SecureOrigin;
use crate::harness::wait::holds_within;
use crate::harness::websocket::{self, Frame};

const DOCUMENT: &str = "
    drain: { tunnels: 50ms }
    listeners: { http: { bind: '127.0.0.1:{http}', http: { keepalive: 700ms } } }
    pools: { app: { backends: ['{app}'] } }
    sites:
      main:
        hosts: ['*']
        routes:
          - { match: { path: /local }, respond: { body: local } }
          - { match: { path: /secret }, access: { deny: [all] }, proxy: app }
          - { proxy: app }
    ";

fn start(app: &Origin) -> Weir {
    Weir::with("app", app).start(DOCUMENT)
}

/// `:status` of an answer, as in the static table (RFC 7541 appendix A), where it is there.
const OK: u8 = 0x88;
const NOT_FOUND: u8 = 0x8d;

struct Client {
    raw: Raw,
    received: Vec<u8>,
    ended: bool,
}

impl Client {
    /// Asks for a WebSocket, with the answer's header.
    fn ask(weir: &Weir, path: &str, protocol: &str) -> (Client, Http2Frame) {
        let mut raw = Raw::open(weir.address("http"), &[(4, 1 << 24)]).expect("connect");
        let list = [
            (":method", "CONNECT"),
            (":protocol", protocol),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("sec-websocket-version", "13"),
            ("origin", "http://localhost"),
        ];
        let mut bytes = frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 24).to_be_bytes());
        bytes.extend(frame(HEADERS, END_HEADERS, 1, &fields(&list)));
        raw.send(&bytes).expect("send");
        let answer = loop {
            let frame = raw.read().expect("an answer");
            if frame.stream == 1 && frame.kind == HEADERS {
                break frame;
            }
        };
        let client = Client {
            raw,
            received: Vec::new(),
            ended: false,
        };
        (client, answer)
    }

    fn open(weir: &Weir) -> Client {
        let (client, answer) = Client::ask(weir, "/chat", "websocket");
        assert!(answer.payload.starts_with(&[OK]), "{answer:?}");
        assert_eq!(answer.flags & END_STREAM, 0);
        client
    }

    fn send(&mut self, message: &Frame) {
        for piece in message.encode(Some([1, 2, 3, 4])).chunks(16_000) {
            self.raw.send(&frame(DATA, 0, 1, piece)).expect("send");
        }
    }

    fn read(&mut self) -> Frame {
        loop {
            if let Some((message, length)) = Frame::decode(&self.received) {
                self.received.drain(..length);
                return message;
            }
            assert!(!self.ended, "the end");
            let frame = self.raw.read().expect("a frame");
            assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
            if frame.kind == DATA {
                self.received.extend(&frame.payload);
                self.ended = frame.flags & END_STREAM != 0;
            }
        }
    }

    fn read_end(&mut self) {
        while !self.ended {
            let frame = self.raw.read().expect("a frame");
            assert_ne!(frame.kind, RST_STREAM, "{frame:?}");
            self.ended = frame.kind == DATA && frame.flags & END_STREAM != 0;
        }
    }
}

fn close(code: &[u8]) -> Frame {
    Frame {
        opcode: websocket::CLOSE,
        payload: code.to_vec(),
    }
}

#[test]
fn it_is_offered() {
    let weir = start(&Origin::fixed("app"));
    let mut client = Raw::open(weir.address("http"), &[]).expect("connect");
    let settings = loop {
        let frame = client.read().expect("a frame");
        if frame.kind == SETTINGS {
            break frame.payload;
        }
    };
    assert!(
        settings.chunks(6).any(|it| it == [0, 8, 0, 0, 0, 1]),
        "{settings:?}"
    );
}

#[test]
fn frames_pass_both_ways() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = start(&app);
    let mut client = Client::open(&weir);
    for text in ["hello", &"long ".repeat(10_000)] {
        client.send(&Frame::text(text));
        assert_eq!(client.read(), Frame::text(text));
    }
    client.send(&close(&[]));
    assert_eq!(client.read(), close(&[]));
    client.read_end();
    let request = app.request();
    assert_eq!((request.method(), request.target()), ("GET", "/chat"));
    for (name, value) in [
        ("host", "localhost"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("origin", "http://localhost"),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    let log = weir.access_lines(1);
    assert!(log[0].contains("\"GET /chat HTTP/1.1\" 101"), "{log:?}");
}

#[test]
fn silence_is_no_end() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = start(&app);
    let mut client = Client::open(&weir);
    let ended = client.raw.drain().expect("a thread");
    assert!(!holds_within(Duration::from_secs(2), || ended.is_finished()));
    client.send(&close(&[]));
    assert!(ended.join().expect("a thread"));
}

#[test]
fn client_that_resets_it_ends_it() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = start(&app);
    let mut client = Client::open(&weir);
    client
        .raw
        .send(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]))
        .expect("send");
    weir.access_lines(1);
}

#[test]
fn policies_come_first() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = start(&app);
    let (_, answer) = Client::ask(&weir, "/secret", "websocket");
    assert!(!answer.payload.starts_with(&[OK]), "{answer:?}");
    assert!(weir.access_lines(1)[0].contains(" 403 "));
    assert_eq!(app.hits(), 0);
}

#[test]
fn backend_may_refuse() {
    let app = Origin::raw("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno");
    let (mut client, answer) = Client::ask(&start(&app), "/", "websocket");
    assert!(answer.payload.starts_with(&[NOT_FOUND]), "{answer:?}");
    client.read_end();
}

#[test]
fn backend_that_has_not_understood_is_not_believed() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    ] {
        let app = Origin::raw(answer);
        let weir = start(&app);
        let (_, answer) = Client::ask(&weir, "/", "websocket");
        assert!(!answer.payload.starts_with(&[OK]), "{answer:?}");
        let log = &weir.access_lines(1)[0];
        assert!(log.contains(" 501 ") || log.contains(" 502 "), "{log}");
    }
}

#[test]
fn backend_of_http2_is_not_asked_for_one() {
    let app = SecureOrigin::h2c();
    let document = DOCUMENT.replace("['{app}']", "['{app}'], protocol: h2c");
    let weir = Weir::with("app", &app).start(&document);
    let (_, answer) = Client::ask(&weir, "/", "websocket");
    assert!(!answer.payload.starts_with(&[OK]), "{answer:?}");
    // It has answered a request like any other, and not refused one that is none.
    let log = &weir.access_lines(1)[0];
    assert!(log.contains(" 501 "), "{log}");
}

#[test]
fn nothing_else_is_tunnelled() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = start(&app);
    let (_, answer) = Client::ask(&weir, "/", "connect-udp");
    assert!(!answer.payload.starts_with(&[OK]), "{answer:?}");
    let (_, answer) = Client::ask(&weir, "/local", "websocket");
    assert!(!answer.payload.starts_with(&[OK]), "{answer:?}");
    let log = weir.access_lines(2).join("\n");
    assert!(log.contains(" 405 ") && log.contains(" 501 "), "{log}");
    assert_eq!(app.hits(), 0);
}

#[test]
fn drain_closes_it_on_both_sides() {
    const SERVICE_RESTART: [u8; 2] = 1012_u16.to_be_bytes();
    let app = Origin::start(Behaviour::WebSocket);
    let mut weir = start(&app);
    let mut client = Client::open(&weir);
    client.send(&Frame::text("hello"));
    assert_eq!(client.read(), Frame::text("hello"));
    weir.signal(Signal::SIGTERM);
    assert_eq!(client.read(), close(&SERVICE_RESTART));
    client.send(&close(&SERVICE_RESTART));
    client.read_end();
    assert!(weir.wait().success());
}
