//! Hop-by-hop headers: those that speak about one connection and must not be passed on (RFC 9110 section 7.6.1).
//!
//! `Transfer-Encoding` is one too. In a response it is left alone here: it tells Pingora how to frame the body on the
//! other side, and Pingora takes it off or puts it on to suit the protocol spoken there. From a request it goes, and
//! Pingora puts its own on where a body has no length.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use pingora::http::{RequestHeader, ResponseHeader};

fn is_hop_by_hop(name: &HeaderName) -> bool {
    // One look at each header that is there is cheaper than asking for each of these by its hash.
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "http2-settings"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "upgrade"
    )
}

/// A `Connection` header that names one of these is an attack or a mistake: without them the message would mean
/// something else to the next hop than it meant here.
const END_TO_END: [HeaderName; 3] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING];

/// Removes the hop-by-hop headers of a request and those that its `Connection` names.
///
/// With `keep_upgrade`, a request to change protocols (WebSocket) remains one. On HTTP/2, `TE: trailers` is no
/// hop-by-hop header (RFC 9113 section 8.2.2), and gRPC servers insist on it.
pub fn remove_from_request(request: &mut RequestHeader, keep_upgrade: bool) {
    let is_hop_by_hop = |name: &HeaderName| is_hop_by_hop(name) || *name == TRANSFER_ENCODING;
    let mut names = to_remove(&request.headers, is_hop_by_hop);
    if request.version == Version::HTTP_2
        && request.headers.get(TE).is_some_and(|te| te == "trailers")
    {
        names.retain(|name| *name != TE);
    }
    let upgrade = keep_upgrade && take(&mut names, UPGRADE);
    for name in names {
        request.remove_header(&name);
    }
    if upgrade {
        // a static value under a static name cannot be refused
        let _ = request.insert_header(CONNECTION, UPGRADE_OPTION);
    }
}

/// Removes the hop-by-hop headers of a response and those that its `Connection` names. A 101 that agrees to an upgrade
/// remains one.
pub fn remove_from_response(response: &mut ResponseHeader) {
    let mut names = to_remove(&response.headers, is_hop_by_hop);
    let upgrade = response.status == StatusCode::SWITCHING_PROTOCOLS && take(&mut names, UPGRADE);
    for name in names {
        response.remove_header(&name);
    }
    if upgrade {
        // as above
        let _ = response.insert_header(CONNECTION, UPGRADE_OPTION);
    }
}

/// Whether a `Connection` header names `Upgrade`.
pub fn names_upgrade(headers: &HeaderMap) -> bool {
    options(headers).any(|option| option.eq_ignore_ascii_case(b"upgrade"))
}

const UPGRADE_OPTION: HeaderValue = HeaderValue::from_static("Upgrade");

/// The headers to remove. Most messages have none of these or a plain `Connection`.
fn to_remove(headers: &HeaderMap, is_hop_by_hop: impl Fn(&HeaderName) -> bool) -> Vec<HeaderName> {
    let mut names: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_hop_by_hop(name))
        .cloned()
        .collect();
    if names.contains(&CONNECTION) {
        let nominated = options(headers)
            .filter(|option| !names_no_other(option))
            .filter_map(|option| HeaderName::from_bytes(option).ok())
            .filter(|name| headers.contains_key(name) && !END_TO_END.contains(name));
        names.extend(nominated);
    }
    names
}

/// What the `Connection` headers consist of.
fn options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let values = headers.get_all(CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
}

/// The two options that nearly every `Connection` consists of: `close` is no header, `Keep-Alive` goes anyway.
fn names_no_other(option: &[u8]) -> bool {
    option.eq_ignore_ascii_case(b"keep-alive") || option.eq_ignore_ascii_case(b"close")
}

/// Takes `name` off the list, however often it stands there; whether it did.
fn take(names: &mut Vec<HeaderName>, name: HeaderName) -> bool {
    let before = names.len();
    names.retain(|other| *other != name);
    names.len() < before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, lines: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.set_version(version);
        for (name, value) in lines {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn hop_by_hop_and_nominated_headers_go() {
        let mut request = request(
            Version::HTTP_11,
            &[
                ("Host", "a"),
                ("Connection", "close, X-Secret"),
                ("Connection", "x-other , keep-alive, ,"),
                ("Keep-Alive", "timeout=5"),
                ("Proxy-Connection", "keep-alive"),
                ("Proxy-Authorization", "Basic x"),
                ("TE", "trailers"),
                ("Trailer", "X-Sum"),
                ("Upgrade", "websocket"),
                ("HTTP2-Settings", "x"),
                ("X-Secret", "1"),
                ("X-Other", "2"),
                ("X-Kept", "3"),
                ("Cookie", "a=b"),
            ],
        );
        remove_from_request(&mut request, false);
        assert_eq!(names(&request.headers), ["cookie", "host", "x-kept"]);
    }

    #[test]
    fn the_header_case_map_stays_in_step() {
        let mut request = request(
            Version::HTTP_11,
            &[
                ("HOST", "a"),
                ("CONNECTION", "X-Secret"),
                ("X-Secret", "1"),
                ("X-Kept", "3"),
            ],
        );
        remove_from_request(&mut request, false);
        assert_eq!(request.case_header_iter().count(), 2);
    }

    #[test]
    fn framing_and_host_cannot_be_nominated() {
        let mut request = request(
            Version::HTTP_11,
            &[
                ("Host", "a"),
                ("Content-Length", "3"),
                ("Transfer-Encoding", "chunked"),
                ("Connection", "host, content-length, transfer-encoding"),
            ],
        );
        remove_from_request(&mut request, false);
        assert_eq!(names(&request.headers), ["content-length", "host"]);
    }

    #[test]
    fn an_upgrade_remains_when_asked_for() {
        let lines = [
            ("Connection", "Upgrade, X-Secret"),
            ("Upgrade", "websocket"),
            ("X-Secret", "1"),
        ];
        let mut request = request(Version::HTTP_11, &lines);
        remove_from_request(&mut request, true);
        assert_eq!(names(&request.headers), ["connection", "upgrade"]);
        assert_eq!(request.headers[CONNECTION], "Upgrade");
        remove_from_request(&mut request, false);
        assert_eq!(names(&request.headers), [""; 0]);
    }

    #[test]
    fn a_connection_header_alone_is_no_upgrade() {
        let mut request = request(Version::HTTP_11, &[("Connection", "upgrade")]);
        remove_from_request(&mut request, true);
        assert_eq!(names(&request.headers), [""; 0]);
    }

    #[test]
    fn te_trailers_is_kept_on_http2_only() {
        let lines = [("TE", "trailers")];
        let mut h2 = request(Version::HTTP_2, &lines);
        remove_from_request(&mut h2, false);
        assert_eq!(names(&h2.headers), ["te"]);
        let mut h1 = request(Version::HTTP_11, &lines);
        remove_from_request(&mut h1, false);
        assert_eq!(names(&h1.headers), [""; 0]);
    }

    #[test]
    fn responses() {
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("Connection", "close, X-Hop"),
            ("Upgrade", "h2"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Authenticate", "Basic"),
            ("X-Hop", "1"),
            ("Content-Type", "text/plain"),
            ("Transfer-Encoding", "chunked"),
        ] {
            response.append_header(name, value).unwrap();
        }
        remove_from_response(&mut response);
        assert_eq!(
            names(&response.headers),
            ["content-type", "transfer-encoding"]
        );
    }

    #[test]
    fn a_101_keeps_its_upgrade() {
        let mut response = ResponseHeader::build(101, None).unwrap();
        response
            .append_header("Connection", "upgrade, X-Hop")
            .unwrap();
        response.append_header("Upgrade", "websocket").unwrap();
        response.append_header("X-Hop", "1").unwrap();
        remove_from_response(&mut response);
        assert_eq!(names(&response.headers), ["connection", "upgrade"]);
    }
}
