//! What variables are worth for one request.

use std::fmt::Display;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{HeaderMap, HeaderName, Version, header};
use pingora::http::RequestHeader;

use super::names::TcpFact;
use super::{Var, View};
use crate::exchange::cx::Try;
use crate::exchange::{Cx, date};
use crate::tls::ClientFact;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl Var {
    /// Appends the value, bytes of headers as they are. `None`, with `out` untouched, if there is no value.
    pub fn write(&self, view: &View<'_>, out: &mut Vec<u8>) -> Option<()> {
        let cx = view.cx;
        let connection = &cx.connection;
        match self {
            Var::Args => put(args(view)?, out),
            Var::Arg(name) => put(arg(args(view)?, name)?, out),
            Var::BinaryRemoteAddr => match cx.client.map(|ip| ip.to_canonical()) {
                Some(IpAddr::V4(ip)) => put(ip.octets(), out),
                Some(IpAddr::V6(ip)) => put(ip.octets(), out),
                None => address(None, out),
            },
            Var::BodyBytesSent => number(cx.body_bytes_sent, out),
            Var::BytesSent => number(cx.bytes_sent, out),
            Var::Capture(index) => put(cx.captures.get(*index)?, out),
            Var::Connection => number(connection.number, out),
            Var::ConnectionRequests => number(connection.requests.load(Ordering::Relaxed), out),
            Var::ConnectionTime => {
                let until = cx.ended.unwrap_or(cx.started);
                date::seconds(until.saturating_duration_since(connection.since?), out);
            }
            Var::Claim(index) => put(cx.claims.get(*index)?.as_deref()?, out),
            Var::Cookie(name) => put(cookie(&view.request.headers, name)?, out),
            Var::Failure => put(cx.failure?.word(), out),
            Var::Host => put(some(&cx.host)?, out),
            Var::Http(name) => joined(&view.request.headers, name, out)?,
            Var::Http2 => put(http2(view), out),
            Var::Https => put(if connection.tls.is_some() { "on" } else { "" }, out),
            Var::IsArgs => put(if args(view).is_some() { "?" } else { "" }, out),
            Var::LimitConn => put(cx.limit_conn?, out),
            Var::LimitReq => put(cx.limit_req?, out),
            Var::Listener => put(some(&*connection.listener)?, out),
            Var::Msec => date::seconds(date::since_epoch(view.wall), out),
            Var::Named(index) => put(cx.named.value(*index, view)?, out),
            Var::Pid => number(std::process::id(), out),
            Var::ProxyAddXForwardedFor => {
                if joined(&view.request.headers, &X_FORWARDED_FOR, out).is_some() {
                    put(", ", out);
                }
                address(cx.client, out);
            }
            Var::ProxyProtocolAddr => address(Some(by_proxy(connection.peer, cx)?.ip()), out),
            Var::ProxyProtocolPort => number(by_proxy(connection.peer, cx)?.port(), out),
            Var::ProxyProtocolServerAddr => {
                address(Some(by_proxy(connection.local, cx)?.ip()), out)
            }
            Var::ProxyProtocolServerPort => number(by_proxy(connection.local, cx)?.port(), out),
            Var::RealipRemoteAddr => address(connection.peer.map(|peer| peer.ip()), out),
            Var::RealipRemotePort => number(connection.peer?.port(), out),
            Var::RemoteAddr => address(cx.client, out),
            Var::RemotePort => number(client_port(cx)?, out),
            // a name that was merely claimed is not the user's
            Var::RemoteUser => put(cx.user.as_deref()?, out),
            Var::Request => match &cx.unread {
                Some(line) => put(some(line)?, out),
                None => request_line(view.request, out),
            },
            Var::RequestCompletion => put(if is_complete(cx) { "OK" } else { "" }, out),
            Var::RequestId => put(cx.request_id(), out),
            Var::RequestLength => number(cx.request_length, out),
            Var::RequestMethod => match &cx.unread {
                Some(line) => put(some(words(line)[0])?, out),
                None => put(view.request.method.as_str(), out),
            },
            Var::RequestTime => date::seconds(request_time(cx)?, out),
            Var::RequestUri => match &cx.unread {
                Some(line) => put(some(words(line)[1])?, out),
                None => {
                    let whole = cx.page_of.as_deref();
                    put(whole.unwrap_or_else(|| request_uri(view.request)), out);
                }
            },
            Var::Scheme => put(cx.scheme(), out),
            Var::SentHttp(name) => joined(&view.response?.headers, name, out)?,
            Var::ServerAddr => address(connection.local.map(|local| local.ip()), out),
            Var::ServerName => put(cx.server_name.as_deref()?, out),
            Var::ServerPort => number(connection.local?.port(), out),
            Var::ServerProtocol => match &cx.unread {
                Some(line) => put(some(words(line)[2])?, out),
                None => put(protocol(view.request.version), out),
            },
            Var::Site => put(cx.site.as_deref()?, out),
            Var::SslAlpnProtocol => put(some(connection.tls.as_ref()?.alpn)?, out),
            Var::SslCipher => put(connection.tls.as_ref()?.cipher, out),
            Var::SslClient(fact) => {
                let mut text = String::new();
                match &connection.tls.as_ref()?.client {
                    Some(shown) => shown.write(*fact, view.wall, &mut text)?,
                    None if *fact == ClientFact::Verify => text.push_str("NONE"),
                    None => return None,
                }
                put(text, out);
            }
            Var::SslCurve => put(some(connection.tls.as_ref()?.group)?, out),
            Var::SslProtocol => put(connection.tls.as_ref()?.version, out),
            Var::SslServerName => put(some(&connection.tls.as_ref()?.server_name)?, out),
            Var::SslSessionReused => match connection.tls.as_ref()?.resumed {
                true => put("r", out),
                false => put(".", out),
            },
            Var::Status => {
                // before an answer is sent, it is the one that is about to be
                let coming = || view.response.map_or(0, |response| response.status.as_u16());
                let known = Some(status(cx)).filter(|status| *status != 0);
                three_digits(known.unwrap_or_else(coming), out);
            }
            Var::TcpInfo(fact) => {
                let info = connection.tcp_info()?;
                let fact = match fact {
                    TcpFact::RcvSpace => info.rcv_space,
                    TcpFact::Rtt => info.rtt,
                    TcpFact::RttVar => info.rttvar,
                    TcpFact::SndCwnd => info.snd_cwnd,
                };
                number(fact, out);
            }
            Var::TimeIso8601 => date::iso8601(view.wall, out),
            Var::TimeLocal => date::common(view.wall, out),
            Var::UpstreamAddr => listed(cx, out, |attempt, out| put(&*attempt.backend, out))?,
            Var::UpstreamBytesReceived => {
                let received = |attempt: &Try| attempt.head + attempt.length;
                listed(cx, out, |attempt, out| number(received(attempt), out))?;
            }
            Var::UpstreamConnectTime => times(cx, out, |attempt| attempt.connect)?,
            Var::UpstreamCookie(name) => put(set_cookie(cx.upstream.as_ref()?, name)?, out),
            Var::UpstreamHeaderTime => times(cx, out, |attempt| attempt.header)?,
            Var::UpstreamHttp(name) => joined(cx.upstream.as_ref()?, name, out)?,
            Var::UpstreamResponseLength => {
                listed(cx, out, |attempt, out| number(attempt.length, out))?;
            }
            Var::UpstreamResponseTime => times(cx, out, |attempt| attempt.response)?,
            Var::UpstreamStatus => listed(cx, out, |attempt, out| match attempt.status {
                0 => out.push(b'-'),
                status => number(status, out),
            })?,
            Var::Uri => put(some(&cx.path)?, out),
        }
        Some(())
    }
}

/// The status that the client got or, where nothing could be sent any more, that stands for the reason (nginx logs
/// 499 for a client that went away); 0 when there is neither.
pub fn status(cx: &Cx) -> u16 {
    match cx.failure {
        Some(failure) if cx.status == 0 => failure.status(),
        _ => cx.status,
    }
}

/// From the complete request header to the last byte of the answer.
pub fn request_time(cx: &Cx) -> Option<Duration> {
    Some(cx.ended?.saturating_duration_since(cx.started))
}

/// Path and query as the client sent them, without the scheme and host of an absolute form.
pub fn request_uri(request: &RequestHeader) -> &[u8] {
    let target = request.raw_path();
    if target.first() == Some(&b'/') {
        return target;
    }
    let Some(scheme) = memchr::memmem::find(target, b"://") else {
        return target;
    };
    let after = &target[scheme + 3..];
    match memchr::memchr2(b'/', b'?', after) {
        Some(path) => &after[path..],
        None => b"/",
    }
}

/// `HTTP/1.1` and the like.
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "HTTP/0.9",
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    }
}

/// Appends all values of a header, joined as RFC 9110 section 5.3 allows (cookies: RFC 6265 section 5.4).
pub fn joined(headers: &HeaderMap, name: &HeaderName, out: &mut Vec<u8>) -> Option<()> {
    let mut values = headers.get_all(name).iter();
    put(values.next()?.as_bytes(), out);
    let separator = if name == header::COOKIE { "; " } else { ", " };
    for value in values {
        put(separator, out);
        put(value.as_bytes(), out);
    }
    Some(())
}

/// Appends the address, or `unix:` for the nameless end of a unix socket, as nginx does.
pub fn address(ip: Option<IpAddr>, out: &mut Vec<u8>) {
    match ip.map(|ip| ip.to_canonical()) {
        None => put("unix:", out),
        Some(IpAddr::V4(ip)) => {
            let [first, rest @ ..] = ip.octets();
            number(first, out);
            for octet in rest {
                out.push(b'.');
                number(octet, out);
            }
        }
        Some(IpAddr::V6(ip)) => display(ip, out),
    }
}

fn put(value: impl AsRef<[u8]>, out: &mut Vec<u8>) {
    out.extend_from_slice(value.as_ref());
}

fn number(value: impl itoa::Integer, out: &mut Vec<u8>) {
    put(itoa::Buffer::new().format(value), out);
}

fn display(value: impl Display, out: &mut Vec<u8>) {
    // a Vec takes everything
    let _ = write!(out, "{value}");
}

/// nginx writes a status that never came to be as `000`.
fn three_digits(status: u16, out: &mut Vec<u8>) {
    match status {
        0 => put("000", out),
        _ => number(status, out),
    }
}

/// The text, if there is any.
fn some<T: AsRef<[u8]> + ?Sized>(text: &T) -> Option<&T> {
    (!text.as_ref().is_empty()).then_some(text)
}

/// What stands where method, target and protocol should, in a line that could not be read; empty where nothing does.
fn words(line: &[u8]) -> [&[u8]; 3] {
    let (line, protocol) = match memchr::memmem::rfind(line, b" HTTP/") {
        Some(end) => (&line[..end], &line[end + 1..]),
        None => (line, &line[line.len()..]),
    };
    let (method, target) = match memchr::memchr(b' ', line) {
        Some(end) => (&line[..end], &line[end + 1..]),
        None => (line, &line[line.len()..]),
    };
    [method, target, protocol]
}

fn request_line(request: &RequestHeader, out: &mut Vec<u8>) {
    put(request.method.as_str(), out);
    out.push(b' ');
    put(request.raw_path(), out);
    out.push(b' ');
    put(protocol(request.version), out);
}

/// The query of the request, as a filter rewrote it; none if it is empty.
fn args<'a>(view: &View<'a>) -> Option<&'a [u8]> {
    let target = match &view.cx.target {
        Some(target) => target.as_bytes(),
        None => view.request.raw_path(),
    };
    let query = &target[memchr::memchr(b'?', target)? + 1..];
    (!query.is_empty()).then_some(query)
}

/// The value of the first parameter with that name. As in nginx, one without `=` has no value.
fn arg<'a>(query: &'a [u8], name: &str) -> Option<&'a [u8]> {
    query.split(|&b| b == b'&').find_map(|parameter| {
        let equals = memchr::memchr(b'=', parameter)?;
        let (key, value) = (&parameter[..equals], &parameter[equals + 1..]);
        key.eq_ignore_ascii_case(name.as_bytes()).then_some(value)
    })
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    crate::http::cookie::pairs(headers)
        .find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes()))
        .map(|(_, value)| value)
}

/// The value of a cookie that an answer sets; the last one counts, as for the client.
fn set_cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let cookies = headers.get_all(header::SET_COOKIE).iter();
    let pairs = cookies.filter_map(|cookie| {
        let pair = cookie.as_bytes().split(|&b| b == b';').next()?;
        let equals = memchr::memchr(b'=', pair)?;
        Some((&pair[..equals], &pair[equals + 1..]))
    });
    let mut named = pairs.filter(|(key, _)| key.trim_ascii().eq_ignore_ascii_case(name.as_bytes()));
    named.next_back().map(|(_, value)| value.trim_ascii())
}

/// Whether the client got all of an answer: a failure that came to be after that is of another status.
fn is_complete(cx: &Cx) -> bool {
    cx.failure
        .is_none_or(|failure| failure.status() == cx.status)
}

/// As nginx calls HTTP/2: by what it was agreed on.
fn http2(view: &View<'_>) -> &'static str {
    match (view.request.version, &view.cx.connection.tls) {
        (Version::HTTP_2, Some(_)) => "h2",
        (Version::HTTP_2, None) => "h2c",
        _ => "",
    }
}

/// One end of the connection, if a proxy in front has named it.
fn by_proxy(end: Option<SocketAddr>, cx: &Cx) -> Option<SocketAddr> {
    end.filter(|_| cx.connection.by_proxy)
}

/// The port the client itself uses, not that of a trusted proxy before it.
fn client_port(cx: &Cx) -> Option<u16> {
    let peer = cx.connection.peer?;
    (cx.client == Some(peer.ip().to_canonical())).then_some(peer.port())
}

/// Appends something about each try as nginx lists them: `a, b`.
fn listed(cx: &Cx, out: &mut Vec<u8>, write: impl Fn(&Try, &mut Vec<u8>)) -> Option<()> {
    let (first, rest) = cx.tries.split_first()?;
    write(first, out);
    for attempt in rest {
        put(", ", out);
        write(attempt, out);
    }
    Some(())
}

/// The same for a time, with `-` where a try did not come that far.
fn times(cx: &Cx, out: &mut Vec<u8>, time: impl Fn(&Try) -> Option<Duration>) -> Option<()> {
    listed(cx, out, |attempt, out| match time(attempt) {
        Some(time) => date::seconds(time, out),
        None => out.push(b'-'),
    })
}
