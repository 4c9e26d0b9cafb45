//! Backends as the file names them.
//!
//! What stands for a name is found out elsewhere (`names`), before and while the pool runs: a request never waits for a
//! resolver.

use std::fmt;
use std::num::NonZeroU32;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use pingora::protocols::l4::socket::SocketAddr;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use crate::issue::{At, Issues, Sources};
use crate::value::{FromShort, Span, from_text};

/// A server, or all servers that one name stands for: exactly one of `addr` and `srv`. Short form: the address alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where it listens: `127.0.0.1:9001`, `[::1]:9001`, `unix:/run/app.sock` or `name:port`. Each address (A and AAAA)
    /// of a name becomes a member of the pool, with this weight; name servers are asked again in the background, and
    /// a change of addresses moves new requests only. When they cannot tell, the pool goes on with the addresses that
    /// it had; a name that has never resolved is a warning, and the pool goes on without it until it does.
    pub addr: Option<String>,
    /// Instead of `addr`, the name of SRV records, such as `_http._tcp.app.internal`: host, port and weight of each
    /// member come from the records, and so does the priority: those of the lowest number are ordinary members, all
    /// others are backups. With `backup: true`, those of the lowest number are backups and the others are not used.
    /// nginx: `service=`.
    pub srv: Option<String>,
    /// When to ask for the addresses of a name again: `ttl` (default), when the answer expires, but not sooner than a
    /// second and not later than an hour; a duration such as `30s`, whatever the name servers say; or `once`, only when
    /// the file is loaded. Names from `/etc/hosts` are looked up again every 10s. nginx: `resolve`, `valid=`.
    pub resolve: Option<Refresh>,
    /// Its share of the requests, in proportion to the other backends, from 0 to 1000. Default 1. A backend of weight 0
    /// stays a member, with health checks, but gets no requests. Not with `srv`. nginx: `weight=`.
    #[schemars(range(max = 1000))]
    pub weight: Option<u32>,
    /// Whether it only gets requests that no ordinary backend of the pool can take, because they are all down or full.
    /// Default `false`. nginx: `backup`.
    #[serde(default)]
    pub backup: bool,
    /// How many requests it takes at a time, counted in this process; of a name, each of its addresses. Absent: any
    /// number. nginx: `max_conns=`.
    pub max_conns: Option<NonZeroU32>,
}

impl FromShort for Config {
    fn from_short(text: &str) -> Result<Config, String> {
        Ok(Config {
            addr: Some(text.to_owned()),
            ..Config::default()
        })
    }
}

impl Config {
    /// Paths of sockets are relative to the file, of `sources`, that they are written in.
    pub fn compile(&self, at: &At<'_>, sources: &Sources, issues: &mut Issues) -> Option<Backend> {
        let weight = self.compile_weight(&at.key("weight"), issues);
        let address = self.compile_address(at, sources, issues);
        let refresh = self.compile_refresh(address.as_ref(), &at.key("resolve"), issues);
        Some(Backend {
            address: address?,
            refresh: refresh?,
            weight: weight?,
            backup: self.backup,
            max_conns: self.max_conns.map(|max| u64::from(max.get())),
        })
    }

    /// What name servers are to be asked for it; `None` also when it is written wrongly, which `compile` reports.
    pub fn query(&self) -> Option<Query> {
        let address = match (&self.addr, &self.srv) {
            (Some(text), None) if !text.starts_with("unix:") => inet_or_name(text).ok()?,
            (None, Some(name)) => service(name).ok()?,
            _ => return None,
        };
        match address {
            Address::Socket(_) => None,
            Address::Name(query) => Some(query),
        }
    }

    pub fn refresh(&self) -> Refresh {
        self.resolve.unwrap_or_default()
    }

    /// Where it is, as the file says.
    pub fn written(&self) -> &str {
        let written = self.addr.as_ref().or(self.srv.as_ref());
        written.map_or("", String::as_str)
    }

    /// The key that says where it is.
    pub fn key(&self) -> &'static str {
        match self.srv {
            None => "addr",
            Some(_) => "srv",
        }
    }

    fn compile_address(
        &self,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<Address> {
        let address = match (&self.addr, &self.srv) {
            (Some(text), None) => match text.strip_prefix("unix:") {
                Some("") => wrong("`unix:` has no path", "`unix:/run/app.sock`"),
                Some(path) => {
                    let folder = sources.file(&at.key("addr").to_path()).parent();
                    unix(&folder.unwrap_or(Path::new("")).join(path))
                }
                None => inet_or_name(text),
            },
            (None, Some(name)) => service(name),
            (Some(_), Some(_)) => wrong(
                "`addr` and `srv` are both given",
                "the records that `srv` names bring addresses and ports",
            ),
            (None, None) => {
                issues
                    .error(at, "neither `addr` nor `srv` says where it is")
                    .hint("`addr: 127.0.0.1:9001` or `srv: _http._tcp.app.internal`");
                return None;
            }
        };
        match address {
            Ok(address) => Some(address),
            Err(Wrong { message, hint }) => {
                issues.error(&at.key(self.key()), message).hint(hint);
                None
            }
        }
    }

    /// `address` is `None` when it is wrong.
    fn compile_refresh(
        &self,
        address: Option<&Address>,
        at: &At<'_>,
        issues: &mut Issues,
    ) -> Option<Refresh> {
        match (self.resolve, address) {
            (Some(_), Some(Address::Socket(address))) => {
                let address = display_name(address);
                issues
                    .error(at, format!("`{address}` is no name that could be resolved"))
                    .hint("leave `resolve` out");
                None
            }
            (Some(Refresh::Every(span)), _) if span.get() < SHORTEST => {
                issues.error(at, "`resolve` must be at least 1s");
                None
            }
            _ => Some(self.refresh()),
        }
    }

    fn compile_weight(&self, at: &At<'_>, issues: &mut Issues) -> Option<u32> {
        match self.weight {
            Some(_) if self.srv.is_some() => {
                issues
                    .error(at, "`weight` and `srv` are both given")
                    .hint("the records that `srv` names bring weights");
                None
            }
            Some(weight) if HEAVIEST < weight => {
                issues
                    .error(at, format!("weight `{weight}` is more than {HEAVIEST}"))
                    .hint("weights are proportions: 3000 to 1000 is 3 to 1");
                None
            }
            weight => Some(weight.unwrap_or(1)),
        }
    }
}

/// So that the sequence of turns stays short enough to be held in memory.
pub const HEAVIEST: u32 = 1000;

/// How often a name server may be asked at most, for one name.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// A backend that was written correctly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: Address,
    /// Of a name.
    pub refresh: Refresh,
    /// Of each member, unless SRV records say otherwise.
    pub weight: u32,
    pub backup: bool,
    pub max_conns: Option<u64>,
}

impl Backend {
    /// What name servers are to be asked for it.
    pub fn query(&self) -> Option<&Query> {
        match &self.address {
            Address::Socket(_) => None,
            Address::Name(query) => Some(query),
        }
    }
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Socket(SocketAddr),
    Name(Query),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(address) => f.write_str(&display_name(address)),
            Address::Name(query) => query.fmt(f),
        }
    }
}

/// What name servers are asked for a backend. Names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// The addresses of a host, which listens on this port.
    Host(String, u16),
    /// SRV records.
    Service(String),
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Query::Host(host, port) => write!(f, "{host}:{port}"),
            Query::Service(name) => f.write_str(name),
        }
    }
}

/// When to ask for a name again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refresh {
    #[default]
    Ttl,
    Every(Span),
    /// Not while the process runs with the same configuration.
    Once,
}

impl FromStr for Refresh {
    type Err = String;

    fn from_str(text: &str) -> Result<Refresh, String> {
        match text {
            "ttl" => Ok(Refresh::Ttl),
            "once" => Ok(Refresh::Once),
            _ => match text.parse() {
                Ok(span) => Ok(Refresh::Every(span)),
                Err(_) => Err(format!("expected {REFRESH}, found `{text}`")),
            },
        }
    }
}

const REFRESH: &str = "`ttl`, `once` or a duration such as `30s`";

impl<'de> Deserialize<'de> for Refresh {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Refresh, D::Error> {
        from_text(deserializer, REFRESH)
    }
}

impl JsonSchema for Refresh {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Refresh".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let span = generator.subschema_for::<Span>();
        json_schema!({ "anyOf": [{ "enum": ["ttl", "once"] }, span] })
    }
}

/// What a client that was given this address would send as `Host`.
pub fn authority(address: &SocketAddr) -> String {
    match address {
        SocketAddr::Inet(address) => address.to_string(),
        SocketAddr::Unix(_) => "localhost".to_owned(),
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
    Ok(Address::Name(Query::Host(host.to_ascii_lowercase(), port)))
}

fn service(name: &str) -> Result<Address, Wrong> {
    if !is_host_name(name) {
        return wrong(
            format!("`{name}` cannot be the name of SRV records"),
            "a name without a port, as in `_http._tcp.app.internal`",
        );
    }
    Ok(Address::Name(Query::Service(name.to_ascii_lowercase())))
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
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        let app = Query::Host("app".to_owned(), 80);
        assert_eq!(read("App:80"), Ok(Address::Name(app)));
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

    #[test]
    fn a_service_is_a_name_without_port() {
        let read = |name: &str| service(name).map(|address| address.to_string());
        assert_eq!(read("_HTTP._tcp.app").unwrap(), "_http._tcp.app");
        for name in ["", "app:80", "127.0.0.1", "a b"] {
            assert!(read(name).is_err(), "{name}");
        }
    }

    #[test]
    fn when_to_resolve_again_is_a_word_or_a_duration() {
        let read = |text: &str| serde_yaml::from_str::<Refresh>(text);
        assert_eq!(read("ttl").unwrap(), Refresh::Ttl);
        assert_eq!(read("once").unwrap(), Refresh::Once);
        assert_eq!(read("30s").unwrap(), Refresh::Every("30s".parse().unwrap()));
        for text in ["30", "never", "TTL"] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains("expected `ttl`, `once` or"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,20}|[\\[\\]:.a-z0-9]{0,20}") {
            let _ = read(&text);
        }
    }
}
