//! The life of a request: weir's only `impl ProxyHttp`, its methods in the order in which Pingora calls them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::authority::validate_request_authority;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};

use crate::exchange::named::Memo;
use crate::exchange::transform::{self, Instead};
use crate::exchange::vars::View;
use crate::exchange::{Body, Cx, Failure, Reply};
use crate::filter::errors::Errors;
use crate::filter::{Chain, Flow};
use crate::handler::Handler;
use crate::handler::files::Elsewhere;
use crate::handler::proxy::{Attempts, Proxy, Replay};
use crate::http::{forwarded, host, path};
use crate::log::AccessLogs;
use crate::net::Connection;
use crate::router::{RequestFacts, Route};
use crate::runtime::{Live, Snapshot};
use crate::tls::Verdict;

mod body;
mod buffered;
mod companion;
mod edge;
mod grpc;
mod refuse;
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
    /// No route; the policies that its answer gets all the same.
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
    /// When it is, and the backend sends no body that the page could take the place of, or a route has the page. To Pingora the try has failed then:
    /// it has no other way to send a body that does not come from a backend.
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
        if let Some(length) = x.attempts.length_kept() {
            buffered::make_origin_form(upstream)?;
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
        x.attempts.passed(x.cx.connection.is_held_up());
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
        if x.is_body_changing {
            body::announce(session);
        }
        Ok(match (&mut x.cx.pace, x.stage, body) {
            (Some(pace), Stage::Request, Some(part)) => {
                let wait = pace.send(part.len() as u64, Instant::now());
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

/// Removes fields with an underscore in their name, which many programs behind take for one with a hyphen (nginx:
/// `underscores_in_headers off`). Before anybody looks at them.
fn remove_underscored(request: &mut RequestHeader) {
    let is_underscored = |name: &&HeaderName| name.as_str().contains('_');
    if request.headers.keys().all(|name| !is_underscored(&name)) {
        return;
    }
    let names = request.headers.keys().filter(is_underscored);
    for name in names.cloned().collect::<Vec<_>>() {
        request.remove_header(&name);
    }
}

/// Finds out whose request this is and where it is to go.
fn route(request: &RequestHeader, x: &mut Exchange) -> std::result::Result<(), Failure> {
    let cx = &mut x.cx;
    cx.client = client(request, cx, &x.snapshot);
    acceptable(request, cx)?;
    let authority = authority(request);
    if authority.is_none() && request.version == Version::HTTP_11 {
        return Err(Failure::BadRequest); // RFC 9112 section 3.2
    }
    host::normalise_into(authority.unwrap_or_default(), &mut cx.host)
        .map_err(|_| Failure::BadRequest)?;
    path::normalise_into(request.uri.path(), &mut cx.path).map_err(|_| Failure::BadRequest)?;
    refuse_client(&cx.connection)?;
    let secure = cx.connection.tls.is_some();
    let site = x
        .snapshot
        .router
        .find_site(&cx.connection.listener, &cx.host)
        .ok_or(Failure::NoSite { secure })?;
    if let Some(tls) = &cx.connection.tls
        && !x
            .snapshot
            .may_reach(&cx.connection.listener, &tls.server_name, &cx.host, site)
    {
        return Err(Failure::Misdirected);
    }
    cx.site = Some(site.name.clone());
    let mut captures = Vec::new();
    match site.find_route(&facts(request, cx, &cx.path), &mut captures) {
        Some(route) => {
            cx.captures = captures;
            x.chosen = Chosen::Route(route.clone());
            Ok(())
        }
        None => {
            x.chosen = Chosen::Nothing(site.chain.clone());
            Err(Failure::NoRoute)
        }
    }
}

/// What no site is asked about.
fn acceptable(request: &RequestHeader, cx: &Cx) -> std::result::Result<(), Failure> {
    if let Some(limits) = cx.connection.limits {
        if line_length(request) > limits.line {
            return Err(Failure::UriTooLong);
        }
        if request.headers.len() > limits.fields || cx.request_length > limits.head as u64 {
            return Err(Failure::HeaderTooLarge);
        }
    }
    let scheme = request.uri.scheme();
    if scheme.is_some_and(|scheme| ![Scheme::HTTP, Scheme::HTTPS].contains(scheme)) {
        return Err(Failure::BadRequest);
    }
    match request.method {
        // A tunnel, and an answer with the credentials of the request in it (RFC 9110 section 9.3.8).
        Method::CONNECT | Method::TRACE => Err(Failure::MethodNotAllowed),
        _ if cx.connection.limits.is_some() && !is_sound(request) => Err(Failure::BadRequest),
        _ => Ok(()),
    }
}

/// Whether a request of HTTP/2 says what it is in one way only. Of HTTP/1, the gate of the connection has seen to that.
fn is_sound(request: &RequestHeader) -> bool {
    let path = request.raw_path();
    let lengths = request.headers.get_all(header::CONTENT_LENGTH);
    (path.starts_with(b"/") || path == b"*")
        && !path.iter().any(|byte| byte.is_ascii_control() || *byte == b' ')
        && lengths.iter().nth(1).is_none()
        // `Host` beside `:authority` says the same, or nothing (RFC 9113 section 8.3.1).
        && validate_request_authority(request).is_ok()
        && authority(request).is_some()
}

/// Turns clients away that have not shown what their listener asks for.
fn refuse_client(connection: &Connection) -> std::result::Result<(), Failure> {
    let shown = connection.tls.as_ref().and_then(|tls| tls.client.as_ref());
    match shown.map(|shown| (shown.verdict(), shown.is_required())) {
        Some((Verdict::Failed(_), _)) => Err(Failure::ClientCert),
        Some((Verdict::None, true)) => Err(Failure::NoClientCert),
        _ => Ok(()),
    }
}

/// What routes look at, for a request of this path.
fn facts<'a>(request: &'a RequestHeader, cx: &Cx, path: &'a str) -> RequestFacts<'a> {
    RequestFacts {
        method: &request.method,
        path,
        headers: &request.headers,
        query: request.uri.query(),
        client: cx.client,
    }
}

/// Who is asked: HTTP/2 and absolute targets say it in the URI, all others in `Host`.
fn authority(request: &RequestHeader) -> Option<&[u8]> {
    if let Some(authority) = request.uri.authority() {
        return Some(authority.as_str().as_bytes());
    }
    request.headers.get(header::HOST).map(HeaderValue::as_bytes)
}

/// The client's address: the peer, or whom a trusted proxy names.
fn client(request: &RequestHeader, cx: &Cx, snapshot: &Snapshot) -> Option<std::net::IpAddr> {
    let peer = cx.connection.peer_ip();
    if snapshot.trusted_proxies.is_empty() {
        return peer;
    }
    let trusted = |ip| {
        snapshot
            .trusted_proxies
            .iter()
            .any(|range| range.contains(ip))
    };
    forwarded::client(peer?, &request.headers, trusted).into()
}

/// The answer that needs no backend; `None` when the request is to be proxied.
///
/// # Errors
/// When the client goes away while a policy has the request wait.
async fn answer(
    session: &mut ServerSession,
    x: &mut Exchange,
    live: &Live,
) -> Result<Option<Reply>> {
    if x.chain().mirror.is_some() {
        x.cx.has_body = !session.is_body_empty();
    }
    match x.chain().waits() && x.cx.failure.is_none() {
        false => Ok(decide(session.req_header(), x, live).await),
        // Boxed: most requests need no room for it.
        true => Box::pin(decide_watching(session, x, live)).await,
    }
}

/// Who watches the client needs the session, so that the policies get a copy of its request.
async fn decide_watching(
    session: &mut ServerSession,
    x: &mut Exchange,
    live: &Live,
) -> Result<Option<Reply>> {
    let request = session.req_header().clone();
    tokio::select! {
        biased;
        reply = decide(&request, x, live) => Ok(reply),
        left = crate::handler::proxy::left(session, false) => Err(left),
    }
}

async fn decide(request: &RequestHeader, x: &mut Exchange, live: &Live) -> Option<Reply> {
    let reply = answer_as_it_is(request, x, live).await?;
    Some(with_page_of_route(reply, request, x, live).await)
}

async fn answer_as_it_is(request: &RequestHeader, x: &mut Exchange, live: &Live) -> Option<Reply> {
    if let Some(failure) = x.cx.failure {
        return Some(send::failure(failure));
    }
    let mut outcome = run(request, x, live).await;
    // Once: where the second route leads on as well, nothing is there. So no request goes in circles.
    if let Ok(Outcome::Elsewhere(elsewhere)) = &outcome
        && reroute(request, x, &elsewhere.path)
    {
        outcome = run(request, x, live).await;
    }
    match outcome {
        Ok(Outcome::Reply(reply)) => Some(reply),
        Ok(Outcome::Proxy) => None,
        Ok(Outcome::Elsewhere(elsewhere)) => Some(elsewhere.otherwise),
        Err(failure) => {
            x.cx.failure = Some(failure);
            Some(send::failure(failure))
        }
    }
}

/// Gives an error without a body the page that a route of its site answers with, if the policies say so: its action, as for
/// a GET of that path, without its policies.
async fn with_page_of_route(
    mut reply: Reply,
    request: &RequestHeader,
    x: &mut Exchange,
    live: &Live,
) -> Reply {
    let status = reply.head.status.as_u16();
    let errors = x.chain().errors.as_ref();
    let Some(path) = errors.and_then(|errors| errors.route(status)) else {
        return reply;
    };
    if !send::wants_page(&reply) || grpc::is_grpc(&request.headers) {
        return reply;
    }
    let path = path.to_owned();
    let Some((get, route, captures)) = page_request(&path, request, x) else {
        return reply;
    };
    let path = std::mem::replace(&mut x.cx.path, path);
    let captures = std::mem::replace(&mut x.cx.captures, captures);
    let target = x.cx.target.take();
    let page = act(&route, &get, x, live).await;
    (x.cx.path, x.cx.captures, x.cx.target) = (path, captures, target);
    if let Ok(Outcome::Reply(page)) = page
        && page.head.status == StatusCode::OK
    {
        for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::VARY] {
            if let Some(value) = page.head.headers.get(&name) {
                // It was in a header already.
                let _ = reply.head.insert_header(name, value);
            }
        }
        reply.body = page.body;
    }
    reply
}

/// The request for a page in place of an error, and who answers it.
fn page_request(
    path: &str,
    request: &RequestHeader,
    x: &Exchange,
) -> Option<(RequestHeader, Arc<Route>, Vec<String>)> {
    let target: String = path::encode(path).collect();
    let mut get = RequestHeader::build(Method::GET, target.as_bytes(), None).ok()?;
    for name in [header::HOST, header::ACCEPT, header::ACCEPT_ENCODING] {
        if let Some(value) = request.headers.get(&name) {
            get.insert_header(name, value).ok()?;
        }
    }
    let router = &x.snapshot.router;
    let site = router.find_site(&x.cx.connection.listener, &x.cx.host)?;
    let mut captures = Vec::new();
    let route = site.find_route(&facts(&get, &x.cx, path), &mut captures)?;
    let route = route.handler.answers_itself().then(|| route.clone())?;
    Some((get, route, captures))
}

/// What a route has for a request.
enum Outcome {
    Reply(Reply),
    /// A pool, which is asked later.
    Proxy,
    Elsewhere(Elsewhere),
}

/// The policies and the action of the chosen route.
async fn run(
    request: &RequestHeader,
    x: &mut Exchange,
    live: &Live,
) -> std::result::Result<Outcome, Failure> {
    let Chosen::Route(route) = &x.chosen else {
        return Ok(Outcome::Proxy);
    };
    let route = route.clone();
    let flow = match route.chain.is_empty() {
        true => Flow::Continue,
        false => {
            let wall = SystemTime::now();
            route.chain.request(&mut x.cx, request, wall).await
        }
    };
    match flow {
        Flow::Continue => {
            let outcome = act(&route, request, x, live).await;
            if route.chain.mirror.is_some() && matches!(outcome, Ok(Outcome::Reply(_))) {
                mirror(request, x);
            }
            outcome
        }
        Flow::Reply(reply) => Ok(Outcome::Reply(reply)),
        Flow::Fail(failure) => Err(failure),
        Flow::Refuse(failure, reply) => {
            x.cx.failure = Some(failure);
            Ok(Outcome::Reply(reply))
        }
    }
}

/// Has a request copied that no backend gets: as one would get it, but without its body, which nobody reads.
fn mirror(request: &RequestHeader, x: &Exchange) {
    let mut upstream = request.clone();
    let prepared =
        crate::handler::proxy::prepare(&x.cx, request, &mut upstream, x.is_trusted()).is_ok();
    if prepared && !x.cx.has_body {
        let wall = SystemTime::now();
        x.chain().upstream(&x.cx, request, &mut upstream, wall);
    }
}

async fn act(
    route: &Route,
    request: &RequestHeader,
    x: &Exchange,
    live: &Live,
) -> std::result::Result<Outcome, Failure> {
    let view = || View {
        cx: &x.cx,
        request,
        response: None,
        wall: SystemTime::now(),
    };
    match &route.handler {
        // Told here, before a backend is chosen, the client keeps its connection.
        Handler::Proxy(proxy) if proxy.pool.is_down() => Err(Failure::PoolDown),
        Handler::Proxy(_) => Ok(Outcome::Proxy),
        Handler::Files(files) => Ok(match files.serve(&view()).await {
            Ok(reply) => Outcome::Reply(reply),
            Err(elsewhere) => Outcome::Elsewhere(elsewhere),
        }),
        Handler::Redirect(redirect) => redirect.reply(&view()).map(Outcome::Reply),
        Handler::Respond(respond) => respond.reply(&view()).map(Outcome::Reply),
        Handler::Status => Ok(Outcome::Reply(status::reply(live))),
    }
}

/// Chooses the route that a request for `path` would take on the same site, for the same request (nginx: an internal
/// redirect). False, and nothing has changed, where it is none or the one that was chosen.
fn reroute(request: &RequestHeader, x: &mut Exchange, path: &str) -> bool {
    let Chosen::Route(chosen) = &x.chosen else {
        return false;
    };
    let mut captures = Vec::new();
    let site = x
        .snapshot
        .router
        .find_site(&x.cx.connection.listener, &x.cx.host);
    let facts = facts(request, &x.cx, path);
    let found = site.and_then(|site| site.find_route(&facts, &mut captures));
    let Some(route) = found.filter(|route| !Arc::ptr_eq(route, chosen)) else {
        return false;
    };
    x.cx.redirect(path, request.uri.query());
    x.cx.captures = captures;
    x.chosen = Chosen::Route(route.clone());
    true
}

impl Exchange {
    /// Whether the peer may say whom it speaks for.
    fn is_trusted(&self) -> bool {
        let ranges = &self.snapshot.trusted_proxies;
        let peer = self.cx.connection.peer_ip();
        !ranges.is_empty()
            && peer.is_some_and(|peer| ranges.iter().any(|range| range.contains(peer)))
    }
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

/// What an operator is told of a request that the end of the process cut off.
fn cut(kind: &str, method: &Method, cx: &Cx) -> String {
    format!(
        "{kind} {method} {}{} from {}, {:.1} s old",
        cx.host,
        cx.path.escape_debug(),
        client_name(cx),
        cx.started.elapsed().as_secs_f64(),
    )
}

fn client_name(cx: &Cx) -> String {
    let client = cx.client.map(|client| client.to_string());
    client.unwrap_or_else(|| "unix".to_owned())
}

/// One line for the operator about a request that weir ended.
fn report(request: &RequestHeader, x: &Exchange, failure: Failure, e: &Error) {
    let cx = &x.cx;
    let level = match failure {
        Failure::ClientClosed
        | Failure::ClientTimeout
        | Failure::BadRequest
        | Failure::BodyTooLarge => log::Level::Info,
        _ => log::Level::Warn,
    };
    let asked = match (cx.tries.last(), x.chosen.proxy()) {
        (Some(last), Ok(proxy)) => format!("{} of pool `{}`: ", last.backend, proxy.pool.name()),
        _ => String::new(),
    };
    log::log!(
        level,
        "{}: {} {}{} from {}: {asked}{}",
        failure.word(),
        request.method,
        cx.host,
        request.uri.path(),
        client_name(cx),
        crate::handler::proxy::brief(e),
    );
}

/// Adds a request to the figures of this process: with the time until a backend's answer began, or else all of it.
fn count(session: &ServerSession, cx: &Cx, now: Instant, live: &Live) {
    let status = status_of(session, cx);
    // A tunnel takes as long as it pleases.
    if status == StatusCode::SWITCHING_PROTOCOLS.as_u16() {
        return;
    }
    let last = cx.tries.last();
    let answered = last.and_then(|last| Some(last.started + last.header?));
    let time = answered
        .unwrap_or(now)
        .saturating_duration_since(cx.started);
    live.figures.count(status, time);
}

/// What the client was answered with, or would have been; 0 for neither.
fn status_of(session: &ServerSession, cx: &Cx) -> u16 {
    match (session.response_written(), cx.failure) {
        (Some(response), _) => response.status.as_u16(),
        (None, Some(failure)) => failure.status(),
        (None, None) => 0,
    }
}

/// The last thing that happens to a request: its line in the access log.
fn log(session: &ServerSession, logs: &AccessLogs, cx: &mut Cx, now: Instant) {
    if logs.is_empty() {
        return;
    }
    let response = session.response_written();
    cx.ended = Some(now);
    cx.status = status_of(session, cx);
    cx.body_bytes_sent = session.body_bytes_sent() as u64;
    cx.bytes_sent = cx.body_bytes_sent + response.map_or(0, header_length);
    cx.request_length += session.body_bytes_read() as u64;
    let request = session.req_header();
    logs.log(&View {
        cx,
        request,
        response,
        wall: SystemTime::now(),
    });
}

/// Bytes of the request's header, as sent on HTTP/1; what it would have been there on HTTP/2.
fn request_length(session: &ServerSession) -> u64 {
    if let Some(http1) = session.as_http1() {
        return http1.get_headers_raw_bytes().len() as u64;
    }
    let request = session.req_header();
    (line_length(request) + "\r\n\r\n".len()) as u64 + fields_length(&request.headers)
}

/// Bytes of the request line, as it is on HTTP/1.
fn line_length(request: &RequestHeader) -> usize {
    request.method.as_str().len() + request.raw_path().len() + "  HTTP/1.1".len()
}

fn header_length(response: &ResponseHeader) -> u64 {
    status_line_length(response) + fields_length(&response.headers)
}

/// With the empty line at the end of the header.
fn status_line_length(response: &ResponseHeader) -> u64 {
    let reason = response.status.canonical_reason().map_or(0, str::len);
    ("HTTP/1.1 200 \r\n\r\n".len() + reason) as u64
}

fn fields_length(fields: &http::HeaderMap) -> u64 {
    fields
        .iter()
        .map(|(name, value)| (name.as_str().len() + value.len() + 4) as u64)
        .sum()
}

fn internal(what: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InternalError, what)
}
