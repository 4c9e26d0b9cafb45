//! Connections to backends: how one is made, what a request may expect of it, and where it waits for the next request.
//!
//! Pingora speaks HTTP over whatever stream it is given. Its own streams bound each read but not the whole header of an
//! answer, and read an answer before the request is out; so weir makes the stream itself ([`wire`]), as it does for
//! clients. With the stream come the idle connections ([`idle`]): a pool of Pingora's knows a stream of ours only by a
//! number that they all share, and spawns a task for each that it keeps.
//!
//! ```text
//!  Connector   what the pool's configuration says of connections
//!    Dialer    one member's: how long requests wait there
//!      Stock   where it is, and its idle connections, which a reload may leave as they are
//!      Line    one try of a request: a fresh or a kept connection, and its time limits
//! ```

mod framing;
mod idle;
mod line;
mod pump;
mod stock;
mod timeouts;
mod tls;
mod turns;
mod wire;

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pingora::Result;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::{HttpPeer, PeerOptions, Scheme};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::http::outlet::Outlet;
use crate::issue::{At, Issues, Sources};
use crate::value::TrueOr;
use stock::Stock;
use tls::{Offer, Tls};

pub use crate::http::proxy_protocol::{Ends, Version as ProxyProtocol};
pub use line::Line;
pub use pump::{Ahead, Disk};
pub use timeouts::{Limits, Timeouts};
pub use tls::Config as TlsConfig;

/// What a pool's backends speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// With `tls`: HTTP/2 where the backend chooses it by ALPN, HTTP/1.1 otherwise. Without: HTTP/1.1.
    #[default]
    Auto,
    /// HTTP/1.1.
    H1,
    /// HTTP/2 over TLS, and nothing else.
    H2,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
}

/// How many requests share an HTTP/2 connection, if the backend allows as many.
const STREAMS: usize = 128;
/// How much of its answer each of them may leave to wait, and all together: were that less than all of them, clients that take
/// nothing would hold up the others. Pingora has 8 MiB for each and for all.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAMS as u32 * STREAM_WINDOW;
/// What the key of Pingora's HTTP/2 connections is changed by, so that none of those is taken.
const FRESH: u64 = 0x9e37_79b9_7f4a_7c15;

/// How the connections of a pool are made.
#[derive(Debug)]
pub struct Connector {
    limits: Limits,
    means: Arc<Means>,
}

/// What decides about a connection. One that was made by the same means is as good after a reload as before.
#[derive(Debug, PartialEq)]
struct Means {
    protocol: Protocol,
    tls: Option<Tls>,
    proxy_protocol: Option<ProxyProtocol>,
    /// How many idle connections to one member are kept.
    keepalive: usize,
    /// And for how long.
    idle: Duration,
}

impl Connector {
    pub fn compile(
        config: &super::Config,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<Arc<Connector>> {
        let limits = config.timeouts.compile(&at.key("timeouts"), issues);
        let tls = match &config.tls {
            Some(TrueOr(tls)) => tls.compile(&at.key("tls"), sources, issues).map(Some),
            None => Some(None),
        };
        match (config.protocol, &config.tls) {
            (Protocol::H2, None) => {
                issues
                    .error(&at.key("protocol"), "`h2` needs `tls`")
                    .hint("`h2c` is HTTP/2 without TLS");
                return None;
            }
            (Protocol::H2c, Some(_)) => {
                issues
                    .error(
                        &at.key("protocol"),
                        "`h2c` is without TLS, but `tls` is given",
                    )
                    .hint("`h2` is HTTP/2 over TLS");
                return None;
            }
            _ => {}
        }
        let (limits, tls) = (limits?, tls?);
        Some(Arc::new(Connector {
            means: Arc::new(Means {
                protocol: config.protocol,
                tls,
                proxy_protocol: config.proxy_protocol,
                keepalive: config.keepalive.get() as usize,
                idle: limits.idle,
            }),
            limits,
        }))
    }

    /// Whether both make the same connections, with what is in the files that the configuration names.
    pub fn has_same_means(&self, other: &Connector) -> bool {
        self.means == other.means
    }

    /// When a request that began at `started` has taken too long.
    pub fn deadline(&self, started: Instant) -> Option<Instant> {
        Some(started + self.limits.total?)
    }
}

#[cfg(test)]
impl Connector {
    /// What a pool has that says nothing of connections.
    pub fn plain() -> Arc<Connector> {
        let limits = Timeouts::default().compile(&At::Root, &mut Issues::default());
        let limits = limits.expect("the defaults are right");
        Arc::new(Connector {
            means: Arc::new(Means {
                protocol: Protocol::Auto,
                tls: None,
                proxy_protocol: None,
                keepalive: super::default_keepalive().get() as usize,
                idle: limits.idle,
            }),
            limits,
        })
    }
}

/// How to reach one member.
#[derive(Debug)]
pub struct Dialer {
    limits: Limits,
    stock: Arc<Stock>,
    peer: HttpPeer,
}

/// What a try of a request needs of its connection.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// No connection that was used before.
    pub fresh: bool,
    /// Waits while somebody else makes a connection that could be shared.
    pub patient: bool,
    /// The request asks for another protocol, and has no body: no answer may be read before all of it is written.
    pub upgrade: bool,
    /// The client wants a stream of events.
    pub events: bool,
    /// What comes back is read in small pieces.
    pub small_pieces: bool,
    /// Where the answer goes: it is not read ahead of a client that does not take it.
    pub outlet: Option<Arc<Outlet>>,
    /// When the request has taken too long in all.
    pub deadline: Option<Instant>,
    /// How long to wait for the backend, in place of what the pool says.
    pub read: Option<Duration>,
    /// How far an answer over HTTP/1 is read ahead of a slow client; `None`: no further than need be.
    pub read_ahead: Option<Ahead>,
    /// The client's connection, for a backend that is told of it.
    pub ends: Option<Ends>,
}

/// A connection for a probe.
#[derive(Debug)]
pub struct Contact {
    pub stream: Stream,
    /// Whether HTTP/2 is spoken on it.
    pub http2: bool,
    /// Whether it is within TLS.
    pub secure: bool,
}

impl Dialer {
    /// `authority` is what its backend was written as.
    pub fn new(connector: &Connector, address: SocketAddr, authority: &str) -> Dialer {
        let limits = connector.limits;
        let stock = Stock::new(connector.means.clone(), address, host_of(authority));
        let mut options = PeerOptions::new();
        options.write_timeout = Some(limits.write);
        // `handler/proxy` does it in one pass over the headers that are there. Pingora would look up each of ten names in two
        // maps, 2k of the 89k instructions of a small request.
        options.http_upstream_request_policy.strip_hop_by_hop = false;
        // The constructors of `HttpPeer` would resolve a name here, and panic when they cannot.
        let peer = HttpPeer {
            _address: stock.address().clone(),
            scheme: Scheme::HTTP,
            sni: String::new(),
            proxy: None,
            client_cert_key: None,
            group_key: stock.number(),
            options,
        };
        Dialer {
            limits,
            stock,
            peer,
        }
    }

    /// The same with the connections of `previous`, if those are what it would make itself.
    pub fn adopt(&self, previous: &Dialer) -> Dialer {
        let stock = match self.stock.is_like(&previous.stock) {
            true => &previous.stock,
            false => &self.stock,
        };
        let mut peer = self.peer.clone();
        peer.group_key = stock.number();
        Dialer {
            limits: self.limits,
            stock: stock.clone(),
            peer,
        }
    }

    /// How Pingora gets the connection for one try of a request.
    pub fn peer(self: &Arc<Self>, needs: Needs) -> (Box<HttpPeer>, Arc<Line>) {
        let (http2, offer) = self.stock.protocol(needs.upgrade);
        let line = Line::new(self.clone(), needs, http2, offer);
        let needs = &line.needs;
        let mut peer = Box::new(self.peer.clone());
        peer.options.custom_l4 = Some(line.clone());
        let limits = &self.limits;
        let left = needs.deadline.map(|end| end.duration_since(Instant::now()));
        let within = |limit: Duration| left.map_or(limit, |left| limit.min(left));
        peer.options.total_connection_timeout = Some(within(limits.connect));
        if http2 {
            // Pingora takes it once, before the answer tells what it is, and then waits as long for each part of it.
            peer.options.read_timeout = Some(match needs.events {
                true => limits.tunnel,
                false => within(needs.read.unwrap_or(limits.read)),
            });
            peer.options.idle_timeout = Some(limits.idle);
            // Pingora's way to say: HTTP/2 without TLS. What there is of TLS is in the stream.
            peer.options.set_http_version(2, 2);
            peer.options.max_h2_streams = STREAMS;
            peer.options.h2_stream_window_size = Some(STREAM_WINDOW);
            peer.options.h2_connection_window_size = Some(CONNECTION_WINDOW);
            if self.stock.is_secure() {
                // For Pingora it ends in a pair of sockets: the address that it takes to be anybody's.
                peer._address = SocketAddr::Inet((Ipv4Addr::UNSPECIFIED, 0).into());
            }
            if needs.fresh {
                peer.group_key ^= FRESH;
            }
            if self.stock.is_per_client() {
                // What was said of one client is not true of another.
                let mut hasher = DefaultHasher::new();
                (peer.group_key, needs.ends).hash(&mut hasher);
                peer.group_key = hasher.finish();
            }
        }
        (peer, line)
    }

    /// A connection of its own, for a probe: HTTP/2 is spoken on it where the probe knows nothing else (`http2`) or the
    /// pool does, otherwise HTTP/1.1.
    ///
    /// # Errors
    /// When none comes about. There is no limit of time.
    pub async fn connect(self: &Arc<Self>, http2: bool) -> Result<Contact> {
        let needs = Needs {
            fresh: true,
            ..Needs::default()
        };
        // The same that an upgrade gets: a backend that may choose is to choose HTTP/1.1.
        let (http2, offer) = match http2 {
            true => (true, Offer::Http2),
            false => self.stock.protocol(true),
        };
        let line = Line::new(self.clone(), needs, http2, offer);
        Ok(Contact {
            stream: line.connect(self.stock.address()).await?,
            http2,
            secure: self.stock.is_secure(),
        })
    }
}

/// The host of `host:port` and `[address]:port`.
fn host_of(authority: &str) -> &str {
    let host = match authority.rsplit_once(':') {
        Some((host, _)) if !host.contains(':') || host.ends_with(']') => host,
        _ => authority,
    };
    host.trim_start_matches('[').trim_end_matches(']')
}
