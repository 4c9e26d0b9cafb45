//! Variables: what nginx's names say of a request that went through, and those that the document defines.

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

const ANSWER: &str = "HTTP/1.1 200 OK\r\nX-Secret: a\r\nX-Secret: b\r\nSet-Cookie: sid=42; Path=/\r\nContent-Length: 5\r\n\r\nhello";

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
fn the_server_is_called_by_the_first_of_its_hosts() {
    let weir = Setup::new().start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        sites:
          shop:
            hosts: [shop.example, '*.shop.example']
            routes: [{ redirect: 'https://$server_name$request_uri' }]
          rest:
            hosts: ['*']
            routes: [{ respond: '[$server_name] $site' }]
        ",
    );
    let shop = weir.fetch(&get("/a?b").host("www.shop.example"));
    let place = Some("https://shop.example/a?b");
    assert_eq!(shop.header("location"), place);
    assert_eq!(weir.get("/").text(), "[] rest");
}

#[test]
fn a_connection_counts_its_requests() {
    let template = "$connection_requests $connection_time $tcpinfo_rtt $ssl_alpn_protocol $http2";
    let weir = start(template);
    let mut connection = weir.connect();
    for _ in 0..3 {
        connection.fetch(&get("/")).expect("an answer");
    }
    let mut lines = weir.access_lines(3);
    lines.sort(); // each thread writes its own
    for (number, line) in lines.iter().enumerate() {
        let pattern = format!(r"^{} \d+\.\d{{3}} \d+ - $", number + 1);
        let pattern = Regex::new(&pattern).expect("a pattern");
        assert!(pattern.is_match(line), "{line}");
    }
    let mut http2 = weir.connect_http2("shop.example");
    for _ in 0..2 {
        http2.fetch(&get("/")).expect("an answer");
    }
    let lines = weir.access_lines(5);
    let line = lines.iter().filter(|line| line.ends_with(" h2 h2")).max();
    let line = line.expect("lines of HTTP/2");
    let pattern = Regex::new(r"^2 \d+\.\d{3} \d+ h2 h2$").expect("a pattern");
    assert!(pattern.is_match(line), "{line}");
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

const OWN: &str = "
    listeners: { http: { bind: '127.0.0.1:{http}' } }
    log: { access: { file: access.log, format: '$answer $tier' } }
    pools: { app: { backends: ['{app}'] } }
    map:
      $tier: { from: '$arg_plan', values: { gold: first, '~^silver-(?<n>.)': 'second $n', 'x*': '$place' }, default: none }
      $answer: { from: '$status', values: { '2*': good }, default: bad }
    geo:
      $place: { values: { 127.0.0.0/8: here }, default: there }
    split:
      $variant: { by: '$arg_user', values: { a: 25%, b: 75% } }
    sites:
      main:
        hosts: ['*']
        routes:
          - match: { path: /app }
            rewrite: { regex: '^/app$', to: '/$tier' }
            headers: { request: { set: { X-Tier: '$tier' } } }
            proxy: app
          - match: { regex: '^/(?<n>split)' }
            respond: '$variant$n'
          - match: { path: /gone }
            respond: { status: 410, body: '$place' }
          - redirect: '/$tier/$place'
    ";

#[test]
fn own_variables_stand_in_texts_like_all_others() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start(OWN);
    for (target, location) in [
        ("/?plan=Gold", "/first/here"),
        ("/?plan=silver-7", "/second%207/here"),
        ("/?plan=x1", "/here/here"),
        ("/", "/none/here"),
    ] {
        assert_eq!(
            weir.get(target).header("location"),
            Some(location),
            "{target}"
        );
    }
    weir.get("/app?plan=gold");
    let request = app.request();
    assert_eq!(request.target(), "/first?plan=gold");
    assert_eq!(request.header("x-tier"), Some("first"));
    weir.get("/gone");
    let mut lines = weir.access_lines(6);
    lines.sort(); // each thread writes its own
    let expected = [
        "bad first",
        "bad here",
        "bad none",
        "bad none",
        "bad second 7",
        "good first",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_split_sticks_to_its_key_over_a_reload() {
    let weir = Weir::with("app", Origin::fixed("ok")).start(OWN);
    let variants = || -> Vec<String> {
        (0..200)
            .map(|user| weir.get(&format!("/split?user={user}")).text().to_owned())
            .collect()
    };
    let before = variants();
    let a = before.iter().filter(|variant| *variant == "asplit").count();
    assert!((25..80).contains(&a), "{a} of 200");
    assert_eq!(
        before.iter().filter(|variant| *variant == "bsplit").count(),
        200 - a
    );
    weir.reload(&OWN.replace("there", "elsewhere"));
    assert_eq!(variants(), before);
}

#[test]
fn a_table_of_a_hundred_thousand_entries_is_loaded_and_used() {
    let entries: String = (0..100_000)
        .map(|n| format!("      /old/{n}: /new/{n}\n"))
        .collect();
    let map = format!("map:\n  $to:\n    from: $uri\n    default: ''\n    values:\n{entries}");
    let document = format!(
        "{map}\nlisteners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}\nsites:\n  main:\n    hosts: '*'\n    routes: [{{ respond: '$to' }}]\n"
    );
    let weir = Weir::start(&document);
    for n in [0, 50_000, 99_999] {
        assert_eq!(weir.get(&format!("/old/{n}")).text(), format!("/new/{n}"));
    }
    assert_eq!(weir.get("/old/100000").text(), "");
}
