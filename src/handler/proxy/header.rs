//! Headers between the client and the backend: what of them passes, what is added, and what is refused.

use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::authority::{RawTargetAuthority, raw_target_authority};
use pingora::{Error, ErrorType, OrErr, Result};

use crate::exchange::Cx;
use crate::http::{forwarded, hop, websocket};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Makes the client's header one for a backend: hop-by-hop fields out, forwarding fields in, the path as rewritten.
/// `Host` is there already, from `:authority` where the client spoke HTTP/2.
///
/// # Errors
/// When a value cannot stand in a header, which no value from a parsed request can cause.
pub fn prepare(
    cx: &Cx,
    request: &RequestHeader,
    upstream: &mut RequestHeader,
    trusted: bool,
) -> Result<()> {
    if let Some(method) = &cx.method {
        upstream.set_method(method.clone());
    }
    if let Some(target) = &cx.target {
        upstream.set_raw_path(target.as_bytes())?;
    }
    // Only HTTP/1.1 can become another protocol.
    hop::remove_from_request(upstream, upstream.version == Version::HTTP_11);
    // weir has told the client to go on.
    upstream.remove_header(&header::EXPECT);
    if upstream.version == Version::HTTP_11 {
        join_cookies(upstream)?;
    }
    // Names as text go into Pingora's map of spellings as they are; a `HeaderName` would be copied for it.
    if !(trusted && request.headers.contains_key(X_FORWARDED_HOST)) {
        match host_of(upstream) {
            Some(host) => upstream.insert_header("X-Forwarded-Host", host)?,
            None => drop(upstream.remove_header(&X_FORWARDED_HOST)),
        }
    }
    if !(trusted && request.headers.contains_key(X_FORWARDED_PROTO)) {
        let scheme = HeaderValue::from_static(cx.scheme());
        upstream.insert_header("X-Forwarded-Proto", scheme)?;
    }
    if !trusted {
        // It would say whatever the client likes to somebody who takes it for ours.
        upstream.remove_header(&header::FORWARDED);
    }
    let forwarded_for = match trusted {
        true => forwarded::forwarded_for(cx.connection.peer_ip(), &request.headers, true),
        false => cx.connection.forwarded_for.clone(),
    };
    match forwarded_for {
        Some(value) => upstream.insert_header("X-Forwarded-For", value)?,
        None => drop(upstream.remove_header(&X_FORWARDED_FOR)),
    }
    Ok(())
}

/// HTTP/2 may split a cookie header into crumbs, which HTTP/1.1 does not know (RFC 9113 section 8.2.3).
fn join_cookies(upstream: &mut RequestHeader) -> Result<()> {
    let crumbs = upstream.headers.get_all(header::COOKIE);
    if crumbs.iter().nth(1).is_none() {
        return Ok(());
    }
    let crumbs: Vec<&[u8]> = crumbs.iter().map(HeaderValue::as_bytes).collect();
    let cookie = crumbs.join(&b"; "[..]);
    upstream.insert_header(header::COOKIE, cookie)
}

/// The host as the client named it: HTTP/2 says it in `:authority`.
fn host_of(request: &RequestHeader) -> Option<HeaderValue> {
    if let Some(host) = request.headers.get(header::HOST) {
        return Some(host.clone());
    }
    HeaderValue::from_str(request.uri.authority()?.as_str()).ok()
}

/// Gives a request with a URL for a target the form for an origin (RFC 9112 section 3.2.1), which does not say the host twice.
///
/// # Errors
/// None that a target which was parsed before could cause.
pub fn make_origin_form(upstream: &mut RequestHeader) -> Result<()> {
    let target = raw_target_authority(upstream.raw_path());
    let RawTargetAuthority::Absolute {
        authority,
        path_and_query,
        ..
    } = target
    else {
        return Ok(());
    };
    let (authority, mut path) = (authority.to_vec(), path_and_query.to_vec());
    if !path.starts_with(b"/") {
        path.insert(0, b'/');
    }
    let host = HeaderValue::from_bytes(&authority);
    let host = host.or_err(ErrorType::InvalidHTTPHeader, "the authority of a target")?;
    upstream.insert_header(header::HOST, host)?;
    upstream.set_raw_path(&path)
}

/// Takes out of a backend's header what is between it and weir only, its version of HTTP included (RFC 9110 section 6.2).
pub fn clean(response: &mut ResponseHeader) {
    response.set_version(Version::HTTP_11);
    hop::remove_from_response(response);
}

/// Refuses an answer that cannot be passed on for what it is.
///
/// # Errors
/// With a transfer coding other than `chunked`, where the answer ends is anybody's guess (RFC 9112 section 6.3). A 101 that
/// nobody asked for would have the client take what follows for another protocol.
///
/// `key` is what a client is not there to check itself: that the backend has understood a request for a WebSocket.
pub fn check(response: &ResponseHeader, upgrade: bool, key: Option<&HeaderValue>) -> Result<()> {
    let refuse = |why| Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
    let mut codings = response.headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => {}
        _ => return refuse("unknown transfer coding"),
    }
    if response.status == StatusCode::SWITCHING_PROTOCOLS && !upgrade {
        return refuse("protocols switched without a request for it");
    }
    let accept = response.headers.get(header::SEC_WEBSOCKET_ACCEPT);
    if response.status == StatusCode::SWITCHING_PROTOCOLS
        && let Some(key) = key
        && accept.is_none_or(|accept| *accept != websocket::accept(key.as_bytes()).as_str())
    {
        return refuse("a `Sec-WebSocket-Accept` that does not fit");
    }
    Ok(())
}

/// Whether what follows this header goes on for as long as anybody has something to say.
pub(super) fn is_tunnel(response: &ResponseHeader) -> bool {
    let is_events = |value: &HeaderValue| {
        let value = value.as_bytes();
        value.len() >= EVENTS.len() && value[..EVENTS.len()].eq_ignore_ascii_case(EVENTS)
    };
    response.status == StatusCode::SWITCHING_PROTOCOLS
        || response
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(is_events)
}

/// Whether the client asks for a stream of events, as browsers do.
pub(super) fn wants_events(request: &RequestHeader) -> bool {
    let accept = request.headers.get(header::ACCEPT);
    accept.is_some_and(|accept| accept.as_bytes() == EVENTS)
}

const EVENTS: &[u8] = b"text/event-stream";
