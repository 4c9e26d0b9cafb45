//! Variables: what nginx's names say of a request that went through.

use regex::Regex;

use crate::harness::client::{get, post};
use crate::harness::origin::Origin;
use crate::harness::{Setup, Weir};

/// A weir that answers itself, and logs this template.
fn start(template: &str) -> Weir {
    Setup::new().with("template", template).start(
        "
        listeners:
          http: { bind: '127.0.0.1:{http}' }
          https: { bind: '127.0.0.1:{https}', tls: {} }
        log: { access: { file: access.log, format: '{template}' } }
        sites:
          main:
            hosts: ['*']
            tls: { self_signed: true }
            routes: [{ respond: '$request_id $http2 $proxy_add_x_forwarded_for' }]
        ",
    )
}

const ANSWER: &str = "HTTP/1.1 200 OK\r\nX-Secret: a\r\nX-Secret: b\r\nSet-Cookie: sid=42; Path=/\r\n                      Content-Length: 5\r\n\r\nhello";

#[test]
fn what_the_backend_said_is_logged_though_the_client_does_not_see_it() {
    let app = Origin::raw(ANSWER);
    let weir = Weir::with("app", &app).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        log: { access: { file: access.log, format: '$upstream_http_x_secret|$upstream_cookie_sid|$upstream_response_length|$upstream_bytes_received|$sent_http_x_secret|$request_completion' } }
        pools: { app: { backends: ['{app}'] } }
        sites:
          main:
            hosts: ['*']
            routes:
              - headers: { response: { set: { X-Seen: '$upstream_http_x_secret' }, remove: [X-Secret, Set-Cookie] } }
                proxy: app
        ",
    );
    let answer = weir.get("/");
    assert_eq!(answer.header("x-seen"), Some("a, b"));
    assert_eq!(answer.header("x-secret"), None);
    let length = ANSWER.len();
    assert_eq!(weir.access_lines(1)[0], format!("a, b|42|5|{length}|-|OK"));
}

#[test]
fn a_connection_counts_its_requests() {
    let template = "$connection_requests $connection_time $tcpinfo_rtt $ssl_alpn_protocol $http2";
    let weir = start(template);
    let mut connection = weir.connect();
    for _ in 0..3 {
        connection.fetch(&get("/")).expect("an answer");
    }
    let lines = weir.access_lines(3);
    for (number, line) in lines.iter().enumerate() {
        let pattern = format!(r"^{} \d+\.\d{{3}} \d+ - $", number + 1);
        let pattern = Regex::new(&pattern).expect("a pattern");
        assert!(pattern.is_match(line), "{line}");
    }
    let mut http2 = weir.connect_http2("shop.example");
    for _ in 0..2 {
        http2.fetch(&get("/")).expect("an answer");
    }
    let line = weir.access_lines(5).swap_remove(4);
    let pattern = Regex::new(r"^2 \d+\.\d{3} \d+ h2 h2$").expect("a pattern");
    assert!(pattern.is_match(&line), "{line}");
}

#[test]
fn a_request_has_an_identifier_without_a_policy() {
    let weir = start("$request_id");
    let request = post("/", "x").header("X-Forwarded-For", "192.0.2.7");
    let answer = weir.fetch(&request);
    let (id, rest) = answer.text().split_at(32);
    assert_eq!(rest, "  192.0.2.7, 127.0.0.1");
    assert_eq!(weir.access_lines(1)[0], id);
}
