//! Backends as the file names them, and the addresses that they stand for.
//!
//! Names are resolved here, once for each load: a request never waits for a resolver.

use std::io;
use std::net::{SocketAddr as InetAddr, ToSocketAddrs};
use std::num::NonZeroU32;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::path::Path;

use pingora::protocols::l4::socket::SocketAddr;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::issue::{At, Issues, Sources};
use crate::value::FromShort;

/// A server, or all servers that one name stands for. Short form: the address alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where it listens: `127.0.0.1:9001`, `[::1]:9001`, `unix:/run/app.sock` or `name:port`. A name is resolved when
    /// the file is loaded, and each of its addresses becomes a member of the pool, with this weight. A name that does
    /// not resolve is a warning: the pool goes on without it, or after a reload with the addresses that it had.
    pub addr: String,
    /// Its share of the requests, in proportion to the other backends, from 0 to 1000. Default 1. A backend of weight 0
    /// stays a member, with health checks, but gets no requests. nginx: `weight=`.
    #[serde(default = "one")]
    #[schemars(range(max = 1000))]
    pub weight: u32,
    /// Whether it only gets requests that no ordinary backend of the pool can take, because they are all down or full.
    /// Default `false`. nginx: `backup`.
    #[serde(default)]
    pub backup: bool,
    /// How many requests it takes at a time, counted in this process. Absent: any number. nginx: `max_conns=`.
    pub max_conns: Option<NonZeroU32>,
}

fn one() -> u32 {
    1
}

impl FromShort for Config {
    fn from_short(text: &str) -> Result<Config, String> {
        Ok(Config {
            addr: text.to_owned(),
            weight: 1,
            backup: false,
            max_conns: None,
        })
    }
}

impl Config {
    /// Paths of sockets are relative to the file, of `sources`, that they are written in.
    pub fn compile(&self, at: &At<'_>, sources: &Sources, issues: &mut Issues) -> Option<Backend> {
        let weight = self.compile_weight(&at.key("weight"), issues);
        let address = self.compile_address(&at.key("addr"), sources, issues);
        Some(Backend {
            address: address?,
            weight: weight?,
            backup: self.backup,
            max_conns: self.max_conns.map(|max| u64::from(max.get())),
        })
    }

    fn compile_address(
        &self,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<Address> {
        let address = match self.addr.strip_prefix("unix:") {
            Some("") => wrong("`unix:` has no path", "`unix:/run/app.sock`"),
            Some(path) => {
                let folder = sources.file(&at.to_path()).parent();
                unix(&folder.unwrap_or(Path::new("")).join(path))
            }
            None => inet_or_name(&self.addr),
        };
        match address {
            Ok(address) => Some(address),
            Err(Wrong { message, hint }) => {
                issues.error(at, message).hint(hint);
                None
            }
        }
    }

    fn compile_weight(&self, at: &At<'_>, issues: &mut Issues) -> Option<u32> {
        if HEAVIEST < self.weight {
            issues
                .error(
                    at,
                    format!("weight `{}` is more than {HEAVIEST}", self.weight),
                )
                .hint("weights are proportions: 3000 to 1000 is 3 to 1");
            return None;
        }
        Some(self.weight)
    }
}

/// So that the sequence of turns stays short enough to be held in memory.
const HEAVIEST: u32 = 1000;

/// A backend that was written correctly.
#[derive(Clone, Debug)]
pub struct Backend {
    pub address: Address,
    pub weight: u32,
    pub backup: bool,
    pub max_conns: Option<u64>,
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Socket(SocketAddr),
    /// Host in lower case, and port.
    Name(String, u16),
}

impl Address {
    /// The socket addresses behind it, in a stable order: name servers rotate their answers, which is no change.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let (host, port) = match self {
            Address::Socket(address) => return Ok(vec![address.clone()]),
            Address::Name(host, port) => (host.as_str(), *port),
        };
        let mut addresses: Vec<InetAddr> = (host, port).to_socket_addrs()?.collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses.into_iter().map(SocketAddr::Inet).collect())
    }

    /// What a client that was given this address would send as `Host`.
    pub fn authority(&self) -> String {
        match self {
            Address::Socket(SocketAddr::Inet(address)) => address.to_string(),
            Address::Socket(SocketAddr::Unix(_)) => "localhost".to_owned(),
            Address::Name(host, port) => format!("{host}:{port}"),
        }
    }
}

/// A socket address as in `$upstream_addr`.
pub fn display_name(address: &SocketAddr) -> String {
    match address {
        SocketAddr::Inet(address) => address.to_string(),
        SocketAddr::Unix(_) => format!("unix:{address}"),
    }
}

/// Why a text is not an address, and what would be one.
#[derive(Debug)]
pub struct Wrong {
    message: String,
    hint: String,
}

fn wrong<T>(message: impl Into<String>, hint: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong {
        message: message.into(),
        hint: hint.into(),
    })
}

fn unix(path: &Path) -> Result<Address, Wrong> {
    match UnixAddr::from_pathname(path) {
        Ok(address) => Ok(Address::Socket(SocketAddr::Unix(address))),
        Err(error) => wrong(
            format!(
                "`{}` cannot be the path of a socket: {error}",
                path.display()
            ),
            "the system takes at most 107 bytes",
        ),
    }
}

fn inet_or_name(text: &str) -> Result<Address, Wrong> {
    if let Some((scheme, _)) = text.split_once("://") {
        return wrong(
            format!("`{text}` is a URL, not an address"),
            format!("without `{scheme}://` and path, as in `127.0.0.1:9001` or `name:port`"),
        );
    }
    let Some((host, port)) = split_port(text) else {
        return wrong(
            format!("`{text}` has no port"),
            format!("`{}:80`, or whichever port it is", bracketed(text)),
        );
    };
    let port: u16 = match port.parse() {
        Ok(port) if port != 0 => port,
        _ => {
            return wrong(
                format!("`{port}` is not a port"),
                "a port is a number from 1 to 65535",
            );
        }
    };
    if let Ok(address) = text.parse() {
        return Ok(Address::Socket(SocketAddr::Inet(address)));
    }
    if !is_host_name(host) {
        return wrong(
            format!("`{host}` is neither an IP address nor a host name"),
            "an address is `127.0.0.1:9001`, `[::1]:9001`, `unix:/run/app.sock` or `name:port`",
        );
    }
    Ok(Address::Name(host.to_ascii_lowercase(), port))
}

/// Host and port; `None` when there is no port, as in `::1`, whose last colon belongs to the address.
fn split_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    (bracketed || !host.contains(':')).then_some((host, port))
}

fn bracketed(text: &str) -> String {
    if text.contains(':') && !text.starts_with('[') {
        format!("[{text}]")
    } else {
        text.to_owned()
    }
}

/// Letters, digits, dashes, underscores (container names have them) and dots; no number alone, which resolvers would take
/// for an IPv4 address in one of its odd forms.
fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| matches!(label.len(), 1..=63) && label.bytes().all(is_letter);
    let last = host.rsplit('.').next().unwrap_or(host);
    host.len() <= 253
        && host.split('.').all(is_label)
        && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Address, String> {
        inet_or_name(text).map_err(|wrong| wrong.message)
    }

    #[test]
    fn ip_addresses_and_names_are_read() {
        for text in ["127.0.0.1:9001", "[::1]:9001"] {
            let address = SocketAddr::Inet(text.parse().unwrap());
            assert_eq!(display_name(&address), text);
            assert_eq!(read(text), Ok(Address::Socket(address)));
        }
        for text in [
            "app.internal:9003",
            "app:80",
            "my_app-1:80",
            "app.internal.:80",
        ] {
            assert_eq!(read(text).unwrap().authority(), text);
        }
        assert_eq!(read("App:80"), Ok(Address::Name("app".to_owned(), 80)));
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        for (text, message) in [
            ("127.0.0.1", "`127.0.0.1` has no port"),
            ("app", "`app` has no port"),
            ("::1", "`::1` has no port"),
            ("::1:9001", "`::1:9001` has no port"),
            ("[::1]", "`[::1]` has no port"),
            ("", "`` has no port"),
            ("app:", "`` is not a port"),
            ("app:0", "`0` is not a port"),
            ("app:65536", "`65536` is not a port"),
            ("app:http", "`http` is not a port"),
            (":80", "`` is neither an IP address nor a host name"),
            (
                "127.0.0.256:80",
                "`127.0.0.256` is neither an IP address nor a host name",
            ),
            ("a b:80", "`a b` is neither an IP address nor a host name"),
            ("a..b:80", "`a..b` is neither an IP address nor a host name"),
            ("http://app:80", "`http://app:80` is a URL, not an address"),
        ] {
            assert_eq!(read(text).unwrap_err(), message);
        }
    }

    #[test]
    fn a_socket_path_has_a_limit() {
        let path = format!("/run/{}", "x".repeat(200));
        assert!(unix(Path::new(&path)).is_err());
        let Ok(Address::Socket(address)) = unix(Path::new("/run/app.sock")) else {
            panic!("a short path is fine");
        };
        assert_eq!(display_name(&address), "unix:/run/app.sock");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,20}|[\\[\\]:.a-z0-9]{0,20}") {
            let _ = read(&text);
        }
    }
}
