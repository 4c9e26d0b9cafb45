//! Answers that are read ahead of clients that take them slowly.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::Weir;
use crate::harness::client::{Connection, Http2, get};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually, holds_within};

/// More than all the kernel's buffers on the way hold.
const LENGTH: u64 = 48 << 20;

/// A backend that answers with [`LENGTH`] bytes, and tells how many it has written.
struct Backend {
    address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    written: AtomicU64,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    Length,
    /// Of so many bytes each.
    Chunks(usize),
    Close,
    /// Behind the half of it nothing more comes, until the test ends.
    Silence,
    /// Behind the half of it the connection ends.
    Half,
}

impl Backend {
    fn start(framing: Framing) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::<Seen>::default();
        let backend = Backend {
            address,
            seen: seen.clone(),
        };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                seen.connections.fetch_add(1, Ordering::Relaxed);
                let seen = seen.clone();
                // ends with the connection
                thread::spawn(move || answer(stream, framing, &seen));
            }
        });
        backend
    }

    fn written(&self) -> u64 {
        self.seen.written.load(Ordering::Relaxed)
    }

    fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::Relaxed)
    }
}

fn answer(mut stream: TcpStream, framing: Framing, seen: &Seen) -> io::Result<()> {
    let block = block();
    let mut head = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let is_body = head == b"0\r\n\r\n";
        head.clear();
        if is_body {
            continue;
        }
        seen.written.store(0, Ordering::Relaxed);
        let field = match framing {
            Framing::Chunks(_) => "Transfer-Encoding: chunked\r\n".to_owned(),
            Framing::Close => String::new(),
            _ => format!("Content-Length: {LENGTH}\r\n"),
        };
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{field}\r\n").as_bytes())?;
        let most = match framing {
            Framing::Silence | Framing::Half => LENGTH / 2,
            _ => LENGTH,
        };
        let mut at = 0;
        while at < most {
            let piece = piece(&block, at, most - at);
            match framing {
                Framing::Chunks(size) => stream.write_all(&chunked(piece, size))?,
                _ => stream.write_all(piece)?,
            }
            at += piece.len() as u64;
            seen.written.store(at, Ordering::Relaxed);
        }
        match framing {
            Framing::Length => {}
            Framing::Chunks(_) => stream.write_all(b"0\r\n\r\n")?,
            Framing::Close | Framing::Half => return Ok(()),
            Framing::Silence => drop(stream.read(&mut [0])?),
        }
    }
}

fn chunked(piece: &[u8], size: usize) -> Vec<u8> {
    let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
    piece.chunks(size).flat_map(chunk).collect()
}

/// What bodies consist of, again and again. Its length is prime, so that no buffer is a multiple of it.
fn block() -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..65_537).map(|_| next()).collect()
}

/// The next bytes of a body that so many came of, at most as many as one block has.
fn piece(block: &[u8], at: u64, most: u64) -> &[u8] {
    let start = (at % block.len() as u64) as usize;
    let end = block.len().min(start + most as usize);
    &block[start..end]
}

/// Looks at a body as it comes.
struct Check {
    block: Vec<u8>,
    seen: u64,
}

impl Check {
    fn new() -> Check {
        Check {
            block: block(),
            seen: 0,
        }
    }

    fn take(&mut self, mut part: &[u8]) {
        while !part.is_empty() {
            let expected = piece(&self.block, self.seen, part.len() as u64);
            assert!(part.starts_with(expected), "at {}", self.seen);
            self.seen += expected.len() as u64;
            part = &part[expected.len()..];
        }
    }
}

/// The answer that comes has all that the backend sends.
#[track_caller]
fn assert_whole(connection: &mut Connection, framing: Framing) {
    let mut check = Check::new();
    let answer = connection.read_into("GET", |part| check.take(part));
    assert!(answer.expect("an answer").complete, "{framing:?}");
    assert_eq!(check.seen, LENGTH, "{framing:?}");
}

fn start(backend: &Backend) -> Weir {
    let setup = Weir::with("app", backend.address).allow("");
    setup.file("bodies/.keep", "").start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{app}'], timeouts: { read: 500ms } } }
        sites:
          main:
            hosts: ['*']
            routes:
              - { match: { path: /plain }, proxy: app }
              - { match: { path: /disk }, buffer_response: { memory: 64KiB, disk: 64MiB, dir: bodies }, proxy: app }
              - { match: { path: /little }, buffer_response: { memory: 64KiB, disk: 64MiB, dir: bodies, max: 4MiB }, proxy: app }
              - { buffer_response: 64MiB, proxy: app }
        ",
    )
}

#[test]
fn backend_is_done_before_its_client_has_begun_to_read() {
    let chunks = [Framing::Chunks(100_000), Framing::Chunks(4096)];
    for framing in [Framing::Length, Framing::Close].into_iter().chain(chunks) {
        let backend = Backend::start(framing);
        let weir = start(&backend);
        let mut connection = weir.connect();
        for _ in 0..2 {
            connection.send_request(&get("/")).expect("send");
            eventually(PATIENCE, || backend.written() == LENGTH);
            // longer than it would be waited for the backend
            let since = Instant::now();
            holds_within(PATIENCE, || since.elapsed() > Duration::from_millis(700));
            assert_whole(&mut connection, framing);
            backend.seen.written.store(0, Ordering::Relaxed);
        }
        // that to the backend was used again, where it could be
        let expected = if framing == Framing::Close { 2 } else { 1 };
        assert_eq!(backend.connections(), expected, "{framing:?}");
    }
}

#[test]
fn disk_holds_what_memory_does_not() {
    for framing in [Framing::Length, Framing::Close, Framing::Chunks(4096)] {
        let backend = Backend::start(framing);
        let weir = start(&backend);
        let mut connection = weir.connect();
        let before = weir.peak_memory();
        for _ in 0..2 {
            connection.send_request(&get("/disk")).expect("send");
            eventually(PATIENCE, || backend.written() == LENGTH);
            let grown = weir.peak_memory() - before;
            assert!(grown < 16 << 20, "{framing:?}: {grown}");
            assert_whole(&mut connection, framing);
            backend.seen.written.store(0, Ordering::Relaxed);
        }
        let expected = if framing == Framing::Close { 2 } else { 1 };
        assert_eq!(backend.connections(), expected, "{framing:?}");
        // who leaves leaves nothing there
        connection.send_request(&get("/disk")).expect("send");
        eventually(PATIENCE, || backend.written() == LENGTH);
        drop(connection);
        eventually(PATIENCE, || weir.open_files_in("bodies") == 0);
    }
}

#[test]
fn disk_without_room_holds_the_backend_up_and_loses_nothing() {
    let backend = Backend::start(Framing::Length);
    let weir = start(&backend);
    let mut connection = weir.connect();
    connection.send_request(&get("/little")).expect("send");
    eventually(PATIENCE, || {
        weir.error_log()
            .contains("no room to read an answer further ahead")
    });
    let is_done = || backend.written() == LENGTH;
    assert!(!holds_within(Duration::from_secs(1), is_done));
    assert_whole(&mut connection, Framing::Length);
    // it is counted until it is gone
    eventually(PATIENCE, || weir.open_files_in("bodies") == 0);
}

#[test]
fn without_the_policy_it_is_not() {
    let backend = Backend::start(Framing::Length);
    let weir = start(&backend);
    let mut connection = weir.connect();
    connection.send_request(&get("/plain")).expect("send");
    eventually(PATIENCE, || backend.written() > 0);
    let is_done = || backend.written() == LENGTH;
    assert!(!holds_within(Duration::from_secs(1), is_done));
    assert_whole(&mut connection, Framing::Length);
}

#[test]
fn client_of_http2_may_be_slow_as_well() {
    for framing in [Framing::Length, Framing::Chunks(4096)] {
        let backend = Backend::start(framing);
        let weir = start(&backend);
        let mut http2 = Http2::tcp(weir.address("http")).expect("connect");
        let mut slow = http2.open(&get("/")).expect("a stream");
        slow.say("", true).expect("say");
        eventually(PATIENCE, || backend.written() == LENGTH);
        // others are not held up by that
        let other = weir.get("/");
        assert!(other.complete && other.length == LENGTH);
        let mut check = Check::new();
        while let Some(part) = slow.hear_bytes().expect("more") {
            check.take(&part);
        }
        assert_eq!(check.seen, LENGTH);
    }
}

#[test]
fn what_a_backend_owes_is_noticed_behind_what_it_sent() {
    for framing in [Framing::Half, Framing::Silence] {
        let backend = Backend::start(framing);
        let weir = start(&backend);
        let mut connection = weir.connect();
        connection.send_request(&get("/")).expect("send");
        eventually(PATIENCE, || backend.written() == LENGTH / 2);
        let mut check = Check::new();
        let answer = connection.read_into("GET", |part| check.take(part));
        assert!(!answer.expect("an answer").complete, "{framing:?}");
        assert_eq!(check.seen, LENGTH / 2, "{framing:?}");
        let word = match framing {
            Framing::Half => "upstream_reset",
            _ => "upstream_timeout",
        };
        eventually(PATIENCE, || weir.error_log().contains(word));
    }
}

#[test]
fn events_pass_at_once() {
    let app = Origin::start(Behaviour::Steps(3));
    let weir =
        Weir::with("app", &app).start_site("routes: [{ buffer_response: 1MiB, proxy: app }]");
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    connection.read_final_head().expect("a head");
    for number in 0..3 {
        app.release(1);
        let part = connection.read_chunk().expect("a part");
        assert_eq!(part, format!("part {number}\n").into_bytes());
    }
}
