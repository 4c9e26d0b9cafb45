//! The edge: Pingora's proxy, and in front of it a short way for what weir answers itself.
//!
//! The proxy makes room for all that can happen between two connections, tens of kilobytes for each request, and moves
//! it twice before it begins. Over HTTP/2, where the head of a request is known from the start, one that needs no backend
//! is answered without that: by the same functions that the phases consist of, in their order.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, ProxyHttp, http_proxy};

use super::answer::answer;
use super::ending::{count, log, report};
use super::{Chosen, Exchange, Weir, send};
use crate::handler::proxy::failure_of;
use crate::net::Connection;
use crate::runtime::Live;

/// What the listeners of the sites hand their connections to.
pub struct Edge {
    proxy: Arc<HttpProxy<Weir>>,
    weir: Weir,
}

impl Edge {
    pub fn new(conf: &Arc<ServerConf>, live: Arc<Live>) -> Edge {
        let weir = Weir {
            live,
            max_tries: conf.max_retries,
            nowhere: Arc::<Connection>::default(),
        };
        let mut proxy = http_proxy(conf, weir.clone());
        let mut options = HttpServerOptions::default();
        // No route has it; but Pingora's own refusal would be no answer of weir's, and in no log.
        options.allow_connect_method_proxying = true;
        proxy.server_options = Some(options);
        Edge {
            proxy: Arc::new(proxy),
            weir,
        }
    }

    /// The exchange that the request of `session` begins, if weir answers it itself.
    fn begin(&self, session: &mut ServerSession) -> Option<Exchange> {
        if !self.weir.live.load().answers_itself {
            return None;
        }
        let mut x = self.weir.new_ctx();
        x.begin(session);
        match &x.chosen {
            Chosen::Route(route) if !route.handler.answers_itself() => {
                // It begins again, with the proxy.
                x.end();
                None
            }
            _ => Some(x),
        }
    }

    /// Answers it.
    async fn serve(&self, mut session: ServerSession, mut x: Exchange) {
        let sent = match answer(&mut session, &mut x, &self.weir.live).await {
            Ok(Some(reply)) => send::reply(&mut session, &x, reply).await,
            // Nobody proxies this; the stream ends without an answer.
            Ok(None) => Err(super::internal("no answer")),
            Err(e) => Err(e),
        };
        if let Err(e) = &sent {
            let failure = *x.cx.failure.get_or_insert_with(|| failure_of(e));
            report(session.req_header(), &x, failure, e);
        }
        let now = Instant::now();
        count(&session, &x.cx, now, &self.weir.live);
        let logs = x.snapshot.access_logs_of(x.chosen.chain());
        log(&session, logs, &mut x.cx, now);
        x.end();
        match sent {
            // The last word was written; HTTP/2 has nothing to be used again.
            Ok(()) => drop(session.finish().await),
            Err(e) => session.on_proxy_failure(e),
        }
    }
}

#[async_trait]
impl HttpServerApp for Edge {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        // weir's own, which is HTTP/2.
        if session.is_custom()
            && let Some(x) = self.begin(&mut session)
        {
            // Boxed: each request that is proxied would have the room for it.
            Box::pin(self.serve(session, x)).await;
            return None;
        }
        self.proxy.process_new_http(session, shutdown).await
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}
