//! Backends that break off, lie and hang: the client gets 502, 503 or 504, never a hang, and never half an answer that
//! looks whole.

use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::Weir;
use crate::harness::client::{Http2, Response, get, post};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};

/// Such faults are errors of the backend, and may be called so in the log.
fn start(app: &Origin) -> Weir {
    Weir::with("app", app).allow("").start_pool(
        "{ backends: ['{app}'], timeouts: { connect: 500ms, read: 300ms, write: 500ms } }",
    )
}

#[track_caller]
fn assert_gateway_error(answer: &Response, status: u16) {
    assert_eq!((answer.status, answer.complete), (status, true));
    assert_eq!(answer.headers.all("server"), ["weir"]);
    let page = answer.text().to_lowercase();
    for word in ["pingora", "127.0.0.1", "error:", "upstream", "backend"] {
        assert!(!page.contains(word), "`{word}` in {page}");
    }
}

#[test]
fn dead_backend_is_a_bad_gateway() {
    let mut app = Origin::fixed("ok");
    let weir = start(&app);
    app.kill();
    assert_gateway_error(&weir.get("/"), 502);
}

#[test]
fn backend_that_closes_without_an_answer_is_a_bad_gateway() {
    for behaviour in [Behaviour::Close, Behaviour::CloseAtOnce] {
        let app = Origin::start(behaviour);
        let weir = start(&app);
        assert_gateway_error(&weir.get("/"), 502);
        assert_gateway_error(&weir.fetch(&post("/", "body")), 502);
    }
}

#[test]
fn silent_backend_is_a_gateway_timeout() {
    let app = Origin::start(Behaviour::Held("late".to_owned()));
    let weir = start(&app);
    let start = Instant::now();
    assert_gateway_error(&weir.get("/"), 504);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(
        app.hits(),
        1,
        "a request that may have been acted on was sent again"
    );
}

#[test]
fn silence_in_the_middle_of_a_body_breaks_the_answer_off() {
    let app = Origin::start(Behaviour::Steps(2));
    let weir = start(&app);
    app.release(1);
    let answer = weir.get("/");
    assert_eq!((answer.text(), answer.complete), ("part 0\n", false));
}

/// What a backend does wrong, and what becomes of it.
struct Fault {
    name: &'static str,
    behaviour: Behaviour,
    /// What the client gets if there is no other backend.
    alone: Outcome,
    /// Whether another backend is asked in its place.
    made_good: bool,
}

#[derive(Debug)]
enum Outcome {
    /// A page of weir.
    Error(u16),
    /// The backend's answer, with this body.
    Whole(&'static str),
    /// A part of the backend's answer that does not pass for all of it.
    Broken,
}

/// The faults that take no time.
fn faults() -> Vec<Fault> {
    use Outcome::{Broken, Error, Whole};
    let fault = |name, behaviour, alone, made_good| Fault {
        name,
        behaviour,
        alone,
        made_good,
    };
    let raw = |head: &str, body: &str| {
        let lines: String = head.split('|').map(|line| format!("{line}\r\n")).collect();
        Behaviour::Raw(format!("{lines}\r\n{body}").into())
    };
    let reset = |head: &str, body: &str| match raw(head, body) {
        Behaviour::Raw(bytes) => Behaviour::Reset(bytes),
        other => other,
    };
    let nothing = || Behaviour::Reset(Vec::new());
    vec![
        // name, what it does, what the client gets, whether another backend is asked
        fault("closes at once", Behaviour::CloseAtOnce, Error(502), true),
        fault("reads and closes", Behaviour::Close, Error(502), true),
        fault("resets", nothing(), Error(502), true),
        fault(
            "closes in its header",
            Behaviour::Raw(b"HTTP/1.1 200 OK\r\nContent-Le".into()),
            Error(502),
            true,
        ),
        fault(
            "closes after an interim answer",
            raw("HTTP/1.1 103 Early Hints|Link: </a>", ""),
            Error(502),
            true,
        ),
        fault(
            "has no end of interim answers",
            raw(&"HTTP/1.1 103 Early Hints||".repeat(100), ""),
            Error(502),
            false,
        ),
        fault(
            "closes a kept connection",
            Behaviour::Once("once".to_owned()),
            Whole("once"),
            false,
        ),
        fault(
            "sends zeros",
            Behaviour::Raw(vec![0; 100]),
            Error(502),
            false,
        ),
        fault("speaks SSH", raw("SSH-2.0-x", ""), Error(502), false),
        fault(
            "has no status",
            raw("HTTP/1.1 abc Wrong", ""),
            Error(502),
            false,
        ),
        fault(
            "has no status in range",
            raw("HTTP/1.1 099 Low|Content-Length: 0", ""),
            Error(502),
            false,
        ),
        fault(
            "has a header without a colon",
            raw("HTTP/1.1 200 OK|Broken", ""),
            Error(502),
            false,
        ),
        fault(
            "switches protocols unasked",
            raw(
                "HTTP/1.1 101 Switching Protocols|Upgrade: x|Connection: Upgrade",
                "",
            ),
            Error(502),
            false,
        ),
        fault(
            "codes as gzip",
            raw("HTTP/1.1 200 OK|Transfer-Encoding: gzip", "x"),
            Error(502),
            false,
        ),
        fault(
            "codes as gzip in chunks",
            raw(
                "HTTP/1.1 200 OK|Transfer-Encoding: gzip, chunked",
                "0\r\n\r\n",
            ),
            Error(502),
            false,
        ),
        fault(
            "chunks twice",
            raw(
                "HTTP/1.1 200 OK|Transfer-Encoding: chunked|Transfer-Encoding: chunked",
                "0\r\n\r\n",
            ),
            Error(502),
            false,
        ),
        fault(
            "has two lengths",
            raw(
                "HTTP/1.1 200 OK|Content-Length: 4|Content-Length: 5",
                "whole",
            ),
            Error(502),
            false,
        ),
        fault(
            "has a length that is none",
            raw("HTTP/1.1 200 OK|Content-Length: four", "half"),
            Error(502),
            false,
        ),
        fault(
            "has a length and chunks",
            raw(
                "HTTP/1.1 200 OK|Content-Length: 3|Transfer-Encoding: chunked",
                "5\r\nwhole\r\n0\r\n\r\n",
            ),
            Whole("whole"),
            false,
        ),
        fault(
            "goes on behind its length",
            raw(
                "HTTP/1.1 200 OK|Content-Length: 5",
                "wholeHTTP/1.1 200 OK\r\n\r\n",
            ),
            Whole("whole"),
            false,
        ),
        fault(
            "goes on behind its last chunk",
            raw(
                "HTTP/1.1 200 OK|Transfer-Encoding: chunked",
                "5\r\nwhole\r\n0\r\n\r\nmore",
            ),
            Whole("whole"),
            false,
        ),
        fault(
            "has a body where there is none",
            raw("HTTP/1.1 204 No Content|Content-Length: 4", "body"),
            Whole(""),
            false,
        ),
        fault(
            "ends before its length",
            raw("HTTP/1.1 200 OK|Content-Length: 10", "half"),
            Broken,
            false,
        ),
        fault(
            "ends in a chunk",
            raw("HTTP/1.1 200 OK|Transfer-Encoding: chunked", "8\r\nhalf"),
            Broken,
            false,
        ),
        fault(
            "ends without a last chunk",
            raw(
                "HTTP/1.1 200 OK|Transfer-Encoding: chunked",
                "4\r\nhalf\r\n",
            ),
            Broken,
            false,
        ),
        fault(
            "has a chunk of a bad length",
            raw(
                "HTTP/1.1 200 OK|Transfer-Encoding: chunked",
                "4\r\nhalf\r\nzz\r\n",
            ),
            Broken,
            false,
        ),
        fault(
            "has a chunk without a length",
            raw(
                "HTTP/1.1 200 OK|Transfer-Encoding: chunked",
                "4\r\nhalf\r\n\r\n",
            ),
            Broken,
            false,
        ),
        fault(
            "has a chunk of a huge length",
            raw(
                "HTTP/1.1 200 OK|Transfer-Encoding: chunked",
                "4\r\nhalf\r\nfffffffffffffffff\r\n",
            ),
            Broken,
            false,
        ),
        fault(
            "resets in its body",
            reset("HTTP/1.1 200 OK|Content-Length: 10", "half"),
            Broken,
            false,
        ),
        fault(
            "resets in its chunks",
            reset(
                "HTTP/1.1 200 OK|Transfer-Encoding: chunked",
                "4\r\nhalf\r\n",
            ),
            Broken,
            false,
        ),
        fault(
            "resets where a close is the end",
            reset("HTTP/1.1 200 OK|Connection: close", "half"),
            Broken,
            false,
        ),
    ]
}

impl Fault {
    /// Says what is wrong with an answer that is not from the good backend.
    fn judge(&self, answer: &io::Result<Response>) -> Result<(), String> {
        let right = match (&self.alone, answer) {
            (Outcome::Broken, Err(_)) => true,
            (Outcome::Broken, Ok(answer)) => !answer.complete,
            (Outcome::Error(status), Ok(answer)) => {
                answer.complete
                    && answer.status == *status
                    && answer.header("server") == Some("weir")
            }
            (Outcome::Whole(body), Ok(answer)) => answer.complete && answer.text() == *body,
            (_, Err(_)) => false,
        };
        match right {
            true => Ok(()),
            false => Err(format!(
                "{}: expected {:?}, got {answer:?}",
                self.name, self.alone
            )),
        }
    }
}

fn is_good(answer: &io::Result<Response>) -> bool {
    let text = |answer: &Response| answer.text() == "good";
    answer.as_ref().is_ok_and(text)
}

/// Clients of weir with a good and a bad backend: `/alone` is passed to the bad one, `/good` to the good one, all else
/// to both in turns.
struct Bench {
    weir: Weir,
    bad: Origin,
    _good: Origin,
}

impl Bench {
    fn start() -> Bench {
        let (bad, good) = (Origin::fixed("bad"), Origin::fixed("good"));
        let setup = Weir::with("bad", &bad).with("good", &good).allow("");
        let weir = setup.start(
            "
            listeners:
              http: { bind: '127.0.0.1:{http}' }
              https: { bind: '127.0.0.1:{https}', tls: {} }
            pools:
              both: { backends: ['{bad}', '{good}'], timeouts: { read: 300ms, idle: 100ms } }
              alone: { backends: ['{bad}'], timeouts: { read: 300ms, idle: 100ms } }
              good: { backends: ['{good}'], timeouts: { idle: 100ms } }
            sites:
              main:
                hosts: ['*']
                tls: { self_signed: true }
                routes:
                  - { match: { path: /alone }, proxy: alone }
                  - { match: { path: /good }, proxy: good }
                  - { match: { path: /status }, status: {} }
                  - { proxy: both }
            ",
        );
        let _good = good;
        Bench { weir, bad, _good }
    }

    /// Has clients of both protocols meet the fault.
    fn meet(&self, fault: &Fault, http2: &mut Http2, problems: &mut Vec<String>) {
        self.bad.behave(fault.behaviour.clone());
        let mut ask = |target: &str, protocol: &str, judge: &dyn Fn(&_) -> Result<(), String>| {
            let answer = match protocol {
                "HTTP/2" => http2.fetch(&get(target)),
                _ => self.fetch_http1(target),
            };
            let wrong = judge(&answer).err();
            problems.extend(wrong.map(|wrong| format!("{protocol} {target}: {wrong}")));
        };
        for protocol in ["HTTP/1.1", "HTTP/2"] {
            ask("/alone", protocol, &|answer| fault.judge(answer));
            // the bad one is first for one of two
            for _ in 0..2 {
                ask("/", protocol, &|answer| match is_good(answer) {
                    true => Ok(()),
                    false if fault.made_good => Err(format!("not made good: {answer:?}")),
                    false => fault.judge(answer),
                });
            }
        }
    }

    /// The answer on a new connection, and that of the good backend behind it, if the connection goes on.
    fn fetch_http1(&self, target: &str) -> io::Result<Response> {
        let mut connection = self.weir.connect();
        let answer = connection.fetch(&get(target))?;
        if answer.complete && answer.header("connection") != Some("close") {
            let next = connection.fetch(&get("/good"));
            assert!(is_good(&next), "behind {answer:?}: {next:?}");
        }
        Ok(answer)
    }

    /// Requests that weir believes to be at a backend.
    fn in_flight(&self) -> u64 {
        let page = self.weir.get("/status");
        let page: Value = serde_json::from_str(page.text()).expect("JSON");
        let pools = page["pools"].as_array().expect("a list").iter();
        let members = pools.flat_map(|pool| pool["members"].as_array().expect("a list"));
        members
            .map(|member| member["in_flight"].as_u64().expect("a number"))
            .sum()
    }
}

#[test]
fn every_fault_has_its_answer() {
    let bench = Bench::start();
    let mut problems = Vec::new();
    for fault in faults() {
        let mut http2 = bench.weir.connect_http2("localhost");
        bench.meet(&fault, &mut http2, &mut problems);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn faults_leave_nothing_behind() {
    const ROUNDS: usize = 15;
    const SILENT: usize = 50;
    let bench = Bench::start();
    let mut problems = Vec::new();
    let mut round = || {
        let mut http2 = bench.weir.connect_http2("localhost");
        for fault in faults() {
            bench.meet(&fault, &mut http2, &mut problems);
        }
    };
    // what is opened once (a log, a timer) is open after the first
    round();
    let idle = || {
        let mut least = usize::MAX;
        eventually(PATIENCE, || {
            let now = bench.weir.open_files();
            let settled = now == least && bench.in_flight() == 0;
            least = least.min(now);
            settled
        });
        least
    };
    let before = idle();
    (1..ROUNDS).for_each(|_| round());
    bench.bad.behave(Behaviour::Held("late".to_owned()));
    let mut http2 = bench.weir.connect_http2("localhost");
    for answer in http2.fetch_all(&vec![get("/alone"); SILENT]) {
        assert_eq!(answer.expect("an answer").status, 504);
    }
    drop(http2);
    eventually(PATIENCE, || {
        bench.weir.open_files() <= before && bench.in_flight() == 0
    });
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn header_that_never_ends_is_a_gateway_timeout() {
    let app = Origin::start(Behaviour::Dribble);
    let weir = start(&app);
    let start = Instant::now();
    assert_gateway_error(&weir.get("/"), 504);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn header_beyond_all_measure_is_a_bad_gateway() {
    let long = "x".repeat(100 * 1024);
    let one = format!("HTTP/1.1 200 OK\r\nX: {long}\r\nContent-Length: 2\r\n\r\nok");
    let many = format!(
        "HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nok",
        format!("X: {}\r\n", &long[..1000]).repeat(100)
    );
    for header in [one, many] {
        assert_gateway_error(&start(&Origin::raw(&header)).get("/"), 502);
    }
}

#[test]
fn answer_before_the_end_of_the_request_is_passed_on() {
    let app = Origin::start(Behaviour::Early(
        b"HTTP/1.1 413 Too Long\r\nContent-Length: 3\r\n\r\nno\n".into(),
    ));
    let weir = start(&app);
    let mut connection = weir.connect();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 300000\r\n\r\n";
    connection.send(head.as_bytes()).expect("send");
    connection.send(&[b'x'; 1000]).expect("send");
    let answer = connection.read().expect("an answer");
    assert_eq!(
        (answer.status, answer.text(), answer.complete),
        (413, "no\n", true)
    );
    // the rest of the request is not taken for another one
    assert_eq!(answer.header("connection"), Some("close"));
}

#[test]
fn headers_that_an_answer_names_as_its_connections_own_stay_behind() {
    let app = Origin::raw(
        "HTTP/1.1 200 OK\r\nConnection: close, X-Hop, Content-Length\r\nX-Hop: 1\r\n\
         Keep-Alive: timeout=5\r\nX-Kept: 1\r\nContent-Length: 2\r\n\r\nok",
    );
    let answer = start(&app).get("/");
    assert_eq!((answer.text(), answer.complete), ("ok", true));
    assert_eq!(answer.header("content-length"), Some("2"));
    assert_eq!(answer.header("x-kept"), Some("1"));
    for gone in ["x-hop", "keep-alive"] {
        assert_eq!(answer.header(gone), None);
    }
}

#[test]
fn fault_pages_follow_the_accept_header() {
    let mut app = Origin::fixed("ok");
    let weir = start(&app);
    app.kill();
    let answer = weir.fetch(&get("/").header("Accept", "application/json"));
    assert_gateway_error(&answer, 502);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let answer = weir.fetch(&get("/").header("Accept", "text/html"));
    assert!(answer.text().contains("<html"));
}

#[test]
fn connection_that_ends_with_a_gateway_error_says_so() {
    let mut app = Origin::fixed("ok");
    let weir = start(&app);
    let mut connection = weir.connect();
    app.kill();
    let answer = connection.fetch(&get("/")).expect("an answer");
    assert_eq!(answer.status, 502);
    app.revive();
    match answer.header("connection") {
        Some("close") => connection.read_close().expect("a clean end"),
        _ => assert_eq!(connection.fetch(&get("/")).expect("an answer").status, 200),
    }
}

#[test]
fn pool_recovers_as_soon_as_its_backend_does() {
    let mut app = Origin::fixed("ok");
    let weir = start(&app);
    app.kill();
    assert_eq!(weir.get("/").status, 502);
    app.revive();
    eventually(PATIENCE, || weir.get("/").status == 200);
}
