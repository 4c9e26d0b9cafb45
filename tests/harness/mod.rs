//! Starts the real binary, on ports and in a folder of its own, and looks after it.
//!
//! ```ignore
//! let app = Origin::fixed("hello");
//! let weir = Weir::with("app", &app).start("
//!     listeners: { http: { bind: '127.0.0.1:{http}' } }
//!     pools: { app: { backends: ['{app}'] } }
//!     sites: { main: { hosts: ['*'], routes: [{ proxy: app }] } }
//! ");
//! assert_eq!(weir.get("/").text(), "hello");
//! ```
//!
//! `{name}` in a document is what [`Setup::with`] gave for it, `{dir}` the folder of the test, and otherwise a port
//! reserved under that name. What a process needs to live beside others (pid file, upgrade socket, two threads, logs)
//! is added behind the document, so that line numbers stay as written.
//!
//! When a [`Weir`] is dropped it is stopped, and its error log must hold no panic and no error that the test did not
//! [allow](Setup::allow). A test that fails shows the configuration and the end of the logs.

pub mod certs;
pub mod client;
pub mod daemon;
pub mod dns;
pub mod frames;
pub mod grpc;
pub mod load;
pub mod message;
pub mod origin;
pub mod port;
pub mod secure;
pub mod tls_client;
pub mod wait;
pub mod websocket;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use regex::{Captures, Regex};
use serde_yaml::Value;
use tokio::runtime::Runtime;

use client::{Connection, Http2, Request, Response, get};
use port::Port;
use wait::{PATIENCE, eventually, value_within};

/// How long a process may take to leave: longer than its own limit for a graceful end in these tests.
const LEAVE: Duration = Duration::from_secs(20);

/// What origins and HTTP/2 clients run on.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("start a runtime")
    });
    &RUNTIME
}

/// A running weir.
pub struct Weir {
    // before the setup: the process ends before its folder goes
    process: Process,
    setup: Setup,
    /// Whether the test has asked how the process ended.
    judged: bool,
}

/// Everything that belongs to one test: its folder, its ports, the values of its documents.
pub struct Setup {
    dir: PathBuf,
    ports: RefCell<BTreeMap<String, Port>>,
    values: BTreeMap<String, String>,
    allowed: Vec<String>,
}

/// What a command line printed, and how it ended.
#[derive(Debug)]
pub struct Run {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Weir {
    /// Starts weir with a document that needs no values.
    #[track_caller]
    pub fn start(document: &str) -> Weir {
        Setup::new().start(document)
    }

    /// Begins a setup in which `{name}` stands for `value`.
    pub fn with(name: &str, value: impl Display) -> Setup {
        Setup::new().with(name, value)
    }

    /// Starts weir with one plain listener and one site for all hosts, whose keys besides `hosts` are `site`.
    #[track_caller]
    pub fn start_site(site: &str) -> Weir {
        Setup::new().start_site(site)
    }

    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub fn dir(&self) -> &Path {
        &self.setup.dir
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The loopback address of the port that the document calls `{name}`.
    pub fn address(&self, name: &str) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.setup.port(name)))
    }

    /// A new connection to `{http}`.
    #[track_caller]
    pub fn connect(&self) -> Connection {
        Connection::tcp(self.address("http")).expect("connect to {http}")
    }

    /// A new TLS connection to `{https}` that asks for `server_name`.
    #[track_caller]
    pub fn connect_tls(&self, server_name: &str) -> Connection {
        Connection::tls(self.address("https"), server_name).expect("connect to {https}")
    }

    /// As [`Weir::connect_tls`], with `ahead` sent before the handshake.
    #[track_caller]
    pub fn connect_tls_after(&self, ahead: &[u8], server_name: &str) -> Connection {
        Connection::tls_after(self.address("https"), ahead, server_name)
            .expect("connect to {https}")
    }

    /// A new HTTP/2 connection to `{https}` that asks for `server_name`.
    #[track_caller]
    pub fn connect_http2(&self, server_name: &str) -> Http2 {
        Http2::connect(self.address("https"), server_name).expect("connect to {https}")
    }

    /// The answer to `request` on a new connection to `{http}`.
    #[track_caller]
    pub fn fetch(&self, request: &Request) -> Response {
        let answer = self.connect().fetch(request);
        answer.unwrap_or_else(|error| panic!("no answer to {request:?}: {error}"))
    }

    #[track_caller]
    pub fn get(&self, target: &str) -> Response {
        self.fetch(&get(target))
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Replaces the document and waits until it is in force.
    #[track_caller]
    pub fn reload(&self, document: &str) {
        self.setup.write_config(document);
        let before = self.count("reload failed");
        self.hang_up_and_wait_for("reloaded");
        assert_eq!(self.count("reload failed"), before, "a reload failed");
    }

    /// Replaces the document by one that must be refused; returns what the log says about it.
    #[track_caller]
    pub fn reload_in_vain(&self, document: &str) -> String {
        self.setup.write_config(document);
        let before = self.error_log().len();
        self.hang_up_and_wait_for("reload failed");
        self.error_log().split_off(before)
    }

    #[track_caller]
    fn hang_up_and_wait_for(&self, word: &str) {
        let before = self.count(word);
        self.signal(Signal::SIGHUP);
        eventually(PATIENCE, || self.count(word) > before);
    }

    fn count(&self, word: &str) -> usize {
        self.error_log().matches(word).count()
    }

    /// All that went to the error log (standard error, unless the document names a file).
    pub fn error_log(&self) -> String {
        self.setup.error_log()
    }

    /// All that the default access log holds by now; it is written with a delay.
    pub fn access_log(&self) -> String {
        self.setup.read("access.log")
    }

    /// The first lines of the access log, once there are `count` of them.
    #[track_caller]
    pub fn access_lines(&self, count: usize) -> Vec<String> {
        self.lines("access.log", count)
    }

    /// The first lines of a log in the folder, once there are `count` of them.
    #[track_caller]
    pub fn lines(&self, file: &str, count: usize) -> Vec<String> {
        let lines = value_within(PATIENCE, || {
            let text = self.setup.read(file);
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            (lines.len() >= count).then_some(lines)
        });
        lines.unwrap_or_else(|| panic!("{file} has not {count} lines: {}", self.setup.read(file)))
    }

    /// The most memory that the process ever had resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("the process is running");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
        kilobytes
            .and_then(|n| n.parse().ok())
            .map(|n: u64| n * 1024)
            .expect("a number of kB")
    }

    /// How many files and sockets the process has open.
    pub fn open_files(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid()));
        files.expect("the process is running").count()
    }

    /// How many files of that folder beside the document it has open, with or without a name.
    pub fn open_files_in(&self, folder: &str) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid()));
        let files = files.expect("the process is running");
        let folder = self.dir().join(folder);
        let links = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        links.filter(|link| link.starts_with(&folder)).count()
    }

    /// Starts a second process that takes over the sockets of this one, tells this one to leave, and waits until it
    /// takes no more connections. Returns the old process, which drains.
    #[track_caller]
    pub fn upgrade(&mut self) -> Process {
        let socket = self.dir().join("upgrade.sock");
        let _ = fs::remove_file(&socket); // that of an earlier upgrade
        let new = self.setup.spawn(&["-u"]);
        eventually(PATIENCE, || socket.exists());
        let old = std::mem::replace(&mut self.process, new);
        let before = self.count("draining");
        old.signal(Signal::SIGQUIT);
        eventually(PATIENCE, || self.count("draining") > before);
        old
    }

    /// Stops weir gracefully; it must succeed.
    pub fn stop(mut self) {
        self.leave();
    }

    /// Waits until the process has ended by itself. How is for the test to judge.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        self.judged = true;
        self.process.wait().expect("weir ends")
    }

    fn leave(&mut self) {
        if self.process.is_running() {
            self.process.signal(Signal::SIGTERM);
        }
        let status = self.process.wait();
        if thread::panicking() {
            return;
        }
        match status {
            Some(status) => assert!(self.judged || status.success(), "weir ended with {status}"),
            None => panic!("weir is still there {LEAVE:?} after TERM"),
        }
        self.setup.judge_error_log();
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A process that does not outlive its test.
pub struct Process(Child);

impl Process {
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.0.id()).expect("the kernel's pids fit");
        signal::kill(Pid::from_raw(pid), signal).expect("the process is ours and not reaped");
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits until the process has ended, but not for ever.
    pub fn wait(&mut self) -> Option<ExitStatus> {
        value_within(LEAVE, || self.0.try_wait().expect("the process is ours"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            // it may end just now, and is reaped either way
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

impl Setup {
    pub fn new() -> Setup {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("weir-{}-{number}", std::process::id()));
        fs::create_dir(&dir).expect("create the folder of the test");
        Setup {
            dir,
            ports: RefCell::default(),
            values: BTreeMap::new(),
            allowed: Vec::new(),
        }
    }

    /// `{name}` in documents stands for `value` from now on.
    pub fn with(mut self, name: &str, value: impl Display) -> Setup {
        self.values.insert(name.to_owned(), value.to_string());
        self
    }

    /// Lines of the error log that contain `text` are expected.
    pub fn allow(mut self, text: &str) -> Setup {
        self.allowed.push(text.to_owned());
        self
    }

    /// Puts a file into the folder.
    pub fn file(self, path: &str, contents: impl AsRef<[u8]>) -> Setup {
        self.write(path, contents);
        self
    }

    #[track_caller]
    pub fn start(self, document: &str) -> Weir {
        self.write_config(document);
        let process = self.spawn(&[]);
        let mut weir = Weir {
            setup: self,
            process,
            judged: false,
        };
        let addresses = bind_addresses(&weir.setup.read(CONFIG));
        let ready = || addresses.iter().all(|address| accepts(address));
        eventually(PATIENCE, || !weir.process.is_running() || ready());
        assert!(weir.process.is_running(), "weir ended instead of serving");
        weir
    }

    /// See [`Weir::start_site`]; there is a pool `app` with the backend `{app}` where the setup has that name.
    #[track_caller]
    pub fn start_site(self, site: &str) -> Weir {
        let pool = match self.values.contains_key("app") {
            true => "pools: { app: { backends: ['{app}'] } }\n",
            false => "",
        };
        self.start(&(one_site(site) + pool))
    }

    /// Starts weir with one plain listener that proxies everything to the pool `app`, whose value is `pool`.
    #[track_caller]
    pub fn start_pool(self, pool: &str) -> Weir {
        self.start(&one_pool(pool))
    }

    /// Runs weir with `arguments` (in which `{name}` is replaced as in documents), in the folder, until it ends.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Run {
        let arguments = arguments.iter().map(|argument| self.render(argument));
        let output = Command::new(BINARY)
            .args(arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()
            .expect("run weir");
        Run {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Writes `document` as `weir.yaml`, with what a process needs to live beside others.
    pub fn write_config(&self, document: &str) {
        let mut text = self.render(&dedent(document));
        for (key, value) in [
            ("version", "1"),
            ("threads", "2"),
            ("pid_file", "{dir}/weir.pid"),
            ("upgrade_sock", "{dir}/upgrade.sock"),
            (
                "log",
                "{ access: { file: '{dir}/access.log', format: combined } }",
            ),
        ] {
            let given = text.lines().any(|line| {
                let rest = line.strip_prefix(key);
                rest.is_some_and(|rest| rest.starts_with(':'))
            });
            if !given {
                text += &self.render(&format!("{key}: {value}\n"));
            }
        }
        self.write(CONFIG, text);
    }

    /// Writes a file of the folder as it stands.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) {
        let path = self.dir.join(path);
        let folder = path.parent().expect("a file in the folder");
        fs::create_dir_all(folder).expect("create folders");
        fs::write(path, contents).expect("write a file");
    }

    /// The text of a file in the folder; empty when there is none.
    pub fn read(&self, path: &str) -> String {
        let bytes = fs::read(self.dir.join(path)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The number of the port that documents call `{name}`.
    pub fn port(&self, name: &str) -> u16 {
        let mut ports = self.ports.borrow_mut();
        let port = ports.entry(name.to_owned()).or_insert_with(Port::reserve);
        port.number()
    }

    fn render(&self, text: &str) -> String {
        // `${name}` is weir's own
        static PLACEHOLDER: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"\$?\{([a-z][a-z0-9_]*)\}").expect("a valid pattern"));
        let value = |found: &Captures| {
            let name = &found[1];
            if found[0].starts_with('$') {
                found[0].to_owned()
            } else if name == "dir" {
                self.dir.display().to_string()
            } else if let Some(value) = self.values.get(name) {
                value.clone()
            } else {
                self.port(name).to_string()
            }
        };
        PLACEHOLDER.replace_all(text, value).into_owned()
    }

    /// Starts weir on the document that was written last, without waiting for anything.
    pub fn spawn(&self, options: &[&str]) -> Process {
        self.launch(&[&["-c", CONFIG], options].concat())
    }

    /// Starts weir with `arguments` (in which `{name}` is replaced as in documents), without waiting for anything.
    pub fn launch(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(BINARY);
        command.args(arguments.iter().map(|argument| self.render(argument)));
        self.launch_command(command.stdin(Stdio::null()).stdout(self.log()))
    }

    /// Starts a program in the folder; what it says goes where weir's errors go.
    pub fn launch_command(&self, command: &mut Command) -> Process {
        let command = command.current_dir(&self.dir).stderr(self.log());
        Process(command.spawn().expect("start a program"))
    }

    fn log(&self) -> File {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(STDERR));
        log.expect("open the log")
    }

    /// All that went to the error log (standard error, unless the document names a file).
    pub fn error_log(&self) -> String {
        self.read(STDERR) + &self.read("error.log")
    }

    fn judge_error_log(&self) {
        let log = self.error_log();
        let bad = log.lines().filter(|line| {
            let allowed = || self.allowed.iter().any(|text| line.contains(text));
            line.contains("panicked") || (is_error(line) && !allowed())
        });
        let bad: Vec<_> = bad.collect();
        assert!(bad.is_empty(), "unexpected in the error log: {bad:#?}");
    }
}

impl Default for Setup {
    fn default() -> Setup {
        Setup::new()
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {CONFIG}\n{}", self.read(CONFIG));
            for file in [STDERR, "error.log", "access.log"] {
                let text = self.read(file);
                let lines: Vec<_> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(40)..].join("\n");
                if !tail.is_empty() {
                    eprintln!("--- end of {file}\n{tail}");
                }
            }
        }
        let _ = fs::remove_dir_all(&self.dir); // what is left lies in the folder for such things
    }
}

pub const BINARY: &str = env!("CARGO_BIN_EXE_weir");
pub const CONFIG: &str = "weir.yaml";
/// What weir prints goes here.
const STDERR: &str = "stderr.log";

/// A document with a plain listener and a site for all hosts.
pub fn one_site(site: &str) -> String {
    let indented: String = dedent(site)
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect();
    format!(
        "listeners: {{ http: {{ bind: '127.0.0.1:{{http}}' }} }}\nsites:\n  main:\n    hosts: ['*']\n{indented}"
    )
}

/// A document with a plain listener that proxies everything to the pool `app`.
pub fn one_pool(pool: &str) -> String {
    one_site("routes: [{ proxy: app }]") + &format!("pools: {{ app: {pool} }}\n")
}

/// Where `document` says that weir listens.
pub fn bind_addresses(document: &str) -> Vec<String> {
    // a broken document listens nowhere
    let document: Value = serde_yaml::from_str(document).unwrap_or_default();
    let mut addresses = Vec::new();
    for section in ["listeners", "static"] {
        let entries = document.get(section).and_then(Value::as_mapping);
        let binds = entries.into_iter().flatten();
        for bind in binds.filter_map(|(_, entry)| entry.get("bind")) {
            let list = bind.as_sequence();
            let list = list.map_or(std::slice::from_ref(bind), Vec::as_slice);
            addresses.extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
        }
    }
    addresses
}

/// Takes away what all lines are indented by, and an empty first line.
pub fn dedent(text: &str) -> String {
    let text = text.strip_prefix('\n').unwrap_or(text);
    let lines = || text.lines().filter(|line| !line.trim().is_empty());
    let margin = lines()
        .map(|line| line.len() - line.trim_start().len())
        .min();
    let lines = text
        .lines()
        .map(|line| line.get(margin.unwrap_or(0)..).unwrap_or_default());
    lines.map(|line| format!("{}\n", line.trim_end())).collect()
}

fn is_error(line: &str) -> bool {
    line.split(|c: char| c.is_whitespace() || "[]".contains(c))
        .any(|word| word == "ERROR")
        || line.contains(r#""level":"error""#)
}

fn accepts(address: &str) -> bool {
    if let Some(path) = address.strip_prefix("unix:") {
        return UnixStream::connect(path).is_ok();
    }
    let address = address
        .replace("0.0.0.0:", "127.0.0.1:")
        .replace("[::]:", "[::1]:");
    TcpStream::connect(address).is_ok()
}

#[test]
fn placeholders_are_values_the_folder_and_ports() {
    let setup = Setup::new().with("app", "127.0.0.1:1");
    let port = setup.port("http");
    let dir = setup.dir().display();
    assert_eq!(
        setup.render("{app} {http} {http} ${http} {dir} [0-9]{3} { a: b }"),
        format!("127.0.0.1:1 {port} {port} ${{http}} {dir} [0-9]{{3}} {{ a: b }}"),
    );
}

#[test]
fn documents_keep_their_lines_and_gain_what_a_process_needs() {
    let setup = Setup::new();
    setup.write_config(
        "
        threads: 3
        listeners: { http: { bind: ['127.0.0.1:80', 'unix:/x'] } }
        ",
    );
    let text = setup.read(CONFIG);
    assert!(text.starts_with("threads: 3\nlisteners:"), "{text}");
    assert!(text.contains(&format!("pid_file: {}/weir.pid\n", setup.dir().display())));
    assert!(!text.contains("threads: 2"));
    assert_eq!(bind_addresses(&text), ["127.0.0.1:80", "unix:/x"]);
}

#[test]
fn errors_are_told_from_other_lines() {
    assert!(is_error("[2026-01-01T00:00:00Z ERROR weir] no"));
    assert!(is_error(r#"{"level":"error","message":"no"}"#));
    assert!(!is_error("[2026-01-01T00:00:00Z INFO weir] NO_ERROR"));
}
