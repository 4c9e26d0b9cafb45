//! What variables are called, and what a name in a template means.

use http::{HeaderName, header};

use super::Piece;
use crate::build::{Build, Defined, Stage};
use crate::issue::At;
use crate::tls::ClientFact;

/// One variable; [`NAMES`] and [`Var::by_prefix`] say what it is called.
#[derive(Clone, Debug, PartialEq)]
pub enum Var {
    Args,
    /// A parameter of the query, as sent (not decoded), by name regardless of case.
    Arg(Box<str>),
    BinaryRemoteAddr,
    BodyBytesSent,
    BytesSent,
    /// What the route's regex captured under the name with this index.
    Capture(usize),
    Connection,
    ConnectionRequests,
    ConnectionTime,
    /// What the token says, by the place in the list of claims that are variables.
    Claim(usize),
    /// A cookie of the request by name regardless of case (a variable's name could not tell).
    Cookie(Box<str>),
    /// The word for why weir ended the request.
    Failure,
    Host,
    /// All values of a header of the request.
    Http(HeaderName),
    Http2,
    Https,
    /// `?` if there is a query.
    IsArgs,
    /// What came of the policy, in nginx's words.
    LimitConn,
    LimitReq,
    Listener,
    Msec,
    /// One that the document defines, by its place among them.
    Named(usize),
    Pid,
    /// The request's `X-Forwarded-For`, and the client behind it.
    ProxyAddXForwardedFor,
    ProxyProtocolAddr,
    ProxyProtocolPort,
    ProxyProtocolServerAddr,
    ProxyProtocolServerPort,
    RealipRemoteAddr,
    RealipRemotePort,
    RemoteAddr,
    RemotePort,
    RemoteUser,
    /// The request line.
    Request,
    RequestCompletion,
    RequestId,
    RequestLength,
    RequestMethod,
    RequestTime,
    RequestUri,
    Scheme,
    /// All values of a header of the response.
    SentHttp(HeaderName),
    ServerAddr,
    /// The first of the site's hosts.
    ServerName,
    ServerPort,
    ServerProtocol,
    Site,
    SslAlpnProtocol,
    SslCipher,
    SslClient(ClientFact),
    SslCurve,
    SslProtocol,
    SslServerName,
    SslSessionReused,
    Status,
    TcpInfo(TcpFact),
    TimeIso8601,
    TimeLocal,
    UpstreamAddr,
    UpstreamBytesReceived,
    UpstreamConnectTime,
    /// A cookie that the backend set, by name.
    UpstreamCookie(Box<str>),
    UpstreamHeaderTime,
    /// All values of a header of the backend's answer, as it came.
    UpstreamHttp(HeaderName),
    UpstreamResponseLength,
    UpstreamResponseTime,
    UpstreamStatus,
    Uri,
}

/// Something that the kernel knows of the way to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpFact {
    RcvSpace,
    Rtt,
    RttVar,
    SndCwnd,
}

/// Every variable with a fixed name, and from when on it has its value.
///
/// Beside them stand `$arg_NAME`, `$cookie_NAME`, `$http_NAME`, `$sent_http_NAME`, `$upstream_http_NAME` and
/// `$upstream_cookie_NAME`, the captures of the route, and the constants `$hostname` and `$weir_version`.
static NAMES: &[(&str, Var, Stage)] = &[
    ("args", Var::Args, Stage::Request),
    ("binary_remote_addr", Var::BinaryRemoteAddr, Stage::Request),
    ("body_bytes_sent", Var::BodyBytesSent, Stage::Log),
    ("bytes_sent", Var::BytesSent, Stage::Log),
    ("connection", Var::Connection, Stage::Request),
    (
        "connection_requests",
        Var::ConnectionRequests,
        Stage::Request,
    ),
    ("connection_time", Var::ConnectionTime, Stage::Request),
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
    ("http2", Var::Http2, Stage::Request),
    ("https", Var::Https, Stage::Request),
    ("is_args", Var::IsArgs, Stage::Request),
    ("limit_conn_status", Var::LimitConn, Stage::Response),
    ("limit_req_status", Var::LimitReq, Stage::Response),
    ("listener", Var::Listener, Stage::Request),
    ("msec", Var::Msec, Stage::Request),
    ("pid", Var::Pid, Stage::Request),
    (
        "proxy_add_x_forwarded_for",
        Var::ProxyAddXForwardedFor,
        Stage::Request,
    ),
    (
        "proxy_protocol_addr",
        Var::ProxyProtocolAddr,
        Stage::Request,
    ),
    (
        "proxy_protocol_port",
        Var::ProxyProtocolPort,
        Stage::Request,
    ),
    (
        "proxy_protocol_server_addr",
        Var::ProxyProtocolServerAddr,
        Stage::Request,
    ),
    (
        "proxy_protocol_server_port",
        Var::ProxyProtocolServerPort,
        Stage::Request,
    ),
    ("query_string", Var::Args, Stage::Request),
    ("realip_remote_addr", Var::RealipRemoteAddr, Stage::Request),
    ("realip_remote_port", Var::RealipRemotePort, Stage::Request),
    ("remote_addr", Var::RemoteAddr, Stage::Request),
    ("remote_port", Var::RemotePort, Stage::Request),
    ("remote_user", Var::RemoteUser, Stage::Request),
    ("request", Var::Request, Stage::Request),
    ("request_completion", Var::RequestCompletion, Stage::Log),
    ("request_id", Var::RequestId, Stage::Request),
    ("request_length", Var::RequestLength, Stage::Log),
    ("request_method", Var::RequestMethod, Stage::Request),
    ("request_time", Var::RequestTime, Stage::Log),
    ("request_uri", Var::RequestUri, Stage::Request),
    ("scheme", Var::Scheme, Stage::Request),
    ("server_addr", Var::ServerAddr, Stage::Request),
    ("server_name", Var::ServerName, Stage::Request),
    ("server_port", Var::ServerPort, Stage::Request),
    ("server_protocol", Var::ServerProtocol, Stage::Request),
    ("site", Var::Site, Stage::Request),
    ("ssl_alpn_protocol", Var::SslAlpnProtocol, Stage::Request),
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
        "ssl_client_raw_cert",
        Var::SslClient(ClientFact::Pem),
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
    (
        "tcpinfo_rcv_space",
        Var::TcpInfo(TcpFact::RcvSpace),
        Stage::Request,
    ),
    ("tcpinfo_rtt", Var::TcpInfo(TcpFact::Rtt), Stage::Request),
    (
        "tcpinfo_rttvar",
        Var::TcpInfo(TcpFact::RttVar),
        Stage::Request,
    ),
    (
        "tcpinfo_snd_cwnd",
        Var::TcpInfo(TcpFact::SndCwnd),
        Stage::Request,
    ),
    ("time_iso8601", Var::TimeIso8601, Stage::Request),
    ("time_local", Var::TimeLocal, Stage::Request),
    ("upstream_addr", Var::UpstreamAddr, Stage::Response),
    (
        "upstream_bytes_received",
        Var::UpstreamBytesReceived,
        Stage::Log,
    ),
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
        "upstream_response_length",
        Var::UpstreamResponseLength,
        Stage::Log,
    ),
    (
        "upstream_response_time",
        Var::UpstreamResponseTime,
        Stage::Log,
    ),
    ("upstream_status", Var::UpstreamStatus, Stage::Response),
    ("uri", Var::Uri, Stage::Request),
];

/// Where the document defines variables.
static SECTIONS: &[&str] = &["map", "geo", "split"];

/// Variables whose value is fixed before the first request; they become literals.
static CONSTANTS: &[&str] = &["hostname", "weir_version"];

/// What `$name` means in a text that is rendered at `stage`.
pub(super) fn resolve(stage: Stage, at: &At<'_>, name: &str, b: &mut Build<'_>) -> Option<Piece> {
    // a capture hides a variable of the same name: it is the nearer definition
    if let Some(index) = b.captures.iter().position(|capture| capture == name) {
        return Some(Piece::Var(Var::Capture(index)));
    }
    // the nearest token's, of several
    if let Some(index) = b.claims.iter().rposition(|claim| claim == name) {
        return Some(Piece::Var(Var::Claim(index)));
    }
    match name {
        "hostname" => return Some(Piece::Literal(hostname().into())),
        "weir_version" => return Some(Piece::Literal(env!("CARGO_PKG_VERSION").into())),
        _ => {}
    }
    let found = match b.defined.get(name) {
        Some(Some(Defined { index, from })) => Some((Var::Named(*index), *from)),
        // Reported where it is defined.
        Some(None) => return None,
        None => built_in(name),
    };
    let Some((var, from)) = found else {
        let written = format!("${name}");
        let is_left_out = |section: &&str| b.is_left_out(section, &written);
        if b.captures_unknown || SECTIONS.iter().any(is_left_out) {
            return None;
        }
        let hint = similar(name, b).map(|known| format!("did you mean `${known}`?"));
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
    b.latest = b.latest.max(from);
    let asked = match &var {
        Var::UpstreamHttp(field) => Some(field),
        Var::UpstreamCookie(_) => Some(&header::SET_COOKIE),
        _ => None,
    };
    if let Some(field) = asked
        && !b.upstream_fields.contains(field)
    {
        b.upstream_fields.push(field.clone());
    }
    Some(Piece::Var(var))
}

/// Whether every request has a variable of that name.
pub fn is_known(name: &str) -> bool {
    CONSTANTS.contains(&name) || built_in(name).is_some()
}

fn built_in(name: &str) -> Option<(Var, Stage)> {
    match NAMES.iter().find(|(known, ..)| *known == name) {
        Some((_, var, from)) => Some((var.clone(), *from)),
        None => Var::by_prefix(name),
    }
}

/// The known name that was probably meant.
fn similar(name: &str, b: &Build<'_>) -> Option<String> {
    let known = NAMES.iter().map(|(known, ..)| *known);
    let known = known.chain(CONSTANTS.iter().copied());
    let known = known.chain(b.captures.iter().map(String::as_str));
    let known = known.chain(b.defined.keys().map(String::as_str));
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
        if let Some(name) = name.strip_prefix("upstream_http_") {
            return Some((Var::UpstreamHttp(header(name)?), Stage::Response));
        }
        if let Some(name) = name.strip_prefix("http_") {
            return Some((Var::Http(header(name)?), Stage::Request));
        }
        let named = |name: &str| (!name.is_empty()).then(|| name.into());
        if let Some(name) = name.strip_prefix("arg_") {
            return Some((Var::Arg(named(name)?), Stage::Request));
        }
        if let Some(name) = name.strip_prefix("upstream_cookie_") {
            return Some((Var::UpstreamCookie(named(name)?), Stage::Response));
        }
        if let Some(name) = name.strip_prefix("cookie_") {
            return Some((Var::Cookie(named(name)?), Stage::Request));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_unique() {
        assert!(NAMES.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
