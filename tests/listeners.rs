//! Addresses of all kinds.

use std::net::{Ipv6Addr, SocketAddr};

use crate::harness::client::{Connection, get};
use crate::harness::wait::{PATIENCE, value_within};
use crate::harness::{Setup, Weir};

#[track_caller]
fn assert_serves(connection: std::io::Result<Connection>) {
    let answer = connection.expect("connect").fetch(&get("/"));
    assert_eq!(answer.expect("an answer").text(), "here");
}

#[test]
fn several_addresses_of_one_listener_are_served() {
    let weir = Weir::start(
        "
        listeners: { web: { bind: ['127.0.0.1:{one}', '127.0.0.1:{two}', 'unix:{dir}/web.sock'] } }
        sites: { main: { hosts: ['*'], routes: [{ respond: { body: here } }] } }
        ",
    );
    assert_serves(Connection::tcp(weir.address("one")));
    assert_serves(Connection::tcp(weir.address("two")));
    assert_serves(Connection::unix(&weir.dir().join("web.sock")));
}

#[test]
fn ipv6_is_served_beside_ipv4_on_the_same_port() {
    let weir = Weir::start(
        "
        listeners: { web: { bind: ['0.0.0.0:{http}', '[::]:{http}'] } }
        sites:
          main:
            hosts: ['*']
            routes: [{ match: { client: [127.0.0.1, '::1'] }, respond: { body: here } }]
        ",
    );
    let port = weir.address("http").port();
    assert_serves(Connection::tcp(weir.address("http")));
    assert_serves(Connection::tcp(SocketAddr::from((
        Ipv6Addr::LOCALHOST,
        port,
    ))));
}

#[test]
fn tls_and_plain_listeners_stand_side_by_side() {
    let weir = Weir::start(
        "
        listeners:
          http: { bind: '127.0.0.1:{http}' }
          https: { bind: '127.0.0.1:{https}', tls: {} }
        sites: { main: { hosts: ['*'], tls: { self_signed: true }, routes: [{ respond: { body: here } }] } }
        ",
    );
    assert_serves(Connection::tcp(weir.address("http")));
    assert_serves(Connection::tls(weir.address("https"), "localhost"));
}

#[test]
fn socket_file_of_a_dead_process_is_replaced() {
    let document = "
        listeners: { web: { bind: 'unix:{dir}/web.sock' } }
        sites: { main: { hosts: ['*'], routes: [{ respond: { body: here } }] } }
        ";
    let setup = Setup::new();
    drop(std::os::unix::net::UnixListener::bind(
        setup.dir().join("web.sock"),
    ));
    let weir = setup.start(document);
    assert_serves(Connection::unix(&weir.dir().join("web.sock")));
}

#[test]
fn address_in_use_is_told_and_ends_the_start() {
    let setup = Setup::new();
    let taken = std::net::TcpListener::bind(("127.0.0.1", setup.port("http"))).expect("bind");
    setup.write_config(
        "
        listeners: { http: { bind: '127.0.0.1:{http}' } }
        sites: { main: { hosts: ['*'], routes: [{ respond: { status: 204 } }] } }
        ",
    );
    let run = setup.run(&["-c", "weir.yaml"]);
    assert_eq!(run.status, 3, "{run:?}");
    let address = taken.local_addr().expect("an address").to_string();
    assert!(run.stderr.contains(&address), "{run:?}");
}

#[test]
fn idle_connections_cost_little() {
    const CONNECTIONS: u64 = 500;
    let weir = Weir::start_site("routes: [{ respond: { body: here } }]");
    for _ in 0..50 {
        weir.get("/"); // what is allocated once
    }
    let before = weir.peak_memory();
    let connections = (0..CONNECTIONS).map(|_| {
        let mut connection = weir.connect();
        connection.fetch(&get("/")).expect("an answer");
        connection
    });
    let connections: Vec<_> = connections.collect();
    let each = (weir.peak_memory() - before) / CONNECTIONS;
    // 8 KiB are promised for an optimised build with its own allocator's slack spread over thousands
    assert!(
        each < 16 * 1024,
        "{each} bytes for each of {} connections",
        connections.len()
    );
}

#[test]
fn connections_beyond_the_first_are_accepted_while_others_are_open() {
    let weir = Weir::start_site("routes: [{ respond: { body: here } }]");
    let idle: Vec<_> = (0..100).map(|_| weir.connect()).collect();
    let answer = value_within(PATIENCE, || weir.connect().fetch(&get("/")).ok());
    assert_eq!(answer.expect("an answer").status, 200);
    assert_eq!(idle.len(), 100);
}
