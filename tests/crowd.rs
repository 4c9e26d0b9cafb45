//! Too many connections: of one client, of a listener, for the process.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::harness::client::{Connection, get};
use crate::harness::wait::{PATIENCE, eventually, value_within};
use crate::harness::{BINARY, Setup, Weir};

const DOCUMENT: &str = "
    trusted_proxies: [127.0.0.3]
    listeners:
      http: { bind: '127.0.0.1:{http}', limits: { LIMITS } }
      https: { bind: '127.0.0.1:{https}', tls: {}, limits: { LIMITS } }
      named:
        bind: '127.0.0.1:{named}'
        proxy_protocol: { from: [127.0.0.0/8] }
        limits: { LIMITS }
    sites: { main: { hosts: ['*'], tls: { self_signed: true }, routes: [{ respond: ok }] } }
    ";

fn start(limits: &str) -> Weir {
    Weir::start(&DOCUMENT.replace("LIMITS", limits))
}

/// A connection from one of this machine's addresses.
fn from(address: &str, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let own: SocketAddr = format!("{address}:0").parse().expect("an address");
    socket.bind(&own.into()).expect("bind");
    socket.connect(&to.into()).expect("connect");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

/// The status that a request on this connection gets; the connection stays.
fn ask(stream: &mut TcpStream) -> u16 {
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut head = [0; 12];
    stream.read_exact(&mut head).expect("an answer");
    let status = str::from_utf8(&head[9..]).expect("a status");
    status.parse().expect("a number")
}

fn status(setup: &Setup) -> Value {
    let run = setup.run(&["status", "--json", "-c", "weir.yaml"]);
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"))
}

/// What the status says of a listener.
fn listener(setup: &Setup, name: &str) -> Value {
    let status = status(setup);
    let listeners = status["listeners"].as_array().expect("a list");
    let found = listeners.iter().find(|listener| listener["name"] == name);
    found.expect("the listener").clone()
}

/// Waits until the harness's own look whether weir listens is over.
fn settle(weir: &Weir) {
    eventually(PATIENCE, || status(weir.setup())["connections"] == 0);
}

#[test]
fn one_client_may_have_so_many_and_others_have_their_own() {
    let weir = start("per_client: 2");
    settle(&weir);
    let address = weir.address("http");
    let mut own: Vec<_> = (0..2).map(|_| from("127.0.0.1", address)).collect();
    for stream in &mut own {
        assert_eq!(ask(stream), 200);
    }
    let mut third = Connection::over(from("127.0.0.1", address));
    let answer = third.fetch(&get("/")).expect("an answer");
    assert_eq!(
        (answer.status, answer.header("connection")),
        (429, Some("close"))
    );
    third.read_close().expect("a clean end");
    assert_eq!(ask(&mut from("127.0.0.2", address)), 200);
    // proxies stand for many
    let mut proxied: Vec<_> = (0..4).map(|_| from("127.0.0.3", address)).collect();
    assert!(proxied.iter_mut().all(|stream| ask(stream) == 200));
    let logged = |log: String| log.contains("\"-\" 429 ") && log.contains(" client_full");
    eventually(PATIENCE, || logged(weir.access_log()));
    let one = listener(weir.setup(), "listeners.http");
    assert_eq!(
        (&one["refused_of_one"], &one["refused"]),
        (&1.into(), &0.into())
    );
    let page = weir.setup().run(&["status", "-c", "weir.yaml"]).stdout;
    assert!(page.contains("1 beyond 2 of one client"), "{page}");
    drop(own);
    eventually(PATIENCE, || ask(&mut from("127.0.0.1", address)) == 200);
}

#[test]
fn over_tls_there_is_no_handshake_for_one_too_many() {
    let weir = start("per_client: 1");
    settle(&weir);
    let mut first = weir.connect_tls("localhost");
    assert_eq!(first.fetch(&get("/")).expect("an answer").status, 200);
    let mut second = from("127.0.0.1", weir.address("https"));
    let mut nothing = Vec::new();
    assert_eq!(second.read_to_end(&mut nothing).expect("the end"), 0);
    drop(first);
    let again = || Connection::tls(weir.address("https"), "localhost").is_ok();
    eventually(PATIENCE, again);
}

#[test]
fn networks_of_ipv6_and_clients_that_a_proxy_names_count() {
    let weir = start("per_client: 2");
    settle(&weir);
    let named = |client: &str| {
        let mut stream = from("127.0.0.1", weir.address("named"));
        let line = format!("PROXY TCP6 {client} 2001:db8::1 4711 443\r\n");
        stream.write_all(line.as_bytes()).expect("send");
        let status = ask(&mut stream);
        (stream, status)
    };
    let clients = [
        ("2001:db8:1::1", 200),
        ("2001:db8:1::ffff:2", 200),
        ("2001:db8:1::3", 429),
        ("2001:db8:1:1::1", 200),
        ("2001:db8:1:1::2", 200),
        ("2001:db8:1:1:8000::", 429),
    ];
    let open = clients.map(|(client, expected)| {
        let (stream, status) = named(client);
        assert_eq!(status, expected, "{client}");
        stream
    });
    drop(open);
}

#[test]
fn where_nothing_is_said_programs_on_this_machine_are_spared() {
    let weir = start("");
    let address = weir.address("http");
    let mut open: Vec<_> = (0..250).map(|_| from("127.0.0.1", address)).collect();
    assert!(open.iter_mut().all(|stream| ask(stream) == 200));
    let one = listener(weir.setup(), "listeners.http");
    assert_eq!(one["most_per_client"], 200);
    assert_eq!(one["refused_of_one"], 0);
}

#[test]
fn full_listener_says_so_and_others_are_not() {
    let weir = start("connections: 3");
    settle(&weir);
    let address = weir.address("http");
    let mut open: Vec<_> = (0..3).map(|_| from("127.0.0.1", address)).collect();
    assert!(open.iter_mut().all(|stream| ask(stream) == 200));
    for _ in 0..3 {
        let mut late = from("127.0.0.2", address);
        assert_eq!(ask(&mut late), 503);
    }
    let mut other = weir.connect_tls("localhost");
    assert_eq!(other.fetch(&get("/")).expect("an answer").status, 200);
    let refused = || weir.access_log().matches(" listener_full").count();
    eventually(PATIENCE, || refused() == 3);
    let log = weir.error_log();
    assert_eq!(log.matches("as many as it takes").count(), 1, "{log}");
    let one = listener(weir.setup(), "listeners.http");
    assert_eq!(
        (&one["refused"], &one["connections"]),
        (&3.into(), &3.into())
    );
    drop(open);
    eventually(PATIENCE, || ask(&mut from("127.0.0.1", address)) == 200);
}

#[test]
fn connections_without_descriptors_wait_for_others_to_end() {
    let setup = Setup::new();
    setup.write_config(&DOCUMENT.replace("LIMITS", ""));
    let run = format!("ulimit -n 256; exec {BINARY} -c weir.yaml");
    let mut shell = Command::new("sh");
    let _weir = setup.launch_command(shell.args(["-c", &run]).stdin(Stdio::null()));
    let address = SocketAddr::from(([127, 0, 0, 1], setup.port("http")));
    eventually(PATIENCE, || TcpStream::connect(address).is_ok());
    eventually(PATIENCE, || status(&setup)["connections"] == 0);
    let mut all: Vec<_> = (0..200).map(|_| from("127.0.0.1", address)).collect();
    for stream in &mut all {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .expect("send");
    }
    // The admin socket has what it needs all the same.
    eventually(PATIENCE, || status(&setup)["waits"].as_u64() >= Some(1));
    let open = status(&setup)["connections"].as_u64().expect("a number");
    assert!((100..190).contains(&open), "{open}");
    let soon = Duration::from_millis(50);
    all[199].set_read_timeout(Some(soon)).expect("a time-out");
    let waits = all[199].read(&mut [0]).expect_err("it waits");
    assert_eq!(waits.kind(), ErrorKind::WouldBlock);
    let late = all.split_off(150);
    drop(all);
    for mut stream in late {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 200");
    }
    let log = setup.error_log();
    assert_eq!(log.matches("new connections wait").count(), 1, "{log}");
}

#[test]
fn accepting_goes_on_when_the_system_has_descriptors_again() {
    let setup = Setup::new().allow("cannot accept");
    let weir = setup.start(&DOCUMENT.replace("LIMITS", ""));
    settle(&weir);
    let limit = |soft: &str| {
        let run = Command::new("prlimit")
            .args([
                "--pid",
                &weir.pid().to_string(),
                &format!("--nofile={soft}:"),
            ])
            .status();
        assert!(run.expect("run prlimit").success());
    };
    limit("10");
    let mut late: Vec<_> = (0..5)
        .map(|_| from("127.0.0.1", weir.address("http")))
        .collect();
    eventually(PATIENCE, || weir.error_log().contains("cannot accept"));
    limit("1000");
    assert!(late.iter_mut().all(|stream| ask(stream) == 200));
    let log = weir.error_log();
    assert_eq!(log.matches("cannot accept").count(), 1, "{log}");
    assert!(status(weir.setup())["exhausted"].as_u64() >= Some(1));
}

#[test]
fn what_cannot_be_read_is_counted() {
    let weir = start("");
    for bytes in [
        "GARBAGE\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n",
    ] {
        let mut connection = weir.connect();
        connection.send(bytes.as_bytes()).expect("send");
        assert_eq!(connection.read().expect("an answer").status, 400);
    }
    weir.get("/");
    let counted = value_within(PATIENCE, || {
        let count = status(weir.setup())["malformed"].as_u64()?;
        (count == 2).then_some(count)
    });
    assert_eq!(counted, Some(2));
    let page = weir.setup().run(&["status", "-c", "weir.yaml"]).stdout;
    assert!(page.contains("2 requests could not be read"), "{page}");
}
