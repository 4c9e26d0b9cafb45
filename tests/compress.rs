//! compress: answers in a content coding, whoever made them, over every protocol.

use std::io::Read;

use crate::harness::client::{Connection, Request, Response, get, post};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::secure::SecureOrigin;
use crate::harness::{Setup, Weir};

/// A body of some lines, `length` bytes long.
fn text(length: usize) -> String {
    let mut text = String::with_capacity(length + 32);
    let mut line = 0u32;
    while text.len() < length {
        text += &format!("line {line}: {:x}\n", line.wrapping_mul(2_654_435_761));
        line += 1;
    }
    text.truncate(length);
    text
}

fn accepting(codings: &str, request: Request) -> Request {
    request.header("Accept-Encoding", codings)
}

/// The body as a client shows it.
pub fn decoded(answer: &Response) -> Vec<u8> {
    decode(answer.header("content-encoding"), &answer.body)
}

/// What can be decoded of the beginning of a body.
fn decode(coding: Option<&str>, body: &[u8]) -> Vec<u8> {
    let mut decoder: Box<dyn Read + '_> = match coding {
        Some("gzip") => Box::new(flate2::read::GzDecoder::new(body)),
        Some("br") => Box::new(brotli::Decompressor::new(body, 4096)),
        Some("zstd") => Box::new(zstd::stream::read::Decoder::new(body).expect("a decoder")),
        _ => Box::new(body),
    };
    let mut decoded = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = decoder.read(&mut piece) {
        decoded.extend_from_slice(&piece[..length]);
    }
    decoded
}

/// An origin with a page of text.
fn page(extra: &str, body: &str) -> Origin {
    Origin::raw(&format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n{extra}\r\n{body}",
        body.len()
    ))
}

const SITES: &str = "
    listeners:
      http: { bind: '127.0.0.1:{http}' }
      https: { bind: '127.0.0.1:{https}', tls: {} }
    pools: { app: { backends: ['{app}'] } }
    sites:
      main:
        hosts: ['*']
        tls: { self_signed: true }
        compress: true
        routes:
          - { match: { prefix: /files }, files: { root: ., precompressed: [br] } }
          - { match: { path: /respond }, respond: { body: '{long}' } }
          - { match: { path: /short }, respond: { body: short } }
          - { match: { path: /off }, compress: off, respond: { body: '{long}' } }
          - proxy: app
    ";

fn start(app: &Origin, setup: impl FnOnce(Setup) -> Setup) -> Weir {
    let long = "lorem ipsum ".repeat(200);
    setup(Weir::with("app", app).with("long", long)).start(SITES)
}

#[test]
fn answers_of_all_kinds_are_compressed() {
    let body = text(300_000);
    let app = page("ETag: \"v1\"\r\nAccept-Ranges: bytes\r\n", &body);
    let large = text(200_000);
    let weir = start(&app, |setup| {
        setup
            .file("files/small.txt", &body[..3000])
            .file("files/large.txt", &large)
    });
    let respond = "lorem ipsum ".repeat(200);
    let mut http2 = weir.connect_http2("localhost");
    for (target, expected) in [
        ("/", body.as_str()),
        ("/respond", &respond),
        ("/files/small.txt", &body[..3000]),
        ("/files/large.txt", &large),
    ] {
        for coding in ["gzip", "br", "zstd"] {
            let request = accepting(coding, get(target));
            let answers = [
                weir.fetch(&request),
                http2.fetch(&request).expect("an answer over HTTP/2"),
            ];
            for answer in answers {
                let what = format!("{target} {coding}");
                assert_eq!(answer.header("content-encoding"), Some(coding), "{what}");
                assert_eq!(answer.header("vary"), Some("Accept-Encoding"), "{what}");
                assert_eq!(answer.header("content-length"), None, "{what}");
                assert_eq!(answer.header("accept-ranges"), None, "{what}");
                assert!(answer.complete, "{what}");
                assert!(answer.body.len() < expected.len() / 2, "{what}");
                assert!(decoded(&answer) == expected.as_bytes(), "{what}");
                if let Some(etag) = answer.header("etag") {
                    assert!(etag.starts_with("W/\""), "{what}: {etag}");
                }
            }
        }
        // who does not ask for it gets what there is, and caches are told
        let answer = weir.get(target);
        assert_eq!(answer.header("content-encoding"), None);
        assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
        assert_eq!(
            answer.header("content-length"),
            Some(expected.len().to_string().as_str())
        );
        assert!(answer.body == expected.as_bytes());
    }
}

#[test]
fn what_is_not_to_be_compressed_is_not() {
    let body = text(5000);
    for extra in [
        "Content-Encoding: br\r\n",
        "Cache-Control: public, no-transform\r\n",
    ] {
        let app = page(extra, &body);
        let weir = start(&app, |setup| setup);
        let answer = weir.fetch(&accepting("gzip", get("/")));
        assert_eq!(answer.text(), body);
        assert_eq!(answer.header("content-length"), Some("5000"));
    }
    let app = Origin::fixed("no type");
    let weir = start(&app, |setup| {
        setup
            .file("files/a.txt", &body)
            .file("files/a.txt.br", "precompressed")
            .file("files/a.png", &body)
    });
    for target in ["/", "/short", "/off", "/files/a.png"] {
        let answer = weir.fetch(&accepting("gzip, zstd", get(target)));
        assert_eq!(answer.header("content-encoding"), None, "{target}");
        assert!(answer.header("content-length").is_some(), "{target}");
    }
    let answer = weir.fetch(&accepting("gzip, br", get("/files/a.txt")));
    assert_eq!(answer.header("content-encoding"), Some("br"));
    assert_eq!(answer.text(), "precompressed");
    assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
    let part = accepting("gzip", get("/files/a.txt")).header("Range", "bytes=1-3");
    let answer = weir.fetch(&part);
    assert_eq!((answer.status, answer.text()), (206, &body[1..4]));
}

#[test]
fn head_has_the_header_of_get() {
    let body = text(5000);
    let app = page("ETag: \"v1\"\r\n", &body);
    let weir = start(&app, |setup| setup.file("files/a.txt", &body));
    let framing = ["date", "transfer-encoding", "connection"];
    for target in ["/", "/respond", "/files/a.txt"] {
        let headers = |method| {
            let answer = weir.fetch(&accepting("gzip", Request::new(method, target)));
            assert_eq!(answer.header("content-encoding"), Some("gzip"), "{target}");
            let mut lines = answer.headers.0;
            lines.retain(|(name, _)| !framing.contains(&name.to_ascii_lowercase().as_str()));
            lines.sort();
            lines
        };
        assert_eq!(headers("HEAD"), headers("GET"), "{target}");
    }
}

#[test]
fn client_that_has_the_compressed_page_need_not_get_it_again() {
    let weir = Setup::new()
        .file("a.txt", text(5000))
        .start_site("compress: true\nroutes: [{ files: . }]");
    let request = || accepting("gzip", get("/a.txt"));
    let etag = weir
        .fetch(&request())
        .header("etag")
        .expect("a tag")
        .to_owned();
    assert!(etag.starts_with("W/"));
    let answer = weir.fetch(&request().header("If-None-Match", &etag));
    assert_eq!(answer.status, 304);
    assert_eq!(answer.header("etag"), Some(etag.as_str()));
    assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
}

#[test]
fn client_of_http_1_0_gets_the_end_of_the_connection_for_end() {
    let body = text(5000);
    let app = page("", &body);
    let weir = start(&app, |setup| setup);
    for target in ["/", "/respond"] {
        let mut connection = weir.connect();
        let request = format!(
            "GET {target} HTTP/1.0\r\nConnection: keep-alive\r\nAccept-Encoding: gzip\r\n\r\n"
        );
        connection.send(request.as_bytes()).expect("send");
        let answer = connection.read().expect("an answer");
        assert_eq!(answer.header("content-encoding"), Some("gzip"));
        assert_eq!(answer.header("transfer-encoding"), None);
        assert_eq!(answer.header("connection"), Some("close"));
        assert_eq!(
            decoded(&answer).len(),
            if target == "/" { 5000 } else { 2400 }
        );
    }
}

#[test]
fn nothing_is_held_back_where_the_backend_pauses() {
    let app = Origin::start(Behaviour::Steps(3));
    let weir = start(&app, |setup| setup);
    for coding in ["gzip", "br", "zstd"] {
        let mut connection: Connection = weir.connect();
        let request = accepting(coding, get("/"));
        connection.send_request(&request).expect("send");
        let mut body = Vec::new();
        for i in 0..3 {
            app.release(1);
            if i == 0 {
                let head = connection.read_head().expect("a head");
                assert_eq!(head.headers.get("content-encoding"), Some(coding));
            }
            let part = format!("part {i}\n");
            while !decode(Some(coding), &body).ends_with(part.as_bytes()) {
                body.extend(connection.read_chunk().expect("a chunk"));
            }
        }
        loop {
            match connection.read_chunk().expect("a chunk") {
                chunk if chunk.is_empty() => break,
                chunk => body.extend(chunk),
            }
        }
        assert_eq!(decode(Some(coding), &body), b"part 0\npart 1\npart 2\n");
    }
}

#[test]
fn body_of_a_backend_that_speaks_http2_ends_with_its_trailers() {
    let app = SecureOrigin::h2c();
    let weir = Weir::with("app", &app).start(
        "
        listeners:
          http: { bind: '127.0.0.1:{http}' }
          https: { bind: '127.0.0.1:{https}', tls: {} }
        pools: { app: { backends: ['{app}'], protocol: h2c } }
        sites:
          main:
            hosts: ['*']
            tls: { self_signed: true }
            compress: true
            routes: [{ proxy: app }]
        ",
    );
    let body = text(40_000);
    let mut http2 = weir.connect_http2("localhost");
    for coding in ["gzip", "br", "zstd"] {
        let request = accepting(coding, post("/echo", body.clone()));
        let request = request.header("Content-Type", "text/plain");
        for answer in [
            weir.fetch(&request),
            http2.fetch(&request).expect("an answer"),
        ] {
            assert_eq!(answer.header("content-encoding"), Some(coding));
            assert!(decoded(&answer) == body.as_bytes());
        }
    }
    // calls of gRPC keep their trailers, whatever they accept
    let call = accepting("gzip", post("/a.B/C", [0; 5])).header("Content-Type", "application/grpc");
    let answer = http2.fetch(&call).expect("an answer");
    assert_eq!(answer.trailers.get("grpc-status"), Some("0"));
}

#[test]
fn body_that_breaks_off_does_not_look_complete() {
    let body = text(5000);
    let app = Origin::raw(&format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 9000\r\n\r\n{body}"
    ));
    let weir = start(&app, |setup| setup.allow("upstream_reset"));
    let answer = weir.connect().fetch(&accepting("gzip", get("/")));
    assert!(answer.is_err() || !answer.is_ok_and(|answer| answer.complete));
}

#[test]
fn compressed_download_to_a_slow_client_needs_little_memory() {
    let app = Origin::start(Behaviour::Raw(endless_page()));
    let weir = start(&app, |setup| setup);
    weir.get("/short");
    let before = weir.peak_memory();
    let mut connections = Vec::new();
    for _ in 0..16 {
        let mut connection = weir.connect();
        connection
            .send_request(&accepting("br", get("/")))
            .expect("send");
        connection.read_head().expect("a head"); // and nothing more
        connections.push(connection);
    }
    for _ in 0..20 {
        assert_eq!(weir.get("/short").status, 200);
    }
    let grown = weir.peak_memory() - before;
    // of 256 MiB that are on their way
    assert!(grown < 128 << 20, "memory grew by {} KiB", grown / 1024);
}

/// 16 MiB that hardly get smaller.
fn endless_page() -> Vec<u8> {
    let length = 16 << 20;
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
    let mut state = 1u64;
    let noise = std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    });
    head.into_bytes()
        .into_iter()
        .chain(noise.take(length))
        .collect()
}
