//! Where a request goes: what it asks for, whether it can be understood at all, and the route that takes it.

use std::sync::Arc;

use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Method, Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::authority::validate_request_authority;

use super::length::{field_count, line_length};
use super::{Chosen, Exchange};
use crate::exchange::{Cx, Failure};
use crate::http::head::LONGEST_METHOD;
use crate::http::{forwarded, hop, host, path};
use crate::net::Connection;
use crate::router::RequestFacts;
use crate::runtime::Snapshot;
use crate::tls::Verdict;

/// Removes fields with an underscore in their name, which many programs behind take for one with a hyphen (nginx:
/// `underscores_in_headers off`). Before anybody looks at them.
pub(super) fn remove_underscored(request: &mut RequestHeader) {
    let is_underscored = |name: &&HeaderName| name.as_str().contains('_');
    if request.headers.keys().all(|name| !is_underscored(&name)) {
        return;
    }
    let names = request.headers.keys().filter(is_underscored);
    for name in names.cloned().collect::<Vec<_>>() {
        request.remove_header(&name);
    }
}

/// Removes `Upgrade` where it asks for nothing: `Connection` must name it, in HTTP/1.1 (RFC 9110 section 7.8). A proxy in front
/// that knows no upgrades may have let it through, on a connection that others share. Pingora looks at the field alone.
pub(super) fn remove_unasked_upgrade(request: &mut RequestHeader) {
    if request.headers.contains_key(header::UPGRADE)
        && !(request.version == Version::HTTP_11 && hop::names_upgrade(&request.headers))
    {
        request.remove_header(&header::UPGRADE);
    }
}

/// Finds out whose request this is and where it is to go.
pub(super) fn route(request: &RequestHeader, x: &mut Exchange) -> std::result::Result<(), Failure> {
    let cx = &mut x.cx;
    cx.client = client(request, cx, &x.snapshot);
    acceptable(request, cx)?;
    let authority = authority(request);
    if authority.is_none() && request.version == Version::HTTP_11 {
        return Err(Failure::BadRequest); // RFC 9112 section 3.2
    }
    host::normalise_into(authority.unwrap_or_default(), &mut cx.host)
        .map_err(|_| Failure::BadRequest)?;
    if request.method == Method::OPTIONS && request.uri.path() == "*" {
        // It asks the server as a whole, whoever is named (RFC 9110 section 9.3.7): no site answers it.
        return refuse_client(&cx.connection);
    }
    path::normalise_into(request.uri.path(), &mut cx.path).map_err(|_| Failure::BadRequest)?;
    refuse_client(&cx.connection)?;
    let secure = cx.connection.tls.is_some();
    let site = x
        .snapshot
        .router
        .find_site(&cx.connection.listener, &cx.host)
        .ok_or(Failure::NoSite { secure })?;
    if let Some(tls) = &cx.connection.tls
        && !x
            .snapshot
            .may_reach(&cx.connection.listener, &tls.server_name, &cx.host, site)
    {
        return Err(Failure::Misdirected);
    }
    cx.site = Some(site.name.clone());
    cx.server_name.clone_from(&site.server_name);
    let mut captures = Vec::new();
    match site.find_route(&facts(request, cx, &cx.path), &mut captures) {
        Some(route) => {
            cx.captures = captures;
            x.chosen = Chosen::Route(route.clone());
            Ok(())
        }
        None => {
            x.chosen = Chosen::Nothing(site.chain.clone());
            Err(Failure::NoRoute)
        }
    }
}

/// What no site is asked about.
pub(super) fn acceptable(request: &RequestHeader, cx: &Cx) -> std::result::Result<(), Failure> {
    if let Some(limits) = cx.connection.limits {
        if line_length(request) > limits.line {
            return Err(Failure::UriTooLong);
        }
        if field_count(&request.headers) > limits.fields || cx.request_length > limits.head as u64 {
            return Err(Failure::HeaderTooLarge);
        }
        if request.method.as_str().len() > LONGEST_METHOD {
            return Err(Failure::NotImplemented);
        }
    }
    let scheme = request.uri.scheme();
    if scheme.is_some_and(|scheme| ![Scheme::HTTP, Scheme::HTTPS].contains(scheme)) {
        return Err(Failure::BadRequest);
    }
    match request.method {
        // A tunnel, and an answer with the credentials of the request in it (RFC 9110 section 9.3.8).
        Method::CONNECT | Method::TRACE => Err(Failure::MethodNotAllowed),
        _ if cx.connection.limits.is_some() && !is_sound(request) => Err(Failure::BadRequest),
        _ => Ok(()),
    }
}

/// Whether a request of HTTP/2 says what it is in one way only. Of HTTP/1, the gate of the connection has seen to that.
fn is_sound(request: &RequestHeader) -> bool {
    let path = request.raw_path();
    let is_websocket = request.headers.contains_key(header::UPGRADE);
    let lengths = request.headers.get_all(header::CONTENT_LENGTH).iter();
    (path.starts_with(b"/") || path == b"*")
        && !path.iter().any(|byte| byte.is_ascii_control() || *byte == b' ')
        // A tunnel has no length (RFC 9110 section 9.3.6).
        && lengths.count() <= usize::from(!is_websocket)
        && !request.headers.values().any(is_padded)
        // `Host` beside `:authority` says the same, or nothing (RFC 9113 section 8.3.1).
        && validate_request_authority(request).is_ok()
        && authority(request).is_some()
}

/// Whether blanks stand before or behind a value, which HTTP/1 would take away (RFC 9113 section 8.2.1).
fn is_padded(value: &HeaderValue) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    is_blank(bytes.first()) || is_blank(bytes.last())
}

/// Turns clients away that have not shown what their listener asks for.
fn refuse_client(connection: &Connection) -> std::result::Result<(), Failure> {
    let shown = connection.tls.as_ref().and_then(|tls| tls.client.as_ref());
    match shown.map(|shown| (shown.verdict(), shown.is_required())) {
        Some((Verdict::Failed(_), _)) => Err(Failure::ClientCert),
        Some((Verdict::None, true)) => Err(Failure::NoClientCert),
        _ => Ok(()),
    }
}

/// What routes look at, for a request of this path.
pub(super) fn facts<'a>(request: &'a RequestHeader, cx: &Cx, path: &'a str) -> RequestFacts<'a> {
    RequestFacts {
        method: &request.method,
        path,
        headers: &request.headers,
        query: request.uri.query(),
        client: cx.client,
    }
}

/// Who is asked: HTTP/2 and absolute targets say it in the URI, all others in `Host`.
pub(super) fn authority(request: &RequestHeader) -> Option<&[u8]> {
    if let Some(authority) = request.uri.authority() {
        return Some(authority.as_str().as_bytes());
    }
    request.headers.get(header::HOST).map(HeaderValue::as_bytes)
}

/// The client's address: the peer, or whom a trusted proxy names.
fn client(request: &RequestHeader, cx: &Cx, snapshot: &Snapshot) -> Option<std::net::IpAddr> {
    let peer = cx.connection.peer_ip();
    if snapshot.trusted_proxies.is_empty() {
        return peer;
    }
    let trusted = |ip| {
        snapshot
            .trusted_proxies
            .iter()
            .any(|range| range.contains(ip))
    };
    forwarded::client(peer?, &request.headers, trusted).into()
}

/// Chooses the route that a request for `path` would take on the same site, for the same request (nginx: an internal
/// redirect). False, and nothing has changed, where it is none or the one that was chosen.
pub(super) fn reroute(request: &RequestHeader, x: &mut Exchange, path: &str) -> bool {
    let Chosen::Route(chosen) = &x.chosen else {
        return false;
    };
    let mut captures = Vec::new();
    let site = x
        .snapshot
        .router
        .find_site(&x.cx.connection.listener, &x.cx.host);
    let facts = facts(request, &x.cx, path);
    let found = site.and_then(|site| site.find_route(&facts, &mut captures));
    let Some(route) = found.filter(|route| !Arc::ptr_eq(route, chosen)) else {
        return false;
    };
    x.cx.redirect(path, request.uri.query());
    x.cx.captures = captures;
    x.chosen = Chosen::Route(route.clone());
    true
}
