//! The PROXY protocol, versions 1 and 2: who the client is, said by a proxy ahead of the first byte of the connection.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// In bytes; what follows is the client's.
    pub length: usize,
    /// `None`: the proxy speaks for itself (a health check), or the client has no address (a unix socket).
    pub ends: Option<Ends>,
}

/// The connection does not begin with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoHeader;

impl fmt::Display for NoHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no PROXY protocol header")
    }
}

impl std::error::Error for NoHeader {}

/// The longest line of version 1 (section 2.1).
const LONGEST_LINE: usize = 107;
/// What stands before the addresses in version 2.
const FIXED: usize = 16;
/// The longest header that is read. The addresses take 216 bytes at most, the rest are TLVs: certificates at worst.
pub const LONGEST: usize = 4096;

/// Reads the header that `bytes` begin with; `None` as long as its end is missing.
///
/// # Errors
/// As soon as no continuation could make it a header.
pub fn read(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let begins_with = |mark: &[u8]| {
        let length = mark.len().min(bytes.len());
        bytes[..length] == mark[..length]
    };
    if begins_with(SIGNATURE) {
        read_v2(bytes)
    } else if begins_with(b"PROXY ") {
        read_v1(bytes)
    } else {
        Err(NoHeader)
    }
}

fn read_v1(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let begun = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = memchr::memmem::find(begun, b"\r\n") else {
        return match bytes.len() < LONGEST_LINE {
            true => Ok(None),
            false => Err(NoHeader),
        };
    };
    let line = str::from_utf8(&bytes[..end]).map_err(|_| NoHeader)?;
    let words: Vec<&str> = line.split(' ').collect();
    let ends = match words[..] {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", "TCP4", client, server, from, to] => Some(Ends {
            client: (address::<Ipv4Addr>(client)?, port(from)?).into(),
            server: (address::<Ipv4Addr>(server)?, port(to)?).into(),
        }),
        ["PROXY", "TCP6", client, server, from, to] => Some(Ends {
            client: (address::<Ipv6Addr>(client)?, port(from)?).into(),
            server: (address::<Ipv6Addr>(server)?, port(to)?).into(),
        }),
        _ => return Err(NoHeader),
    };
    Ok(Some(Header {
        length: end + 2,
        ends,
    }))
}

fn address<A: std::str::FromStr>(text: &str) -> Result<A, NoHeader> {
    text.parse().map_err(|_| NoHeader)
}

fn port(text: &str) -> Result<u16, NoHeader> {
    // `parse` alone would take a plus sign
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().map_err(|_| NoHeader),
        false => Err(NoHeader),
    }
}

fn read_v2(bytes: &[u8]) -> Result<Option<Header>, NoHeader> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(None);
    };
    let [.., command, family, high, low] = *fixed;
    let follows = usize::from(u16::from_be_bytes([high, low]));
    let length = FIXED + follows;
    if length > LONGEST || !matches!(command, 0x20 | 0x21) {
        return Err(NoHeader);
    }
    let Some(rest) = rest.get(..follows) else {
        return Ok(None);
    };
    let (ends, tlvs) = match (command, family) {
        // LOCAL: whatever follows is to be ignored
        (0x20, _) => (None, &[][..]),
        (_, 0x11 | 0x12) => v2_ends::<4, Ipv4Addr>(rest)?,
        (_, 0x21 | 0x22) => v2_ends::<16, Ipv6Addr>(rest)?,
        // unix sockets, and what is not specified
        (_, 0x31 | 0x32) => (None, rest.get(216..).ok_or(NoHeader)?),
        (_, 0x00) => (None, &[][..]),
        _ => return Err(NoHeader),
    };
    if let Some(at) = check_tlvs(tlvs)? {
        check_sum(&bytes[..length], length - tlvs.len() + at)?;
    }
    Ok(Some(Header { length, ends }))
}

/// Two addresses and two ports, and what is behind them.
fn v2_ends<const N: usize, A: From<[u8; N]> + Into<IpAddr>>(
    bytes: &[u8],
) -> Result<(Option<Ends>, &[u8]), NoHeader> {
    let (client, rest) = bytes.split_first_chunk::<N>().ok_or(NoHeader)?;
    let (server, rest) = rest.split_first_chunk::<N>().ok_or(NoHeader)?;
    let (from, rest) = rest.split_first_chunk::<2>().ok_or(NoHeader)?;
    let (to, tlvs) = rest.split_first_chunk::<2>().ok_or(NoHeader)?;
    let end =
        |ip: [u8; N], port: [u8; 2]| SocketAddr::new(A::from(ip).into(), u16::from_be_bytes(port));
    let ends = Ends {
        client: end(*client, *from),
        server: end(*server, *to),
    };
    Ok((Some(ends), tlvs))
}

/// Type, length and value, one after the other, to the end. With where the value of a checksum stands, if there is one.
fn check_tlvs(tlvs: &[u8]) -> Result<Option<usize>, NoHeader> {
    let mut sum = None;
    let mut left = tlvs;
    while let [kind, high, low, rest @ ..] = left {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind == CRC32C {
            if length != 4 {
                return Err(NoHeader);
            }
            sum = Some(tlvs.len() - rest.len());
        }
        left = rest.get(length..).ok_or(NoHeader)?;
    }
    match left.is_empty() {
        true => Ok(sum),
        false => Err(NoHeader),
    }
}

/// The type of a TLV that has the checksum of the whole header, in which zeros stand in its own place (section 2.2.5).
const CRC32C: u8 = 0x03;

fn check_sum(header: &[u8], at: usize) -> Result<(), NoHeader> {
    let (before, rest) = header.split_at(at);
    let (said, after) = rest.split_first_chunk::<4>().ok_or(NoHeader)?;
    let sum = [before, &[0; 4], after].into_iter().fold(!0, crc32c);
    match u32::from_be_bytes(*said) == !sum {
        true => Ok(()),
        false => Err(NoHeader),
    }
}

/// Castagnoli's (RFC 9260 appendix A), bit by bit: headers are short, and few have it.
fn crc32c(sum: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(sum, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    /// A header of version 2 with what follows its fixed part.
    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, family], &length, rest].concat()
    }

    #[test]
    fn what_is_written_is_read() {
        for version in [Version::V1, Version::V2] {
            for ends in [
                ends("192.0.2.1:4000", "192.0.2.2:80"),
                ends("[2001:db8::1]:4000", "[2001:db8::2]:80"),
                None,
            ] {
                let header = header(version, ends);
                let length = header.len();
                let expected = Header { length, ends };
                assert_eq!(read(&[&header, &b"GET"[..]].concat()), Ok(Some(expected)));
                for end in 0..length {
                    assert_eq!(read(&header[..end]), Ok(None), "{end} of {header:?}");
                }
            }
        }
    }

    #[test]
    fn addresses_of_unknown_clients_are_ignored() {
        let line = b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n";
        let length = line.len();
        assert_eq!(read(line), Ok(Some(Header { length, ends: None })));
        for (command, family, rest) in [
            (0x20, 0x11, &[1; 12][..]),
            (0x20, 0x11, b""),
            (0x21, 0x00, b"x"),
            (0x21, 0x31, &[0; 216]),
        ] {
            let header = v2(command, family, rest);
            let length = header.len();
            assert_eq!(read(&header), Ok(Some(Header { length, ends: None })));
        }
    }

    #[test]
    fn tlvs_are_skipped_where_they_are_well_formed() {
        let addresses = [192, 0, 2, 1, 192, 0, 2, 2, 0x0f, 0xa0, 0, 80];
        let with = |tlvs: &[u8]| read(&v2(0x21, 0x11, &[&addresses[..], tlvs].concat()));
        let expected = ends("192.0.2.1:4000", "192.0.2.2:80");
        let good = with(&[1, 0, 2, b'h', b'2', 4, 0, 0]).unwrap().unwrap();
        assert_eq!(good.ends, expected);
        for bad in [&[1][..], &[1, 0], &[1, 0, 2, b'h']] {
            assert_eq!(with(bad), Err(NoHeader), "{bad:?}");
        }
    }

    #[test]
    fn checksum_must_be_right_where_there_is_one() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        let addresses = [192, 0, 2, 1, 192, 0, 2, 2, 0x0f, 0xa0, 0, 80];
        let tlvs = [1, 0, 2, b'h', b'2', CRC32C, 0, 4, 0, 0, 0, 0, 4, 0, 0];
        let mut header = v2(0x21, 0x11, &[&addresses[..], &tlvs].concat());
        assert_eq!(read(&header), Err(NoHeader));
        let sum = !crc32c(!0, &header);
        let at = FIXED + addresses.len() + 8;
        header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
        let good = read(&header).unwrap().unwrap();
        assert_eq!(good.ends, ends("192.0.2.1:4000", "192.0.2.2:80"));
        header[FIXED] = 193;
        assert_eq!(read(&header), Err(NoHeader));
        let short = [&addresses[..], &[CRC32C, 0, 2, 0, 0]].concat();
        assert_eq!(read(&v2(0x21, 0x11, &short)), Err(NoHeader));
    }

    #[test]
    fn what_is_no_header_is_refused_at_once() {
        for text in [
            "GET / HTTP/1.1\r\n",
            "P",
            "PROXY TCP4 192.0.2.1 192.0.2.2 4000\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 4000 80 x\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 4000 +80\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 4000 65536\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 4000 80\r\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 4000 80\r\n",
            "PROXY TCP5 192.0.2.1 192.0.2.2 4000 80\r\n",
            "PROXY\r\n",
            "proxy UNKNOWN\r\n",
        ] {
            let bytes = text.as_bytes();
            let expected = match text {
                "P" => Ok(None),
                _ => Err(NoHeader),
            };
            assert_eq!(read(bytes), expected, "{text:?}");
        }
        assert_eq!(
            read(&[b"PROXY ".as_slice(), &[b'x'; 101]].concat()),
            Err(NoHeader)
        );
        assert_eq!(read(&v2(0x11, 0x11, &[0; 12])), Err(NoHeader), "version 1");
        assert_eq!(read(&v2(0x22, 0x11, &[0; 12])), Err(NoHeader), "no command");
        assert_eq!(read(&v2(0x21, 0x41, &[0; 12])), Err(NoHeader), "no family");
        assert_eq!(read(&v2(0x21, 0x11, &[0; 11])), Err(NoHeader), "too short");
        assert_eq!(
            read(&v2(0x21, 0x11, &[0; LONGEST])),
            Err(NoHeader),
            "too long"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = read(&bytes);
            let _ = read(&[SIGNATURE, &bytes].concat());
        }
    }
}
