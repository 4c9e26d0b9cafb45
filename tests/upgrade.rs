//! `weir -u` beside a running process, and QUIT to that one: the sockets move, and no request fails.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::client::{Connection, get};
use crate::harness::daemon::Daemon;
use crate::harness::load::{Kind, Load};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually, value_within};
use crate::harness::{BINARY, Run, Setup, Weir, one_site};

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

/// `weir upgrade` on the configuration of the test.
fn order(setup: &Setup, arguments: &[&str]) -> Run {
    setup.run(&[&["upgrade", "-c", "weir.yaml"], arguments].concat())
}

/// A program that stands in for a new weir.
///
/// Not written by this process: whatever other tests start meanwhile would have it open for writing for a moment, and such a
/// file cannot be run.
fn script(setup: &Setup, text: &str) -> String {
    let path = setup.dir().join("next").display().to_string();
    let write = "printf '#!/bin/sh\n%s\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
    let written = Command::new("sh").args(["-c", write, &path, text]).status();
    assert!(written.expect("run sh").success());
    path
}

fn pid_in(setup: &Setup) -> i32 {
    setup.read("weir.pid").trim().parse().expect("a number")
}

#[test]
fn command_brings_up_a_new_process_and_no_request_fails() {
    let app = Origin::fixed("ok");
    let setup = Weir::with("app", &app).file("www/index.html", "assets");
    let mut weir = setup.start(DOCUMENT);
    let loads = [
        Load::start(Kind::KeepAlive, weir.address("http"), 2),
        Load::start(Kind::Fresh, weir.address("http"), 2),
        Load::start(Kind::Http2, weir.address("https"), 2),
        Load::start(Kind::Fresh, weir.address("assets"), 1),
    ];
    loads.iter().for_each(|load| load.wait_for_answers(20));
    let run = order(weir.setup(), &[]);
    assert_eq!(run.status, 0, "{run:?}");
    let second = Daemon::find(weir.setup());
    let version = env!("CARGO_PKG_VERSION");
    let told = format!(
        "process {} (weir {version}) has taken over from process {} (weir {version}): 5 sockets handed over, ",
        second.pid,
        weir.pid()
    );
    assert!(run.stdout.starts_with(&told), "{run:?}");
    assert!(weir.wait().success());
    loads.iter().for_each(|load| load.wait_for_answers(20));
    // the new one is asked now, and brings up the next one in turn
    let run = order(weir.setup(), &[]);
    assert_eq!(run.status, 0, "{run:?}");
    let third = Daemon::find(weir.setup());
    assert_ne!(second.pid, third.pid);
    eventually(PATIENCE, || !second.is_running());
    loads.iter().for_each(|load| load.wait_for_answers(20));
    for load in loads {
        load.stop_without_failure();
    }
    assert_eq!(pid_in(weir.setup()), third.pid);
    third.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !third.is_running());
    assert!(!weir.dir().join("weir.pid").exists());
}

#[test]
fn new_process_that_fails_changes_nothing() {
    let weir = Setup::new()
        .allow("not handed over")
        .allow("upgrade failed")
        .start_site("routes: [{ respond: { body: old } }]");
    let setup = weir.setup();
    let fails = |arguments: &[&str], reason: &str, words: &str| {
        let run = order(setup, arguments);
        assert_eq!(run.status, 3, "{run:?}");
        let last = run.stderr.lines().last().unwrap_or_default();
        assert!(last.contains(reason), "{run:?}");
        assert!(run.stderr.contains(words), "{run:?}");
        assert!(last.ends_with("; this one goes on"), "{run:?}");
        assert_eq!(weir.get("/").text(), "old");
        assert_eq!(pid_in(setup).to_string(), weir.pid().to_string());
        assert_eq!(children(weir.pid()), 0, "a zombie, or worse");
    };
    // what is no program, what is none for this machine, what ends, what is killed, what does nothing
    fails(&["--binary", "{dir}/no"], "cannot start `", "No such file");
    let next = script(setup, "echo 'libweir.so.9: cannot open' >&2; exit 127");
    let next = ["--binary", &next];
    fails(
        &next,
        "ended before it served: exit status: 127",
        "libweir.so.9: cannot open\n",
    );
    script(setup, "kill -SEGV $$");
    fails(&next, "ended before it served: signal: 11", "");
    script(setup, "exec sleep 60");
    let slow = [&next[..], &["--timeout", "300ms"]].concat();
    fails(&slow, "did not serve within 300ms", "");
    // who takes the sockets, says that it serves, and crashes
    let (program, pid) = (BINARY, weir.pid());
    let crash = format!(
        "exec 3<&0\n{program} \"$@\" <&3 3<&- & exec 3<&-\n\
         while [ \"$(cat weir.pid)\" = {pid} ]; do sleep 0.01; done\n\
         sleep 0.2; kill -9 $!; exec <&-; exit 1"
    );
    script(setup, &crash);
    fails(&next, "ended before it served: exit status: 1", "");
    // a file that the new process refuses
    setup.write("weir.yaml", setup.read("weir.yaml") + "nonsense: 1\n");
    let run = setup.run(&["upgrade", "--admin", "{dir}/admin.sock"]);
    assert_eq!(run.status, 3, "{run:?}");
    assert!(run.stderr.contains("unknown key"), "{run:?}");
    assert!(
        run.stderr.contains("exit status: 1; this one goes on"),
        "{run:?}"
    );
    assert_eq!(weir.get("/").text(), "old");
}

#[test]
fn one_upgrade_at_a_time_and_an_end_ends_it() {
    let mut weir = Setup::new()
        .allow("upgrade failed")
        .allow("not handed over")
        .allow("reload failed")
        .allow("going on")
        .start_site("routes: [{ respond: { body: old } }]");
    let next = script(weir.setup(), "touch begun; exec sleep 60");
    let first = order_beside(weir.setup(), &["--binary", &next]);
    let begun = weir.dir().join("begun");
    eventually(PATIENCE, || begun.exists());
    let run = order(weir.setup(), &[]);
    assert_eq!(run.status, 3, "{run:?}");
    assert!(
        run.stderr.contains("a new process is about to take over"),
        "{run:?}"
    );
    let run = weir.setup().run(&["reload", "-c", "weir.yaml"]);
    assert!(
        run.stderr.contains("a new process is about to take over"),
        "{run:?}"
    );
    weir.signal(Signal::SIGQUIT);
    assert_eq!(weir.get("/").text(), "old");
    weir.signal(Signal::SIGTERM);
    assert!(weir.wait().success());
    let first = first.join().expect("no panic");
    assert_eq!(first.status.code(), Some(3), "{first:?}");
}

/// `weir upgrade` in the background, with the arguments given.
fn order_beside(setup: &Setup, arguments: &[&str]) -> thread::JoinHandle<Output> {
    let mut command = Command::new(BINARY);
    command
        .args(["upgrade", "-c", "weir.yaml"])
        .args(arguments)
        .current_dir(setup.dir());
    thread::spawn(move || command.output().expect("run weir"))
}

/// The process on probation, as the status of the old one tells.
#[track_caller]
fn candidate(setup: &Setup) -> i32 {
    let candidate = value_within(PATIENCE, || {
        let run = setup.run(&["status", "--json", "-c", "weir.yaml"]);
        let status: Value = serde_json::from_str(&run.stdout).ok()?;
        status["probation"]["process"].as_i64()
    });
    i32::try_from(candidate.expect("one is on probation")).expect("the kernel's pids fit")
}

#[test]
fn new_process_that_passes_its_probation_takes_over() {
    let app = Origin::fixed("ok");
    let setup = Weir::with("app", &app)
        .allow("reload failed")
        .allow("upgrade failed")
        .file("www/index.html", "assets");
    let mut weir = setup.start(DOCUMENT);
    let loads = [
        Load::start(Kind::KeepAlive, weir.address("http"), 2),
        Load::start(Kind::Fresh, weir.address("http"), 1),
        Load::start(Kind::Http2, weir.address("https"), 1),
        Load::start(Kind::Fresh, weir.address("assets"), 1),
    ];
    loads.iter().for_each(|load| load.wait_for_answers(20));
    // the tests beside this one may keep a processor busy for long
    let ordered = order_beside(weir.setup(), &["--probation", "3s", "--max-p99", "1000x"]);
    let new = candidate(weir.setup());
    let old = i32::try_from(weir.pid()).expect("the kernel's pids fit");
    assert_eq!(pid_in(weir.setup()), old, "it is the one to signal still");
    let run = weir.setup().run(&["status", "-c", "weir.yaml"]);
    let told = format!(
        "process {new} (weir {}) is on probation, ",
        env!("CARGO_PKG_VERSION")
    );
    assert!(run.stdout.contains(&told), "{run:?}");
    for command in ["upgrade", "reload"] {
        let run = weir.setup().run(&[command, "-c", "weir.yaml"]);
        assert_eq!(run.status, 3, "{run:?}");
        assert!(
            run.stderr.contains("a new process is on probation"),
            "{run:?}"
        );
    }
    let run = ordered.join().expect("no panic");
    assert!(run.status.success(), "{run:?}");
    let told = String::from_utf8_lossy(&run.stdout);
    let lines: Vec<_> = told.lines().collect();
    assert!(lines[0].starts_with(&format!("process {new} ")), "{told}");
    assert!(lines[0].ends_with(": 5 sockets handed over"), "{told}");
    assert!(lines[1].starts_with("probation of 3s passed: "), "{told}");
    assert!(!lines[1].contains("passed: 0 requests"), "{told}");
    assert!(lines[2].contains(" kept: "), "{told}");
    assert!(lines[2].ends_with(" finished, 0 closed, 0 cut"), "{told}");
    assert!(weir.wait().success());
    assert_eq!(pid_in(weir.setup()), new);
    let new = Daemon::find(weir.setup());
    loads.iter().for_each(|load| load.wait_for_answers(20));
    for load in loads {
        load.stop_without_failure();
    }
    let run = weir.setup().run(&["status", "-c", "weir.yaml"]);
    assert!(!run.stdout.contains("probation"), "{run:?}");
    new.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !new.is_running());
}

#[test]
fn new_process_that_answers_errors_is_taken_back() {
    let document = |status: u16| {
        format!(
            "
            listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}
            sites: {{ main: {{ hosts: ['*'], routes: [
                {{ match: {{ path: /well }}, respond: well }},
                {{ respond: {{ status: {status}, body: '{status}' }} }}] }} }}
            "
        )
    };
    let weir = Setup::new().allow("upgrade failed").start(&document(200));
    let setup = weir.setup();
    setup.write_config(&document(500));
    let ordered = order_beside(setup, &["--probation", "60s"]);
    let new = candidate(setup);
    let (mut good, mut bad) = (0, 0);
    let mut kept = weir.connect();
    while !ordered.is_finished() {
        match weir.get("/").status {
            200 => good += 1,
            500 => bad += 1,
            status => panic!("status {status}"),
        }
        let answer = kept.fetch(&get("/well")).expect("an answer");
        assert_eq!(answer.text(), "well");
        if answer.header("connection") == Some("close") {
            kept = weir.connect();
        }
    }
    let run = ordered.join().expect("no panic");
    assert_eq!(run.status.code(), Some(3), "{run:?}");
    let told = String::from_utf8_lossy(&run.stderr);
    assert!(told.contains(&format!("process {new} ")), "{told}");
    assert!(told.contains(" were answered with 5xx"), "{told}");
    assert!(told.ends_with("; this one goes on\n"), "{told}");
    assert!(bad >= 50, "{bad} beside {good}");
    // what waited in its queue just then is the last that it answers
    eventually(PATIENCE, || children(weir.pid()) == 0);
    for _ in 0..20 {
        assert_eq!(weir.get("/").status, 200);
    }
    assert_eq!(pid_in(setup).to_string(), weir.pid().to_string());
    let run = setup.run(&["status", "-c", "weir.yaml"]);
    assert!(!run.stdout.contains("probation"), "{run:?}");
    // it can try again, and a file that is good passes
    setup.write_config(&document(200));
    let run = order(setup, &["--probation", "100ms"]);
    assert_eq!(run.status, 0, "{run:?}");
    let last = Daemon::find(setup);
    assert_ne!(last.pid.to_string(), weir.pid().to_string());
    last.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !last.is_running());
}

#[test]
fn new_process_that_is_slower_is_taken_back() {
    let quick = Origin::fixed("ok");
    let slow = Origin::start(Behaviour::Late("ok".to_owned(), Duration::from_millis(400)));
    let document = "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { app: { backends: ['{app}'] } }
        sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
        ";
    let weir = Weir::with("app", &quick)
        .allow("upgrade failed")
        .start(document);
    let setup = weir.setup();
    let load = Load::start(Kind::KeepAlive, weir.address("http"), 32);
    load.wait_for_answers(600);
    setup.write_config(&document.replace("{app}", &slow.to_string()));
    let run = order(setup, &["--probation", "60s"]);
    assert_eq!(run.status, 3, "{run:?}");
    assert!(
        run.stderr.contains(": the slowest hundredth of its "),
        "{run:?}"
    );
    assert!(run.stderr.ends_with("; this one goes on\n"), "{run:?}");
    let answered = slow.hits();
    assert!(answered > 0, "the new process has served");
    load.wait_for_answers(100);
    load.stop_without_failure();
    eventually(PATIENCE, || children(weir.pid()) == 0);
}

#[test]
fn new_process_that_dies_on_probation_is_replaced_by_the_old_one() {
    let weir = Setup::new()
        .allow("upgrade failed")
        .start_site("routes: [{ respond: here }]");
    for (signal, told) in [
        (Signal::SIGKILL, "(signal: 9 (SIGKILL)); this one goes on"),
        (Signal::SIGTERM, "; this one goes on"),
    ] {
        let ordered = order_beside(weir.setup(), &["--probation", "60s"]);
        let new = candidate(weir.setup());
        signal::kill(Pid::from_raw(new), signal).expect("it is there");
        while !ordered.is_finished() {
            // nobody is refused, whoever accepts
            let mut connection = weir.connect();
            if signal == Signal::SIGTERM {
                assert_eq!(
                    connection.fetch(&get("/")).expect("an answer").text(),
                    "here"
                );
            }
        }
        let run = ordered.join().expect("no panic");
        assert_eq!(run.status.code(), Some(3), "{run:?}");
        let reason = String::from_utf8_lossy(&run.stderr);
        assert!(reason.contains("has let go in its probation"), "{reason}");
        assert!(reason.contains(told), "{reason}");
        eventually(PATIENCE, || children(weir.pid()) == 0);
        assert_eq!(weir.get("/").text(), "here");
        assert_eq!(pid_in(weir.setup()).to_string(), weir.pid().to_string());
    }
}

#[test]
fn old_process_that_ends_in_a_probation_leaves_the_new_one() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut weir = Weir::start_site("routes: [{ respond: here }]");
        let ordered = order_beside(weir.setup(), &["--probation", "60s"]);
        let new = candidate(weir.setup());
        weir.signal(signal);
        let run = ordered.join().expect("no panic");
        assert_eq!(weir.wait().success(), signal == Signal::SIGTERM);
        assert_eq!(run.status.success(), signal == Signal::SIGTERM, "{run:?}");
        let told = String::from_utf8_lossy(&run.stdout).contains("cut short");
        assert_eq!(told, signal == Signal::SIGTERM, "{run:?}");
        eventually(PATIENCE, || pid_in(weir.setup()) == new);
        assert_eq!(weir.get("/").text(), "here");
        // a stop in a probation stops both
        let ordered = order_beside(weir.setup(), &["--probation", "60s"]);
        let (new, last) = (Daemon::find(weir.setup()), candidate(weir.setup()));
        let run = weir.setup().run(&["stop", "-c", "weir.yaml"]);
        assert_eq!(run.status, 0, "{run:?}");
        eventually(PATIENCE, || !new.is_running());
        let proc = format!("/proc/{last}/stat");
        let is_gone = || fs::read_to_string(&proc).map_or(true, |stat| stat.contains(") Z "));
        eventually(PATIENCE, is_gone);
        let run = ordered.join().expect("no panic");
        assert_eq!(run.status.code(), Some(3), "{run:?}");
        assert!(!weir.dir().join("weir.pid").exists());
    }
}

#[test]
fn hundreds_of_sockets_and_names_with_blanks_change_hands() {
    let setup = Setup::new();
    let path = |number: usize| setup.dir().join(format!("a folder/{number} .sock"));
    fs::create_dir(setup.dir().join("a folder")).expect("make a folder");
    let binds: Vec<_> = (0..600)
        .map(|number| format!("'unix:{}'", path(number).display()))
        .collect();
    setup.write_config(&format!(
        "listeners: {{ http: {{ bind: [{}] }} }}\n{}",
        binds.join(", "),
        "sites: { main: { hosts: ['*'], routes: [{ respond: { body: here } }] } }\n"
    ));
    let script = format!("ulimit -n 4096; exec {BINARY} -c weir.yaml");
    let mut command = Command::new("sh");
    let mut old = setup.launch_command(command.args(["-c", &script]));
    eventually(PATIENCE, || setup.dir().join("weir.pid").exists());
    let run = order(&setup, &[]);
    assert_eq!(run.status, 0, "{run:?}");
    assert!(run.stdout.contains(": 601 sockets handed over"), "{run:?}");
    assert!(old.wait().expect("the old process ends").success());
    for number in [0, 299, 599] {
        let connection = Connection::unix(&path(number));
        let answer = connection.expect("it listens").fetch(&get("/"));
        assert_eq!(answer.expect("an answer").text(), "here");
    }
    let new = Daemon::find(&setup);
    new.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !new.is_running());
}

#[test]
fn daemon_that_cannot_serve_says_so_and_a_stale_pid_file_is_no_obstacle() {
    let setup = Setup::new();
    setup.write_config(&one_site("routes: [{ respond: { body: here } }]"));
    let taken = std::net::TcpListener::bind(("127.0.0.1", setup.port("http"))).expect("a port");
    setup.write("weir.pid", "1\n");
    let run = setup.run(&["-d", "-c", "weir.yaml"]);
    assert_eq!(run.status, 3, "{run:?}");
    assert!(
        run.stderr.contains("cannot listen on 127.0.0.1:"),
        "{run:?}"
    );
    assert_eq!(setup.read("weir.pid"), "1\n", "it is not this one's");
    drop(taken);
    let run = setup.run(&["-d", "-c", "weir.yaml"]);
    assert_eq!(run.status, 0, "{run:?}");
    assert_ne!(setup.read("weir.pid"), "1\n");
    let daemon = Daemon::find(&setup);
    // that of another process is left alone
    setup.write("weir.pid", "1\n");
    daemon.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !daemon.is_running());
    assert_eq!(setup.read("weir.pid"), "1\n");
}

#[test]
fn program_that_was_replaced_on_disk_is_the_next_one() {
    let setup = Setup::new();
    let program = setup.dir().join("weir with a blank");
    // not by this process, as in `script`
    let copied = Command::new("cp").arg(BINARY).arg(&program).status();
    assert!(copied.expect("run cp").success());
    setup.write_config(&one_site("routes: [{ respond: { body: here } }]"));
    let mut command = Command::new(&program);
    let log = fs::File::create(setup.dir().join("stderr.log")).expect("a log");
    command
        .args(["-c", "weir.yaml"])
        .current_dir(setup.dir())
        .stderr(log);
    let mut first = command.spawn().expect("start weir");
    eventually(PATIENCE, || setup.dir().join("weir.pid").exists());
    // as package managers do: the file of the running program is `(deleted)` now
    let next = script(&setup, "echo replaced >&2; exit 9");
    fs::rename(&next, &program).expect("replace the program");
    let run = value_within(PATIENCE, || {
        let run = order(&setup, &[]);
        run.stderr.contains("exit status: 9").then_some(run)
    });
    let run = run.expect("the new file was started");
    assert!(run.stderr.contains("replaced\n"), "{run:?}");
    let reload =
        |arguments: &[&str]| setup.run(&[&["reload", "-c", "weir.yaml"], arguments].concat());
    let run = reload(&["--upgrade"]);
    assert!(run.stderr.contains("replaced\n"), "{run:?}");
    assert_eq!((run.status, reload(&[]).status), (3, 0), "{run:?}");
    let pid = i32::try_from(first.id()).expect("a pid");
    signal::kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it is there");
    assert!(first.wait().expect("it is ours").success());
}

#[test]
fn daemon_is_replaced_by_command() {
    let setup = Setup::new();
    setup.write_config(&one_site("routes: [{ respond: { body: here } }]"));
    let mut parent = setup.spawn(&["-d"]);
    assert!(parent.wait().expect("the parent ends").success());
    let old = Daemon::find(&setup);
    let address = format!("127.0.0.1:{}", setup.port("http"));
    let load = Load::start(Kind::Fresh, address.parse().expect("an address"), 2);
    load.wait_for_answers(10);
    let run = order(&setup, &[]);
    assert_eq!(run.status, 0, "{run:?}");
    let new = Daemon::find(&setup);
    assert_ne!(new.pid, old.pid);
    eventually(PATIENCE, || !old.is_running());
    load.wait_for_answers(10);
    load.stop_without_failure();
    let stdin = fs::read_link(format!("/proc/{}/fd/0", new.pid)).expect("the daemon is there");
    assert_eq!(stdin, Path::new("/dev/null"));
    new.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !new.is_running());
}

#[test]
fn reload_of_keys_that_only_a_new_process_can_take_brings_one_up() {
    let document = |threads: usize, body: &str| {
        format!("threads: {threads}\n") + &one_site(&format!("routes: [{{ respond: {body} }}]"))
    };
    let mut weir = Weir::start(&document(1, "old"));
    weir.setup().write_config(&document(3, "new"));
    let reload = |arguments: &[&str]| {
        let run = weir
            .setup()
            .run(&[&["reload", "-c", "weir.yaml"], arguments].concat());
        assert_eq!(run.status, 0, "{run:?}");
        run.stdout
    };
    let told = reload(&["--dry-run"]);
    assert!(told.contains("changed   threads\n"), "{told}");
    assert!(
        told.contains("a reload would bring up a new process"),
        "{told}"
    );
    assert_eq!(weir.get("/").text(), "old");
    let told = reload(&[]);
    assert!(
        told.contains("only a new process can take threads:\nprocess "),
        "{told}"
    );
    let new = Daemon::find(weir.setup());
    // the old one stops to accept right after its answer
    eventually(PATIENCE, || weir.get("/").text() == "new");
    assert!(weir.wait().success());
    new.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !new.is_running());
}

#[test]
fn of_root_only_the_right_to_low_ports_is_kept() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: who is not root cannot become another user");
        return;
    }
    let user = nix::unistd::User::from_name("nobody");
    let user = user.expect("users are known").expect("there is `nobody`");
    let setup = Setup::new();
    // addresses of this run alone: low ports cannot be reserved
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = |port: u16| format!("127.83.{high}.{low}:{port}");
    let document = |binds: &str| {
        format!("user: nobody\nlisteners: {{ http: {{ bind: [{binds}] }} }}\n")
            + "log: { access: { file: '{dir}/access.log' }, error: { file: '{dir}/error.log' } }\n"
            + "sites: { main: { hosts: ['*'], routes: [{ respond: { body: here } }] } }\n"
    };
    let first = format!("'127.0.0.1:{{http}}', '{}'", own(81));
    setup.write_config(&document(&first));
    nix::unistd::chown(setup.dir(), Some(user.uid), None).expect("give the folder away");
    let mut parent = setup.spawn(&["-d"]);
    assert!(
        parent.wait().expect("the parent ends").success(),
        "{}",
        setup.error_log()
    );
    let old = Daemon::find(&setup);
    assert_unprivileged(&old, &user);
    // opened by whoever is no longer root
    setup.write_config(&document(&format!("{first}, '{}'", own(82))));
    let run = setup.run(&["reload", "-c", "weir.yaml"]);
    assert_eq!(run.status, 0, "{run:?}");
    let serves = |address: String| {
        let connection = Connection::tcp(address.parse().expect("an address"));
        let answer = connection.expect("it listens").fetch(&get("/"));
        assert_eq!(answer.expect("an answer").text(), "here");
    };
    serves(own(82));
    fs::rename(setup.dir().join("access.log"), setup.dir().join("access.1")).expect("rotate");
    old.signal(Signal::SIGUSR1);
    eventually(PATIENCE, || setup.dir().join("access.log").exists());
    let run = order(&setup, &[]);
    assert_eq!(run.status, 0, "{run:?}");
    let new = Daemon::find(&setup);
    assert_unprivileged(&new, &user);
    eventually(PATIENCE, || !old.is_running());
    for port in [81, 82] {
        serves(own(port));
    }
    // by hand, as root: the running process, which is not, finds the socket
    let mut parent = setup.spawn(&["-u", "-d"]);
    assert!(parent.wait().expect("the parent ends").success());
    new.signal(Signal::SIGQUIT);
    eventually(PATIENCE, || !new.is_running());
    let last = Daemon::find(&setup);
    assert_ne!(last.pid, new.pid);
    assert_unprivileged(&last, &user);
    last.signal(Signal::SIGTERM);
    eventually(PATIENCE, || !last.is_running());
    assert!(!setup.dir().join("weir.pid").exists());
}

/// Every thread is `user`'s, and may at most open low ports.
fn assert_unprivileged(daemon: &Daemon, user: &nix::unistd::User) {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid)).expect("it runs");
    assert!(status.contains("CapEff:\t0000000000000400\n"), "{status}");
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid)).expect("it runs");
    for thread in threads {
        let status = thread.expect("a thread").path().join("status");
        let status = fs::read_to_string(status).unwrap_or_default();
        for line in status.lines() {
            let (key, value) = line.split_once(":\t").unwrap_or_default();
            match key {
                "Uid" => assert_eq!(value, format!("{0}\t{0}\t{0}\t{0}", user.uid)),
                "CapPrm" | "CapEff" | "CapInh" | "CapAmb" => {
                    assert!(
                        ["0000000000000000", "0000000000000400"].contains(&value),
                        "{line}"
                    );
                }
                _ => {}
            }
        }
    }
}

/// How many children a process has, the dead ones included.
fn children(pid: u32) -> usize {
    let parent = format!("PPid:\t{pid}");
    let processes = fs::read_dir("/proc").expect("there are processes");
    let files =
        processes.filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("status")).ok());
    files
        .filter(|status| status.lines().any(|line| line == parent))
        .count()
}
