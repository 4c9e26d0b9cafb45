//! weir, nginx and haproxy side by side on this machine: what does one request cost each of them?
//!
//! Every server gets one worker on one core; the load generators and the origin share another one. For each case the
//! servers take turns, round after round, so that a noisy minute hits all of them, and the medians over the rounds are
//! printed: first as they are, then as ratios. `benches/README.md` tells how to read them.
//!
//! Run it with `make bench`, or `cargo bench --bench compare -- --case small --rounds 1`.

mod load;
mod process;
mod report;
mod server;
mod slow;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;

use load::Load;
use report::{Report, Sample};
use server::{Bench, Door, Running, Server};

/// Compares weir with nginx and haproxy
#[derive(Parser)]
struct Options {
    /// Only this case (may be repeated)
    #[arg(long = "case", value_name = "NAME", value_parser = CASES.map(|case| case.name))]
    cases: Vec<String>,
    /// Only this server (may be repeated)
    #[arg(long = "server", value_name = "NAME", value_parser = Server::ALL.map(Server::name))]
    servers: Vec<String>,
    /// How often each server is measured in each case
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long one measurement lasts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Not the comparison: good requests beside so many slow clients (10000), with weir and nginx in turn
    #[arg(long, value_name = "CLIENTS", num_args = 0..=1, default_missing_value = "10000")]
    slow: Option<usize>,
    /// Another weir binary than the one just built
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_weir"))]
    weir: PathBuf,
    /// The core of the server under test, and that of load and origin (default: the first two this process may use)
    #[arg(long, value_name = "SERVER,LOAD", value_delimiter = ',', num_args = 2)]
    cpus: Vec<usize>,
    /// Given by `cargo bench` to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// One kind of traffic.
struct Case {
    name: &'static str,
    /// What is sent, for the table.
    what: &'static str,
    path: &'static str,
    door: Door,
    load: Load,
    /// The servers that can do this at all.
    servers: &'static [Server],
    access_log: bool,
}

/// How many connections a server takes in the comparison.
const CONNECTIONS: usize = 8192;

const PROXIES: &[Server] = &[Server::Weir, Server::Nginx, Server::Haproxy];
/// haproxy serves no files, and has no access log file of its own (it sends to syslog).
const WEB_SERVERS: &[Server] = &[Server::Weir, Server::Nginx];

const CASES: [Case; 16] = [
    Case {
        what: "proxied, 32 keep-alive connections",
        ..Case::proxied("small", Load::wrk(32))
    },
    Case {
        what: "proxied, a new connection for each request",
        ..Case::proxied(
            "new",
            Load::Wrk {
                connections: 32,
                close: true,
            },
        )
    },
    Case {
        what: "proxied, 32 keep-alive connections, TLS 1.3",
        door: Door::Tls,
        ..Case::proxied("tls", Load::wrk(32))
    },
    Case {
        what: "proxied, a full TLS 1.3 handshake for each request",
        door: Door::Tls,
        ..Case::proxied("tls-new", Load::Handshakes { clients: 16 })
    },
    Case {
        what: "proxied, HTTP/2 over TLS, 8 connections of 16 streams",
        door: Door::Tls,
        ..Case::proxied(
            "h2",
            Load::H2load {
                connections: 8,
                streams: 16,
            },
        )
    },
    Case {
        what: "proxied, 64 KiB bodies, 16 keep-alive connections",
        path: "/64k",
        ..Case::proxied("64k", Load::wrk(16))
    },
    Case {
        what: "proxied, 10 MiB bodies, 4 keep-alive connections",
        path: "/10m",
        ..Case::proxied("10m", Load::wrk(4))
    },
    Case {
        what: "a file of 1 KiB, 32 keep-alive connections",
        path: "/static/1k",
        servers: WEB_SERVERS,
        ..Case::proxied("static-1k", Load::wrk(32))
    },
    Case {
        what: "a file of 100 KiB, 16 keep-alive connections",
        path: "/static/100k",
        servers: WEB_SERVERS,
        ..Case::proxied("static-100k", Load::wrk(16))
    },
    Case {
        what: "a file of 10 MiB, 4 keep-alive connections",
        path: "/static/10m",
        servers: WEB_SERVERS,
        ..Case::proxied("static-10m", Load::wrk(4))
    },
    Case {
        what: "a file of 1 KiB, HTTP/2 over TLS, 8 connections of 16 streams",
        path: "/static/1k",
        door: Door::Tls,
        servers: WEB_SERVERS,
        ..Case::proxied(
            "static-h2",
            Load::H2load {
                connections: 8,
                streams: 16,
            },
        )
    },
    Case {
        what: "as static-1k, from the companion service",
        path: "/static/1k",
        door: Door::Companion,
        servers: WEB_SERVERS,
        ..Case::proxied("companion-1k", Load::wrk(32))
    },
    Case {
        what: "as static-100k, from the companion service",
        path: "/static/100k",
        door: Door::Companion,
        servers: WEB_SERVERS,
        ..Case::proxied("companion-100k", Load::wrk(16))
    },
    Case {
        what: "as static-10m, from the companion service",
        path: "/static/10m",
        door: Door::Companion,
        servers: WEB_SERVERS,
        ..Case::proxied("companion-10m", Load::wrk(4))
    },
    Case {
        what: "as small, with a buffered access log",
        servers: WEB_SERVERS,
        access_log: true,
        ..Case::proxied("small-log", Load::wrk(32))
    },
    Case {
        what: "5,000 idle keep-alive connections; memory is per connection",
        ..Case::proxied("idle", Load::Idle { connections: 5000 })
    },
];

impl Case {
    const fn proxied(name: &'static str, load: Load) -> Self {
        Case {
            name,
            what: "",
            path: "/",
            door: Door::Plain,
            load,
            servers: PROXIES,
            access_log: false,
        }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let (server_cpu, load_cpu) = cpus(&options.cpus)?;
    // Everything started from here on, origin and load generators included, inherits the core and the limit.
    pin_this_process(load_cpu)?;
    raise_file_limit()?;

    let connections = options.slow.map_or(CONNECTIONS, |slow| 2 * slow);
    let bench = Bench::prepare(&options.weir, server_cpu, connections)?;
    let _origin = bench.start_origin()?;
    let mut servers = Vec::from(Server::ALL);
    servers.retain(|server| picked(&options.servers, server.name()));
    servers.retain(|server| {
        let installed = bench.installed(*server);
        if !installed {
            eprintln!("compare: {} is not installed, left out", server.name());
        }
        installed
    });
    if let Some(slow) = options.slow {
        servers.retain(|server| WEB_SERVERS.contains(server));
        return slow::run(&bench, &servers, slow, options.rounds);
    }
    ensure!(!servers.is_empty(), "no server to measure");
    let mut report = Report::default();
    let mut failures = BTreeSet::new();

    for round in 1..=options.rounds {
        for case in CASES
            .iter()
            .filter(|case| picked(&options.cases, case.name))
        {
            // The first place in a turn is not always the same server's.
            servers.rotate_left(1);
            for server in servers
                .clone()
                .into_iter()
                .filter(|server| case.servers.contains(server))
            {
                let name = server.name();
                eprint!(
                    "round {round}/{}  {:<12} {name:<8} ",
                    options.rounds, case.name
                );
                let running = match bench.start(server, case.access_log) {
                    Ok(running) => running,
                    Err(error) => {
                        eprintln!("does not start and is left out from here on: {error:#}");
                        failures.insert(format!("{name} (does not start)"));
                        servers.retain(|other| *other != server);
                        continue;
                    }
                };
                match measure(&running, case, options.seconds, bench.dir()) {
                    Ok(sample) => {
                        eprintln!("{sample}");
                        report.add(case, server, sample);
                    }
                    Err(error) => {
                        eprintln!("failed: {error:#}");
                        failures.insert(format!("{name} in {}", case.name));
                    }
                }
            }
        }
    }

    report.print();
    if !failures.is_empty() {
        bail!("not measured: {}", Vec::from_iter(failures).join(", "));
    }
    Ok(())
}

/// One server in one case. The process is a fresh one, so that its memory tells of this case alone.
fn measure(server: &Running, case: &Case, seconds: u64, scratch: &Path) -> Result<Sample> {
    let target = server.target(case.path, case.door);
    load::check(&target)?;

    if let Load::Idle { connections } = case.load {
        let before = server.process.memory()?;
        let held = load::hold_idle(&target, connections)?;
        let after = server.process.memory()?;
        drop(held);
        return Ok(Sample::idle(
            after.saturating_sub(before) as f64 / connections as f64,
        ));
    }

    // The first second fills connection pools and allocator caches and is not counted.
    case.load.run(&target, Duration::from_secs(1), scratch)?;
    let before = server.process.cpu()?;
    let done = case
        .load
        .run(&target, Duration::from_secs(seconds), scratch)?;
    let cpu = server.process.cpu()?.saturating_sub(before);
    ensure!(done.requests > 0, "no request was answered");
    Ok(Sample::traffic(&done, cpu, server.process.memory()?))
}

fn picked(wanted: &[String], name: &str) -> bool {
    wanted.is_empty() || wanted.iter().any(|word| word == name)
}

/// The cores to use: those asked for, else the first two of those this process may run on.
fn cpus(asked: &[usize]) -> Result<(usize, usize)> {
    if let [server, load] = asked {
        return Ok((*server, *load));
    }
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .context("/proc/self/status has no Cpus_allowed_list")?;
    let mut allowed = list.trim().split(',').flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse::<usize>().unwrap_or(0)..=last.parse().unwrap_or(0)
    });
    let server = allowed.next().context("no core to run on")?;
    let load = allowed.next().unwrap_or_else(|| {
        eprintln!("compare: only one core: load and server share it, the figures mean little");
        server
    });
    Ok((server, load))
}

fn pin_this_process(cpu: usize) -> Result<()> {
    quiet(Command::new("taskset").args(["-acp", &cpu.to_string(), &std::process::id().to_string()]))
}

/// 5,000 idle connections need as many files here and in the server; the usual soft limit is 1,024.
fn raise_file_limit() -> Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits").context("/proc/self/limits")?;
    let hard = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|columns| columns.split_whitespace().nth(1))
        .context("/proc/self/limits has no `Max open files`")?;
    quiet(Command::new("prlimit").args([
        &format!("--nofile={hard}:"),
        "--pid",
        &std::process::id().to_string(),
    ]))
}

/// Runs a small tool to its end; what it had to say is shown only when it fails.
fn quiet(command: &mut Command) -> Result<()> {
    let program = Path::new(command.get_program()).to_owned();
    let output = command
        .output()
        .with_context(|| program.display().to_string())?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
