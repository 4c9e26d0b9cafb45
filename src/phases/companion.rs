//! The companion service: files on listeners of their own, without the proxy's phases around them.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use http::Method;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;

use super::{ending, length, routing, send};
use crate::exchange::vars::View;
use crate::exchange::{Cx, Failure, Reply, Transforms};
use crate::http::{host, path};
use crate::net::Connection;
use crate::runtime::{Live, Snapshot};

/// The `static:` entries, as Pingora sees them.
pub struct Companion {
    live: Arc<Live>,
    /// Stands for the connection where a request tells none.
    nowhere: Arc<Connection>,
}

impl Companion {
    pub fn new(live: Arc<Live>) -> Companion {
        Companion {
            live,
            nowhere: Arc::default(),
        }
    }
}

/// A request that is being answered.
struct Running {
    snapshot: Arc<Snapshot>,
    cx: Cx,
    method: Method,
    ended: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let what = ending::cut("request", &self.method, &self.cx);
            self.snapshot.cuts.dropped(what);
        }
    }
}

#[async_trait]
impl HttpServerApp for Companion {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        match session.read_request().await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(_) => {
                // Answered by the gate of the connection, as no request was admitted.
                session.shutdown().await;
                return None;
            }
        }
        if *shutdown.borrow() {
            session.set_keepalive(None);
        }
        super::set_timeouts(&mut session);
        let snapshot = self.live.load();
        let connection = Connection::of(session.digest()).unwrap_or_else(|| self.nowhere.clone());
        connection.admit();
        let mut running = Running {
            cx: super::begin(&snapshot, connection),
            snapshot,
            method: session.req_header().method.clone(),
            ended: false,
        };
        let Running { cx, snapshot, .. } = &mut running;
        cx.request_length = length::request_length(&session);
        let reply = answer(&session, cx, snapshot).await;
        let Reply { mut head, body } = send::with_page(reply, session.req_header());
        send::set_server(&mut head);
        let sent = match send::set_length(&mut head, &body) {
            Ok(()) => send::write(&mut session, head, body, Transforms::default(), None).await,
            Err(e) => Err(e),
        };
        if let Err(e) = &sent {
            log::debug!("{}: {e}", session.request_summary());
            cx.failure = Some(Failure::ClientClosed);
        }
        let now = Instant::now();
        ending::count(&session, cx, now, &self.live);
        ending::log(&session, &snapshot.log.access, cx, now);
        running.ended = true;
        if let Err(e) = sent {
            session.on_proxy_failure(e);
            return None;
        }
        let settings = HttpPersistentSettings::for_session(&session);
        let idle = session.finish().await.ok()??;
        Some(ReusedHttpStream::from_reusable_stream(idle, settings))
    }
}

async fn answer(session: &ServerSession, cx: &mut Cx, snapshot: &Snapshot) -> Reply {
    let request = session.req_header();
    if let Err(failure) = routing::acceptable(request, cx) {
        cx.failure = Some(failure);
        return send::failure(failure);
    }
    let understood = host::normalise_into(
        routing::authority(request).unwrap_or_default(),
        &mut cx.host,
    )
    .is_ok()
        && path::normalise_into(request.uri.path(), &mut cx.path).is_ok();
    if !understood {
        cx.failure = Some(Failure::BadRequest);
        return send::failure(Failure::BadRequest);
    }
    match snapshot.statics.get(&cx.connection.listener) {
        Some(files) => {
            let view = View {
                cx,
                request,
                response: None,
                wall: SystemTime::now(),
            };
            let served = files.serve(&view).await;
            served.unwrap_or_else(|elsewhere| elsewhere.otherwise)
        }
        None => {
            cx.failure = Some(Failure::NoRoute);
            send::failure(Failure::NoRoute)
        }
    }
}
