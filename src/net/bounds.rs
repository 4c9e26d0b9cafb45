//! `timeouts` and `limits` of a listener: how long a client may take, and how much it may ask to be remembered, before
//! anything is known of it.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::http::head;
use crate::issue::{At, Issues};
use crate::value::{Size, Span};

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// For a TLS handshake. Default 10s.
    pub handshake: Span,
    /// For the whole header of a request, however it trickles in, and for the first request of an HTTP/1 connection, or
    /// the preface and the settings of an HTTP/2 connection, to come. Default 10s. nginx: `client_header_timeout`.
    pub header: Span,
    /// Between two requests of a connection; on HTTP/2 also how long a client may be silent in the middle of a request
    /// body. Default 75s. nginx: `keepalive_timeout`.
    pub idle: Span,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        let seconds = |seconds| Span::new(Duration::from_secs(seconds));
        Timeouts {
            handshake: seconds(10),
            header: seconds(10),
            idle: seconds(75),
        }
    }
}

/// How large a request may be before its body. On HTTP/2, what its line and its fields would be on HTTP/1 counts.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Length of the request line; a longer one is answered with 414. Default 8KiB. nginx: `large_client_header_buffers`.
    pub request_line: Size,
    /// Length of request line and header fields together; more is answered with 431. Default 32KiB. nginx:
    /// `large_client_header_buffers`.
    pub header: Size,
    /// Number of header fields, at most 256; more are answered with 431. Default 100.
    pub fields: u16,
    /// TLS handshakes of one client at a time, where an IPv6 network of /64 is one client. More wait for their turn, within
    /// `timeouts.handshake`. Default 100.
    pub handshakes: u32,
    /// Requests on one HTTP/1 connection, the last of which is answered with `Connection: close`. Default 1000. nginx:
    /// `keepalive_requests`.
    pub requests: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            request_line: Size::new(8 << 10),
            header: Size::new(32 << 10),
            fields: 100,
            handshakes: 100,
            requests: 1000,
        }
    }
}

/// Both, ready to use.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub handshake: Duration,
    pub header: Duration,
    pub idle: Duration,
    pub head: head::Limits,
    /// Handshakes of one client at a time.
    pub handshakes: usize,
    pub requests: u32,
}

/// As much as Pingora's engine takes; beyond it, it would answer in its own words.
const MOST_FIELDS: u16 = 256;
const LARGEST_LINE: u64 = 60 << 10;
const LARGEST_HEADER: u64 = 1 << 20;

impl Bounds {
    /// `at` is the listener.
    pub fn compile(timeouts: Timeouts, limits: Limits, at: &At<'_>, issues: &mut Issues) -> Bounds {
        for (key, span) in [
            ("handshake", timeouts.handshake),
            ("header", timeouts.header),
            ("idle", timeouts.idle),
        ] {
            if span.get().is_zero() {
                let at = at.key("timeouts");
                issues.error(&at.key(key), format!("`{key}` must be longer than zero"));
            }
        }
        let at = at.key("limits");
        for (key, value, most) in [
            ("request_line", limits.request_line.get(), LARGEST_LINE),
            ("header", limits.header.get(), LARGEST_HEADER),
            ("fields", limits.fields.into(), MOST_FIELDS.into()),
            ("handshakes", limits.handshakes.into(), u32::MAX.into()),
            ("requests", limits.requests.into(), u32::MAX.into()),
        ] {
            if value == 0 || value > most {
                let message = format!("`{key}` must be at least 1 and at most {most}");
                issues.error(&at.key(key), message);
            }
        }
        let size = |size: Size| usize::try_from(size.get()).unwrap_or(usize::MAX);
        Bounds {
            handshake: timeouts.handshake.get(),
            header: timeouts.header.get(),
            idle: timeouts.idle.get(),
            head: head::Limits {
                line: size(limits.request_line),
                head: size(limits.header),
                fields: limits.fields.into(),
            },
            handshakes: usize::try_from(limits.handshakes).unwrap_or(usize::MAX),
            requests: limits.requests,
        }
    }
}

impl Default for Bounds {
    fn default() -> Bounds {
        let mut issues = Issues::default();
        Bounds::compile(
            Timeouts::default(),
            Limits::default(),
            &At::Root,
            &mut issues,
        )
    }
}
