//! errors: own pages, for what weir refuses and for what backends answer.

use crate::harness::client::{Request, get, post};
use crate::harness::origin::Origin;
use crate::harness::{Setup, Weir};

#[test]
fn errors_without_a_body_get_the_page_of_their_status() {
    let weir = Setup::new()
        .file("404.html", "<h1>nothing here</h1>")
        .file("www/a.txt", "a")
        .start(
            r#"
            listeners: { http: { bind: '127.0.0.1:{http}' } }
            pools: { dead: { backends: ['127.0.0.1:{nobody}'] } }
            defaults:
              request_id: {}
              errors: { 400-499: { body: default }, 500-599: { body: "<p>$status $request_id $uri</p>" } }
            sites:
              main:
                hosts: '*'
                errors: { 404: { file: 404.html } }
                routes:
                  - { match: { path: /closed }, errors: { 503: { body: '{"at":"$uri"}', content_type: application/json } }, respond: { status: 503 } }
                  - { match: { path: /own }, respond: { status: 404, body: mine } }
                  - { match: { path: /plain }, errors: { 503: off }, respond: { status: 503 } }
                  - { match: { path: /none }, errors: off, respond: { status: 404 } }
                  - { match: { prefix: /dead }, proxy: dead }
                  - { match: { path: /a.txt }, files: www }
                  - { match: { path: /b.txt }, files: www }
            "#,
        );
    for target in ["/nowhere", "/b.txt"] {
        let answer = weir.get(target);
        assert_eq!(
            (answer.status, answer.text()),
            (404, "<h1>nothing here</h1>")
        );
        assert_eq!(
            answer.header("content-type"),
            Some("text/html; charset=utf-8")
        );
        assert_eq!(answer.header("content-length"), Some("21"));
    }
    let program = get("/nowhere").header("Accept", "application/json");
    assert_eq!(weir.fetch(&program).text(), "<h1>nothing here</h1>");
    let head = weir.fetch(&Request::new("HEAD", "/nowhere"));
    assert_eq!(
        (head.status, head.header("content-length")),
        (404, Some("21"))
    );
    let answer = weir.fetch(&post("/a.txt", ""));
    assert_eq!((answer.status, answer.text()), (405, "default"));
    assert_eq!(answer.header("allow"), Some("GET, HEAD, OPTIONS"));

    let answer = weir.get("/dead/%3Cb%3E");
    let id = answer.header("x-request-id").expect("an id");
    assert_eq!(answer.status, 502);
    assert_eq!(answer.text(), format!("<p>502 {id} /dead/&lt;b&gt;</p>"));

    let answer = weir.get("/closed");
    assert_eq!((answer.status, answer.text()), (503, r#"{"at":"/closed"}"#));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(weir.get("/own").text(), "mine");
    for (target, status) in [("/plain", 503), ("/none", 404)] {
        let answer = weir.get(target);
        assert_eq!(answer.status, status);
        assert!(answer.text().contains("<p>weir</p>"), "{answer:?}");
    }
    // before there is a site, and even a request
    let mut connection = weir.connect();
    connection
        .send(b"GET / HTTP/1.1\r\nHo st: a\r\n\r\n")
        .expect("send");
    let answer = connection.read().expect("an answer");
    assert_eq!((answer.status, answer.text()), (400, "default"));
    // calls of gRPC look elsewhere
    let call = post("/nowhere", "").header("Content-Type", "application/grpc");
    assert_eq!(weir.fetch(&call).header("grpc-status"), Some("12"));
}

#[test]
fn page_may_be_what_a_route_answers() {
    let app = Origin::raw("HTTP/1.1 500 Oops\r\nContent-Length: 3\r\nX-Kept: 1\r\n\r\nbad");
    let weir = Weir::with("app", &app)
        .file("www/sorry/index.html", "<p>sorry</p>")
        .start(
            "
        listeners:
          http: { bind: '127.0.0.1:{http}' }
          https: { bind: '127.0.0.1:{https}', tls: {} }
        pools: { app: { backends: ['{app}'] }, dead: { backends: ['127.0.0.1:{nobody}'] } }
        sites:
          main:
            hosts: '*'
            tls: { self_signed: true }
            errors: { 400-599: { path: /sorry/ }, 404: { path: /gone }, intercept: true }
            routes:
              - { match: { prefix: /sorry }, access: { deny: all }, files: www }
              - { match: { path: /gone }, respond: { status: 200, body: '$request_uri gone from $host$uri' } }
              - { match: { path: /closed }, respond: { status: 503 } }
              - { match: { path: /dead }, proxy: dead }
              - { match: { prefix: /app }, proxy: app }
        ",
        );
    let mut http2 = weir.connect_http2("localhost");
    for (target, status, page) in [
        ("/closed", 503, "<p>sorry</p>"),
        ("/dead", 502, "<p>sorry</p>"),
        ("/app", 500, "<p>sorry</p>"),
        ("/nothing", 404, "/nothing gone from localhost/gone"),
        // its own policies refuse it, its page is still shown
        ("/sorry/", 403, "<p>sorry</p>"),
    ] {
        for request in [get(target), post(target, "x").header("Range", "bytes=0-1")] {
            for answer in [
                weir.fetch(&request),
                http2.fetch(&request).expect("an answer"),
            ] {
                assert_eq!((answer.status, answer.text()), (status, page), "{target}");
                let length = page.len().to_string();
                assert_eq!(answer.header("content-length"), Some(length.as_str()));
                assert_eq!(answer.header("etag"), None);
            }
        }
    }
    assert_eq!(weir.get("/app").header("x-kept"), Some("1"));
    let head = weir.fetch(&Request::new("HEAD", "/closed"));
    assert_eq!(
        (head.status, head.header("content-length")),
        (503, Some("12"))
    );
    let lines = weir.access_lines(22);
    assert!(
        lines
            .iter()
            .any(|line| line.contains("\"GET /closed HTTP/1.1\" 503 12")),
        "{lines:?}"
    );
}

#[test]
fn pages_are_read_when_the_configuration_is() {
    let setup = Setup::new().file("404.html", "first");
    let site = "errors: { 404: { file: 404.html } }\nroutes: [{ respond: { status: 404 } }]";
    let weir = setup.start_site(site);
    assert_eq!(weir.get("/").text(), "first");
    std::fs::remove_file(weir.dir().join("404.html")).expect("remove the page");
    assert_eq!(weir.get("/").text(), "first");
    weir.setup().write("404.html", "second");
    weir.reload(&crate::harness::one_site(site));
    assert_eq!(weir.get("/").text(), "second");
}

const BACKEND: &str = "HTTP/1.1 404 Not Found\r\nContent-Type: text/x\r\nContent-Length: 7\r\nETag: \"a\"\r\n\
    Content-Language: de\r\nSet-Cookie: a=b\r\nRetry-After: 5\r\n\r\ntheirs\n";

const SITES: &str = "
    listeners:
      http: { bind: '127.0.0.1:{http}' }
      https: { bind: '127.0.0.1:{https}', tls: {} }
    pools: { app: { backends: ['{app}'], passive: { max_fails: 1, fail_timeout: 60s } } }
    sites:
      main:
        hosts: '*'
        tls: { self_signed: true }
        errors: { 404: { body: ours }, 500-599: { body: '{long}' } }
        routes:
          - { match: { path: /theirs }, proxy: app }
          - { errors: { intercept: true }, compress: true, proxy: app }
    ";

fn start(app: &Origin) -> Weir {
    let long = "it is our fault, not yours; ".repeat(100);
    Weir::with("app", app).with("long", long).start(SITES)
}

#[test]
fn answers_of_backends_get_the_pages_only_if_they_are_to() {
    let app = Origin::raw(BACKEND);
    let weir = start(&app);
    let answer = weir.get("/theirs");
    assert_eq!((answer.status, answer.text()), (404, "theirs\n"));
    assert_eq!(answer.header("content-type"), Some("text/x"));
    let mut http2 = weir.connect_http2("localhost");
    for request in [get("/"), post("/", "a body")] {
        for answer in [
            weir.fetch(&request),
            http2.fetch(&request).expect("an answer"),
        ] {
            assert_eq!((answer.status, answer.text()), (404, "ours"));
            assert_eq!(
                answer.header("content-type"),
                Some("text/html; charset=utf-8")
            );
            assert_eq!(answer.header("content-length"), Some("4"));
            assert_eq!(answer.header("set-cookie"), Some("a=b"));
            assert_eq!(answer.header("retry-after"), Some("5"));
            assert_eq!(
                answer.headers.all("etag").len() + answer.headers.all("content-language").len(),
                0
            );
        }
    }
    // the connection goes on
    let mut connection = weir.connect();
    for method in ["GET", "HEAD", "GET"] {
        let answer = connection
            .fetch(&Request::new(method, "/"))
            .expect("an answer");
        assert_eq!(
            (answer.status, answer.header("content-length")),
            (404, Some("4"))
        );
        assert_eq!(answer.header("connection"), Some("keep-alive"));
    }
    // it is no failure of weir's, nor one for which the backend is ejected
    for line in weir.access_lines(8) {
        assert!(line.ends_with(r#""-" "-""#), "{line}");
    }
    assert_eq!(weir.get("/theirs").status, 404);
}

#[test]
fn backend_without_a_body_gets_a_page_as_well_and_pages_are_compressed() {
    let app = Origin::raw("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
    let weir = start(&app);
    let answer = weir.get("/");
    assert_eq!(answer.status, 500);
    assert!(answer.text().starts_with("it is our fault"));
    let answer = weir.fetch(&get("/").header("Accept-Encoding", "gzip"));
    assert_eq!(answer.header("content-encoding"), Some("gzip"));
    let page = super::compress::decoded(&answer);
    assert!(page.starts_with(b"it is our fault"));
    let answer = weir.get("/theirs");
    assert_eq!((answer.status, answer.text()), (500, ""));
}

#[test]
fn nobody_waits_for_the_body_of_a_backend_that_gets_a_page() {
    // of which the end never comes
    let body = "x".repeat(1 << 20);
    let app = Origin::raw(&format!(
        "HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 10485760\r\n\r\n{body}"
    ));
    let weir = start(&app);
    let mut connection = weir.connect();
    for _ in 0..2 {
        let answer = connection.fetch(&get("/")).expect("an answer");
        assert_eq!((answer.status, answer.text()), (404, "ours"));
    }
}

#[test]
fn backend_that_speaks_http2_gets_a_page_too() {
    let app = super::harness::secure::SecureOrigin::h2c();
    let weir = Weir::with("app", &app).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{app}'], protocol: h2c } }
        sites:
          main:
            hosts: '*'
            errors: { 404: { body: ours }, intercept: true }
            routes: [{ proxy: app }]
        ",
    );
    for target in ["/404", "/404/empty"] {
        let answer = weir.get(target);
        assert_eq!((answer.status, answer.text()), (404, "ours"), "{target}");
    }
}

#[test]
fn another_member_is_asked_before_the_page_is_shown() {
    let bad = Origin::raw("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let good = Origin::fixed("good");
    let weir = Weir::with("bad", &bad).with("good", &good).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools:
          app: { backends: ['{bad}', { addr: '{good}', backup: true }], retry: { on: [503] }, passive: off }
        sites:
          main:
            hosts: '*'
            errors: { 503: { body: ours }, intercept: true }
            routes: [{ proxy: app }]
        ",
    );
    let answer = weir.get("/");
    assert_eq!((answer.status, answer.text()), (200, "good"));
}
