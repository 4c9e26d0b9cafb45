//! `proxy`: passes the request on to a pool.
//!
//! Pingora asks for a peer, connects, sends and receives; here stands what weir decides meanwhile: which member is
//! next, when another try is safe, and what a failure means for the client.

mod attempts;
mod fault;
mod header;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::Version;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType, Result};
use pingora_proxy::Session;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::build::Build;
use crate::exchange::cx::Try;
use crate::exchange::vars::{Stage, Text, View};
use crate::exchange::{Cx, Failure};
use crate::http::outlet::Outlet;
use crate::issue::At;
use crate::pool::balance::{Balance, key_of};
use crate::pool::{Choice, Ends, Needs, Pick, Pool};
use crate::value::FromShort;
use attempts::Again;

pub use attempts::{Attempts, Replay};
pub use fault::{brief, failure_of};
pub use header::{check, clean, make_origin_form, prepare};

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
            events: header::wants_events(session.req_header()),
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

/// The client's connection; `None` on a unix socket.
fn ends(cx: &Cx) -> Option<Ends> {
    Some(Ends {
        client: cx.connection.peer?,
        server: cx.connection.local?,
    })
}
