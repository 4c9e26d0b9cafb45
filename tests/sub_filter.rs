//! sub_filter: texts replaced in bodies of all kinds.

use crate::harness::client::{Request, get};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::{Setup, Weir};

const SITES: &str = r#"
    listeners:
      http: { bind: '127.0.0.1:{http}' }
      https: { bind: '127.0.0.1:{https}', tls: {} }
    pools: { app: { backends: ['{app}'] } }
    sites:
      main:
        hosts: '*'
        tls: { self_signed: true }
        sub_filter: { replace: { "http://old": "https://$host/new", part: PART }, types: [text/html, text/event-stream] }
        compress: true
        routes:
          - { match: { prefix: /files }, files: . }
          - proxy: app
    "#;

/// A page in which the text stands across every border of pieces that there may be.
fn page() -> (String, String) {
    let before = "<a href=http://old/x>".repeat(20_000);
    let after = "<a href=https://localhost/new/x>".repeat(20_000);
    (before, after)
}

#[test]
fn texts_are_replaced_whoever_made_the_body() {
    let (before, after) = page();
    let app = Origin::raw(&format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nETag: \"a\"\r\n\
         Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nAccept-Ranges: bytes\r\n\r\n{before}",
        before.len()
    ));
    let weir = Weir::with("app", &app)
        .file("files/large.html", &before)
        .file("files/small.html", &before[..2100])
        .file("files/a.css", "http://old")
        .start(SITES);
    let mut http2 = weir.connect_http2("localhost");
    for target in ["/", "/files/large.html"] {
        let plain = get(target);
        let zipped = get(target).header("Accept-Encoding", "gzip");
        for request in [plain, zipped] {
            let answers = [
                weir.fetch(&request),
                http2.fetch(&request).expect("an answer over HTTP/2"),
            ];
            for answer in answers {
                for gone in ["etag", "last-modified", "accept-ranges", "content-length"] {
                    assert_eq!(answer.header(gone), None, "{target}");
                }
                assert!(
                    super::compress::decoded(&answer) == after.as_bytes(),
                    "{target}"
                );
            }
        }
        let head = weir.fetch(&Request::new("HEAD", target));
        assert_eq!(
            (head.header("etag"), head.header("content-length")),
            (None, None)
        );
    }
    assert_eq!(weir.get("/files/small.html").text(), &after[..3200]);
    // another type stays, and its length
    let answer = weir.get("/files/a.css");
    assert_eq!(
        (answer.text(), answer.header("content-length")),
        ("http://old", Some("10"))
    );
    // and a backend is not asked for what could not be searched
    for request in app.requests() {
        assert_eq!(request.header("accept-encoding"), Some("identity"));
    }
}

#[test]
fn nothing_but_the_beginning_of_a_text_is_held_back() {
    let app = Origin::start(Behaviour::Steps(2));
    let weir = Weir::with("app", &app).start(SITES);
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    app.release(1);
    connection.read_head().expect("a head");
    assert_eq!(connection.read_chunk().expect("a chunk"), b"PART 0\n");
    app.release(1);
    assert_eq!(connection.read_chunk().expect("a chunk"), b"PART 1\n");
    assert_eq!(connection.read_chunk().expect("the end"), b"");
}

#[test]
fn client_of_http_1_0_gets_the_whole() {
    let weir = Setup::new()
        .file("a.html", "so old")
        .start_site("sub_filter: { replace: { old: new } }\nroutes: [{ files: . }]");
    let mut connection = weir.connect();
    connection
        .send(b"GET /a.html HTTP/1.0\r\n\r\n")
        .expect("send");
    let answer = connection.read().expect("an answer");
    assert_eq!(
        (answer.text(), answer.header("transfer-encoding")),
        ("so new", None)
    );
    let page = "sub_filter: { replace: { Found: found } }\nroutes: [{ files: . }]";
    let weir = Setup::new().start_site(page);
    let answer = weir.get("/nowhere");
    assert!(answer.status == 404 && answer.text().contains("Not found"));
}
