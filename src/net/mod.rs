//! Listeners: where requests come from.
//!
//! weir owns its sockets, its accept loop and the bytes of a connection until a request begins; Pingora is the HTTP
//! engine behind it. That is what makes it possible to change listeners while running, to hold an idle connection
//! in about a kilobyte, to hand sockets over to the next process and to drain without losing a request.
//!
//! ```text
//!  bind.rs         an address as written -> a listening socket, own, opened or inherited
//!  accept.rs       one task per socket: connections in, until the listener is closed
//!  connection.rs   one connection: TLS, HTTP/1 or HTTP/2, waiting between requests
//!  bounds.rs       how long a client may take, and how much it may send, before anything is known of it
//!  crowd.rs        how many connections there are, in all and of one client
//!  handshakes.rs   how many TLS handshakes one client has under way
//!  beneath.rs      streams in front of streams, and what Pingora asks of them
//!  gate.rs         one request at a time between a connection and the engine, and what comes of a head that is none
//!  http2/          a connection that speaks HTTP/2: what its client may do to the engine, its requests, and its end
//!  tunnel.rs       a WebSocket, and its end when the process drains
//!  proxy_protocol.rs  who the client is, as a proxy in front says
//!  stream.rs       the bytes: what Pingora reads from and writes to
//!  encrypted.rs    the same with TLS
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::http::version::{Protocol, Protocols};
use crate::value::{Cidr, OneOrMany};

#[macro_use]
mod beneath;

pub mod accept;
pub mod bind;
pub mod bounds;
pub mod connection;
pub mod crowd;
mod encrypted;
pub mod gate;
pub mod handshakes;
mod http2;
pub mod proxy_protocol;
pub mod stream;
mod tunnel;

pub use bind::Bind;
pub use bounds::Bounds;
pub use crowd::{Crowd, Room};
pub use stream::{Connection, MOST_STAND_IN, Open, TcpInfo, TlsFacts, stand_in};

/// One listener: `listeners.NAME`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where to listen: `0.0.0.0:8080`, `[::]:8080`, `:8080` (all IPv4 and IPv6 addresses), `unix:/path`,
    /// `systemd:NAME` (a socket that the service manager opens); one or a list. nginx: `listen`.
    pub bind: OneOrMany<Bind>,
    /// Serve TLS here. Absent: plain. nginx: `listen ... ssl`.
    pub tls: Option<crate::tls::ListenerConfig>,
    /// HTTP versions to accept. On TLS the client chooses by ALPN; `h2` on a plain listener means HTTP/2 by prior
    /// knowledge. Default: `[h1, h2]`.
    pub protocols: Option<OneOrMany<Protocol>>,
    /// How long clients may take, and how much they may send, before anything is known of a request.
    #[serde(default)]
    pub http: bounds::Http,
    /// How many clients there may be.
    #[serde(default)]
    pub limits: bounds::Limits,
    /// Take the PROXY protocol from proxies in front, such as a load balancer of TCP connections.
    pub proxy_protocol: Option<proxy_protocol::Config>,
}

impl Config {
    pub fn protocols(&self) -> Protocols {
        match &self.protocols {
            Some(OneOrMany(list)) => list.iter().copied().collect(),
            None => Protocols::ALL,
        }
    }
}

/// A listener as it is to run: what new connections of its sockets get.
#[derive(Clone)]
pub struct Listener {
    pub name: Arc<str>,
    pub binds: Vec<Bind>,
    pub tls: Option<Arc<crate::tls::Acceptor>>,
    pub protocols: Protocols,
    pub bounds: Bounds,
    /// Peers that stand for many clients, which they name in their requests.
    pub proxies: Arc<[Cidr]>,
    pub proxy_protocol: Option<proxy_protocol::Config>,
}

impl Listener {
    /// Who is counted as one client: not a proxy, nor, where nothing is said of it, a program on this machine, which may be
    /// one; both stand for many.
    fn one_client(&self, peer: Option<SocketAddr>) -> Option<IpAddr> {
        let ip = peer?.ip().to_canonical();
        let stands_for_many = self.proxies.iter().any(|range| range.contains(ip))
            || (self.bounds.spares_loopback && ip.is_loopback());
        (!stands_for_many).then_some(ip)
    }
}

/// All listeners of a snapshot, by name.
pub type Listeners = BTreeMap<Arc<str>, Listener>;
