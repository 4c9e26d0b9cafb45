//! redirect: a table in a file.

use crate::harness::client::get;
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Setup, Weir};

const SITE: &str = "
    listeners: { http: { bind: '127.0.0.1:{http}' } }
    watch: true
    sites:
      main:
        hosts: ['*']
        routes:
          - redirect: { file: moved.txt, status: 301 }
          - respond: 'next $uri'
    ";

fn start(table: &str) -> Weir {
    Setup::new().file("moved.txt", table).start(SITE)
}

#[test]
fn what_is_in_the_table_is_redirected_and_the_rest_goes_on() {
    let weir =
        start("# moved\n/old /new\n/caf%C3%A9 /coffee 302\n/shop/* https://shop.example/* 308\n");
    for (target, status, location) in [
        ("/old", 301, Some("/new")),
        ("/%6fld?a=%20", 301, Some("/new?a=%20")),
        ("/./old", 301, Some("/new")),
        ("/caf%c3%a9", 302, Some("/coffee")),
        (
            "/shop/a%20b/%25?c",
            308,
            Some("https://shop.example/a%20b/%25?c"),
        ),
        ("/old/", 200, None),
        ("/shop", 200, None),
        ("/", 200, None),
    ] {
        let answer = weir.get(target);
        assert_eq!(
            (answer.status, answer.header("location")),
            (status, location),
            "{target}"
        );
    }
    let mut http = weir.connect();
    let evil = http
        .fetch(&get("/shop//evil.example/%0d%0aX-Evil:%201"))
        .expect("an answer");
    let location = evil.header("location");
    assert_eq!(
        location,
        Some("https://shop.example/evil.example/%0D%0AX-Evil:%201")
    );
    assert_eq!(evil.header("x-evil"), None);
}

#[test]
fn what_a_path_holds_stays_a_part_of_it() {
    let weir = Setup::new().start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        sites:
          main:
            hosts: ['*']
            routes:
              - { match: { regex: '^/u/(?<id>.*)$' }, redirect: '/users/$id?from=$id&$args' }
              - redirect: 'https://shop.example$uri$is_args$args'
        ",
    );
    for (target, location) in [
        ("/u/100%25", "/users/100%25?from=100%25&"),
        ("/u/a%26b%3Fc?d=%20", "/users/a&b%3Fc?from=a%26b%3Fc&d=%20"),
        ("/a%3Fb%23c/?d=%26", "https://shop.example/a%3Fb%23c/?d=%26"),
    ] {
        let answer = weir.get(target);
        assert_eq!(answer.header("location"), Some(location), "{target}");
    }
}

#[test]
fn a_hundred_thousand_lines_are_loaded_and_read_again() {
    let lines: String = (0..100_000)
        .map(|n| format!("/old/{n} /new/{n}\n"))
        .collect();
    let weir = start(&lines);
    for n in [0, 77_777, 99_999] {
        let answer = weir.get(&format!("/old/{n}"));
        assert_eq!(
            answer.header("location"),
            Some(format!("/new/{n}").as_str())
        );
    }
    assert_eq!(weir.get("/old/100000").text(), "next /old/100000");
    weir.setup()
        .write("moved.txt", format!("{lines}/old/100000 /late\n"));
    eventually(PATIENCE, || weir.get("/old/100000").status == 301);
}

#[test]
fn mistakes_are_told_with_their_lines() {
    let setup = Setup::new().file("moved.txt", "/a /b\n\n  /c\n/a /d 999\n/%61 /e\n");
    setup.write_config(SITE);
    let run = setup.run(&["check", "-c", "weir.yaml"]);
    assert_eq!(run.status, 1, "{run:?}");
    for line in [
        "moved.txt:3:3: sites.main.routes[0].redirect.file: `/c` leads nowhere",
        "moved.txt:4:7: sites.main.routes[0].redirect.file: `999` does not redirect",
        "moved.txt:5:1: sites.main.routes[0].redirect.file: `/%61` is given twice, first in line 1",
    ] {
        assert!(run.stderr.contains(line), "{}", run.stderr);
    }
    let setup = Setup::new();
    setup.write_config(SITE);
    let run = setup.run(&["check", "-c", "weir.yaml"]);
    assert!(run.stderr.contains("cannot read `"), "{run:?}");
}

#[test]
fn a_table_is_no_reason_to_warn_of_the_routes_behind_it() {
    let setup = Setup::new().file("moved.txt", "/a /b\n");
    setup.write_config(SITE);
    let run = setup.run(&["check", "-c", "weir.yaml"]);
    assert_eq!(run.status, 0, "{run:?}");
    assert!(!run.stderr.contains("warning"), "{run:?}");
    let run = setup.run(&["route", "-c", "weir.yaml", "GET", "http://x/c"]);
    assert!(
        run.stdout.contains("`redirect.file` does not hold"),
        "{run:?}"
    );
}
