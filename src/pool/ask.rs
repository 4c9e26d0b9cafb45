//! Requests of weir's own to a pool: questions without a body, and copies of what clients send ([`copy`]).
//!
//! They take the way that requests of clients take: members are chosen in the same manner and count them, connections are
//! the same and are kept. So a service that is asked before each request costs no connection of its own.

pub mod copy;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{StatusCode, Version, header};
use pingora::connectors::http::Connector;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, ErrorSource, ErrorType, OrErr, Result};

use super::{Blame, Choice, InFlight, Line, Needs, Pick, Pool, Tried};
use copy::{Body, Part};

/// What a member says.
#[derive(Debug)]
pub struct Answer {
    pub head: ResponseHeader,
    /// The body, if it is not longer than [`ENOUGH`]; otherwise its beginning.
    pub body: Bytes,
}

/// Makes HTTP of connections for questions; one for all pools.
pub struct Asker(Connector);

impl Default for Asker {
    fn default() -> Asker {
        Asker(Connector::new(None))
    }
}

/// How many members are asked, and how often one whose kept connection turns out to be closed.
const TRIES: usize = 3;
/// How much of a body is read. One that is not longer leaves its connection for the next request.
pub const ENOUGH: usize = 64 * 1024;

/// An answer that has begun, at the member that gives it.
struct Begun {
    /// Counts it as in flight there.
    _member: InFlight,
    peer: Box<HttpPeer>,
    line: Arc<Line>,
    session: HttpSession,
    head: ResponseHeader,
}

impl Asker {
    /// The answer of a member to `request`, which names its host in `Host` and is safe to be sent twice. There is no limit of time
    /// but those of the pool.
    ///
    /// # Errors
    /// When no member answers.
    pub async fn ask(
        &self,
        pool: &Pool,
        request: &RequestHeader,
        choice: Choice,
        needs: Needs,
        clock: fn() -> Instant,
    ) -> Result<Answer> {
        let begun = self
            .begin(pool, request, &mut Body::none(), choice, needs, clock)
            .await?;
        let body = self.finish(begun.session, &begun.peer).await?;
        Ok(Answer {
            head: begun.head,
            body,
        })
    }

    /// The header of an answer. Whatever may be sent once more is, while nothing of `body` was taken.
    async fn begin(
        &self,
        pool: &Pool,
        request: &RequestHeader,
        body: &mut Body,
        mut choice: Choice,
        mut needs: Needs,
        clock: fn() -> Instant,
    ) -> Result<Begun> {
        let mut tried = Tried::default();
        let mut member = self.take(pool, &mut choice, &mut tried, clock).await?;
        let mut left = TRIES;
        loop {
            left -= 1;
            let began = clock();
            let (peer, line) = member.peer(needs.clone());
            let mut is_sent = false;
            let answer = self
                .exchange(&peer, &line, request, body, &mut is_sent)
                .await;
            line.settled();
            let again = left > 0 && (!is_sent || request.method.is_idempotent() && body.is_whole());
            match answer {
                Ok((head, session)) => {
                    line.answered(false);
                    let now = clock();
                    member.answered(now - began, now);
                    member.judge(head.status.as_u16(), now);
                    return Ok(Begun {
                        _member: member,
                        peer,
                        line,
                        session,
                        head,
                    });
                }
                // Whose body broke off is no matter of the member.
                Err(e) if *e.esource() == ErrorSource::Downstream => return Err(e),
                // A kept connection that was closed says nothing of the member, nor does one that another request makes.
                Err(_) if again && (line.outdated() || line.reused() && !line.expired()) => {
                    needs.fresh = line.reused();
                }
                Err(e) => {
                    let now = clock();
                    member.blame(Blame::Error(&e), now);
                    member.failed(now - began, now);
                    drop(member);
                    if !again || line.expired() {
                        return Err(e);
                    }
                    choice.now = now;
                    match pool.pick(&choice, &mut tried) {
                        Pick::Member(next) => member = next,
                        _ => return Err(e),
                    }
                    needs.fresh = false;
                }
            }
        }
    }

    async fn take(
        &self,
        pool: &Pool,
        choice: &mut Choice,
        tried: &mut Tried,
        clock: fn() -> Instant,
    ) -> Result<InFlight> {
        let why = match pool.take(choice, tried, clock).await {
            Pick::Member(member) => return Ok(member),
            Pick::Busy | Pick::TimedOut => "is busy",
            Pick::Exhausted | Pick::Down => "is down",
        };
        let why = format!("pool `{}` {why}", pool.name());
        Error::e_explain(ErrorType::ConnectError, why)
    }

    async fn exchange(
        &self,
        peer: &HttpPeer,
        line: &Line,
        request: &RequestHeader,
        body: &mut Body,
        is_sent: &mut bool,
    ) -> Result<(ResponseHeader, HttpSession)> {
        let (mut session, _) = self.0.get_http_session(peer).await?;
        line.settled();
        let request = match session.as_http2().is_some() {
            true => {
                // Pingora takes them from the peer for HTTP/1 only.
                session.set_read_timeout(peer.options.read_timeout);
                session.set_write_timeout(peer.options.write_timeout);
                over_http2(request)?
            }
            false => over_http1(request, body.is_any())?,
        };
        if body.is_any() {
            // Whoever sends it is watched over elsewhere.
            line.expect_body(None);
        }
        *is_sent = true;
        session.write_request_header(Box::new(request)).await?;
        if !body.is_any() {
            session.finish_request_body().await?;
        }
        loop {
            tokio::select! {
                part = body.next(), if !body.is_over() => {
                    write(&mut session, line, part?).await?;
                    continue;
                }
                read = session.read_response_header() => read?,
            }
            match session.response_header() {
                Some(head) if head.status == StatusCode::SWITCHING_PROTOCOLS => {
                    let why = "protocols switched without a request for it";
                    return Error::e_explain(ErrorType::InvalidHTTPHeader, why);
                }
                Some(head) if head.status.is_informational() => {}
                Some(head) => return Ok((head.clone(), session)),
                None => return Error::e_explain(ErrorType::InvalidHTTPHeader, "no header"),
            }
        }
    }

    /// Reads the body to its end, if that is near, so that the connection can be used again.
    async fn finish(&self, mut session: HttpSession, peer: &HttpPeer) -> Result<Bytes> {
        let mut body = BytesMut::new();
        while body.len() <= ENOUGH {
            let Some(part) = session.read_response_body().await? else {
                let idle = peer.idle_timeout();
                self.0.release_http_session(session, peer, idle).await;
                return Ok(body.freeze());
            };
            body.extend_from_slice(&part);
        }
        session.shutdown().await;
        Ok(body.freeze())
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").finish_non_exhaustive()
    }
}

/// A part of the body goes to the member.
async fn write(session: &mut HttpSession, line: &Line, part: Part) -> Result<()> {
    match part {
        Part::Piece(piece) => {
            line.received(piece.len(), false);
            session.write_request_body(piece, false).await
        }
        Part::End => {
            session.finish_request_body().await?;
            line.received(0, true);
            Ok(())
        }
    }
}

/// The same request as HTTP/1.1 writes it: a body without a length goes in chunks.
fn over_http1(request: &RequestHeader, has_body: bool) -> Result<RequestHeader> {
    let mut request = request.clone();
    if has_body && !request.headers.contains_key(header::CONTENT_LENGTH) {
        request.insert_header("Transfer-Encoding", "chunked")?;
    }
    Ok(request)
}

/// The same request as HTTP/2 writes it: the host is the authority of its URI.
fn over_http2(request: &RequestHeader) -> Result<RequestHeader> {
    const BAD: ErrorType = ErrorType::InvalidHTTPHeader;
    let mut request = request.clone();
    let host = request.remove_header(&header::HOST);
    let host = host.as_ref().map_or(&b""[..], |host| host.as_bytes());
    let authority = Authority::try_from(host).or_err(BAD, "no host")?;
    let path = request.uri.path_and_query().cloned();
    let uri = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(authority)
        .path_and_query(path.unwrap_or(PathAndQuery::from_static("/")))
        .build()
        .or_err(BAD, "no URI")?;
    request.set_uri(uri);
    request.set_version(Version::HTTP_2);
    Ok(request)
}
