//! Static files: through a route's `files:` and through a companion `static:` service, which share one core.

use std::os::unix::fs::symlink;

use crate::harness::client::{Connection, Request, Response, get, post};
use crate::harness::{Setup, Weir};

const DATA: &str = "0123456789";

/// A weir that serves the same folder in both ways, and a look at the folder's surroundings.
struct Site {
    weir: Weir,
}

impl Site {
    fn start() -> Site {
        let setup = Setup::new()
            .file("www/index.html", "<p>home</p>")
            .file("www/data.txt", DATA)
            .file("www/style.css", "p {}")
            .file("www/app.js", "1")
            .file("www/picture.svg", "<svg/>")
            .file("www/module.wasm", "\0asm")
            .file("www/unknown.qqq", "?")
            .file("www/with space+ü.txt", "odd name")
            .file("www/sub/index.html", "<p>sub</p>")
            .file("www/plain/file.txt", "no index here")
            .file("www/empty.txt", "")
            .file("www/.env", "SECRET=1")
            .file("www/.git/config", "secret")
            .file("www/.well-known/token", "public")
            .file("secret.txt", "secret")
            .file("www-other/secret.txt", "secret");
        let www = setup.dir().join("www");
        symlink("data.txt", www.join("inside.txt")).expect("link");
        symlink("../secret.txt", www.join("outside.txt")).expect("link");
        symlink("..", www.join("outside")).expect("link");
        symlink("loop", www.join("loop")).expect("link");
        let weir = setup.start(
            "
            listeners: { http: { bind: '127.0.0.1:{http}' } }
            sites: { main: { hosts: ['*'], routes: [{ files: ./www }] } }
            static: { assets: { bind: '127.0.0.1:{static}', root: ./www } }
            ",
        );
        Site { weir }
    }

    /// The answers of both ways; what must be the same is left to the test.
    fn fetch(&self, request: &Request) -> [Response; 2] {
        ["http", "static"].map(|listener| {
            let connection = Connection::tcp(self.weir.address(listener));
            let answer = connection.expect("connect").fetch(request);
            answer.unwrap_or_else(|error| panic!("no answer of {listener} to {request:?}: {error}"))
        })
    }

    fn get(&self, target: &str) -> [Response; 2] {
        self.fetch(&get(target))
    }

    #[track_caller]
    fn assert_status(&self, target: &str, status: u16) {
        for answer in self.get(target) {
            assert_eq!(answer.status, status, "{target}: {answer:?}");
            assert!(
                !String::from_utf8_lossy(&answer.body).contains("secret"),
                "{target}"
            );
        }
    }
}

#[test]
fn file_is_served_with_length_type_and_validators() {
    for answer in Site::start().get("/data.txt") {
        assert_eq!((answer.status, answer.text()), (200, DATA));
        assert_eq!(answer.header("content-length"), Some("10"));
        assert!(
            answer
                .header("content-type")
                .expect("a type")
                .starts_with("text/plain")
        );
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
        assert!(answer.header("etag").expect("a tag").ends_with('"'));
        let date = answer.header("last-modified").expect("a date");
        httpdate::parse_http_date(date).expect("an HTTP date");
        assert_eq!(answer.headers.all("server"), ["weir"]);
    }
}

#[test]
fn type_follows_the_extension() {
    let site = Site::start();
    for (target, kind) in [
        ("/index.html", "text/html"),
        ("/style.css", "text/css"),
        ("/app.js", "text/javascript"),
        ("/picture.svg", "image/svg+xml"),
        ("/module.wasm", "application/wasm"),
        ("/unknown.qqq", "application/octet-stream"),
    ] {
        for answer in site.get(target) {
            let got = answer.header("content-type").expect("a type");
            assert!(got.starts_with(kind), "{target}: {got}");
        }
    }
}

#[test]
fn folder_is_its_index() {
    let site = Site::start();
    for (target, text) in [("/", "<p>home</p>"), ("/sub/", "<p>sub</p>")] {
        for answer in site.get(target) {
            assert_eq!((answer.status, answer.text()), (200, text), "{target}");
        }
    }
}

#[test]
fn folder_without_slash_is_redirected() {
    let site = Site::start();
    for answer in site.get("/sub?q=1") {
        assert_eq!(answer.status, 301);
        let location = answer.header("location").expect("a location");
        assert!(location.ends_with("/sub/?q=1"), "{location}");
    }
    for answer in site.get("//sub") {
        // `//sub/` would be another host
        let location = answer.header("location").unwrap_or_default();
        assert!(!location.starts_with("//"), "{location}");
    }
}

#[test]
fn folder_without_index_is_forbidden_or_not_found() {
    for answer in Site::start().get("/plain/") {
        assert!([403, 404].contains(&answer.status), "{answer:?}");
        assert!(!answer.text().contains("file.txt"));
    }
}

#[test]
fn names_are_percent_decoded() {
    for answer in Site::start().get("/with%20space+%C3%BC.txt?query") {
        assert_eq!((answer.status, answer.text()), (200, "odd name"));
    }
}

#[test]
fn missing_file_is_not_found() {
    let site = Site::start();
    for target in ["/none", "/data.txt/", "/data.txt/x", "/sub/none"] {
        site.assert_status(target, 404);
    }
}

#[test]
fn empty_file_is_served() {
    for answer in Site::start().get("/empty.txt") {
        assert_eq!(
            (answer.status, answer.complete, answer.length),
            (200, true, 0)
        );
        assert_eq!(answer.header("content-length"), Some("0"));
    }
}

#[test]
fn head_has_the_headers_of_get() {
    let site = Site::start();
    let heads = site.fetch(&Request::new("HEAD", "/data.txt"));
    for (head, got) in heads.iter().zip(site.get("/data.txt")) {
        assert_eq!(head.status, 200);
        for name in ["content-length", "content-type", "etag", "last-modified"] {
            assert_eq!(head.header(name), got.header(name), "{name}");
        }
    }
}

#[test]
fn other_methods_are_not_allowed() {
    let site = Site::start();
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let mut request = post("/data.txt", "x");
        request.method = method.to_owned();
        for answer in site.fetch(&request) {
            assert_eq!(answer.status, 405, "{method}");
            let allow = answer.header("allow").expect("the allowed methods");
            assert!(allow.contains("GET") && allow.contains("HEAD"), "{allow}");
        }
    }
}

#[test]
fn unchanged_file_is_not_sent_again() {
    let site = Site::start();
    let [first, _] = site.get("/data.txt");
    let tag = first.header("etag").expect("a tag");
    let date = first.header("last-modified").expect("a date");
    for (name, value) in [
        ("If-None-Match", tag),
        ("If-None-Match", "*"),
        (
            "If-None-Match",
            &format!("\"other\", W/{}", tag.trim_start_matches("W/")),
        ),
        ("If-Modified-Since", date),
    ] {
        for answer in site.fetch(&get("/data.txt").header(name, value)) {
            assert_eq!((answer.status, answer.length), (304, 0), "{name}: {value}");
            assert_eq!(answer.header("etag"), Some(tag));
        }
    }
}

#[test]
fn changed_file_is_sent() {
    let site = Site::start();
    let [first, _] = site.get("/data.txt");
    let date = first.header("last-modified").expect("a date");
    let request = get("/data.txt").header("If-None-Match", "\"other\"");
    // If-None-Match decides where both are given (RFC 9110 section 13.2.2)
    for request in [request.clone(), request.header("If-Modified-Since", date)] {
        for answer in site.fetch(&request) {
            assert_eq!((answer.status, answer.text()), (200, DATA));
        }
    }
}

#[test]
fn failed_precondition_is_told() {
    let site = Site::start();
    for (name, value) in [
        ("If-Match", "\"other\""),
        ("If-Unmodified-Since", "Mon, 01 Jan 1990 00:00:00 GMT"),
    ] {
        for answer in site.fetch(&get("/data.txt").header(name, value)) {
            assert_eq!(answer.status, 412, "{name}");
        }
    }
}

#[test]
fn single_range_is_served_alone() {
    let site = Site::start();
    for (range, part, content_range) in [
        ("bytes=0-0", "0", "bytes 0-0/10"),
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=7-", "789", "bytes 7-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=5-100", "56789", "bytes 5-9/10"),
        ("bytes=-100", DATA, "bytes 0-9/10"),
    ] {
        for answer in site.fetch(&get("/data.txt").header("Range", range)) {
            assert_eq!((answer.status, answer.text()), (206, part), "{range}");
            assert_eq!(answer.header("content-range"), Some(content_range));
            assert_eq!(
                answer.header("content-length"),
                Some(part.len().to_string().as_str())
            );
        }
    }
}

#[test]
fn range_beyond_the_end_is_not_satisfiable() {
    let site = Site::start();
    for range in ["bytes=10-", "bytes=99-100", "bytes=-0"] {
        for answer in site.fetch(&get("/data.txt").header("Range", range)) {
            assert_eq!(answer.status, 416, "{range}");
            assert_eq!(answer.header("content-range"), Some("bytes */10"));
        }
    }
}

#[test]
fn range_that_makes_no_sense_is_ignored() {
    let site = Site::start();
    for range in ["bytes=4-2", "lines=1-2", "bytes=", "bytes=a-b", "bytes 0-1"] {
        for answer in site.fetch(&get("/data.txt").header("Range", range)) {
            assert_eq!((answer.status, answer.text()), (200, DATA), "{range}");
        }
    }
}

#[test]
fn range_of_a_changed_file_is_the_whole_file() {
    let site = Site::start();
    let [first, _] = site.get("/data.txt");
    let request = get("/data.txt").header("Range", "bytes=0-0");
    for answer in site.fetch(&request.clone().header("If-Range", "\"other\"")) {
        assert_eq!((answer.status, answer.text()), (200, DATA));
    }
    let tag = first.header("etag").expect("a tag");
    if !tag.starts_with("W/") {
        for answer in site.fetch(&request.header("If-Range", tag)) {
            assert_eq!(answer.status, 206);
        }
    }
}

#[test]
fn no_encoding_escapes_from_the_root() {
    let site = Site::start();
    for target in [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/%2e%2e/secret.txt",
        "/%2e%2e%2fsecret.txt",
        "/sub/../../secret.txt",
        "/sub/..%2f..%2fsecret.txt",
        "/./../secret.txt",
        "//../secret.txt",
        "/../www-other/secret.txt",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/%252e%252e/secret.txt",
        "/..;/secret.txt",
        "/data.txt%00.html",
        "/%c0%ae%c0%ae/secret.txt",
        "/%ff",
    ] {
        for answer in site.get(target) {
            assert!([400, 404].contains(&answer.status), "{target}: {answer:?}");
            assert!(!answer.text().contains("secret"), "{target}");
        }
    }
}

#[test]
fn links_that_leave_the_root_are_not_followed() {
    let site = Site::start();
    for answer in site.get("/inside.txt") {
        assert_eq!((answer.status, answer.text()), (200, DATA));
    }
    for target in ["/outside.txt", "/outside/secret.txt", "/outside/", "/loop"] {
        for answer in site.get(target) {
            assert!([403, 404].contains(&answer.status), "{target}: {answer:?}");
        }
    }
}

#[test]
fn dot_files_are_hidden_but_for_well_known() {
    let site = Site::start();
    for target in ["/.env", "/.git/config", "/sub/../.env", "/%2eenv"] {
        site.assert_status(target, 404);
    }
    for answer in site.get("/.well-known/token") {
        assert_eq!((answer.status, answer.text()), (200, "public"));
    }
}

#[test]
fn what_is_no_regular_file_is_not_opened() {
    let site = Site::start();
    let fifo = site.weir.dir().join("www/fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("make a fifo");
    for answer in site.get("/fifo") {
        assert!([403, 404].contains(&answer.status), "{answer:?}");
    }
}

#[test]
fn prefix_of_the_route_is_part_of_the_file_name_unless_stripped() {
    let setup = Setup::new()
        .file("www/a/file.txt", "with prefix")
        .file("www/file.txt", "without");
    let weir = setup.start_site(
        "
        routes:
          - match: { prefix: /a }
            files: { root: ./www }
          - match: { prefix: /b }
            rewrite: { strip_prefix: /b }
            files: { root: ./www }
        ",
    );
    assert_eq!(weir.get("/a/file.txt").text(), "with prefix");
    assert_eq!(weir.get("/b/file.txt").text(), "without");
}

#[test]
fn other_index_names_are_tried_in_order() {
    let setup = Setup::new().file("www/b.html", "b").file("www/c.html", "c");
    let weir =
        setup.start_site("routes: [{ files: { root: ./www, index: [a.html, b.html, c.html] } }]");
    assert_eq!(weir.get("/").text(), "b");
}

#[test]
fn file_service_keeps_connections() {
    let site = Site::start();
    for listener in ["http", "static"] {
        let mut connection = Connection::tcp(site.weir.address(listener)).expect("connect");
        for target in ["/data.txt", "/none", "/sub/", "/data.txt"] {
            connection
                .fetch(&get(target))
                .expect("an answer on the same connection");
        }
    }
}

#[test]
fn big_file_is_served_in_full() {
    const LENGTH: usize = 20_000_000;
    let setup = Setup::new().file("www/big", vec![b'x'; LENGTH]);
    let weir = setup.start_site("routes: [{ files: ./www }]");
    let mut connection = weir.connect();
    connection.send_request(&get("/big")).expect("send");
    let answer = connection.read_counting().expect("an answer");
    assert_eq!((answer.length, answer.complete), (LENGTH as u64, true));
}

#[test]
fn bytes_that_are_not_http_are_refused_alike() {
    let site = Site::start();
    for listener in ["http", "static"] {
        let mut connection = Connection::tcp(site.weir.address(listener)).expect("connect");
        connection.send(b"GET\r\n\r\n").expect("send");
        let answer = connection.read().expect("an answer");
        assert_eq!(answer.status, 400, "{listener}");
        assert_eq!(answer.header("server"), Some("weir"), "{listener}");
        assert!(answer.text().contains("400 Bad Request"), "{answer:?}");
        connection.read_close().expect("a clean end");
    }
    let lines = site.weir.access_lines(2);
    assert!(
        lines.iter().all(|line| line.contains("\"GET\" 400 ")),
        "{lines:?}"
    );
}
