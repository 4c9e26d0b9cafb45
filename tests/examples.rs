//! Each `conf/*.yaml` is accepted, starts, and answers the requests in the comment at its top:
//!
//! ```yaml
//! # GET / -> 200
//! # GET https://shop.example/cart -> 302 Location: /login
//! ```
//!
//! Behind the status may stand a header, of which the value is given from its start.
//! A target without a host goes to the first plain listener. Ports are exchanged for free ones; a backend that is no
//! listener of the same file is a process of the user's, which an origin stands in for.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use regex::{Captures, Regex};

use crate::harness::client::{Connection, Request, Response};
use crate::harness::origin::Origin;
use crate::harness::wait::{PATIENCE, holds_within};
use crate::harness::{Setup, bind_addresses};

#[test]
fn examples_are_accepted_as_they_are() {
    for file in examples() {
        let setup = copy_of_conf();
        let name = file.file_name().expect("a file").to_string_lossy();
        let run = setup.run(&["check", "-c", &name]);
        assert_eq!(run.status, 0, "{name}: {}", run.stderr);
        assert!(!run.stderr.contains("warning"), "{name}: {}", run.stderr);
    }
}

#[test]
fn examples_answer_the_requests_in_their_headers() {
    for file in examples() {
        let text = fs::read_to_string(&file).expect("read an example");
        let requests = requests(&text);
        let name = file.display();
        assert!(!requests.is_empty(), "{name}: no request in the header");

        let setup = copy_of_conf();
        let mut ports = BTreeMap::new();
        let document = exchange_ports(&text, &setup, &mut ports);
        let bound = bind_addresses(&document);
        let free = ports
            .values()
            .filter(|port| !bound.iter().any(|address| ends_with_port(address, **port)));
        let _origins: Vec<_> = free.map(|port| Origin::fixed_at(*port, "origin")).collect();
        let weir = setup.start(&without_process_keys(&document));

        for expected in requests {
            let listener = match expected.port {
                Some(port) => ports[&port],
                None => first_listener(&document, expected.scheme),
            };
            let address = SocketAddr::from(([127, 0, 0, 1], listener));
            let fetch = || {
                let request = &expected.request;
                let mut connection = match expected.scheme {
                    "https" => Connection::tls(address, &request.host)?,
                    _ => Connection::tcp(address)?,
                };
                connection.fetch(request)
            };
            // health checks may need a moment to let the first request through
            let met = || fetch().is_ok_and(|answer| expected.is_met_by(&answer));
            assert!(
                holds_within(PATIENCE, met),
                "{name}: {expected:?} gives {:?}",
                fetch()
            );
        }
        weir.stop();
    }
}

/// A line of the header: a request and what its answer must have.
#[derive(Debug)]
struct Expectation {
    request: Request,
    scheme: &'static str,
    port: Option<u16>,
    status: u16,
    header: Option<(String, String)>,
}

impl Expectation {
    fn is_met_by(&self, answer: &Response) -> bool {
        let has = |(name, value): &(String, String)| {
            let got = answer.header(name);
            got.is_some_and(|got| got.starts_with(value.as_str()))
        };
        answer.status == self.status && self.header.as_ref().is_none_or(has)
    }
}

/// The requests in the comment at the top of an example.
fn requests(text: &str) -> Vec<Expectation> {
    let url = r"(?:(https?)://([^/:\s]+)(?::([0-9]+))?)?(/\S*)";
    let answer = r"([0-9]{3})(?: ([\w-]+): (.+))?";
    let line = Regex::new(&format!(r"^#\s+([A-Z]+) {url} -> {answer}")).expect("a valid pattern");
    let header = text
        .lines()
        .take_while(|line| line.starts_with('#') || line.is_empty());
    let found = header.filter_map(|text| line.captures(text)).map(|found| {
        let host = found.get(3).map_or("localhost", |host| host.as_str());
        Expectation {
            request: Request::new(&found[1], &found[5]).host(host),
            scheme: match found.get(2).map(|scheme| scheme.as_str()) {
                Some("https") => "https",
                _ => "http",
            },
            port: found
                .get(4)
                .map(|port| port.as_str().parse().expect("a port")),
            status: found[6].parse().expect("three digits"),
            header: found
                .get(7)
                .map(|name| (name.as_str().to_owned(), found[8].trim().to_owned())),
        }
    });
    found.collect()
}

/// Gives each port of an address in `text` a free one, the same for the same; addresses become local ones.
fn exchange_ports(text: &str, setup: &Setup, ports: &mut BTreeMap<u16, u16>) -> String {
    let address = Regex::new(r"(\d+\.\d+\.\d+\.\d+|localhost|\[[0-9a-f:]+\]):(\d+)")
        .expect("a valid pattern");
    let exchange = |found: &Captures| {
        let host = match &found[1] {
            "[::]" => "[::1]",
            host if host.starts_with('[') => host,
            _ => "127.0.0.1",
        };
        let old: u16 = found[2].parse().expect("a port");
        let new = *ports
            .entry(old)
            .or_insert_with(|| setup.port(&format!("port_{old}")));
        format!("{host}:{new}")
    };
    address.replace_all(text, exchange).into_owned()
}

/// The harness brings its own pid file and the like.
fn without_process_keys(document: &str) -> String {
    let keys = [
        "version",
        "threads",
        "pid_file",
        "upgrade_sock",
        "user",
        "group",
        "daemon",
    ];
    let kept = document.lines().filter(|line| {
        let key = line.split(':').next().unwrap_or_default();
        !keys.contains(&key)
    });
    kept.map(|line| format!("{line}\n")).collect()
}

fn first_listener(document: &str, scheme: &str) -> u16 {
    let document: serde_yaml::Value = serde_yaml::from_str(document).expect("YAML");
    let listeners = document["listeners"].as_mapping().expect("listeners");
    let wanted = listeners
        .values()
        .find(|entry| entry.get("tls").is_some() == (scheme == "https"));
    let bind = &wanted.unwrap_or_else(|| panic!("no listener for {scheme}"))["bind"];
    let address = bind
        .as_str()
        .or_else(|| bind[0].as_str())
        .expect("an address");
    let port = address.rsplit(':').next().expect("a port");
    port.parse().expect("a port")
}

fn ends_with_port(address: &str, port: u16) -> bool {
    address.ends_with(&format!(":{port}"))
}

/// A setup whose folder holds all of `conf/`, for what an example includes and serves.
fn copy_of_conf() -> Setup {
    let setup = Setup::new();
    copy(&conf(), setup.dir());
    setup
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("read a folder") {
        let entry = entry.expect("read a folder");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            fs::create_dir_all(&to).expect("create a folder");
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).expect("copy a file");
        }
    }
}

fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(conf()).expect("read conf/");
    let files = entries.map(|entry| entry.expect("read conf/").path());
    files
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect()
}

fn conf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")
}

#[test]
fn requests_are_read_from_the_header() {
    let text = "# What it shows.\n#   GET /a?b -> 200 (a page)\n# HEAD https://x.example:8443/ -> 301 Location: /y z\n\npools: {}\n# GET /no -> 200\n";
    let requests = requests(text);
    assert_eq!(requests.len(), 2);
    assert_eq!(
        (requests[0].request.target.as_str(), requests[0].status),
        ("/a?b", 200)
    );
    assert_eq!(
        (requests[1].scheme, requests[1].port),
        ("https", Some(8443))
    );
    assert_eq!(requests[1].request.host, "x.example");
    let header = ("Location".to_owned(), "/y z".to_owned());
    assert_eq!(
        (&requests[0].header, &requests[1].header),
        (&None, &Some(header))
    );
}
