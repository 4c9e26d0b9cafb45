//! redirect, respond, status.

use crate::harness::Weir;
use crate::harness::client::{Request, get};
use crate::harness::origin::Origin;

#[test]
fn redirect_answers_with_status_and_location() {
    let weir = Weir::start_site(
        "
        routes:
          - match: { path: /short }
            redirect: https://example.org/
          - match: { prefix: /perm }
            redirect: { to: 'https://$host$request_uri', status: 301 }
        ",
    );
    let answer = weir.get("/short");
    assert_eq!(answer.status, 302);
    assert_eq!(answer.header("location"), Some("https://example.org/"));
    let answer = weir.fetch(&get("/perm/a%20b?q=1").host("shop.example:99"));
    assert_eq!(answer.status, 301);
    let location = answer.header("location");
    assert_eq!(location, Some("https://shop.example/perm/a%20b?q=1"));
}

#[test]
fn redirect_cannot_be_made_to_hold_a_line_break() {
    let weir = Weir::start_site(
        "
        routes:
          - match: { regex: '^/(?<rest>.*)$' }
            redirect: { to: 'https://example.org/$rest' }
        ",
    );
    let answer = weir.get("/a%0d%0aX-Evil:%201");
    assert_eq!(answer.header("x-evil"), None);
}

#[test]
fn respond_answers_with_status_and_body() {
    let weir = Weir::start_site(
        "
        routes:
          - match: { path: /json }
            respond: { status: 201, body: '[1]', content_type: application/json }
          - respond: { body: \"ok\\n\" }
        ",
    );
    let answer = weir.get("/json");
    assert_eq!((answer.status, answer.text()), (201, "[1]"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let answer = weir.get("/");
    assert_eq!((answer.status, answer.text()), (200, "ok\n"));
    assert_eq!(answer.header("content-length"), Some("3"));
    assert!(answer.headers.contains("date"));
}

#[test]
fn respond_to_head_has_the_length_and_no_body() {
    let weir = Weir::start_site("routes: [{ respond: { body: hello } }]");
    let mut connection = weir.connect();
    for _ in 0..2 {
        let answer = connection.fetch(&Request::new("HEAD", "/"));
        let answer = answer.expect("an answer on the same connection");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-length"), Some("5"));
    }
}

#[test]
fn respond_may_be_without_a_body() {
    let weir = Weir::start_site("routes: [{ respond: { status: 204 } }]");
    let mut connection = weir.connect();
    for _ in 0..2 {
        let answer = connection.fetch(&get("/"));
        let answer = answer.expect("an answer on the same connection");
        assert_eq!((answer.status, answer.text()), (204, ""));
        assert_eq!(answer.header("content-length"), None); // RFC 9110 section 8.6
    }
}

#[test]
fn status_tells_of_the_running_server_in_json() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app)
        .start_site("routes: [{ match: { path: /status }, status: {} }, { proxy: app }]");
    let answer = weir.get("/status");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let page: serde_json::Value = serde_json::from_str(answer.text()).expect("JSON");
    assert_eq!(page["version"], env!("CARGO_PKG_VERSION"), "{page}");
    assert!(
        page["pools"].to_string().contains(&app.to_string()),
        "{page}"
    );
}

#[test]
fn server_header_says_weir() {
    let weir = Weir::start_site("routes: [{ match: { path: /a }, respond: { body: ok } }]");
    for target in ["/a", "/none"] {
        assert_eq!(weir.get(target).headers.all("server"), ["weir"], "{target}");
    }
}

#[test]
fn error_page_is_html_or_json_as_the_client_accepts() {
    let weir = Weir::start_site("routes: [{ match: { path: /a }, respond: ok }]");
    let page = |accept| weir.fetch(&get("/").header("Accept", accept));
    for accept in [
        "text/html,*/*;q=0.8",
        "*/*",
        "application/json;q=0.1, text/html",
    ] {
        let answer = page(accept);
        let kind = answer.header("content-type").expect("a type");
        assert!(kind.starts_with("text/html"), "{accept}: {kind}");
        assert!(answer.text().contains("404"));
    }
    for accept in ["application/json", "application/json, text/html;q=0.5"] {
        let answer = page(accept);
        assert_eq!(
            answer.header("content-type"),
            Some("application/json"),
            "{accept}"
        );
        let json: serde_json::Value = serde_json::from_str(answer.text()).expect("JSON");
        assert!(json.to_string().contains("404"), "{json}");
    }
}
