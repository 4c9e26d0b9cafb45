//! `proxy`: passes the request on to a pool.
//!
//! Pingora asks for a peer, connects, sends and receives; here stands what weir decides meanwhile: which member is
//! next, when another try is safe, and what a failure means for the client.
//!
//! Each member is tried at most once per request, with one exception: a kept connection that turns out to be closed
//! says nothing about its member, which then gets a second try on a new connection.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::build::Build;
use crate::exchange::cx::Try;
use crate::exchange::{Cx, Failure};
use crate::http::{forwarded, hop};
use crate::issue::At;
use crate::pool::{Choice, Ends, InFlight, Line, Needs, Pick, Pool, Tried};
use crate::value::FromShort;

/// Where to pass the request; `proxy: NAME` is short for `proxy: { pool: NAME }`. nginx: `proxy_pass`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the pool.
    pub pool: String,
}

impl FromShort for Config {
    fn from_short(pool: &str) -> std::result::Result<Config, String> {
        Ok(Config {
            pool: pool.to_owned(),
        })
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Proxy> {
        let pool = b.pool(&at.key("pool"), &self.pool)?;
        Some(Proxy { pool })
    }
}

#[derive(Debug)]
pub struct Proxy {
    pub pool: Arc<Pool>,
}

/// The tries of one request to get an answer from the members of a pool.
#[derive(Debug, Default)]
pub struct Attempts {
    tried: Tried,
    /// The member of the current try, counted as in flight there.
    member: Option<InFlight>,
    /// Its connection to it.
    line: Option<Arc<Line>>,
    /// Whether the next try is the same member's.
    again: Option<Again>,
    /// Whether the client was told to go on and send its body.
    continued: bool,
}

/// Why a member is tried a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// A kept connection was closed: a new one is to be made.
    Stale,
    /// The member chose another protocol than it was thought to speak, on a connection that waits to be used.
    Misjudged,
}

impl Proxy {
    /// The peer for the next try.
    ///
    /// # Errors
    /// When no member is left to try.
    pub fn peer(
        &self,
        attempts: &mut Attempts,
        cx: &mut Cx,
        request: &RequestHeader,
        upgrade: bool,
        now: Instant,
    ) -> Result<Box<HttpPeer>> {
        let deadline = self.pool.connector().deadline(cx.started);
        if deadline.is_some_and(|end| now >= end) {
            cx.failure = Some(Failure::UpstreamTimeout);
            return Err(Error::explain(ErrorType::ReadTimedout, "no time left").into_up());
        }
        let again = attempts.again.take();
        if again.is_none() {
            let choice = Choice { now };
            attempts.member = match self.pool.pick(&choice, &mut attempts.tried) {
                Pick::Member(member) => Some(member),
                Pick::Exhausted => None,
                Pick::Busy => {
                    cx.failure = Some(Failure::PoolBusy);
                    None
                }
                Pick::Down => {
                    cx.failure = Some(Failure::PoolDown);
                    None
                }
            };
        }
        let Some(member) = &attempts.member else {
            let why = format!("no member of pool `{}` is left to try", self.pool.name());
            return Err(Error::explain(ErrorType::ConnectError, why).into_up());
        };
        let (peer, line) = member.peer(Needs {
            fresh: again == Some(Again::Stale),
            upgrade,
            events: wants_events(request),
            deadline,
            ends: ends(cx),
        });
        attempts.line = Some(line);
        cx.failure = None;
        cx.tries.push(Try {
            backend: member.backend().clone(),
            started: now,
            connect: None,
            header: None,
            response: None,
            status: 0,
        });
        Ok(peer)
    }
}

impl Attempts {
    pub fn connected(&mut self, cx: &mut Cx, now: Instant) {
        if let Some(this) = cx.tries.last_mut() {
            this.connect = Some(now - this.started);
        }
    }

    /// A header of the member's is there.
    pub fn header(&mut self, cx: &mut Cx, response: &ResponseHeader, now: Instant) {
        if is_final(response)
            && let Some(line) = &self.line
        {
            line.answered(is_tunnel(response));
        }
        if let Some(this) = cx.tries.last_mut() {
            let latency = now - this.started;
            if let Some(member) = &self.member {
                member.load().observe(latency);
            }
            this.header = Some(latency);
            this.status = response.status.as_u16();
        }
    }

    /// No connection to the member: another one is tried, for no byte of the request was sent.
    pub fn fail_to_connect(&mut self, cx: &mut Cx, mut e: Box<Error>, now: Instant) -> Box<Error> {
        e.set_retry(true);
        if self.line.as_ref().is_some_and(|line| line.misjudged()) {
            cx.tries.pop();
            self.again = Some(Again::Misjudged);
        } else {
            self.failed(cx, failure_of(&e), now);
        }
        e
    }

    /// Whether the request has taken too long in all.
    pub fn is_over(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.is_over())
    }

    /// Whether the client waits to be told to go on; true only once.
    pub fn is_to_continue(&mut self, request: &RequestHeader) -> bool {
        let expects = request.version == Version::HTTP_11
            && request
                .headers
                .get(header::EXPECT)
                .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
        expects && !std::mem::replace(&mut self.continued, true)
    }

    /// A connection that stood failed, before or in the middle of the answer.
    pub fn error_while_proxy(
        &mut self,
        cx: &mut Cx,
        mut e: Box<Error>,
        replayable: bool,
        reused: bool,
        now: Instant,
    ) -> Box<Error> {
        if *e.esource() == ErrorSource::Downstream {
            e.set_retry(false);
            return e;
        }
        if self.expired() {
            e = Error::because(ErrorType::ReadTimedout, "waiting for the backend", e).into_up();
        }
        e.retry
            .decide_reuse(reused || self.line.as_ref().is_some_and(|line| line.reused()));
        let again = replayable && e.retry();
        e.set_retry(again);
        if again {
            self.again = Some(Again::Stale);
        } else {
            self.failed(cx, failure_of(&e), now);
        }
        e
    }

    /// The request is over: the member is free for others.
    pub fn end(&mut self, cx: &mut Cx, now: Instant) {
        self.member = None;
        if let Some(this) = cx.tries.last_mut()
            && this.response.is_none()
            && this.header.is_some()
        {
            this.response = Some(now - this.started);
        }
    }

    /// Whether the wait for the member was given up.
    fn expired(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.expired())
    }

    fn failed(&mut self, cx: &mut Cx, failure: Failure, now: Instant) {
        if let Some(member) = self.member.take() {
            member.failed();
        }
        if let Some(this) = cx.tries.last_mut() {
            this.status = failure.status();
            this.response = Some(now - this.started);
        }
        cx.failure = Some(failure);
    }
}

/// Whether no other header follows this one.
fn is_final(response: &ResponseHeader) -> bool {
    !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS
}

/// Whether what follows this header goes on for as long as anybody has something to say.
fn is_tunnel(response: &ResponseHeader) -> bool {
    let is_events = |value: &HeaderValue| {
        let value = value.as_bytes();
        value.len() >= EVENTS.len() && value[..EVENTS.len()].eq_ignore_ascii_case(EVENTS)
    };
    response.status == StatusCode::SWITCHING_PROTOCOLS
        || response
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(is_events)
}

/// Whether the client asks for a stream of events, as browsers do.
fn wants_events(request: &RequestHeader) -> bool {
    let accept = request.headers.get(header::ACCEPT);
    accept.is_some_and(|accept| accept.as_bytes() == EVENTS)
}

const EVENTS: &[u8] = b"text/event-stream";

/// The client's connection; `None` on a unix socket.
fn ends(cx: &Cx) -> Option<Ends> {
    Some(Ends {
        client: cx.connection.peer?,
        server: cx.connection.local?,
    })
}

/// What a failure inside Pingora is for the client and the log.
pub fn failure_of(e: &Error) -> Failure {
    use ErrorType::{
        ConnectTimedout, H1Error, H2Error, InvalidHTTPHeader, ReadTimedout, TLSHandshakeTimedout,
        WriteTimedout,
    };
    match (e.esource(), e.etype()) {
        (ErrorSource::Downstream, ReadTimedout | WriteTimedout) => Failure::ClientTimeout,
        (ErrorSource::Downstream, InvalidHTTPHeader) => Failure::BadRequest,
        (ErrorSource::Downstream, _) => Failure::ClientClosed,
        (ErrorSource::Upstream, ConnectTimedout | TLSHandshakeTimedout) => {
            Failure::UpstreamConnectTimeout
        }
        (ErrorSource::Upstream, ReadTimedout | WriteTimedout) => Failure::UpstreamTimeout,
        (ErrorSource::Upstream, InvalidHTTPHeader | H1Error | H2Error) => Failure::UpstreamProtocol,
        (ErrorSource::Upstream, kind) if is_connecting(kind) => Failure::UpstreamConnect,
        (ErrorSource::Upstream, _) => Failure::UpstreamReset,
        _ => Failure::Internal,
    }
}

fn is_connecting(kind: &ErrorType) -> bool {
    use ErrorType::{
        BindError, ConnectError, ConnectNoRoute, ConnectRefused, InvalidCert, SocketError,
        TLSHandshakeFailure,
    };
    matches!(
        kind,
        BindError
            | ConnectError
            | ConnectNoRoute
            | ConnectRefused
            | InvalidCert
            | SocketError
            | TLSHandshakeFailure
    )
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Makes the client's header one for a backend: hop-by-hop fields out, forwarding fields in, the path as rewritten.
/// `Host` is there already, from `:authority` where the client spoke HTTP/2.
///
/// # Errors
/// When a value cannot stand in a header, which no value from a parsed request can cause.
pub fn prepare(
    cx: &Cx,
    request: &RequestHeader,
    upstream: &mut RequestHeader,
    trusted: bool,
) -> Result<()> {
    if let Some(target) = &cx.target {
        upstream.set_raw_path(target.as_bytes())?;
    }
    // Only HTTP/1.1 can become another protocol.
    hop::remove_from_request(upstream, upstream.version == Version::HTTP_11);
    // weir has told the client to go on.
    upstream.remove_header(&header::EXPECT);
    if upstream.version == Version::HTTP_11 {
        join_cookies(upstream)?;
    }
    // Names as text go into Pingora's map of spellings as they are; a `HeaderName` would be copied for it.
    if !(trusted && request.headers.contains_key(X_FORWARDED_HOST)) {
        match host_of(upstream) {
            Some(host) => upstream.insert_header("X-Forwarded-Host", host)?,
            None => drop(upstream.remove_header(&X_FORWARDED_HOST)),
        }
    }
    if !(trusted && request.headers.contains_key(X_FORWARDED_PROTO)) {
        let scheme = HeaderValue::from_static(cx.scheme());
        upstream.insert_header("X-Forwarded-Proto", scheme)?;
    }
    let forwarded_for = match trusted {
        true => forwarded::forwarded_for(cx.connection.peer_ip(), &request.headers, true),
        false => cx.connection.forwarded_for.clone(),
    };
    match forwarded_for {
        Some(value) => upstream.insert_header("X-Forwarded-For", value)?,
        None => drop(upstream.remove_header(&X_FORWARDED_FOR)),
    }
    Ok(())
}

/// HTTP/2 may split a cookie header into crumbs, which HTTP/1.1 does not know (RFC 9113 section 8.2.3).
fn join_cookies(upstream: &mut RequestHeader) -> Result<()> {
    let crumbs = upstream.headers.get_all(header::COOKIE);
    if crumbs.iter().nth(1).is_none() {
        return Ok(());
    }
    let crumbs: Vec<&[u8]> = crumbs.iter().map(HeaderValue::as_bytes).collect();
    let cookie = crumbs.join(&b"; "[..]);
    upstream.insert_header(header::COOKIE, cookie)
}

/// The host as the client named it: HTTP/2 says it in `:authority`.
fn host_of(request: &RequestHeader) -> Option<HeaderValue> {
    if let Some(host) = request.headers.get(header::HOST) {
        return Some(host.clone());
    }
    HeaderValue::from_str(request.uri.authority()?.as_str()).ok()
}

/// Takes out of a backend's header what is between it and weir only, its version of HTTP included (RFC 9110 section 6.2).
pub fn clean(response: &mut ResponseHeader) {
    response.set_version(Version::HTTP_11);
    hop::remove_from_response(response);
}
