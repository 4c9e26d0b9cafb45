use super::*;

use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::issue::Severity;

/// Compiles `yaml`, and says what was found wrong.
fn compile(yaml: &str, previous: Option<&Arc<Pool>>) -> (Option<Arc<Pool>>, Vec<String>) {
    let config: Config = serde_yaml::from_str(yaml).expect("the test's YAML fits");
    let sources = Sources::default();
    let mut issues = Issues::default();
    let at = At::Root.key("app");
    let names = look_up(&config, previous);
    let pool = config.compile("app", previous, &names, &at, &sources, &mut issues);
    let errors = issues.has_errors();
    assert!(pool.is_some() || errors, "no pool, but no error either");
    let issues = issues.0.iter().map(|issue| {
        let severity = match issue.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        format!("{severity}: {}: {}", issue.path, issue.message)
    });
    (pool.filter(|_| !errors), issues.collect())
}

/// Asks for the names of a pool, of which the tests know only such that no name server is asked for.
fn look_up(config: &Config, previous: Option<&Arc<Pool>>) -> Names {
    let resolver = resolver::Config::default();
    let resolver = resolver.compile(&At::Root.key("resolver"), &mut Issues::default());
    Names::look_up(resolver, [config], previous)
}

fn pool(yaml: &str) -> Arc<Pool> {
    reload(yaml, None)
}

fn reload(yaml: &str, previous: Option<&Arc<Pool>>) -> Arc<Pool> {
    let (pool, issues) = compile(yaml, previous);
    assert!(issues.is_empty(), "{issues:?}");
    pool.expect("nothing is wrong")
}

fn issues(yaml: &str) -> Vec<String> {
    compile(yaml, None).1
}

fn refused(yaml: &str) -> String {
    match serde_yaml::from_str::<Config>(yaml) {
        Ok(config) => panic!("{config:?} is not refused"),
        Err(error) => error.to_string(),
    }
}

fn choice() -> Choice {
    Choice::any(Instant::now(), fastrand::u64(..))
}

/// The addresses of all members that one request is given.
fn walk(pool: &Pool) -> Vec<String> {
    let mut tried = Tried::default();
    let mut names = Vec::new();
    while let Pick::Member(member) = pool.pick(&choice(), &mut tried) {
        names.push(member.backend().to_string());
    }
    names.sort();
    names
}

/// An HTTP server on loopback or on a unix socket that gives one answer to everything, until it is dropped.
struct Origin {
    address: String,
    answer: Arc<Mutex<String>>,
    requests: Arc<Mutex<Vec<String>>>,
    wake: Box<dyn Fn() + Send>,
    thread: Option<JoinHandle<()>>,
}

/// An answer after which the origin ends.
const STOP: &str = "stop";
/// An answer that never comes.
const SILENCE: &str = "";

impl Origin {
    fn tcp(answer: &str) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accept = move || listener.accept().unwrap().0;
        let wake = move || drop(TcpStream::connect(address));
        Origin::start(address.to_string(), answer, accept, wake)
    }

    fn unix(name: &str, answer: &str) -> Origin {
        let file = format!("weir-{}-{name}.sock", std::process::id());
        let path: PathBuf = std::env::temp_dir().join(file);
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let address = format!("unix:{}", path.display());
        let accept = move || listener.accept().unwrap().0;
        let wake = move || {
            drop(UnixStream::connect(&path));
            let _ = std::fs::remove_file(&path);
        };
        Origin::start(address, answer, accept, wake)
    }

    fn start<S: Read + Write>(
        address: String,
        answer: &str,
        accept: impl Fn() -> S + Send + 'static,
        wake: impl Fn() + Send + 'static,
    ) -> Origin {
        let answer = Arc::new(Mutex::new(answer.to_owned()));
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (answers, seen) = (answer.clone(), requests.clone());
        let serve = move || {
            let mut silent = Vec::new();
            loop {
                let mut stream = accept();
                let answer = answers.lock().unwrap().clone();
                if answer == STOP {
                    return;
                }
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
                    request.push(byte[0]);
                }
                seen.lock()
                    .unwrap()
                    .push(String::from_utf8(request).unwrap());
                match answer.as_str() {
                    SILENCE => silent.push(stream),
                    answer => drop(stream.write_all(answer.as_bytes())),
                }
            }
        };
        Origin {
            address,
            answer,
            requests,
            wake: Box::new(wake),
            thread: Some(std::thread::spawn(serve)),
        }
    }

    fn answer(&self, answer: &str) {
        *self.answer.lock().unwrap() = answer.to_owned();
    }

    fn probes(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.answer(STOP);
        (self.wake)();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

/// An address that refuses connections, and the socket that keeps others from taking it.
fn closed() -> (Socket, String) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address.to_string())
}

/// Runs `test` on a tokio runtime.
fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(test)
}

/// Waits until `read` gives `expected`.
async fn eventually<T: PartialEq + Debug>(expected: T, read: impl Fn() -> T) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let found = read();
        if found == expected {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "still {found:?}, not {expected:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn reasons(pool: &Pool) -> Vec<Option<String>> {
    let members = pool.status().members.into_iter();
    members.map(|member| member.reason).collect()
}

#[test]
fn every_form_of_address_is_a_member_in_written_order() {
    let pool = pool(
        "backends: ['127.0.0.1:9001', { addr: '[::1]:9001', weight: 3 }, 'unix:/run/app.sock']",
    );
    let members = pool.members();
    let names: Vec<&str> = members.iter().map(|m| &**m.backend()).collect();
    assert_eq!(
        names,
        ["127.0.0.1:9001", "[::1]:9001", "unix:/run/app.sock"]
    );
    let weights: Vec<u32> = members.iter().map(|m| m.weight()).collect();
    assert_eq!(weights, [1, 3, 1]);
    assert_eq!(&**members[2].authority(), "localhost");
}

#[test]
fn a_name_stands_for_all_of_its_addresses() {
    let pool = pool("backends: [{ addr: 'localhost:9001', weight: 2 }]");
    assert!(!pool.members().is_empty());
    for member in pool.members().iter() {
        let address = member.address().as_inet().expect("an internet address");
        assert!(address.ip().is_loopback() && address.port() == 9001);
        assert_eq!(member.weight(), 2);
        assert_eq!(&**member.authority(), "localhost:9001");
    }
}

#[test]
fn a_name_that_does_not_resolve_is_a_warning() {
    let (pool, issues) = compile(
        "backends: ['127.0.0.1:9001', 'no-such-name.invalid:80']",
        None,
    );
    assert_eq!(pool.expect("a warning is no error").members().len(), 1);
    let [issue] = &issues[..] else {
        panic!("{issues:?}")
    };
    let expected = "warning: app.backends[1].addr: `no-such-name.invalid:80` does not resolve: ";
    assert!(issue.starts_with(expected), "{issue}");
    let (pool, _) = compile("backends: ['no-such-name.invalid:80']", None);
    assert!(matches!(
        pool.unwrap().pick(&choice(), &mut Tried::default()),
        Pick::Down
    ));
}

#[test]
fn all_mistakes_are_reported_in_one_run() {
    let yaml = "
        backends: ['127.0.0.1', '127.0.0.1:1', '127.0.0.1:1', { addr: 'app:0', weight: 0 }, { addr: '[::1]:1', weight: 1001 }]
        health: { interval: 0s, timeout: 0s }
        passive: { fail_timeout: 0s }
        timeouts: { connect: 0s }";
    assert_eq!(
        issues(yaml),
        [
            "error: app.timeouts.connect: `connect` must be longer than zero",
            "error: app.health.interval: `interval` must be longer than zero",
            "error: app.health.timeout: `timeout` must be longer than zero",
            "error: app.health: none of `http`, `tcp` and `grpc` says what to check",
            "error: app.passive.fail_timeout: `fail_timeout` must be longer than zero",
            "error: app.backends[0].addr: `127.0.0.1` has no port",
            "error: app.backends[2].addr: `127.0.0.1:1` is listed twice",
            "error: app.backends[3].addr: `0` is not a port",
            "error: app.backends[4].weight: weight `1001` is more than 1000",
        ]
    );
    assert_eq!(
        issues("backends: []"),
        ["error: app.backends: a pool needs at least one backend"]
    );
}

#[test]
fn mistakes_in_health_are_reported() {
    let issues = |health: &str| {
        issues(&format!(
            "{{ backends: ['127.0.0.1:1'], health: {health} }}"
        ))
    };
    let errors = |health: &str| -> Vec<String> {
        let issues = issues(health).into_iter();
        issues.filter(|issue| issue.starts_with("error")).collect()
    };
    assert_eq!(
        errors("{ http: {}, tcp: {} }"),
        ["error: app.health.tcp: `http` and `tcp` are both given"]
    );
    for path in ["healthz", "/a b", "/a#b", "''"] {
        let found = errors(&format!("{{ http: {{ path: {path} }} }}"));
        assert!(
            found[0].starts_with("error: app.health.http.path: "),
            "{found:?}"
        );
    }
    for host in ["a b", "u@h", "''", "a/b"] {
        let found = errors(&format!("{{ http: {{ host: {host} }} }}"));
        assert!(
            found[0].starts_with("error: app.health.http.host: "),
            "{found:?}"
        );
    }
    assert_eq!(
        errors("{ tcp: {}, grpc: {}, http: {} }"),
        ["error: app.health.tcp: `http` and `tcp` are both given"]
    );
    let found = errors("{ grpc: { host: 'a b' } }");
    assert_eq!(found, ["error: app.health.grpc.host: `a b` is not a host"]);
    let found = errors(
        "{ http: { expect: [], method: 'G T', path: x, host: '', body: { contains: ok, regex: ok },
           headers: { HOST: a, Connection: close, 'a b': c, X-A: \"a\\nb\" } } }",
    );
    assert_eq!(
        found,
        [
            "error: app.health.http.host: `` is not a host",
            "error: app.health.http.expect: no status is expected, so no member would be up",
            "error: app.health.http.method: `G T` is not a method",
            "error: app.health.http.body: `body` takes exactly one of `contains` and `regex`",
            "error: app.health.http.headers.Connection: `Connection` frames messages on one connection; weir makes it itself",
            "error: app.health.http.headers.HOST: `HOST` has a key of its own",
            "error: app.health.http.headers.X-A: `a\nb` cannot stand in a header",
            "error: app.health.http.headers.\"a b\": `a b` is not a header name",
            "error: app.health.http.path: `x` is not a path",
        ]
    );
    for (http, issue) in [
        (
            "{ method: HEAD, body: { contains: ok } }",
            "body: the answer to `HEAD` has no body",
        ),
        (
            "{ method: CONNECT }",
            "method: `CONNECT` asks for a tunnel, which says nothing about a member",
        ),
        ("{ body: { regex: '(' } }", "body.regex: unclosed group"),
    ] {
        let found = errors(&format!("{{ http: {http} }}"));
        assert_eq!(found, [format!("error: app.health.http.{issue}")]);
    }
}

#[test]
fn what_does_not_exist_yet_is_refused() {
    refused("{ backends: ['app:1'], keepalive: 0 }");
    refused("{ backends: ['app:1'], passive: { max_fails: 0 } }");
    refused("{ backends: ['app:1'], health: { tcp: {}, rise: 0 } }");
    refused("{ backends: ['app:1'], health: { tcp: { port: 1 } } }");
    refused("{ backends: ['app:1'], health: { http: { expect: 99 } } }");
}

#[test]
fn mistakes_in_how_requests_are_given_out_are_reported() {
    let yaml = "
        backends: ['127.0.0.1:1']
        slow_start: 0s
        sticky: { cookie: 'a b', ttl: 500ms, secret: '' }
        queue: { size: 9, timeout: 0s }";
    assert_eq!(
        issues(yaml)
            .into_iter()
            .filter(|issue| !issue.contains("machine-id"))
            .collect::<Vec<_>>(),
        [
            "error: app.slow_start: `slow_start` must be longer than zero",
            "error: app.sticky.cookie: `a b` cannot be the name of a cookie",
            "error: app.sticky.ttl: `ttl` must be at least 1s",
            "error: app.sticky.secret: the secret is empty",
            "warning: app.queue: nobody waits, because no backend has `max_conns`",
            "error: app.queue.timeout: `timeout` must be longer than zero",
        ]
    );
    refused("{ backends: ['app:1'], balance: least }");
    refused("{ backends: ['app:1'], queue: { size: 0, timeout: 1s } }");
    refused("{ backends: ['app:1'], queue: { size: 1 } }");
    refused("{ backends: ['app:1'], sticky: { ttl: 1h } }");
}

#[test]
fn defaults_are_as_documented() {
    let pool = pool("{ backends: ['127.0.0.1:1'], health: { http: {} } }");
    let timeouts = pool.config().timeouts;
    assert_eq!(timeouts.connect.get(), Duration::from_secs(3));
    for span in [timeouts.read, timeouts.write, timeouts.idle] {
        assert_eq!(span.get(), Duration::from_secs(60));
    }
    assert_eq!(pool.config().passive, passive::default());
    let health = pool.config().health.clone().unwrap();
    assert_eq!(health.interval.get(), Duration::from_secs(5));
    assert_eq!(health.timeout.get(), Duration::from_secs(1));
    assert_eq!((health.rise.get(), health.fall.get()), (2, 3));
    let http = health.http.unwrap();
    assert_eq!((&*http.path, &*http.method), ("/", "GET"));
    assert_eq!(health.initial, health::Initial::Up);
    assert_eq!(http.expect.0, ["200-299".parse().unwrap()]);
}

#[test]
fn a_request_gets_each_member_once() {
    let pool = pool("backends: ['127.0.0.1:1', '127.0.0.1:2', '127.0.0.1:3']");
    let mut tried = Tried::default();
    for _ in 0..3 {
        assert!(matches!(pool.pick(&choice(), &mut tried), Pick::Member(_)));
    }
    assert!(matches!(pool.pick(&choice(), &mut tried), Pick::Exhausted));
    assert_eq!(walk(&pool), ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
}

#[test]
fn a_backup_serves_only_when_no_ordinary_member_can() {
    let pool = pool(
        "backends: [{ addr: '127.0.0.1:1', backup: true }, { addr: '127.0.0.1:2', max_conns: 1 }]",
    );
    let mut tried = Tried::default();
    let pick = |tried: &mut Tried| match pool.pick(&choice(), tried) {
        Pick::Member(request) => request,
        nobody => panic!("{nobody:?}"),
    };
    let first = pick(&mut tried);
    assert_eq!(&**first.backend(), "127.0.0.1:2");
    // tried already, and full for others
    assert_eq!(&**pick(&mut tried).backend(), "127.0.0.1:1");
    assert_eq!(&**pick(&mut Tried::default()).backend(), "127.0.0.1:1");
    drop(first);
    assert_eq!(&**pick(&mut Tried::default()).backend(), "127.0.0.1:2");
}

#[test]
fn a_full_pool_is_busy_and_has_room_again() {
    let pool = pool(
        "backends: [{ addr: '127.0.0.1:1', max_conns: 2 }, { addr: '127.0.0.1:2', weight: 0 }]",
    );
    let pick = || pool.pick(&choice(), &mut Tried::default());
    let (first, second) = (pick(), pick());
    assert!(matches!(
        (&first, &second),
        (Pick::Member(_), Pick::Member(_))
    ));
    assert!(matches!(pick(), Pick::Busy));
    assert_eq!(pool.status().members[0].requests, 2);
    drop(first);
    assert!(matches!(pick(), Pick::Member(_)));
}

#[test]
fn a_draining_member_gets_nothing_new_over_reloads_too() {
    let before = pool("backends: ['127.0.0.1:1', '127.0.0.1:2']");
    assert!(before.set_draining("127.0.0.1:1", true, Instant::now()));
    assert!(!before.set_draining("127.0.0.1:3", true, Instant::now()));
    assert_eq!(walk(&before), ["127.0.0.1:2"]);
    let after = reload("backends: ['127.0.0.1:1', '127.0.0.1:3']", Some(&before));
    assert_eq!(walk(&after), ["127.0.0.1:3"]);
    assert!(after.set_draining("127.0.0.1:1", false, Instant::now()));
    assert_eq!(walk(&after), ["127.0.0.1:1", "127.0.0.1:3"]);
}

#[test]
fn pingoras_own_selection_gives_turns_of_the_same_sequence() {
    // the set that Pingora keeps is in the order of addresses, the turns are not
    let pool = pool("backends: [{ addr: '127.0.0.1:9', weight: 5 }, '127.0.0.1:1', '127.0.0.1:5']");
    let mut ports = Vec::new();
    for turn in 0..7 {
        let address = if turn % 2 == 0 {
            pool.backends.select(b"", 3).expect("all are up").addr
        } else {
            let mut tried = Tried::default();
            let Pick::Member(member) = pool.pick(&choice(), &mut tried) else {
                panic!("all are up");
            };
            member.address().clone()
        };
        ports.push(address.as_inet().unwrap().port());
    }
    assert_eq!(ports, [9, 9, 1, 9, 5, 9, 9]);
}

#[test]
fn requests_are_counted_in_and_out() {
    let pool = pool("backends: ['127.0.0.1:1']");
    let request = pool.members()[0].begin().expect("there is room");
    request.failed(Duration::ZERO, Instant::now());
    let status = &pool.status().members[0];
    assert_eq!(
        (status.in_flight, status.requests, status.failures),
        (1, 1, 1)
    );
    drop(request);
    let status = &pool.status().members[0];
    assert_eq!(
        (status.in_flight, status.requests, status.failures),
        (0, 1, 1)
    );
}

#[test]
fn the_status_is_plain_data() {
    let pool = pool("backends: [{ addr: '127.0.0.1:1', weight: 2 }]");
    assert_eq!(
        serde_json::to_value(pool.status()).unwrap(),
        serde_json::json!({
            "name": "app",
            "up": 1,
            "members": [{
                "backend": "127.0.0.1:1", "weight": 2, "backup": false,
                "up": true, "state": "up", "since": null, "reason": null, "probe": null,
                "in_flight": 0, "max_conns": null, "requests": 0, "failures": 0, "latency_ms": null,
            }],
        })
    );
}

#[test]
fn a_member_goes_down_and_up_again() {
    let (good, bad) = (Origin::tcp(OK), Origin::tcp(OK));
    let pool = pool(&format!(
        "{{ backends: ['{}', '{}'], health: {{ http: {{ path: '/healthz?x=1' }}, interval: 10ms, rise: 2, fall: 3 }} }}",
        good.address, bad.address,
    ));
    run(async {
        let _health = pool.spawn_health().expect("it has health checks");
        eventually(true, || bad.probes() > 2).await;
        assert_eq!(pool.status().up, 2);

        bad.answer(BUSY);
        eventually(1, || pool.status().up).await;
        assert_eq!(walk(&pool), [good.address.as_str()]);
        assert_eq!(
            reasons(&pool),
            [None, Some("status 503, expected 200-299".to_owned())]
        );
        assert!(pool.status().members[1].since.is_some());
        assert!(
            pool.backends
                .select(b"", 2)
                .is_some_and(|b| b.addr.to_string() == good.address)
        );

        bad.answer(OK);
        eventually(2, || pool.status().up).await;
        assert_eq!(walk(&pool).len(), 2);
        assert_eq!(reasons(&pool), [None, None]);
    });
    let request = bad.requests.lock().unwrap()[0].to_lowercase();
    assert!(
        request.starts_with("get /healthz?x=1 http/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("\r\nhost: {}\r\n", bad.address)),
        "{request}"
    );
}

#[test]
fn the_host_and_the_statuses_of_a_probe_can_be_chosen() {
    let origin = Origin::tcp("HTTP/1.1 301 Moved Permanently\r\nContent-Length: 0\r\n\r\n");
    let pool = pool(&format!(
        "{{ backends: ['{}'], health: {{ http: {{ host: app.internal, expect: [204, 300-399] }}, interval: 10ms, fall: 1 }} }}",
        origin.address,
    ));
    run(async {
        let _health = pool.spawn_health();
        eventually(true, || origin.probes() > 2).await;
    });
    assert_eq!(pool.status().up, 1);
    let request = origin.requests.lock().unwrap()[0].to_lowercase();
    assert!(request.contains("\r\nhost: app.internal\r\n"), "{request}");
}

#[test]
fn the_request_and_the_body_of_a_probe_can_be_chosen() {
    let origin = Origin::tcp(OK);
    let probe = |http: &str| {
        format!(
            "{{ backends: ['{}'], health: {{ http: {http}, interval: 10ms, timeout: 10s, rise: 1, fall: 1 }} }}",
            origin.address
        )
    };
    for (http, reason) in [
        ("{ body: { contains: ok } }", None),
        ("{ body: { regex: '^[ko]+$' } }", None),
        (
            "{ body: { contains: OK } }",
            Some("the body does not contain `OK`"),
        ),
        (
            "{ body: { regex: '^k' } }",
            Some("the body does not match `^k`"),
        ),
        (
            "{ method: POST, path: /p, headers: { X-Probe: '1', user-agent: me } }",
            None,
        ),
    ] {
        let pool = pool(&probe(http));
        let before = origin.probes();
        run(async {
            let _health = pool.spawn_health();
            eventually(true, || origin.probes() > before + 1).await;
            eventually(usize::from(reason.is_none()), || pool.status().up).await;
        });
        assert_eq!(reasons(&pool), [reason.map(str::to_owned)]);
    }
    let requests = origin.requests.lock().unwrap();
    // The probe that runs when the checks end is cut off, perhaps before it has sent all.
    let whole = requests.iter().rfind(|sent| sent.ends_with("\r\n\r\n"));
    let request = whole.unwrap();
    assert!(request.starts_with("POST /p HTTP/1.1\r\n"), "{request}");
    for line in [
        "X-Probe: 1",
        "user-agent: me",
        "Content-Length: 0",
        "Connection: close",
    ] {
        let is_it = |found: &&str| found.eq_ignore_ascii_case(line);
        let times = request.split("\r\n").filter(is_it);
        assert_eq!(times.count(), 1, "{line} in {request}");
    }
}

#[test]
fn members_wait_for_their_first_probe() {
    let good = Origin::tcp(OK);
    let (_socket, closed) = closed();
    let yaml = format!(
        "{{ backends: ['{}', '{closed}'], health: {{ http: {{}}, interval: 1h, rise: 9, fall: 9, initial: wait }} }}",
        good.address,
    );
    let waiting = pool(&yaml);
    assert!(waiting.awaits_probes() && waiting.is_down());
    assert_eq!(reasons(&waiting)[0].as_deref(), Some("not probed yet"));
    run(waiting.first_probes());
    assert!(!waiting.awaits_probes());
    assert_eq!(walk(&waiting), [good.address.as_str()]);
    assert_eq!(reasons(&waiting)[1].as_deref(), Some("connection refused"));

    // what is known already is not asked again
    let probes = good.probes();
    let after = reload(
        &yaml.replace("backends: [", "backends: ['127.0.0.1:1', "),
        Some(&waiting),
    );
    assert!(after.awaits_probes());
    assert_eq!(walk(&after), [good.address.as_str()]);
    run(after.first_probes());
    assert_eq!((good.probes(), after.awaits_probes()), (probes, false));

    let unchecked = pool(&format!("backends: ['{}']", good.address));
    let checked = reload(&yaml, Some(&unchecked));
    assert!(checked.awaits_probes() && checked.is_down());
}

#[test]
fn an_interim_response_is_not_the_answer() {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let origin = Origin::tcp(&format!("{hints}{OK}"));
    let pool = pool(&format!(
        "{{ backends: ['{}'], health: {{ http: {{}}, interval: 10ms, fall: 1 }} }}",
        origin.address,
    ));
    run(async {
        let _health = pool.spawn_health();
        eventually(true, || origin.probes() > 2).await;
    });
    assert_eq!(pool.status().up, 1, "{:?}", reasons(&pool));
}

#[test]
fn a_failed_probe_says_why() {
    let origins = [
        Origin::tcp(SILENCE),
        Origin::tcp("SSH-2.0-OpenSSH\r\n\r\n"),
        Origin::tcp("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"),
    ];
    let mut addresses: Vec<&str> = origins.iter().map(|o| o.address.as_str()).collect();
    let (_socket, closed) = closed();
    addresses.extend([closed.as_str(), "unix:/no/such/app.sock"]);
    let pool = pool(&format!(
        "{{ backends: {addresses:?}, health: {{ http: {{}}, interval: 10ms, timeout: 100ms, fall: 1 }} }}",
    ));
    run(async {
        let _health = pool.spawn_health();
        eventually(0, || pool.status().up).await;
    });
    let reasons: Vec<String> = reasons(&pool).into_iter().flatten().collect();
    assert_eq!(
        reasons,
        [
            "no answer within 100ms",
            "the answer is not HTTP",
            "connection closed before the end of the answer",
            "connection refused",
            "no such file or directory",
        ]
    );
    assert!(matches!(
        pool.pick(&choice(), &mut Tried::default()),
        Pick::Down
    ));
}

#[test]
fn unix_sockets_are_probed_both_ways() {
    for (name, probe) in [("http", "http: {}"), ("tcp", "tcp: {}")] {
        let origin = Origin::unix(name, OK);
        let pool = pool(&format!(
            "{{ backends: ['{}', 'unix:/no/such/app.sock'], health: {{ {probe}, interval: 10ms, fall: 1 }} }}",
            origin.address,
        ));
        run(async {
            let _health = pool.spawn_health();
            eventually(true, || origin.probes() > 2).await;
            eventually(1, || pool.status().up).await;
        });
        assert_eq!(walk(&pool), [origin.address.as_str()]);
    }
}

#[test]
fn tcp_probes_find_out_who_listens() {
    let origin = Origin::tcp(BUSY);
    let (_socket, closed) = closed();
    let pool = pool(&format!(
        "{{ backends: ['{}', '{}'], health: {{ tcp: {{}}, interval: 10ms, fall: 2 }} }}",
        origin.address, closed,
    ));
    run(async {
        let _health = pool.spawn_health();
        eventually(1, || pool.status().up).await;
    });
    assert_eq!(walk(&pool), [origin.address.as_str()]);
    assert_eq!(reasons(&pool)[1].as_deref(), Some("connection refused"));
}

#[test]
fn dropping_the_task_ends_the_probes() {
    let origin = Origin::tcp(OK);
    let pool = pool(&format!(
        "{{ backends: ['{}'], health: {{ http: {{}}, interval: 10ms }} }}",
        origin.address,
    ));
    run(async {
        let health = pool.spawn_health();
        eventually(true, || origin.probes() > 0).await;
        drop(health);
        // the task held the only other reference
        eventually(1, || Arc::strong_count(&pool)).await;
    });
}

#[test]
fn a_pool_without_checks_has_no_task() {
    let pool = pool("backends: ['127.0.0.1:1']");
    run(async { assert!(pool.spawn_health().is_none()) });
}

#[test]
fn an_unchanged_pool_stays_the_same() {
    let yaml = "{ backends: ['127.0.0.1:1', 'localhost:2'], health: { tcp: {} } }";
    let before = pool(yaml);
    assert!(Arc::ptr_eq(&before, &reload(yaml, Some(&before))));
    let after = reload(&yaml.replace("localhost:2", "127.0.0.1:2"), Some(&before));
    assert!(!Arc::ptr_eq(&before, &after));
}

#[test]
fn members_that_stay_keep_their_state_and_counters() {
    let good = Origin::tcp(OK);
    let (socket, closed) = closed();
    let before = pool(&format!(
        "{{ backends: ['{}', '{closed}'], health: {{ http: {{}}, interval: 10ms }} }}",
        good.address,
    ));
    run(async {
        let _health = before.spawn_health();
        eventually(1, || before.status().up).await;
    });
    let request = before.members()[1].begin().expect("there is room");
    request.failed(Duration::ZERO, Instant::now());

    // another order, other weights, a new member
    let yaml = format!(
        "{{ backends: [{{ addr: '{closed}', weight: 5 }}, '127.0.0.1:1', '{}'], health: {{ http: {{}}, interval: 10ms }} }}",
        good.address,
    );
    let after = reload(&yaml, Some(&before));
    let status = after.status();
    assert_eq!((status.up, walk(&after).len()), (2, 2));
    assert_eq!(
        (&status.members[0].up, &status.members[0].since),
        (&false, &before.status().members[1].since)
    );
    assert_eq!(
        status.members[0].reason.as_deref(),
        Some("connection refused")
    );
    assert_eq!(
        (status.members[0].in_flight, status.members[0].failures),
        (1, 1)
    );
    drop(request);
    assert_eq!(after.status().members[0].in_flight, 0);

    // Pingora knows, too: were it not down there, passed probes would never bring it up
    socket.listen(8).unwrap();
    let listener: TcpListener = socket.into();
    let back = std::thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(OK.as_bytes());
        }
    });
    run(async {
        let _health = after.spawn_health();
        eventually(true, || after.members()[0].health().is_up()).await;
    });
    back.join().unwrap();

    // without checks nothing would bring a member up
    let unchecked = reload(
        &format!("backends: ['{closed}', '127.0.0.1:1']"),
        Some(&after),
    );
    assert_eq!(unchecked.status().up, 2);
    assert_eq!(unchecked.status().members[0].failures, 1);
}

/// What `targets` say that a name stands for: address, weight and whether others go before.
fn answer(targets: &[(&str, u32, bool)]) -> Known {
    let target = |(address, weight, spare): &(&str, u32, bool)| resolver::Target {
        address: address.parse().unwrap(),
        authority: "app:80".into(),
        service: Some(resolver::Service {
            weight: *weight,
            spare: *spare,
        }),
    };
    Known {
        answer: resolver::Answer {
            targets: targets.iter().map(target).collect(),
            ttl: Duration::from_secs(1),
            unknown: Vec::new(),
        },
        at: Instant::now(),
    }
}

/// A pool of one address and of a name that does not resolve.
const WITH_NAME: &str = "backends: ['127.0.0.9:80', { srv: app.invalid }]";

fn with_name() -> Arc<Pool> {
    let (pool, issues) = compile(WITH_NAME, None);
    assert_eq!(
        issues,
        ["warning: app.backends[1].srv: `app.invalid` does not resolve: there is no such name"]
    );
    pool.expect("a warning is no error")
}

#[test]
fn members_follow_what_a_name_stands_for() {
    let pool = with_name();
    assert_eq!(walk(&pool), ["127.0.0.9:80"]);
    pool.take_in(
        1,
        answer(&[("127.0.0.1:80", 1, false), ("127.0.0.2:80", 1, false)]),
    );
    assert_eq!(
        walk(&pool),
        ["127.0.0.1:80", "127.0.0.2:80", "127.0.0.9:80"]
    );
    let stays = pool.members()[1].clone();
    let leaves = pool.members()[2].clone();
    let request = leaves.begin().expect("there is room");

    pool.take_in(
        1,
        answer(&[("127.0.0.1:80", 1, false), ("127.0.0.3:80", 1, false)]),
    );
    assert_eq!(
        walk(&pool),
        ["127.0.0.1:80", "127.0.0.3:80", "127.0.0.9:80"]
    );
    assert!(Arc::ptr_eq(&stays, &pool.members()[1]));
    assert_eq!(leaves.load().in_flight(), 1);
    drop(request);
}

#[test]
fn a_server_stays_the_same_when_its_records_change() {
    let pool = with_name();
    pool.take_in(
        1,
        answer(&[("127.0.0.1:80", 1, false), ("127.0.0.2:80", 1, true)]),
    );
    let request = pool.members()[1].begin().expect("there is room");
    let states = |pool: &Pool| {
        let members = pool.members();
        let state = |m: &Arc<Member>| (m.weight(), m.place().backup, m.load().in_flight());
        members[1..].iter().map(state).collect::<Vec<_>>()
    };
    assert_eq!(states(&pool), [(1, false, 1), (1, true, 0)]);
    // a weight is news to Pingora, too; a tier is not
    pool.take_in(
        1,
        answer(&[("127.0.0.1:80", 3, false), ("127.0.0.2:80", 1, true)]),
    );
    assert_eq!(states(&pool), [(3, false, 1), (1, true, 0)]);
    pool.take_in(
        1,
        answer(&[("127.0.0.1:80", 3, true), ("127.0.0.2:80", 1, false)]),
    );
    assert_eq!(states(&pool), [(3, true, 1), (1, false, 0)]);
    drop(request);
    assert_eq!(states(&pool), [(3, true, 0), (1, false, 0)]);
}

#[test]
fn members_that_join_a_running_pool_start_slowly() {
    let slow = |backends: &str| format!("{{ backends: {backends}, slow_start: 1h }}");
    let shares = |pool: &Pool| {
        let ports = (0..11).map(|_| match pool.pick(&choice(), &mut Tried::default()) {
            Pick::Member(member) => member.address().as_inet().unwrap().ip(),
            nobody => panic!("{nobody:?}"),
        });
        let new: std::net::IpAddr = "127.0.0.2".parse().unwrap();
        ports.filter(|ip| *ip == new).count()
    };
    // by a reload
    let before = pool(&slow("['127.0.0.1:80']"));
    let after = reload(&slow("['127.0.0.1:80', '127.0.0.2:80']"), Some(&before));
    assert_eq!(shares(&after), 1);
    // by a name
    let (pool, _) = compile(&slow("['127.0.0.1:80', { srv: app.invalid }]"), None);
    let pool = pool.unwrap();
    pool.take_in(1, answer(&[("127.0.0.2:80", 1, false)]));
    assert_eq!(shares(&pool), 1);
}

#[test]
fn an_ejected_server_stays_ejected_when_its_records_change() {
    let pool = with_name();
    pool.take_in(1, answer(&[("127.0.0.1:80", 1, false)]));
    let mut before = Vec::from_iter((0..3).map(|_| pool.members()[1].begin().unwrap()));
    for request in &mut before {
        request.blame(Blame::Status(500), Instant::now());
    }
    assert_eq!(walk(&pool), ["127.0.0.9:80"]);
    pool.take_in(1, answer(&[("127.0.0.1:80", 3, false)]));
    assert_eq!(walk(&pool), ["127.0.0.9:80"]);
    assert_eq!(pool.members()[1].absence(), Some(Absence::Ejected));
}

#[test]
fn members_that_a_name_brings_later_wait_for_their_first_probe_too() {
    let yaml =
        WITH_NAME.to_owned() + "\nhealth: { http: {}, interval: 1h, rise: 9, initial: wait }";
    let pool = compile(&yaml, None).0.expect("a warning is no error");
    let origin = Origin::tcp(OK);
    pool.take_in(1, answer(&[(&origin.address, 1, false)]));
    assert!(pool.is_down());
    run(pool.first_probes());
    assert_eq!(walk(&pool), [origin.address.as_str()]);
    pool.take_in(1, answer(&[(&origin.address, 5, false)]));
    assert_eq!(walk(&pool), [origin.address.as_str()]);
    assert!(!pool.awaits_probes());
}

#[test]
fn a_pool_whose_names_are_all_unknown_has_no_members_of_an_earlier_one() {
    let before = pool("backends: ['127.0.0.1:80']");
    let (after, _) = compile("backends: ['app.invalid:80']", Some(&before));
    assert!(after.unwrap().members().is_empty());
}

#[test]
fn an_address_that_is_written_and_stands_for_a_name_is_one_member() {
    let pool = with_name();
    pool.take_in(1, answer(&[("127.0.0.9:80", 5, false)]));
    assert_eq!(pool.members().len(), 1);
    assert_eq!(pool.members()[0].weight(), 1);
}

#[test]
fn a_backup_of_records_has_no_further_backups() {
    let (pool, _) = compile("backends: [{ srv: app.invalid, backup: true }]", None);
    let pool = pool.unwrap();
    pool.take_in(
        0,
        answer(&[("127.0.0.1:80", 1, false), ("127.0.0.2:80", 1, true)]),
    );
    assert_eq!(walk(&pool), ["127.0.0.1:80"]);
    assert!(pool.members()[0].place().backup);
}

#[test]
fn a_reload_goes_on_with_the_addresses_that_names_had() {
    let before = with_name();
    before.take_in(1, answer(&[("127.0.0.1:80", 1, false)]));
    // what is written is compared, not what it stands for
    assert!(Arc::ptr_eq(&before, &reload(WITH_NAME, Some(&before))));

    let config = before.config().clone();
    let names = look_up(&config, Some(&before));
    let (first, second) = (
        answer(&[("127.0.0.1:80", 1, false)]),
        answer(&[("127.0.0.2:80", 1, false)]),
    );
    let stands_for = |pool: &Pool, new: Option<Known>| {
        pool.stands_for(before.membership.backends(), &[None, new], &names)
    };
    for new in [None, Some(first.clone()), Some(second)] {
        assert!(stands_for(&before, new));
    }
    assert!(!stands_for(&with_name(), Some(first)), "this is news to it");

    let after = reload(&WITH_NAME.replace("0.9:80", "0.8:80"), Some(&before));
    assert_eq!(walk(&after), ["127.0.0.1:80", "127.0.0.8:80"]);

    // this one is asked for while loading, and keeps what it had when nobody knows
    let once = WITH_NAME.replace("app.invalid", "app.invalid, resolve: once");
    let (once, issues) = compile(&once, Some(&before));
    assert_eq!(issues.len(), 1, "{issues:?}");
    assert_eq!(walk(&once.unwrap()), ["127.0.0.1:80", "127.0.0.9:80"]);
}

#[test]
fn mistakes_in_names_are_reported() {
    let yaml = "backends: [
        { srv: 'app:80' }, { addr: 'app:1', srv: app }, { weight: 1 }, { srv: app, weight: 2 },
        { addr: '127.0.0.1:1', resolve: ttl }, { addr: 'app.invalid:1', resolve: 100ms },
        { addr: 'app.invalid:2' }, { addr: 'app.invalid:2', resolve: once } ]";
    let errors = issues(yaml).into_iter();
    let errors: Vec<String> = errors.filter(|issue| issue.starts_with("error")).collect();
    assert_eq!(
        errors,
        [
            "error: app.backends[0].srv: `app:80` cannot be the name of SRV records",
            "error: app.backends[1].srv: `addr` and `srv` are both given",
            "error: app.backends[2]: neither `addr` nor `srv` says where it is",
            "error: app.backends[3].weight: `weight` and `srv` are both given",
            "error: app.backends[4].resolve: `127.0.0.1:1` is no name that could be resolved",
            "error: app.backends[5].resolve: `resolve` must be at least 1s",
            "error: app.backends[7].addr: `app.invalid:2` is listed twice",
        ]
    );
}

#[test]
fn retry_budget_outlives_a_reload() {
    let now = Instant::now();
    let may = |pool: &Pool| pool.retry().allows(Fault::Reset, 1, now);
    let before = pool("{ backends: [127.0.0.1:9001], retry: { budget: 10% } }");
    assert!(may(&before));
    while may(&before) {
        before.retry().retried(now);
    }
    let after = reload(
        "{ backends: [127.0.0.1:9001, 127.0.0.1:9002], retry: { budget: 10% } }",
        Some(&before),
    );
    assert!(!may(&after));
}
