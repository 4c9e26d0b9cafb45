//! TERM and QUIT let running requests end; INT does not wait.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::{Connection, get};
use crate::harness::daemon::Daemon;
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{BINARY, Setup, Weir, one_site};

fn start(app: &Origin) -> Weir {
    Weir::with("app", app).start_pool("{ backends: ['{app}'] }")
}

fn held() -> Origin {
    Origin::start(Behaviour::Held("in the end".to_owned()))
}

#[test]
fn running_requests_are_answered_before_the_process_ends() {
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let app = held();
        let mut weir = start(&app);
        let mut connection = weir.connect();
        connection.send_request(&get("/")).expect("send");
        eventually(PATIENCE, || app.hits() == 1);
        weir.signal(signal);
        eventually(PATIENCE, || Connection::tcp(weir.address("http")).is_err());
        app.release(1);
        let answer = connection.read().expect("an answer");
        assert_eq!((answer.text(), answer.complete), ("in the end", true));
        connection.read_close().expect("a clean end");
        let released = Instant::now();
        assert!(weir.wait().success());
        assert!(
            released.elapsed() < Duration::from_secs(8),
            "{:?} after the last request",
            released.elapsed()
        );
    }
}

#[test]
fn body_that_is_on_its_way_is_sent_in_full() {
    let app = Origin::start(Behaviour::Steps(3));
    let mut weir = start(&app);
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    connection.read_head().expect("a head");
    weir.signal(Signal::SIGTERM);
    eventually(PATIENCE, || Connection::tcp(weir.address("http")).is_err());
    for part in ["part 0\n", "part 1\n", "part 2\n", ""] {
        app.release(1);
        assert_eq!(connection.read_chunk().expect("a chunk"), part.as_bytes());
    }
    assert!(weir.wait().success());
}

#[test]
fn idle_connections_end_cleanly() {
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let app = Origin::fixed("ok");
        let mut weir = start(&app);
        let idle = (0..10).map(|_| {
            let mut connection = weir.connect();
            connection.fetch(&get("/")).expect("an answer");
            connection
        });
        let idle: Vec<_> = idle.collect();
        weir.signal(signal);
        for mut connection in idle {
            connection.read_close().expect("a clean end");
        }
        assert!(weir.wait().success());
    }
}

#[test]
fn idle_process_ends_soon() {
    let app = Origin::fixed("ok");
    let mut weir = start(&app);
    weir.get("/");
    let start = Instant::now();
    weir.signal(Signal::SIGTERM);
    assert!(weir.wait().success());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn int_does_not_wait() {
    let app = held();
    let mut weir = start(&app);
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    eventually(PATIENCE, || app.hits() == 1);
    let start = Instant::now();
    weir.signal(Signal::SIGINT);
    weir.wait();
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    let answer = connection.read();
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status >= 500));
}

#[test]
fn request_that_never_ends_does_not_hold_the_process_for_ever() {
    let app = held();
    let mut weir = Weir::with("app", &app).allow("").start(
        "
        grace_period_seconds: 1
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
        ",
    );
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    eventually(PATIENCE, || app.hits() == 1);
    weir.signal(Signal::SIGTERM);
    weir.wait();
    let answer = connection.read();
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status >= 500));
}

#[test]
fn pid_file_names_the_process() {
    let weir = Weir::start_site("routes: [{ respond: { status: 204 } }]");
    let pid = weir.setup().read("weir.pid");
    assert_eq!(pid.trim(), weir.pid().to_string());
}

#[test]
fn file_service_drains_too() {
    let setup = Weir::with("none", "").file("www/big", vec![b'x'; 8_000_000]);
    let mut weir = setup.start("static: { assets: { bind: '127.0.0.1:{http}', root: ./www } }");
    let mut connection = weir.connect();
    connection.send_request(&get("/big")).expect("send");
    connection.read_head().expect("a head"); // the body does not fit into the sockets' buffers
    let mut idle = weir.connect();
    idle.fetch(&get("/none")).expect("an answer");
    weir.signal(Signal::SIGTERM);
    idle.read_close().expect("a clean end");
    let mut length = 0;
    connection
        .read_length(8_000_000, &mut |part| length += part.len())
        .expect("the whole body");
    assert_eq!(length, 8_000_000);
    assert!(weir.wait().success());
}

#[test]
fn soft_limit_of_open_files_is_no_limit() {
    let setup = Setup::new();
    setup.write_config(&one_site("routes: [{ respond: ok }]"));
    let mut child = Command::new("sh")
        .args(["-c", &format!("ulimit -Sn 256; exec {BINARY} -c weir.yaml")])
        .current_dir(setup.dir())
        .spawn()
        .expect("start weir");
    let weir = Daemon::find(&setup);
    let limits = fs::read_to_string(format!("/proc/{}/limits", weir.pid)).expect("it runs");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<_> = line.expect("a limit").split_whitespace().collect();
    assert_ne!(words[3], "256", "{words:?}");
    assert_eq!(words[3], words[4], "{words:?}");
    weir.signal(Signal::SIGTERM);
    assert!(child.wait().expect("it ends").success());
}
