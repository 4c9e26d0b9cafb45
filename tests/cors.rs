//! cors, referer, maintenance: who may ask, and when.

use std::fs;

use crate::harness::client::{Request, get};
use crate::harness::origin::Origin;
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Setup, Weir};

fn preflight(origin: &str) -> Request {
    Request::new("OPTIONS", "/a")
        .header("Origin", origin)
        .header("Access-Control-Request-Method", "PUT")
        .header("Access-Control-Request-Headers", "x-a")
}

#[test]
fn preflight_requests_are_answered_and_never_passed_on() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site(
        "
        cors: { origins: ['https://app.example', 'https://*.lab.example'], methods: PUT, headers: [X-A, X-B], expose: X-C, credentials: true, max_age: 1h }
        routes: [{ proxy: app }]
        ",
    );
    let answer = weir.fetch(&preflight("https://app.example"));
    assert_eq!((answer.status, answer.text()), (204, ""));
    for (name, value) in [
        ("access-control-allow-origin", "https://app.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "PUT, GET, HEAD, POST"),
        ("access-control-allow-headers", "X-A, X-B"),
        ("access-control-max-age", "3600"),
        ("vary", "Origin"),
    ] {
        assert_eq!(answer.headers.all(name), [value], "{name}");
    }
    assert_eq!(answer.header("access-control-expose-headers"), None);
    let answer = weir.fetch(&preflight("https://evil.example"));
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(answer.header("vary"), Some("Origin"));
    assert_eq!(app.hits(), 0);
    // any other OPTIONS is the backend's
    assert_eq!(weir.fetch(&Request::new("OPTIONS", "/a")).text(), "ok");
}

#[test]
fn answers_say_whether_a_page_may_read_them() {
    let app = Origin::raw(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nAccess-Control-Allow-Origin: *\r\nVary: Accept\r\n\r\n",
    );
    let weir = Weir::with("app", &app).start_site(
        "
        routes:
          - { match: { path: /any }, cors: { origins: '*', headers: '*' }, proxy: app }
          - { match: { prefix: /some }, cors: { origins: 'https://*.lab.example', expose: [X-C, X-D] }, proxy: app }
          - { match: { path: /error }, cors: { origins: 'https://a.example' }, respond: { status: 500 } }
          - { proxy: app }
        ",
    );
    let from = |target: &str, origin: &str| weir.fetch(&get(target).header("Origin", origin));
    let answer = from("/some", "https://a.lab.example");
    let origin = "access-control-allow-origin";
    assert_eq!(answer.headers.all(origin), ["https://a.lab.example"]);
    assert_eq!(answer.headers.all("vary"), ["Accept", "Origin"]);
    assert_eq!(
        answer.header("access-control-expose-headers"),
        Some("X-C, X-D")
    );
    let answer = from("/some", "https://b.example");
    assert_eq!(answer.header(origin), None);
    assert_eq!(answer.headers.all("vary"), ["Accept", "Origin"]);
    assert_eq!(weir.get("/some").headers.all("vary"), ["Accept", "Origin"]);
    let answer = from("/any", "https://b.example");
    assert_eq!(
        (answer.header(origin), answer.header("vary")),
        (Some("*"), Some("Accept"))
    );
    let mut any = preflight("https://b.example");
    any.target = "/any".to_owned();
    let answer = weir.fetch(&any);
    assert_eq!(answer.header("access-control-allow-headers"), Some("x-a"));
    assert_eq!(
        answer.header("vary"),
        Some("Access-Control-Request-Headers")
    );
    let answer = from("/error", "https://a.example");
    assert_eq!(
        (answer.status, answer.header(origin)),
        (500, Some("https://a.example"))
    );
}

#[test]
fn only_pages_of_certain_hosts_may_embed() {
    let weir = Weir::start_site(
        "
        referer: { allow: [self, '*.example.com'] }
        routes:
          - { match: { path: /strict }, referer: { allow: self, empty: false }, respond: ok }
          - { respond: ok }
        ",
    );
    let from =
        |target: &str, referer: &str| weir.fetch(&get(target).header("Referer", referer)).status;
    assert_eq!(weir.get("/").status, 200);
    assert_eq!(weir.get("/strict").status, 403);
    assert_eq!(from("/", "http://localhost/page"), 200);
    assert_eq!(from("/strict", "http://localhost:8080/page"), 200);
    assert_eq!(from("/", "https://a.example.com/"), 200);
    assert_eq!(from("/", "https://evil.example/?a.example.com"), 403);
    assert_eq!(from("/", "not a page"), 403);
    let lines = weir.access_lines(7);
    let refused = lines.iter().filter(|line| line.ends_with(" referer"));
    assert_eq!(refused.count(), 3, "{lines:?}");
}

#[test]
fn maintenance_is_switched_by_a_file() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app)
        .file("sorry.html", "<h1>sorry</h1>")
        .start_site(
            "
            maintenance: { file: down, retry_after: 10m, body: { file: sorry.html } }
            routes:
              - match: { path: /staff }
                maintenance: { file: down, allow: 127.0.0.0/8 }
                proxy: app
              - match: { path: /text }
                maintenance: { file: down, status: 500, body: 'back at $uri' }
                proxy: app
              - match: { path: /always }
                maintenance: off
                proxy: app
              - proxy: app
            ",
        );
    assert_eq!(weir.get("/").text(), "ok");
    let switch = weir.dir().join("down");
    fs::write(&switch, "").expect("throw the switch");
    eventually(PATIENCE, || weir.get("/").status == 503);
    let answer = weir.get("/");
    assert_eq!(answer.text(), "<h1>sorry</h1>");
    assert_eq!(
        answer.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(answer.header("retry-after"), Some("600"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let head = weir.fetch(&Request::new("HEAD", "/"));
    assert_eq!(
        (head.status, head.header("content-length")),
        (503, Some("14"))
    );
    for target in ["/staff", "/always"] {
        assert_eq!(weir.get(target).text(), "ok", "{target}");
    }
    eventually(PATIENCE, || weir.get("/text").status == 500);
    assert_eq!(weir.get("/text").text(), "back at /text");
    fs::remove_file(&switch).expect("throw it back");
    eventually(PATIENCE, || weir.get("/").status == 200);
    assert!(weir.access_log().contains(" maintenance\n"));
}

#[test]
fn page_of_errors_is_shown_where_maintenance_has_none() {
    let weir = Setup::new().file("down", "").start_site(
        "
        errors: { 503: { body: ours } }
        maintenance: { file: down }
        routes: [{ respond: ok }]
        ",
    );
    let answer = weir.get("/");
    assert_eq!((answer.status, answer.text()), (503, "ours"));
}
