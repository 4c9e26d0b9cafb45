//! The answer that needs no backend: of a policy, of an action that answers by itself, or a page for a failure.

use std::sync::Arc;
use std::time::SystemTime;

use http::{Method, StatusCode, header};
use pingora::Result;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;

use super::routing::{facts, reroute};
use super::{Chosen, Exchange, grpc, send, status};
use crate::exchange::vars::{View, request_uri};
use crate::exchange::{Failure, Reply};
use crate::filter::Flow;
use crate::handler::Handler;
use crate::handler::files::Elsewhere;
use crate::http::path;
use crate::router::Route;
use crate::runtime::Live;

/// The answer that needs no backend; `None` when the request is to be proxied.
///
/// # Errors
/// When the client goes away while a policy has the request wait.
pub(super) async fn answer(
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
pub(super) async fn with_page_of_route(
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
    x.cx.page_of = Some(request_uri(request).into());
    let page = act(&route, &get, x, live).await;
    x.cx.page_of = None;
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
        // No route and no failure: it was `OPTIONS *`, and the server is there.
        return Ok(Outcome::Reply(Reply::empty(StatusCode::NO_CONTENT)));
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
