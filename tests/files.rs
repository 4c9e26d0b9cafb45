//! Static files: through a route's `files:` and through a companion `static:` service, which share one core.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;

use crate::harness::client::{Connection, Http2, Request, Response, get, post};
use crate::harness::origin::Origin;
use crate::harness::{Setup, Weir};

const DATA: &str = "0123456789";

/// A weir that serves the same folder in both ways, and a look at the folder's surroundings.
pub struct Site {
    pub weir: Weir,
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
        Site::of(setup, "hidden: false")
    }

    /// With `www` of the setup, and these keys beside `root`.
    pub fn of(setup: Setup, keys: &str) -> Site {
        let weir = setup.start(&format!(
            "
            listeners:
              http: {{ bind: '127.0.0.1:{{http}}' }}
              https: {{ bind: '127.0.0.1:{{https}}', tls: {{}} }}
            sites:
              main:
                hosts: ['*']
                tls: {{ self_signed: true }}
                routes: [{{ files: {{ root: ./www, {keys} }} }}]
            static: {{ assets: {{ bind: '127.0.0.1:{{static}}', root: ./www, {keys} }} }}
            "
        ));
        Site { weir }
    }

    /// The answers of both ways; what must be the same is left to the test.
    pub fn fetch(&self, request: &Request) -> [Response; 2] {
        ["http", "static"].map(|listener| {
            let connection = Connection::tcp(self.weir.address(listener));
            let answer = connection.expect("connect").fetch(request);
            answer.unwrap_or_else(|error| panic!("no answer of {listener} to {request:?}: {error}"))
        })
    }

    pub fn get(&self, target: &str) -> [Response; 2] {
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
fn names_of_headers_are_spelled_as_usual() {
    let site = Site::start();
    let mut client = TcpStream::connect(site.weir.address("static")).expect("connect");
    client
        .write_all(b"HEAD /data.txt HTTP/1.0\r\nRange: bytes=0-1\r\n\r\n")
        .expect("send");
    let mut head = String::new();
    client.read_to_string(&mut head).expect("an answer");
    let is_spelled = |line: &str| line.starts_with(|first: char| first.is_ascii_uppercase());
    assert!(
        head.lines().filter(|line| !line.is_empty()).all(is_spelled),
        "{head}"
    );
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
fn head_is_get_without_the_body() {
    let setup = Setup::new()
        .file("www/data.txt", DATA)
        .file("www/data.txt.gz", "compressed")
        .file("www/large.bin", vec![0; 300_000])
        .file("www/sub/index.html", "sub")
        .file("www/list/x", "x")
        .file("www/404.html", "no such file");
    let site = Site::of(
        setup,
        "listing: true, precompressed: [gzip], errors: { 404: /404.html }",
    );
    let mut http2 = site.weir.connect_http2("localhost");
    for (target, status, header) in [
        ("/data.txt", 200, ("Accept-Encoding", "gzip")),
        ("/data.txt", 304, ("If-None-Match", "*")),
        ("/data.txt", 412, ("If-Match", "\"other\"")),
        ("/large.bin", 200, ("Accept-Encoding", "br")),
        ("/sub/", 200, ("Accept", "*/*")),
        ("/sub", 301, ("Accept", "*/*")),
        ("/list/", 200, ("Accept", "*/*")),
        ("/list/", 200, ("Accept", "application/json")),
        ("/none", 404, ("Accept", "*/*")),
    ] {
        let (name, value) = header;
        let [get, head] =
            ["GET", "HEAD"].map(|method| Request::new(method, target).header(name, value));
        let [gets, heads] = [&get, &head].map(|request| {
            let [route, companion] = site.fetch(request);
            let over_http2 = http2.fetch(request).expect("an answer");
            [route, companion, over_http2]
        });
        for (head, got) in heads.iter().zip(&gets) {
            let of = |answer: &Response| {
                let mut lines = answer.headers.0.clone();
                lines.retain(|(name, _)| !name.eq_ignore_ascii_case("date"));
                lines.sort();
                (answer.status, lines)
            };
            assert_eq!(of(head), of(got), "{target} {header:?}");
            assert_eq!((head.status, head.length), (status, 0), "{target}");
            if status == 304 {
                assert_eq!(got.length, 0);
            } else {
                let length = got.length.to_string();
                assert_eq!(head.header("content-length"), Some(length.as_str()));
            }
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
fn no_spelling_escapes_from_the_root() {
    let site = Site::start();
    let dir = site.weir.dir().display().to_string();
    let spellings = spellings(&dir);
    assert!(spellings.len() > 200);
    let judge = |target: &str, answer: &Response| {
        assert!([400, 404].contains(&answer.status), "{target}: {answer:?}");
        let said = format!(
            "{}{}",
            answer.headers,
            String::from_utf8_lossy(&answer.body)
        );
        for word in ["secret", &dir, "root:", "localhost"] {
            assert!(!said.contains(word), "{target}: {said}");
        }
    };
    for listener in ["http", "static"] {
        let address = site.weir.address(listener);
        let mut kept = None;
        for target in &spellings {
            let mut connection = kept
                .take()
                .unwrap_or_else(|| Connection::tcp(address).expect("connect"));
            let answer = connection.fetch(&get(target)).expect("an answer");
            judge(target, &answer);
            // 400 ends a connection
            kept = Some(connection).filter(|_| answer.status != 400);
        }
        // bytes that are no text
        for target in [&b"/\xc0\xae\xc0\xae/secret.txt"[..], b"/..\xff/secret.txt"] {
            let mut connection = Connection::tcp(address).expect("connect");
            let request = [b"GET ", target, b" HTTP/1.1\r\nHost: localhost\r\n\r\n"];
            connection.send(&request.concat()).expect("send");
            let answer = connection.read().expect("an answer");
            judge("no text", &answer);
        }
    }
    let is_sendable = |target: &&String| {
        format!("https://localhost{target}")
            .parse::<http::Uri>()
            .is_ok()
    };
    let plain = Http2::tcp(site.weir.address("static")).expect("connect");
    for mut connection in [site.weir.connect_http2("localhost"), plain] {
        let paths = spellings.iter().filter(|target| target.starts_with('/'));
        for target in paths.filter(is_sendable) {
            judge(target, &connection.fetch(&get(target)).expect("an answer"));
        }
    }
}

/// Targets that have led out of some server's root, or that say where on the machine something lies (`dir`).
fn spellings(dir: &str) -> Vec<String> {
    const UP: [&str; 18] = [
        "..",
        "%2e%2e",
        ".%2E",
        "%252e%252e",
        "%25252e%25252e",
        "%c0%ae%c0%ae",
        "%e0%80%ae%e0%80%ae",
        "%u002e%u002e",
        "%ef%bc%8e%ef%bc%8e",
        "..;",
        "..;a=b",
        ";..",
        "..%00",
        "..%20",
        "..%09",
        "..%3b",
        "...",
        "..%0d%0a",
    ];
    const SLASH: [&str; 11] = [
        "/",
        "%2f",
        "%252F",
        "\\",
        "%5c",
        "%255c",
        "%c0%af",
        "%ef%bc%8f",
        "%e2%88%95",
        "//",
        "/./",
    ];
    let mut spellings = Vec::new();
    for up in UP {
        for slash in SLASH {
            spellings.push(format!("/{up}{slash}secret.txt"));
            spellings.push(format!("/sub{slash}{up}{slash}{up}{slash}secret.txt"));
        }
    }
    let long = format!("/{}{}secret.txt", "x/".repeat(1000), "../".repeat(1001));
    let others = [
        "/sub/../../secret.txt",
        "//../secret.txt",
        "/../www-other/secret.txt",
        "/data.txt%00.html",
        "/data.txt/../../secret.txt",
        "/%ff",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/etc/passwd",
        "/proc/self/environ",
        "/data.txt::$DATA",
        "/data.txt.",
        "/data.txt%20",
        "/data.txt;a=b",
        "/C:/secret.txt",
        "http://localhost/../secret.txt",
        "http://localhost/%2e%2e/secret.txt",
        "http://localhost/..%2fsecret.txt",
        "http://other/../../secret.txt",
        "file:///etc/passwd",
        &format!("{dir}/secret.txt"),
        &format!("/{dir}/secret.txt"),
        &format!("/{}", "a".repeat(300)),
        &long,
    ];
    spellings.extend(others.map(str::to_owned));
    spellings
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

#[test]
fn application_answers_for_what_is_no_file() {
    let setup = Setup::new()
        .file("www/index.html", "app")
        .file("www/assets/app.js", "1")
        .file("www/docs/index.html", "docs");
    let site = Site::of(setup, "try: ['$uri', '$uri/', /index.html]");
    for (target, text) in [
        ("/", "app"),
        ("/users/42?tab=1", "app"),
        ("/assets/app.js", "1"),
        ("/assets/", "app"),
        ("/docs/", "docs"),
        ("/%2e%2e%5csecret", "app"),
    ] {
        for answer in site.get(target) {
            assert_eq!((answer.status, answer.text()), (200, text), "{target}");
        }
    }
    for answer in site.get("/docs?q") {
        assert_eq!(answer.header("location"), Some("/docs/?q"));
    }
    for answer in site.fetch(&post("/users", "x")) {
        assert_eq!(answer.status, 405);
    }
}

#[test]
fn variables_choose_among_folders() {
    let setup = Setup::new()
        .file("www/a.example/page", "of a")
        .file("www/shared/page", "shared");
    let site = Site::of(setup, "try: ['/$host$uri', '/shared$uri', =410]");
    for (target, host, status, text) in [
        ("/page", "a.example", 200, "of a"),
        ("/page", "b.example", 200, "shared"),
        ("/../page", "b.example", 400, ""),
        ("/none", "a.example", 410, ""),
    ] {
        for answer in site.fetch(&get(target).host(host)) {
            assert_eq!(answer.status, status, "{target} {host}");
            assert!(answer.text().contains(text), "{answer:?}");
        }
    }
}

#[test]
fn last_entry_of_try_leads_to_another_route() {
    let app = Origin::echo();
    let setup = Setup::new()
        .with("app", &app)
        .file("www/index.html", "home")
        .file("www/style.css", "p {}")
        .file("www/here", "a file after all");
    let weir = setup.start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{app}'] } }
        sites:
          main:
            hosts: ['*']
            headers: { response: { set: { X-Site: main } } }
            routes:
              - match: { prefix: /@app }
                rewrite: { strip_prefix: /@app }
                headers: { response: { set: { X-Route: app } } }
                proxy: app
              - match: { regex: '^/page-(?<n>[0-9]+)$' }
                respond: 'page $n'
              - match: { prefix: /pages }
                files: { root: ./www, try: ['$uri', '/page-$arg_n'] }
              - match: { prefix: /moved }
                files: { root: ./www, try: ['$uri', /here] }
              - match: { prefix: /up }
                files: { root: ./www, try: ['$uri', '/$arg_n'] }
              - headers: { response: { set: { X-Files: served } } }
                files: { root: ./www, try: ['$uri', '$uri/', '/@app$uri'] }
        ",
    );
    for (target, text) in [
        ("/", "home"),
        ("/style.css", "p {}"),
        ("/moved/x", "a file after all"),
        ("/pages/x?n=7", "page 7"),
    ] {
        let answer = weir.get(target);
        assert_eq!((answer.status, answer.text()), (200, text), "{target}");
    }
    let answer = weir.fetch(&post("/cart/a%20b%2541?q=%20", "a body"));
    assert_eq!(answer.status, 200);
    assert!(answer.text().ends_with("a body"), "{answer:?}");
    assert_eq!(answer.header("x-route"), Some("app"));
    assert_eq!(answer.header("x-site"), Some("main"));
    assert_eq!(answer.header("x-files"), None);
    let asked = app.request();
    assert_eq!(asked.method(), "POST");
    assert_eq!(asked.target(), "/cart/a%20b%2541?q=%20");
    // a method that no file takes is refused where there is a file
    assert_eq!(weir.fetch(&post("/style.css", "x")).status, 405);
    // what a client puts into a path does not get it out of the root
    for target in ["/up?n=../secret", "/up?n=x/../../secret", "/up?n=@app/../x"] {
        assert_eq!(weir.get(target).status, 404, "{target}");
    }
    assert_eq!(app.hits(), 1);
    let logged = weir.access_lines(9).join("\n");
    assert!(logged.contains("\"POST /cart/a%20b%2541?q=%20 HTTP/1.1\" 200"));
}

#[test]
fn routes_that_lead_to_each_other_end() {
    let setup = Setup::new().file("www/404.html", "lost");
    let files = |rest| format!("files: {{ root: ./www, {rest} }}");
    let (a, b) = (files("try: [/b/x]"), files("try: [/a/x]"));
    let own = files("try: [/none], errors: { 404: /404.html }");
    let weir = setup.start_site(&format!(
        "
        routes:
          - {{ match: {{ prefix: /a }}, {a} }}
          - {{ match: {{ prefix: /b }}, {b} }}
          - {own}
        "
    ));
    for target in ["/a/x", "/b/x"] {
        assert_eq!(weir.get(target).status, 404, "{target}");
    }
    // nothing but itself: its own answer
    let answer = weir.get("/own");
    assert_eq!((answer.status, answer.text()), (404, "lost"));
    assert_eq!(weir.fetch(&post("/own", "x")).status, 405);
}

#[test]
fn companion_has_no_other_route_to_lead_to() {
    let site = Site::of(Setup::new().file("www/a", "a"), "try: ['$uri', /none]");
    site.assert_status("/b", 404);
    for answer in site.fetch(&post("/b", "x")) {
        assert_eq!(answer.status, 405);
    }
}

#[test]
fn compressed_variant_is_chosen_by_accept_encoding() {
    let setup = Setup::new()
        .file("www/app.js", "plain")
        .file("www/app.js.br", "brotli")
        .file("www/app.js.gz", "gzipped")
        .file("www/photo.jpg", "jpeg");
    let site = Site::of(setup, "precompressed: [br, zstd, gzip]");
    for (accept, text, coding) in [
        ("gzip, deflate, br, zstd", "brotli", Some("br")),
        ("gzip", "gzipped", Some("gzip")),
        ("br;q=0.1, gzip", "gzipped", Some("gzip")),
        ("identity", "plain", None),
        ("*;q=0", "plain", None),
    ] {
        for answer in site.fetch(&get("/app.js").header("Accept-Encoding", accept)) {
            assert_eq!((answer.status, answer.text()), (200, text), "{accept}");
            assert_eq!(answer.header("content-encoding"), coding);
            assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
            let kind = answer.header("content-type");
            assert_eq!(kind, Some("text/javascript; charset=utf-8"));
            let range = get("/app.js")
                .header("Accept-Encoding", accept)
                .header("Range", "bytes=1-2")
                .header("If-Range", answer.header("etag").expect("a tag"));
            for part in site.fetch(&range) {
                assert_eq!((part.status, part.text()), (206, &text[1..3]));
                assert_eq!(part.header("content-encoding"), coding);
            }
        }
    }
    for answer in site.fetch(&get("/photo.jpg").header("Accept-Encoding", "br")) {
        assert_eq!(answer.header("vary"), None);
    }
}

#[test]
fn types_charset_cache_rules_and_pages_of_errors() {
    let setup = Setup::new()
        .file("www/index.html", "home")
        .file("www/assets/a.data", "1")
        .file("www/404.html", "<p>lost?")
        .file("www/405.json", "{}");
    let site = Site::of(
        setup,
        "types: { .data: text/csv }, charset: iso-8859-1, \
         cache_control: { '*.html': no-cache, '/assets/*': 'max-age=31536000, immutable' }, \
         errors: { 404: /404.html, 405: /405.json }",
    );
    for answer in site.get("/") {
        let kind = answer.header("content-type");
        assert_eq!(kind, Some("text/html; charset=iso-8859-1"));
        assert_eq!(answer.header("cache-control"), Some("no-cache"));
    }
    for answer in site.get("/assets/a.data") {
        let kind = answer.header("content-type");
        assert_eq!(kind, Some("text/csv; charset=iso-8859-1"));
        let rule = answer.header("cache-control");
        assert_eq!(rule, Some("max-age=31536000, immutable"));
    }
    for answer in site.get("/none") {
        assert_eq!((answer.status, answer.text()), (404, "<p>lost?"));
        assert_eq!(answer.header("cache-control"), None);
    }
    for answer in site.fetch(&post("/", "x")) {
        assert_eq!((answer.status, answer.text()), (405, "{}"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(answer.header("allow").is_some());
    }
}

#[test]
fn links_are_followed_as_far_as_the_key_says() {
    for (policy, inside, outside) in [
        ("follow_inside", 200, 404),
        ("follow", 200, 200),
        ("deny", 404, 404),
    ] {
        let setup = Setup::new()
            .file("www/file", "inside")
            .file("secret.txt", "secret");
        let www = setup.dir().join("www");
        symlink("file", www.join("inside")).expect("link");
        symlink("../secret.txt", www.join("outside")).expect("link");
        symlink("/dev/zero", www.join("zero")).expect("link");
        let site = Site::of(setup, &format!("symlinks: {policy}"));
        for (target, status) in [
            ("/file", 200),
            ("/inside", inside),
            ("/outside", outside),
            ("/../secret.txt", 400),
            ("/zero", 404),
        ] {
            for answer in site.get(target) {
                assert_eq!(answer.status, status, "{policy} {target}");
            }
        }
    }
}

#[test]
fn several_ranges_are_served_in_one_answer() {
    let big: Vec<u8> = (0..1_000_000u32).map(|i| (i % 251) as u8).collect();
    let setup = Setup::new().file("www/big.bin", &big);
    let site = Site::of(setup, "hidden: false");
    let mut http2 = site.weir.connect_http2("localhost");
    let request = get("/big.bin").header("Range", "bytes=-5,0-299999,500000-500009");
    let [route, companion] = site.fetch(&request);
    for answer in [route, companion, http2.fetch(&request).expect("an answer")] {
        assert_eq!((answer.status, answer.complete), (206, true));
        let length = answer.length.to_string();
        assert_eq!(answer.header("content-length"), Some(length.as_str()));
        let kind = answer.header("content-type").expect("a type");
        let boundary = kind
            .strip_prefix("multipart/byteranges; boundary=")
            .expect("several parts");
        let mut expected: Vec<u8> = Vec::new();
        for part in [999_995..1_000_000, 0..300_000, 500_000..500_010] {
            let line_end = if expected.is_empty() { "" } else { "\r\n" };
            let head = format!(
                "{line_end}--{boundary}\r\nContent-Type: application/octet-stream\r\n\
                 Content-Range: bytes {}-{}/1000000\r\n\r\n",
                part.start,
                part.end - 1
            );
            expected.extend(head.as_bytes());
            expected.extend(&big[part]);
        }
        expected.extend(format!("\r\n--{boundary}--\r\n").as_bytes());
        assert!(answer.body == expected, "{} bytes", answer.length);
    }
}

#[test]
fn absurd_ranges_cost_no_more_than_the_file() {
    let setup = Setup::new().file("www/big.bin", vec![b'x'; 1_000_000]);
    let site = Site::of(setup, "hidden: false");
    let overlapping = vec!["0-"; 90].join(",");
    let many: Vec<_> = (0..1000).map(|i| format!("{0}-{0}", i * 2)).collect();
    for (ranges, status) in [(overlapping, 206), (many.join(","), 200)] {
        let request = get("/big.bin").header("Range", &format!("bytes={ranges}"));
        for answer in site.fetch(&request) {
            assert_eq!((answer.status, answer.length), (status, 1_000_000));
        }
    }
}

#[test]
fn stripped_prefix_is_in_redirects_all_the_same() {
    let setup = Setup::new()
        .file("www/index.html", "root")
        .file("www/sub/index.html", "sub")
        .file("www/list/x", "x");
    let weir = setup.start_site(
        "
        routes:
          - match: { prefix: /docs }
            rewrite: { strip_prefix: /docs }
            files: { root: ./www, listing: true }
        ",
    );
    for (target, location) in [
        ("/docs", "/docs/"),
        ("/docs/sub?q=1", "/docs/sub/?q=1"),
        ("/docs//list", "/docs/list/"),
    ] {
        let answer = weir.get(target);
        assert_eq!(answer.status, 301, "{target}");
        assert_eq!(answer.header("location"), Some(location));
    }
    assert_eq!(weir.get("/docs/").text(), "root");
    assert_eq!(weir.get("/docs/sub/").text(), "sub");
    assert_eq!(weir.get("/sub/").status, 404);
    let page = weir.get("/docs/list/");
    assert!(page.text().contains("<title>Index of /docs/list/</title>"));
}

#[test]
fn names_that_no_file_has_are_not_found() {
    let site = Site::of(
        Setup::new().file("www/a.txt", "a"),
        "listing: true, precompressed: [br, gzip], try: ['$uri', '$uri/', '$uri.html']",
    );
    let long = format!("/{}", "x".repeat(5000));
    let deep = "/x".repeat(2000);
    for target in [
        &*long,
        &*deep,
        "/%5c",
        "/a.txt%5c",
        "/..%5c..%5c",
        "/%252e%252e/",
        "/%E2%80%AE",
    ] {
        for answer in site.get(target) {
            assert_eq!(answer.status, 404, "{target}");
        }
    }
    for target in [
        "/%00",
        "/a.txt%00.html",
        "/%ff",
        "/%2e%2e/",
        "/%2e%2e%2f",
        "/a/%2e%2e%2f%2e%2e/",
    ] {
        for answer in site.get(target) {
            assert_eq!(answer.status, 400, "{target}");
        }
    }
}

#[test]
fn what_could_block_or_is_no_file_is_never_waited_for() {
    let setup = Setup::new().file("www/a", "a").file("www/sub/x", "x");
    let www = setup.dir().join("www");
    for fifo in ["fifo", "a.br", "sub/index.html"] {
        nix::unistd::mkfifo(&www.join(fifo), nix::sys::stat::Mode::S_IRWXU).expect("make a fifo");
    }
    let _socket = std::os::unix::net::UnixListener::bind(www.join("socket")).expect("bind");
    symlink("/dev/zero", www.join("zero")).expect("link");
    symlink("/dev/tty", www.join("tty")).expect("link");
    let site = Site::of(
        setup,
        "symlinks: follow, precompressed: [br], listing: true, errors: { 403: /fifo }",
    );
    for target in ["/fifo", "/socket", "/zero", "/tty", "/fifo/", "/zero/"] {
        site.assert_status(target, 404);
    }
    for answer in site.fetch(&get("/a").header("Accept-Encoding", "br")) {
        assert_eq!(answer.text(), "a");
    }
    for answer in site.get("/?format=json") {
        let text = answer.text();
        assert!(text.contains("\"total\":2"), "{text}");
    }
    for answer in site.get("/sub/?format=json") {
        assert!(answer.text().contains("\"total\":1"), "{answer:?}");
    }
}
