//! `timeouts`: how long to wait for a member.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::issue::{At, Issues};
use crate::value::Span;

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// For a new connection to stand. Default 3s. nginx: `proxy_connect_timeout`.
    pub connect: Span,
    /// For the whole header of a response once the request is sent, and between two reads of its body. Default 60s.
    /// nginx: `proxy_read_timeout`.
    pub read: Span,
    /// Between two writes of a request. Default 60s. nginx: `proxy_send_timeout`.
    pub write: Span,
    /// For an unused connection to be kept. Default 60s. nginx: `keepalive_timeout` in `upstream`.
    pub idle: Span,
    /// For a whole request, from its header to the last byte of its answer, tries of several members included. WebSockets and
    /// event streams end with `tunnel` instead. Default: no limit.
    pub total: Option<Span>,
    /// For a WebSocket or an event stream (`text/event-stream`) on which nothing is sent in either direction. Default 1h.
    pub tunnel: Span,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        let seconds = |seconds| Span::new(Duration::from_secs(seconds));
        Timeouts {
            connect: seconds(3),
            read: seconds(60),
            write: seconds(60),
            idle: seconds(60),
            total: None,
            tunnel: seconds(3600),
        }
    }
}

/// The same, checked.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connect: Duration,
    pub read: Duration,
    pub write: Duration,
    pub idle: Duration,
    pub total: Option<Duration>,
    pub tunnel: Duration,
}

impl Timeouts {
    pub(super) fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<Limits> {
        let mut complete = true;
        for (key, span) in [
            ("connect", Some(self.connect)),
            ("read", Some(self.read)),
            ("write", Some(self.write)),
            ("idle", Some(self.idle)),
            ("total", self.total),
            ("tunnel", Some(self.tunnel)),
        ] {
            if span.is_some_and(|span| span.get().is_zero()) {
                issues.error(&at.key(key), format!("`{key}` must be longer than zero"));
                complete = false;
            }
        }
        let limits = Limits {
            connect: self.connect.get(),
            read: self.read.get(),
            write: self.write.get(),
            idle: self.idle.get(),
            total: self.total.map(Span::get),
            tunnel: self.tunnel.get(),
        };
        complete.then_some(limits)
    }
}
