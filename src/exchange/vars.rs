//! Run-time variables (`$host`, `$uri`, ...) with nginx's names and meanings, and templates made of them.
//!
//! Names are resolved while a configuration is compiled, so that a misspelt one is a load error and a request only
//! copies bytes. A variable without a value (no such header, not proxied, ...) contributes nothing to a text; the
//! access log writes `-` in its place, as nginx does.
//!
//! Some variables are known only late: `$status` once there is a response, `$request_time` once it has been sent.
//! Where a text is used before that, they would always be empty, which nobody means: a feature names the [`Stage`]
//! at which it renders ([`Text::compile_for`]), and a variable of a later stage is a load error.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};

use super::cx::Try;
use super::{Cx, date};
use crate::build::Build;
use crate::issue::At;
use crate::tls::ClientFact;
use crate::value::template::{Part, Template};

/// What a text is rendered from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub cx: &'a Cx,
    /// The request as the client sent it.
    pub request: &'a RequestHeader,
    /// The response as the client gets it, once there is one.
    pub response: Option<&'a ResponseHeader>,
    /// The time of day.
    pub wall: SystemTime,
}

/// When in a request's life a text is rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before there is a response: rewrites, redirects, request headers, keys.
    Request,
    /// When the response's header is made: response headers.
    Response,
    /// When all is over: the access log.
    Log,
}

/// A template whose names are resolved.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Text {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Literal(Box<str>),
    Var(Var),
}

/// One variable; [`NAMES`] and [`Var::by_prefix`] say what it is called.
#[derive(Clone, Debug, PartialEq)]
pub enum Var {
    Args,
    /// A parameter of the query, as sent (not decoded), by name regardless of case.
    Arg(Box<str>),
    BodyBytesSent,
    BytesSent,
    /// What the route's regex captured under the name with this index.
    Capture(usize),
    Connection,
    /// A cookie of the request by name regardless of case (a variable's name could not tell).
    Cookie(Box<str>),
    /// The word for why weir ended the request.
    Failure,
    Host,
    /// All values of a header of the request.
    Http(HeaderName),
    Https,
    /// `?` if there is a query.
    IsArgs,
    Listener,
    Msec,
    Pid,
    RealipRemoteAddr,
    RealipRemotePort,
    RemoteAddr,
    RemotePort,
    RemoteUser,
    /// The request line.
    Request,
    RequestId,
    RequestLength,
    RequestMethod,
    RequestTime,
    RequestUri,
    Scheme,
    /// All values of a header of the response.
    SentHttp(HeaderName),
    ServerAddr,
    ServerPort,
    ServerProtocol,
    Site,
    SslCipher,
    SslClient(ClientFact),
    SslCurve,
    SslProtocol,
    SslServerName,
    SslSessionReused,
    Status,
    TimeIso8601,
    TimeLocal,
    UpstreamAddr,
    UpstreamConnectTime,
    UpstreamHeaderTime,
    UpstreamResponseTime,
    UpstreamStatus,
    Uri,
}

/// Every variable with a fixed name, and from when on it has its value.
///
/// Beside them stand `$arg_NAME`, `$cookie_NAME`, `$http_NAME` and `$sent_http_NAME`, the captures of the route,
/// and the constants `$hostname` and `$weir_version`.
static NAMES: &[(&str, Var, Stage)] = &[
    ("args", Var::Args, Stage::Request),
    ("body_bytes_sent", Var::BodyBytesSent, Stage::Log),
    ("bytes_sent", Var::BytesSent, Stage::Log),
    ("connection", Var::Connection, Stage::Request),
    (
        "content_length",
        Var::Http(header::CONTENT_LENGTH),
        Stage::Request,
    ),
    (
        "content_type",
        Var::Http(header::CONTENT_TYPE),
        Stage::Request,
    ),
    ("document_uri", Var::Uri, Stage::Request),
    ("failure", Var::Failure, Stage::Response),
    ("host", Var::Host, Stage::Request),
    ("https", Var::Https, Stage::Request),
    ("is_args", Var::IsArgs, Stage::Request),
    ("listener", Var::Listener, Stage::Request),
    ("msec", Var::Msec, Stage::Request),
    ("pid", Var::Pid, Stage::Request),
    ("query_string", Var::Args, Stage::Request),
    ("realip_remote_addr", Var::RealipRemoteAddr, Stage::Request),
    ("realip_remote_port", Var::RealipRemotePort, Stage::Request),
    ("remote_addr", Var::RemoteAddr, Stage::Request),
    ("remote_port", Var::RemotePort, Stage::Request),
    ("remote_user", Var::RemoteUser, Stage::Request),
    ("request", Var::Request, Stage::Request),
    ("request_id", Var::RequestId, Stage::Request),
    ("request_length", Var::RequestLength, Stage::Log),
    ("request_method", Var::RequestMethod, Stage::Request),
    ("request_time", Var::RequestTime, Stage::Log),
    ("request_uri", Var::RequestUri, Stage::Request),
    ("scheme", Var::Scheme, Stage::Request),
    ("server_addr", Var::ServerAddr, Stage::Request),
    ("server_name", Var::Site, Stage::Request),
    ("server_port", Var::ServerPort, Stage::Request),
    ("server_protocol", Var::ServerProtocol, Stage::Request),
    ("site", Var::Site, Stage::Request),
    ("ssl_cipher", Var::SslCipher, Stage::Request),
    (
        "ssl_client_escaped_cert",
        Var::SslClient(ClientFact::EscapedPem),
        Stage::Request,
    ),
    (
        "ssl_client_fingerprint",
        Var::SslClient(ClientFact::Fingerprint),
        Stage::Request,
    ),
    (
        "ssl_client_i_dn",
        Var::SslClient(ClientFact::Issuer),
        Stage::Request,
    ),
    (
        "ssl_client_s_dn",
        Var::SslClient(ClientFact::Subject),
        Stage::Request,
    ),
    (
        "ssl_client_serial",
        Var::SslClient(ClientFact::Serial),
        Stage::Request,
    ),
    (
        "ssl_client_v_end",
        Var::SslClient(ClientFact::End),
        Stage::Request,
    ),
    (
        "ssl_client_v_remain",
        Var::SslClient(ClientFact::Remain),
        Stage::Request,
    ),
    (
        "ssl_client_v_start",
        Var::SslClient(ClientFact::Start),
        Stage::Request,
    ),
    (
        "ssl_client_verify",
        Var::SslClient(ClientFact::Verify),
        Stage::Request,
    ),
    ("ssl_curve", Var::SslCurve, Stage::Request),
    ("ssl_protocol", Var::SslProtocol, Stage::Request),
    ("ssl_server_name", Var::SslServerName, Stage::Request),
    ("ssl_session_reused", Var::SslSessionReused, Stage::Request),
    ("status", Var::Status, Stage::Response),
    ("time_iso8601", Var::TimeIso8601, Stage::Request),
    ("time_local", Var::TimeLocal, Stage::Request),
    ("upstream_addr", Var::UpstreamAddr, Stage::Response),
    (
        "upstream_connect_time",
        Var::UpstreamConnectTime,
        Stage::Response,
    ),
    (
        "upstream_header_time",
        Var::UpstreamHeaderTime,
        Stage::Response,
    ),
    (
        "upstream_response_time",
        Var::UpstreamResponseTime,
        Stage::Log,
    ),
    ("upstream_status", Var::UpstreamStatus, Stage::Response),
    ("uri", Var::Uri, Stage::Request),
];

/// Variables whose value is fixed before the first request; they become literals.
static CONSTANTS: &[&str] = &["hostname", "weir_version"];

impl Text {
    /// Parses `text` and resolves its variables, whatever their stage.
    pub fn compile(at: &At<'_>, text: &str, b: &mut Build<'_>) -> Option<Text> {
        Text::compile_for(Stage::Log, at, text, b)
    }

    /// The same for a text that is rendered at `stage`: a variable that has no value yet is an error.
    pub fn compile_for(stage: Stage, at: &At<'_>, text: &str, b: &mut Build<'_>) -> Option<Text> {
        match Template::parse(text) {
            Ok(template) => Text::resolve(stage, at, &template, b),
            Err(error) => {
                b.error(at, error.to_string());
                None
            }
        }
    }

    /// Resolves the variables of a template that was parsed already.
    pub fn resolve(
        stage: Stage,
        at: &At<'_>,
        template: &Template,
        b: &mut Build<'_>,
    ) -> Option<Text> {
        let pieces: Vec<Option<Piece>> = template
            .parts()
            .iter()
            .map(|part| match part {
                Part::Literal(text) => Some(Piece::Literal(text.as_str().into())),
                Part::Variable(name) => resolve(stage, at, name, b),
            })
            .collect();
        let pieces = pieces.into_iter().collect::<Option<Vec<Piece>>>()?;
        Some(Text { pieces })
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The text for one request; borrowed when it has no variables. Bytes that are not UTF-8 (a header may hold
    /// some) become replacement characters; [`Text::write`] keeps them.
    pub fn render(&self, view: &View<'_>) -> Cow<'_, str> {
        match self.pieces.as_slice() {
            [] => Cow::Borrowed(""),
            [Piece::Literal(text)] => Cow::Borrowed(text),
            _ => {
                let mut out = Vec::with_capacity(64);
                self.write(view, &mut out);
                let text = String::from_utf8(out)
                    .unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
                Cow::Owned(text)
            }
        }
    }

    /// Appends the text for one request.
    pub fn write(&self, view: &View<'_>, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.extend_from_slice(text.as_bytes()),
                Piece::Var(var) => {
                    var.write(view, out);
                }
            }
        }
    }
}

fn resolve(stage: Stage, at: &At<'_>, name: &str, b: &mut Build<'_>) -> Option<Piece> {
    // a capture hides a variable of the same name: it is the nearer definition
    if let Some(index) = b.captures.iter().position(|capture| capture == name) {
        return Some(Piece::Var(Var::Capture(index)));
    }
    match name {
        "hostname" => return Some(Piece::Literal(hostname().into())),
        "weir_version" => return Some(Piece::Literal(env!("CARGO_PKG_VERSION").into())),
        _ => {}
    }
    let fixed = NAMES.iter().find(|(known, ..)| *known == name);
    let found = match fixed {
        Some((_, var, from)) => Some((var.clone(), *from)),
        None => Var::by_prefix(name),
    };
    let Some((var, from)) = found else {
        if b.captures_unknown {
            return None;
        }
        let hint = similar(name, &b.captures).map(|known| format!("did you mean `${known}`?"));
        let issue = b.error(at, format!("no variable named `${name}`"));
        if let Some(hint) = hint {
            issue.hint(hint);
        }
        return None;
    };
    if from > stage {
        let when = match from {
            Stage::Log => "the response has been sent",
            _ => "there is a response",
        };
        b.error(
            at,
            format!("`${name}` has no value here: it is known once {when}"),
        );
        return None;
    }
    Some(Piece::Var(var))
}

/// The known name that was probably meant.
fn similar(name: &str, captures: &[String]) -> Option<String> {
    let known = NAMES.iter().map(|(known, ..)| *known);
    let known = known.chain(CONSTANTS.iter().copied());
    let known = known.chain(captures.iter().map(String::as_str));
    let lower = name.to_ascii_lowercase();
    crate::value::suggest(&lower, known).map(str::to_owned)
}

fn hostname() -> String {
    // without a host name (the kernel always has one, if only `(none)`) the variable is empty
    nix::unistd::gethostname()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

impl Var {
    /// The variable whose name is a prefix and the name of what it reads.
    fn by_prefix(name: &str) -> Option<(Var, Stage)> {
        // as in nginx, a header's `-` is written `_`
        let header = |name: &str| HeaderName::from_bytes(name.replace('_', "-").as_bytes()).ok();
        if let Some(name) = name.strip_prefix("sent_http_") {
            return Some((Var::SentHttp(header(name)?), Stage::Response));
        }
        if let Some(name) = name.strip_prefix("http_") {
            return Some((Var::Http(header(name)?), Stage::Request));
        }
        let named = |name: &str| (!name.is_empty()).then(|| name.into());
        if let Some(name) = name.strip_prefix("arg_") {
            return Some((Var::Arg(named(name)?), Stage::Request));
        }
        if let Some(name) = name.strip_prefix("cookie_") {
            return Some((Var::Cookie(named(name)?), Stage::Request));
        }
        None
    }

    /// Appends the value, bytes of headers as they are. `None`, with `out` untouched, if there is no value.
    pub fn write(&self, view: &View<'_>, out: &mut Vec<u8>) -> Option<()> {
        let cx = view.cx;
        let connection = &cx.connection;
        match self {
            Var::Args => put(args(view)?, out),
            Var::Arg(name) => put(arg(args(view)?, name)?, out),
            Var::BodyBytesSent => number(cx.body_bytes_sent, out),
            Var::BytesSent => number(cx.bytes_sent, out),
            Var::Capture(index) => put(cx.captures.get(*index)?, out),
            Var::Connection => number(connection.number, out),
            Var::Cookie(name) => put(cookie(&view.request.headers, name)?, out),
            Var::Failure => put(cx.failure?.word(), out),
            Var::Host => put(some(&cx.host)?, out),
            Var::Http(name) => joined(&view.request.headers, name, out)?,
            Var::Https => put(if connection.tls.is_some() { "on" } else { "" }, out),
            Var::IsArgs => put(if args(view).is_some() { "?" } else { "" }, out),
            Var::Listener => put(some(&*connection.listener)?, out),
            Var::Msec => date::seconds(date::since_epoch(view.wall), out),
            Var::Pid => number(std::process::id(), out),
            Var::RealipRemoteAddr => address(connection.peer.map(|peer| peer.ip()), out),
            Var::RealipRemotePort => number(connection.peer?.port(), out),
            Var::RemoteAddr => address(cx.client, out),
            Var::RemotePort => number(client_port(cx)?, out),
            // nobody is authenticated yet, and a name that was merely claimed is not the user's
            Var::RemoteUser => return None,
            Var::Request => match &cx.unread {
                Some(line) => put(some(line)?, out),
                None => request_line(view.request, out),
            },
            Var::RequestId => put(cx.request_id.as_deref()?, out),
            Var::RequestLength => number(cx.request_length, out),
            Var::RequestMethod => match &cx.unread {
                Some(line) => put(some(words(line)[0])?, out),
                None => put(view.request.method.as_str(), out),
            },
            Var::RequestTime => date::seconds(request_time(cx)?, out),
            Var::RequestUri => match &cx.unread {
                Some(line) => put(some(words(line)[1])?, out),
                None => put(request_uri(view.request), out),
            },
            Var::Scheme => put(cx.scheme(), out),
            Var::SentHttp(name) => joined(&view.response?.headers, name, out)?,
            Var::ServerAddr => address(connection.local.map(|local| local.ip()), out),
            Var::ServerPort => number(connection.local?.port(), out),
            Var::ServerProtocol => match &cx.unread {
                Some(line) => put(some(words(line)[2])?, out),
                None => put(protocol(view.request.version), out),
            },
            Var::Site => put(cx.site.as_deref()?, out),
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
            Var::TimeIso8601 => date::iso8601(view.wall, out),
            Var::TimeLocal => date::common(view.wall, out),
            Var::UpstreamAddr => listed(cx, out, |attempt, out| put(&*attempt.backend, out))?,
            Var::UpstreamConnectTime => times(cx, out, |attempt| attempt.connect)?,
            Var::UpstreamHeaderTime => times(cx, out, |attempt| attempt.header)?,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Instant, UNIX_EPOCH};

    use super::super::Failure;
    use super::super::cx::{Connection, TlsFacts};
    use super::*;
    use crate::issue::Sources;

    fn compile(stage: Stage, text: &str, captures: &[&str]) -> Result<Text, String> {
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        b.captures = captures.iter().map(|&name| name.to_owned()).collect();
        let text = Text::compile_for(stage, &At::Root, text, &mut b);
        let issue = b.issues.0.pop();
        text.ok_or_else(|| {
            let issue = issue.expect("an issue says why there is no text");
            [issue.message, issue.hint.unwrap_or_default()].join("; ")
        })
    }

    fn cx() -> Cx {
        let connection = Connection {
            number: 7,
            peer: Some("192.0.2.1:40000".parse().unwrap()),
            local: Some("[2001:db8::1]:443".parse().unwrap()),
            listener: "https".into(),
            tls: Some(TlsFacts {
                version: "TLSv1.3",
                cipher: "TLS_AES_128_GCM_SHA256",
                server_name: "shop.example".into(),
                ..TlsFacts::default()
            }),
            ..Connection::default()
        };
        let mut cx = Cx::new(Instant::now(), Arc::new(connection));
        cx.ended = Some(cx.started + Duration::from_millis(1042));
        cx.host = "shop.example".into();
        cx.path = "/a b".into();
        cx.captures = vec!["42".into()];
        cx.request_id = Some("id-1".into());
        cx.site = Some("shop".into());
        cx.status = 200;
        cx.body_bytes_sent = 5;
        cx.bytes_sent = 105;
        cx.request_length = 80;
        let attempt = |backend: &str, connect, header, response, status| Try {
            backend: backend.into(),
            started: cx.started,
            connect,
            header,
            response,
            status,
        };
        let ms = |n| Some(Duration::from_millis(n));
        cx.tries = vec![
            attempt("127.0.0.1:9001", None, None, ms(3), 0),
            attempt("unix:/run/app.sock", ms(0), ms(20), ms(1030), 200),
        ];
        cx
    }

    fn request() -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/a%20b?x=1&Y=%41&z", None).unwrap();
        request.set_version(Version::HTTP_11);
        for (name, value) in [
            ("host", "shop.example:443"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("cookie", "a=b; SESSION = s%3D ;c"),
            ("cookie", "d=e"),
        ] {
            request.append_header(name, value).unwrap();
        }
        request
    }

    /// What `text` renders to for the request above, `-` for a lone variable without a value.
    fn rendered(cx: &Cx, text: &str) -> String {
        let request = request();
        let mut response = ResponseHeader::build(200, None).unwrap();
        response
            .append_header("content-type", "text/plain")
            .unwrap();
        let view = View {
            cx,
            request: &request,
            response: Some(&response),
            wall: UNIX_EPOCH + Duration::from_millis(1_795_362_225_007),
        };
        let text = compile(Stage::Log, text, &["id"]).unwrap();
        if let [Piece::Var(var)] = text.pieces() {
            let mut out = Vec::new();
            return match var.write(&view, &mut out) {
                Some(()) => String::from_utf8(out).unwrap(),
                None => "-".to_owned(),
            };
        }
        text.render(&view).into_owned()
    }

    #[test]
    fn variables_mean_what_they_mean_in_nginx() {
        let cx = cx();
        for (text, expected) in [
            ("$host", "shop.example"),
            ("$uri", "/a b"),
            ("$document_uri", "/a b"),
            ("$request_uri", "/a%20b?x=1&Y=%41&z"),
            ("$args", "x=1&Y=%41&z"),
            ("$query_string", "x=1&Y=%41&z"),
            ("$is_args", "?"),
            ("$arg_x", "1"),
            ("$arg_y", "%41"),
            ("$arg_z", "-"),
            ("$arg_none", "-"),
            ("$http_host", "shop.example:443"),
            ("$http_x_a", "1, 2"),
            ("$http_cookie", "a=b; SESSION = s%3D ;c; d=e"),
            ("$http_none", "-"),
            ("$sent_http_content_type", "text/plain"),
            ("$sent_http_none", "-"),
            ("$cookie_a", "b"),
            ("$cookie_session", "s%3D"),
            ("$cookie_c", "-"),
            ("$cookie_d", "e"),
            ("$remote_addr", "192.0.2.1"),
            ("$remote_port", "40000"),
            ("$server_addr", "2001:db8::1"),
            ("$server_port", "443"),
            ("$scheme", "https"),
            ("$https", "on"),
            ("$request_method", "GET"),
            ("$server_protocol", "HTTP/1.1"),
            ("$request", "GET /a%20b?x=1&Y=%41&z HTTP/1.1"),
            ("$status", "200"),
            ("$body_bytes_sent", "5"),
            ("$bytes_sent", "105"),
            ("$request_length", "80"),
            ("$request_time", "1.042"),
            ("$msec", "1795362225.007"),
            ("$connection", "7"),
            ("$upstream_addr", "127.0.0.1:9001, unix:/run/app.sock"),
            ("$upstream_status", "-, 200"),
            ("$upstream_connect_time", "-, 0.000"),
            ("$upstream_header_time", "-, 0.020"),
            ("$upstream_response_time", "0.003, 1.030"),
            ("$request_id", "id-1"),
            ("$ssl_protocol", "TLSv1.3"),
            ("$ssl_cipher", "TLS_AES_128_GCM_SHA256"),
            ("$ssl_server_name", "shop.example"),
            ("$server_name", "shop"),
            ("$site", "shop"),
            ("$listener", "https"),
            ("$remote_user", "-"),
            ("$failure", "-"),
            ("$weir_version", env!("CARGO_PKG_VERSION")),
            ("$id", "42"),
            ("<$host$http_none>", "<shop.example>"),
        ] {
            assert_eq!(rendered(&cx, text), expected, "{text}");
        }
    }

    #[test]
    fn unknown_facts_have_no_value() {
        let cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        for (text, expected) in [
            ("$remote_addr", "unix:"),
            ("$remote_port", "-"),
            ("$server_port", "-"),
            ("$https", ""),
            ("$ssl_protocol", "-"),
            ("$status", "200"),
            ("$request_time", "-"),
            ("$upstream_addr", "-"),
            ("$upstream_response_time", "-"),
            ("$host", "-"),
            ("$site", "-"),
            ("$request_id", "-"),
            ("$id", "-"),
        ] {
            assert_eq!(rendered(&cx, text), expected, "{text}");
        }
    }

    #[test]
    fn a_failure_gives_its_status_only_where_none_was_sent() {
        let mut cx = cx();
        cx.failure = Some(Failure::ClientClosed);
        assert_eq!(rendered(&cx, "$status $failure"), "200 client_closed");
        cx.status = 0;
        assert_eq!(rendered(&cx, "$status $failure"), "499 client_closed");
    }

    #[test]
    fn behind_a_trusted_proxy_the_client_has_no_known_port() {
        let mut cx = cx();
        cx.client = Some("203.0.113.9".parse().unwrap());
        assert_eq!(rendered(&cx, "$remote_addr"), "203.0.113.9");
        assert_eq!(rendered(&cx, "$remote_port"), "-");
        assert_eq!(
            rendered(&cx, "$realip_remote_addr:$realip_remote_port"),
            "192.0.2.1:40000"
        );
    }

    #[test]
    fn a_rewritten_target_changes_the_arguments_but_not_the_request() {
        let mut cx = cx();
        cx.target = Some("/b?n=2".into());
        assert_eq!(rendered(&cx, "$args $arg_n"), "n=2 2");
        assert_eq!(rendered(&cx, "$request_uri"), "/a%20b?x=1&Y=%41&z");
        cx.target = Some("/b?".into());
        assert_eq!(rendered(&cx, "$is_args"), "");
    }

    #[test]
    fn line_that_could_not_be_read_is_shown_as_it_came() {
        let mut cx = cx();
        for (line, parts) in [
            ("GET", "GET|-|-"),
            ("GET /a", "GET|/a|-"),
            ("GET /a b HTTP/1.1", "GET|/a b|HTTP/1.1"),
            ("GET HTTP/1.1", "GET|-|HTTP/1.1"),
            (" HTTP/1.1", "-|-|HTTP/1.1"),
            ("\u{16}\u{3}", "\u{16}\u{3}|-|-"),
        ] {
            cx.unread = Some(line.as_bytes().into());
            assert_eq!(rendered(&cx, "$request"), line);
            let variables = ["$request_method", "$request_uri", "$server_protocol"];
            let shown = variables.map(|variable| rendered(&cx, variable));
            assert_eq!(shown.join("|"), parts, "{line}");
        }
        cx.unread = Some([].into());
        assert_eq!(rendered(&cx, "$request"), "-");
    }

    #[test]
    fn request_uri_is_in_origin_form() {
        let uri = |target: &[u8]| {
            let request = RequestHeader::build("GET", target, None).unwrap();
            String::from_utf8_lossy(request_uri(&request)).into_owned()
        };
        assert_eq!(uri(b"/a?b=http://c/d"), "/a?b=http://c/d");
        assert_eq!(uri(b"http://shop.example/a?b"), "/a?b");
        assert_eq!(uri(b"http://shop.example"), "/");
        assert_eq!(uri(b"*"), "*");
    }

    #[test]
    fn bytes_that_are_not_utf8_survive_write_but_not_render() {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        let value = http::HeaderValue::from_bytes(b"\xff").unwrap();
        request.insert_header("x-a", value).unwrap();
        let cx = cx();
        let view = View {
            cx: &cx,
            request: &request,
            response: None,
            wall: UNIX_EPOCH,
        };
        let text = compile(Stage::Request, "<$http_x_a>", &[]).unwrap();
        let mut out = Vec::new();
        text.write(&view, &mut out);
        assert_eq!(out, b"<\xff>");
        assert_eq!(text.render(&view), "<\u{fffd}>");
    }

    #[test]
    fn a_literal_is_borrowed() {
        let cx = cx();
        let request = request();
        let view = View {
            cx: &cx,
            request: &request,
            response: None,
            wall: UNIX_EPOCH,
        };
        for literal in ["", "just text, $$5"] {
            let text = compile(Stage::Request, literal, &[]).unwrap();
            assert!(matches!(text.render(&view), Cow::Borrowed(_)));
        }
    }

    #[test]
    fn unknown_names_are_errors_with_a_suggestion() {
        let error = |text| compile(Stage::Log, text, &["user"]).unwrap_err();
        assert_eq!(
            error("$hots"),
            "no variable named `$hots`; did you mean `$host`?"
        );
        assert_eq!(
            error("$Host"),
            "no variable named `$Host`; did you mean `$host`?"
        );
        assert_eq!(
            error("${usr}"),
            "no variable named `$usr`; did you mean `$user`?"
        );
        assert_eq!(
            error("$completely_else"),
            "no variable named `$completely_else`; "
        );
        for prefix in ["$http_", "$arg_", "$cookie_", "$sent_http_"] {
            assert!(compile(Stage::Log, prefix, &[]).is_err(), "{prefix}");
        }
        assert!(error("a$").starts_with("`$` without a variable name"));
    }

    #[test]
    fn variables_of_a_later_stage_are_errors() {
        assert!(compile(Stage::Request, "$host$uri$msec", &[]).is_ok());
        assert_eq!(
            compile(Stage::Request, "$status", &[]).unwrap_err(),
            "`$status` has no value here: it is known once there is a response; "
        );
        assert!(compile(Stage::Response, "$status $upstream_addr", &[]).is_ok());
        assert_eq!(
            compile(Stage::Response, "$request_time", &[]).unwrap_err(),
            "`$request_time` has no value here: it is known once the response has been sent; "
        );
    }

    #[test]
    fn names_are_sorted_and_unique() {
        assert!(NAMES.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
