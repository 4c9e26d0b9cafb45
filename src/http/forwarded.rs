//! Whose request it is when proxies stand in between, and what weir tells the next one.
//!
//! Anyone can send `X-Forwarded-For`. It is believed, and passed on, only as far as each hop that wrote an entry is a
//! trusted proxy.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

/// The `X-Forwarded-For` to send upstream; `None` when there is nothing to say, and the header is to be removed.
///
/// Behind a trusted proxy the peer is added to what it says; from anyone else the list starts anew. A peer on a unix
/// socket has no address to add.
pub fn forwarded_for(
    peer: Option<IpAddr>,
    headers: &HeaderMap,
    trusted: bool,
) -> Option<HeaderValue> {
    let mut value = Vec::new();
    if trusted {
        for line in headers.get_all(X_FORWARDED_FOR) {
            append(&mut value, line.as_bytes().trim_ascii());
        }
    }
    if let Some(peer) = peer {
        append(&mut value, peer.to_canonical().to_string().as_bytes());
    }
    if value.is_empty() {
        return None;
    }
    // made of header values and an address: always one again
    HeaderValue::try_from(value).ok()
}

fn append(list: &mut Vec<u8>, entry: &[u8]) {
    if entry.is_empty() {
        return;
    }
    if !list.is_empty() {
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(entry);
}

/// The address of the client: from the peer backwards, the first that is not a trusted proxy, or the farthest that is
/// known (nginx's `real_ip_recursive`).
///
/// `X-Forwarded-For` is read, and `Forwarded` (RFC 7239) where there is none: a proxy that writes the one often lets the
/// other through as the client sent it.
pub fn client(peer: IpAddr, headers: &HeaderMap, trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer.to_canonical();
    if !trusted(client) {
        return client;
    }
    let (name, address): (_, fn(&str) -> Option<IpAddr>) =
        match headers.contains_key(X_FORWARDED_FOR) {
            true => (X_FORWARDED_FOR, node),
            false => (FORWARDED, element),
        };
    let lines = headers.get_all(name);
    // a line that is not text ends what can be known, like an entry that is no address
    for line in lines.iter().rev() {
        for entry in line.to_str().unwrap_or_default().rsplit(',') {
            let Some(address) = address(entry.trim()) else {
                return client;
            };
            client = address;
            if !trusted(client) {
                return client;
            }
        }
    }
    client
}

/// `for=` of one element of `Forwarded`. A comma or semicolon within quotes cannot be part of an address.
fn element(text: &str) -> Option<IpAddr> {
    let value = text.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("for")
            .then_some(value.trim())
    })?;
    node(value.trim_matches('"'))
}

/// An address, with or without port, an IPv6 address in brackets or not.
fn node(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = match bare.unwrap_or(text).parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => text.parse::<SocketAddr>().ok()?.ip(),
    };
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn internal(address: IpAddr) -> bool {
        address.to_string().starts_with("10.")
    }

    #[test]
    fn the_list_grows_only_behind_a_trusted_proxy() {
        let told = headers(&[
            (X_FORWARDED_FOR, "1.1.1.1, 2.2.2.2"),
            (X_FORWARDED_FOR, " 3.3.3.3 "),
        ]);
        let peer = Some(ip("10.0.0.1"));
        let all = forwarded_for(peer, &told, true).unwrap();
        assert_eq!(all, "1.1.1.1, 2.2.2.2, 3.3.3.3, 10.0.0.1");
        assert_eq!(forwarded_for(peer, &told, false).unwrap(), "10.0.0.1");
        assert_eq!(
            forwarded_for(peer, &headers(&[]), true).unwrap(),
            "10.0.0.1"
        );
        assert_eq!(
            forwarded_for(peer, &headers(&[(X_FORWARDED_FOR, "")]), true).unwrap(),
            "10.0.0.1"
        );
    }

    #[test]
    fn a_unix_peer_adds_nothing() {
        let told = headers(&[(X_FORWARDED_FOR, "1.1.1.1")]);
        assert_eq!(forwarded_for(None, &told, true).unwrap(), "1.1.1.1");
        assert_eq!(forwarded_for(None, &told, false), None);
    }

    #[test]
    fn mapped_addresses_are_written_plainly() {
        let value = forwarded_for(Some(ip("::ffff:1.2.3.4")), &headers(&[]), false);
        assert_eq!(value.unwrap(), "1.2.3.4");
    }

    #[test]
    fn the_client_is_the_last_that_is_not_trusted() {
        for (peer, list, expected) in [
            ("9.9.9.9", "1.1.1.1", "9.9.9.9"),
            ("10.0.0.1", "1.1.1.1", "1.1.1.1"),
            ("10.0.0.1", "6.6.6.6, 1.1.1.1, 10.0.0.2", "1.1.1.1"),
            ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("10.0.0.1", "6.6.6.6, unknown, 10.0.0.2", "10.0.0.2"),
            ("10.0.0.1", "1.1.1.1:4711", "1.1.1.1"),
            ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
            ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
            ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
            ("::ffff:10.0.0.1", "::ffff:1.1.1.1", "1.1.1.1"),
            ("10.0.0.1", "", "10.0.0.1"),
        ] {
            let headers = headers(&[(X_FORWARDED_FOR, list)]);
            assert_eq!(
                client(ip(peer), &headers, internal),
                ip(expected),
                "{peer}: {list}"
            );
        }
    }

    #[test]
    fn lines_are_read_from_the_last() {
        let told = headers(&[
            (X_FORWARDED_FOR, "6.6.6.6"),
            (X_FORWARDED_FOR, "1.1.1.1, 10.0.0.2"),
        ]);
        assert_eq!(client(ip("10.0.0.1"), &told, internal), ip("1.1.1.1"));
    }

    #[test]
    fn forwarded_counts_where_there_is_no_other() {
        for (list, expected) in [
            ("for=1.1.1.1;proto=https", "1.1.1.1"),
            (
                "For=6.6.6.6, proto=http; FOR=\"1.1.1.1:80\", for=10.0.0.2",
                "1.1.1.1",
            ),
            ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
            ("for=_hidden", "10.0.0.1"),
            ("by=1.1.1.1", "10.0.0.1"),
        ] {
            let told = headers(&[(FORWARDED, list)]);
            assert_eq!(
                client(ip("10.0.0.1"), &told, internal),
                ip(expected),
                "{list}"
            );
        }
        let both = headers(&[(FORWARDED, "for=6.6.6.6"), (X_FORWARDED_FOR, "1.1.1.1")]);
        assert_eq!(client(ip("10.0.0.1"), &both, internal), ip("1.1.1.1"));
    }

    proptest! {
        #[test]
        fn any_text_is_read(list in "[0-9a-f.:,;=\"\\[\\] for]{0,40}") {
            client(ip("10.0.0.1"), &headers(&[(X_FORWARDED_FOR, &list)]), |_| true);
            client(ip("10.0.0.1"), &headers(&[(FORWARDED, &list)]), |_| true);
        }
    }
}
