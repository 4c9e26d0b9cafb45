//! The PROXY protocol from proxies in front.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::harness::Weir;
use crate::harness::client::get;
use crate::harness::origin::Origin;
use crate::harness::wait::PATIENCE;

const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A listener that believes `from`.
fn start(app: &Origin, from: &str) -> Weir {
    Weir::with("app", app).with("from", from).start(
        "
        pools: { app: { backends: ['{app}'] } }
        listeners:
          http:
            bind: '127.0.0.1:{http}'
            proxy_protocol: { from: ['{from}'] }
            http: { header_timeout: 300ms }
          https:
            bind: '127.0.0.1:{https}'
            proxy_protocol: { from: ['{from}'] }
            tls: {}
        log: { access: { file: access.log, format: '$remote_addr $server_addr $server_port' } }
        sites:
          main: { hosts: ['*'], tls: { self_signed: true }, routes: [{ proxy: app }] }
        ",
    )
}

/// The header of version 2 for a client 2001:db8::7, with a TLV.
fn version_2() -> Vec<u8> {
    let mut header = [SIGNATURE, &[0x21, 0x21, 0, 41]].concat();
    for last in [7, 1] {
        header.extend([
            0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last,
        ]);
    }
    header.extend([0x12, 0x67, 0x01, 0xbb]);
    header.extend([0x02, 0, 2, b'h', b'i']);
    header
}

#[test]
fn listed_proxy_says_who_the_client_is() {
    let app = Origin::echo();
    let weir = start(&app, "127.0.0.0/8");
    let clients = [
        (LINE.to_vec(), "192.0.2.7", "192.0.2.7 192.0.2.1 443"),
        (version_2(), "2001:db8::7", "2001:db8::7 2001:db8::1 443"),
    ];
    for (number, (header, client, logged)) in clients.into_iter().enumerate() {
        let mut connection = weir.connect();
        let request = get("/").to_bytes();
        connection
            .send(&[header, request.clone()].concat())
            .expect("send");
        for _ in 0..2 {
            let answer = connection.read().expect("an answer");
            assert_eq!(answer.status, 200);
            assert_eq!(
                app.requests().last().unwrap().header("x-forwarded-for"),
                Some(client)
            );
            connection.send(&request).expect("send");
        }
        connection.read().expect("an answer");
        let lines = weir.access_lines(3 * (number + 1));
        assert_eq!(lines.last().expect("a line"), logged);
    }
}

#[test]
fn header_may_come_byte_by_byte() {
    let app = Origin::echo();
    let weir = start(&app, "127.0.0.1");
    let mut client = TcpStream::connect(weir.address("http")).expect("connect");
    client.set_nodelay(true).expect("no delay");
    for byte in LINE.iter().chain(b"GET / HTTP/1.0\r\n\r\n") {
        client.write_all(&[*byte]).expect("send");
    }
    client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn health_check_of_the_proxy_has_its_own_address() {
    let app = Origin::echo();
    let weir = start(&app, "127.0.0.1");
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        [SIGNATURE, &[0x20, 0, 0, 0]].concat(),
    ] {
        let mut connection = weir.connect();
        connection
            .send(&[header, get("/").to_bytes()].concat())
            .expect("send");
        assert_eq!(connection.read().expect("an answer").status, 200);
        let request = app.requests().pop().expect("a request");
        assert_eq!(request.header("x-forwarded-for"), Some("127.0.0.1"));
    }
}

#[test]
fn listed_proxy_without_a_header_is_not_served() {
    let app = Origin::echo();
    let weir = start(&app, "127.0.0.1");
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
        b"PROXY TCP4 ",
        b"",
    ] {
        let mut client = TcpStream::connect(weir.address("http")).expect("connect");
        client.write_all(bytes).expect("send");
        client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut answer = Vec::new();
        // what it did not read makes it a reset
        let end = client.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{end:?}: {answer:?}");
        assert!(end.is_ok() || !bytes.is_empty(), "{end:?}");
    }
    assert_eq!(app.hits(), 0);
}

#[test]
fn nobody_else_is_believed() {
    let app = Origin::echo();
    let weir = start(&app, "10.0.0.0/8");
    assert_eq!(weir.get("/").status, 200);
    let mut connection = weir.connect();
    connection
        .send(&[LINE, &get("/").to_bytes()].concat())
        .expect("send");
    assert_eq!(connection.read().expect("an answer").status, 400);
    assert_eq!(app.hits(), 1);
}

#[test]
fn header_comes_before_tls() {
    let app = Origin::echo();
    let weir = start(&app, "127.0.0.1");
    let mut connection = weir.connect_tls_after(LINE, "a");
    assert_eq!(connection.fetch(&get("/")).expect("an answer").status, 200);
    let request = app.requests().pop().expect("a request");
    assert_eq!(request.header("x-forwarded-for"), Some("192.0.2.7"));
    assert_eq!(request.header("x-forwarded-proto"), Some("https"));
}
