//! From a compiled configuration to a running server.
//!
//! The order matters: fork before any thread exists; open sockets, logs and the pid file while still root; only then
//! become the user, and only then start threads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};

use super::daemon::{self, Background, PidFile};
use super::logs::Logs;
use super::service::{Change, Handle, ListenerService, Opened};
use super::signals::{self, Admin, Debut, Signals};
use super::swap::{self, Swapper};
use super::systemd;
use super::upgrade::{Inheritance, Receiver, Sockets};
use crate::admin::Endpoint;
use crate::net::Room;
use crate::net::bind::{Bind, ListenSocket};
use crate::phases;
use crate::runtime::reload::{Document, Loaded, Reloader, Source};
use crate::runtime::watch::Watch;
use crate::runtime::{Boot, Live, Part, Plan, Snapshot, tasks};

/// For what still runs to be dropped.
const CUTTING: Duration = Duration::from_secs(1);

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All requests that began were answered.
    Whole,
    /// Some were cut.
    Cut,
}

/// How to start, from the command line.
#[derive(Clone, Debug, Default)]
pub struct How {
    /// Go to the background (`-d`).
    pub daemon: bool,
    /// Take the listening sockets of the running process (`-u`).
    pub upgrade: bool,
    /// Said on standard error once the sockets are open.
    pub greeting: Option<String>,
}

/// Runs until told to stop; the result says what came of the last requests.
///
/// # Errors
/// When the process cannot start: a socket, a file, a user. What is wrong in the configuration was found before.
pub fn run(source: Source, loaded: Loaded, how: How) -> anyhow::Result<Ended> {
    let Loaded {
        config,
        plan,
        sources,
        ..
    } = loaded;
    let document = Document {
        source,
        config,
        // Now: what changes from here on is not in it.
        watch: Watch::new(sources.into_dependencies(true)),
    };
    let Plan { boot, snapshot } = plan;
    let given = systemd::sockets()?;
    let program = swap::program().context("cannot find this program's file")?;
    let receiver = match how.upgrade {
        true => Receiver::started().context("cannot speak to the running process")?,
        false => None,
    };
    let background = go_to_background(&how, &boot, receiver.is_some())?;
    // Before any thread exists, which would take them otherwise.
    signals::hold()?;
    let logs = Logs::start(&snapshot)?;
    let output = background.as_ref().map(|_| boot.error_log.as_path());
    for file in snapshot.log_files().chain(output) {
        daemon::give(file, boot.user.as_deref())?;
    }
    let mut debut = Debut {
        background,
        ..Debut::default()
    };
    let mut sockets = Vec::from_iter(
        given
            .into_iter()
            .map(|(name, fd)| (Bind::Systemd(name).to_string(), fd)),
    );
    if how.upgrade {
        let inheritance = take_over(&boot, receiver, &mut debut.background)?;
        sockets.extend(inheritance.sockets);
        if let Some(file) = inheritance.ticket_keys
            && let Err(e) = swap::adopt_ticket_keys(snapshot.ticket_keys(), file)
        {
            log::warn!("sessions of the running process are not resumed: {e}");
        }
        debut.successor = Some(inheritance.successor);
        debut.stderr = inheritance.stderr;
    }
    let doors = open_all(&boot, &snapshot, sockets.into_iter().collect())?;
    let pid_file = boot.pid_file.as_deref().map(PidFile::write).transpose();
    let pid_file = pid_file.context("cannot write the pid file")?.map(Arc::new);
    daemon::become_user(boot.user.as_deref(), boot.group.as_deref())?;
    if let Some(greeting) = how.greeting {
        eprintln!("weir: {greeting}");
    }
    // A process without a file has no successor; whoever waits on the default path waits for another one.
    let swapper = match &document.source {
        Source::File(file) => Some(Swapper {
            program,
            file: file.clone(),
            background: how.daemon,
            upgrade_sock: boot.upgrade_sock.clone(),
            pid_file: pid_file.clone(),
            ticket_keys: snapshot.ticket_keys().clone(),
        }),
        Source::Text { .. } => None,
    };
    let live = serve(Start {
        document,
        boot,
        snapshot: Arc::new(snapshot),
        doors,
        debut,
        swapper,
        logs: logs.clone(),
    });
    await_cuts(&live);
    let cuts = live.load().cuts.clone();
    cuts.report();
    logs.flush();
    // Only now: the last snapshot holds the files that were flushed.
    drop(live);
    drop(pid_file);
    Ok(match cuts.count() {
        0 => Ended::Whole,
        _ => Ended::Cut,
    })
}

/// The runtimes drop what still ran on threads of their own, for which nobody waits.
fn await_cuts(live: &Live) {
    let deadline = Instant::now() + CUTTING;
    while live.connections() + live.requests() > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Where `-d` or the file says so. A process that was `started` by the running one is where that is, and its parent
/// watches it.
fn go_to_background(how: &How, boot: &Boot, started: bool) -> anyhow::Result<Option<Background>> {
    if !how.daemon && !boot.daemon {
        return Ok(None);
    }
    if signals::is_init() {
        // The container ends with it.
        eprintln!("weir: process 1 of a container stays in the foreground");
        return Ok(None);
    }
    let (output, directory) = (&boot.error_log, &boot.working_directory);
    match started {
        true => daemon::stay(output, directory).map(Some),
        false => daemon::fork(output, directory).map(Some),
    }
}

/// Waits for the running process and takes its sockets. If this one was started by hand, its foreground returns as soon
/// as the running one may be told (QUIT).
fn take_over(
    boot: &Boot,
    receiver: Option<Receiver>,
    background: &mut Option<Background>,
) -> anyhow::Result<Inheritance> {
    let receiver = match receiver {
        Some(receiver) => receiver,
        None => {
            let path = &boot.upgrade_sock;
            let receiver = Receiver::listen(path, boot.user.as_deref())
                .with_context(|| format!("cannot wait for sockets on `{}`", path.display()))?;
            log::info!(
                "waiting for the sockets of the running process on {}",
                path.display()
            );
            if let Some(background) = background.take() {
                background.ready();
            }
            receiver
        }
    };
    signals::release()?;
    let taken = receiver
        .receive()
        .inspect_err(|e| log::error!("no sockets were handed over: {e}"));
    signals::hold()?;
    let taken = taken.context("no sockets were handed over")?;
    log::info!("took {} sockets over", taken.sockets.len());
    Ok(taken)
}

/// The sockets of a process, before it serves.
struct Doors {
    services: Vec<(Part, Opened)>,
    admin: Option<(Bind, ListenSocket)>,
}

/// Opens all sockets that are not inherited; inherited ones that nobody wants any more are closed.
fn open_all(boot: &Boot, snapshot: &Snapshot, mut inherited: Sockets) -> anyhow::Result<Doors> {
    let open = |bind: &Bind, inherited: &mut Sockets| match inherited.remove(&bind.to_string()) {
        Some(fd) => ListenSocket::inherited(fd),
        None => bind.listen(),
    };
    // First: who finds the ports open is to find it as well.
    let admin = match &boot.admin {
        Some(bind) => open_admin(bind, boot, &mut inherited)?,
        None => None,
    };
    let mut services = Vec::new();
    for part in [Part::Edge, Part::Companion] {
        let mut opened = Opened::new();
        for bind in snapshot
            .listeners(part)
            .values()
            .flat_map(|listener| &listener.binds)
        {
            let socket =
                open(bind, &mut inherited).with_context(|| format!("cannot listen on {bind}"))?;
            opened.insert(bind.clone(), socket);
        }
        services.push((part, opened));
    }
    for name in inherited.keys().filter(|name| name.starts_with("systemd:")) {
        log::warn!("the service manager opens a socket that no listener has: bind: {name}");
    }
    Ok(Doors { services, admin })
}

/// Opens the admin socket. One that nobody has asked for gives way: another process may be on it already.
fn open_admin(
    bind: &Bind,
    boot: &Boot,
    inherited: &mut Sockets,
) -> anyhow::Result<Option<(Bind, ListenSocket)>> {
    if let Some(fd) = inherited.remove(&bind.to_string()) {
        return Ok(Some((bind.clone(), ListenSocket::inherited(fd)?)));
    }
    match bind.listen_private() {
        Ok(socket) => {
            if let Bind::Unix(path) = bind {
                daemon::give(path, boot.user.as_deref())?;
            }
            Ok(Some((bind.clone(), socket)))
        }
        Err(e) if boot.admin_is_given => {
            Err(e).with_context(|| format!("cannot listen on {bind}, the admin socket"))
        }
        Err(e) => {
            log::warn!("going on without an admin socket: cannot listen on {bind}: {e}");
            Ok(None)
        }
    }
}

/// All that a process has before it serves.
struct Start {
    document: Document,
    boot: Boot,
    snapshot: Arc<Snapshot>,
    doors: Doors,
    debut: Debut,
    swapper: Option<Swapper>,
    logs: Arc<Logs>,
}

fn serve(start: Start) -> Arc<Live> {
    let Start {
        document,
        boot,
        snapshot,
        doors,
        debut,
        swapper,
        logs,
    } = start;
    let conf = server_conf(&boot);
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    snapshot.present_certificates();
    snapshot.warn_of_key_logs();
    let live = Arc::new(Live::new(snapshot.clone(), Room::of_process()));
    let edge = phases::Edge::new(&server.configuration, live.clone());
    let (edge, edge_handle) = ListenerService::new(
        Part::Edge,
        Arc::new(edge),
        Arc::new(phases::Refusals::new(Part::Edge, live.clone())),
        &live,
        boot.threads,
        boot.listener_tasks_per_fd,
    );
    // Files need few threads; without any `static:` entry one that sleeps.
    let threads = if snapshot.listeners(Part::Companion).is_empty() {
        1
    } else {
        boot.threads
    };
    let (companion, companion_handle) = ListenerService::new(
        Part::Companion,
        Arc::new(phases::Companion::new(live.clone())),
        Arc::new(phases::Refusals::new(Part::Companion, live.clone())),
        &live,
        threads,
        boot.listener_tasks_per_fd,
    );
    server.add_service(edge);
    server.add_service(companion);
    let services = vec![edge_handle, companion_handle];
    for (part, opened) in doors.services {
        let service = services
            .iter()
            .find(|service: &&Handle| service.part == part);
        let change = Change {
            snapshot: snapshot.clone(),
            opened,
        };
        service.expect("each part has its service").follow(change);
    }
    await_probes(&snapshot);
    // Who counts its holders counts requests.
    drop(snapshot);
    log::info!(
        "weir {} runs as process {}",
        env!("CARGO_PKG_VERSION"),
        std::process::id()
    );
    let admin = doors.admin.map(|(bind, socket)| {
        let (endpoint, orders) = Endpoint::new(bind, socket, live.clone());
        Admin {
            endpoint,
            orders: Mutex::new(Some(orders)),
        }
    });
    let reloader = Arc::new(Reloader::new(document, boot, live.clone()));
    let signals = Signals {
        reloader,
        services,
        logs,
        swapper,
        admin,
        debut: Mutex::new(Some(debut)),
    };
    server.run(RunArgs {
        shutdown_signal: Box::new(signals),
    });
    live
}

/// Waits until all members are known that get no requests before that. The process that runs so far serves meanwhile, and
/// whoever connects without one waits, too.
fn await_probes(snapshot: &Snapshot) {
    if !snapshot.pools.values().any(|pool| pool.awaits_probes()) {
        return;
    }
    // The runtimes of the services start with the server.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(tasks::first_probes(snapshot)),
        Err(e) => log::error!("cannot probe before serving: {e}"),
    }
}

fn server_conf(boot: &Boot) -> ServerConf {
    let mut conf = ServerConf {
        threads: boot.threads,
        work_stealing: boot.work_stealing,
        listener_tasks_per_fd: boot.listener_tasks_per_fd,
        max_retries: boot.max_retries,
        ..ServerConf::default()
    };
    if let Some(size) = boot.upstream_keepalive_pool_size {
        conf.upstream_keepalive_pool_size = size;
    }
    conf
}
