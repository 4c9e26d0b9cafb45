//! `buffer_request`: the body of a request is received as a whole, and then given to backends from where it is kept.
//!
//! Pingora pulls the body out of the client's session while it has a backend at hand, and keeps 64 KiB of it for another
//! try. So the body is received before Pingora asks for a backend, and the session exchanged for one that stands for it:
//! whatever is asked of the client goes on to the real one, but the body comes from the spool, from its beginning with
//! each try. Pingora has a place for sessions that it does not know, where those of HTTP/2 with clients are as well
//! ([`crate::net`]), and announces each try by asking for a retry buffer. Alternatives weighed: to read ahead
//! beneath Pingora leaves it with the 64 KiB and the client's chunks; a filter for bodies gets each piece once.
//!
//! The real session is back before anything is logged, or weir answers in the place of a backend: what Pingora does for HTTP/1
//! only, such as keeping the connection, goes on as for any request. The one exception is HTTP/1.0, whose answers may have
//! no length: its connection ends with the request.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, Version, header};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::{HttpTask, ServerSession};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, OrErr, Result};
use tokio::time::timeout_at;

use super::{Exchange, grpc};
use crate::disk::spool::{Spool, Spooled};
use crate::exchange::Failure;
use crate::filter::Filter;
use crate::http::owed::Owed;

/// Where a session waits that another one stands for.
pub(super) type Back = Arc<Mutex<Option<ServerSession>>>;

/// Receives the body of a request, if it has one that is to be kept, and puts a session in the client's place that has it.
///
/// # Errors
/// When the request ends here: the client breaks off, is too slow or sends too much, or there is no room.
pub(super) async fn receive(client: &mut ServerSession, x: &mut Exchange) -> Result<()> {
    let Some(policy) = x.chain().buffer_request.clone() else {
        return Ok(());
    };
    let is_conversation = client.is_upgrade_req() || grpc::is_grpc(&client.req_header().headers);
    if is_conversation || client.is_body_empty() {
        return Ok(());
    }
    if x.attempts.is_to_continue(client.req_header()) {
        client.write_continue_response().await?;
    }
    let body = read(client, x, policy.spool()).await?;
    x.attempts.kept(body.length());
    if client.req_header().version < Version::HTTP_11 {
        client.set_keepalive(None);
    }
    let back = Back::default();
    let real = mem::replace(client, nobody());
    *client = ServerSession::new_custom(Box::new(Buffered {
        client: real,
        body,
        at: 0,
        back: back.clone(),
    }));
    x.away = Some(back);
    Ok(())
}

/// Puts the client's session back in its place, if another one stands for it.
pub(super) fn restore(session: &mut ServerSession, x: &mut Exchange) {
    if let Some(back) = x.away.take() {
        // It comes back when the other one is dropped.
        *session = nobody();
        if let Some(client) = back.lock().take() {
            *session = client;
        }
    }
}

/// Has the header say how long the body is, whatever it said before.
///
/// # Errors
/// None that a number could cause.
pub(super) fn frame(upstream: &mut RequestHeader, length: u64) -> Result<()> {
    upstream.remove_header(&header::TRANSFER_ENCODING);
    upstream.insert_header(header::CONTENT_LENGTH, length)
}

async fn read(client: &mut ServerSession, x: &mut Exchange, mut spool: Spool) -> Result<Spooled> {
    // Of HTTP/1, the gate of the connection watches over that.
    let mut owed = x.cx.connection.terms.map(Owed::new);
    while let Some(piece) = read_piece(client, owed.as_mut()).await? {
        x.cx.body_received += piece.len() as u64;
        if let Some(limit) = &x.chain().body_limit
            && let Err(failure) = limit.request_body(&x.cx, &mut None, false)
        {
            x.cx.failure = Some(failure);
            return Err(Error::explain(ErrorType::InternalError, failure.word()).into_down());
        }
        if let Err(e) = spool.add(piece).await {
            x.cx.failure = Some(Failure::of_storage(&e));
            let why = "keeping the body of a request";
            return Err(Error::because(ErrorType::FileWriteError, why, e));
        }
    }
    Ok(spool.end())
}

async fn read_piece(client: &mut ServerSession, owed: Option<&mut Owed>) -> Result<Option<Bytes>> {
    let read = client.read_request_body();
    let Some(owed) = owed else {
        return read.await.map_err(Error::into_down);
    };
    let deadline = owed.wait(Instant::now());
    let Ok(read) = timeout_at(deadline.into(), read).await else {
        let why = "waiting for the body";
        return Err(Error::explain(ErrorType::ReadTimedout, why).into_down());
    };
    let piece = read.map_err(Error::into_down)?;
    owed.receive(piece.as_ref().map_or(0, Bytes::len), Instant::now);
    Ok(piece)
}

/// What stands in a place until a session does.
fn nobody() -> ServerSession {
    ServerSession::new_custom(Box::new(()))
}

/// A client's session whose body was received already.
struct Buffered {
    client: ServerSession,
    body: Spooled,
    /// How much of it the present try has.
    at: u64,
    back: Back,
}

impl Drop for Buffered {
    fn drop(&mut self) {
        *self.back.lock() = Some(mem::replace(&mut self.client, nobody()));
    }
}

impl Buffered {
    fn is_given(&self) -> bool {
        self.at >= self.body.length()
    }

    /// No other try follows on an answer that the client has some of.
    fn answered(&mut self) {
        if self.is_given() && self.client.response_written().is_some() {
            self.body.forget();
        }
    }
}

#[async_trait]
impl CustomSession for Buffered {
    fn req_header(&self) -> &RequestHeader {
        self.client.req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.client.req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        if self.is_given() {
            return Ok(None);
        }
        let piece = self.body.read(self.at).await;
        let piece = piece.or_err(ErrorType::FileReadError, "reading a body that was kept")?;
        self.at += piece.len() as u64;
        Ok(Some(piece))
    }

    /// Nothing of it is on the connection.
    async fn drain_request_body(&mut self) -> Result<()> {
        Ok(())
    }

    async fn write_response_header(&mut self, resp: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.client.write_response_header(resp).await?;
        match end {
            true => self.client.finish_body().await,
            false => Ok(()),
        }
    }

    async fn write_response_header_ref(&mut self, resp: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(resp.clone()), end)
            .await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.client.write_response_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.client.write_response_trailers(trailers).await
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let over = self.client.response_duplex_vec(tasks).await?;
        self.answered();
        Ok(over)
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.client.set_read_timeout(timeout);
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.client.get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.client.set_write_timeout(timeout);
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.client.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        self.client.set_total_drain_timeout(timeout);
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.client.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        self.client.request_summary()
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.client.response_written()
    }

    async fn shutdown(&mut self, _code: u32, _why: &str) {
        self.client.shutdown().await;
    }

    fn is_body_done(&mut self) -> bool {
        self.is_given()
    }

    async fn finish(&mut self) -> Result<()> {
        self.client.finish_body().await
    }

    fn is_body_empty(&mut self) -> bool {
        self.body.length() == 0
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        match no_body_expected || self.is_given() {
            true => self.client.read_body_or_idle(true).await,
            false => self.read_body_bytes().await,
        }
    }

    fn body_bytes_sent(&self) -> usize {
        self.client.body_bytes_sent()
    }

    fn body_bytes_read(&self) -> usize {
        self.client.body_bytes_read()
    }

    fn digest(&self) -> Option<&Digest> {
        self.client.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.client.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.client.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.client.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        self.client.to_h1_raw()
    }

    /// Pingora does this when a try begins.
    fn enable_retry_buffering(&mut self) {
        self.at = 0;
    }

    fn retry_buffer_truncated(&self) -> bool {
        false
    }

    /// The body is read once more instead.
    fn get_retry_buffer(&self) -> Option<Bytes> {
        None
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        None
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        None
    }

    fn restore_custom_message_writer(
        &mut self,
        _writer: Box<dyn CustomMessageWrite>,
    ) -> Result<()> {
        Ok(())
    }
}
