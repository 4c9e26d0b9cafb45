//! `proxy`: passes the request on to a pool.
//!
//! Pingora asks for a peer, connects, sends and receives; here stands what weir decides meanwhile: which member is
//! next, when another try is safe, and what a failure means for the client.
//!
//! A try fails by an error, or by a status that the pool calls a fault. Then the next member is chosen before the failed
//! try is given up: if there is none, an answer that came is still there for the client. Each member is tried at most
//! once per request, with one exception: a kept connection that turns out to be closed says nothing about its member,
//! which then gets a second try on a new connection. Nor does a connection of HTTP/2 on which there is no room.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use pingora_proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::build::Build;
use crate::exchange::cx::Try;
use crate::exchange::vars::{Stage, Text, View};
use crate::exchange::{Cx, Failure};
use crate::http::outlet::Outlet;
use crate::http::owed::Terms;
use crate::http::{expect, forwarded, head, hop, websocket};
use crate::issue::At;
use crate::pool::balance::{Balance, key_of};
use crate::pool::{Blame, Choice, Ends, Fault, InFlight, Line, Needs, Pick, Pool, Tried};
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
        // The text stands in the pool: it was found right there, and what the route captures is not in it.
        let captures = std::mem::take(&mut b.captures);
        let hash = hash(&pool.config().balance, &At::Root, b);
        b.captures = captures;
        Some(Proxy { pool, hash: hash? })
    }
}

/// What requests are hashed by, if that is how the pool at `at` is balanced; `None` is a mistake. A pool cannot find it
/// by itself, for it knows nothing of requests and their variables.
pub fn hash(balance: &Balance, at: &At<'_>, b: &mut Build<'_>) -> Option<Option<Text>> {
    let Balance::Hash(template) = balance else {
        return Some(None);
    };
    let at = at.key("balance");
    Text::resolve(Stage::Request, &at.key("hash"), template, b).map(Some)
}

#[derive(Debug)]
pub struct Proxy {
    pub pool: Arc<Pool>,
    hash: Option<Text>,
}

/// The tries of one request to get an answer from the members of a pool.
#[derive(Debug)]
pub struct Attempts {
    /// How many tries Pingora makes, whatever comes of them.
    limit: usize,
    /// How many members were asked.
    asked: u32,
    tried: Tried,
    /// The member of the current try, counted as in flight there.
    member: Option<InFlight>,
    /// The connection to it.
    line: Option<Arc<Line>>,
    /// The member of the next try, if it is chosen already.
    next: Option<InFlight>,
    again: Again,
    /// How often a try ended at once, for the next one to do better.
    outdated: usize,
    /// Whether the client was told to go on and send its body.
    continued: bool,
    /// How many interim answers have come.
    interim: u32,
    /// How long the body is, where all of it is here.
    kept: Option<u64>,
    /// What members are chosen by, once the request is known.
    choice: Option<Choice>,
}

/// How often a request waits for a connection that another one makes. Where the backend lets few share one, it does
/// better to make its own than to wait for another turn.
const PATIENCE: usize = 4;

/// How many tries of a request may come to nothing, in all, because of what others do on a connection of HTTP/2: that they
/// make it, or that there is no room beside them.
const REFUSALS: usize = 8;

/// How many interim answers a request may get. They wait for the client where it does not take them, without a limit.
const MOST_INTERIM: u32 = 32;

/// Whether a member is asked a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    No,
    /// The next try is the same member's, on a new connection if the last one was a kept one.
    Next {
        reused: bool,
    },
    /// It was; what happens to it now is the member's fault.
    Done,
}

/// What speaks for and against sending a request once more.
#[derive(Clone, Copy, Debug)]
pub struct Replay {
    /// The request is still at hand, and no byte of an answer has reached the client.
    pub possible: bool,
    /// To send it twice does no more than to send it once.
    pub idempotent: bool,
}

impl Proxy {
    /// The peer for the next try. Where all members are full it may wait for one, if the pool has a queue.
    ///
    /// # Errors
    /// When no member is left to try.
    pub async fn peer(
        &self,
        attempts: &mut Attempts,
        cx: &mut Cx,
        session: &mut Session,
        clock: fn() -> Instant,
    ) -> Result<Box<HttpPeer>> {
        let now = clock();
        let deadline = match cx.total_timeout {
            Some(total) => Some(cx.started + total),
            None => self.pool.connector().deadline(cx.started),
        };
        if deadline.is_some_and(|end| now >= end) {
            cx.failure = Some(Failure::UpstreamTimeout);
            return Err(Error::explain(ErrorType::ReadTimedout, "no time left").into_up());
        }
        let mut needs = Needs {
            fresh: false,
            patient: attempts.may_look_again(cx),
            upgrade: session.is_upgrade_req() && session.is_body_empty(),
            events: wants_events(session.req_header()),
            // A hundred answers may wait at once for one client to take them, and a slow one goes out in small steps.
            small_pieces: session.req_header().version == Version::HTTP_2 || cx.pace.is_some(),
            outlet: Some(outlet(session.req_header(), cx)),
            deadline,
            read: cx.read_timeout,
            read_ahead: cx.read_ahead.clone(),
            ends: ends(cx),
        };
        if let Again::Next { reused } = attempts.again {
            attempts.again = Again::Done;
            needs.fresh = reused;
            return self.peer_of_try(attempts, cx, needs, now);
        }
        attempts.again = Again::No;
        match attempts.asked {
            0 => self.pool.retry().requested(now),
            _ => self.pool.retry().retried(now),
        }
        attempts.asked += 1;
        let request = session.req_header();
        let base = *attempts
            .choice
            .get_or_insert_with(|| self.choice(cx, request, now));
        let mut choice = drawn(base, now);
        let pick = match attempts.next.take() {
            Some(member) => Pick::Member(member),
            None => tokio::select! {
                biased;
                pick = self.pool.take(&mut choice, &mut attempts.tried, clock) => pick,
                left = left(session.as_downstream_mut(), attempts.kept.is_some()) => return Err(left),
            },
        };
        attempts.member = match pick {
            Pick::Member(member) => Some(member),
            Pick::Exhausted => None,
            Pick::Busy => {
                cx.failure = Some(Failure::PoolBusy);
                None
            }
            Pick::TimedOut => {
                cx.failure = Some(Failure::QueueTimeout);
                None
            }
            Pick::Down => {
                cx.failure = Some(Failure::PoolDown);
                None
            }
        };
        self.peer_of_try(attempts, cx, needs, choice.now)
    }

    fn pick(&self, attempts: &mut Attempts, now: Instant) -> Pick {
        let base = attempts.choice.unwrap_or(Choice::any(now, 0));
        self.pool.pick(&drawn(base, now), &mut attempts.tried)
    }

    fn peer_of_try(
        &self,
        attempts: &mut Attempts,
        cx: &mut Cx,
        needs: Needs,
        now: Instant,
    ) -> Result<Box<HttpPeer>> {
        let Some(member) = &attempts.member else {
            let why = format!("no member of pool `{}` is left to try", self.pool.name());
            return Err(Error::explain(ErrorType::ConnectError, why).into_up());
        };
        let (peer, line) = member.peer(needs);
        attempts.line = Some(line);
        cx.failure = None;
        cx.tries.push(Try {
            backend: member.backend().clone(),
            started: now,
            connect: None,
            header: None,
            response: None,
            status: 0,
            head: 0,
            length: 0,
        });
        Ok(peer)
    }

    /// What members are chosen by.
    fn choice(&self, cx: &Cx, request: &RequestHeader, now: Instant) -> Choice {
        let sticky = self.pool.sticky();
        Choice {
            client: cx.client,
            key: self.hash.as_ref().map_or(0, |text| key(text, cx, request)),
            token: sticky.and_then(|sticky| sticky.token(&request.headers)),
            ..Choice::any(now, 0)
        }
    }
}

/// Where the answer goes: on HTTP/2 a request brings that along.
fn outlet(request: &RequestHeader, cx: &Cx) -> Arc<Outlet> {
    let own = request.extensions.get::<Arc<Outlet>>();
    own.unwrap_or(&cx.connection.outlet).clone()
}

/// The choice for one try, with a number of its own.
fn drawn(choice: Choice, now: Instant) -> Choice {
    Choice {
        now,
        random: fastrand::u64(..),
        ..choice
    }
}

/// Waits until the client goes away, as far as that can be seen: not while it may still send parts of its body, unless
/// that is `kept` here.
pub async fn left(client: &mut ServerSession, kept: bool) -> Box<Error> {
    if (kept || client.is_body_done())
        && let Err(e) = client.read_body_or_idle(true).await
    {
        return e.into_down();
    }
    std::future::pending().await
}

/// What stands for the text of this request on a ring.
fn key(text: &Text, cx: &Cx, request: &RequestHeader) -> u64 {
    thread_local! {
        /// Only for the moment of one call: kept because it has memory.
        static RENDERED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let view = View {
        cx,
        request,
        response: None,
        wall: SystemTime::now(),
    };
    RENDERED.with_borrow_mut(|rendered| {
        rendered.clear();
        text.write(&view, rendered);
        key_of(rendered)
    })
}

impl Attempts {
    /// `limit` is how many tries Pingora makes.
    pub fn new(limit: usize) -> Attempts {
        Attempts {
            limit,
            asked: 0,
            tried: Tried::default(),
            member: None,
            line: None,
            next: None,
            again: Again::No,
            outdated: 0,
            continued: false,
            interim: 0,
            kept: None,
            choice: None,
        }
    }

    pub fn connected(&mut self, cx: &mut Cx, now: Instant) {
        self.settled();
        if let Some(this) = cx.tries.last_mut() {
            this.connect = Some(now - this.started);
        }
    }

    /// Whether to wait for a connection that another request makes, after which Pingora has to make one more try, and one more
    /// again if the backend turns out to speak another protocol.
    fn may_look_again(&self, cx: &Cx) -> bool {
        self.outdated < PATIENCE && cx.tries.len() + self.outdated + 2 < self.limit
    }

    /// Whether or not there is a connection: nobody needs to wait for it any more.
    fn settled(&self) {
        if let Some(line) = &self.line {
            line.settled();
        }
    }

    /// A header of the member is there.
    ///
    /// # Errors
    /// When the answer is not for the client, because another member is asked in its place, or it never ends.
    pub fn header(
        &mut self,
        proxy: &Proxy,
        cx: &mut Cx,
        response: &ResponseHeader,
        replay: Replay,
        now: Instant,
    ) -> Result<()> {
        let status = response.status;
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            self.interim += 1;
            return match self.interim > MOST_INTERIM {
                true => {
                    let why = "the answer does not come to its final header";
                    Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up())
                }
                false => Ok(()),
            };
        }
        if let Some(line) = &self.line {
            line.answered(is_tunnel(response));
        }
        if let Some(this) = cx.tries.last_mut() {
            let latency = now - this.started;
            if let Some(member) = &mut self.member {
                member.answered(latency, now);
                member.judge(status.as_u16(), now);
            }
            this.header = Some(latency);
            this.status = status.as_u16();
        }
        let fault = Fault::Status(status.as_u16());
        if !self.may_ask_another(proxy, cx, fault, replay, now) {
            return Ok(());
        }
        // To wait for a place elsewhere is worse than an answer that is here.
        let Pick::Member(next) = proxy.pick(self, now) else {
            return Ok(());
        };
        self.next = Some(next);
        let kind = ErrorType::HTTPStatus(status.as_u16());
        let mut e = Error::explain(kind, format!("status {status}")).into_up();
        e.set_retry(true);
        self.asking_another(proxy, cx, &e, now);
        Err(e)
    }

    /// Binds the client to the member that answers, if it came with none or another one.
    pub fn bind(&self, cx: &Cx, response: &mut ResponseHeader) -> Result<()> {
        let Some(badge) = self.member.as_ref().and_then(|member| member.badge()) else {
            return Ok(());
        };
        if self.choice.and_then(|choice| choice.token) != Some(badge.token) {
            let cookie = badge.set_cookie(cx.connection.tls.is_some());
            response.append_header(header::SET_COOKIE, cookie)?;
        }
        Ok(())
    }

    /// No connection to the member.
    pub fn fail_to_connect(
        &mut self,
        proxy: &Proxy,
        cx: &mut Cx,
        mut e: Box<Error>,
        now: Instant,
    ) -> Box<Error> {
        self.settled();
        if self.line.as_ref().is_some_and(|line| line.outdated()) {
            self.outdated += 1;
            cx.tries.pop();
            self.again = Again::Next { reused: false };
            e.set_retry(true);
            return e;
        }
        self.blame(&e, now);
        self.failed(cx, failure_of(&e), now);
        // No byte of it was sent, so that it does not matter what the request is.
        let replay = Replay {
            possible: true,
            idempotent: true,
        };
        let again = self.ask_another(proxy, cx, Fault::Connect, replay, &e, now);
        e.set_retry(again);
        e
    }

    /// The request has a body, which the client sends as `terms` say, if they say anything.
    pub fn expect_body(&self, terms: Option<Terms>) {
        if let Some(line) = &self.line {
            line.expect_body(terms);
        }
    }

    /// All of it is here, and each try has it from there.
    pub fn kept(&mut self, length: u64) {
        self.kept = Some(length);
    }

    /// How long it is then.
    pub fn length_kept(&self) -> Option<u64> {
        self.kept
    }

    /// So many bytes of it have come; with `end` there are no more.
    pub fn received(&self, bytes: usize, end: bool) {
        if let Some(line) = &self.line {
            line.received(bytes, end);
        }
    }

    /// What was read of the answer's body is on its way to the client, which may wait for many others.
    pub fn passed(&self, crowded: bool) {
        if let Some(line) = &self.line {
            line.passed(crowded);
        }
    }

    /// Whether the request has taken too long in all.
    pub fn is_over(&self) -> bool {
        self.line.as_ref().is_some_and(|line| line.is_over())
    }

    /// Whether the client waits to be told to go on; true only once.
    pub fn is_to_continue(&mut self, request: &RequestHeader) -> bool {
        expect::waits_to_continue(request) && !std::mem::replace(&mut self.continued, true)
    }

    /// A connection that stood failed, before or in the middle of the answer.
    pub fn error_while_proxy(
        &mut self,
        proxy: &Proxy,
        cx: &mut Cx,
        mut e: Box<Error>,
        replay: Replay,
        reused: bool,
        now: Instant,
    ) -> Box<Error> {
        if self.next.is_some() {
            // The answer was given up by `header`.
            return e;
        }
        if *e.esource() == ErrorSource::Downstream {
            e.set_retry(false);
            return e;
        }
        if self.line.as_ref().is_some_and(|line| line.is_overdue()) {
            // The wait for the backend was one for the client, who is to hear of it.
            cx.failure = Some(Failure::ClientTimeout);
            e = Error::because(ErrorType::ReadTimedout, "waiting for the body", e).into_down();
            e.set_retry(false);
            return e;
        }
        if self.expired() {
            e = Error::because(ErrorType::ReadTimedout, "waiting for the backend", e).into_up();
        }
        let reused = reused || self.line.as_ref().is_some_and(|line| line.reused());
        if self.is_stale(proxy, &mut e, replay, reused) {
            log::debug!("a kept connection was closed: {}", brief(&e));
            self.outdated += 1;
            self.again = Again::Next { reused };
            self.gone(cx, failure_of(&e), now);
            e.set_retry(true);
            return e;
        }
        let failure = failure_of(&e);
        let answered = cx.tries.last().is_some_and(|this| this.header.is_some());
        // a connection that was kept for too long says nothing of the member
        if !reused || answered || failure == Failure::UpstreamTimeout {
            self.blame(&e, now);
        }
        self.failed(cx, failure, now);
        let again = match failure {
            Failure::UpstreamReset | Failure::UpstreamConnect => {
                self.ask_another(proxy, cx, Fault::Reset, replay, &e, now)
            }
            Failure::UpstreamTimeout => {
                self.ask_another(proxy, cx, Fault::Timeout, replay, &e, now)
            }
            _ => false,
        };
        e.set_retry(again);
        e
    }

    /// The request is over: the member is free for others.
    pub fn end(&mut self, cx: &mut Cx, now: Instant) {
        self.member = None;
        self.next = None;
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

    /// Whether the error says of the connection only that it was kept too long, or of the member that it did not act on
    /// the request.
    fn is_stale(&self, proxy: &Proxy, e: &mut Error, replay: Replay, reused: bool) -> bool {
        e.retry.decide_reuse(reused);
        let closed = e.retry() || reused && *e.etype() == ErrorType::WriteError;
        // HTTP/2: refused, or behind the last stream of a connection that ends.
        let untouched = matches!(e.etype(), ErrorType::H2Error | ErrorType::H2Downgrade);
        // Those who share a new connection do not know yet how many may, and all but so many are refused.
        let repeated = self.again == Again::Done && !(untouched && self.outdated < REFUSALS);
        closed
            && !repeated
            && replay.possible
            && (untouched || replay.idempotent || proxy.pool.retry().non_idempotent())
    }

    /// Whether the pool and the request allow for another member after this fault.
    fn may_ask_another(
        &self,
        proxy: &Proxy,
        cx: &Cx,
        fault: Fault,
        replay: Replay,
        now: Instant,
    ) -> bool {
        let retry = proxy.pool.retry();
        replay.possible
            && !self.is_over()
            && (replay.idempotent || retry.non_idempotent())
            && cx.tries.len() < self.limit
            && retry.allows(fault, self.asked, now)
    }

    /// Chooses another member, if that may be and there is one.
    fn ask_another(
        &mut self,
        proxy: &Proxy,
        cx: &mut Cx,
        fault: Fault,
        replay: Replay,
        e: &Error,
        now: Instant,
    ) -> bool {
        if !self.may_ask_another(proxy, cx, fault, replay, now) {
            return false;
        }
        match proxy.pick(self, now) {
            Pick::Member(next) => self.next = Some(next),
            // [`Proxy::peer`] is to decide about that.
            Pick::Busy | Pick::TimedOut => {}
            Pick::Exhausted | Pick::Down => return false,
        }
        self.asking_another(proxy, cx, e, now);
        true
    }

    /// The try came to nothing that the client will see.
    fn asking_another(&mut self, proxy: &Proxy, cx: &mut Cx, e: &Error, now: Instant) {
        self.member = None;
        let Some(this) = cx.tries.last_mut() else {
            return;
        };
        this.response.get_or_insert(now - this.started);
        let (backend, pool) = (&this.backend, proxy.pool.name());
        log::info!("retry: {backend} of pool `{pool}`: {}", brief(e));
    }

    /// The error is the member's, unless it came about in here.
    fn blame(&mut self, e: &Error, now: Instant) {
        if let Some(member) = &mut self.member
            && failure_of(e) != Failure::Internal
        {
            member.blame(Blame::Error(e), now);
        }
    }

    /// The member did not answer.
    fn failed(&mut self, cx: &mut Cx, failure: Failure, now: Instant) {
        if let (Some(member), Some(this)) = (self.member.take(), cx.tries.last()) {
            member.failed(now - this.started, now);
        }
        self.gone(cx, failure, now);
    }

    /// The try is over, without an answer.
    fn gone(&self, cx: &mut Cx, failure: Failure, now: Instant) {
        if let Some(this) = cx.tries.last_mut() {
            this.status = failure.status();
            this.response = Some(now - this.started);
        }
        cx.failure = Some(failure);
    }
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

/// Refuses an answer that cannot be passed on for what it is.
///
/// # Errors
/// With a transfer coding other than `chunked`, where the answer ends is anybody's guess (RFC 9112 section 6.3). A 101 that
/// nobody asked for would have the client take what follows for another protocol.
///
/// `key` is what a client is not there to check itself: that the backend has understood a request for a WebSocket.
pub fn check(response: &ResponseHeader, upgrade: bool, key: Option<&HeaderValue>) -> Result<()> {
    let refuse = |why| Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
    let mut codings = response.headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => {}
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => {}
        _ => return refuse("unknown transfer coding"),
    }
    if response.status == StatusCode::SWITCHING_PROTOCOLS && !upgrade {
        return refuse("protocols switched without a request for it");
    }
    let accept = response.headers.get(header::SEC_WEBSOCKET_ACCEPT);
    if response.status == StatusCode::SWITCHING_PROTOCOLS
        && let Some(key) = key
        && accept.is_none_or(|accept| *accept != websocket::accept(key.as_bytes()).as_str())
    {
        return refuse("a `Sec-WebSocket-Accept` that does not fit");
    }
    Ok(())
}

/// What an error says, as far as it is fit for a log: Pingora quotes all of a header that it cannot read.
pub fn brief(e: &Error) -> String {
    const LONG: usize = 400;
    let mut text = e.to_string();
    if let Some((cut, _)) = text.char_indices().nth(LONG) {
        text.truncate(cut);
        text.push_str("...");
    }
    text
}

/// What a failure inside Pingora is for the client and the log.
pub fn failure_of(e: &Error) -> Failure {
    use ErrorType::{
        ConnectTimedout, FileReadError, H1Error, H2Error, InvalidHTTPHeader, ReadTimedout,
        TLSHandshakeTimedout, WriteError, WriteTimedout,
    };
    match (e.esource(), e.etype()) {
        // Of the body that was kept here for the client.
        (ErrorSource::Downstream, FileReadError) => Failure::Storage,
        (ErrorSource::Downstream, ReadTimedout | WriteTimedout) => Failure::ClientTimeout,
        (ErrorSource::Downstream, InvalidHTTPHeader) => Failure::BadRequest,
        (ErrorSource::Downstream, _) if is_bad_body(e) => Failure::BadRequest,
        (ErrorSource::Downstream, _) if is_overdue(e) => Failure::ClientTimeout,
        // Pingora does not say whom it could not write to where that is a client on HTTP/2.
        (ErrorSource::Downstream, _) | (ErrorSource::Unset, WriteError) => Failure::ClientClosed,
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

/// Whether the client's chunks are none, as the gate of its connection has found.
fn is_bad_body(e: &Error) -> bool {
    let cause = e.root_cause().downcast_ref::<io::Error>();
    let fault = cause.and_then(io::Error::get_ref);
    fault.is_some_and(|fault| fault.is::<head::Fault>())
}

/// Whether the client's body came too slowly, as the gate has found as well.
fn is_overdue(e: &Error) -> bool {
    let cause = e.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut)
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
    if let Some(method) = &cx.method {
        upstream.set_method(method.clone());
    }
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
    if !trusted {
        // It would say whatever the client likes to somebody who takes it for ours.
        upstream.remove_header(&header::FORWARDED);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_errors_are_cut_between_characters() {
        let long = Error::explain(ErrorType::InvalidHTTPHeader, "\u{fc}".repeat(10_000));
        let text = brief(&long);
        assert_eq!(text.chars().count(), 403);
        assert!(text.ends_with("\u{fc}..."));
        let short = Error::new(ErrorType::ConnectionClosed);
        assert_eq!(brief(&short), short.to_string());
    }
}
