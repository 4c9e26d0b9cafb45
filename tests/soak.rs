//! Clients of every kind on one weir, while its file and its binary change under them, some changes being broken: no
//! request may fail. The tests run it for a moment; `make soak` for as long as it is told.

use std::collections::BTreeMap;
use std::env;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::certs::Authority;
use crate::harness::client::{Connection, Http2, Response, get};
use crate::harness::daemon::Daemon;
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::websocket::{self, Frame};
use crate::harness::{Setup, Weir};
use crate::streaming::open_websocket_on;

/// How long it lasts among the other tests.
const SHORT: Duration = Duration::from_secs(12);
/// What a client thinks at most between two requests: less than a connection is left open for it in a drain.
const THOUGHT: Duration = Duration::from_millis(1500);
/// Length of a slow download, and of a slow upload.
const LONG: usize = 1 << 20;
/// Pieces that they go in, and the pause between two of them.
const PIECES: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// More memory than this is not needed by a process that has been reloaded again and again.
const MEMORY: u64 = 256 << 20;
/// More open files than this are not needed once all clients have left.
const FILES: usize = 128;

/// The document in its many editions.
fn document(edition: usize) -> String {
    let weight = 1 + edition % 5;
    let extra = match edition % 2 {
        0 => "",
        _ => "\n          extra: { bind: 'unix:{dir}/extra.sock' }",
    };
    format!(
        "
        drain: {{ tunnels: 300ms, deadline: 20s }}
        log: {{ access: 'off' }}
        listeners:
          http: {{ bind: '127.0.0.1:{{http}}' }}
          https: {{ bind: '127.0.0.1:{{https}}', tls: {{}} }}{extra}
        pools:
          app: {{ backends: [{{ addr: '{{a}}', weight: {weight} }}, '{{b}}'] }}
          sink: {{ backends: ['{{sink}}'] }}
          big: {{ backends: ['{{big}}'] }}
          events: {{ backends: ['{{events}}'] }}
          chat: {{ backends: ['{{chat}}'] }}
        sites:
          main:
            hosts: '*'
            tls: {{ cert: site.pem, key: site.key }}
            routes:
              - {{ match: {{ path: /sink }}, proxy: sink }}
              - {{ match: {{ path: /big }}, proxy: big }}
              - {{ match: {{ path: /events }}, proxy: events }}
              - {{ match: {{ path: /chat }}, proxy: chat }}
              - {{ match: {{ path: /edition }}, respond: '{edition}' }}
              - {{ match: {{ prefix: /here }}, respond: here }}
              - proxy: app
        static: {{ assets: {{ bind: '127.0.0.1:{{assets}}', root: ./www }} }}
        "
    )
}

/// What has come of it so far.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    /// Requests that were answered in full, and messages that were echoed, by kind of client.
    answered: Mutex<BTreeMap<&'static str, usize>>,
    count: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Tally {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn judge(&self, kind: &'static str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                *self.answered.lock().unwrap().entry(kind).or_default() += 1;
            }
            Err(failure) => {
                let mut failures = self.failures.lock().unwrap();
                if failures.len() < 20 {
                    failures.push(format!("{kind}: {failure}"));
                }
            }
        }
    }
}

/// A kind of client: does one thing over and over on what it keeps in between.
type Client = Box<dyn FnMut() -> Result<(), String> + Send>;

fn good(answer: io::Result<Response>, length: Option<usize>) -> Result<Response, String> {
    let answer = answer.map_err(|e| e.to_string())?;
    let whole = answer.complete && length.is_none_or(|length| answer.length == length as u64);
    match answer.status == 200 && whole {
        true => Ok(answer),
        false => Err(format!("{answer:?}")),
    }
}

fn closes(answer: &Response) -> bool {
    answer.header("connection") == Some("close")
}

/// One connection for as long as the server keeps it, with up to `thought` between two requests.
fn keep_alive(
    connect: impl Fn() -> io::Result<Connection> + Send + 'static,
    target: &'static str,
    thought: Duration,
) -> Client {
    let mut kept = None;
    let mut step: u32 = 0;
    Box::new(move || {
        let connection = match kept.take() {
            Some(connection) => Ok(connection),
            None => connect(),
        };
        let mut connection: Connection = connection.map_err(|e| format!("connect: {e}"))?;
        let answer = good(connection.fetch(&get(target)), None)?;
        if !closes(&answer) {
            kept = Some(connection);
        }
        step = step.wrapping_mul(31).wrapping_add(7);
        thread::sleep(thought * (step % 8) / 8);
        Ok(())
    })
}

fn fresh(address: SocketAddr, target: &'static str) -> Client {
    Box::new(move || {
        let mut connection = Connection::tcp(address).map_err(|e| format!("connect: {e}"))?;
        good(connection.fetch(&get(target)), None).map(drop)
    })
}

fn http2(address: SocketAddr) -> Client {
    let mut kept: Option<Http2> = None;
    Box::new(move || {
        let mut client = match kept.take() {
            Some(client) => client,
            None => Http2::connect(address, "site").map_err(|e| format!("connect: {e}"))?,
        };
        match client.fetch(&get("/")) {
            // the server had said goodbye before, and nothing was sent
            Err(e) if e.kind() == io::ErrorKind::NotConnected => return Ok(()),
            answer => good(answer, None)?,
        };
        kept = Some(client);
        Ok(())
    })
}

fn slow_upload(address: SocketAddr) -> Client {
    Box::new(move || {
        let answer = Connection::tcp(address).and_then(|mut connection| {
            let head = format!("POST /sink HTTP/1.1\r\nHost: a\r\nContent-Length: {LONG}\r\n\r\n");
            connection.send(head.as_bytes())?;
            for _ in 0..PIECES {
                connection.send(&vec![b'x'; LONG / PIECES])?;
                thread::sleep(PAUSE);
            }
            connection.send(&[b'x'; LONG % PIECES])?;
            connection.read()
        });
        match good(answer, None)?.text() == LONG.to_string() {
            true => Ok(()),
            false => Err("not all of it has arrived".to_owned()),
        }
    })
}

fn slow_download(address: SocketAddr) -> Client {
    Box::new(move || {
        let answer = Connection::tcp(address).and_then(|mut connection| {
            connection.send_request(&get("/big"))?;
            let mut next = LONG / PIECES;
            let mut length = 0;
            connection.read_into("GET", |part| {
                length += part.len();
                while length >= next {
                    next += LONG / PIECES;
                    thread::sleep(PAUSE);
                }
            })
        });
        good(answer, Some(LONG)).map(drop)
    })
}

fn event_stream(address: SocketAddr) -> Client {
    Box::new(move || {
        let request = get("/events").header("Accept", "text/event-stream");
        let answer = Connection::tcp(address).and_then(|mut connection| connection.fetch(&request));
        good(answer, None).map(drop)
    })
}

fn chat(address: SocketAddr) -> Client {
    let mut kept: Option<Connection> = None;
    let mut number = 0;
    Box::new(move || {
        let mut socket = match kept.take() {
            Some(socket) => socket,
            None => {
                open_websocket_on(Connection::tcp(address).map_err(|e| format!("connect: {e}"))?)
            }
        };
        number += 1;
        let message = Frame::text(&number.to_string());
        // It may cross with the server's close, after which nothing is read any more.
        let sent = socket.send_frame(&message);
        let echo = socket
            .read_frame()
            .map_err(|e| format!("{e} after {sent:?}"))?;
        if echo.opcode == websocket::CLOSE {
            return match echo.payload.starts_with(&1012_u16.to_be_bytes()) {
                true => Ok(()),
                false => Err(format!("{echo:?}")),
            };
        }
        if echo != message {
            return Err(format!("{echo:?} for {message:?}"));
        }
        kept = Some(socket);
        thread::sleep(Duration::from_millis(20));
        Ok(())
    })
}

/// All clients, with their kinds.
fn clients(weir: &Weir) -> Vec<(&'static str, Client)> {
    let [http, https, assets] = ["http", "https", "assets"].map(|name| weir.address(name));
    let plain = move || Connection::tcp(http);
    let secure = move || Connection::tls(https, "site");
    let files = move || Connection::tcp(assets);
    let mut clients: Vec<(&'static str, Client)> = Vec::new();
    for i in 0..50 {
        let client = match i {
            0..10 => ("keep-alive", keep_alive(plain, "/", Duration::ZERO)),
            10..40 => ("keep-alive, thinking", keep_alive(plain, "/", THOUGHT)),
            40..45 => ("static files", keep_alive(files, "/", THOUGHT / 10)),
            _ => ("TLS", keep_alive(secure, "/here", THOUGHT / 10)),
        };
        clients.push(client);
    }
    for _ in 0..3 {
        clients.push(("fresh connections", fresh(http, "/")));
        clients.push(("fresh connections to files", fresh(assets, "/")));
        clients.push(("HTTP/2", http2(https)));
        clients.push(("slow upload", slow_upload(http)));
        clients.push(("slow download", slow_download(http)));
        clients.push(("event stream", event_stream(http)));
        clients.push(("WebSocket", chat(http)));
    }
    clients
}

/// What was done to the server.
#[derive(Debug, Default)]
struct Changes {
    reloads: usize,
    broken_reloads: usize,
    swaps: usize,
    broken_swaps: usize,
}

impl Changes {
    /// One change after the other, of all kinds in turn.
    fn make(&mut self, number: usize, setup: &Setup, authority: &Authority) {
        match number % 8 {
            3 => {
                setup.write("weir.yaml", "sites: [");
                let run = setup.run(&["reload", "--admin", "{dir}/admin.sock"]);
                assert_eq!(run.status, 1, "{run:?}");
                self.broken_reloads += 1;
            }
            5 => {
                setup.write_config(&document(number));
                let run = setup.run(&["upgrade", "-c", "weir.yaml", "--binary", "/bin/false"]);
                assert_eq!(run.status, 3, "{run:?}");
                self.broken_swaps += 1;
            }
            2 | 7 => {
                setup.write_config(&document(number));
                let old = Daemon::find(setup);
                let run = setup.run(&["upgrade", "-c", "weir.yaml"]);
                assert_eq!(run.status, 0, "{run:?}");
                assert_ne!(Daemon::find(setup).leave_alone(), old.leave_alone());
                self.swaps += 1;
            }
            _ => {
                authority.issue(setup.dir(), "site", &["site"]);
                setup.write_config(&document(number));
                let run = setup.run(&["reload", "-c", "weir.yaml"]);
                assert_eq!(run.status, 0, "{run:?}");
                self.reloads += 1;
            }
        }
    }
}

#[test]
fn no_request_fails_whatever_changes() {
    let seconds = env::var("WEIR_TEST_SOAK").ok();
    let seconds = seconds.map(|text| text.parse().expect("a number of seconds"));
    let length = seconds.map_or(SHORT, Duration::from_secs);
    let quiet = |text: &str| Origin::start(Behaviour::Quiet(text.to_owned()));
    let (a, b, sink) = (quiet("a"), quiet("b"), Origin::start(Behaviour::Sink));
    let big = Origin::start(Behaviour::Big(LONG as u64));
    let events = Arc::new(Origin::start(Behaviour::Steps(100)));
    let chat = Origin::start(Behaviour::WebSocket);
    let setup = Setup::new()
        .with("a", &a)
        .with("b", &b)
        .with("sink", &sink)
        .with("big", &big)
        .with("events", &events)
        .with("chat", &chat)
        .allow("the sockets were not handed over")
        .allow("process::reload: ")
        .file("www/index.html", "assets");
    let authority = Authority::new();
    authority.issue(setup.dir(), "site", &["site"]);
    let mut weir = setup.start(&document(0));

    let tally = Arc::new(Tally::default());
    let mut threads: Vec<_> = clients(&weir)
        .into_iter()
        .map(|(kind, mut client)| {
            let tally = tally.clone();
            thread::spawn(move || {
                while tally.goes_on() {
                    tally.judge(kind, client());
                }
            })
        })
        .collect();
    let (pace, source) = (tally.clone(), events.clone());
    threads.push(thread::spawn(move || {
        while pace.goes_on() {
            source.release(5);
            thread::sleep(PAUSE);
        }
        // what has begun comes to its end
        source.release(100_000);
    }));

    let end = Instant::now() + length;
    let mut changes = Changes::default();
    for number in 1.. {
        changes.make(number, weir.setup(), &authority);
        if Instant::now() >= end && number >= 8 {
            break;
        }
    }
    tally.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().expect("a client does not panic");
    }

    let answered = tally.answered.lock().unwrap();
    println!("{changes:?}\n{answered:#?}");
    let failures = tally.failures.lock().unwrap();
    let count = tally.count.load(Ordering::Relaxed);
    assert!(failures.is_empty(), "beside {count} answers: {failures:#?}");
    assert_eq!(answered.len(), 11, "each kind of client was served");

    assert!(weir.wait().success(), "the first process ended well");
    let last = Daemon::find(weir.setup());
    // listeners, logs and what the runtime has; idle connections to the backends are few
    eventually(PATIENCE, || last.open_files() < FILES);
    assert!(last.memory() < MEMORY, "{} bytes", last.memory());
    // the one before may still wait for clients that do not come back
    eventually(PATIENCE, || last.siblings() == 0);
    last.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !last.is_running());
}
