//! `proxy_protocol`: tells a backend who the client is, ahead of the first byte of the connection.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// The two ends of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    pub client: SocketAddr,
    pub server: SocketAddr,
}

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The header; without `ends` that of a connection that no client is behind, or one on a unix socket.
pub fn header(version: Version, ends: Option<Ends>) -> Vec<u8> {
    let ends = ends.and_then(|ends| {
        let (client, server) = (
            ends.client.ip().to_canonical(),
            ends.server.ip().to_canonical(),
        );
        (client.is_ipv4() == server.is_ipv4()).then_some((
            client,
            server,
            ends.client.port(),
            ends.server.port(),
        ))
    });
    match (version, ends) {
        (Version::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
        (Version::V1, Some((client, server, from, to))) => {
            let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {family} {client} {server} {from} {to}\r\n").into_bytes()
        }
        (Version::V2, None) => [SIGNATURE, &[0x20, 0, 0, 0]].concat(),
        (Version::V2, Some((client, server, from, to))) => {
            let mut addresses = Vec::with_capacity(36);
            for ip in [client, server] {
                match ip {
                    IpAddr::V4(ip) => addresses.extend(ip.octets()),
                    IpAddr::V6(ip) => addresses.extend(ip.octets()),
                }
            }
            addresses.extend(from.to_be_bytes());
            addresses.extend(to.to_be_bytes());
            let family = if client.is_ipv4() { 0x11 } else { 0x21 };
            let length = addresses.len() as u8; // 12 or 36
            [SIGNATURE, &[0x21, family, 0, length], &addresses].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(client: &str, server: &str) -> Option<Ends> {
        Some(Ends {
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
        })
    }

    #[test]
    fn version_1_is_a_line() {
        let text = |ends| String::from_utf8(header(Version::V1, ends)).unwrap();
        assert_eq!(
            text(ends("192.0.2.1:4000", "192.0.2.2:80")),
            "PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\r\n"
        );
        assert_eq!(
            text(ends("[2001:db8::1]:4000", "[2001:db8::2]:80")),
            "PROXY TCP6 2001:db8::1 2001:db8::2 4000 80\r\n"
        );
        assert_eq!(
            text(ends("[::ffff:192.0.2.1]:4000", "192.0.2.2:80")),
            "PROXY TCP4 192.0.2.1 192.0.2.2 4000 80\r\n"
        );
        assert_eq!(text(None), "PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_is_binary() {
        let bytes = header(Version::V2, ends("192.0.2.1:4000", "192.0.2.2:80"));
        assert_eq!(&bytes[..12], SIGNATURE);
        assert_eq!(bytes[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(bytes[16..], [192, 0, 2, 1, 192, 0, 2, 2, 0x0f, 0xa0, 0, 80]);
        let bytes = header(Version::V2, ends("[2001:db8::1]:4000", "[2001:db8::2]:80"));
        assert_eq!((bytes[13], bytes[15], bytes.len()), (0x21, 36, 52));
        assert_eq!(header(Version::V2, None)[12..], [0x20, 0, 0, 0]);
    }
}
