//! HUP: a good file takes effect for the next request without touching a connection; a bad one changes nothing.

use std::fs;
use std::net::TcpListener;

use nix::sys::signal::Signal;

use crate::harness::certs::Authority;
use crate::harness::client::{Connection, get};
use crate::harness::load::{Kind, Load};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::secure::SecureOrigin;
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::websocket::Frame;
use crate::harness::{Setup, Weir, dedent, one_pool, one_site};
use crate::streaming::open_websocket;

fn responds(body: &str) -> String {
    one_site(&format!("routes: [{{ respond: {{ body: {body} }} }}]"))
}

#[test]
fn next_request_of_an_open_connection_sees_the_new_file() {
    let weir = Weir::start(&responds("old"));
    let mut connection = weir.connect();
    assert_eq!(
        connection.fetch(&get("/")).expect("an answer").text(),
        "old"
    );
    weir.reload(&responds("new"));
    assert_eq!(
        connection.fetch(&get("/")).expect("an answer").text(),
        "new"
    );
}

#[test]
fn sites_routes_and_pools_come_and_go() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let setup = Weir::with("a", &a).with("b", &b);
    let weir = setup.start(&one_pool("{ backends: ['{a}'] }"));
    assert_eq!(weir.get("/").text(), "a");
    weir.reload(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        pools: { other: { backends: ['{b}'] } }
        sites:
          new: { hosts: [new.example], routes: [{ match: { path: /x }, proxy: other }] }
        ",
    );
    assert_eq!(weir.get("/").status, 404);
    assert_eq!(weir.fetch(&get("/x").host("new.example")).text(), "b");
    weir.reload(&one_pool("{ backends: ['{b}', '{a}'] }"));
    let answers: String = (0..4).map(|_| weir.get("/").text().to_owned()).collect();
    assert!(["abab", "baba"].contains(&answers.as_str()), "{answers}");
}

#[test]
fn nothing_fails_while_a_pool_is_edited_under_load() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let document = |pool: &str| {
        format!(
            "
            listeners:
              http: {{ bind: '127.0.0.1:{{http}}' }}
              https: {{ bind: '127.0.0.1:{{https}}', tls: {{}} }}
            pools: {{ app: {pool} }}
            sites: {{ main: {{ hosts: ['*'], tls: {{ self_signed: true }}, routes: [{{ proxy: app }}] }} }}
            "
        )
    };
    let pools = [
        "{ backends: ['{a}'] }",
        "{ backends: ['{b}'] }",
        "{ backends: ['{a}', { addr: '{b}', weight: 2 }] }",
    ];
    let weir = Weir::with("a", &a).with("b", &b).start(&document(pools[2]));
    let loads = [
        Load::start(Kind::KeepAlive, weir.address("http"), 2),
        Load::start(Kind::Fresh, weir.address("http"), 1),
        Load::start(Kind::Http2, weir.address("https"), 1),
    ];
    for pool in pools.iter().cycle().take(9) {
        for load in &loads {
            load.wait_for_answers(10);
        }
        weir.reload(&document(pool));
    }
    for load in loads {
        load.wait_for_answers(10);
        load.stop_without_failure();
    }
}

#[test]
fn listeners_come_and_go() {
    let document = |listeners: &str| {
        format!(
            "
            listeners: {listeners}
            sites: {{ main: {{ hosts: ['*'], routes: [{{ respond: here }}] }} }}
            "
        )
    };
    let weir = Weir::start(&document(
        "{ http: { bind: '127.0.0.1:{http}' }, old: { bind: '127.0.0.1:{old}' } }",
    ));
    let mut kept = weir.connect();
    let mut of_the_old = Connection::tcp(weir.address("old")).expect("connect");
    assert_eq!(of_the_old.fetch(&get("/")).expect("an answer").status, 200);
    weir.reload(&document(
        "{ http: { bind: ['127.0.0.1:{http}', '127.0.0.1:{new}'] } }",
    ));
    eventually(PATIENCE, || Connection::tcp(weir.address("old")).is_err());
    let mut new = Connection::tcp(weir.address("new")).expect("connect");
    for connection in [&mut kept, &mut new] {
        assert_eq!(
            connection.fetch(&get("/")).expect("an answer").text(),
            "here"
        );
    }
}

/// Where weir listens on `{kept}` as well, which is all that is left of it.
const KEPT: &str = "
    listeners: { kept: { bind: '127.0.0.1:{kept}' } }
    sites: { main: { hosts: ['*'], routes: [{ respond: new }] } }
    ";

#[test]
fn connections_of_a_listener_that_is_gone_are_drained() {
    let app = Origin::start(Behaviour::Held("in the end".to_owned()));
    let setup = Weir::with("app", &app);
    let weir = setup.start(
        "
        listeners:
          http: { bind: '127.0.0.1:{http}' }
          https: { bind: '127.0.0.1:{https}', tls: {} }
          kept: { bind: '127.0.0.1:{kept}' }
        pools: { app: { backends: ['{app}'] } }
        sites:
          main:
            hosts: ['*']
            tls: { self_signed: true }
            routes: [{ match: { path: /held }, proxy: app }, { respond: old }]
        ",
    );
    let mut kept = Connection::tcp(weir.address("kept")).expect("connect");
    let (mut idle, mut silent, mut busy) = (weir.connect(), weir.connect(), weir.connect());
    for connection in [&mut kept, &mut idle, &mut silent] {
        connection.fetch(&get("/")).expect("an answer");
    }
    busy.send_request(&get("/held")).expect("send");
    let mut http2 = weir.connect_http2("localhost");
    http2.fetch(&get("/")).expect("an answer");
    std::thread::scope(|scope| {
        let mut stream = http2.clone();
        let stream = scope.spawn(move || stream.fetch(&get("/held")));
        eventually(PATIENCE, || app.hits() == 2);
        weir.reload(KEPT);
        let said = weir.setup().run(&["status", "-c", "weir.yaml"]).stdout;
        let line = said
            .lines()
            .find(|line| line.starts_with("generation 1, until "));
        let line = line.unwrap_or_else(|| panic!("nothing of generation 1 in {said}"));
        assert!(
            line.ends_with("still has 2 requests, 4 connections"),
            "{line}"
        );

        // one more answer, or a close after a moment
        let answer = idle.fetch(&get("/")).expect("an answer");
        assert_eq!(answer.header("connection"), Some("close"));
        idle.read_close().expect("a clean end");
        silent.read_close().expect("a clean end");
        // what has begun goes on, and nothing new begins on a connection that is told good-bye
        eventually(PATIENCE, || {
            let refused = http2.fetch(&get("/")).map_err(|error| error.kind());
            refused.is_err_and(|kind| kind == std::io::ErrorKind::NotConnected)
        });
        app.release(2);
        let answer = stream.join().expect("a client does not panic");
        assert_eq!(answer.expect("an answer").text(), "in the end");
    });
    assert_eq!(busy.read().expect("an answer").text(), "in the end");
    busy.read_close().expect("a clean end");
    assert_eq!(kept.fetch(&get("/")).expect("an answer").text(), "new");
    eventually(PATIENCE, || {
        let said = weir.setup().run(&["status", "-c", "weir.yaml"]).stdout;
        !said.contains("generation 1, ")
    });
}

#[test]
fn websocket_outlives_its_listener() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = Weir::with("app", &app).start(&one_pool("{ backends: ['{app}'] }"));
    let mut connection = open_websocket(&weir);
    weir.reload(KEPT);
    eventually(PATIENCE, || Connection::tcp(weir.address("http")).is_err());
    connection
        .send_frame(&Frame::text("still here"))
        .expect("send");
    let echo = connection.read_frame().expect("a frame");
    assert_eq!(echo, Frame::text("still here"));
    let said = weir.setup().run(&["status", "-c", "weir.yaml"]).stdout;
    assert!(
        said.contains("still has 1 tunnel, 1 connection\n"),
        "{said}"
    );
}

#[test]
fn reload_that_cannot_be_carried_out_whole_changes_nothing() {
    let (one, two) = (
        TcpListener::bind("127.0.0.1:0").expect("bind"),
        TcpListener::bind("127.0.0.1:0").expect("bind"),
    );
    let address = |taken: &TcpListener| taken.local_addr().expect("an address").to_string();
    let setup = Setup::new()
        .with("one", address(&one))
        .with("two", address(&two))
        .allow("reload failed")
        .allow("weir.yaml")
        .file("bad.pem", "no certificate");
    let weir = setup.start(&responds("old"));
    let both = |listeners: &str, site: &str| {
        format!(
            "
            listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }}, {listeners} }}
            sites: {{ main: {{ hosts: ['*'], {site} routes: [{{ respond: new }}] }} }}
            "
        )
    };
    let taken = both(
        "new: { bind: '127.0.0.1:{new}' }, a: { bind: '{one}' }, b: { bind: '{two}' }",
        "",
    );
    let unreadable = both(
        "https: { bind: '127.0.0.1:{new}', tls: {} }, new: { bind: '127.0.0.1:{other}', files: 1 }",
        "tls: { cert: bad.pem, key: none.pem },",
    );
    let rootless = dedent(&both("new: { bind: '127.0.0.1:{new}' }", ""))
        + "static: { a: { bind: '127.0.0.1:{other}', root: ./none } }\n";
    for (document, told) in [
        (
            taken,
            vec![address(&one), address(&two), "in use".to_owned()],
        ),
        (
            unreadable,
            vec![
                "sites.main.tls.cert".to_owned(),
                "unknown key `files`".to_owned(),
            ],
        ),
        (rootless, vec!["static.a.root".to_owned()]),
    ] {
        let said = weir.reload_in_vain(&document);
        for word in told {
            assert!(said.contains(&word), "no `{word}` in {said}");
        }
        assert_eq!(weir.get("/").text(), "old");
        for name in ["new", "other"] {
            assert!(Connection::tcp(weir.address(name)).is_err());
        }
    }
    let said = weir.setup().run(&["status", "-c", "weir.yaml"]).stdout;
    assert!(said.contains("generation 1 of"), "{said}");
}

#[test]
fn files_that_change_are_loaded() {
    let authority = Authority::new();
    let setup = Setup::new()
        .allow("reload failed")
        .allow("weir.yaml")
        .allow("the new certificate is refused")
        .file("secret", "one");
    let pair = authority.issue(setup.dir(), "site", &["shop.example"]);
    let document = |body: &str| {
        format!(
            "
            watch: true
            include: conf.d/*.yaml
            listeners:
              http: {{ bind: '127.0.0.1:{{http}}' }}
              https: {{ bind: '127.0.0.1:{{https}}', tls: {{}} }}
            sites:
              main:
                hosts: ['*']
                tls: {{ cert: '{}', key: '{}' }}
                routes: [{{ match: {{ path: /secret }}, respond: '${{file:secret}}' }}, {{ respond: {body} }}]
            ",
            pair.cert.display(),
            pair.key.display(),
        )
    };
    let weir = setup.start(&document("old"));
    let setup = weir.setup();
    setup.write_config(&document("new"));
    eventually(PATIENCE, || weir.get("/").text() == "new");

    setup.write("secret", "another");
    eventually(PATIENCE, || weir.get("/secret").text() == "another");

    let added = "sites: { more: { hosts: [more.example], routes: [{ respond: more }] } }\n";
    setup.write("conf.d/more.yaml", added);
    let more = get("/").host("more.example");
    eventually(PATIENCE, || weir.fetch(&more).text() == "more");

    let generation = || {
        let said = setup.run(&["status", "-c", "weir.yaml"]).stdout;
        let line = said
            .lines()
            .find(|line| line.contains(" of the configuration"));
        line.expect("a generation").to_owned()
    };
    // Certificates are renewed by themselves, unless they keep a file from being loaded.
    let before = generation();
    authority.issue(setup.dir(), "site", &["renewed.example"]);
    let shown = || weir.connect_tls("shop.example").certificate;
    eventually(PATIENCE, || shown() == ["renewed.example"]);
    assert_eq!(generation(), before);

    // a mistake is told once, and so is the next one
    setup.write("conf.d/more.yaml", "sites: 5\n");
    let failures = || weir.error_log().matches("reload failed").count();
    eventually(PATIENCE, || failures() == 1);
    setup.write("conf.d/more.yaml", "sites: [5]\n");
    eventually(PATIENCE, || failures() == 2);
    assert_eq!(weir.fetch(&more).text(), "more");
    setup.write(
        "conf.d/more.yaml",
        added.replace("respond: more", "respond: again"),
    );
    eventually(PATIENCE, || weir.fetch(&more).text() == "again");
    assert_eq!(failures(), 2);

    let certificate = setup.read("site.pem");
    setup.write("site.pem", "nothing");
    setup.write_config(&document("last"));
    eventually(PATIENCE, || failures() == 3);
    setup.write("site.pem", certificate);
    eventually(PATIENCE, || weir.get("/").text() == "last");
}

#[test]
fn what_only_a_new_process_can_take_is_refused_as_a_whole_where_that_fails() {
    let setup = Setup::new().allow("not handed over").allow("no user named");
    let weir = setup.start(&responds("old"));
    let document = responds("new") + "user: nobody-of-that-name\n";
    weir.setup().write_config(&document);
    weir.signal(Signal::SIGHUP);
    eventually(PATIENCE, || weir.error_log().contains("; this one goes on"));
    let log = weir.error_log();
    assert!(log.contains("no user named `nobody-of-that-name`"), "{log}");
    assert_eq!(weir.get("/").text(), "old");
}

#[test]
fn broken_file_is_reported_and_changes_nothing() {
    let setup = Setup::new().allow("reload failed").allow("weir.yaml");
    let weir = setup.start(&responds("old"));
    for (broken, place) in [
        (responds("old").replace("hosts", "host"), "weir.yaml:4:"),
        (
            one_site("routes: [{ proxy: nowhere }]"),
            "sites.main.routes[0].proxy",
        ),
        ("sites: [".to_owned(), "weir.yaml:"),
        (String::new(), "reload failed"),
    ] {
        let said = weir.reload_in_vain(&broken);
        assert!(said.contains(place), "{broken}: {said}");
        assert_eq!(weir.get("/").text(), "old");
    }
    weir.reload(&responds("new"));
    assert_eq!(weir.get("/").text(), "new");
}

#[test]
fn missing_file_is_reported_and_changes_nothing() {
    use nix::sys::signal::Signal;
    let setup = Setup::new().allow("reload failed").allow("weir.yaml");
    let weir = setup.start(&responds("old"));
    fs::remove_file(weir.dir().join("weir.yaml")).expect("remove");
    weir.signal(Signal::SIGHUP);
    eventually(PATIENCE, || weir.error_log().contains("reload failed"));
    assert_eq!(weir.get("/").text(), "old");
}

#[test]
fn running_request_ends_as_it_began() {
    let app = Origin::start(Behaviour::Steps(2));
    let setup = Weir::with("app", &app);
    let weir = setup.start(&one_pool("{ backends: ['{app}'] }"));
    let mut connection = weir.connect();
    connection.send_request(&get("/")).expect("send");
    connection.read_head().expect("a head");
    app.release(1);
    assert_eq!(connection.read_chunk().expect("a chunk"), b"part 0\n");
    weir.reload(&responds("new"));
    app.release(1);
    assert_eq!(connection.read_chunk().expect("a chunk"), b"part 1\n");
    assert_eq!(connection.read_chunk().expect("the last chunk"), b"");
    assert_eq!(
        connection.fetch(&get("/")).expect("an answer").text(),
        "new"
    );
}

#[test]
fn websocket_survives() {
    let app = Origin::start(Behaviour::WebSocket);
    let weir = Weir::with("app", &app).start(&one_pool("{ backends: ['{app}'] }"));
    let mut connection = open_websocket(&weir);
    weir.reload(&responds("new"));
    connection
        .send_frame(&Frame::text("still here"))
        .expect("send");
    assert_eq!(
        connection.read_frame().expect("a frame"),
        Frame::text("still here")
    );
    assert_eq!(weir.get("/").text(), "new");
}

#[test]
fn health_of_a_member_is_remembered() {
    let (a, b) = (Origin::fixed("a"), Origin::fixed("b"));
    let pool = "{ backends: ['{a}', '{b}'], health: { http: { path: /healthz }, interval: 50ms, timeout: 1s, rise: 1, fall: 1 } }";
    let setup = Weir::with("a", &a).with("b", &b).allow("is down");
    let weir = setup.start(&one_pool(pool));
    a.set_healthy(false);
    let answers = || {
        (0..4)
            .map(|_| weir.get("/").text().to_owned())
            .collect::<String>()
    };
    eventually(PATIENCE, || answers() == "bbbb");
    for _ in 0..5 {
        weir.reload(&one_pool(pool));
        assert_eq!(answers(), "bbbb");
    }
}

#[test]
fn connections_of_a_member_are_kept_as_long_as_they_are_what_it_would_make() {
    let setup = Setup::new();
    let authority = Authority::new();
    authority.write(setup.dir(), "ca.pem");
    let pair = authority.issue(setup.dir(), "app", &["a.internal", "b.internal"]);
    for alpn in [&b"\x08http/1.1"[..], b"\x02h2"] {
        let app = SecureOrigin::tls(&pair, alpn);
        let setup = Weir::with("app", &app);
        authority.write(setup.dir(), "ca.pem");
        let pool = |weight: u32, read: &str, name: &str| {
            one_pool(&format!(
                "{{ backends: [{{ addr: '{{app}}', weight: {weight} }}], timeouts: {{ read: {read} }}, \
                   tls: {{ ca: ca.pem, sni: {name} }} }}"
            ))
        };
        let weir = setup.start(&pool(1, "30s", "a.internal"));
        // on one connection: a request on another one may come before the backend's is free
        let mut client = weir.connect();
        let mut connections = || {
            assert_eq!(client.fetch(&get("/")).expect("an answer").status, 200);
            app.connections()
        };
        assert_eq!(connections(), 1);
        weir.reload(&pool(2, "30s", "a.internal"));
        assert_eq!(connections(), 1);
        weir.reload(&pool(2, "20s", "a.internal"));
        assert_eq!(connections(), 1);
        weir.reload(&pool(2, "20s", "b.internal"));
        assert_eq!(connections(), 2);
    }
}

#[test]
fn many_reloads_do_not_pile_up_memory() {
    let app = Origin::fixed("ok");
    let weir = Weir::with("app", &app).start(&one_pool("{ backends: ['{app}'] }"));
    let round = || {
        for _ in 0..20 {
            weir.reload(&one_pool("{ backends: ['{app}'] }"));
            assert_eq!(weir.get("/").status, 200);
        }
        weir.peak_memory()
    };
    let before = round();
    let grown = round() - before;
    assert!(
        grown < 4 << 20,
        "memory grew by {} KiB over 20 reloads",
        grown / 1024
    );
}
