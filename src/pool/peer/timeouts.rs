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
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        let seconds = |seconds| Span::new(Duration::from_secs(seconds));
        Timeouts {
            connect: seconds(3),
            read: seconds(60),
            write: seconds(60),
            idle: seconds(60),
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
}

impl Timeouts {
    pub(super) fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<Limits> {
        let mut complete = true;
        for (key, span) in [
            ("connect", self.connect),
            ("read", self.read),
            ("write", self.write),
            ("idle", self.idle),
        ] {
            if span.get().is_zero() {
                issues.error(&at.key(key), format!("`{key}` must be longer than zero"));
                complete = false;
            }
        }
        let limits = Limits {
            connect: self.connect.get(),
            read: self.read.get(),
            write: self.write.get(),
            idle: self.idle.get(),
        };
        complete.then_some(limits)
    }
}
