//! Good requests beside thousands of slow clients: are they served as if those were not there?
//!
//! A third of the slow clients sends a header, a third a body, and a third reads an answer, each as slowly as the server
//! lets it; whoever is thrown out comes back. They come from many addresses, a hundred from each, as no bound for one
//! client is to save the server. All of them are in one thread and
//! wait nearly all of the time, so that what is measured is the server. (slowhttptest takes nearly two cores for as many.)

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use crate::load::{self, Target};
use crate::server::{Bench, Door, Running, Server};

/// How many slow clients come in a second.
const ARRIVALS: usize = 1000;
/// How many of them have one address.
const OF_ONE_ADDRESS: usize = 100;
/// Between two signs of life of one of them.
const PAUSE: Duration = Duration::from_secs(2);
/// What it sends of a body then: what weir asks for at least, and a little more.
const PIECE: usize = 1200;
/// What it takes of an answer then.
const SIP: usize = 32;
/// What the kernel holds for it of an answer.
const RECEIVE_BUFFER: u32 = 4096;

/// The light load: so many clients, half of which make a new connection for each request.
const CLIENTS: u32 = 8;
/// Between two requests of one of them: 200 in a second for all.
const TURN: Duration = Duration::from_millis(40);
/// How long the load is measured alone, and how long beside all slow clients: longer than any time limit for a header that
/// weir has, shorter than any other.
const ALONE: Duration = Duration::from_secs(15);
const BESIDE: Duration = Duration::from_secs(30);

/// Measures and prints; weir and nginx take turns.
pub fn run(bench: &Bench, servers: &[Server], slow: usize, rounds: u32) -> Result<()> {
    println!(
        "good requests, alone and beside {slow} slow clients: while these come, and when all are there\n"
    );
    for round in 1..=rounds {
        for server in servers {
            let running = bench.start(*server, false)?;
            let sample = measure(&running, &bench.origin_target("/"), slow)
                .with_context(|| format!("{} in round {round}", server.name()))?;
            println!("{:<7} {sample}", server.name());
        }
    }
    Ok(())
}

struct Sample {
    alone: Times,
    coming: Times,
    beside: Times,
    /// Beside all of them as well, but straight from the origin: what the load and its core add by themselves.
    past: Times,
    /// Of a core, while all are there.
    cpu: f64,
    /// Bytes that the slow ones have added.
    memory: u64,
    /// Slow clients that are connected in the end.
    open: [usize; 3],
    /// How often one of them was thrown out.
    ended: usize,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [headers, bodies, readers] = self.open;
        write!(
            f,
            "alone {}   coming {}   beside {}   past it {}   p99 x {:.1}, x {:.1}   CPU {:.0}%   {:.0} MB more   \
             in the end {headers} headers, {bodies} bodies, {readers} readers; {} thrown out",
            self.alone,
            self.coming,
            self.beside,
            self.past,
            self.coming.p99.as_secs_f64() / self.alone.p99.as_secs_f64(),
            self.beside.p99.as_secs_f64() / self.alone.p99.as_secs_f64(),
            self.cpu * 100.0,
            self.memory as f64 / 1e6,
            self.ended,
        )
    }
}

fn measure(server: &Running, origin: &Target, slow: usize) -> Result<Sample> {
    let target = server.target("/", Door::Plain);
    light_load(&target, Duration::from_secs(1)); // not counted: pools and caches fill
    let alone = light_load(&target, ALONE);

    let memory = server.process.memory()?;
    let crowd = Crowd::gather(target.address, slow)?;
    let coming = light_load(&target, Duration::from_secs((slow / ARRIVALS) as u64 + 1));
    let cpu = server.process.cpu()?;
    let beside = light_load(&target, BESIDE);
    let cpu = server.process.cpu()?.saturating_sub(cpu);
    let past = light_load(origin, ALONE);
    Ok(Sample {
        alone,
        coming,
        beside,
        past,
        cpu: cpu.as_secs_f64() / BESIDE.as_secs_f64(),
        memory: server.process.memory()?.saturating_sub(memory),
        open: crowd.open(),
        ended: crowd.counts.ended.load(Ordering::Relaxed),
    })
}

/// How long requests took.
struct Times {
    p50: Duration,
    p99: Duration,
    failed: usize,
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        write!(f, "{:.2}/{:.2} ms", millis(self.p50), millis(self.p99))?;
        match self.failed {
            0 => Ok(()),
            failed => write!(f, " {failed} FAILED"),
        }
    }
}

fn light_load(target: &Target, time: Duration) -> Times {
    let begun = Instant::now();
    let client = |n: u32| {
        let mut kept = None;
        let (mut times, mut failed) = (Vec::new(), 0);
        // What is late counts as late, whatever made it so: the next request does not wait for it.
        let mut due = begun + TURN * n / CLIENTS;
        while due < begun + time {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let closes = n.is_multiple_of(2);
            let stream = kept.take().map_or_else(|| load::connect(target), Ok);
            let word = if closes { "close" } else { "keep-alive" };
            match stream.and_then(|stream| load::exchange(stream, target, word)) {
                Ok(stream) if !closes => kept = Some(stream),
                Ok(_) => {}
                Err(_) => failed += 1,
            }
            times.push(due.elapsed());
            due += TURN;
        }
        (times, failed)
    };
    let mut times = Vec::new();
    let mut failed = 0;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| scope.spawn(move || client(n)))
            .collect();
        for client in clients {
            // A client only panics when this program is wrong; then its requests count as failed.
            let (mut more, errors) = client.join().unwrap_or_else(|_| (Vec::new(), 1));
            times.append(&mut more);
            failed += errors;
        }
    });
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied();
    Times {
        p50: at(50).unwrap_or_default(),
        p99: at(99).unwrap_or_default(),
        failed,
    }
}

/// Slow clients, until this is dropped.
struct Crowd {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    over: AtomicBool,
    open: [AtomicUsize; 3],
    ended: AtomicUsize,
}

#[derive(Clone, Copy)]
enum Kind {
    Header,
    Body,
    Reader,
}

impl Crowd {
    /// They begin to come.
    fn gather(server: SocketAddr, clients: usize) -> Result<Crowd> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let counts = Arc::<Counts>::default();
        let shared = counts.clone();
        let thread = thread::spawn(move || {
            give_way();
            runtime.block_on(async {
                let begun = Instant::now();
                let mut come = 0;
                while !shared.over.load(Ordering::Relaxed) {
                    let due = begun.elapsed().as_millis() as usize * ARRIVALS / 1000;
                    for n in come..due.min(clients) {
                        tokio::spawn(come_and_come_again(server, n, shared.clone()));
                    }
                    come = due.min(clients);
                    sleep(Duration::from_millis(10)).await;
                }
            });
        });
        Ok(Crowd {
            counts,
            thread: Some(thread),
        })
    }

    fn open(&self) -> [usize; 3] {
        [0, 1, 2].map(|kind| self.counts.open[kind].load(Ordering::Relaxed))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.counts.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Has the good clients, which share a core with this thread, not wait for it.
fn give_way() {
    // On Linux a thread has a priority of its own.
    let thread = nix::unistd::gettid().to_string();
    let mut renice = Command::new("renice");
    renice
        .args(["-n", "19", "-p", &thread])
        .stdout(Stdio::null());
    if !renice.status().is_ok_and(|status| status.success()) {
        eprintln!("no `renice` here: the good clients wait for the slow ones as well");
    }
}

async fn come_and_come_again(server: SocketAddr, number: usize, counts: Arc<Counts>) {
    let kind = [Kind::Header, Kind::Body, Kind::Reader][number % 3];
    let address = Ipv4Addr::from_bits(
        Ipv4Addr::new(127, 0, 1, 0).to_bits() + (number / OF_ONE_ADDRESS) as u32,
    );
    let open = &counts.open[kind as usize];
    loop {
        if let Ok(stream) = connect(server, address, kind).await {
            open.fetch_add(1, Ordering::Relaxed);
            // However it ends, it comes again.
            let _ = kind.stay(stream).await;
            open.fetch_sub(1, Ordering::Relaxed);
            counts.ended.fetch_add(1, Ordering::Relaxed);
        }
        sleep(PAUSE / 2).await;
    }
}

async fn connect(server: SocketAddr, from: Ipv4Addr, kind: Kind) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Kind::Reader = kind {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind((from, 0).into())?;
    socket.connect(server).await
}

impl Kind {
    /// Ready when the server has thrown it out, or answered.
    async fn stay(self, mut stream: TcpStream) -> std::io::Result<()> {
        let begin = match self {
            Kind::Header => "GET / HTTP/1.1\r\nHost: localhost\r\nX: ",
            Kind::Body => {
                "POST /sink HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
            }
            Kind::Reader => "GET /10m HTTP/1.1\r\nHost: localhost\r\n\r\n",
        };
        stream.write_all(begin.as_bytes()).await?;
        let mut buffer = [0; SIP];
        loop {
            let more: &[u8] = match self {
                Kind::Header => b"x",
                Kind::Body => &[b'x'; PIECE],
                Kind::Reader => {
                    sleep(PAUSE).await;
                    match stream.read(&mut buffer).await? {
                        0 => return Ok(()),
                        _ => continue,
                    }
                }
            };
            if let Ok(read) = timeout(PAUSE, stream.read(&mut buffer)).await {
                return read.map(drop);
            }
            stream.write_all(more).await?;
        }
    }
}
