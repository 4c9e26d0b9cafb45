//! Errors for clients of gRPC, which look for them in `grpc-status` and not in the status of HTTP.

use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::exchange::Reply;

/// Whether the request is one of gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// What says `status` to such a client: trailers only, in one header.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses>
pub(super) fn failure(status: StatusCode) -> Reply {
    let mut reply = Reply::empty(StatusCode::OK);
    let message = status.canonical_reason().unwrap_or("Error");
    // Static names with values made here cannot be refused.
    let _ = reply
        .head
        .insert_header(header::CONTENT_TYPE, "application/grpc");
    let _ = reply
        .head
        .insert_header("grpc-status", HeaderValue::from(code(status)));
    let _ = reply.head.insert_header("grpc-message", message);
    reply
}

/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>
fn code(status: StatusCode) -> u16 {
    const UNKNOWN: u16 = 2;
    const PERMISSION_DENIED: u16 = 7;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    const UNAUTHENTICATED: u16 = 16;
    match status.as_u16() {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}
