//! Access log, error log, and what USR1 does.

use std::fs;

use nix::sys::signal::Signal;
use regex::Regex;
use serde_json::Value;

use crate::harness::client::{Request, get, post};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Setup, Weir, dedent};

/// A weir with this `log:` that answers everything but `/app`, which goes to a dead backend.
fn start(setup: Setup, log: &str) -> Weir {
    const DOCUMENT: &str = "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['127.0.0.1:{dead}'] } }
        sites:
          main:
            hosts: ['*']
            routes: [{ match: { path: /app }, proxy: app }, { respond: { body: hello } }]
        ";
    setup.start(&format!("{}log: {log}\n", dedent(DOCUMENT)))
}

#[test]
fn combined_format_is_that_of_apache_and_nginx() {
    let weir = Weir::start_site("routes: [{ respond: { body: hello } }]");
    let request = get("/a?b=c")
        .header("Referer", "http://x/")
        .header("User-Agent", "tester \"1\"");
    weir.fetch(&request);
    let line = &weir.access_lines(1)[0];
    let pattern = r#"^127\.0\.0\.1 - - \[\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET /a\?b=c HTTP/1\.1" 200 5 "http://x/" "tester (\\x22|\\")1(\\x22|\\")""#;
    assert!(
        Regex::new(pattern).expect("a pattern").is_match(line),
        "{line}"
    );
}

#[test]
fn nothing_that_a_client_sends_forges_a_line() {
    let weir = Weir::start_site("routes: [{ respond: { body: hello } }]");
    weir.fetch(&get("/%0aforged?%0a").header("User-Agent", "a\tb\"\\\u{85}\u{2028}"));
    weir.get("/last");
    let lines = weir.access_lines(2);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.concat().chars().all(|c| !c.is_control()), "{lines:?}");
}

#[test]
fn json_format_is_one_object_for_each_line() {
    let weir = start(
        Setup::new(),
        "{ access: { file: '{dir}/access.log', format: json } }",
    );
    weir.fetch(&get("/a?b=c").header("User-Agent", "tester \"1\""));
    let line = &weir.access_lines(1)[0];
    let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let entry = entry.as_object().expect("an object");
    assert_eq!(entry["status"], 200, "{line}");
    assert!(entry.values().any(|value| value == "127.0.0.1"), "{line}");
    assert!(entry.values().any(|value| value == "GET"), "{line}");
    assert!(line.contains("/a?b=c"), "{line}");
}

#[test]
fn template_chooses_what_is_logged() {
    let template = "$request_method $uri $args $status $body_bytes_sent ${scheme}! $http_x_a $host $remote_addr $arg_b";
    let log = format!("{{ access: {{ file: '{{dir}}/access.log', format: '{template}' }} }}");
    let weir = start(Setup::new(), &log);
    weir.fetch(
        &get("/a%20b?b=c")
            .header("X-A", "value")
            .host("shop.example:80"),
    );
    let line = &weir.access_lines(1)[0];
    assert_eq!(
        line,
        "GET /a b b=c 200 5 http! value shop.example 127.0.0.1 c"
    );
}

#[test]
fn upstream_and_times_are_logged() {
    let app = Origin::fixed("hello");
    let weir = Weir::with("app", &app).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        log: { access: { file: '{dir}/access.log', format: '$upstream_addr $upstream_status $request_time $upstream_response_time' } }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
        ",
    );
    weir.fetch(&post("/", "x"));
    let line = &weir.access_lines(1)[0];
    let pattern = format!(r"^{app} 200 \d+\.\d{{3}} \d+\.\d{{3}}$");
    assert!(
        Regex::new(&pattern).expect("a pattern").is_match(line),
        "{line}"
    );
}

#[test]
fn log_tells_who_ended_a_failed_request() {
    let log = "{ access: { file: '{dir}/access.log', format: json } }";
    let weir = start(Setup::new().allow(""), log);
    assert_eq!(weir.get("/app").status, 502);
    let line = &weir.access_lines(1)[0];
    assert!(line.contains("\"upstream_connect\""), "{line}");
}

#[test]
fn log_tells_that_a_client_went_away() {
    let app = Origin::start(Behaviour::Held("late".to_owned()));
    let weir = Weir::with("app", &app).allow("").start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        log: { access: { file: '{dir}/access.log', format: json } }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
        ",
    );
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    eventually(PATIENCE, || app.hits() == 1);
    drop(connection);
    let line = &weir.access_lines(1)[0];
    assert!(
        line.contains("\"client_closed\"") && line.contains("499"),
        "{line}"
    );
}

#[test]
fn access_log_can_be_off() {
    let weir = start(Setup::new(), "{ access: off }");
    weir.get("/");
    let dir = weir.dir().to_owned();
    assert!(!dir.join("access.log").exists());
}

#[test]
fn error_log_goes_to_its_file_in_its_format() {
    let log = "{ error: { level: info, file: '{dir}/error.log', format: json }, access: off }";
    let weir = start(Setup::new(), log);
    weir.signal(Signal::SIGHUP);
    eventually(PATIENCE, || {
        weir.setup().read("error.log").contains("reloaded")
    });
    for line in weir.setup().read("error.log").lines() {
        let entry: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry.is_object(), "{line}");
    }
}

#[test]
fn usr1_reopens_files_that_were_moved_away() {
    let log = "{ error: { file: '{dir}/error.log' }, access: { file: '{dir}/access.log', format: combined } }";
    let weir = start(Setup::new(), log);
    weir.get("/first");
    weir.access_lines(1);
    for file in ["access.log", "error.log"] {
        let from = weir.dir().join(file);
        fs::rename(&from, from.with_extension("old")).expect("rename");
    }
    weir.signal(Signal::SIGUSR1);
    for file in ["access.log", "error.log"] {
        let path = weir.dir().join(file);
        eventually(PATIENCE, || path.exists());
    }
    weir.get("/second");
    assert!(weir.access_lines(1)[0].contains("/second"));
    assert!(!weir.setup().read("access.old").contains("/second"));
}

#[test]
fn no_line_is_lost_over_usr1() {
    const REQUESTS: usize = 300;
    let weir = Weir::start_site("routes: [{ respond: { body: hello } }]");
    let log = weir.dir().join("access.log");
    let mut connection = weir.connect();
    for i in 0..REQUESTS {
        connection.fetch(&get(&format!("/{i}"))).expect("an answer");
        if i % 100 == 50 {
            fs::rename(&log, log.with_extension(i.to_string())).expect("rename");
            weir.signal(Signal::SIGUSR1);
            eventually(PATIENCE, || log.exists());
        }
    }
    let all = || {
        ["log", "50", "150", "250"]
            .map(|extension| weir.setup().read(&format!("access.{extension}")))
            .concat()
    };
    eventually(PATIENCE, || all().lines().count() == REQUESTS);
}

#[test]
fn last_lines_are_written_before_the_process_ends() {
    let mut weir = Weir::start_site("routes: [{ respond: { body: hello } }]");
    for _ in 0..100 {
        weir.get("/");
    }
    weir.signal(Signal::SIGTERM);
    assert!(weir.wait().success());
    assert_eq!(weir.access_log().lines().count(), 100);
}

#[test]
fn bad_requests_are_logged() {
    let weir = Weir::start_site("routes: [{ respond: { body: hello } }]");
    weir.fetch(&Request::new("GET", "/../x"));
    assert!(weir.access_lines(1)[0].contains(" 400 "));
}

/// A weir to which `head` was sent, once the answer to it, if any, was read.
fn refusing(format: &str, head: &[u8]) -> Weir {
    let log = format!("{{ access: {{ file: '{{dir}}/access.log', format: '{format}' }} }}");
    let weir = start(Setup::new(), &log);
    let mut connection = weir.connect();
    connection.send(head).expect("send");
    connection.read().expect("an answer");
    weir
}

#[test]
fn requests_that_cannot_be_read_are_logged() {
    for (head, request) in [
        ("GET\r\n\r\n", "GET"),
        (
            "GET /a b HTTP/1.1\r\nBad Header: 1\r\n\r\n",
            "GET /a b HTTP/1.1",
        ),
        ("\x16\x03\x01\"\r\n\r\n", r"\x16\x03\x01\x22"),
    ] {
        let weir = refusing("combined", head.as_bytes());
        let line = &weir.access_lines(1)[0];
        let rest = line.strip_prefix("127.0.0.1 - - [").expect(line);
        let rest = rest.split_once("] ").expect(line).1;
        let (start, end) = (format!("\"{request}\" 400 "), " \"-\" \"-\" bad_request");
        assert!(rest.starts_with(&start) && rest.ends_with(end), "{line}");
    }
}

#[test]
fn requests_that_cannot_be_read_are_logged_as_json() {
    let head = b"PUT /a?b HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    let weir = refusing("json", head);
    let line = &weir.access_lines(1)[0];
    let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    for (key, value) in [
        ("client", Value::from("127.0.0.1")),
        ("method", "PUT".into()),
        ("uri", "/a?b".into()),
        ("protocol", "HTTP/1.1".into()),
        ("host", Value::Null),
        ("status", 400.into()),
        ("failure", "bad_request".into()),
        ("listener", "http".into()),
    ] {
        assert_eq!(entry[key], value, "{key} in {line}");
    }
    assert!(entry["bytes"].as_u64() > Some(0), "{line}");
}

#[test]
fn garbage_after_a_request_is_logged_after_it() {
    let weir = Weir::start_site("routes: [{ respond: { body: hello } }]");
    let mut connection = weir.connect();
    let pipeline = "GET /good HTTP/1.1\r\nHost: a\r\n\r\nGARBAGE\r\n\r\n";
    connection.send(pipeline.as_bytes()).expect("send");
    let lines = weir.access_lines(2);
    assert!(
        lines[0].contains("\"GET /good HTTP/1.1\" 200 "),
        "{lines:?}"
    );
    assert!(
        lines[1].contains(" 400 ") && lines[1].ends_with(" bad_request"),
        "{lines:?}"
    );
}

#[test]
fn client_that_leaves_in_the_middle_of_a_header_is_logged_and_one_that_says_nothing_is_not() {
    let weir = Weir::start_site("routes: [{ respond: { body: hello } }]");
    drop(weir.connect());
    for part in ["GET /half HTTP/1.1\r\nHo", "P"] {
        let mut connection = weir.connect();
        connection.send(part.as_bytes()).expect("send");
    }
    let mut lines = weir.access_lines(2);
    lines.sort();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(
        lines
            .iter()
            .all(|line| line.contains("\" 499 0 ") && line.ends_with(" client_closed")),
        "{lines:?}"
    );
    assert!(
        lines.concat().contains("\"GET /half HTTP/1.1\" "),
        "{lines:?}"
    );
}
