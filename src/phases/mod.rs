//! The life of a request: weir's only `impl ProxyHttp`, its methods in the order in which Pingora calls them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::http::ServerSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use self::answer::{answer, with_page_of_route};
use self::ending::{count, cut, log, report};
use self::length::{fields_length, request_length, status_line_length};
use self::routing::{remove_unasked_upgrade, remove_underscored, route};
use crate::exchange::named::Memo;
use crate::exchange::transform::{self, Instead};
use crate::exchange::{Body, Cx, Reply};
use crate::filter::Chain;
use crate::filter::errors::Errors;
use crate::handler::Handler;
use crate::handler::proxy::{Attempts, Proxy, Replay};
use crate::net::Connection;
use crate::router::Route;
use crate::runtime::{Live, Snapshot};

mod answer;
mod body;
mod buffered;
mod companion;
mod edge;
mod ending;
mod grpc;
mod length;
mod refuse;
mod routing;
mod send;
mod status;

pub use companion::Companion;
pub use edge::Edge;
pub use refuse::Refusals;

/// How long a client may take nothing of an answer (nginx: `send_timeout`).
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long what is left of a request that was answered may take to come (nginx: `lingering_time`).
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest header of a backend's answer (nginx: `proxy_buffer_size`, 4 KiB or 8 KiB).
const MAX_RESPONSE_HEADER: u64 = 64 * 1024;

/// What ends a try whose answer is an error that weir has a page of its own for. It is nobody's failure.
const INTERCEPTED: ErrorType = ErrorType::Custom("intercepted");

/// weir, as Pingora's proxy sees it.
#[derive(Clone)]
pub struct Weir {
    live: Arc<Live>,
    /// How many tries Pingora makes for a request.
    max_tries: usize,
    /// Stands for the connection until a request tells its own.
    nowhere: Arc<Connection>,
}

/// One request on its way through the phases, under one snapshot.
pub struct Exchange {
    snapshot: Arc<Snapshot>,
    cx: Cx,
    /// What routing came to.
    chosen: Chosen,
    /// The tries to get an answer from a backend.
    attempts: Attempts,
    method: Method,
    /// Whether a policy changes the body of a backend's answer.
    is_body_changing: bool,
    /// Whether a page takes the place of the body of a backend's error, which is on its way.
    is_body_replaced: bool,
    /// What the client gets in place of a backend's error that has no body.
    intercepted: Option<Reply>,
    /// Where the client's session is while another one stands for it.
    away: Option<buffered::Back>,
    stage: Stage,
}

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Request,
    /// It became a connection to a backend in another protocol: a WebSocket, or something else.
    Tunnel {
        websocket: bool,
    },
    Ended,
}

enum Chosen {
    Route(Arc<Route>),
    /// No route, for a failure or for `OPTIONS *`; the policies that its answer gets all the same.
    Nothing(Arc<Chain>),
}

impl Chosen {
    fn chain(&self) -> &Chain {
        match self {
            Chosen::Route(route) => &route.chain,
            Chosen::Nothing(chain) => chain,
        }
    }

    /// # Errors
    /// When the request is not one to be proxied, for which Pingora never asks.
    fn proxy(&self) -> Result<&Proxy> {
        match self {
            Chosen::Route(route) => match &route.handler {
                Handler::Proxy(proxy) => Ok(proxy),
                _ => Err(internal("not a proxy")),
            },
            Chosen::Nothing(_) => Err(internal("no route to proxy")),
        }
    }
}

impl Exchange {
    /// Finds out what the request of a session is, and where it is to go.
    fn begin(&mut self, session: &mut ServerSession) {
        set_timeouts(session);
        if let Some(connection) = Connection::of(session.digest()) {
            connection.admit();
            if !connection.underscores {
                remove_underscored(session.req_header_mut());
            }
            remove_unasked_upgrade(session.req_header_mut());
            self.cx.connection = connection;
        }
        self.cx.request_length = request_length(session);
        self.method.clone_from(&session.req_header().method);
        if let Err(failure) = route(session.req_header(), self) {
            self.cx.failure = Some(failure);
        }
    }

    /// A piece of the body is on its way to a backend.
    ///
    /// # Errors
    /// When the request ends here.
    fn request_body(&mut self, body: &mut Option<Bytes>, end: bool) -> Result<()> {
        let length = body.as_ref().map_or(0, Bytes::len);
        self.attempts.received(length, end);
        if end && length == 0 {
            // Pingora would send nothing as a chunk, which is the last one, and then the last one.
            *body = None;
        }
        let chain = self.chosen.chain();
        if chain.is_empty() || self.stage != Stage::Request {
            return Ok(());
        }
        self.cx.body_received += length as u64;
        chain.request_body(&self.cx, body, end).map_err(|failure| {
            self.cx.failure = Some(failure);
            Error::explain(ErrorType::InternalError, failure.word()).into_down()
        })
    }

    /// The backend has agreed to speak another protocol from now on.
    fn switch(&mut self, response: &ResponseHeader) {
        let websocket = is_websocket(response);
        self.cx.connection.switch(websocket);
        self.stage = Stage::Tunnel { websocket };
        self.snapshot.tunnels.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes an error of a backend for one that weir has a page for, if it is to.
    ///
    /// # Errors
    /// When it is, and the backend sends no body that the page could take the place of, or a route has the page. To Pingora
    /// the try has failed then: it has no other way to send a body that does not come from a backend.
    fn intercept(&mut self, request: &RequestHeader, response: &ResponseHeader) -> Result<()> {
        let errors = self.chain().errors.as_ref();
        let is_for_page = |errors: &Arc<Errors>| errors.intercepts(response.status.as_u16());
        if !errors.is_some_and(is_for_page) || grpc::is_grpc(&request.headers) {
            return Ok(());
        }
        let status = response.status.as_u16();
        let of_route = errors.is_some_and(|errors| errors.route(status).is_some());
        if !of_route && (request.method == Method::HEAD || has_body(response)) {
            self.is_body_replaced = true;
            return Ok(());
        }
        let mut head = response.clone();
        crate::handler::proxy::clean(&mut head);
        transform::replace_body(&mut head);
        self.attempts.bind(&self.cx, &mut head)?;
        self.intercepted = Some(Reply {
            head: Box::new(head),
            body: Body::Empty,
        });
        let why = "its answer gets a page of ours";
        Err(Error::explain(INTERCEPTED, why).into_up())
    }

    /// A header of a backend is there, with fields of this length: what variables are to say of it, for policies change
    /// it later.
    fn heard(&mut self, response: &ResponseHeader, length: u64) {
        if let Some(this) = self.cx.tries.last_mut() {
            this.head += length + status_line_length(response);
        }
        let fields = &self.snapshot.upstream_fields;
        if fields.is_empty() {
            return;
        }
        let kept = self.cx.upstream.insert(Box::default());
        for name in fields {
            for value in response.headers.get_all(name) {
                kept.append(name.clone(), value.clone());
            }
        }
    }

    fn end(&mut self) {
        if let Stage::Tunnel { .. } = self.stage {
            self.snapshot.tunnels.fetch_sub(1, Ordering::Relaxed);
        }
        self.cx.held.clear();
        self.stage = Stage::Ended;
    }

    fn chain(&self) -> &Chain {
        self.chosen.chain()
    }

    /// Whether the peer may say whom it speaks for.
    fn is_trusted(&self) -> bool {
        let ranges = &self.snapshot.trusted_proxies;
        let peer = self.cx.connection.peer_ip();
        !ranges.is_empty()
            && peer.is_some_and(|peer| ranges.iter().any(|range| range.contains(peer)))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let kind = match self.stage {
            Stage::Ended => return,
            Stage::Request => "request",
            Stage::Tunnel { websocket: true } => "WebSocket",
            Stage::Tunnel { websocket: false } => "tunnel",
        };
        self.snapshot
            .cuts
            .dropped(cut(kind, &self.method, &self.cx));
        self.end();
    }
}

#[async_trait]
impl ProxyHttp for Weir {
    type CTX = Exchange;

    /// None: Pingora's own compression module would cost every request a look at `Accept-Encoding`.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    fn new_ctx(&self) -> Exchange {
        let snapshot = self.live.load();
        Exchange {
            cx: begin(&snapshot, self.nowhere.clone()),
            chosen: Chosen::Nothing(snapshot.router.chain.clone()),
            attempts: Attempts::new(self.max_tries),
            snapshot,
            method: Method::GET,
            is_body_changing: false,
            is_body_replaced: false,
            intercepted: None,
            away: None,
            stage: Stage::Request,
        }
    }

    async fn early_request_filter(&self, session: &mut Session, x: &mut Exchange) -> Result<()> {
        x.begin(session.as_downstream_mut());
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, x: &mut Exchange) -> Result<bool> {
        let client = session.as_downstream_mut();
        let Some(reply) = answer(client, x, &self.live).await? else {
            if x.chain().buffer_request.is_some() {
                // Boxed, as above.
                Box::pin(buffered::receive(client, x)).await?;
            }
            return Ok(false);
        };
        send::reply(client, x, reply).await?;
        Ok(true)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        x: &mut Exchange,
    ) -> Result<Box<HttpPeer>> {
        let proxy = x.chosen.proxy()?;
        proxy
            .peer(&mut x.attempts, &mut x.cx, session, Instant::now)
            .await
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        x: &mut Exchange,
        e: Box<Error>,
    ) -> Box<Error> {
        match x.chosen.proxy() {
            Ok(proxy) => x
                .attempts
                .fail_to_connect(proxy, &mut x.cx, e, Instant::now()),
            Err(e) => e,
        }
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        _fd: std::os::fd::RawFd,
        _digest: Option<&pingora::protocols::Digest>,
        x: &mut Exchange,
    ) -> Result<()> {
        x.attempts.connected(&mut x.cx, Instant::now());
        x.cx.body_received = 0;
        Ok(())
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        x: &mut Exchange,
    ) -> Result<()> {
        x.request_body(body, end)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        x: &mut Exchange,
    ) -> Result<()> {
        if x.attempts.is_to_continue(session.req_header()) {
            let client = session.as_downstream_mut();
            client.write_continue_response().await?;
        }
        x.cx.has_body = !session.as_downstream_mut().is_body_empty();
        crate::handler::proxy::make_origin_form(upstream)?;
        if let Some(length) = x.attempts.length_kept() {
            buffered::frame(upstream, length)?;
        } else if x.cx.has_body {
            let terms = x.cx.connection.terms;
            // Its streams may be silent for as long as both sides please.
            let terms = terms.filter(|_| !grpc::is_grpc(&session.req_header().headers));
            x.attempts.expect_body(terms);
        }
        let trusted = x.is_trusted();
        crate::handler::proxy::prepare(&x.cx, session.req_header(), upstream, trusted)?;
        let chain = x.chain();
        if !chain.is_empty() {
            chain.upstream(&x.cx, session.req_header(), upstream, SystemTime::now());
        }
        if upstream.version == Version::HTTP_2 && !names_host(upstream) {
            let why = "no host to ask a backend of HTTP/2 for";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_down());
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        x: &mut Exchange,
    ) -> Result<()> {
        let length = fields_length(&response.headers);
        if length > MAX_RESPONSE_HEADER {
            let why = "the header of the answer is too long";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        // On HTTP/2 the key is weir's, and so is the check.
        let key = session.req_header().headers.get(header::SEC_WEBSOCKET_KEY);
        let key = key.filter(|_| session.is_custom());
        crate::handler::proxy::check(response, session.is_upgrade_req(), key)?;
        x.heard(response, length);
        let proxy = x.chosen.proxy()?;
        let replay = replay(session, &x.cx);
        x.attempts
            .header(proxy, &mut x.cx, response, replay, Instant::now())?;
        x.intercept(session.req_header(), response)
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        x: &mut Exchange,
    ) -> Result<Option<Duration>> {
        if let (Some(body), Some(this)) = (body, x.cx.tries.last_mut()) {
            this.length += body.len() as u64;
        }
        x.attempts.passed(x.cx.connection.is_crowded());
        match x.attempts.is_over() {
            true => Err(Error::explain(ErrorType::ReadTimedout, "no time left").into_up()),
            false => Ok(None),
        }
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        x: &mut Exchange,
    ) -> Result<()> {
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS
        {
            return Ok(());
        }
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            x.switch(response);
        }
        crate::handler::proxy::clean(response);
        x.attempts.bind(&x.cx, response)?;
        if session.req_header().version < Version::HTTP_11 {
            // HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
            response.remove_header(&header::TRANSFER_ENCODING);
        }
        let page = match x.is_body_replaced {
            true => send::replace_with_own_page(response, x.chain(), &x.cx, session.req_header()),
            false => None,
        };
        let mut transforms = send::finish_header(session.as_downstream_mut(), response, x);
        if let Some(page) = page
            && session.req_header().method != Method::HEAD
        {
            transforms.add_first(Box::new(Instead::new(page)));
        }
        if !transforms.is_empty() {
            body::change(session, transforms);
            x.is_body_changing = true;
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        x: &mut Exchange,
    ) -> Result<Option<Duration>> {
        let length = body.as_ref().map_or(0, Bytes::len) as u64;
        let expected = match x.is_body_changing {
            true => body::announce(session, length),
            false => None,
        };
        Ok(match (&mut x.cx.pace, x.stage) {
            (Some(pace), Stage::Request) if length > 0 => {
                let now = Instant::now();
                let wait = match expected {
                    Some(total) => pace.send_up_to(total, now),
                    None => pace.send(length, now),
                };
                (!wait.is_zero()).then_some(wait)
            }
            _ => None,
        })
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        e: Box<Error>,
        x: &mut Exchange,
        reused: bool,
    ) -> Box<Error> {
        if *e.etype() == INTERCEPTED {
            return e;
        }
        let replay = replay(session, &x.cx);
        match x.chosen.proxy() {
            Ok(proxy) => {
                x.attempts
                    .error_while_proxy(proxy, &mut x.cx, e, replay, reused, Instant::now())
            }
            Err(e) => e,
        }
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        e: &Error,
        x: &mut Exchange,
    ) -> FailToProxy {
        buffered::restore(session.as_downstream_mut(), x);
        if let Some(reply) = x.intercepted.take() {
            let error_code = reply.head.status.as_u16();
            // As below.
            session.set_keepalive(None);
            let reply = with_page_of_route(reply, session.req_header(), x, &self.live).await;
            let _ = send::reply(session.as_downstream_mut(), x, reply).await;
            return FailToProxy {
                error_code,
                can_reuse_downstream: false,
            };
        }
        let failure = *x
            .cx
            .failure
            .get_or_insert_with(|| crate::handler::proxy::failure_of(e));
        report(session.req_header(), x, failure, e);
        if !has_begun(session) && failure.reaches_client() {
            let reply = send::failure(failure);
            let reply = with_page_of_route(reply, session.req_header(), x, &self.live).await;
            // Pingora closes the connection after this; the client is to know.
            session.set_keepalive(None);
            let client = session.as_downstream_mut();
            // The client may be gone by now; there is nobody else to tell.
            if send::reply(client, x, reply).await.is_ok() {
                // Ended, not only dropped: then its client can read it, whatever it still sends. (On HTTP/2 it has
                // ended already.)
                client.shutdown().await;
            }
        }
        FailToProxy {
            error_code: failure.status(),
            can_reuse_downstream: false,
        }
    }

    /// Reported already, with what weir knows of it.
    fn suppress_error_log(&self, _session: &Session, _x: &Exchange, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _x: &Exchange,
        _error: &Error,
        _context: pingora_proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, x: &mut Exchange) {
        buffered::restore(session.as_downstream_mut(), x);
        let now = Instant::now();
        x.attempts.end(&mut x.cx, now);
        if let (Some(e), None) = (e, x.cx.failure)
            && *e.etype() != INTERCEPTED
        {
            x.cx.failure = Some(crate::handler::proxy::failure_of(e));
        }
        let session = session.as_downstream();
        count(session, &x.cx, now, &self.live);
        let logs = x.snapshot.access_logs_of(x.chosen.chain());
        log(session, logs, &mut x.cx, now);
        x.end();
    }
}

/// What is known of a request that begins now.
fn begin(snapshot: &Snapshot, connection: Arc<Connection>) -> Cx {
    let mut cx = Cx::new(Instant::now(), connection);
    cx.named = Memo::new(snapshot.named.clone());
    cx
}

/// How long a client may take with bodies. Those of requests are watched over beneath the engine.
fn set_timeouts(session: &mut ServerSession) {
    session.set_read_timeout(None);
    session.set_write_timeout(Some(WRITE_TIMEOUT));
    session.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
}

fn names_host(request: &RequestHeader) -> bool {
    let host = routing::authority(request);
    host.is_some_and(|host| !host.is_empty())
}

/// Whether a backend has announced a body, in answer to any method but HEAD; over HTTP/2, without a length, it need not
/// come.
fn has_body(response: &ResponseHeader) -> bool {
    match response.headers.get(header::CONTENT_LENGTH) {
        Some(length) => length.as_bytes().iter().any(|digit| *digit != b'0'),
        None => response.version != Version::HTTP_2,
    }
}

/// What speaks for and against sending the request to another member.
fn replay(session: &Session, cx: &Cx) -> Replay {
    let method = cx.method.as_ref().unwrap_or(&session.req_header().method);
    Replay {
        possible: !has_begun(session) && !session.as_ref().retry_buffer_truncated(),
        idempotent: method.is_idempotent(),
    }
}

/// Whether the client has some of its answer; what comes before that (100, 103) is none.
fn has_begun(session: &Session) -> bool {
    session.response_written().is_some_and(|written| {
        let status = written.status;
        !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS
    })
}

/// Whether a backend that switches protocols goes on with frames of RFC 6455.
fn is_websocket(response: &ResponseHeader) -> bool {
    let upgrade = response.headers.get(header::UPGRADE);
    upgrade.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

fn internal(what: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InternalError, what)
}
