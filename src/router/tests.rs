use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::*;
use crate::build::Build;
use crate::filter::Filters;
use crate::issue::{At, Sources};

#[test]
fn an_exact_host_goes_before_the_longest_wildcard_before_a_regex_before_the_rest() {
    let router = sound(
        r##"
        exact: { hosts: Shop.Example, routes: [{ respond: x }] }
        wide: { hosts: "*.example", routes: [{ respond: x }] }
        narrow: { hosts: "*.shop.example", routes: [{ respond: x }] }
        digits: { hosts: '~^[0-9]+\.', routes: [{ respond: x }] }
        later: { hosts: '~^1', routes: [{ respond: x }] }
        rest: { hosts: "*", routes: [{ respond: x }] }
        "##,
    );
    for (host, site) in [
        ("shop.example", "exact"),
        ("a.shop.example", "narrow"),
        ("a.b.shop.example", "narrow"),
        ("1.shop.example", "narrow"),
        ("other.example", "wide"),
        (".example", "rest"),
        ("example", "rest"),
        ("1.test", "digits"),
        ("1test", "later"),
        ("", "rest"),
    ] {
        let found = router.find_site("http", host);
        assert_eq!(found.map(|site| &*site.name), Some(site), "{host}");
    }
    assert!(router.find_site("nonsuch", "shop.example").is_none());
}

#[test]
fn a_site_is_served_on_its_listeners_only() {
    let router = sound(
        r#"
        plain: { hosts: a.example, listeners: [http], routes: [{ respond: x }] }
        secure: { hosts: a.example, listeners: [https], routes: [{ respond: x }] }
        both: { hosts: b.example, routes: [{ respond: x }] }
        "#,
    );
    let name = |listener, host| router.find_site(listener, host).map(|site| &*site.name);
    assert_eq!(name("http", "a.example"), Some("plain"));
    assert_eq!(name("https", "a.example"), Some("secure"));
    assert_eq!(name("http", "b.example"), Some("both"));
    assert_eq!(name("https", "b.example"), Some("both"));
    assert_eq!(name("http", "c.example"), None);
}

#[test]
fn the_first_route_that_matches_wins() {
    let router = sound(
        r#"
        shop:
          hosts: "*"
          routes:
            - { match: { path: /health }, respond: x }
            - { match: { prefix: /api/, methods: [GET, POST] }, respond: x }
            - { match: { regex: "^/u/(?<id>[0-9]+)$" }, respond: "$id" }
            - { match: { starts_with: /dl/, headers: { x-beta: "1" }, query: { v: "2" }, client: 10.0.0.0/8 }, respond: x }
            - { match: { prefix: /api/v2 }, respond: x }
            - respond: x
        "#,
    );
    let site = router.find_site("http", "any").unwrap();
    let beta = HeaderMap::from_iter([(
        HeaderName::from_static("x-beta"),
        HeaderValue::from_static("1"),
    )]);
    let none = HeaderMap::new();
    let inside = Some(IpAddr::from([10, 1, 2, 3]));
    for (method, path, headers, query, client, expected) in [
        ("GET", "/health", &none, None, None, 0),
        ("GET", "/health/", &none, None, None, 5),
        ("GET", "/api", &none, None, None, 1),
        ("HEAD", "/api/x", &none, None, None, 1),
        ("PUT", "/api/v2/x", &none, None, None, 4),
        ("PUT", "/api/v3", &none, None, None, 5),
        ("GET", "/apix", &none, None, None, 5),
        ("GET", "/u/7", &none, None, None, 2),
        ("GET", "/u/x", &none, None, None, 5),
        ("GET", "/dl/x", &beta, Some("v=2"), inside, 3),
        ("GET", "/dl/x", &none, Some("v=2"), inside, 5),
        ("GET", "/dl/x", &beta, Some("v=3"), inside, 5),
        ("GET", "/dl/x", &beta, Some("v=2"), None, 5),
        (
            "GET",
            "/dl/x",
            &beta,
            Some("v=2"),
            Some(IpAddr::from([11, 1, 2, 3])),
            5,
        ),
        ("OPTIONS", "*", &none, None, None, 5),
    ] {
        let mut captures = Vec::new();
        let facts = RequestFacts {
            method: &Method::from_bytes(method.as_bytes()).unwrap(),
            path,
            headers,
            query,
            client,
        };
        let route = site.find_route(&facts, &mut captures).unwrap();
        assert_eq!(
            &*route.name,
            format!("shop.routes[{expected}]"),
            "{method} {path}"
        );
        assert_eq!(captures.len(), usize::from(expected == 2));
    }
}

#[test]
fn levels_inherit_policies() {
    let sources = Sources::default();
    let mut b = Build::new(&sources);
    let defaults: Filters = serde_yaml::from_str("request_id: { header: X-Id }").unwrap();
    let sites: serde_yaml::Mapping = serde_yaml::from_str(
        r#"
        shop:
          hosts: "*"
          headers: { response: { set: { A: b } } }
          routes:
            - { match: { path: /a }, respond: x }
            - { match: { path: /b }, rewrite: { add_prefix: /x }, request_id: off, respond: x }
            - { match: { path: /c }, headers: off, request_id: off, respond: x }
        "#,
    )
    .unwrap();
    let sites = parse(sites);
    let sites = sites.iter().map(|(name, site)| (name.as_str(), site));
    let router = Router::compile(&At::Root, &defaults, sites, &["http"], &mut b);
    assert_eq!(issues(&b), Vec::<String>::new());
    let site = router.find_site("http", "x").unwrap();
    let names = |chain: &Chain| chain.names().collect::<Vec<_>>();
    assert_eq!(names(&router.chain), ["request_id"]);
    assert_eq!(names(&site.chain), ["request_id", "headers"]);
    assert_eq!(names(&site.routes[0].chain), ["request_id", "headers"]);
    assert_eq!(names(&site.routes[1].chain), ["rewrite", "headers"]);
    assert_eq!(names(&site.routes[2].chain), Vec::<&str>::new());
    assert!(Arc::ptr_eq(&site.chain, &site.routes[0].chain));
}

#[test]
fn a_way_is_explained() {
    let router = sound(
        r#"
        shop:
          hosts: [shop.example, "*.shop.example"]
          request_id: {}
          routes:
            - { match: { prefix: /u, methods: POST }, respond: x }
            - { match: { regex: "^/u/(?<id>[0-9]+)$" }, redirect: "/users/$id" }
        "#,
    );
    let mut facts = RequestFacts {
        method: &Method::GET,
        path: "/u/7",
        headers: &HeaderMap::new(),
        query: None,
        client: None,
    };
    let explanation = router.explain("http", "a.shop.example", &facts).unwrap();
    assert_eq!(
        explanation.to_string(),
        "site: shop (host *.shop.example: wildcard)\n\
         not: shop.routes[0] (prefix /u, methods POST): `methods` does not hold\n\
         route: shop.routes[1] (regex ^/u/(?<id>[0-9]+)$)\n\
         capture: $id = 7\n\
         policies: request_id\n\
         action: redirect (302)\n"
    );
    facts.path = "/";
    let explanation = router.explain("http", "shop.example", &facts).unwrap();
    assert_eq!(
        explanation.to_string(),
        "site: shop (host shop.example: exact name)\nroute: none matches\n"
    );
    assert!(router.explain("http", "other.example", &facts).is_none());
}

#[test]
fn mistakes_are_reported_at_their_places() {
    for (site, expected) in [
        ("routes: [respond: x]", "sites.a: a site needs `hosts`"),
        ("hosts: a", "sites.a: a site needs `routes`"),
        (
            "{ hosts: a, routes: [{}] }",
            "sites.a.routes[0]: this route has no action",
        ),
        (
            "{ hosts: a, routes: [{ respond: x, redirect: /, status: {} }] }",
            "sites.a.routes[0].respond: a route has one action, but here are `redirect` and `respond`",
        ),
        (
            "{ hosts: [b, 'a:80'], routes: [respond: x] }",
            "sites.a.hosts[1]: `a:80` is not a host name",
        ),
        (
            "{ hosts: [b, B.], routes: [respond: x] }",
            "sites.a.hosts[1]: host `b` is given twice",
        ),
        (
            "{ hosts: '~^(', routes: [respond: x] }",
            "sites.a.hosts[0]: not a regular expression: unclosed group",
        ),
        (
            "{ hosts: taken, routes: [respond: x] }",
            "sites.a.hosts[0]: host `taken` belongs to site `other` already",
        ),
        (
            "{ hosts: a, listeners: [htp], routes: [respond: x] }",
            "sites.a.listeners[0]: no listener named `htp` (did you mean `http`? listeners are: http, https)",
        ),
        (
            "{ hosts: a, listeners: [], routes: [respond: x] }",
            "sites.a.listeners: the site is served nowhere",
        ),
        (
            "{ hosts: a, routes: [{ match: { path: /a, regex: b }, respond: x }] }",
            "sites.a.routes[0].match.regex: a match has one condition on the path, but here are `path` and `regex`",
        ),
        (
            "{ hosts: a, routes: [{ match: { path: a }, respond: x }] }",
            "sites.a.routes[0].match.path: `a` matches no path",
        ),
        (
            "{ hosts: a, routes: [{ match: { prefix: /a//b }, respond: x }] }",
            "sites.a.routes[0].match.prefix: `/a//b` matches no path",
        ),
        (
            "{ hosts: a, routes: [{ match: { prefix: /a/.. }, respond: x }] }",
            "sites.a.routes[0].match.prefix: `/a/..` matches no path",
        ),
        (
            "{ hosts: a, routes: [{ match: { starts_with: '/a?b' }, respond: x }] }",
            "sites.a.routes[0].match.starts_with: `/a?b` matches no path",
        ),
        (
            "{ hosts: a, routes: [{ match: { path: /a%20b }, respond: x }] }",
            "sites.a.routes[0].match.path: `/a%20b` is compared with decoded paths",
        ),
        (
            "{ hosts: a, routes: [{ match: { regex: 'a{2' }, respond: x }] }",
            "sites.a.routes[0].match.regex: not a regular expression: ",
        ),
        (
            "{ hosts: a, routes: [{ match: { methods: get }, respond: x }] }",
            "sites.a.routes[0].match.methods[0]: `get` is not a method",
        ),
        (
            "{ hosts: a, routes: [{ match: { methods: [] }, respond: x }] }",
            "sites.a.routes[0].match.methods: an empty list",
        ),
        (
            "{ hosts: a, routes: [{ match: { headers: { 'a b': c } }, respond: x }] }",
            "sites.a.routes[0].match.headers.\"a b\": `a b` is not a header name",
        ),
        (
            "{ hosts: a, routes: [{ proxy: nonsuch }] }",
            "sites.a.routes[0].proxy.pool: no pool named `nonsuch`",
        ),
        (
            "{ hosts: a, routes: [{ respond: { status: 99 } }] }",
            "sites.a.routes[0].respond.status: `99` is not the status",
        ),
        (
            "{ hosts: a, routes: [{ respond: { status: 204, body: x } }] }",
            "sites.a.routes[0].respond.body: an answer with status 204",
        ),
        (
            "{ hosts: a, routes: [{ redirect: { to: /, status: 200 } }] }",
            "sites.a.routes[0].redirect.status: `200` does not redirect",
        ),
        (
            "{ hosts: a, routes: [{ redirect: b.example }] }",
            "sites.a.routes[0].redirect.to: `b.example` is neither a URL nor a path",
        ),
        // a mistake of the site is one mistake, however many routes inherit it
        (
            "{ hosts: a, request_id: { header: 'x y' }, routes: [{ match: { path: /a }, respond: x }, respond: x] }",
            "sites.a.request_id.header: `x y` is not a header name",
        ),
        // nobody knows what a wrong regex captures
        (
            "{ hosts: a, routes: [{ match: { regex: '^/(?<zz>' }, respond: $zz }, respond: x] }",
            "sites.a.routes[0].match.regex: not a regular expression",
        ),
        // the groups of one route's regex mean nothing in the next
        (
            "{ hosts: a, routes: [{ match: { regex: ^/(?<zz>.) }, respond: $zz }, { respond: $zz }] }",
            "sites.a.routes[1].respond.body: no variable named `$zz`",
        ),
    ] {
        let document = format!("other: {{ hosts: taken, routes: [respond: x] }}\na:\n  {site}");
        let (_, found) = compile(&document);
        assert_eq!(found.len(), 1, "{site}: {found:?}");
        assert!(found[0].starts_with(expected), "{site}: {}", found[0]);
    }
}

#[test]
fn a_route_that_is_never_reached_is_a_warning() {
    let (_, found) = compile(
        r#"
        a:
          hosts: a
          routes:
            - { match: { prefix: /a, methods: GET }, respond: x }
            - { match: { path: /a/b }, respond: x }
            - { match: { regex: ^/c/(.) }, respond: x }
            - { match: { path: /a/b, methods: GET }, respond: x }
            - { match: { regex: ^/c/(.) }, respond: x }
            - { match: { regex: ^/c/(.)x }, respond: x }
            - respond: x
            - { match: { headers: { a: b } }, respond: x }
        "#,
    );
    assert_eq!(
        found,
        [
            "sites.a.routes[3]: this route can never be reached \
             (`routes[1]` (path /a/b) comes first and takes all that would match)",
            "sites.a.routes[4]: this route can never be reached \
             (`routes[2]` (regex ^/c/(.)) comes first and takes all that would match)",
            "sites.a.routes[7]: this route can never be reached \
             (`routes[6]` (every path) comes first and takes all that would match)",
        ]
    );
}

#[test]
fn an_unknown_key_is_refused_at_its_place() {
    for (yaml, path, message) in [
        (
            "routes: [{ respond: x, bogus: 1 }]",
            "routes[0].bogus",
            "unknown field `bogus`, expected one of `match`, `proxy`",
        ),
        (
            "routes: [{ headers: { bogus: 1 } }]",
            "routes[0].headers.bogus",
            "unknown field `bogus`, expected",
        ),
        (
            "routes: [{ respond: x, rewrite: { quary: {} } }]",
            "routes[0].rewrite.quary",
            "unknown field `quary`",
        ),
        (
            "bogus: 1",
            "bogus",
            "unknown field `bogus`, expected one of `hosts`, `listeners`, `tls`, `routes`, `request_id`",
        ),
        (
            "routes: [{ match: { paht: / } }]",
            "routes[0].match.paht",
            "unknown field `paht`",
        ),
        (
            "request_id: { trust: 1 }",
            "request_id.trust",
            "invalid type: integer `1`, expected `true`, `false` or a list of networks",
        ),
        (
            "routes: [x]",
            "routes[0]",
            "invalid type: string \"x\", expected a route",
        ),
        ("hosts: a\nhosts: b", "hosts", "duplicate field `hosts`"),
    ] {
        let yaml = serde_yaml::Deserializer::from_str(yaml);
        let error = serde_path_to_error::deserialize::<_, config::Site>(yaml).unwrap_err();
        assert_eq!(error.path().to_string(), path);
        let inner = error.into_inner().to_string();
        assert!(inner.contains(message), "{inner}");
    }
}

#[test]
fn the_schema_lists_the_keys_and_no_others() {
    fn check<T: schemars::JsonSchema + crate::value::keys::Keyed>() {
        let schema = schemars::schema_for!(T).to_value();
        let properties = schema["properties"].as_object().unwrap();
        let mut listed: Vec<&str> = properties.keys().map(String::as_str).collect();
        let mut known = T::KEYS.to_vec();
        listed.sort();
        known.sort();
        assert_eq!(listed, known);
        assert_eq!(schema["additionalProperties"], false);
        for (key, property) in properties {
            assert!(property["description"].is_string(), "{key}: {property}");
        }
    }
    check::<config::Site>();
    check::<config::Route>();
    check::<Filters>();
}

proptest! {
    /// The tables find what trying each route in turn finds.
    #[test]
    fn the_first_match_in_written_order_is_found(
        routes in prop::collection::vec(matches(), 1..16),
        method in prop_oneof![Just(Method::GET), Just(Method::HEAD), Just(Method::PUT)],
        path in "(/[abc]{0,2}){1,4}",
        query in prop::option::of("v=[12]"),
        beta in any::<bool>(),
    ) {
        let routes = routes.into_iter().map(|matches| config::Route {
            matches,
            ..serde_yaml::from_str("respond: x").unwrap()
        });
        let site = config::Site {
            hosts: serde_yaml::from_str("a").unwrap(),
            routes: routes.collect(),
            ..config::Site::default()
        };
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let router = Router::compile(&At::Root, &Filters::default(), [("s", &site)], &["http"], &mut b);
        prop_assert!(!b.issues.has_errors(), "{:?}", b.issues);
        let warned: Vec<String> = b.issues.0.iter().map(|issue| issue.path.to_string()).collect();

        let mut headers = HeaderMap::new();
        if beta {
            headers.insert("x-beta", HeaderValue::from_static("1"));
        }
        let facts = RequestFacts {
            method: &method,
            path: &path,
            headers: &headers,
            query: query.as_deref(),
            client: None,
        };
        let site = router.find_site("http", "a").unwrap();
        let naive = site.routes.iter().find(|route| {
            route.path.matches(&path) && route.failing_condition(&facts).is_none()
        });
        let found = site.find_route(&facts, &mut Vec::new());
        prop_assert_eq!(found.map(|route| &route.name), naive.map(|route| &route.name));
        if let Some(found) = found {
            prop_assert!(!warned.contains(&format!("sites.{}", found.name)), "{} is reached", found.name);
        }
    }
}

fn matches() -> impl Strategy<Value = config::Match> {
    let path = || "(/[ab]{1,2}){1,3}/?".prop_map(Some);
    let default = config::Match::default;
    let base = prop_oneof![
        1 => Just(default()),
        3 => path().prop_map(move |path| config::Match { path, ..default() }),
        3 => path().prop_map(move |prefix| config::Match { prefix, ..default() }),
        3 => path().prop_map(move |starts_with| config::Match { starts_with, ..default() }),
        2 => path().prop_map(move |path| config::Match { regex: path.map(|p| format!("^{p}[ab]?$")), ..default() }),
        1 => path().prop_map(move |regex| config::Match { regex, ..default() }),
    ];
    let methods = prop_oneof![
        4 => Just(None),
        1 => Just(serde_yaml::from_str("GET").ok()),
        1 => Just(serde_yaml::from_str("[PUT]").ok()),
    ];
    let query = prop_oneof![4 => Just(""), 1 => Just("1"), 1 => Just("2")];
    (base, methods, query, prop::bool::weighted(0.2)).prop_map(|(base, methods, query, beta)| {
        let value = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
        config::Match {
            methods,
            query: if query.is_empty() {
                Default::default()
            } else {
                value("v", query)
            },
            headers: if beta {
                value("X-Beta", "1")
            } else {
                Default::default()
            },
            ..base
        }
    })
}

/// Compiles sites on the listeners `http` and `https`; there must be no issue.
fn sound(yaml: &str) -> Router {
    let (router, issues) = compile(yaml);
    assert_eq!(issues, Vec::<String>::new());
    router
}

fn compile(yaml: &str) -> (Router, Vec<String>) {
    let sites = parse(serde_yaml::from_str(yaml).unwrap());
    let sources = Sources::default();
    let mut b = Build::new(&sources);
    let sites = sites.iter().map(|(name, site)| (name.as_str(), site));
    let router = Router::compile(
        &At::Root,
        &Filters::default(),
        sites,
        &["http", "https"],
        &mut b,
    );
    (router, issues(&b))
}

/// Sites in written order.
fn parse(yaml: serde_yaml::Mapping) -> Vec<(String, config::Site)> {
    let sites = yaml.into_iter().map(|(name, site)| {
        let name = name.as_str().unwrap().to_owned();
        (name, serde_yaml::from_value(site).unwrap())
    });
    sites.collect()
}

fn issues(b: &Build<'_>) -> Vec<String> {
    let text = |issue: &crate::issue::Issue| match &issue.hint {
        Some(hint) => format!("{}: {} ({hint})", issue.path, issue.message),
        None => format!("{}: {}", issue.path, issue.message),
    };
    b.issues.0.iter().map(text).collect()
}
