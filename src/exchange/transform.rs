//! What becomes of the body of an answer on its way to the client.
//!
//! A policy that changes bodies hands out a [`Transform`] when the header of an answer passes it, for this one body.
//! The body then goes through the transforms of all policies in their order, a piece at a time, whoever made it. An
//! answer without any goes its way as if there were no such thing.

use std::fmt;
use std::io;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use parking_lot::Mutex;
use pingora::http::ResponseHeader;

/// Changes one body, piece by piece.
///
/// A piece is small, some tens of kilobytes, for it is worked at without a pause. What is kept from one piece to the next
/// has to be bounded: there is one of these for each answer in flight.
pub trait Transform: Send {
    /// Takes the next piece; `out` gets what can be sent by now.
    ///
    /// # Errors
    /// When the body is not what its header says. The answer then breaks off.
    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> io::Result<()>;

    /// The next piece may be long in coming: `out` gets all that can go before it.
    ///
    /// # Errors
    /// As [`Transform::push`].
    fn flush(&mut self, _out: &mut Vec<u8>) -> io::Result<()> {
        Ok(())
    }

    /// There is no next piece.
    ///
    /// # Errors
    /// As [`Transform::push`].
    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()>;
}

/// The transforms of one body, in the order of their policies.
#[derive(Default)]
pub struct Transforms(Vec<Mutex<Box<dyn Transform>>>); // nobody waits for a lock: it only makes sharable what is not shared

/// What comes after a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Another one, which is there already.
    Next,
    /// Another one, some time.
    Pause,
    End,
}

impl Transforms {
    pub fn add(&mut self, transform: Box<dyn Transform>) {
        self.0.push(Mutex::new(transform));
    }

    /// Puts a transform before all others.
    pub fn add_first(&mut self, transform: Box<dyn Transform>) {
        self.0.insert(0, Mutex::new(transform));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What a piece becomes, and what was kept of those before it.
    ///
    /// # Errors
    /// When the body is not what its header says.
    pub fn pass(&mut self, piece: Bytes, then: Then) -> io::Result<Bytes> {
        let mut piece = piece;
        for transform in &mut self.0 {
            let transform = transform.get_mut();
            let mut out = Vec::new();
            if !piece.is_empty() {
                transform.push(&piece, &mut out)?;
            }
            match then {
                Then::Next => {}
                Then::Pause => transform.flush(&mut out)?,
                Then::End => transform.finish(&mut out)?,
            }
            piece = out.into();
        }
        Ok(piece)
    }
}

impl fmt::Debug for Transforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transforms({})", self.0.len())
    }
}

/// Another body in place of the one that comes, of which nothing is waited for.
pub struct Instead(Option<Bytes>);

impl Instead {
    pub fn new(body: Bytes) -> Instead {
        Instead(Some(body))
    }
}

impl Transform for Instead {
    fn push(&mut self, _piece: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        out.extend(self.0.take().unwrap_or_default());
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        self.push(&[], out)
    }
}

/// Headers that say something of a body as it was, and of no other.
const OF_THE_OLD: [HeaderName; 6] = [
    header::CONTENT_LENGTH,
    header::ACCEPT_RANGES,
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// Makes a header that of an answer whose body will be another: how long it gets, nobody knows.
pub fn forget_body(head: &mut ResponseHeader) {
    for name in &OF_THE_OLD {
        head.remove_header(name);
    }
}

/// Makes a header that of an answer with quite another body, of which it says nothing yet.
pub fn replace_body(head: &mut ResponseHeader) {
    forget_body(head);
    for name in [
        header::CONTENT_DISPOSITION,
        header::CONTENT_ENCODING,
        header::CONTENT_LANGUAGE,
        header::CONTENT_LOCATION,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::ETAG,
        header::LAST_MODIFIED,
        header::TRANSFER_ENCODING,
    ] {
        head.remove_header(&name);
    }
}

/// Makes a strong entity tag a weak one: the body means the same, but not byte by byte (RFC 9110 section 8.8.1).
pub fn weaken_etag(head: &mut ResponseHeader) {
    let Some(etag) = head.headers.get(header::ETAG) else {
        return;
    };
    if etag.as_bytes().starts_with(b"W/") {
        return;
    }
    let weak = HeaderValue::from_bytes(&[b"W/", etag.as_bytes()].concat());
    if let Ok(weak) = weak {
        // A known name with a value that was one before cannot be refused.
        let _ = head.insert_header("ETag", weak);
    }
}

/// Adds `name` to the headers of a request on which the answer depends, if it is not among them (RFC 9110 section 12.5.5).
pub fn vary(head: &mut ResponseHeader, name: &'static str) {
    let named = head
        .headers
        .get_all(header::VARY)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .any(|one| one == b"*" || one.eq_ignore_ascii_case(name.as_bytes()));
    if !named {
        // As above.
        let _ = head.append_header("Vary", HeaderValue::from_static(name));
    }
}

/// Where a client asks for news of what it got in another coding than the one that it had at first, which it tells by the
/// weak tag, a 304 speaks of that very answer (RFC 9110 section 15.4.5). Nothing else in it does: it has no type.
pub fn confirm(request: &HeaderMap, response: &mut ResponseHeader) {
    let Some(etag) = response.headers.get(header::ETAG) else {
        return;
    };
    let weak = [b"W/", etag.as_bytes()].concat();
    let known = request.get_all(header::IF_NONE_MATCH).iter();
    let is_known = known
        .map(HeaderValue::as_bytes)
        .any(|line| memchr::memmem::find(line, &weak).is_some());
    if is_known {
        weaken_etag(response);
        vary(response, "Accept-Encoding");
    }
}

/// Whether a message is not to be transformed on its way (RFC 9111 sections 5.2.1.6 and 5.2.2.6).
pub fn is_to_stay(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CACHE_CONTROL).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .any(|directive| directive.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
}

/// Whether an answer is one of gRPC, whose trailers have to arrive: behind a body that changes they are lost.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Whether an answer of this status to this method comes without a body, whatever its header says (RFC 9110 section 6.4.1).
pub fn is_bodiless(method: &Method, status: StatusCode) -> bool {
    method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps each piece until the next one.
    #[derive(Default)]
    struct Late {
        kept: Vec<u8>,
        end: &'static str,
    }

    impl Transform for Late {
        fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
            out.append(&mut self.kept);
            self.kept.extend_from_slice(piece);
            Ok(())
        }

        fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
            out.append(&mut self.kept);
            Ok(())
        }

        fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
            out.append(&mut self.kept);
            out.extend_from_slice(self.end.as_bytes());
            Ok(())
        }
    }

    #[test]
    fn what_one_keeps_the_next_gets_later() {
        let mut transforms = Transforms::default();
        assert!(transforms.is_empty());
        for end in ["1", "2"] {
            transforms.add(Box::new(Late {
                end,
                ..Late::default()
            }));
        }
        let mut pass = |piece: &'static str, then| {
            let out = transforms.pass(Bytes::from_static(piece.as_bytes()), then);
            String::from_utf8(out.unwrap().to_vec()).unwrap()
        };
        assert_eq!(pass("a", Then::Next), "");
        assert_eq!(pass("b", Then::Next), "");
        assert_eq!(pass("c", Then::Next), "a");
        assert_eq!(pass("d", Then::Pause), "bcd");
        assert_eq!(pass("", Then::Pause), "");
        assert_eq!(pass("e", Then::End), "e12");
    }

    #[test]
    fn another_body_comes_with_the_first_piece_or_the_end() {
        for pieces in [&["a", "b"][..], &["a"], &[]] {
            let mut transforms = Transforms::default();
            transforms.add(Box::new(Late::default()));
            transforms.add_first(Box::new(Instead::new(Bytes::from_static(b"page"))));
            let mut out = Vec::new();
            for piece in pieces {
                out.extend(transforms.pass(Bytes::from(*piece), Then::Pause).unwrap());
                assert_eq!(out, b"page");
            }
            out.extend(transforms.pass(Bytes::new(), Then::End).unwrap());
            assert_eq!(out, b"page");
        }
    }

    #[test]
    fn headers_follow_the_body() {
        let mut head = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [
            ("Content-Length", "5"),
            ("Accept-Ranges", "bytes"),
            ("Content-Type", "text/plain"),
            ("ETag", "\"a\""),
            ("Vary", "Origin, accept-encoding"),
        ] {
            head.insert_header(name, value).unwrap();
        }
        forget_body(&mut head);
        weaken_etag(&mut head);
        weaken_etag(&mut head);
        vary(&mut head, "Accept-Encoding");
        vary(&mut head, "Accept");
        assert!(!head.headers.contains_key("content-length"));
        assert!(!head.headers.contains_key("accept-ranges"));
        assert_eq!(head.headers["content-type"], "text/plain");
        assert_eq!(head.headers["etag"], "W/\"a\"");
        let vary: Vec<_> = head.headers.get_all("vary").iter().collect();
        assert_eq!(vary, ["Origin, accept-encoding", "Accept"]);
    }
}
