//! Access log, error log, and what USR1 does.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use nix::sys::signal::Signal;
use regex::Regex;
use serde_json::Value;

use crate::harness::client::{Request, get, post};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually, holds_within};
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
    // Who ends its side at once may only have nothing more to say.
    let waits = Duration::from_millis(1000);
    assert!(!holds_within(waits, || !weir.access_log().is_empty()));
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

#[test]
fn site_and_route_have_access_logs_of_their_own() {
    let weir = Setup::new().start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        log: { access: { file: '{dir}/access.log', format: '$host $uri' } }
        sites:
          shop:
            hosts: [shop.example]
            access_log: { file: shop.log, format: '$status $uri' }
            routes:
              - { match: { path: /health }, access_log: off, respond: well }
              - match: { regex: '^/u/(?<id>[0-9]+)$' }
                access_log:
                  - { file: users.log, format: '$id' }
                  - { file: odd.log, format: '$uri', when: '$id ~ [13579]$' }
                respond: user
              - { match: { path: / }, respond: shop }
          main: { hosts: ['*'], routes: [{ match: { path: / }, respond: hello }] }
        ",
    );
    for (host, path, status) in [
        ("shop.example", "/health", 200),
        ("shop.example", "/u/7", 200),
        ("shop.example", "/u/8", 200),
        ("shop.example", "/", 200),
        ("shop.example", "/none", 404),
        ("other.example", "/", 200),
        ("other.example", "/none", 404),
    ] {
        let answer = weir.fetch(&get(path).host(host));
        assert_eq!(answer.status, status, "{host}{path}");
    }
    for (file, lines) in [
        ("shop.log", &["200 /", "404 /none"][..]),
        ("users.log", &["7", "8"]),
        ("odd.log", &["/u/7"]),
        ("access.log", &["other.example /", "other.example /none"]),
    ] {
        // those of different threads may change places
        let mut found = weir.lines(file, lines.len());
        found.sort();
        assert_eq!(found, lines, "{file}");
    }
}

#[test]
fn access_logs_of_sites_follow_a_reload_and_usr1() {
    let document = |site: &str| {
        format!(
            "
            listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}
            log: {{ access: {{ file: '{{dir}}/access.log', format: '$uri' }} }}
            sites: {{ main: {{ hosts: ['*'], {site} routes: [{{ respond: ok }}] }} }}
            "
        )
    };
    let weir = Setup::new().start(&document(""));
    weir.get("/1");
    let own = "access_log: { file: main.log, format: '$uri' },";
    weir.reload(&document(own));
    weir.get("/2");
    assert_eq!(weir.lines("main.log", 1), ["/2"]);
    let log = weir.dir().join("main.log");
    fs::rename(&log, log.with_extension("old")).expect("rename");
    weir.signal(Signal::SIGUSR1);
    eventually(PATIENCE, || log.exists());
    weir.get("/3");
    assert_eq!(weir.lines("main.log", 1), ["/3"]);
    weir.reload(&document("access_log: off,"));
    weir.get("/4");
    weir.reload(&document(""));
    weir.get("/5");
    let mut lines = weir.lines("access.log", 2);
    lines.sort();
    assert_eq!(lines, ["/1", "/5"]);
}

#[test]
fn lines_go_to_sockets_and_to_syslog() {
    let setup = Setup::new();
    let read = |socket: &UnixDatagram| {
        let mut message = [0; 1024];
        let length = socket.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let socket = |name: &str| {
        let socket = UnixDatagram::bind(setup.dir().join(name)).expect("bind");
        let patience = Some(PATIENCE);
        socket.set_read_timeout(patience).expect("set");
        socket
    };
    let (collector, syslog) = (socket("collector.sock"), socket("syslog.sock"));
    let weir = start(
        setup,
        "{ access: [
            { to: 'unix:{dir}/collector.sock', format: '$uri' },
            { syslog: { server: 'unix:{dir}/syslog.sock', facility: local0, severity: notice, tag: shop }, format: '$status' } ] }",
    );
    weir.get("/a");
    assert_eq!(read(&collector), "/a");
    let line = read(&syslog);
    // local0.notice: 16 * 8 + 5
    assert!(
        line.starts_with("<133>") && line.ends_with(" shop: 200"),
        "{line}"
    );
}

#[test]
fn lines_wait_for_a_collector_that_is_not_there() {
    let weir = start(
        Setup::new().allow("collector.sock"),
        "{ access: { to: 'unix:{dir}/collector.sock', format: '$uri' } }",
    );
    weir.get("/a");
    weir.get("/b");
    let listener = UnixListener::bind(weir.dir().join("collector.sock")).expect("bind");
    let mut lines = BufReader::new(listener.accept().expect("accept").0).lines();
    let mut line = || lines.next().expect("a line").expect("read");
    let mut lines = [line(), line()];
    lines.sort();
    assert_eq!(lines, ["/a", "/b"]);
}

#[test]
fn secrets_are_left_out() {
    let weir = start(
        Setup::new(),
        "{ access: { file: '{dir}/access.log', redact: { args: [token], headers: [X-Key] },
            format: '$request|$args|$http_referer|$http_x_key' } }",
    );
    let request = get("/a?b=c&token=s3cret&d")
        .header("Referer", "http://x/?token=s3cret")
        .header("X-Key", "s3cret");
    weir.fetch(&request);
    assert_eq!(
        weir.access_lines(1),
        ["GET /a?b=c&token=***&d HTTP/1.1|b=c&token=***&d|http://x/?token=***|***"]
    );
}

#[test]
fn a_share_of_the_requests_is_logged() {
    let weir = start(
        Setup::new(),
        "{ access: [{ file: '{dir}/some.log', sample: 50%, format: '$uri' },
            { file: '{dir}/none.log', sample: 0%, format: '$uri' },
            { file: '{dir}/all.log', sample: 100%, format: '$uri' }] }",
    );
    let mut connection = weir.connect();
    for _ in 0..400 {
        connection.fetch(&get("/")).expect("an answer");
    }
    assert_eq!(weir.lines("all.log", 400).len(), 400);
    let some = weir.lines("some.log", 100).len();
    // one time in 10^12 it is beyond seven standard deviations, which are ten lines each
    assert!((130..=270).contains(&some), "{some}");
    assert_eq!(weir.setup().read("none.log"), "");
}
