//! `proxy_protocol` of a listener: believes listed peers, who must say it, who the client is.

use std::io;
use std::net::SocketAddr;

use bytes::BytesMut;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::stream::Socket;
use crate::http::proxy_protocol::{self, Ends, LONGEST};
use crate::value::{Cidr, OneOrMany};

/// What one read may bring: a header as most proxies send it, and not much of what follows.
const ROOM: usize = 256;

#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The proxies in front, by address. Their connections must begin with a header of version 1 or 2, before TLS; what it says
    /// counts as the client's address from then on. Whoever else connects is an ordinary client. On a unix socket all are
    /// proxies. nginx: `listen ... proxy_protocol` with `set_real_ip_from`.
    pub from: OneOrMany<Cidr>,
}

impl Config {
    /// Whether this peer has to say who the client is.
    pub fn is_proxy(&self, peer: Option<SocketAddr>) -> bool {
        peer.is_none_or(|peer| {
            let ip = peer.ip().to_canonical();
            self.from.0.iter().any(|network| network.contains(ip))
        })
    }
}

/// Reads the header. `None`: no client is behind the connection; what came after the header is the connection's.
///
/// # Errors
/// When the connection does not begin with one.
pub(super) async fn read(socket: &mut Socket) -> io::Result<(Option<Ends>, BytesMut)> {
    let mut bytes = BytesMut::new();
    loop {
        let header = proxy_protocol::read(&bytes);
        if let Some(header) = header.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))? {
            return Ok((header.ends, bytes.split_off(header.length)));
        }
        debug_assert!(bytes.len() < LONGEST, "a header ends before that");
        bytes.reserve(ROOM);
        let count = match socket {
            Socket::Tcp(socket) => socket.read_buf(&mut bytes).await?,
            Socket::Unix(socket) => socket.read_buf(&mut bytes).await?,
        };
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
