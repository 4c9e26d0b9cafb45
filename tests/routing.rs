//! Which site and route a request takes.

use crate::harness::client::{Request, get};
use crate::harness::{Setup, Weir};

/// Sites that answer with their name.
fn start_sites(sites: &[(&str, &str)]) -> Weir {
    let sites: String = sites
        .iter()
        .map(|(name, hosts)| {
            format!("  {name}: {{ hosts: {hosts}, routes: [{{ respond: {{ body: {name} }} }}] }}\n")
        })
        .collect();
    Weir::start(&format!(
        "listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}\nsites:\n{sites}"
    ))
}

/// One site whose routes answer with their name.
fn start_routes(routes: &[(&str, &str)]) -> Weir {
    let routes: String = routes
        .iter()
        .map(|(name, matcher)| format!("  - {{ match: {matcher}, respond: {{ body: {name} }} }}\n"))
        .collect();
    Weir::start_site(&format!("routes:\n{routes}"))
}

#[track_caller]
fn assert_site(weir: &Weir, host: &str, site: &str) {
    let answer = weir.fetch(&get("/").host(host));
    assert_eq!((answer.status, answer.text()), (200, site), "host {host}");
}

#[track_caller]
fn assert_route(weir: &Weir, request: &Request, route: &str) {
    let answer = weir.fetch(request);
    assert_eq!((answer.status, answer.text()), (200, route), "{request:?}");
}

#[track_caller]
fn assert_no_route(weir: &Weir, request: &Request) {
    assert_eq!(weir.fetch(request).status, 404, "{request:?}");
}

#[test]
fn exact_host_wins_over_wildcard_over_regex_over_default() {
    let weir = start_sites(&[
        ("default", "['*']"),
        ("regex", r"['~^[a-z]+\.shop\.example$', '~^x[0-9]+\.test$']"),
        ("wildcard", "['*.example']"),
        ("longer_wildcard", "['*.shop.example']"),
        ("exact", "[www.shop.example]"),
    ]);
    assert_site(&weir, "www.shop.example", "exact");
    assert_site(&weir, "api.shop.example", "longer_wildcard");
    assert_site(&weir, "a.b.shop.example", "longer_wildcard");
    assert_site(&weir, "other.example", "wildcard");
    assert_site(&weir, "x12.test", "regex");
    assert_site(&weir, "y12.test", "default");
    assert_site(&weir, "example", "default");
}

#[test]
fn host_is_compared_without_case_port_and_trailing_dot() {
    let weir = start_sites(&[("shop", "[Shop.example, '*.Wild.example']")]);
    for host in [
        "shop.example",
        "SHOP.EXAMPLE",
        "shop.example:8080",
        "shop.example.",
        "shop.example.:80",
        "a.wild.example",
        "A.WILD.EXAMPLE.:1",
    ] {
        assert_site(&weir, host, "shop");
    }
}

#[test]
fn host_of_an_absolute_target_counts() {
    let weir = start_sites(&[("one", "[one.example]"), ("two", "[two.example]")]);
    let answer = weir.fetch(&get("http://one.example/").host("one.example"));
    assert_eq!(answer.text(), "one");
    // stricter than RFC 9112 section 3.2.2: whoever stands in front may have gone by the other one
    let answer = weir.fetch(&get("http://one.example/").host("two.example"));
    assert_eq!(answer.status, 400);
}

#[test]
fn unknown_host_is_not_found() {
    let weir = start_sites(&[("shop", "[shop.example]")]);
    assert_eq!(weir.fetch(&get("/").host("other.example")).status, 404);
}

#[test]
fn unknown_host_on_tls_is_misdirected() {
    let weir = Weir::start(
        "
        listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
        sites:
          shop: { hosts: [shop.example], tls: { self_signed: true }, routes: [{ respond: { status: 204 } }] }
        ",
    );
    let mut connection = weir.connect_tls("shop.example");
    let answer = connection.fetch(&get("/").host("other.example"));
    assert_eq!(answer.expect("an answer").status, 421);
}

#[test]
fn site_is_found_only_on_its_listeners() {
    let weir = Weir::start(
        "
        listeners:
          http: { bind: '127.0.0.1:{http}' }
          other: { bind: '127.0.0.1:{other}' }
        sites:
          everywhere: { hosts: ['*'], routes: [{ respond: { body: everywhere } }] }
          inside: { hosts: [inside.example], listeners: [other], routes: [{ respond: { body: inside } }] }
        ",
    );
    let request = get("/").host("inside.example");
    assert_eq!(weir.fetch(&request).text(), "everywhere");
    let other = crate::harness::client::Connection::tcp(weir.address("other"));
    let answer = other.expect("connect").fetch(&request).expect("an answer");
    assert_eq!(answer.text(), "inside");
}

#[test]
fn path_is_exact() {
    let weir = start_routes(&[("exact", "{ path: /a }")]);
    assert_route(&weir, &get("/a"), "exact");
    assert_route(&weir, &get("/a?b=c"), "exact");
    for target in ["/a/", "/ab", "/A", "/"] {
        assert_no_route(&weir, &get(target));
    }
}

#[test]
fn prefix_takes_whole_segments() {
    let weir = start_routes(&[("api", "{ prefix: /api }")]);
    for target in ["/api", "/api/", "/api/x", "/api?x=1"] {
        assert_route(&weir, &get(target), "api");
    }
    for target in ["/apix", "/ap", "/x/api"] {
        assert_no_route(&weir, &get(target));
    }
}

#[test]
fn starts_with_takes_any_continuation() {
    let weir = start_routes(&[("dl", "{ starts_with: /dl }")]);
    for target in ["/dl", "/dlx", "/dl/x"] {
        assert_route(&weir, &get(target), "dl");
    }
    assert_no_route(&weir, &get("/x/dl"));
}

#[test]
fn captures_of_a_regex_become_variables() {
    let weir = Weir::start_site(
        "
        routes:
          - match: { regex: '^/u/(?<id>[0-9]+)/(?<page>[a-z]+)$' }
            redirect: { to: 'http://$host/users/$id?page=${page}', status: 308 }
        ",
    );
    let answer = weir.get("/u/42/home");
    assert_eq!(answer.status, 308);
    let location = answer.header("location");
    assert_eq!(location, Some("http://localhost/users/42?page=home"));
    assert_no_route(&weir, &get("/u/x/home"));
}

#[test]
fn a_line_break_does_not_get_past_a_regex() {
    let weir = Setup::new().start_site(
        "
        routes:
          - { match: { regex: '^/admin/(?<page>.*)$' }, access: { deny: all }, respond: secret }
          - respond: public
        ",
    );
    for target in ["/admin/x", "/admin/%0ax", "/admin/x%0a", "/admin/%0d%0a"] {
        assert_eq!(weir.get(target).status, 403, "{target}");
    }
    assert_eq!(weir.get("/admi%0an/x").text(), "public");
}

#[test]
fn first_match_wins_in_written_order() {
    let weir = start_routes(&[
        ("first", "{ prefix: /a }"),
        ("second", "{ path: /a/b }"),
        ("third", "{ starts_with: / }"),
    ]);
    assert_route(&weir, &get("/a/b"), "first");
    assert_route(&weir, &get("/b"), "third");
}

#[test]
fn methods_headers_and_query_must_all_match() {
    let weir = start_routes(&[
        ("post", "{ path: /, methods: [POST, PUT] }"),
        ("beta", "{ path: /, headers: { x-beta: '1' } }"),
        ("second_version", "{ path: /, query: { v: '2' } }"),
        (
            "both",
            "{ path: /, headers: { x-a: a }, query: { v: '3' } }",
        ),
    ]);
    assert_route(&weir, &Request::new("POST", "/"), "post");
    assert_route(&weir, &Request::new("PUT", "/"), "post");
    assert_route(&weir, &get("/").header("X-Beta", "1"), "beta");
    assert_route(&weir, &get("/?u=1&v=2"), "second_version");
    assert_route(&weir, &get("/?v=3").header("X-A", "a"), "both");
    assert_no_route(&weir, &get("/"));
    assert_no_route(&weir, &get("/").header("X-Beta", "2"));
    assert_no_route(&weir, &get("/?v=22"));
    assert_no_route(&weir, &get("/?v=3"));
}

#[test]
fn client_address_can_be_matched() {
    let weir = start_routes(&[
        ("elsewhere", "{ client: [10.0.0.0/8] }"),
        ("here", "{ client: [192.0.2.1, 127.0.0.0/8] }"),
    ]);
    assert_route(&weir, &get("/"), "here");
}

#[test]
fn client_behind_a_trusted_proxy_is_the_one_it_names() {
    let weir = Weir::start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        trusted_proxies: [127.0.0.0/8]
        sites:
          main:
            hosts: ['*']
            routes:
              - { match: { client: [192.0.2.0/24] }, respond: { body: named } }
              - { respond: { body: peer } }
        ",
    );
    let request = get("/").header("X-Forwarded-For", "192.0.2.7");
    assert_route(&weir, &request, "named");
    assert_route(&weir, &get("/"), "peer");
}

#[test]
fn path_is_matched_decoded_and_normalised() {
    let weir = start_routes(&[("b", "{ path: /a/b }"), ("umlaut", "{ path: /ü }")]);
    for target in ["/a/b", "/a/./b", "/a/x/../b", "//a///b", "/%61/b", "/a%2Fb"] {
        assert_route(&weir, &get(target), "b");
    }
    assert_route(&weir, &get("/%C3%BC"), "umlaut");
}

#[test]
fn path_that_leaves_the_root_or_holds_nul_is_a_bad_request() {
    let weir = start_routes(&[("all", "{ starts_with: / }")]);
    for target in ["/../x", "/a/../../x", "/%2e%2e/x", "/a%00b"] {
        assert_eq!(weir.get(target).status, 400, "{target}");
    }
}

#[test]
fn no_match_is_not_found() {
    let weir = start_routes(&[("a", "{ path: /a }")]);
    let answer = weir.get("/b");
    assert_eq!((answer.status, answer.complete), (404, true));
}
