//! Where the lines of a log go: a file, an output of the process, a socket, syslog.
//!
//! A socket is connected when there is something to send, and again after it broke: whoever collects lines may start
//! later than weir, and may be restarted. Until then lines wait, as they do for a disk that is full.

use std::borrow::Cow;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::libc;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use crate::value::from_text;

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    Stdout,
    Stderr,
    File(PathBuf),
    /// A unix socket of whoever collects lines; a datagram holds one line.
    Socket(PathBuf),
    Syslog(Syslog),
}

/// `to`: where lines go that go to no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct To(pub Destination);

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<To, String> {
        match (text, text.strip_prefix("unix:")) {
            ("stdout", _) => Ok(To(Destination::Stdout)),
            ("stderr", _) => Ok(To(Destination::Stderr)),
            (_, Some(path)) if path.starts_with('/') => Ok(To(Destination::Socket(path.into()))),
            _ => Err(format!("expected {TO}, found `{text}`")),
        }
    }
}

const TO: &str = "`stdout`, `stderr` or a socket such as `unix:/run/collector.sock`";

impl<'de> Deserialize<'de> for To {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<To, D::Error> {
        from_text(deserializer, TO)
    }
}

impl JsonSchema for To {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "LogDestination".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(stdout|stderr|unix:/.+)$" })
    }
}

/// A syslog server, and how it is spoken to (RFC 3164, as nginx does and all servers understand).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Syslog {
    /// `unix:/path`, or `host` or `host:port` for UDP, port 514 by default. Default: `unix:/dev/log`.
    pub server: Server,
    /// What kind of program speaks: `local7` by default, as with nginx.
    pub facility: Facility,
    /// How grave the lines are. Default: `info`.
    pub severity: Severity,
    /// The name of the program. Default: `weir`.
    pub tag: Tag,
}

impl Default for Syslog {
    fn default() -> Syslog {
        Syslog {
            server: Server::Unix("/dev/log".into()),
            facility: Facility::Local7,
            severity: Severity::Info,
            tag: Tag("weir".to_owned()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    Unix(PathBuf),
    /// Host and port.
    Udp(String),
}

/// RFC 3164 section 4.1.1; the discriminants are its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Facility {
    Kern,
    User,
    Mail,
    Daemon,
    Auth,
    Syslog,
    Lpr,
    News,
    Uucp,
    Cron,
    Authpriv,
    Ftp,
    Local0 = 16,
    Local1,
    Local2,
    Local3,
    Local4,
    Local5,
    Local6,
    Local7,
}

/// RFC 3164 section 4.1.1; the discriminants are its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Emerg,
    Alert,
    Crit,
    Error,
    Warn,
    Notice,
    Info,
    Debug,
}

/// Letters, digits and `_`, up to 32 (RFC 3164 section 4.1.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(String);

const SYSLOG_PORT: u16 = 514;
const SERVER: &str = "a syslog server such as `unix:/dev/log` or `192.0.2.1:514`";

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Server, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Server::Unix(path.into())),
                false => Err(format!("expected {SERVER}, found `{text}`")),
            };
        }
        if text.parse::<SocketAddr>().is_ok() {
            return Ok(Server::Udp(text.to_owned()));
        }
        if let Ok(address) = text.parse::<Ipv6Addr>() {
            return Ok(Server::Udp(format!("[{address}]:{SYSLOG_PORT}")));
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, port.parse().ok()),
            None => (text, Some(SYSLOG_PORT)),
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        match port {
            Some(port) if !host.is_empty() && host.chars().all(is_host) => {
                Ok(Server::Udp(format!("{host}:{port}")))
            }
            _ => Err(format!("expected {SERVER}, found `{text}`")),
        }
    }
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Server, D::Error> {
        from_text(deserializer, SERVER)
    }
}

impl JsonSchema for Server {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "SyslogServer".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

impl FromStr for Tag {
    type Err = String;

    fn from_str(text: &str) -> Result<Tag, String> {
        let is_tag = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match (1..=32).contains(&text.len()) && text.chars().all(is_tag) {
            true => Ok(Tag(text.to_owned())),
            false => Err(format!("expected {TAG}, found `{text}`")),
        }
    }
}

const TAG: &str = "up to 32 letters, digits and `_`";

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tag, D::Error> {
        from_text(deserializer, TAG)
    }
}

impl JsonSchema for Tag {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "SyslogTag".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9_]{1,32}$" })
    }
}

impl Destination {
    /// # Errors
    /// When a file cannot be opened.
    pub fn open(&self) -> io::Result<Sink> {
        Ok(match self {
            // a descriptor of our own: the standard library's has a buffer and a lock that others use
            Destination::Stdout => Sink::File(io::stdout().as_fd().try_clone_to_owned()?.into()),
            Destination::Stderr => Sink::File(io::stderr().as_fd().try_clone_to_owned()?.into()),
            Destination::File(path) => Sink::File(open_append(path)?),
            Destination::Socket(path) => Sink::Socket(Socket {
                peer: Peer::Unix(path.clone()),
                link: None,
            }),
            Destination::Syslog(syslog) => Sink::Socket(Socket {
                peer: Peer::Syslog(syslog.clone()),
                link: None,
            }),
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Stdout => f.write_str("standard output"),
            Destination::Stderr => f.write_str("standard error"),
            Destination::File(path) => write!(f, "`{}`", path.display()),
            Destination::Socket(path) => write!(f, "`unix:{}`", path.display()),
            Destination::Syslog(syslog) => match &syslog.server {
                Server::Unix(path) => write!(f, "syslog at `unix:{}`", path.display()),
                Server::Udp(address) => write!(f, "syslog at `{address}`"),
            },
        }
    }
}

/// What takes the lines.
#[derive(Debug)]
pub enum Sink {
    File(File),
    Socket(Socket),
}

#[derive(Debug)]
pub struct Socket {
    peer: Peer,
    link: Option<Link>,
}

#[derive(Debug)]
enum Peer {
    Unix(PathBuf),
    Syslog(Syslog),
}

#[derive(Debug)]
enum Link {
    Stream(UnixStream),
    Datagrams(UnixDatagram),
    Udp(UdpSocket),
}

impl Sink {
    /// Writes and empties the batch, which holds whole lines; after an error it holds what was not written.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&mut self, batch: &mut Vec<u8>) -> io::Result<()> {
        match self {
            _ if batch.is_empty() => Ok(()),
            Sink::File(file) => {
                let (written, result) = write_all(file, batch);
                batch.drain(..written);
                result
            }
            Sink::Socket(socket) => socket.write(batch),
        }
    }
}

impl Socket {
    fn write(&mut self, batch: &mut Vec<u8>) -> io::Result<()> {
        let link = match &mut self.link {
            Some(link) => link,
            none => none.insert(self.peer.connect()?),
        };
        let result = match link {
            Link::Stream(stream) => {
                let (written, result) = write_all(stream, batch);
                // A line of which the other end has a part when the connection breaks is sent again on the next one.
                let whole = memchr::memrchr(b'\n', &batch[..written]).map_or(0, |end| end + 1);
                batch.drain(..whole);
                result
            }
            Link::Datagrams(socket) => {
                send_each(batch, &self.peer, |message| socket.send(message).map(drop))
            }
            Link::Udp(socket) => {
                send_each(batch, &self.peer, |message| socket.send(message).map(drop))
            }
        };
        if result.is_err() {
            self.link = None;
        }
        result
    }
}

impl Peer {
    fn connect(&self) -> io::Result<Link> {
        match self {
            Peer::Unix(path) => match UnixStream::connect(path) {
                Ok(stream) => Ok(Link::Stream(stream)),
                Err(e) if e.raw_os_error() == Some(libc::EPROTOTYPE) => {
                    datagrams(path).map(Link::Datagrams)
                }
                Err(e) => Err(e),
            },
            Peer::Syslog(syslog) => match &syslog.server {
                Server::Unix(path) => datagrams(path).map(Link::Datagrams),
                Server::Udp(address) => udp(address).map(Link::Udp),
            },
        }
    }

    /// What stands before each line.
    fn heading(&self) -> String {
        let Peer::Syslog(syslog) = self else {
            return String::new();
        };
        let priority = syslog.facility as u8 * 8 + syslog.severity as u8;
        let time = chrono::Local::now().format("%b %e %T");
        let tag = &syslog.tag.0;
        match &syslog.server {
            Server::Unix(_) => format!("<{priority}>{time} {tag}: "),
            Server::Udp(_) => {
                let host = nix::unistd::gethostname().unwrap_or_default();
                format!("<{priority}>{time} {} {tag}: ", host.to_string_lossy())
            }
        }
    }
}

fn datagrams(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

fn udp(address: &str) -> io::Result<UdpSocket> {
    let none = || io::Error::new(ErrorKind::NotFound, "the name has no address");
    let server = address.to_socket_addrs()?.next().ok_or_else(none)?;
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    Ok(socket)
}

/// A message for each line. One that is too long for that is cut.
fn send_each(
    batch: &mut Vec<u8>,
    peer: &Peer,
    mut send: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut message = peer.heading().into_bytes();
    let heading = message.len();
    let mut sent = 0;
    let result = loop {
        let Some(length) = memchr::memchr(b'\n', &batch[sent..]) else {
            break Ok(());
        };
        message.truncate(heading);
        message.extend_from_slice(&batch[sent..sent + length]);
        match send(&message) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) && message.len() > SHORT => {
                message.truncate(SHORT);
                if let Err(e) = send(&message) {
                    break Err(e);
                }
            }
            Err(e) => break Err(e),
            Ok(()) => {}
        }
        sent += length + 1;
    };
    batch.drain(..sent);
    result
}

/// A length that every socket takes.
const SHORT: usize = 1024;

/// Writes all of the batch, or what goes before an error; says how much that was.
fn write_all(to: &mut impl Write, batch: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < batch.len() {
        match to.write(&batch[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// Opens a log file; appending, so that several processes (an upgrade) can write it at the same time.
pub fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Whether [`open_append`] would succeed, found out without making the file: a test of the configuration leaves
/// nothing behind.
pub fn check(path: &Path) -> Result<(), String> {
    let file = OpenOptions::new()
        .append(true)
        // a named pipe without a reader is no reason to wait, and none to complain
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    match file {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => check_parent(path),
        Err(error) => Err(format!("cannot write `{}`: {error}", path.display())),
    }
}

fn check_parent(path: &Path) -> Result<(), String> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Err(format!("`{}` is not a file", path.display())),
    };
    if !parent.is_dir() {
        return Err(format!("no directory `{}`", parent.display()));
    }
    nix::unistd::access(parent, nix::unistd::AccessFlags::W_OK).map_err(|error| {
        format!(
            "cannot make a file in `{}`: {}",
            parent.display(),
            error.desc()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A path for a socket, removed with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let name = format!("weir-sink-{name}-{}.sock", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = std::fs::remove_file(&path);
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut message = vec![0; 128 * 1024];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    }

    #[test]
    fn a_stream_gets_whole_lines_and_is_connected_again() {
        let scratch = Scratch::new("stream");
        let mut sink = Destination::Socket(scratch.0.clone()).open().unwrap();
        let mut batch = b"one\ntwo\n".to_vec();
        assert!(sink.write(&mut batch).is_err(), "nobody listens yet");
        assert_eq!(batch, b"one\ntwo\n");
        let listener = UnixListener::bind(&scratch.0).unwrap();
        sink.write(&mut batch).unwrap();
        assert!(batch.is_empty());
        let mut peer = listener.accept().unwrap().0;
        let mut read = [0; 8];
        peer.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"one\ntwo\n");
        drop(peer);
        batch.extend_from_slice(b"three\n");
        assert!(sink.write(&mut batch).is_err());
        sink.write(&mut batch).unwrap();
        let mut peer = listener.accept().unwrap().0;
        drop(sink);
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        assert_eq!(text, "three\n");
    }

    #[test]
    fn a_datagram_holds_one_line() {
        let scratch = Scratch::new("datagram");
        let peer = UnixDatagram::bind(&scratch.0).unwrap();
        let mut sink = Destination::Socket(scratch.0.clone()).open().unwrap();
        let mut batch = b"one\ntwo\n".to_vec();
        sink.write(&mut batch).unwrap();
        assert_eq!([receive(&peer), receive(&peer)], ["one", "two"]);
    }

    #[test]
    fn syslog_is_told_who_speaks_and_lines_that_are_too_long_are_cut() {
        let scratch = Scratch::new("syslog");
        let peer = UnixDatagram::bind(&scratch.0).unwrap();
        let server = Server::Unix(scratch.0.clone());
        let syslog = Syslog {
            server,
            ..Syslog::default()
        };
        let mut sink = Destination::Syslog(syslog).open().unwrap();
        let mut batch = b"GET /\n".to_vec();
        batch.extend(std::iter::repeat_n(b'x', 1 << 20));
        batch.extend_from_slice(b"\nlast\n");
        sink.write(&mut batch).unwrap();
        let message = receive(&peer);
        // local7.info: 23 * 8 + 6
        assert!(message.starts_with("<190>"), "{message}");
        assert_eq!(message.len(), "<190>Nov 28 19:06:09 weir: GET /".len());
        assert!(message.ends_with(" weir: GET /"), "{message}");
        assert_eq!(receive(&peer).len(), SHORT);
        assert!(receive(&peer).ends_with(" weir: last"));
    }

    #[test]
    fn syslog_servers_are_read_and_others_refused() {
        for (text, expected) in [
            ("unix:/run/log", Server::Unix("/run/log".into())),
            ("192.0.2.1", Server::Udp("192.0.2.1:514".to_owned())),
            (
                "log.internal:1514",
                Server::Udp("log.internal:1514".to_owned()),
            ),
            ("2001:db8::1", Server::Udp("[2001:db8::1]:514".to_owned())),
            (
                "[2001:db8::1]:1514",
                Server::Udp("[2001:db8::1]:1514".to_owned()),
            ),
        ] {
            assert_eq!(text.parse(), Ok(expected));
        }
        for text in ["", "unix:log", "a b", "host:port", "http://x"] {
            assert!(text.parse::<Server>().is_err(), "{text}");
        }
    }

    #[test]
    fn check_finds_what_open_would_and_leaves_nothing_behind() {
        let name = format!("weir-sink-check-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(check(&folder.join("a")), Ok(()));
        assert!(!folder.join("a").exists());
        std::fs::write(folder.join("a"), "").unwrap();
        assert_eq!(check(&folder.join("a")), Ok(()));
        let missing = check(&folder.join("none/a")).unwrap_err();
        assert!(missing.starts_with("no directory `"), "{missing}");
        let directory = check(&folder).unwrap_err();
        assert!(directory.contains("directory"), "{directory}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
