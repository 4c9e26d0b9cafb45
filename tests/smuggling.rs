//! Requests that two programs could read in two ways: refused, and nothing of them reaches a backend.

use crate::harness::Weir;
use crate::harness::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Raw, fields, frame, get, post,
};
use crate::harness::origin::Origin;

/// What each is answered with, in a connection of its own.
const REFUSED: &[(&str, u16)] = &[
    // lengths
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n0\r\n\r\nX",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\nx",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 1\r\n\r\nx",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nx",
        400,
    ),
    // transfer codings
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    // lines
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\rHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\n X: a\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\n: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX(y): a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: \x1b[2J\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n", 400),
    // request lines
    ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /\r\n\r\n", 400),
    ("G:T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1.1\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    (
        "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJ / HTTP/1.1\r\nHost: a\r\n\r\n",
        501,
    ),
    // hosts
    ("GET / HTTP/1.1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400),
    ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
];

/// What follows the head of a chunked POST.
const BAD_CHUNKS: &[&str] = &[
    "\r\n\r\n",
    "g\r\n\r\n",
    "0x1\r\na\r\n0\r\n\r\n",
    "1 \r\na\r\n0\r\n\r\n",
    "1\na\n0\n\n",
    "1\r\na\n0\r\n\r\n",
    "1\r\nab0\r\n\r\n",
    "1;a\nb\r\na\r\n0\r\n\r\n",
    "1;a\rb\r\na\r\n0\r\n\r\n",
    "1000000000000000\r\na\r\n0\r\n\r\n",
    "0\r\n\n",
    "0\r\nX : y\r\n\r\n",
    "0\r\n:path: /x\r\n\r\n",
    "0\r\nContent-Length: 5\r\n\r\n",
    "0\r\nX: y\r\n folded\r\n\r\n",
];

fn start(app: &Origin) -> Weir {
    Weir::with("app", app).start_site("routes: [{ proxy: app }]")
}

/// The status of the first answer, after which the connection ends without another one.
#[track_caller]
fn only_status(weir: &Weir, bytes: &str) -> u16 {
    let mut connection = weir.connect();
    let sent = format!("{bytes}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
    connection.send(sent.as_bytes()).expect("send");
    let answer = connection
        .read()
        .unwrap_or_else(|e| panic!("{bytes:?}: {e}"));
    assert_eq!(answer.header("connection"), Some("close"), "{bytes:?}");
    let end = connection.read_close();
    end.unwrap_or_else(|e| panic!("after {bytes:?}: {e}"));
    answer.status
}

#[test]
fn ambiguous_requests_are_refused() {
    let app = Origin::echo();
    let weir = start(&app);
    for (bytes, status) in REFUSED {
        assert_eq!(only_status(&weir, bytes), *status, "{bytes:?}");
    }
    assert_eq!(app.hits(), 0);
    let lines = weir.access_lines(REFUSED.len());
    for status in [400, 501, 505] {
        let logged = lines
            .iter()
            .filter(|line| line.contains(&format!(" {status} ")));
        let refused = REFUSED.iter().filter(|(_, with)| *with == status);
        assert_eq!(logged.count(), refused.count(), "{lines:#?}");
    }
}

#[test]
fn chunks_that_are_none_are_refused() {
    let app = Origin::echo();
    let weir = start(&app);
    for body in BAD_CHUNKS {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(
            only_status(&weir, &format!("{head}{body}")),
            400,
            "{body:?}"
        );
    }
    // It may have heard of the first request, but neither seen its end nor the one behind it.
    assert_eq!(app.hits(), 0);
}

#[test]
fn what_is_only_unusual_is_one_request() {
    let app = Origin::echo();
    let weir = start(&app);
    for (bytes, body) in [
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", ""),
        ("GET / HTTP/1.1\nHost: a\n\n", ""),
        ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", ""),
        ("GET / HTTP/1.1\r\nhOST:\ta\t\r\n\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n", ""),
        (
            "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: CHUNKED\r\n\r\n01;x=y\r\nb\r\n00\r\nX-Sum: 1\r\n\r\n",
            "b",
        ),
    ] {
        let mut connection = weir.connect();
        let pipeline = format!("{bytes}GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
        connection.send(pipeline.as_bytes()).expect("send");
        let first = connection.read().expect("an answer");
        assert_eq!(first.status, 200, "{bytes:?}");
        assert!(
            first.text().ends_with(&format!("\r\n\r\n{body}")),
            "{bytes:?}"
        );
        let next = connection.read().expect("the next answer");
        assert!(next.text().starts_with("GET /next "), "{bytes:?}");
    }
    assert!(
        app.requests()
            .iter()
            .all(|request| !request.headers().contains("x-sum"))
    );
}

const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", "/");
const AUTHORITY: (&str, &str) = (":authority", "localhost");

/// Headers of HTTP/2 requests without a body.
const REFUSED_HTTP2: &[&[(&str, &str)]] = &[
    // paths
    &[METHOD, SCHEME, AUTHORITY],
    &[METHOD, SCHEME, AUTHORITY, PATH, PATH],
    &[METHOD, SCHEME, AUTHORITY, (":path", "")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "a")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "*")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "/a b")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "/a\tb")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "/a\0b")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "/a\x7fb")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "/ HTTP/1.1\r\nx: y")],
    &[METHOD, SCHEME, AUTHORITY, (":path", "http://localhost/")],
    &[
        METHOD,
        SCHEME,
        AUTHORITY,
        (":path", "//other@localhost:80/../.."),
    ],
    // methods and schemes
    &[SCHEME, AUTHORITY, PATH],
    &[METHOD, METHOD, SCHEME, AUTHORITY, PATH],
    &[(":method", "G T"), SCHEME, AUTHORITY, PATH],
    &[
        (":method", "GET / HTTP/1.1\r\nx: y"),
        SCHEME,
        AUTHORITY,
        PATH,
    ],
    &[
        (":method", "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJ"),
        SCHEME,
        AUTHORITY,
        PATH,
    ],
    &[METHOD, AUTHORITY, PATH],
    &[METHOD, (":scheme", "gopher"), AUTHORITY, PATH],
    &[METHOD, (":scheme", "http://x/"), AUTHORITY, PATH],
    // hosts
    &[METHOD, SCHEME, PATH],
    &[METHOD, SCHEME, PATH, (":authority", "")],
    &[METHOD, SCHEME, PATH, (":authority", "a b")],
    &[METHOD, SCHEME, PATH, (":authority", "a/b")],
    &[METHOD, SCHEME, PATH, (":authority", "user@localhost")],
    &[METHOD, SCHEME, PATH, (":authority", "localhost\r\nx: y")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("host", "other")],
    &[METHOD, SCHEME, PATH, ("host", "a"), ("host", "a")],
    &[METHOD, SCHEME, PATH, ("host", "a b")],
    // fields
    &[METHOD, SCHEME, PATH, ("x", "y"), AUTHORITY],
    &[METHOD, SCHEME, PATH, AUTHORITY, (":x", "y")],
    &[METHOD, SCHEME, PATH, AUTHORITY, (":status", "200")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("X", "y")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("", "y")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("x y", "z")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("x:", "z")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("x\r\ny", "z")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("x", "y\r\nz: a")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("x", "y\nz")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("x", "y\0z")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("x", " y")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("x", "y\t")],
    // what belongs to connections of HTTP/1
    &[METHOD, SCHEME, PATH, AUTHORITY, ("connection", "close")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("keep-alive", "timeout=5")],
    &[
        METHOD,
        SCHEME,
        PATH,
        AUTHORITY,
        ("proxy-connection", "close"),
    ],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("upgrade", "websocket")],
    &[
        METHOD,
        SCHEME,
        PATH,
        AUTHORITY,
        ("transfer-encoding", "chunked"),
    ],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("te", "gzip")],
    // lengths
    &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "5")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "x")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "+0")],
    &[METHOD, SCHEME, PATH, AUTHORITY, ("content-length", "0, 1")],
    &[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        SCHEME,
        PATH,
        AUTHORITY,
        ("content-length", "0"),
    ],
];

/// Whether the request of stream 1 came to an answer of 200; another one follows it on the same connection.
fn is_served(weir: &Weir, request: &[u8]) -> bool {
    let mut client = Raw::open(weir.address("http"), &[]).expect("connect");
    client.send(request).expect("send");
    // The server may have ended the connection by now.
    let _ = client.send(&get(3, "/next"));
    let mut served = false;
    let mut open = vec![1, 3];
    while !open.is_empty()
        && let Ok(frame) = client.read()
    {
        // `:status: 200` in the static table (RFC 7541 appendix A)
        let ok = frame.kind == HEADERS && frame.payload.contains(&0x88);
        served |= ok && frame.stream == 1;
        let ends = match frame.kind {
            HEADERS | DATA => frame.flags & END_STREAM != 0,
            kind => kind == RST_STREAM,
        };
        open.retain(|stream| !ends || *stream != frame.stream);
    }
    served
}

#[track_caller]
fn only_next_came_through(app: &Origin) {
    for request in app.requests() {
        assert_eq!(request.target(), "/next", "{request:?}");
        assert_eq!(request.header("x"), None);
    }
}

#[test]
fn http2_requests_that_are_none_are_refused() {
    let app = Origin::echo();
    let weir = start(&app);
    for list in REFUSED_HTTP2 {
        let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(list));
        assert!(!is_served(&weir, &request), "{list:?}");
    }
    only_next_came_through(&app);
}

#[test]
fn http2_bodies_that_have_another_length_are_refused() {
    let app = Origin::echo();
    let weir = start(&app);
    for (length, body) in [("5", "abc"), ("2", "abc"), ("3, 3", "ab")] {
        let list = [METHOD, SCHEME, PATH, AUTHORITY, ("content-length", length)];
        let mut request = frame(HEADERS, END_HEADERS, 1, &fields(&list));
        request.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
        assert!(!is_served(&weir, &request), "{length}");
    }
    only_next_came_through(&app);
}

#[test]
fn empty_end_of_an_http2_body_is_one_end() {
    let app = Origin::echo();
    let weir = start(&app);
    for pieces in [&[][..], &["abc"], &["", "abc"], &["abc", "", "def"]] {
        let mut request = post(1, "/");
        for piece in pieces {
            request.extend(frame(DATA, 0, 1, piece.as_bytes()));
        }
        request.extend(frame(DATA, END_STREAM, 1, b""));
        assert!(is_served(&weir, &request), "{pieces:?}");
    }
    // A last chunk too many would be the beginning of another request.
    for request in app.requests() {
        assert!(["POST", "GET"].contains(&request.method()), "{request:?}");
    }
}

#[test]
fn fragment_of_an_http2_path_is_not_passed_on() {
    let app = Origin::echo();
    let weir = start(&app);
    assert!(is_served(&weir, &get(1, "/a#b")));
    let requests = app.requests();
    let targets: Vec<_> = requests.iter().map(|request| request.target()).collect();
    assert!(targets.contains(&"/a"), "{targets:?}");
    assert!(
        targets.iter().all(|target| !target.contains('#')),
        "{targets:?}"
    );
}

#[test]
fn upgrade_that_is_not_asked_for_in_full_is_none() {
    let app = Origin::echo();
    let weir = start(&app);
    for head in [
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nUpgrade: websocket",
        "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket",
    ] {
        let mut connection = weir.connect();
        let request = format!("{head}\r\n\r\n");
        connection.send(request.as_bytes()).expect("send");
        assert_eq!(connection.read().expect("an answer").status, 200);
        let requests = app.requests();
        let got = requests.last().expect("a request");
        for name in ["upgrade", "connection"] {
            assert_eq!(got.header(name), None, "{head:?}");
        }
    }
}

#[test]
fn trace_is_refused() {
    let app = Origin::echo();
    let weir = start(&app);
    let trace = "TRACE / HTTP/1.1\r\nHost: a\r\nCookie: secret\r\n\r\n";
    let mut connection = weir.connect();
    connection.send(trace.as_bytes()).expect("send");
    assert_eq!(connection.read().expect("an answer").status, 405);
    let list = [(":method", "TRACE"), SCHEME, PATH, AUTHORITY];
    let request = frame(HEADERS, END_STREAM | END_HEADERS, 1, &fields(&list));
    assert!(!is_served(&weir, &request));
    only_next_came_through(&app);
}
