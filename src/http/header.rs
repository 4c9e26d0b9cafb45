//! Header names from the configuration, and header values made of text that a client can influence.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode, utf8_percent_encode};

/// Headers that belong to one connection or frame one message (RFC 9110 section 7.6.1, RFC 9112 section 6). weir
/// makes them itself; one from the configuration would break the connection or desynchronise it.
const FRAMING: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
];

/// The name of a header that the configuration may set, in the case in which it is written (HTTP/1 shows it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    name: HeaderName,
    written: Bytes,
}

impl Name {
    /// The error is a message for the configuration's author.
    pub fn parse(written: &str) -> Result<Name, String> {
        let Ok(name) = HeaderName::from_bytes(written.as_bytes()) else {
            return Err(format!("`{written}` is not a header name"));
        };
        if FRAMING.contains(&name.as_str()) {
            return Err(format!(
                "`{written}` frames messages on one connection; weir makes it itself"
            ));
        }
        Ok(Name {
            name,
            written: Bytes::copy_from_slice(written.as_bytes()),
        })
    }

    /// For look-ups and removal.
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// For insertion: Pingora keeps the case of a name that it gets as bytes.
    pub fn written(&self) -> Bytes {
        self.written.clone()
    }
}

/// Whether the header belongs to one connection or frames one message.
pub fn is_framing(name: &HeaderName) -> bool {
    FRAMING.contains(&name.as_str())
}

/// What must not stand in a URI as it is (RFC 3986, sections 2.2 and 2.3): neither reserved nor unreserved. `%`
/// stays, for text that holds it is taken as encoded already. The backslash is in, for browsers read it as a slash.
const NOT_IN_URI: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Like [`NOT_IN_URI`], in a query: `#` would end it.
const NOT_IN_QUERY: &AsciiSet = &NOT_IN_URI.add(b'#');

/// `text` as a header value. Control characters, which could end the line and start another header, are
/// percent-encoded; everything else passes as it is.
pub fn value(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or_else(|_| {
        let encoded: String = percent_encode(text, CONTROLS).collect();
        HeaderValue::from_str(&encoded).expect("percent-encoding leaves visible ASCII and blanks")
    })
}

/// `text` as the value of `Location`: percent-encoded where it is not a URI.
pub fn location(text: &str) -> HeaderValue {
    let encoded: String = utf8_percent_encode(text, NOT_IN_URI).collect();
    HeaderValue::from_str(&encoded).expect("percent-encoding leaves visible ASCII")
}

/// A query as it stands in a request line.
pub fn encode_query(query: &str) -> impl Iterator<Item = &str> {
    utf8_percent_encode(query, NOT_IN_QUERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_case_and_leaves_framing_alone() {
        let name = Name::parse("X-Request-ID").unwrap();
        assert_eq!(name.name(), "x-request-id");
        assert_eq!(name.written(), "X-Request-ID");
        for refused in [
            "",
            "a b",
            "a:",
            "ä",
            "Content-Length",
            "transfer-encoding",
            "TE",
        ] {
            assert!(Name::parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_value_cannot_start_another_header() {
        assert_eq!(value(b"plain text"), "plain text");
        assert_eq!(value(b"tab\tstays"), "tab\tstays");
        assert_eq!(value(b"a\r\nSet-Cookie: x"), "a%0D%0ASet-Cookie: x");
        assert_eq!(value(b"\x7f\0"), "%7F%00");
        assert_eq!(value("ü".as_bytes()).as_bytes(), "ü".as_bytes());
    }

    #[test]
    fn a_location_is_a_uri() {
        assert_eq!(
            location("https://a.example/x?y=%20#z"),
            "https://a.example/x?y=%20#z"
        );
        assert_eq!(location("/a b\r\nX: y"), "/a%20b%0D%0AX:%20y");
        assert_eq!(location("/ü\\"), "/%C3%BC%5C");
    }
}
