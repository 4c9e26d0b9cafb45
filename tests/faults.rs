//! Backends that break off, lie and hang: the client gets 502, 503 or 504, never a hang, and never half an answer that
//! looks whole.

use std::time::{Duration, Instant};

use crate::harness::Weir;
use crate::harness::client::{Response, get, post};
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
fn garbage_is_a_bad_gateway() {
    for garbage in [
        "\0\0\0\r\n\r\n",
        "SSH-2.0-x\r\n\r\n",
        "HTTP/1.1 abc Wrong\r\n\r\n",
        "HTTP/1.1 200 OK\r\nBroken\r\n\r\n",
    ] {
        let app = Origin::raw(garbage);
        let weir = start(&app);
        assert_gateway_error(&weir.get("/"), 502);
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

#[test]
fn body_that_breaks_off_is_never_presented_as_whole() {
    for (fault, answer) in [
        (
            "short body",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        ),
        (
            "cut chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf",
        ),
        (
            "no last chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        ),
        (
            "bad chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
        ),
    ] {
        let app = Origin::raw(answer);
        let weir = start(&app);
        let answer = weir.get("/");
        assert!(
            !answer.complete || answer.status == 502,
            "{fault}: {answer:?}"
        );
    }
}

#[test]
fn body_that_breaks_off_is_a_reset_stream_in_http2() {
    let app = Origin::raw("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    let weir = Weir::with("app", &app).allow("").start(
        "
        listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*'], tls: { self_signed: true }, routes: [{ proxy: app }] } }
        ",
    );
    let answer = weir.connect_http2("localhost").fetch(&get("/"));
    assert!(
        answer.is_err() || !answer.as_ref().unwrap().complete,
        "{answer:?}"
    );
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
