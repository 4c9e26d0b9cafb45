//! `http` and `limits` of a listener: how long a client may take, and how much it may ask to be remembered, before
//! anything is known of it.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::crowd::Most;
use crate::http::head;
use crate::http::owed::Terms;
use crate::issue::{At, Issues};
use crate::tls;
use crate::value::{Size, Span};

/// What a client may do with HTTP. On HTTP/2, what the line and the fields of a request would be on HTTP/1 counts.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// For the whole header of a request, however it trickles in, and for the first request of an HTTP/1 connection, the
    /// preface and the settings of an HTTP/2 connection, or the header of the PROXY protocol, to come. Default 10s.
    /// nginx: `client_header_timeout`.
    pub header_timeout: Span,
    /// Between two requests of a connection; on HTTP/2 also how long a client may be silent in the middle of a request
    /// body. Default 75s. nginx: `keepalive_timeout`.
    pub keepalive: Span,
    /// Requests on one HTTP/1 connection, the last of which is answered with `Connection: close`. Default 10000. nginx:
    /// `keepalive_requests`.
    pub keepalive_requests: u32,
    /// Length of request line and header fields together; more is answered with 431. Default 64KiB. nginx:
    /// `large_client_header_buffers`.
    pub max_header: Size,
    /// Number of header fields, at most 256; more are answered with 431. Default 100. HAProxy: `tune.http.maxhdr`.
    pub max_headers: u16,
    /// Length of the request line; a longer one is answered with 414. Default 16KiB. nginx: `large_client_header_buffers`.
    pub max_line: Size,
    /// How long a client may keep weir waiting for more of a body; then 408. Default 60s. nginx: `client_body_timeout`.
    pub body_timeout: Span,
    /// Bytes of a body per second that a client must send on average, apart from one wait of `body_timeout`; else 408. 0: any
    /// number. Default 500. Apache: `RequestReadTimeout`, `MinRate`.
    pub min_body_rate: u32,
    /// Whether fields are passed on that have an underscore in their name. Default false: many programs behind take them
    /// for the same with a hyphen, and would believe a client's `X_Forwarded_For`. They are removed, as if they had not been
    /// sent. nginx: `underscores_in_headers`.
    pub underscores: bool,
    /// Requests of one HTTP/2 connection that are open at a time. Default 128. nginx: `http2_max_concurrent_streams`.
    pub max_streams: u32,
    /// How much memory the answers may hold, of all HTTP/2 connections together, that their clients have not taken for a
    /// second; each counts as 64 KiB. Beyond it the connection with most of them loses those that have waited longest, and
    /// its new requests are refused while others wait. Default 64MiB.
    pub max_stalled: Size,
}

impl Default for Http {
    fn default() -> Http {
        let seconds = |seconds| Span::new(Duration::from_secs(seconds));
        Http {
            header_timeout: seconds(10),
            keepalive: seconds(75),
            keepalive_requests: 10_000,
            max_header: Size::new(64 << 10),
            max_headers: 100,
            max_line: Size::new(16 << 10),
            body_timeout: seconds(60),
            min_body_rate: 500,
            underscores: false,
            max_streams: 128,
            max_stalled: Size::new(64 << 20),
        }
    }
}

/// How many clients there may be.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections of this listener. More are answered with 503, or closed before a TLS handshake. Default 10000. HAProxy:
    /// `maxconn`.
    pub connections: u32,
    /// Connections of one client at a time, where an IPv6 network of /64 is one client. More are answered with 429, or closed
    /// before a TLS handshake. Default 200, from which programs on this machine are spared. `trusted_proxies` always are, and
    /// with the PROXY protocol those count that it names. nginx: `limit_conn`.
    pub per_client: Option<u32>,
    /// TLS handshakes of one client at a time, where an IPv6 network of /64 is one client. More wait for their turn, within
    /// `tls.handshake_timeout`. Default 100.
    pub handshakes: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 10_000,
            per_client: None,
            handshakes: 100,
        }
    }
}

/// All of it, ready to use.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub handshake: Duration,
    pub header: Duration,
    /// Between two requests.
    pub idle: Duration,
    pub head: head::Limits,
    pub most: Most,
    /// Whether clients on this machine may have any number.
    pub spares_loopback: bool,
    /// Handshakes of one client at a time.
    pub handshakes: usize,
    /// Requests of one HTTP/1 connection.
    pub requests: u32,
    pub body: Terms,
    /// Whether fields may have underscores in their names.
    pub underscores: bool,
    /// Requests at a time of one HTTP/2 connection.
    pub streams: u32,
    /// Bytes of answers that clients do not take, on HTTP/2.
    pub stalled: usize,
}

/// Connections of one client where nothing is said of them.
const PER_CLIENT: u32 = 200;
/// As much as Pingora's engine takes; beyond it, it would answer in its own words.
const MOST_FIELDS: u16 = 256;
const LARGEST_LINE: u64 = 60 << 10;
const LARGEST_HEADER: u64 = 1 << 20;
/// As many requests as one connection keeps apart.
pub(super) const MOST_STREAMS: u16 = 1024;

impl Bounds {
    /// `at` is the listener.
    pub fn compile(
        http: Http,
        limits: Limits,
        tls: Option<&tls::ListenerConfig>,
        at: &At<'_>,
        issues: &mut Issues,
    ) -> Bounds {
        let handshake = tls.map_or_else(tls::handshake_timeout, |tls| tls.handshake_timeout);
        for (part, key, span) in [
            ("tls", "handshake_timeout", handshake),
            ("http", "header_timeout", http.header_timeout),
            ("http", "keepalive", http.keepalive),
            ("http", "body_timeout", http.body_timeout),
        ] {
            if span.get().is_zero() {
                let at = at.key(part);
                issues.error(&at.key(key), format!("`{key}` must be longer than zero"));
            }
        }
        let per_client = limits.per_client.unwrap_or(PER_CLIENT);
        for (part, key, value, most) in [
            (
                "limits",
                "connections",
                limits.connections.into(),
                u32::MAX.into(),
            ),
            ("limits", "per_client", per_client.into(), u32::MAX.into()),
            (
                "http",
                "keepalive_requests",
                http.keepalive_requests.into(),
                u32::MAX.into(),
            ),
            ("http", "max_header", http.max_header.get(), LARGEST_HEADER),
            (
                "http",
                "max_headers",
                http.max_headers.into(),
                MOST_FIELDS.into(),
            ),
            ("http", "max_line", http.max_line.get(), LARGEST_LINE),
            (
                "http",
                "max_streams",
                http.max_streams.into(),
                MOST_STREAMS.into(),
            ),
            ("http", "max_stalled", http.max_stalled.get(), u64::MAX),
            (
                "limits",
                "handshakes",
                limits.handshakes.into(),
                u32::MAX.into(),
            ),
        ] {
            if value == 0 || value > most {
                let message = format!("`{key}` must be at least 1 and at most {most}");
                let at = at.key(part);
                issues.error(&at.key(key), message);
            }
        }
        let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        let size = |size: Size| usize::try_from(size.get()).unwrap_or(usize::MAX);
        Bounds {
            handshake: handshake.get(),
            header: http.header_timeout.get(),
            idle: http.keepalive.get(),
            head: head::Limits {
                line: size(http.max_line),
                head: size(http.max_header),
                fields: http.max_headers.into(),
            },
            most: Most {
                in_all: number(limits.connections),
                of_one: number(per_client),
            },
            spares_loopback: limits.per_client.is_none(),
            handshakes: number(limits.handshakes),
            requests: http.keepalive_requests,
            body: Terms {
                silence: http.body_timeout.get(),
                rate: http.min_body_rate,
            },
            underscores: http.underscores,
            streams: http.max_streams,
            stalled: size(http.max_stalled),
        }
    }
}

impl Default for Bounds {
    fn default() -> Bounds {
        let (http, limits) = (Http::default(), Limits::default());
        Bounds::compile(http, limits, None, &At::Root, &mut Issues::default())
    }
}
