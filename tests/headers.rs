//! headers, cookies, location, security_headers: what is said about an answer, and who says it.

use crate::harness::Weir;
use crate::harness::client::get;
use crate::harness::origin::Origin;

#[test]
fn headers_are_removed_by_pattern_and_given_where_they_are_missing() {
    let app = Origin::raw(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Debug-A: 1\r\nx-debug-b: 2\r\nCache-Control: private\r\n\r\nok",
    );
    let weir = Weir::with("app", &app).start_site(
        "
        headers: { response: { remove: ['X-Debug-*'], default: { Cache-Control: no-cache, X-Site: $host } } }
        routes:
          - match: { path: /all }
            headers: { request: { remove: ['*'] }, response: { remove: ['*'] } }
            proxy: app
          - headers: { request: { remove: ['x-secret-*'], default: { X-Tenant: none } } }
            proxy: app
        ",
    );
    let request = get("/")
        .header("X-Secret-A", "1")
        .header("X-Other", "2")
        .header("X-Tenant", "t");
    let answer = weir.fetch(&request);
    assert_eq!(answer.text(), "ok");
    assert!(answer.headers.get("x-debug-a").is_none() && answer.headers.get("x-debug-b").is_none());
    assert_eq!(answer.header("cache-control"), Some("private"));
    assert!(answer.header("x-site").is_some());
    let answer = weir.get("/all");
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    let requests = app.requests();
    let [first, second] = requests.as_slice() else {
        panic!("two requests, not {requests:?}")
    };
    assert_eq!(first.header("x-secret-a"), None);
    assert_eq!(
        (first.header("x-other"), first.header("x-tenant")),
        (Some("2"), Some("t"))
    );
    assert!(second.header("host").is_some());
    assert_eq!(second.header("x-forwarded-for"), None);
}

#[test]
fn errors_are_left_alone_where_it_says_so() {
    let weir = Weir::start_site(
        "
        headers: { response: { set: { X-Good: yes it is }, always: false } }
        routes:
          - match: { path: /bad }
            headers: { response: { set: { X-All: too } } }
            respond: { status: 500 }
          - match: { path: /good }
            respond: ok
        ",
    );
    assert_eq!(weir.get("/good").header("x-good"), Some("yes it is"));
    let bad = weir.get("/bad");
    assert_eq!(
        (bad.header("x-good"), bad.header("x-all")),
        (None, Some("too"))
    );
    assert_eq!(weir.get("/none").header("x-good"), None);
}

#[test]
fn cookies_of_backends_get_flags_and_another_place() {
    let app = Origin::raw(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: session=1; Path=/app/x; Domain=app.internal\r\n\
         Set-Cookie: theme=dark; Secure; Expires=Thu, 01 Jan 2037 00:00:00 GMT\r\nSet-Cookie: plain=1\r\n\r\n",
    );
    let weir = Weir::with("app", &app).start_site(
        "
        cookies:
          flags: { 'session*': [secure, http_only, same_site=lax], theme: no_secure }
          domain: { from: app.internal, to: $host }
          path: { from: /app/, to: / }
        routes:
          - match: { path: /off }
            cookies: off
            proxy: app
          - proxy: app
        ",
    );
    let answer = weir.fetch(&get("/").host("shop.example"));
    assert_eq!(
        answer.headers.all("set-cookie"),
        [
            "session=1; Secure; HttpOnly; SameSite=Lax; Domain=shop.example; Path=/x",
            "theme=dark; Expires=Thu, 01 Jan 2037 00:00:00 GMT",
            "plain=1",
        ]
    );
    assert!(weir.get("/off").headers.all("set-cookie")[0].ends_with("Domain=app.internal"));
}

#[test]
fn redirects_of_backends_lead_to_the_outside() {
    let app = Origin::raw(
        "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://backend:8080/a?b\r\nRefresh: 5; url=http://backend/c\r\n\r\n",
    );
    let weir = Weir::with("app", &app).start_site(
        "
        location: [{ from: '~^http://backend(:[0-9]+)?/', to: 'https://$host/' }]
        routes:
          - match: { path: /own }
            redirect: http://backend/mine
          - proxy: app
        ",
    );
    let answer = weir.fetch(&get("/").host("shop.example"));
    assert_eq!(answer.header("location"), Some("https://shop.example/a?b"));
    assert_eq!(
        answer.header("refresh"),
        Some("5; url=https://shop.example/c")
    );
    assert_eq!(
        weir.get("/own").header("location"),
        Some("http://backend/mine")
    );
}

#[test]
fn browsers_are_told_to_be_careful() {
    let app =
        Origin::raw("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nReferrer-Policy: origin\r\n\r\n");
    let weir = Weir::with("app", &app).start(
        "
        listeners:
          http: { bind: '127.0.0.1:{http}' }
          https: { bind: '127.0.0.1:{https}', tls: {} }
        pools: { app: { backends: ['{app}'] } }
        defaults: { security_headers: strict }
        sites:
          main:
            hosts: '*'
            tls: { self_signed: true }
            routes:
              - match: { path: /basic }
                security_headers: basic
                respond: ok
              - match: { path: /mixed }
                security_headers: { frame_options: off, content_security_policy: \"default-src 'self' cdn\" }
                respond: ok
              - match: { path: /off }
                security_headers: off
                respond: ok
              - match: { path: /app }
                proxy: app
        ",
    );
    let basic = weir.get("/basic");
    assert_eq!(basic.header("x-frame-options"), Some("SAMEORIGIN"));
    assert_eq!(basic.header("content-security-policy"), None);
    let mixed = weir.get("/mixed");
    assert_eq!(mixed.header("x-frame-options"), None);
    assert_eq!(
        mixed.header("content-security-policy"),
        Some("default-src 'self' cdn")
    );
    assert_eq!(mixed.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(weir.get("/off").header("x-content-type-options"), None);
    assert_eq!(weir.get("/app").headers.all("referrer-policy"), ["origin"]);
    // an error, and without TLS
    let none = weir.get("/none");
    assert_eq!(
        (none.status, none.header("x-frame-options")),
        (404, Some("DENY"))
    );
    assert_eq!(none.header("strict-transport-security"), None);
    let answer = weir.connect_tls("shop.example").fetch(&get("/none"));
    let answer = answer.expect("an answer over TLS");
    assert!(answer.header("strict-transport-security").is_some());
}
