//! What a service manager is told, what it gives, and the files in `systemd/`; process 1 of a container.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::harness::client::{Connection, get};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{BINARY, CONFIG, Process, Setup, one_site};

/// A service manager that listens.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(setup: &Setup) -> Manager {
        let path = setup.dir().join("notify");
        let socket = UnixDatagram::bind(&path).expect("make the socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
        Manager { socket, path }
    }

    fn start(&self, setup: &Setup, watchdog: Option<Duration>) -> Process {
        let mut command = Command::new(BINARY);
        command
            .args(["-c", CONFIG])
            .env("NOTIFY_SOCKET", &self.path);
        if let Some(limit) = watchdog {
            command.env("WATCHDOG_USEC", limit.as_micros().to_string());
        }
        setup.launch_command(&mut command)
    }

    /// The next message.
    #[track_caller]
    fn hear(&self) -> String {
        let mut message = [0; 256];
        let n = self.socket.recv(&mut message).expect("a message in time");
        String::from_utf8_lossy(&message[..n]).into_owned()
    }

    /// The next message that is no sign of life.
    #[track_caller]
    fn hear_news(&self) -> String {
        loop {
            let message = self.hear();
            if message != "WATCHDOG=1\n" {
                return message;
            }
        }
    }
}

fn document(body: &str) -> String {
    one_site(&format!("routes: [{{ respond: {{ body: {body} }} }}]"))
}

fn body(setup: &Setup) -> String {
    let address = format!("127.0.0.1:{}", setup.port("http"));
    let address = address.parse().expect("an address");
    let mut connection = Connection::tcp(address).expect("the socket accepts");
    let answer = connection.fetch(&get("/")).expect("an answer");
    answer.text().to_owned()
}

#[test]
fn manager_hears_of_readiness_reloads_and_the_end() {
    let setup = Setup::new();
    setup.write_config(&document("old"));
    let manager = Manager::new(&setup);
    let mut process = manager.start(&setup, None);
    assert_eq!(manager.hear(), "READY=1\n");
    assert_eq!(body(&setup), "old");
    for text in [document("new"), "sites: [".to_owned()] {
        setup.write_config(&text);
        process.signal(Signal::SIGHUP);
        let reloading = manager.hear();
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        let since = since.unwrap_or_else(|| panic!("{reloading}")).trim();
        assert!(since.parse::<u64>().is_ok(), "{reloading}");
        assert_eq!(manager.hear(), "READY=1\n");
        assert_eq!(body(&setup), "new");
    }
    process.signal(Signal::SIGTERM);
    assert_eq!(manager.hear(), "STOPPING=1\n");
    assert!(process.wait().expect("the process ends").success());
}

#[test]
fn manager_follows_to_the_new_process_and_gets_signs_of_life_from_it() {
    let setup = Setup::new();
    setup.write_config(&document("here"));
    let manager = Manager::new(&setup);
    let mut old = manager.start(&setup, Some(Duration::from_millis(400)));
    assert_eq!(manager.hear_news(), "READY=1\n");
    for _ in 0..2 {
        assert_eq!(manager.hear(), "WATCHDOG=1\n");
    }
    let run = setup.run(&["upgrade", "-c", CONFIG]);
    assert_eq!(run.status, 0, "{run:?}");
    let main = manager.hear_news();
    assert_eq!(main, format!("MAINPID={}\n", setup.read("weir.pid").trim()));
    assert_eq!(manager.hear_news(), "READY=1\n");
    assert!(old.wait().expect("the old process ends").success());
    // what had been sent before that is read by the time of the third
    for _ in 0..6 {
        assert_eq!(
            manager.hear(),
            "WATCHDOG=1\n",
            "the end of the old process is no news"
        );
    }
    assert_eq!(setup.run(&["stop", "-c", CONFIG]).status, 0);
    assert_eq!(manager.hear_news(), "STOPPING=1\n");
}

/// Starts weir with a TCP and a unix socket of the manager's, called `web` and `local`.
fn activate(setup: &Setup, listen_pid: &str) -> Process {
    let web = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = web.local_addr().expect("an address").to_string();
    setup.write("address", address);
    let local = UnixListener::bind(setup.dir().join("local.sock")).expect("a socket");
    let script = format!(
        "exec 3<&0 4>&1 0</dev/null 1>&2; \
         LISTEN_PID={listen_pid} LISTEN_FDS=2 LISTEN_FDNAMES=web:local exec {BINARY} -c {CONFIG}"
    );
    let mut command = Command::new("sh");
    command
        .args(["-c", &script])
        .stdin(OwnedFd::from(web))
        .stdout(OwnedFd::from(local));
    setup.launch_command(&mut command)
}

const ACTIVATED: &str = "
    listeners: { http: { bind: ['systemd:web', 'systemd:local'] } }
    sites: { main: { hosts: ['*'], routes: [{ respond: { body: given } }] } }
    ";

#[test]
fn sockets_of_the_manager_are_served_and_handed_over() {
    let setup = Setup::new();
    setup.write_config(ACTIVATED);
    assert_eq!(
        setup.run(&["-t", "-c", CONFIG]).status,
        0,
        "a test needs no sockets"
    );
    let mut first = activate(&setup, "$$");
    let address = setup.read("address").parse().expect("an address");
    let serves = || {
        for connection in [
            Connection::tcp(address),
            Connection::unix(&setup.dir().join("local.sock")),
        ] {
            let answer = connection.expect("it listens").fetch(&get("/"));
            assert_eq!(answer.expect("an answer").text(), "given");
        }
    };
    serves();
    eventually(PATIENCE, || setup.dir().join("weir.pid").exists());
    let environment = fs::read_to_string(format!("/proc/{}/environ", first.id()));
    assert!(
        environment.expect("it runs").contains("LISTEN_FDS"),
        "the test is void"
    );
    let run = setup.run(&["upgrade", "-c", CONFIG]);
    assert_eq!(run.status, 0, "{run:?}");
    assert!(first.wait().expect("the old process ends").success());
    serves();
    let new = setup.read("weir.pid");
    let environment = fs::read_to_string(format!("/proc/{}/environ", new.trim()));
    assert!(!environment.expect("it runs").contains("LISTEN_"));
    assert_eq!(setup.run(&["stop", "-c", CONFIG]).status, 0);
    assert!(
        setup.dir().join("local.sock").exists(),
        "it is the manager's"
    );
}

#[test]
fn socket_that_the_manager_did_not_give_is_an_error() {
    let fails = |listen_pid: &str, document: &str, reason: &str| {
        let setup = Setup::new();
        setup.write_config(document);
        let mut process = activate(&setup, listen_pid);
        let status = process.wait().expect("it ends");
        assert_eq!(status.code(), Some(3));
        let log = setup.error_log();
        assert!(log.contains(reason), "{log}");
    };
    let other = ACTIVATED.replace("systemd:web", "systemd:wbe");
    let reason = "cannot listen on systemd:wbe: the service manager gave no socket of that name";
    fails("$$", &other, reason);
    // those of another process
    fails("1", ACTIVATED, "cannot listen on systemd:web: ");
}

#[test]
fn process_1_serves_reaps_and_is_not_replaced() {
    let setup = Setup::new().allow("upgrade failed");
    setup.write_config(&document("here"));
    // an orphan of the container: its parent is gone before it
    let script = format!("(sleep 0.3 & ); exec {BINARY} -d -c {CONFIG}");
    let mut command = Command::new("unshare");
    command.args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        &script,
    ]);
    let mut container = setup.launch_command(command.stdin(Stdio::null()));
    let serves = || {
        Connection::tcp(
            format!("127.0.0.1:{}", setup.port("http"))
                .parse()
                .expect("an address"),
        )
        .is_ok()
    };
    eventually(PATIENCE, || serves() || !container.is_running());
    if !container.is_running() {
        let log = setup.error_log();
        assert!(log.contains("unshare"), "{log}");
        eprintln!("skipped, containers are not for this user: {log}");
        return;
    }
    eventually(PATIENCE, || setup.read("weir.pid") == "1\n");
    assert!(
        setup
            .error_log()
            .contains("process 1 of a container stays in the foreground")
    );
    let weir = child_of(container.id()).expect("process 1 of the container");
    eventually(PATIENCE, || child_of(weir).is_none());
    setup.write_config(&document("new"));
    signal(weir, Signal::SIGHUP);
    eventually(PATIENCE, || body(&setup) == "new");
    let run = setup.run(&["upgrade", "-c", CONFIG]);
    assert_eq!(run.status, 3, "{run:?}");
    assert!(
        run.stderr
            .contains("process 1 of a container cannot be replaced"),
        "{run:?}"
    );
    let threads = format!("threads: 5\n{}", document("newer"));
    setup.write_config(&threads);
    let run = setup.run(&["reload", "-c", CONFIG]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(
        run.stderr.contains("threads: cannot change while running"),
        "{run:?}"
    );
    signal(weir, Signal::SIGQUIT);
    assert!(container.wait().expect("the container ends").success());
}

fn signal(pid: u32, signal: Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, signal).expect("it is there");
}

fn child_of(parent: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    children.ok()?.split_whitespace().next()?.parse().ok()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

#[test]
fn commands_of_the_unit_are_known() {
    let unit = fs::read_to_string(folder().join("weir.service")).expect("the unit");
    let commands = unit.lines().filter_map(|line| {
        let (key, command) = line.split_once('=')?;
        (key.starts_with("Exec")).then_some(command)
    });
    let mut count = 0;
    for command in commands {
        let arguments = command.strip_prefix("/usr/local/bin/weir ").expect("weir");
        let arguments: Vec<_> = arguments.split(' ').chain(["--help"]).collect();
        let run = Setup::new().run(&arguments);
        assert_eq!(run.status, 0, "{command}: {run:?}");
        count += 1;
    }
    assert_eq!(count, 3);
}

#[test]
fn units_are_verified_where_systemd_is_installed() {
    let setup = Setup::new();
    for name in ["weir.service", "weir.socket"] {
        let unit = fs::read_to_string(folder().join(name)).expect("a unit");
        setup.write(name, unit.replace("/usr/local/bin/weir", BINARY));
    }
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").args(["weir.service", "weir.socket"]);
    let Ok(output) = command.current_dir(setup.dir()).output() else {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("weir")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}
