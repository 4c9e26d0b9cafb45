//! Why weir itself ended a request: the only table from a cause to a status.

use std::io;

/// A reason for which weir, not a backend, answers or gives up a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The request cannot be understood, or its path leaves the root.
    BadRequest,
    /// The request line is longer than the listener takes.
    UriTooLong,
    /// The header is longer than the listener takes.
    HeaderTooLarge,
    /// The body is larger than `body_limit`.
    BodyTooLarge,
    /// There is no room to keep the body: the disk is full, or has as much of bodies as it may.
    NoRoom,
    /// The body cannot be kept, for another reason.
    Storage,
    /// The request asks for a transfer coding, or has a method, that weir does not know.
    NotImplemented,
    /// The request is of a version of HTTP that weir does not speak.
    VersionNotSupported,
    /// `CONNECT`, which asks for a tunnel (weir is a server, not a client's way out), or `TRACE`.
    MethodNotAllowed,
    /// No site has this host (RFC 9110 section 15.5.20 on TLS).
    NoSite {
        secure: bool,
    },
    /// The site of this host is not the one that the client has made the TLS connection to.
    Misdirected,
    /// The listener asks for a client's certificate, and there was none.
    NoClientCert,
    /// The client's certificate is not trusted.
    ClientCert,
    /// No route of the site matches.
    NoRoute,
    /// The `access` policy refuses the client's address.
    Access,
    /// The site is being worked at. The policy says which status that has.
    Maintenance {
        status: u16,
    },
    /// It was asked for from a page of a host that may not.
    Referer,
    /// There are more requests than `limit_req` lets through.
    LimitReq,
    /// There are as many requests being served as `limit_conn` lets in. The policy says which status that has.
    LimitConn {
        status: u16,
    },
    /// No name with its password.
    AuthBasic,
    /// There are more passwords to check than can be.
    AuthBusy,
    /// The service that `auth_request` asks refuses the request. The status is the service's.
    AuthRequest {
        status: u16,
    },
    /// That service answers neither yes nor no.
    AuthAnswer,
    /// It does not answer at all.
    AuthUnreachable,
    /// No token, or one that does not hold.
    Jwt,
    /// The keys that tokens are signed with could not be fetched yet.
    JwtKeys,
    /// The URL is not signed.
    SignedUrl,
    /// It is, but has expired.
    SignedUrlExpired,
    /// Every member of the pool is down.
    PoolDown,
    /// Every member of the pool that could be asked has as many requests as it takes.
    PoolBusy,
    /// They still had when the request had waited for `queue.timeout`.
    QueueTimeout,
    /// No member could be connected to.
    UpstreamConnect,
    UpstreamConnectTimeout,
    /// The backend closed or reset the connection before its answer was complete.
    UpstreamReset,
    /// The backend was silent for longer than `timeouts.read` or took nothing for longer than `timeouts.write`.
    UpstreamTimeout,
    /// The backend's answer is not HTTP, or its body is not in the coding that its header says.
    UpstreamProtocol,
    /// The listener has as many connections as it takes.
    ListenerFull,
    /// The client has as many connections as one may have.
    ClientFull,
    /// The client went away (nginx's 499: logged, never sent).
    ClientClosed,
    /// The client sent nothing for too long in the middle of its request.
    ClientTimeout,
    /// A fault of weir.
    Internal,
}

impl Failure {
    /// What a body could not be kept for.
    pub fn of_storage(e: &io::Error) -> Failure {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::NoRoom,
            _ => Failure::Storage,
        }
    }

    /// The status that answers the client, and stands in the access log.
    pub fn status(self) -> u16 {
        match self {
            Failure::BadRequest => 400,
            Failure::UriTooLong => 414,
            Failure::HeaderTooLarge => 431,
            Failure::BodyTooLarge => 413,
            Failure::NoRoom => 507, // RFC 4918 section 11.5
            Failure::Storage => 500,
            Failure::NotImplemented => 501,
            Failure::VersionNotSupported => 505,
            Failure::MethodNotAllowed => 405,
            Failure::NoClientCert | Failure::ClientCert => 400,
            Failure::NoSite { secure: true } | Failure::Misdirected => 421,
            Failure::NoSite { secure: false } | Failure::NoRoute => 404,
            Failure::Access | Failure::Referer | Failure::SignedUrl => 403,
            Failure::AuthBasic | Failure::Jwt => 401,
            Failure::AuthRequest { status }
            | Failure::LimitConn { status }
            | Failure::Maintenance { status } => status,
            Failure::AuthBusy | Failure::JwtKeys => 503,
            Failure::AuthAnswer => 500,
            Failure::AuthUnreachable => 502,
            Failure::SignedUrlExpired => 410,
            Failure::LimitReq => 429,
            Failure::PoolDown | Failure::PoolBusy | Failure::QueueTimeout => 503,
            Failure::UpstreamConnect | Failure::UpstreamReset | Failure::UpstreamProtocol => 502,
            Failure::UpstreamConnectTimeout | Failure::UpstreamTimeout => 504,
            Failure::ListenerFull => 503,
            Failure::ClientFull => 429,
            Failure::ClientClosed => 499,
            Failure::ClientTimeout => 408,
            Failure::Internal => 500,
        }
    }

    /// Whether there is still a client to tell.
    pub fn reaches_client(self) -> bool {
        self != Failure::ClientClosed
    }

    /// The word in the access log that says who ended the request, and when.
    pub fn word(self) -> &'static str {
        match self {
            Failure::BadRequest => "bad_request",
            Failure::UriTooLong => "uri_too_long",
            Failure::HeaderTooLarge => "header_too_large",
            Failure::BodyTooLarge => "body_too_large",
            Failure::NoRoom => "no_room",
            Failure::Storage => "storage",
            Failure::NotImplemented => "not_implemented",
            Failure::VersionNotSupported => "version_not_supported",
            Failure::MethodNotAllowed => "method_not_allowed",
            Failure::NoSite { .. } => "no_site",
            Failure::Misdirected => "misdirected",
            Failure::NoClientCert => "no_client_cert",
            Failure::ClientCert => "client_cert",
            Failure::NoRoute => "no_route",
            Failure::Access => "access",
            Failure::Maintenance { .. } => "maintenance",
            Failure::Referer => "referer",
            Failure::LimitReq => "limit_req",
            Failure::LimitConn { .. } => "limit_conn",
            Failure::AuthBasic => "auth_basic",
            Failure::AuthBusy => "auth_busy",
            Failure::AuthRequest { .. } => "auth_request",
            Failure::AuthAnswer => "auth_answer",
            Failure::AuthUnreachable => "auth_unreachable",
            Failure::Jwt => "jwt",
            Failure::JwtKeys => "jwt_keys",
            Failure::SignedUrl => "signed_url",
            Failure::SignedUrlExpired => "signed_url_expired",
            Failure::PoolDown => "pool_down",
            Failure::PoolBusy => "pool_busy",
            Failure::QueueTimeout => "queue_timeout",
            Failure::UpstreamConnect => "upstream_connect",
            Failure::UpstreamConnectTimeout => "upstream_connect_timeout",
            Failure::UpstreamReset => "upstream_reset",
            Failure::UpstreamTimeout => "upstream_timeout",
            Failure::UpstreamProtocol => "upstream_protocol",
            Failure::ListenerFull => "listener_full",
            Failure::ClientFull => "client_full",
            Failure::ClientClosed => "client_closed",
            Failure::ClientTimeout => "client_timeout",
            Failure::Internal => "internal",
        }
    }
}
