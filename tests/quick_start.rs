//! `weir proxy` and `weir files`: without a file.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::client::{Connection, Response, get};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::wait::{PATIENCE, eventually, value_within};
use crate::harness::{Process, Setup};

const LISTEN: [&str; 3] = ["proxy", "--bind", "127.0.0.1:{http}"];

/// `weir proxy` on `{http}` with more options.
fn proxy(setup: &Setup, options: &[&str]) -> Process {
    setup.launch(&[&LISTEN, options].concat())
}

/// `weir files` on `{http}` with more arguments.
fn files(setup: &Setup, arguments: &[&str]) -> Process {
    setup.launch(&[&["files", "--bind", "127.0.0.1:{http}"], arguments].concat())
}

fn address(setup: &Setup) -> SocketAddr {
    ([127, 0, 0, 1], setup.port("http")).into()
}

#[track_caller]
fn fetch(setup: &Setup) -> Response {
    let answer = || {
        let mut connection = Connection::tcp(address(setup)).ok()?;
        connection.fetch(&get("/")).ok()
    };
    value_within(PATIENCE, answer).unwrap_or_else(|| panic!("no answer: {}", setup.error_log()))
}

#[test]
fn requests_are_balanced_over_the_backends_that_are_there() {
    let (a, mut b) = (Origin::fixed("a"), Origin::fixed("b"));
    let setup = Setup::new().with("a", &a).with("b", &b);
    let mut weir = proxy(&setup, &["--to", "{a}", "--to", "http://{b}/"]);
    let said = format!("weir: http://{}/ -> {a}, {b}\n", address(&setup));
    fetch(&setup);
    assert!(setup.error_log().contains(&said), "{}", setup.error_log());
    let answers = || -> String {
        let each = (0..6).map(|_| fetch(&setup).text().to_owned());
        each.collect()
    };
    let both = answers();
    assert!(both.contains('a') && both.contains('b'), "{both}");
    b.kill();
    eventually(PATIENCE, || answers() == "aaaaaa");
    b.revive();
    eventually(PATIENCE, || answers().contains('b'));
    weir.signal(Signal::SIGTERM);
    assert!(weir.wait().expect("it ends").success());
}

#[test]
fn nothing_is_left_behind_and_nobody_is_waited_for() {
    let app = Origin::fixed("app");
    let setup = Setup::new().with("app", &app);
    let mut weir = proxy(&setup, &["--to", "{app}"]);
    fetch(&setup);
    weir.signal(Signal::SIGHUP); // nothing to read again, and no reason to end
    eventually(PATIENCE, || {
        setup.error_log().contains("reloaded weir proxy")
    });
    assert_eq!(fetch(&setup).text(), "app");
    let start = Instant::now();
    weir.signal(Signal::SIGQUIT);
    assert!(weir.wait().expect("it ends").success());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    let files = fs::read_dir(setup.dir()).expect("read the folder");
    let names: Vec<_> = files
        .map(|file| file.expect("a file").file_name())
        .collect();
    assert_eq!(names, ["stderr.log"]);
}

#[test]
fn ports_alone_mean_this_machine() {
    let app = Origin::fixed("app");
    let port = app.to_string().replace("127.0.0.1:", "");
    let setup = Setup::new().with("port", port);
    for (bind, to) in [("{http}", "{port}"), (":{http}", ":{port}")] {
        let mut weir = setup.launch(&["proxy", "--bind", bind, "--to", to]);
        assert_eq!(fetch(&setup).text(), "app");
        let ipv6 = ([0, 0, 0, 0, 0, 0, 0, 1], setup.port("http"));
        let answer = Connection::tcp(ipv6.into()).and_then(|mut c| c.fetch(&get("/")));
        assert_eq!(answer.expect("all addresses").text(), "app");
        weir.signal(Signal::SIGTERM);
        assert!(weir.wait().expect("it ends").success());
    }
}

#[test]
fn socket_of_this_folder_is_a_backend_too() {
    let setup = Setup::new();
    let path = setup.dir().join("app.sock");
    let _app = Origin::start_on_unix_socket(&path, Behaviour::Fixed("unix".to_owned()));
    let _weir = proxy(&setup, &["--to", "unix:app.sock"]);
    assert_eq!(fetch(&setup).text(), "unix");
}

#[test]
fn tls_comes_with_a_certificate_of_its_own() {
    let app = Origin::fixed("app");
    let setup = Setup::new().with("app", &app);
    let _weir = proxy(&setup, &["--to", "{app}", "--self-signed"]);
    let connect = || Connection::tls(address(&setup), "localhost").ok();
    let mut connection = value_within(PATIENCE, connect).expect("a TLS connection");
    assert_eq!(
        connection.fetch(&get("/")).expect("an answer").text(),
        "app"
    );
    let names = &connection.certificate;
    assert!(names.iter().any(|name| name == "localhost"), "{names:?}");
    let said = format!("https://{}/", address(&setup));
    assert!(setup.error_log().contains(&said), "{}", setup.error_log());
}

#[test]
fn printed_file_runs_the_same() {
    let app = Origin::fixed("app");
    let setup = Setup::new().with("app", &app);
    let print = ["--to", "{app}", "--print"];
    let run = setup.run(&[&LISTEN[..], &print].concat());
    assert_eq!(run.status, 0, "{run:?}");
    setup.write("weir.yaml", &run.stdout);
    let check = setup.run(&["check", "-c", "weir.yaml"]);
    assert_eq!(check.status, 0, "{check:?}");
    assert!(!check.stderr.contains("warning"), "{check:?}");
    let _weir = setup.launch(&["-c", "weir.yaml"]);
    assert_eq!(fetch(&setup).text(), "app");
}

#[test]
fn bad_options_are_explained() {
    let setup = Setup::new();
    for (options, word) in [
        (&["--bind", ":8080"][..], "--to"),
        (&["--to", "app"], "`app` has no port"),
        (&["--to", "https://app:443"], "without TLS"),
        (&["--to", "http://app:1/api"], "path"),
        (
            &["--to", "3000", "--bind", "localhost"],
            "expected an address",
        ),
        (&["--to", "3000", "--bind", ":0"], "port"),
        (&["--to", "3000", "-d"], "-d"),
        (&["--to", "3000", "-c", "weir.yaml"], "-c"),
    ] {
        let run = setup.run(&[&["proxy"], options].concat());
        assert_eq!(run.status, 2, "{options:?}: {run:?}");
        assert!(run.stderr.contains(word), "{options:?}: {run:?}");
    }
}

#[test]
fn port_in_use_is_told_before_any_promise() {
    let setup = Setup::new();
    let _taken = std::net::TcpListener::bind(address(&setup)).expect("bind");
    let run = setup.run(&[&LISTEN[..], &["--to", "3000"]].concat());
    assert_eq!(run.status, 3, "{run:?}");
    assert!(
        run.stderr.contains("cannot listen on 127.0.0.1:"),
        "{run:?}"
    );
    assert!(!run.stderr.contains("->"), "{run:?}");
}

#[test]
fn folder_is_served_and_the_way_to_see_more_is_told() {
    let setup = Setup::new().file("www/a file.txt", "content");
    let www = setup.dir().join("www").canonicalize().expect("the folder");
    let mut weir = files(&setup, &["www"]);
    assert_eq!(fetch(&setup).status, 404);
    let said = format!(
        "weir: http://{}/ -> {} (no index.html in it: --listing shows what there is)\n",
        address(&setup),
        www.display()
    );
    assert!(setup.error_log().contains(&said), "{}", setup.error_log());
    let mut connection = Connection::tcp(address(&setup)).expect("connect");
    let answer = connection.fetch(&get("/a%20file.txt")).expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "content"));
    // as with any other server of its kind, one sees who asks for what
    eventually(PATIENCE, || {
        setup
            .error_log()
            .contains("\"GET /a%20file.txt HTTP/1.1\" 200")
    });
    weir.signal(Signal::SIGTERM);
    assert!(weir.wait().expect("it ends").success());

    let _weir = files(&setup, &["www", "--listing"]);
    assert!(fetch(&setup).text().contains("a file.txt"));
}

#[test]
fn application_answers_for_every_path() {
    let setup = Setup::new().file("www/index.html", "app");
    let _weir = files(&setup, &["--spa", "www"]);
    assert_eq!(fetch(&setup).text(), "app");
    assert!(!setup.error_log().contains("--listing"));
    let mut connection = Connection::tcp(address(&setup)).expect("connect");
    let answer = connection.fetch(&get("/users/42")).expect("an answer");
    assert_eq!((answer.status, answer.text()), (200, "app"));
}

#[test]
fn folder_is_served_over_tls() {
    let setup = Setup::new().file("www/index.html", "home");
    let _weir = files(&setup, &["www", "--self-signed"]);
    let connect = || Connection::tls(address(&setup), "localhost").ok();
    let mut connection = value_within(PATIENCE, connect).expect("a TLS connection");
    let answer = connection.fetch(&get("/")).expect("an answer");
    assert_eq!(answer.text(), "home");
}

#[test]
fn printed_file_serves_the_same_folder_from_anywhere() {
    let odd = "a $host \"#: ü";
    let setup = Setup::new()
        .file(&format!("{odd}/index.html"), "home")
        .file("elsewhere/empty", "");
    for options in [&[][..], &["--spa", "--listing"], &["--self-signed"]] {
        let command = ["files", odd, "--bind", "127.0.0.1:{http}", "--print"];
        let run = setup.run(&[&command, options].concat());
        assert_eq!(run.status, 0, "{run:?}");
        setup.write("elsewhere/weir.yaml", &run.stdout);
        let check = setup.run(&["check", "-c", "elsewhere/weir.yaml"]);
        assert_eq!(check.status, 0, "{check:?}");
        assert!(!check.stderr.contains("warning"), "{check:?}");
        if options.is_empty() {
            let mut weir = setup.launch(&["-c", "elsewhere/weir.yaml"]);
            assert_eq!(fetch(&setup).text(), "home");
            weir.signal(Signal::SIGTERM);
            assert!(weir.wait().expect("it ends").success());
        }
    }
}

#[test]
fn folder_that_is_none_is_explained() {
    let setup = Setup::new()
        .file("file", "")
        .file("${env:HOME}/index.html", "");
    for (arguments, word) in [
        (&[][..], "<DIR>"),
        (&["none"], "there is no folder `none`"),
        (&["file"], "`file` is not a folder"),
        (&["file/x"], "cannot open the folder `file/x`"),
        (&["${env:HOME}"], "filled in"),
        (&[".", "--bind", ":0"], "port"),
        (&[".", "-u"], "-u"),
    ] {
        let run = setup.run(&[&["files"], arguments].concat());
        assert_eq!(run.status, 2, "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(word), "{arguments:?}: {run:?}");
    }
}
