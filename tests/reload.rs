//! HUP: a good file takes effect for the next request without touching a connection; a bad one changes nothing.

use std::fs;

use crate::harness::certs::Authority;
use crate::harness::client::{Connection, get};
use crate::harness::load::{Kind, Load};
use crate::harness::origin::{Behaviour, Origin};
use crate::harness::secure::SecureOrigin;
use crate::harness::wait::{PATIENCE, eventually};
use crate::harness::websocket::Frame;
use crate::harness::{Setup, Weir, one_pool, one_site};
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

#[test]
fn what_only_a_new_process_can_take_is_refused_as_a_whole() {
    let setup = Setup::new().allow("reload failed").allow("cannot change");
    let weir = setup.start(&responds("old"));
    let said = weir.reload_in_vain(&(responds("new") + "threads: 1\n"));
    let line = said
        .lines()
        .find(|line| line.contains("threads: cannot change while running"));
    let place =
        line.is_some_and(|line| line.contains("weir.yaml:") && line.contains(":10: threads"));
    assert!(place, "{said}");
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
