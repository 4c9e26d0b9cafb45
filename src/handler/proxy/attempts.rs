//! The tries of one request, and what comes of each: when another one is safe, and whose fault it was.
//!
//! A try fails by an error, or by a status that the pool calls a fault. Then the next member is chosen before the failed
//! try is given up: if there is none, an answer that came is still there for the client. Each member is tried at most
//! once per request, with one exception: a kept connection that turns out to be closed says nothing about its member,
//! which then gets a second try on a new connection. Nor does a connection of HTTP/2 on which there is no room.

use std::sync::Arc;
use std::time::Instant;

use http::{StatusCode, header::SET_COOKIE};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::{Proxy, brief, failure_of, header};
use crate::exchange::{Cx, Failure};
use crate::http::expect;
use crate::http::owed::Terms;
use crate::pool::{Blame, Choice, Fault, InFlight, Line, Pick, Tried};

/// The tries of one request to get an answer from the members of a pool.
#[derive(Debug)]
pub struct Attempts {
    /// How many tries Pingora makes, whatever comes of them.
    limit: usize,
    /// How many members were asked.
    pub(super) asked: u32,
    pub(super) tried: Tried,
    /// The member of the current try, counted as in flight there.
    pub(super) member: Option<InFlight>,
    /// The connection to it.
    pub(super) line: Option<Arc<Line>>,
    /// The member of the next try, if it is chosen already.
    pub(super) next: Option<InFlight>,
    pub(super) again: Again,
    /// How often a try ended at once, for the next one to do better.
    outdated: usize,
    /// Whether the client was told to go on and send its body.
    continued: bool,
    /// How many interim answers have come.
    interim: u32,
    /// How long the body is, where all of it is here.
    pub(super) kept: Option<u64>,
    /// What members are chosen by, once the request is known.
    pub(super) choice: Option<Choice>,
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
pub(super) enum Again {
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
    pub(super) fn may_look_again(&self, cx: &Cx) -> bool {
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
            line.answered(header::is_tunnel(response));
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
            response.append_header(SET_COOKIE, cookie)?;
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
