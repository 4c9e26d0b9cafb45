//! The load: wrk for HTTP/1.1, h2load for HTTP/2, and two small clients of our own where neither does the job.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use pingora::tls::ssl::{SslConnector, SslMethod, SslVerifyMode, SslVersion};

/// How requests are made.
#[derive(Clone, Copy)]
pub enum Load {
    /// wrk; with `close`, each request asks for the end of its connection.
    Wrk {
        connections: u32,
        close: bool,
    },
    H2load {
        connections: u32,
        streams: u32,
    },
    /// A new TLS connection for each request. Not wrk: it resumes its earlier sessions, so that it measures resumption
    /// where a server offers it and full handshakes where not.
    Handshakes {
        clients: usize,
    },
    /// Connections that have done one request each and then stay.
    Idle {
        connections: usize,
    },
}

/// Where requests go.
#[derive(Clone, Copy)]
pub struct Target {
    pub address: SocketAddr,
    pub path: &'static str,
    pub tls: bool,
}

/// What came of it.
pub struct Done {
    pub requests: u64,
    pub failed: u64,
    pub per_second: f64,
    pub p99: Duration,
}

impl Load {
    pub const fn wrk(connections: u32) -> Self {
        Load::Wrk {
            connections,
            close: false,
        }
    }

    /// Runs for `time`; `scratch` is a directory for what a tool writes.
    pub fn run(self, target: &Target, time: Duration, scratch: &Path) -> Result<Done> {
        match self {
            Load::Wrk { connections, close } => wrk(target, time, connections, close),
            Load::H2load {
                connections,
                streams,
            } => h2load(target, time, connections, streams, scratch),
            Load::Handshakes { clients } => handshakes(target, time, clients),
            Load::Idle { .. } => bail!("idle connections are held, not run"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.address, self.path)
    }
}

fn wrk(target: &Target, time: Duration, connections: u32, close: bool) -> Result<Done> {
    let mut command = Command::new("wrk");
    command.args([
        "-t1",
        "--latency",
        &format!("-c{connections}"),
        &format!("-d{}s", time.as_secs()),
    ]);
    if close {
        command.args(["-H", "Connection: close"]);
    }
    parse_wrk(&stdout(command.arg(target.to_string()))?)
}

/// Reads, among others, these lines:
///
/// ```text
///      99%   10.51ms
///   1230 requests in 1.01s, 174.17KB read
///   Socket errors: connect 0, read 2, write 0, timeout 0
///   Non-2xx or 3xx responses: 7
/// Requests/sec:   1214.69
/// ```
fn parse_wrk(text: &str) -> Result<Done> {
    let line = |start: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(start))
    };
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .and_then(|(count, _)| count.parse().ok());
    let socket_errors: u64 = line("Socket errors:")
        .into_iter()
        .flat_map(|list| list.split(','))
        .filter_map(|entry| entry.trim().rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    let refused: u64 = line("Non-2xx or 3xx responses:")
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0);
    let parsed = (|| {
        Some(Done {
            requests: requests?,
            failed: socket_errors + refused,
            per_second: line("Requests/sec:")?.trim().parse().ok()?,
            p99: duration(line("99%")?.trim())?,
        })
    })();
    parsed.with_context(|| format!("cannot read what wrk says:\n{text}"))
}

/// A duration as wrk prints it: `812.00us`, `10.51ms`, `1.02s`, `1.00m`.
fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit_at);
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

fn h2load(
    target: &Target,
    time: Duration,
    connections: u32,
    streams: u32,
    scratch: &Path,
) -> Result<Done> {
    // It prints no percentiles, but logs each request: start, status, microseconds.
    let log = scratch.join("h2load.log");
    let _ = fs::remove_file(&log);
    let mut command = Command::new("h2load");
    command.args([
        "-t1",
        &format!("-c{connections}"),
        &format!("-m{streams}"),
        &format!("-D{}", time.as_secs()),
    ]);
    let text = stdout(command.arg("--log-file").arg(&log).arg(target.to_string()))?;
    ensure!(
        text.contains("Application protocol: h2"),
        "the server did not agree to HTTP/2"
    );

    // requests: 1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored, 0 timeout
    let counts = text
        .lines()
        .find_map(|line| line.strip_prefix("requests: "))
        .context("h2load printed no counts")?;
    let count = |what: &str| -> Option<u64> {
        counts
            .split(", ")
            .find_map(|entry| entry.strip_suffix(what)?.trim().parse().ok())
    };
    let (Some(succeeded), Some(failed)) = (count("succeeded"), count("failed")) else {
        bail!("cannot read what h2load says: {counts}");
    };
    let log = fs::read_to_string(&log).context("the log of h2load")?;
    let times = log
        .lines()
        .filter_map(|line| line.split('\t').nth(2)?.parse().ok())
        .map(Duration::from_micros);
    Ok(Done {
        requests: succeeded,
        failed,
        per_second: succeeded as f64 / time.as_secs_f64(),
        p99: p99(times.collect()),
    })
}

/// Threads that each connect, shake hands, ask once and read to the end, until the time is over.
fn handshakes(target: &Target, time: Duration, clients: usize) -> Result<Done> {
    let mut connector = SslConnector::builder(SslMethod::tls())?;
    connector.set_verify(SslVerifyMode::NONE);
    connector.set_min_proto_version(Some(SslVersion::TLS1_3))?;
    // What all three servers know; left to itself, one library would do post-quantum work that the others cannot.
    connector.set_curves_list("X25519")?;
    let connector = connector.build();

    let start = Instant::now();
    let deadline = start + time;
    let client = || {
        let mut times = Vec::new();
        let mut failed = 0;
        while Instant::now() < deadline {
            let begun = Instant::now();
            match handshake(&connector, target) {
                Ok(()) => times.push(begun.elapsed()),
                Err(_) => failed += 1,
            }
        }
        (times, failed)
    };
    let mut times = Vec::new();
    let mut failed = 0;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        for client in clients {
            // A client only panics when this program is wrong; then its requests count as failed.
            let (mut more, errors) = client.join().unwrap_or_else(|_| (Vec::new(), 1));
            times.append(&mut more);
            failed += errors;
        }
    });
    let requests = times.len() as u64;
    Ok(Done {
        requests,
        failed,
        per_second: requests as f64 / start.elapsed().as_secs_f64(),
        p99: p99(times),
    })
}

fn handshake(connector: &SslConnector, target: &Target) -> Result<()> {
    let stream = connector
        .connect("localhost", connect(target)?)
        .map_err(|error| anyhow!("TLS handshake: {error}"))?;
    exchange(stream, target, "close").map(drop)
}

/// One request without TLS: is the server there, and does it answer as the measurement assumes? (The TLS side is
/// checked by the load itself, which counts what fails.)
pub fn check(target: &Target) -> Result<()> {
    if target.tls {
        return Ok(());
    }
    exchange(connect(target)?, target, "close").map(drop)
}

/// Opens connections, does one request on each, and keeps them.
pub fn hold_idle(target: &Target, connections: usize) -> Result<Vec<TcpStream>> {
    (0..connections)
        .map(|n| {
            connect(target)
                .and_then(|stream| exchange(stream, target, "keep-alive"))
                .with_context(|| format!("connection {n}"))
        })
        .collect()
}

pub fn connect(target: &Target) -> Result<TcpStream> {
    let patience = Duration::from_secs(5);
    let stream = TcpStream::connect_timeout(&target.address, patience).context("connect")?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sends a request, reads the whole answer (which must be 200 with a length), and gives the connection back.
pub fn exchange<S: Read + Write>(mut stream: S, target: &Target, connection: &str) -> Result<S> {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\n\r\n",
        target.path
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Some(head_end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&answer[..head_end]);
            ensure!(
                head.starts_with("HTTP/1.1 200"),
                "answered `{}`",
                head.lines().next().unwrap_or_default()
            );
            let length: usize = head
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .and_then(|(_, value)| value.trim().parse().ok())
                .context("an answer without Content-Length")?;
            let mut left = (head_end + 4 + length).saturating_sub(answer.len());
            while left > 0 {
                let read = stream.read(&mut buffer)?;
                ensure!(read > 0, "the body ended early");
                left = left.saturating_sub(read);
            }
            return Ok(stream);
        }
        let read = stream.read(&mut buffer)?;
        ensure!(read > 0, "the connection ended before the answer");
        answer.extend_from_slice(&buffer[..read]);
    }
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times
        .get(times.len() * 99 / 100)
        .copied()
        .unwrap_or_default()
}

fn stdout(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("{program} (make bench installs it)"))?;
    ensure!(
        output.status.success(),
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed no UTF-8"))
}
