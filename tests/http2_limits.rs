//! Clients that cost a server more than they should: on HTTP/2, frame by frame.

use std::time::{Duration, Instant};

use crate::harness::Weir;
use crate::harness::client::{Connection, Http2, get, post};
use crate::harness::frames::{
    self, CONTINUATION, DATA, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY, RST_STREAM,
    Raw, SETTINGS, WINDOW_UPDATE, fields, frame,
};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually, holds_within};

const DOCUMENT: &str = "
    listeners:
      http: { bind: '127.0.0.1:{http}', http: { header_timeout: 300ms, keepalive: 700ms } }
      https: { bind: '127.0.0.1:{https}', tls: {}, http: { header_timeout: 300ms, keepalive: 700ms } }
    pools: { app: { backends: ['{app}'] } }
    sites:
      main:
        hosts: ['*']
        tls: { self_signed: true }
        routes:
          - { match: { path: /local }, respond: { body: local } }
          - { proxy: app }
    ";

/// More than anybody's patience.
const ENOUGH: usize = 200_000;

/// One client sends pieces without end, made from their number. It is cut off with one line in the log that has `word`,
/// while another one is served, and costs no memory to speak of.
#[track_caller]
fn is_cut_off(word: &str, settings: &[(u16, u32)], piece: impl Fn(u32) -> Vec<u8>) {
    let app = Origin::fixed("app");
    let weir = Weir::with("app", &app)
        .allow("a flood")
        .start_site("routes: [{ proxy: app }]");
    let mut good = Http2::tcp(weir.address("http")).expect("connect");
    assert_eq!(good.fetch(&get("/")).expect("an answer").text(), "app");
    let before = weir.peak_memory();
    let mut bad = Raw::open(weir.address("http"), settings).expect("connect");
    let ended = bad.drain().expect("a thread");
    let mut sent = 0;
    // Many at a time: a flood of single packets would take long.
    let pieces = (0..).map(&piece);
    let mut pieces = pieces.take(ENOUGH).peekable();
    while pieces.peek().is_some() {
        let bytes: Vec<u8> = pieces.by_ref().take(50).flatten().collect();
        sent += 50;
        if bad.send(&bytes).is_err() || ended.is_finished() {
            break;
        }
        if sent % 1000 == 0 {
            assert_eq!(good.fetch(&get("/")).expect("an answer").text(), "app");
        }
    }
    assert!(ended.join().expect("a thread"), "{sent} pieces were taken");
    assert_eq!(good.fetch(&get("/")).expect("an answer").text(), "app");
    eventually(PATIENCE, || weir.error_log().contains(word));
    let log = weir.error_log();
    assert_eq!(log.matches("a flood").count(), 1, "{log}");
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    let grown = weir.peak_memory() - before;
    assert!(grown < 20 << 20, "{grown} bytes");
}

#[test]
fn ping_flood() {
    is_cut_off("a flood of PING frames", &[], |_| {
        frame(PING, 0, 0, &[0; 8])
    });
}

#[test]
fn settings_flood() {
    is_cut_off("a flood of SETTINGS frames", &[], |_| {
        frame(SETTINGS, 0, 0, &[])
    });
}

#[test]
fn flood_of_window_sizes() {
    is_cut_off("a flood of SETTINGS frames", &[(4, 0)], |n| {
        let size = if n % 2 == 0 { 1 } else { 0 };
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, size])
    });
}

#[test]
fn priority_flood() {
    is_cut_off("a flood of PRIORITY frames", &[], |n| {
        frame(PRIORITY, 0, 2 * n + 1, &[0, 0, 0, 0, 1])
    });
}

#[test]
fn window_update_flood() {
    is_cut_off("a flood of WINDOW_UPDATE frames", &[], |_| {
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])
    });
}

#[test]
fn flood_of_frames_that_nobody_knows() {
    is_cut_off("a flood of unknown frames", &[], |_| {
        frame(0x77, 0, 0, b"?")
    });
}

#[test]
fn rapid_reset() {
    is_cut_off("a flood", &[], |n| {
        let stream = 2 * n + 1;
        let mut bytes = frames::get(stream, "/");
        bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        bytes
    });
}

#[test]
fn continuation_flood() {
    is_cut_off("a flood", &[], |n| match n {
        0 => frame(HEADERS, END_STREAM, 1, &fields(&[(":method", "GET")])),
        _ => frame(CONTINUATION, 0, 1, &fields(&[("x", "y")])),
    });
}

#[test]
fn empty_data_flood() {
    is_cut_off("a flood", &[], |n| match n {
        0 => frames::post(1, "/"),
        _ => frame(DATA, 0, 1, &[]),
    });
}

#[test]
fn cancelled_requests_are_no_flood() {
    let app = Origin::fixed("app");
    let weir = Weir::with("app", &app).start(DOCUMENT);
    let mut client = Raw::open(weir.address("http"), &[]).expect("connect");
    for n in 0..2000 {
        let stream = 4 * n + 1;
        let mut bytes = frames::get(stream, "/local");
        bytes.extend(frames::post(stream + 2, "/local"));
        bytes.extend(frame(RST_STREAM, 0, stream + 2, &[0, 0, 0, 8]));
        client.send(&bytes).expect("send");
        let answered =
            |frame: &frames::Frame| frame.stream == stream && frame.flags & END_STREAM != 0;
        while !answered(&client.read().expect("an answer")) {}
    }
}

/// Whether a client that has sent these bytes, and says nothing more, is disconnected.
#[track_caller]
fn is_left(weir: &Weir, bytes: &[u8]) {
    let mut client = Raw::connect(weir.address("http")).expect("connect");
    client.send(bytes).expect("send");
    let begun = Instant::now();
    let (frames, ended) = client.read_to_end();
    assert!(ended, "{frames:?}");
    assert!(begun.elapsed() > Duration::from_millis(200), "{frames:?}");
}

fn opened(rest: &[u8]) -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[]), rest].concat()
}

#[test]
fn clients_that_stop_in_the_middle_are_left() {
    let app = Origin::fixed("app");
    let weir = Weir::with("app", &app).start(DOCUMENT);
    let headers = frames::get(1, "/");
    for bytes in [
        PREFACE[..5].to_vec(),
        PREFACE.to_vec(),
        [PREFACE, &[0, 0, 6, SETTINGS]].concat(),
        opened(&[]),
        opened(&headers[..5]),
        opened(&headers[..20]),
        opened(&frame(
            HEADERS,
            END_STREAM,
            1,
            &fields(&[(":method", "GET")]),
        )),
        opened(&frame(PING, 0, 0, &[0; 8])[..12]),
    ] {
        is_left(&weir, &bytes);
    }
    assert_eq!(app.hits(), 0);
}

#[test]
fn client_that_says_nothing_after_the_handshake_is_left() {
    let app = Origin::fixed("app");
    let weir = Weir::with("app", &app).start(DOCUMENT);
    let mut client = Connection::tls_for_http2(weir.address("https"), "localhost").expect("TLS");
    assert_eq!(client.protocol.as_deref(), Some("h2"));
    client.read_close().expect("the end");
}

#[test]
fn idle_connection_ends_with_a_goodbye() {
    let app = Origin::fixed("app");
    let weir = Weir::with("app", &app).start(DOCUMENT);
    let mut client = Raw::open(weir.address("http"), &[]).expect("connect");
    client.send(&frames::get(1, "/local")).expect("send");
    let (frames, ended) = client.read_to_end();
    assert!(ended, "{frames:?}");
    let goodbye = frames.iter().find(|frame| frame.kind == GOAWAY);
    assert_eq!(goodbye.expect("a GOAWAY").payload[4..8], [0; 4], "NO_ERROR");
}

#[test]
fn frames_without_a_request_do_not_keep_a_connection() {
    let app = Origin::fixed("app");
    let weir = Weir::with("app", &app).start(DOCUMENT);
    for idle in [
        frame(PING, 0, 0, &[0; 8]),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]),
        frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
    ] {
        let mut client = Raw::open(weir.address("http"), &[]).expect("connect");
        client.send(&frames::get(1, "/local")).expect("send");
        let reader = client.drain().expect("a reader");
        eventually(PATIENCE, || {
            // As often as an idle client might.
            holds_within(Duration::from_millis(100), || false);
            client.send(&idle).is_err() || reader.is_finished()
        });
        assert!(reader.join().expect("a thread"), "{idle:?}");
    }
}

#[test]
fn request_whose_body_stops_is_given_up() {
    let app = Origin::start(Behaviour::Sink);
    let weir = Weir::with("app", &app).start(DOCUMENT);
    let mut bytes = frames::post(1, "/");
    bytes.extend(frame(DATA, 0, 1, b"some"));
    is_left(&weir, &opened(&bytes));
    let log = weir.error_log();
    assert!(log.contains("silent in the middle of a request"), "{log}");
}

#[test]
fn waiting_for_an_answer_is_not_idle() {
    let app = Origin::start(Behaviour::Held("late".to_owned()));
    let weir = Weir::with("app", &app).start(DOCUMENT);
    let client = Http2::tcp(weir.address("http")).expect("connect");
    let fetch = std::thread::spawn(move || client.clone().fetch(&post("/", "all of it")));
    assert!(!holds_within(Duration::from_secs(2), || fetch.is_finished()));
    app.release(1);
    let answer = fetch.join().expect("a thread");
    assert_eq!(answer.expect("an answer").text(), "late");
}

#[test]
fn headers_beyond_the_limits_are_refused() {
    let app = Origin::echo();
    let weir = Weir::with("app", &app).start(&DOCUMENT.replace(
        "keepalive: 700ms } }\n      https",
        "keepalive: 7s, max_line: 1KiB, max_header: 4KiB, max_headers: 20 } }\n      https",
    ));
    let mut client = Http2::tcp(weir.address("http")).expect("connect");
    let mut many = get("/");
    for n in 0..25 {
        many = many.header(&format!("x-{n}"), "y");
    }
    for (request, status, word) in [
        (get(&format!("/{}", "x".repeat(1100))), 414, "uri_too_long"),
        (
            get("/").header("x", &"y".repeat(5000)),
            431,
            "header_too_large",
        ),
        (many, 431, "header_too_large"),
    ] {
        assert_eq!(client.fetch(&request).expect("an answer").status, status);
        eventually(PATIENCE, || weir.access_log().contains(word));
    }
    assert_eq!(app.hits(), 0);
    // one field, sent in pieces
    let mut cookies = get("/");
    for n in 0..25 {
        cookies = cookies.header("cookie", &format!("a{n}=b"));
    }
    let answer = client.fetch(&cookies).expect("an answer");
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("a0=b; a1=b; "), "{answer:?}");
    // far beyond: the engine itself does not take it
    let huge = get("/").header("x", &"y".repeat(30_000));
    assert!(client.fetch(&huge).is_ok_and(|answer| answer.status == 431));
    assert_eq!(client.fetch(&get("/")).expect("an answer").status, 200);
}

/// Asks for so many answers, of which nothing is taken: because of windows of 0, or because nobody reads.
fn stalling(weir: &Weir, target: &str, streams: u32, windows: bool) -> Raw {
    let window = if windows { 0 } else { 0x7fff_ffff };
    let mut client = Raw::open(weir.address("http"), &[(4, window)]).expect("connect");
    if !windows {
        let window = 0x7fff_0000_u32.to_be_bytes();
        let update = frame(WINDOW_UPDATE, 0, 0, &window);
        client.send(&update).expect("send");
    }
    for n in 0..streams {
        client.send(&frames::get(2 * n + 1, target)).expect("send");
    }
    client
}

#[track_caller]
fn are_not_piled_up(windows: bool) {
    const CONNECTIONS: usize = 4;
    const STREAMS: u32 = 100;
    let app = Origin::start(Behaviour::Big(1 << 20));
    let weir =
        Weir::with("app", &app).start(&DOCUMENT.replace("keepalive: 700ms", "keepalive: 20s"));
    let before = weir.peak_memory();
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| stalling(&weir, "/", STREAMS, windows))
        .collect();
    eventually(PATIENCE, || app.hits() == CONNECTIONS * STREAMS as usize);
    // A good client gets its answer in full meanwhile.
    let good = Http2::tcp(weir.address("http"))
        .expect("connect")
        .fetch(&get("/"));
    assert_eq!(good.expect("an answer").length, 1 << 20);
    let grown = weir.peak_memory() - before;
    let answers = CONNECTIONS as u64 * u64::from(STREAMS);
    let each = grown / answers / 1024;
    // What the process itself needs at first is in it.
    assert!(each < 112, "{each} KiB for each answer");
    drop(clients);
    weir.access_lines(CONNECTIONS * STREAMS as usize + 1);
}

#[test]
fn answers_without_a_window_are_not_piled_up() {
    are_not_piled_up(true);
}

#[test]
fn answers_that_nobody_reads_are_not_piled_up() {
    are_not_piled_up(false);
}

#[test]
fn of_too_many_answers_that_nobody_takes_the_oldest_are_given_up() {
    const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
    let app = Origin::start(Behaviour::Big(1 << 20));
    // room for 16
    let document = DOCUMENT.replace("keepalive: 700ms", "keepalive: 20s, max_stalled: 1MiB");
    let weir = Weir::with("app", &app)
        .allow("too many answers wait")
        .start(&document);
    let mut modest = stalling(&weir, "/", 3, true);
    eventually(PATIENCE, || app.hits() == 3);
    let mut greedy = stalling(&weir, "/", 30, true);
    let mut resets = Vec::new();
    while resets.len() < 17 {
        let frame = greedy.read().expect("a frame");
        if frame.kind == RST_STREAM {
            resets.push(frame.stream);
        }
    }
    greedy.send(&frames::get(61, "/local")).expect("send");
    let refused = loop {
        let frame = greedy.read().expect("a frame");
        if frame.stream == 61 {
            break frame;
        }
    };
    assert_eq!(
        (refused.kind, &refused.payload[..]),
        (RST_STREAM, &REFUSED_STREAM[..])
    );
    eventually(PATIENCE, || {
        weir.access_log().matches(" client_timeout").count() == 17
    });
    // Who leaves few waiting still gets them, and anything else.
    modest.send(&frames::get(7, "/local")).expect("send");
    for stream in [1, 3, 5, 0] {
        let window = 0x7fff_0000_u32.to_be_bytes();
        modest
            .send(&frame(WINDOW_UPDATE, 0, stream, &window))
            .expect("send");
    }
    let mut open = vec![1, 3, 5];
    while !open.is_empty() {
        let frame = modest.read().expect("a frame");
        assert_ne!(frame.kind, RST_STREAM);
        if frame.flags & END_STREAM != 0 {
            open.retain(|stream| *stream != frame.stream);
        }
    }
}
