//! `Expect: 100-continue` (RFC 9110 section 10.1.1): a client that waits for a word before it sends a body.

use http::{Version, header};
use pingora::http::RequestHeader;

/// Whether the client waits to be told to go on. On HTTP/2 nobody does: it is spared what it would wait for.
pub fn waits_to_continue(request: &RequestHeader) -> bool {
    let expect = request.headers.get(header::EXPECT);
    request.version == Version::HTTP_11
        && expect.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}
