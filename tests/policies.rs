//! headers, rewrite, request_id: on the way in and on the way out.

use crate::harness::Weir;
use crate::harness::client::get;
use crate::harness::origin::Origin;

#[test]
fn request_headers_are_set_added_and_removed() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site(
        "
        routes:
          - headers:
              request:
                set: { X-Set: new, X-Client: $remote_addr }
                add: { X-Add: second }
                remove: [X-Old]
            proxy: app
        ",
    );
    let request = get("/")
        .header("X-Set", "old")
        .header("X-Add", "first")
        .header("X-Old", "1");
    weir.fetch(&request);
    let got = app.request();
    assert_eq!(got.headers().all("x-set"), ["new"]);
    assert_eq!(got.headers().all("x-add"), ["first", "second"]);
    assert_eq!(got.headers().all("x-client"), ["127.0.0.1"]);
    assert_eq!(got.header("x-old"), None);
}

#[test]
fn response_headers_are_set_added_and_removed() {
    let app = Origin::raw(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Set: old\r\nX-Add: first\r\nX-Old: 1\r\n\r\n",
    );
    let weir = Weir::with("app", &app).start_site(
        "
        headers: { response: { set: { X-Set: new }, add: { X-Add: second }, remove: [X-Old] } }
        routes: [{ proxy: app }]
        ",
    );
    let answer = weir.get("/");
    assert_eq!(answer.headers.all("x-set"), ["new"]);
    assert_eq!(answer.headers.all("x-add"), ["first", "second"]);
    assert_eq!(answer.header("x-old"), None);
}

#[test]
fn response_headers_are_set_on_local_answers() {
    let weir = Weir::start_site(
        "
        headers: { response: { set: { X-Set: $uri } } }
        routes: [{ respond: { body: ok } }]
        ",
    );
    assert_eq!(weir.get("/a%20b").header("x-set"), Some("/a b"));
}

#[test]
fn header_maps_merge_entry_by_entry_from_defaults_to_route() {
    let weir = Weir::start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        defaults: { headers: { response: { set: { X-A: default, X-B: default, X-C: default } } } }
        sites:
          main:
            hosts: ['*']
            headers: { response: { set: { X-B: site, X-C: site } } }
            routes:
              - match: { path: /off }
                headers: off
                respond: { body: ok }
              - headers: { response: { set: { X-C: route } } }
                respond: { body: ok }
        ",
    );
    let answer = weir.get("/");
    assert_eq!(answer.header("x-a"), Some("default"));
    assert_eq!(answer.header("x-b"), Some("site"));
    assert_eq!(answer.header("x-c"), Some("route"));
    let answer = weir.get("/off");
    assert_eq!((answer.status, answer.header("x-a")), (200, None));
}

#[test]
fn header_with_a_line_break_in_its_value_cannot_be_smuggled() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site(
        "
        routes:
          - match: { regex: '^/(?<x>.*)$' }
            headers: { request: { set: { X-Path: $x } }, response: { set: { X-Path: $x } } }
            proxy: app
        ",
    );
    let answer = weir.get("/a%0d%0aX-Evil:%201");
    assert_eq!(answer.header("x-evil"), None);
    for request in app.requests() {
        assert_eq!(request.header("x-evil"), None);
    }
}

#[test]
fn rewrite_strips_and_adds_prefixes() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site(
        "
        routes:
          - match: { prefix: /api }
            rewrite: { strip_prefix: /api }
            proxy: app
          - match: { prefix: /v1 }
            rewrite: { strip_prefix: /v1, add_prefix: /v2 }
            proxy: app
          - match: { regex: '^/old/(?<x>.*)' }
            rewrite: { regex: '^/old/(?<y>.*)', to: '/new/$y' }
            proxy: app
          - proxy: app
        ",
    );
    let cases = [
        ("/api", "/"),
        ("/api/", "/"),
        ("/api/x?q=1&r=%20", "/x?q=1&r=%20"),
        ("/v1/a%20b", "/v2/a%20b"),
        ("/old/thing?q=1", "/new/thing?q=1"),
        ("/%7euser/../x//y?q", "/%7euser/../x//y?q"), // not rewritten: as the client sent it
    ];
    for (target, _) in cases {
        assert_eq!(weir.get(target).status, 200, "{target}");
    }
    let requests = app.requests();
    let targets: Vec<_> = requests.iter().map(|request| request.target()).collect();
    assert_eq!(targets, cases.map(|(_, expected)| expected));
}

#[test]
fn request_id_is_made_and_passed_both_ways() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start_site(
        "
        request_id: { header: X-Request-Id }
        routes: [{ proxy: app }]
        ",
    );
    let mut seen = Vec::new();
    for _ in 0..2 {
        let answer = weir.fetch(&get("/").header("X-Request-Id", "from-client"));
        seen.push(answer.header("x-request-id").expect("an id").to_owned());
    }
    let requests = app.requests();
    let passed = requests
        .iter()
        .map(|request| request.header("x-request-id"));
    assert!(passed.eq(seen.iter().map(|id| Some(id.as_str()))));
    assert_ne!(seen[0], seen[1]);
    assert!(!seen.contains(&"from-client".to_owned()));
}

#[test]
fn request_id_is_kept_of_those_who_are_trusted() {
    let app = Origin::fixed("ok");
    let id = |proxies: &str, trust: &str, brought: &str| {
        let weir = Weir::with("app", &app).start(&format!(
            "
        listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}
        pools: {{ app: {{ backends: ['{{app}}'] }} }}
        trusted_proxies: {proxies}
        sites:
          main:
            hosts: ['*']
            request_id: {{ header: X-Request-Id, trust: {trust} }}
            routes: [{{ proxy: app }}]
        "
        ));
        let answer = weir.fetch(&get("/").header("X-Request-Id", brought));
        let id = answer.header("x-request-id").expect("an id").to_owned();
        let passed = app.requests();
        let passed = passed.last().expect("a request");
        assert_eq!(passed.headers().all("x-request-id"), [&*id]);
        weir.access_lines(1);
        id
    };
    for (proxies, trust, kept) in [
        ("[127.0.0.0/8]", "true", true),
        ("[10.0.0.0/8]", "true", false),
        ("[127.0.0.0/8]", "false", false),
        ("[]", "127.0.0.1", true),
        ("[127.0.0.0/8]", "[10.0.0.0/8, 192.168.0.0/16]", false),
    ] {
        let kept = if kept { "from-client" } else { "" };
        let id = id(proxies, trust, "from-client");
        match kept {
            "" => assert_eq!(id.len(), 32, "{proxies} {trust}"),
            kept => assert_eq!(id, kept, "{proxies} {trust}"),
        }
    }
    for bad in ["two words", &"x".repeat(129), "\u{fc}ber"] {
        assert_eq!(id("[127.0.0.0/8]", "true", bad).len(), 32);
    }
}
