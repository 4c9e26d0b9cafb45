//! `weir -u` beside a running process, and QUIT to that one: the sockets move, and no request fails.

use std::fs;
use std::path::Path;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::harness::client::{Connection, get};
use crate::harness::load::{Kind, Load};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually, value_within};
use crate::harness::{Setup, Weir, one_site};

const DOCUMENT: &str = "
    listeners:
      http: { bind: ['127.0.0.1:{http}', 'unix:{dir}/web.sock'] }
      https: { bind: '127.0.0.1:{https}', tls: {} }
    pools: { app: { backends: ['{app}'] } }
    sites: { main: { hosts: ['*'], tls: { self_signed: true }, routes: [{ proxy: app }] } }
    static: { assets: { bind: '127.0.0.1:{assets}', root: ./www } }
    ";

#[test]
fn no_request_fails_while_the_process_is_replaced() {
    let app = Origin::fixed("ok");
    let setup = Weir::with("app", &app).file("www/index.html", "assets");
    let mut weir = setup.start(DOCUMENT);
    let loads = [
        Load::start(Kind::KeepAlive, weir.address("http"), 2),
        Load::start(Kind::Fresh, weir.address("http"), 2),
        Load::start(Kind::Http2, weir.address("https"), 2),
        Load::start(Kind::KeepAlive, weir.address("assets"), 1),
        Load::start(Kind::Fresh, weir.address("assets"), 1),
    ];
    let more_answers = || loads.iter().for_each(|load| load.wait_for_answers(20));
    for _ in 0..2 {
        more_answers();
        let mut old = weir.upgrade();
        assert!(old.wait().expect("the old process ends").success());
        more_answers();
        assert_eq!(weir.setup().read("weir.pid").trim(), weir.pid().to_string());
    }
    for load in loads {
        load.stop_without_failure();
    }
}

#[test]
fn new_process_serves_the_new_file_on_the_old_sockets() {
    let document = |body: &str| {
        format!(
            "
            listeners: {{ http: {{ bind: ['127.0.0.1:{{http}}', 'unix:{{dir}}/web.sock'] }} }}
            sites: {{ main: {{ hosts: ['*'], routes: [{{ respond: {{ body: {body} }} }}] }} }}
            "
        )
    };
    let mut weir = Weir::start(&document("old"));
    assert_eq!(weir.get("/").text(), "old");
    weir.setup().write_config(&document("new"));
    let mut old = weir.upgrade();
    assert!(old.wait().expect("the old process ends").success());
    assert_eq!(weir.get("/").text(), "new");
    let by_unix_socket = Connection::unix(&weir.dir().join("web.sock"));
    let answer = by_unix_socket
        .expect("the socket file is still there")
        .fetch(&get("/"));
    assert_eq!(answer.expect("an answer").text(), "new");
}

#[test]
fn old_process_ends_its_running_requests() {
    let app = Origin::start(Behaviour::Held("from the old one".to_owned()));
    // the old process accepts until it drains: who comes to it meanwhile must not wait for the origin
    let mut weir = Weir::with("app", &app).start(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*'], routes: [
            { match: { path: /held }, proxy: app }, { respond: { body: old } }] } }
        ",
    );
    let mut connection = weir.connect();
    connection.send_request(&get("/held")).expect("send");
    eventually(PATIENCE, || app.hits() == 1);
    weir.setup()
        .write_config(&one_site("routes: [{ respond: { body: new } }]"));
    let mut old = weir.upgrade();
    eventually(PATIENCE, || weir.get("/").text() == "new");
    app.release(1);
    assert_eq!(
        connection.read().expect("an answer").text(),
        "from the old one"
    );
    assert!(old.wait().expect("the old process ends").success());
}

#[test]
fn new_process_with_a_broken_file_leaves_the_old_one_alone() {
    let weir = Weir::start_site("routes: [{ respond: { body: old } }]");
    weir.setup().write("broken.yaml", "sites: [");
    let run = weir.setup().run(&["-u", "-c", "broken.yaml"]);
    assert_eq!(run.status, 1, "{run:?}");
    assert_eq!(weir.get("/").text(), "old");
    assert_eq!(weir.setup().read("weir.pid").trim(), weir.pid().to_string());
}

#[test]
fn daemon_returns_when_it_serves_and_is_found_by_its_pid_file() {
    let setup = Setup::new();
    setup.write_config(&one_site("routes: [{ respond: { body: here } }]"));
    let mut parent = setup.spawn(&["-d"]);
    assert!(parent.wait().expect("the parent ends").success());
    let daemon = Daemon::find(&setup);
    let address = format!("127.0.0.1:{}", setup.port("http"))
        .parse()
        .expect("an address");
    let answer = Connection::tcp(address).expect("connect").fetch(&get("/"));
    assert_eq!(answer.expect("an answer").text(), "here");
    daemon.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !daemon.is_running());
}

#[test]
fn daemon_finds_its_file_again_from_another_folder() {
    let setup = Setup::new();
    setup.write_config(&one_site("routes: [{ respond: old }]"));
    let mut parent = setup.spawn(&["-d"]); // which names the file relative to the folder of the test
    assert!(parent.wait().expect("the parent ends").success());
    let daemon = Daemon::find(&setup);
    let address = format!("127.0.0.1:{}", setup.port("http"));
    let address = address.parse().expect("an address");
    let mut connection = Connection::tcp(address).expect("connect");
    let mut body = || {
        let answer = connection.fetch(&get("/")).expect("an answer");
        answer.text().to_owned()
    };
    assert_eq!(body(), "old");
    setup.write_config(&one_site("routes: [{ respond: new }]"));
    daemon.signal(Signal::SIGHUP);
    eventually(PATIENCE, || body() == "new");
}

#[test]
fn daemon_is_replaced_by_a_daemon() {
    let setup = Setup::new();
    setup.write_config(&one_site("routes: [{ respond: { body: here } }]"));
    assert!(
        setup
            .spawn(&["-d"])
            .wait()
            .expect("the parent ends")
            .success()
    );
    let old = Daemon::find(&setup);
    let address = format!("127.0.0.1:{}", setup.port("http"))
        .parse()
        .expect("an address");
    let load = Load::start(Kind::Fresh, address, 2);
    let mut parent = setup.spawn(&["-u", "-d"]);
    let socket = setup.dir().join("upgrade.sock");
    eventually(PATIENCE, || socket.exists());
    old.signal(Signal::SIGQUIT);
    assert!(parent.wait().expect("the parent ends").success());
    eventually(PATIENCE, || !old.is_running());
    let new = Daemon::find(&setup);
    assert_ne!(new.pid, old.pid);
    load.wait_for_answers(20);
    load.stop_without_failure();
    new.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !new.is_running());
}

/// A process that is no child of the test; it does not outlive it either.
struct Daemon {
    pid: i32,
}

impl Daemon {
    #[track_caller]
    fn find(setup: &Setup) -> Daemon {
        let pid = value_within(PATIENCE, || setup.read("weir.pid").trim().parse().ok());
        let pid = pid.expect("a pid file");
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(
            command.contains("weir"),
            "the pid file names {pid}: `{command}`"
        );
        Daemon { pid }
    }

    fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.pid), signal).expect("the daemon is there");
    }

    /// Nobody may be there to reap it: a zombie is not running.
    fn is_running(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        Path::new(&format!("/proc/{}", self.pid)).exists() && !stat.contains(") Z ")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::SIGKILL);
        }
    }
}
