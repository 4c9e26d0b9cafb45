//! `timeouts`: how long a route waits for its backends, in place of what the pool says.
//!
//! ```yaml
//! timeouts: { read: 10s, total: 30s }
//! ```
//!
//! One pool may serve a route that answers in milliseconds and one that makes reports for minutes. What no level gives
//! stays as the pool's `timeouts` say; a nearer level changes one key and leaves the other. A route without a `proxy`
//! has no use for it.

use std::time::{Duration, SystemTime};

use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::Cx;
use crate::issue::At;
use crate::value::Span;

/// How long to wait for backends, in place of `timeouts` in the pool.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// For the whole header of a response once the request is sent, and between two reads of its body. nginx:
    /// `proxy_read_timeout`.
    read: Option<Span>,
    /// For a whole request, from its header to the last byte of its answer, tries of several members included.
    total: Option<Span>,
}

#[derive(Debug)]
pub struct Timeouts {
    read: Option<Duration>,
    total: Option<Duration>,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Timeouts> {
        for (key, span) in [("read", self.read), ("total", self.total)] {
            if span.is_some_and(|span| span.get().is_zero()) {
                b.error(&at.key(key), format!("`{key}` must be longer than zero"));
            }
        }
        Some(Timeouts {
            read: self.read.map(Span::get),
            total: self.total.map(Span::get),
        })
    }
}

impl Filter for Timeouts {
    fn inherit(self, farther: &Timeouts) -> Timeouts {
        Timeouts {
            read: self.read.or(farther.read),
            total: self.total.or(farther.total),
        }
    }

    async fn request(&self, cx: &mut Cx, _request: &RequestHeader, _wall: SystemTime) -> Flow {
        cx.read_timeout = self.read;
        cx.total_timeout = self.total;
        Flow::Continue
    }
}
