//! The admin socket, and the commands that speak to a running weir over it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::thread;

use serde_json::Value;

use crate::harness::certs::Authority;
use crate::harness::client::{Connection, Request, Response, get};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::{Run, Setup, Weir, one_pool, one_site};

const POOL: &str = "{ backends: ['{a}', '{b}'] }";

/// `weir COMMAND -c weir.yaml` beside the running one.
fn weir(setup: &Setup, command: &[&str]) -> Run {
    setup.run(&[command, &["-c", "weir.yaml"]].concat())
}

#[track_caller]
fn succeeds(setup: &Setup, command: &[&str]) -> String {
    let run = weir(setup, command);
    assert_eq!(run.status, 0, "{command:?}: {run:?}");
    run.stdout
}

/// The answer of the socket itself.
#[track_caller]
fn ask(setup: &Setup, method: &str, target: &str) -> Response {
    let socket = setup.dir().join("admin.sock");
    let mut connection = Connection::unix(&socket).expect("connect to the admin socket");
    let answer = connection.fetch(&Request::new(method, target));
    answer.expect("an answer of the admin socket")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn responds(body: &str) -> String {
    one_site(&format!("routes: [{{ respond: {{ body: {body} }} }}]"))
}

#[test]
fn status_shows_who_is_up_and_why_not() {
    let (a, mut b) = (Origin::fixed("a"), Origin::fixed("b"));
    let setup = Weir::with("a", &a).with("b", &b).allow("is down");
    let weir = setup.start_pool(
        "{ backends: ['{a}', { addr: '{b}', backup: true }],
           health: { tcp: {}, interval: 50ms, rise: 1, fall: 2 } }",
    );
    b.kill();
    let setup = weir.setup();
    let line = |page: &str, word: &str| {
        let line = page.lines().find(|line| line.contains(word));
        line.unwrap_or_else(|| panic!("no `{word}` in {page}"))
            .to_owned()
    };
    let down = || line(&succeeds(setup, &["status"]), &b.to_string()).contains("down (backup)");
    eventually(PATIENCE, down);
    weir.get("/");
    let page = succeeds(setup, &["status"]);
    assert!(page.contains(&format!("process {}", weir.pid())), "{page}");
    assert!(line(&page, "pool app").contains("1 of 2 up"), "{page}");
    assert!(
        line(&page, &b.to_string()).contains("connection refused"),
        "{page}"
    );
    assert!(line(&page, &a.to_string()).contains(" up "), "{page}");

    let status = json(&succeeds(setup, &["status", "--json"]));
    assert_eq!(status["process"], weir.pid());
    assert_eq!(status["generation"], 1);
    let members = &status["pools"][0]["members"];
    assert_eq!(members[0]["requests"], 1);
    assert_eq!(
        (&members[1]["state"], &members[1]["up"]),
        (&"down".into(), &false.into())
    );
    let over_http = ask(setup, "GET", "/status");
    assert_eq!(over_http.header("content-type"), Some("application/json"));
    let over_http = json(over_http.text());
    assert_eq!(over_http["pools"][0]["name"], status["pools"][0]["name"]);
}

#[test]
fn status_counts_open_connections() {
    let weir = Weir::start(&responds("hello"));
    let connections =
        || json(&succeeds(weir.setup(), &["status", "--json"]))["connections"].clone();
    eventually(PATIENCE, || connections() == 0); // the harness has looked whether weir listens
    let mut one = weir.connect();
    one.fetch(&get("/")).expect("an answer");
    assert_eq!(connections(), 1);
}

#[test]
fn socket_is_private_and_knows_what_it_does_not_do() {
    let weir = Weir::start(&responds("hello"));
    let socket = fs::metadata(weir.dir().join("admin.sock")).expect("a socket");
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    for (method, target) in [
        ("GET", "/"),
        ("GET", "/stop"),
        ("POST", "/status"),
        ("POST", "/reload?dry_run=maybe"),
        ("POST", "/pools/app/members"),
    ] {
        let answer = ask(weir.setup(), method, target);
        assert_eq!(answer.status, 404, "{method} {target}");
        let error = json(answer.text())["error"].clone();
        assert!(
            error.as_str().is_some_and(|error| error.contains(target)),
            "{error}"
        );
    }
    assert_eq!(weir.get("/").text(), "hello");
}

#[test]
fn reload_waits_and_tells_what_changed() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir = Weir::with("a", &a)
        .with("b", &b)
        .start(&one_pool("{ backends: ['{a}'] }"));
    let setup = weir.setup();
    assert!(succeeds(setup, &["reload"]).contains("nothing is different"));
    setup.write_config(&one_pool("{ backends: ['{b}'] }"));

    let rehearsed = succeeds(setup, &["reload", "--dry-run"]);
    assert!(
        rehearsed.contains(&format!("added     pools.app.backends[{b}]")),
        "{rehearsed}"
    );
    assert_eq!(weir.get("/").text(), "a");

    let told = succeeds(setup, &["reload"]);
    assert_eq!(weir.get("/").text(), "b");
    for line in [
        format!("added     pools.app.backends[{b}]"),
        format!("removed   pools.app.backends[{a}]"),
        "generation 3".to_owned(),
    ] {
        assert!(told.contains(&line), "no `{line}` in {told}");
    }
    // and once more, against what runs now
    setup.write_config(&responds("neither"));
    let told = succeeds(setup, &["reload"]);
    assert!(told.contains("removed   pools.app\n"), "{told}");
    assert!(told.contains("sites.main.routes[*]"), "{told}");
    assert!(!told.contains("backends"), "{told}");
}

#[test]
fn reload_with_mistakes_shows_them_and_changes_nothing() {
    let setup = Setup::new().allow("reload failed").allow("weir.yaml");
    let weir_ = setup.start(&responds("old"));
    let setup = weir_.setup();
    for (document, place) in [
        (
            one_site("routes: [{ proxy: nowhere }]"),
            "weir.yaml:5:23: sites.main.routes[0].proxy: ",
        ),
        ("sites: [".to_owned(), "not valid YAML"),
    ] {
        setup.write_config(&document);
        for command in [&["reload"][..], &["reload", "--dry-run"]] {
            let run = weir(setup, command);
            assert_eq!(run.status, 1, "{run:?}");
            assert!(run.stderr.contains(place), "{run:?}");
        }
        assert_eq!(weir_.get("/").text(), "old");
    }
    setup.write_config(&one_site("routes: [{ proxy: nowhere }]"));
    let answer = ask(setup, "POST", "/reload");
    assert_eq!(answer.status, 422);
    assert_eq!(
        json(answer.text())["issues"][0]["path"],
        "sites.main.routes[0].proxy"
    );
}

#[test]
fn reload_that_cannot_listen_fails_and_changes_nothing() {
    let setup = Setup::new().allow("reload failed");
    let weir_ = setup.start(&responds("old"));
    let _taken = std::net::TcpListener::bind(weir_.address("taken")).expect("bind");
    let both = responds("new").replace(
        "'127.0.0.1:{http}'",
        "['127.0.0.1:{http}', '127.0.0.1:{taken}']",
    );
    weir_.setup().write_config(&both);
    let run = weir(weir_.setup(), &["reload"]);
    assert_eq!(run.status, 3, "{run:?}");
    assert!(
        run.stderr.contains("cannot listen on 127.0.0.1:"),
        "{run:?}"
    );
    assert!(run.stderr.contains("nothing has changed"), "{run:?}");
    assert_eq!(weir_.get("/").text(), "old");
}

#[test]
fn renewed_certificate_is_a_change() {
    let setup = Setup::new();
    let authority = Authority::new();
    authority.issue(setup.dir(), "shop", &["shop.example"]);
    let weir = setup.start(
        "
        listeners: { https: { bind: '127.0.0.1:{https}', tls: {} } }
        sites:
          shop: { hosts: [shop.example], tls: { cert: shop.pem, key: shop.key }, routes: [{ respond: ok }] }
        ",
    );
    assert!(succeeds(weir.setup(), &["reload"]).contains("nothing is different"));
    authority.issue(weir.dir(), "shop", &["shop.example"]);
    let told = succeeds(weir.setup(), &["reload"]);
    // On a busy machine weir may have noticed by itself.
    let is_renewed = weir.error_log().contains("renewed");
    assert!(
        is_renewed || told.starts_with("changed   sites.shop.tls\n"),
        "{told}"
    );
}

#[test]
fn drained_member_ends_what_it_is_at_and_gets_nothing_new() {
    let (a, b) = (
        Origin::start(Behaviour::Held("a".to_owned())),
        Origin::fixed("b"),
    );
    let weir = Weir::with("a", &a).with("b", &b).start(&one_pool(POOL));
    let setup = weir.setup();
    let member = a.to_string();
    let mut running = Vec::new();
    while a.hits() == 0 {
        let mut connection = weir.connect();
        connection.send_request(&get("/")).expect("send");
        running.push(connection);
        eventually(PATIENCE, || a.hits() + b.hits() == running.len());
    }
    let said = succeeds(setup, &["drain", "app", &member]);
    assert_eq!(
        said,
        format!("{member} of app is draining: 1 request in flight\n")
    );
    let only_b = || (0..6).all(|_| weir.get("/").text() == "b");
    assert!(only_b());
    a.release(1);
    for mut connection in running {
        assert!(["a", "b"].contains(&connection.read().expect("an answer").text()));
    }

    // an operator's word outlives the file
    weir.reload(&one_pool(
        "{ backends: ['{a}', '{b}'], timeouts: { read: 30s } }",
    ));
    assert!(only_b());
    assert!(succeeds(setup, &["status"]).contains("draining"));

    let said = succeeds(setup, &["undrain", "app", &member]);
    assert!(said.contains(" is up: 0 requests"), "{said}");
    a.behave(Behaviour::Fixed("a".to_owned()));
    assert!((0..6).any(|_| weir.get("/").text() == "a"));
}

#[test]
fn unknown_names_are_met_with_a_suggestion() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let weir_ = Weir::with("a", &a).with("b", &b).start(&one_pool(POOL));
    let setup = weir_.setup();
    for (pool, member, words) in [
        (
            "ap",
            a.to_string(),
            "no pool named `ap` (did you mean `app`?",
        ),
        (
            "app",
            "127.0.0.1:1".to_owned(),
            "no member `127.0.0.1:1` in pool `app` (",
        ),
    ] {
        let run = weir(setup, &["drain", pool, &member]);
        assert_eq!(run.status, 2, "{run:?}");
        assert!(run.stderr.contains(words), "{run:?}");
    }
}

#[test]
fn members_are_named_as_they_were_written() {
    let setup = Setup::new();
    let path = setup.dir().join("a b%.sock");
    let _app = Origin::start_on_unix_socket(&path, Behaviour::Fixed("app".to_owned()));
    let weir = setup.start(&one_pool(
        "{ backends: ['unix:{dir}/a b%.sock', 'localhost:1'] }",
    ));
    let setup = weir.setup();
    for member in [format!("unix:{}", path.display()), "localhost:1".to_owned()] {
        let said = succeeds(setup, &["drain", "app", &member]);
        assert!(said.contains("draining"), "{said}");
    }
    assert_eq!(weir.get("/").status, 503);
}

#[test]
fn stop_waits_until_the_process_is_gone() {
    let app = Origin::start(Behaviour::Held("in the end".to_owned()));
    let mut weir_ = Weir::with("app", &app).start_pool("{ backends: ['{app}'] }");
    let mut connection = weir_.connect();
    connection.send_request(&get("/")).expect("send");
    eventually(PATIENCE, || app.hits() == 1);
    let pid = weir_.pid();
    thread::scope(|scope| {
        let setup = weir_.setup().dir().to_owned();
        let stop = scope.spawn(move || {
            std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
                .args(["stop", "-c", "weir.yaml"])
                .current_dir(setup)
                .output()
                .expect("run weir")
        });
        eventually(PATIENCE, || Connection::tcp(weir_.address("http")).is_err());
        assert!(!stop.is_finished());
        app.release(1);
        assert_eq!(connection.read().expect("an answer").text(), "in the end");
        let stop = stop.join().expect("weir stop ends");
        assert_eq!(stop.status.code(), Some(0), "{stop:?}");
        let said = String::from_utf8_lossy(&stop.stdout).into_owned();
        assert_eq!(said, format!("process {pid} has ended\n"));
    });
    assert!(weir_.wait().success());
    // a socket that is left behind says as much as none
    for command in ["status", "stop", "reload"] {
        let run = weir(weir_.setup(), &[command]);
        assert_eq!(run.status, 3, "{run:?}");
        assert!(run.stderr.contains("no weir runs here"), "{run:?}");
    }
}

#[test]
fn stale_socket_is_no_obstacle() {
    let setup = Setup::new();
    drop(UnixListener::bind(setup.dir().join("admin.sock")).expect("bind")); // the file stays
    let weir = setup.start(&responds("hello"));
    succeeds(weir.setup(), &["status"]);
}

#[test]
fn socket_of_another_process_is_left_alone() {
    let setup = Setup::new();
    let _other = UnixListener::bind(setup.dir().join("admin.sock")).expect("bind");
    let weir = setup.start(&responds("hello"));
    assert!(
        weir.error_log()
            .contains("going on without an admin socket")
    );
    assert_eq!(weir.get("/").text(), "hello");
    // one that was asked for is another matter
    let setup = weir.setup();
    let document = responds("hello").replace("{http}", "{other}");
    setup.write_config(&(document + "admin: { bind: 'unix:{dir}/admin.sock' }\n"));
    let run = setup.run(&["-c", "weir.yaml"]);
    assert_eq!(run.status, 3, "{run:?}");
    assert!(run.stderr.contains("admin socket"), "{run:?}");
}

#[test]
fn process_is_found_by_its_socket_or_its_file() {
    let setup = Setup::new();
    let weir_ = setup.start(&(responds("hello") + "admin: { bind: 'unix:{dir}/other.sock' }\n"));
    let setup = weir_.setup();
    assert!(!setup.dir().join("admin.sock").exists());
    succeeds(setup, &["status"]);
    for address in ["other.sock", "unix:{dir}/other.sock"] {
        let run = setup.run(&["status", "--admin", address]);
        assert_eq!(run.status, 0, "{run:?}");
    }
    let run = setup.run(&["status", "--admin", "none.sock"]);
    assert_eq!(run.status, 3, "{run:?}");
    assert!(run.stderr.contains("none.sock"), "{run:?}");
    let run = setup.run(&["status"]);
    assert_eq!(run.status, 2, "{run:?}");
}

#[test]
fn without_a_socket_there_is_nobody_to_ask() {
    let weir_ = Weir::start(&(responds("hello") + "admin: off\n"));
    assert!(!weir_.dir().join("admin.sock").exists());
    let run = weir(weir_.setup(), &["status"]);
    assert_eq!(run.status, 3, "{run:?}");
    assert!(run.stderr.contains("no admin socket"), "{run:?}");
}

#[test]
fn next_process_takes_the_socket_over() {
    let mut weir = Weir::start(&responds("hello"));
    let inode = || {
        let socket = fs::metadata(weir.dir().join("admin.sock"));
        socket.expect("a socket").ino()
    };
    let before = inode();
    let mut old = weir.upgrade();
    assert!(old.wait().expect("the old process ends").success());
    let status = json(&succeeds(weir.setup(), &["status", "--json"]));
    assert_eq!(status["process"], weir.pid());
    let socket = fs::metadata(weir.dir().join("admin.sock"));
    assert_eq!(socket.expect("a socket").ino(), before);
}
