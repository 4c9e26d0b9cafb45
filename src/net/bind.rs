//! Addresses to listen on, and the sockets behind them.

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::str::FromStr;

use nix::sys::stat::{Mode, fchmod};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::value::from_text;

/// Connections that the kernel may hold before they are accepted; it caps this at `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;

const EXPECTED: &str =
    "an address such as `0.0.0.0:8080`, `[::]:8080`, `:8080`, `unix:/path` or `systemd:NAME`";

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bind {
    Tcp(SocketAddr),
    /// `:PORT`: one socket for IPv6 and IPv4.
    Any(u16),
    Unix(PathBuf),
    /// Opened by the service manager, which calls it by this name (`FileDescriptorName=`).
    Systemd(String),
}

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Bind, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(format!(
                    "expected an absolute path after `unix:`, found `{path}`"
                ));
            }
            return Ok(Bind::Unix(path.into()));
        }
        if let Some(name) = text.strip_prefix("systemd:") {
            // What systemd.socket(5) allows in a name.
            let good = |c: char| c.is_ascii_graphic() && c != ':';
            if name.is_empty() || name.len() > 255 || !name.chars().all(good) {
                return Err(format!(
                    "expected the name of a socket after `systemd:`, found `{name}`"
                ));
            }
            return Ok(Bind::Systemd(name.to_owned()));
        }
        if let Some(port) = text.strip_prefix(':') {
            return match port.parse() {
                Ok(port) => Ok(Bind::Any(port)),
                Err(_) => Err(format!(
                    "expected a port from 0 to 65535 after `:`, found `{port}`"
                )),
            };
        }
        text.parse()
            .map(Bind::Tcp)
            .map_err(|_| format!("expected {EXPECTED}, found `{text}`"))
    }
}

/// As written: also the name under which a socket is handed to the next process.
impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bind::Tcp(addr) => write!(f, "{addr}"),
            Bind::Any(port) => write!(f, ":{port}"),
            Bind::Unix(path) => write!(f, "unix:{}", path.display()),
            Bind::Systemd(name) => write!(f, "systemd:{name}"),
        }
    }
}

impl<'de> Deserialize<'de> for Bind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bind, D::Error> {
        from_text(deserializer, EXPECTED)
    }
}

impl Serialize for Bind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for Bind {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bind".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "An address to listen on: `0.0.0.0:8080`, `[::]:8080`, `:8080`, `unix:/path` or `systemd:NAME`",
            "pattern": "^(unix:/.+|systemd:.+|.*:[0-9]{1,5})$",
        })
    }
}

impl Bind {
    /// Whether the two cannot be open at the same time because they are the same place.
    pub fn collides(&self, other: &Bind) -> bool {
        match (self, other) {
            (Bind::Unix(a), Bind::Unix(b)) => a == b,
            (Bind::Systemd(a), Bind::Systemd(b)) => a == b,
            (Bind::Tcp(a), Bind::Tcp(b)) => a == b && a.port() != 0,
            (Bind::Any(a), Bind::Any(b)) => a == b && *a != 0,
            (Bind::Any(port), Bind::Tcp(addr)) | (Bind::Tcp(addr), Bind::Any(port)) => {
                addr.port() == *port && addr.ip().is_unspecified() && *port != 0
            }
            _ => false,
        }
    }

    /// Opens the socket and listens on it.
    ///
    /// # Errors
    /// What the kernel says: the address is in use or not of this machine, no permission for the port or path.
    pub fn listen(&self) -> io::Result<ListenSocket> {
        // As nginx: whoever may enter the folder may connect.
        self.listen_with(0o666)
    }

    /// As [`Bind::listen`]; to a unix socket only this user, and root, may connect.
    ///
    /// # Errors
    /// As [`Bind::listen`].
    pub fn listen_private(&self) -> io::Result<ListenSocket> {
        self.listen_with(0o600)
    }

    fn listen_with(&self, mode: u32) -> io::Result<ListenSocket> {
        let socket = match self {
            Bind::Tcp(addr) => tcp(*addr, true)?,
            // Kernels without IPv6 exist: there `:PORT` means all of IPv4.
            Bind::Any(port) => match tcp(any_v6(*port), false) {
                Err(e) if e.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {
                    tcp(SocketAddr::from(([0, 0, 0, 0], *port)), true)?
                }
                result => result?,
            },
            Bind::Unix(path) => {
                remove_stale(path)?;
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                // The file begins with the mode of the socket, less the umask: a private one is never open to others.
                fchmod(&socket, Mode::from_bits_truncate(mode))?;
                socket.bind(&SockAddr::unix(path)?)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
                socket
            }
            Bind::Systemd(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "the service manager gave no socket of that name when weir was started",
                ));
            }
        };
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(ListenSocket { socket })
    }
}

fn any_v6(port: u16) -> SocketAddr {
    SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0).into()
}

fn tcp(addr: SocketAddr, only_v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a former process in TIME_WAIT must not keep a new one from starting.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // Accepted sockets inherit it: answers leave at once, weir joins small writes itself.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

/// A socket file that nobody listens on any more would make the bind fail; one with a listener must stay.
fn remove_stale(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Ok(());
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

/// A listening socket, not yet in use by a runtime.
#[derive(Debug)]
pub struct ListenSocket {
    socket: Socket,
}

impl ListenSocket {
    /// A socket that another process opened and listens on.
    ///
    /// # Errors
    /// When it is none.
    pub fn inherited(fd: OwnedFd) -> io::Result<ListenSocket> {
        let socket = Socket::from(fd);
        if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
            let message = "it is no socket that listens for connections";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        if socket.domain()? != Domain::UNIX {
            // A service manager does without, unless it is told.
            socket.set_tcp_nodelay(true)?;
        }
        socket.set_nonblocking(true)?;
        Ok(ListenSocket { socket })
    }

    pub fn try_clone(&self) -> io::Result<ListenSocket> {
        Ok(ListenSocket {
            socket: self.socket.try_clone()?,
        })
    }

    pub fn is_unix(&self) -> io::Result<bool> {
        Ok(self.socket.domain()? == Domain::UNIX)
    }

    /// The address it really listens on (a port 0 was chosen by the kernel).
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()?.as_socket()
    }

    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }
}

impl AsFd for ListenSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for ListenSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_prints_as_it_is_read() {
        for text in [
            "127.0.0.1:80",
            "[::1]:8080",
            ":443",
            "unix:/run/weir.sock",
            "systemd:web",
        ] {
            assert_eq!(text.parse::<Bind>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "80",
            "localhost:80",
            "127.0.0.1",
            ":x",
            "unix:relative",
            ":70000",
            "systemd:",
            "systemd:a b",
        ] {
            assert!(text.parse::<Bind>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_same_place_collides_however_it_is_written() {
        let bind = |text: &str| text.parse::<Bind>().unwrap();
        assert!(bind(":80").collides(&bind("0.0.0.0:80")));
        assert!(bind("[::]:80").collides(&bind(":80")));
        assert!(!bind("127.0.0.1:80").collides(&bind("127.0.0.2:80")));
        assert!(!bind("127.0.0.1:0").collides(&bind("127.0.0.1:0")));
    }
}
