//! decompress: answers decoded for clients that do not take them as they are, over every protocol.

use std::io::Write;

use crate::compress::decoded;
use crate::harness::Weir;
use crate::harness::client::{Http2, Request, get};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};

const CODINGS: [&str; 3] = ["gzip", "br", "zstd"];

fn encoded(coding: &str, body: &[u8]) -> Vec<u8> {
    match coding {
        "gzip" => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(body).expect("write into memory");
            encoder.finish().expect("write into memory")
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 22);
            encoder.write_all(body).expect("write into memory");
            encoder.into_inner()
        }
        _ => zstd::stream::encode_all(body, 3).expect("write into memory"),
    }
}

/// A backend whose answer is this body in a coding.
fn origin(coding: &str, body: &[u8], extra: &str) -> Behaviour {
    let body = encoded(coding, body);
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: {coding}\r\nETag: \"a\"\r\nAccept-Ranges: bytes\r\n{extra}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend(body);
    Behaviour::Raw(answer)
}

fn text() -> Vec<u8> {
    let lines = (0..20_000).map(|line| format!("line {line}: http://old.example\n"));
    lines.collect::<String>().into_bytes()
}

fn start(app: &Origin, policies: &str) -> Weir {
    let setup = Weir::with("app", app).allow("changing a body");
    setup.start(&format!(
        "
        listeners: {{ http: {{ bind: '127.0.0.1:{{http}}', protocols: [h1, h2] }} }}
        pools: {{ app: {{ backends: ['{{app}}'] }} }}
        sites:
          main:
            hosts: ['*']
            {policies}
            routes:
              - {{ match: {{ prefix: /files }}, files: {{ root: ., precompressed: [gzip] }} }}
              - proxy: app
        "
    ))
}

fn accepting(codings: &str) -> Request {
    get("/").header("Accept-Encoding", codings)
}

#[test]
fn who_does_not_take_a_coding_gets_the_body_without() {
    let app = Origin::fixed("");
    let weir = start(&app, "decompress: true");
    let mut http2 = Http2::tcp(weir.address("http")).unwrap();
    for coding in CODINGS {
        app.behave(origin(coding, &text(), ""));
        for request in [
            get("/"),
            accepting("deflate"),
            accepting(&format!("{coding};q=0")),
        ] {
            for answer in [weir.fetch(&request), http2.fetch(&request).unwrap()] {
                assert!(answer.body == text(), "{coding} {}", answer.body.len());
                assert_eq!(answer.header("content-encoding"), None);
                assert_eq!(answer.header("content-length"), None);
                assert_eq!(answer.header("accept-ranges"), None);
                assert_eq!(answer.header("etag"), Some("W/\"a\""));
                assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
            }
        }
        let as_it_is = weir.fetch(&accepting(coding));
        assert_eq!(as_it_is.header("content-encoding"), Some(coding));
        assert_eq!(as_it_is.header("etag"), Some("\"a\""));
        assert_eq!(as_it_is.header("vary"), Some("Accept-Encoding"));
        assert!(decoded(&as_it_is) == text());
        let mut head = get("/");
        head.method = "HEAD".to_owned();
        let head = weir.fetch(&head);
        assert_eq!(head.header("content-encoding"), None);
        assert_eq!(head.header("content-length"), None);
        assert_eq!(head.header("etag"), Some("W/\"a\""));
    }
}

#[test]
fn what_is_to_stay_stays() {
    let app = Origin::fixed("");
    let weir = start(&app, "decompress: true");
    app.behave(origin("gzip", b"a", "Cache-Control: no-transform\r\n"));
    assert_eq!(weir.get("/").header("content-encoding"), Some("gzip"));
    app.behave(Behaviour::Raw(
        b"HTTP/1.1 206 Partial Content\r\nContent-Encoding: gzip\r\nContent-Range: bytes 0-0/9\r\nContent-Length: 1\r\n\r\n\x1f"
            .to_vec(),
    ));
    let part = weir.get("/");
    assert_eq!((part.status, part.body.len()), (206, 1));
    assert_eq!(part.header("content-encoding"), Some("gzip"));
    app.behave(Behaviour::Raw(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n".to_vec(),
    ));
    assert_eq!(weir.get("/").body, b"");
}

#[test]
fn others_read_and_encode_what_was_decoded() {
    let app = Origin::fixed("");
    let weir = start(
        &app,
        "decompress: { always: true }
            sub_filter: { replace: { 'http://old.example': 'https://new.example' } }
            compress: { algorithms: [zstd] }",
    );
    let replaced = String::from_utf8(text()).unwrap();
    let replaced = replaced.replace("http://old", "https://new");
    for coding in CODINGS {
        app.behave(origin(coding, &text(), ""));
        let plain = weir.fetch(&accepting("gzip"));
        assert_eq!(plain.header("content-encoding"), None);
        assert!(plain.text() == replaced);
        let answer = weir.fetch(&accepting("zstd, br, gzip"));
        assert_eq!(answer.header("content-encoding"), Some("zstd"));
        assert!(decoded(&answer) == replaced.as_bytes());
    }
    // a file that lies there encoded
    weir.setup().write("files/page.html", "another one");
    weir.setup()
        .write("files/page.html.gz", encoded("gzip", &text()));
    let file = weir.fetch(&get("/files/page.html").header("Accept-Encoding", "gzip"));
    assert_eq!(file.header("content-encoding"), None);
    assert!(file.text() == replaced);
}

#[test]
fn what_is_broken_does_not_seem_whole() {
    let app = Origin::fixed("");
    let weir = start(&app, "decompress: true");
    let mut http2 = Http2::tcp(weir.address("http")).unwrap();
    for coding in CODINGS {
        let body = encoded(coding, &text());
        for body in [&body[..body.len() - 4], b"this is no such body"] {
            let mut answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            )
            .into_bytes();
            answer.extend(body);
            app.behave(Behaviour::Raw(answer));
            for answer in [weir.connect().fetch(&get("/")), http2.fetch(&get("/"))] {
                let whole = answer.is_ok_and(|answer| answer.complete && answer.status == 200);
                assert!(!whole, "{coding}");
            }
        }
    }
    // the backend's fault, and told as that
    for line in weir.access_lines(4 * CODINGS.len()) {
        assert!(line.ends_with(" upstream_protocol"), "{line}");
    }
}

#[test]
fn a_bomb_takes_little_memory() {
    let app = Origin::fixed("");
    let weir = start(&app, "decompress: { buffer: 4MiB }");
    let before = weir.peak_memory();
    let zeros = vec![0; 64 * 1024 * 1024];
    for coding in CODINGS {
        app.behave(origin(coding, &zeros, ""));
        let answer = weir.connect().fetch(&get("/"));
        let whole = answer.is_ok_and(|answer| answer.complete && answer.status == 200);
        assert!(!whole, "{coding}");
    }
    let grown = weir.peak_memory() - before;
    assert!(grown < 40 * 1024 * 1024, "{grown}");
    assert!(weir.error_log().contains("too much comes of a coding"));
}

#[test]
fn what_a_backend_has_said_so_far_goes_out() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(b"one\n").unwrap();
    encoder.flush().unwrap();
    let first = std::mem::take(encoder.get_mut());
    // the rest never comes
    let mut head =
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    head.extend(format!("{:x}\r\n", first.len()).into_bytes());
    head.extend(first);
    head.extend(b"\r\n");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let backend = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        let _ = std::io::Read::read(&mut stream, &mut request).unwrap();
        stream.write_all(&head).unwrap();
        stream
    });
    let setup = Weir::with("app", address).allow("");
    let weir = setup.start_site("decompress: true\nroutes: [{ proxy: app }]");
    let mut client = weir.connect();
    client.send_request(&get("/")).unwrap();
    assert_eq!(client.read_final_head().unwrap().word(1), "200");
    assert_eq!(client.read_chunk().unwrap(), b"one\n");
    drop(backend.join().unwrap());
    eventually(PATIENCE, || client.read_chunk().is_err());
}
