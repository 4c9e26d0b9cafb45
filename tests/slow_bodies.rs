//! Clients that take their time with the body of a request.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::client::{Http2, get, post};
use crate::harness::frames::{self, DATA, Raw, frame};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually, holds_within, value_within};
use crate::harness::{Setup, Weir};

/// A listener that waits for half a second, and for a kilobyte per second on average.
fn start(setup: Setup) -> Weir {
    setup.start(
        "
        listeners:
          http: { bind: '127.0.0.1:{http}', http: { body_timeout: 500ms, min_body_rate: 1000 } }
        pools: { app: { backends: ['{app}'] } }
        sites:
          main:
            hosts: ['*']
            routes:
              - { match: { path: /local }, respond: ok }
              - { proxy: app }
        ",
    )
}

fn sink() -> (Origin, Weir) {
    let app = Origin::start(Behaviour::Sink);
    let weir = start(Weir::with("app", &app));
    (app, weir)
}

const HEADS: [&str; 2] = [
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n",
];

/// What a client gets that sends `head`, and then a byte at each look while there is no answer, if it `trickles`.
fn answer_to(weir: &Weir, head: &str, trickles: bool) -> [u8; 12] {
    let mut client = TcpStream::connect(weir.address("http")).expect("connect");
    let step = Some(Duration::from_millis(20));
    client.set_read_timeout(step).expect("a time-out");
    client.write_all(head.as_bytes()).expect("send");
    let mut answer = [0; 12];
    let answered = value_within(PATIENCE, || {
        if trickles {
            // may fail once weir has answered
            let _ = client.write_all(b"x");
        }
        client.read_exact(&mut answer).ok()
    });
    answered.expect("an answer");
    answer
}

#[test]
fn silent_and_trickling_clients_are_left_in_time() {
    let (app, weir) = sink();
    let mut number = 0;
    for head in HEADS {
        for trickles in [false, true] {
            let begun = Instant::now();
            let answer = answer_to(&weir, head, trickles);
            assert_eq!(&answer, b"HTTP/1.1 408", "{head:?}, {trickles}");
            assert!(begun.elapsed() >= Duration::from_millis(400));
            number += 1;
            let line = weir.access_lines(number).remove(number - 1);
            let logged = line.contains(" 408 ") && line.ends_with("client_timeout");
            assert!(logged, "{line}");
        }
    }
    eventually(PATIENCE, || app.open_connections() == 0);
    assert_eq!(app.hits(), 0, "no body was complete");
}

#[test]
fn what_nobody_reads_is_not_waited_for_longer() {
    let (_app, weir) = sink();
    let mut client = weir.connect();
    let head = HEADS[0].replace("POST /", "POST /local");
    client.send(head.as_bytes()).expect("send");
    assert_eq!(client.read().expect("an answer").text(), "ok");
    client.read_close().expect("the end");
}

#[test]
fn steady_client_may_take_longer() {
    let (_app, weir) = sink();
    let mut client = weir.connect();
    let length = 20 * 200;
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    client.send(head.as_bytes()).expect("send");
    let begun = Instant::now();
    for number in 1..=20 {
        // 4000 bytes per second
        let until = begun + Duration::from_millis(50) * number;
        holds_within(PATIENCE, || Instant::now() >= until);
        client.send(&[b'x'; 200]).expect("send");
    }
    assert_eq!(client.read().expect("an answer").text(), "4000");
}

#[test]
fn time_that_the_backend_takes_is_not_the_clients() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("an address");
    let weir = start(Weir::with("app", address));
    const LENGTH: usize = 32 << 20;
    let backend = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let since = Instant::now();
        holds_within(PATIENCE, || since.elapsed() > Duration::from_millis(1500));
        let (mut seen, mut buffer) = (0, vec![0; 1 << 20]);
        while seen < LENGTH {
            seen += stream.read(&mut buffer).expect("the body");
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(answer).expect("answer");
        stream
    });
    let answer = weir.fetch(&post("/", vec![b'x'; LENGTH]));
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    drop(backend.join());
}

#[test]
fn on_http2_only_the_stream_ends() {
    let (app, weir) = sink();
    let mut client = Http2::tcp(weir.address("http")).expect("connect");
    for trickles in [false, true] {
        let mut slow = client.open(&post("/", "")).expect("a stream");
        slow.say("some", false).expect("say");
        let begun = Instant::now();
        let answer = thread::scope(|scope| {
            let mut other = client.clone();
            let good = scope.spawn(move || {
                let until = begun + Duration::from_millis(700);
                while Instant::now() < until {
                    assert_eq!(other.fetch(&get("/local")).expect("an answer").status, 200);
                }
            });
            while trickles && !good.is_finished() {
                // fails once weir has answered
                let _ = slow.say("x", false);
                thread::yield_now();
                holds_within(Duration::from_millis(20), || false);
            }
            slow.hear().expect("an answer")
        });
        assert!(answer.expect("a page").contains("408"));
        assert!(begun.elapsed() >= Duration::from_millis(400));
    }
    eventually(PATIENCE, || app.open_connections() == 0);
    assert_eq!(app.hits(), 0, "no body was complete");
    assert_eq!(client.fetch(&get("/")).expect("an answer").status, 200);
    let refused = || weir.access_log().matches(" client_timeout").count();
    eventually(PATIENCE, || refused() == 2);
}

#[test]
fn http2_client_may_not_stop_within_a_frame_either() {
    let (app, weir) = sink();
    let mut client = Raw::open(weir.address("http"), &[]).expect("connect");
    let part = frame(DATA, 0, 1, &[b'x'; 1000]);
    let bytes = [&frames::post(1, "/"), &part[..500]].concat();
    client.send(&bytes).expect("send");
    let line = weir.access_lines(1).remove(0);
    assert!(
        line.contains(" 408 ") && line.ends_with("client_timeout"),
        "{line}"
    );
    assert_eq!(app.hits(), 0);
}

#[test]
fn streams_of_grpc_may_be_silent() {
    let (app, weir) = sink();
    let mut client = Http2::tcp(weir.address("http")).expect("connect");
    let call = post("/", "").header("content-type", "application/grpc");
    let mut call = client.open(&call).expect("a stream");
    call.say("some", false).expect("say");
    eventually(PATIENCE, || app.received() == 4);
    assert!(!holds_within(Duration::from_millis(1200), || !weir
        .access_log()
        .is_empty()));
    call.say("more", true).expect("say");
    assert_eq!(call.hear().expect("an answer").as_deref(), Some("8"));
}
