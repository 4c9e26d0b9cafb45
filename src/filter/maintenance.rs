//! `maintenance`: a switch that answers for a site while it is worked at: a file that is there or not.
//!
//! ```yaml
//! maintenance: { file: ./down, retry_after: 10m, allow: [10.0.0.0/8], body: "<h1>Back soon</h1>" }
//! ```
//!
//! While the file exists, every request but those of `allow` is answered with 503 and the body; without one, with the
//! page of `errors`. `touch` and `rm` throw the switch, within a second; no reload is needed.
//!
//! # Inside
//!
//! The file is looked for at most once a second, and never on a worker.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use http::{StatusCode, header};
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::disk;
use crate::exchange::page::{self, Page};
use crate::exchange::vars::View;
use crate::exchange::{Body, Cx, Failure, Reply};
use crate::issue::At;
use crate::value::{Cidr, OneOrMany, Short, Span};

/// Answers for a site while it is worked at.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// While this exists, the site is in maintenance.
    pub file: PathBuf,
    /// From 400 to 599. Default 503.
    #[serde(default = "unavailable")]
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// The page: a text, or `file` or `body`, as in `errors`. Default: the page that `errors` has for the status.
    pub body: Option<Short<page::Config>>,
    /// When clients may come again (`Retry-After`). Default: nothing is said.
    pub retry_after: Option<Span>,
    /// Clients for whom there is no maintenance.
    #[serde(default)]
    pub allow: OneOrMany<Cidr>,
}

fn unavailable() -> u16 {
    503
}

#[derive(Debug)]
pub struct Maintenance {
    switch: Switch,
    status: StatusCode,
    page: Option<Page>,
    /// In seconds.
    retry_after: Option<u64>,
    allow: Vec<Cidr>,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Maintenance> {
        let status = StatusCode::from_u16(self.status)
            .ok()
            .filter(|status| status.is_client_error() || status.is_server_error());
        if status.is_none() {
            let message = format!("`{}` is not the status of an error", self.status);
            b.error(&at.key("status"), message)
                .hint("it is a number from 400 to 599");
        }
        let page = match &self.body {
            Some(page) => Some(page.compile(&at.key("body"), b)?),
            None => None,
        };
        let file = b.path(&at.key("file"), &self.file);
        if let Some(folder) = file
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            && !folder.is_dir()
        {
            let message = format!("there is no folder `{}`", folder.display());
            b.warn(&at.key("file"), message)
                .hint("until there is one, the switch is off");
        }
        Some(Maintenance {
            switch: Switch::new(file),
            status: status?,
            page,
            retry_after: self.retry_after.map(|span| span.get().as_secs()),
            allow: self.allow.0.clone(),
        })
    }
}

impl Filter for Maintenance {
    async fn request(&self, cx: &mut Cx, request: &RequestHeader, wall: SystemTime) -> Flow {
        let may_pass = |client| self.allow.iter().any(|range| range.contains(client));
        if !self.switch.is_on(cx.started).await || cx.client.is_some_and(may_pass) {
            return Flow::Continue;
        }
        cx.failure = Some(Failure::Maintenance {
            status: self.status.as_u16(),
        });
        let mut reply = Reply::empty(self.status);
        // Known names with values made here cannot be refused.
        let _ = reply.head.insert_header("Cache-Control", "no-store");
        if let Some(seconds) = self.retry_after {
            let _ = reply.head.insert_header("Retry-After", seconds);
        }
        if let Some(page) = &self.page {
            let view = View {
                cx,
                request,
                response: Some(reply.head.as_ref()),
                wall,
            };
            let (kind, body) = page.render(&view);
            let _ = reply.head.insert_header(header::CONTENT_TYPE, kind);
            reply.body = Body::Bytes(body);
        }
        Flow::Reply(reply)
    }
}

/// Whether a file exists, known for a second.
#[derive(Debug)]
struct Switch {
    state: Arc<State>,
    /// When the first request came.
    start: OnceLock<Instant>,
}

#[derive(Debug)]
struct State {
    file: PathBuf,
    is_on: AtomicBool,
    /// Until when that is known, in milliseconds since `start`; [`ASKING`] while somebody looks.
    known_until: AtomicU64,
}

const KNOWN_FOR: u64 = 1000;
const ASKING: u64 = u64::MAX;

impl Switch {
    fn new(file: PathBuf) -> Switch {
        Switch {
            state: Arc::new(State {
                file,
                is_on: AtomicBool::new(false),
                known_until: AtomicU64::new(0),
            }),
            start: OnceLock::new(),
        }
    }

    async fn is_on(&self, now: Instant) -> bool {
        let since = now.saturating_duration_since(*self.start.get_or_init(|| now));
        let now = u64::try_from(since.as_millis()).unwrap_or(ASKING - 1);
        if self.state.is_to_look(now) {
            let state = self.state.clone();
            // Not left half done when the client goes: it is the thread that notes what it saw.
            let look = move || {
                state.look(now);
                Ok(())
            };
            let _ = disk::may_wait(look).await;
        }
        self.state.is_on.load(Ordering::Relaxed)
    }
}

impl State {
    /// Whether it is time to look, and nobody does so already: others go by what was known last.
    fn is_to_look(&self, now: u64) -> bool {
        let known_until = self.known_until.load(Ordering::Relaxed);
        let (set, relaxed) = (ASKING, Ordering::Relaxed);
        now >= known_until
            && self
                .known_until
                .compare_exchange(known_until, set, relaxed, relaxed)
                .is_ok()
    }

    fn look(&self, now: u64) {
        // What cannot be told is no order to stop.
        let exists = self.file.try_exists().unwrap_or(false);
        self.is_on.store(exists, Ordering::Relaxed);
        let until = now.saturating_add(KNOWN_FOR);
        self.known_until.store(until, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_looks_once_a_second() {
        let switch = Switch::new(std::env::temp_dir());
        let state = &switch.state;
        assert!(state.is_to_look(0));
        assert!(!state.is_to_look(5000), "somebody does");
        state.look(0);
        assert!(state.is_on.load(Ordering::Relaxed));
        assert!(!state.is_to_look(999));
        assert!(state.is_to_look(1000));
    }
}
