//! How long headers are: as they were sent on HTTP/1, or would have been.

use http::{HeaderMap, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;

/// Bytes of the request's header, as sent on HTTP/1; what it would have been there on HTTP/2.
pub(super) fn request_length(session: &ServerSession) -> u64 {
    if let Some(http1) = session.as_http1() {
        return http1.get_headers_raw_bytes().len() as u64;
    }
    let request = session.req_header();
    let fields = &request.headers;
    let between = (more_crumbs(fields) * ("cookie: \r\n".len() - "; ".len())) as u64;
    (line_length(request) + "\r\n\r\n".len()) as u64 + fields_length(fields) - between
}

/// How many fields a request of HTTP/2 would have on HTTP/1.
pub(super) fn field_count(fields: &HeaderMap) -> usize {
    fields.len() - more_crumbs(fields)
}

/// Pieces of a cookie field beyond the first: together they are one field (RFC 9113 section 8.2.3).
fn more_crumbs(fields: &HeaderMap) -> usize {
    let crumbs = fields.get_all(header::COOKIE).iter().count();
    crumbs.saturating_sub(1)
}

/// Bytes of the request line, as it is on HTTP/1.
pub(super) fn line_length(request: &RequestHeader) -> usize {
    request.method.as_str().len() + request.raw_path().len() + "  HTTP/1.1".len()
}

pub(super) fn header_length(response: &ResponseHeader) -> u64 {
    status_line_length(response) + fields_length(&response.headers)
}

/// With the empty line at the end of the header.
pub(super) fn status_line_length(response: &ResponseHeader) -> u64 {
    let reason = response.status.canonical_reason().map_or(0, str::len);
    ("HTTP/1.1 200 \r\n\r\n".len() + reason) as u64
}

pub(super) fn fields_length(fields: &HeaderMap) -> u64 {
    fields
        .iter()
        .map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64)
        .sum()
}
