//! Requests that two programs could read in two ways: refused, and nothing of them reaches a backend.

use crate::harness::Weir;
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
