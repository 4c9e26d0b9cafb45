//! The command line: what it prints, and how it ends.

use serde_json::Value;

use crate::harness::{Setup, dedent};

const GOOD: &str = "
    listeners: { http: { bind: '127.0.0.1:{http}' } }
    pools:
      app: { backends: ['127.0.0.1:9001'] }
      web: { backends: ['127.0.0.1:9002'] }
    sites:
      shop:
        hosts: [shop.example]
        headers: { response: { set: { X-A: '1' } } }
        routes:
          - { match: { path: /health }, respond: { body: ok } }
          - { match: { prefix: /api, methods: [GET] }, rewrite: { strip_prefix: /api }, proxy: app }
          - proxy: web
    ";

/// Three mistakes, on lines 4, 8 and 9.
const BAD: &str = "
    listeners: { http: { bind: '127.0.0.1:{http}' } }
    pools:
      app:
        ballance: random
        backends: ['127.0.0.1:9001']
    sites:
      shop:
        hosts: 7
        routes: [{ proxy: ap }]
    ";

fn with(document: &str) -> Setup {
    let setup = Setup::new();
    setup.write_config(document);
    setup
}

#[test]
fn test_option_accepts_a_good_file_and_does_not_listen() {
    let setup = with(GOOD);
    for arguments in [["-t", "-c", "weir.yaml"], ["--test", "--conf", "weir.yaml"]] {
        let run = setup.run(&arguments);
        assert_eq!(run.status, 0, "{run:?}");
    }
    assert!(!setup.dir().join("weir.pid").exists());
}

#[test]
fn all_mistakes_are_told_in_one_run() {
    let setup = with(BAD);
    for arguments in [
        &["-t", "-c", "weir.yaml"][..],
        &["check", "-c", "weir.yaml"],
        &["-c", "weir.yaml"],
    ] {
        let run = setup.run(arguments);
        assert_eq!(run.status, 1, "{run:?}");
        for place in [
            "weir.yaml:4:5: pools.app.ballance: ",
            "weir.yaml:8:12: sites.shop.hosts: ",
            "weir.yaml:9:23: sites.shop.routes[0].proxy: ",
        ] {
            assert!(
                run.stderr.contains(place),
                "{arguments:?} lacks {place}: {}",
                run.stderr
            );
        }
        assert!(
            run.stderr.contains("did you mean `balance`?"),
            "{}",
            run.stderr
        );
    }
}

#[test]
fn mistake_is_shown_in_its_line_with_a_way_out() {
    let setup = Setup::new().file("www/index.html", "");
    let document = "
        listeners: { http: { bind: '127.0.0.1:8080' } }
        pools:
          app: { backends: ['127.0.0.1:9001'] }
          assets: { backends: ['127.0.0.1:9002'] }

        sites:
          shop:
            hosts: [shop.example]
            routes:
              - match: { prefix: /assets }
                proxy: assets
              - match: { path: /health }
                respond: { body: ok }
              - proxy: ap
              - proxy: app
        ";
    setup.write("conf/weir.yaml", dedent(document));
    let run = setup.run(&["check", "-c", "conf/weir.yaml"]);
    let expected = "
conf/weir.yaml:14:16: sites.shop.routes[2].proxy: no pool named `ap`
   14 |       - proxy: ap
      |                ^^ did you mean `app`? pools are: app, assets
";
    assert!(run.stderr.contains(expected.trim_start()), "{}", run.stderr);
}

#[test]
fn check_prints_json_for_machines() {
    let run = with(BAD).run(&["check", "--json", "-c", "weir.yaml"]);
    assert_eq!(run.status, 1, "{run:?}");
    let report: Value =
        serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    let issues = report.as_array().or(report["issues"].as_array());
    let issues = issues.unwrap_or_else(|| panic!("no issues in {report}"));
    assert_eq!(issues.len(), 3, "{report}");
    let proxy = issues
        .iter()
        .find(|issue| issue["path"] == "sites.shop.routes[0].proxy");
    let proxy = proxy.unwrap_or_else(|| panic!("no issue of the route in {report}"));
    assert_eq!(
        (&proxy["line"], &proxy["column"]),
        (&Value::from(9), &Value::from(23))
    );
    assert!(
        proxy["file"]
            .as_str()
            .is_some_and(|file| file.ends_with("weir.yaml")),
        "{proxy}"
    );
    assert_eq!(proxy["severity"], "error");
    assert!(
        proxy["message"]
            .as_str()
            .is_some_and(|text| text.contains("`ap`")),
        "{proxy}"
    );

    let run = with(GOOD).run(&["check", "--json", "-c", "weir.yaml"]);
    assert_eq!(run.status, 0, "{run:?}");
    serde_json::from_str::<Value>(&run.stdout).expect("JSON for a good file, too");
}

#[test]
fn check_warns_of_what_is_hardly_meant() {
    let setup = with(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools:
          app: { backends: ['127.0.0.1:9001'] }
          unused: { backends: ['127.0.0.1:9002'] }
          far: { backends: ['does-not-exist.invalid:80'] }
        sites:
          shop:
            hosts: [shop.example]
            routes:
              - proxy: app
              - { match: { path: /never }, proxy: far }
        ",
    );
    let run = setup.run(&["check", "-c", "weir.yaml"]);
    assert_eq!(run.status, 0, "{run:?}");
    for (place, word) in [
        ("sites.shop.routes[1]", "never"),
        ("pools.unused", "unused"),
        ("pools.far.backends[0]", "does-not-exist.invalid"),
    ] {
        let told = run
            .stderr
            .lines()
            .any(|line| line.contains("warning") && line.contains(place));
        assert!(told, "no warning about {place} ({word}): {}", run.stderr);
    }
}

#[test]
fn missing_file_is_named() {
    for arguments in [["-c", "none.yaml"], ["-tc", "none.yaml"]] {
        let run = Setup::new().run(&arguments);
        assert_eq!(run.status, 1, "{run:?}");
        assert!(run.stderr.contains("none.yaml"), "{run:?}");
    }
}

#[test]
fn file_is_looked_for_in_conf_when_none_is_named() {
    let setup = Setup::new();
    let run = setup.run(&["-t"]);
    assert_eq!(run.status, 2, "{run:?}");
    assert!(run.stderr.contains("conf/weir.yaml"), "{run:?}");
    assert!(run.stderr.contains("/etc/weir/weir.yaml"), "{run:?}");
    setup.write("conf/weir.yaml", dedent(&BAD.replace("{http}", "8080")));
    let run = setup.run(&["-t"]);
    assert!(run.stderr.contains("conf/weir.yaml:4:5: "), "{run:?}");
}

#[test]
fn bad_usage_ends_with_two() {
    for arguments in [
        &["--no-such-option"][..],
        &["no-such-command"],
        &["route", "GET"],
    ] {
        let run = Setup::new().run(arguments);
        assert_eq!(run.status, 2, "{arguments:?}: {run:?}");
        assert!(!run.stderr.is_empty());
    }
}

#[test]
fn help_and_version_are_given() {
    let run = Setup::new().run(&["--version"]);
    assert_eq!(
        (run.status, run.stdout.trim()),
        (0, concat!("weir ", env!("CARGO_PKG_VERSION")))
    );
    let run = Setup::new().run(&["--help"]);
    assert_eq!(run.status, 0);
    for word in [
        "check",
        "route",
        "schema",
        "--upgrade",
        "--daemon",
        "--test",
        "--conf",
    ] {
        assert!(run.stdout.contains(word), "no `{word}` in {}", run.stdout);
    }
}

#[test]
fn route_tells_which_way_a_request_would_take() {
    let setup = with(GOOD);
    let explain = |method, url| {
        let run = setup.run(&["route", "-c", "weir.yaml", method, url]);
        assert_eq!(run.status, 0, "{run:?}");
        run.stdout
    };
    let text = explain("GET", "http://shop.example/api/x");
    for word in ["shop", "routes[1]", "app", "rewrite", "headers"] {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
    let text = explain("POST", "http://shop.example/api/x");
    for word in ["routes[2]", "web"] {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
    assert!(explain("GET", "http://shop.example/health").contains("routes[0]"));
    assert!(explain("GET", "http://other.example/").contains("404"));
}

#[test]
fn schema_describes_the_language() {
    let run = Setup::new().run(&["schema"]);
    assert_eq!(run.status, 0, "{run:?}");
    let schema: Value = serde_json::from_str(&run.stdout).expect("JSON");
    assert!(schema["$schema"].is_string());
    for key in [
        "listeners",
        "pools",
        "sites",
        "static",
        "log",
        "include",
        "threads",
        "pid_file",
    ] {
        assert!(schema["properties"][key].is_object(), "no `{key}`");
    }
    assert!(run.stdout.contains("strip_prefix"));
}

#[test]
fn schema_beside_the_examples_is_that_of_this_version() {
    let run = Setup::new().run(&["schema"]);
    let kept = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/weir.schema.json");
    if std::env::var_os("WEIR_BLESS").is_some() {
        std::fs::write(kept, &run.stdout).expect("write the schema");
    }
    let kept = std::fs::read_to_string(kept).expect("conf/weir.schema.json");
    assert!(
        kept == run.stdout,
        "write it anew: weir schema > conf/weir.schema.json"
    );
}

#[test]
fn environment_and_files_are_put_in() {
    let setup = Setup::new().file("word", "from-file\n");
    let weir = setup.start_site(
        "
        routes:
          - match: { path: /default }
            respond: { body: '${env:WEIR_NOT_SET:-a default}' }
          - match: { path: /file }
            respond: { body: '${file:{dir}/word}' }
          - match: { path: /dollar }
            headers: { response: { set: { X-A: '$$5' } } }
            respond: { body: ok }
        ",
    );
    assert_eq!(weir.get("/default").text(), "a default");
    assert_eq!(weir.get("/file").text(), "from-file");
    assert_eq!(weir.get("/dollar").header("x-a"), Some("$5"));
}

#[test]
fn included_files_are_merged_and_their_paths_are_their_own() {
    let setup = Setup::new()
        .file(
            "conf.d/a.yaml",
            "pools: { a: { backends: ['127.0.0.1:9001'] } }\n",
        )
        .file(
            "conf.d/b.yaml",
            "sites: { b: { hosts: ['*'], routes: [{ files: ./www }] } }\n",
        )
        .file("conf.d/www/index.html", "beside the included file");
    let weir = setup.start(
        "
        include: [conf.d/*.yaml]
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        sites: { main: { hosts: [a.example], routes: [{ proxy: a }] } }
        ",
    );
    assert_eq!(weir.get("/").text(), "beside the included file");
}

#[test]
fn name_given_twice_shows_both_places() {
    let setup = Setup::new().file(
        "more.yaml",
        "\npools: { app: { backends: ['127.0.0.1:9001'] } }\n",
    );
    setup.write_config(&format!("{}include: [more.yaml]\n", dedent(GOOD)));
    let run = setup.run(&["check", "-c", "weir.yaml"]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("more.yaml:2:"), "{run:?}");
    assert!(run.stderr.contains("weir.yaml:3"), "{run:?}");
}
