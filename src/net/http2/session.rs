//! One request of an HTTP/2 connection, as Pingora's engine sees it.
//!
//! Pingora has a session of its own for this. It does not tell whether an answer makes progress, cannot be told to give
//! one up, and has no interim answers (103). So weir brings its own, by the way that Pingora leaves open for protocols
//! that it does not know.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use futures_core::Stream;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::{HttpTask, date};
use pingora::protocols::l4::socket::SocketAddr;
use pingora::{Error, ErrorType, OrErr, Result};
use tokio::io::ReadBuf;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::Traffic;
use super::stalled::{Place, Stalled};
use super::websocket::{Bridge, Ends};
use crate::http::outlet::Outlet;
use crate::net::stream::Connection;
use crate::net::tunnel::Tunnel;

/// How long a client takes nothing before its answer counts as one that waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// And how much it has to take to be one that takes it again: a client that opens its window byte by byte does not.
const PROGRESS: usize = 4096;
/// How much of a request's body is kept to send it once more, as Pingora has it for all protocols.
const RETRY_BUFFER: usize = 64 * 1024;
/// How much is read at once of what a client sends through a WebSocket.
const TUNNEL_BUFFER: usize = 8 * 1024;
/// For ever, where no time limit is set.
const NO_LIMIT: Duration = Duration::from_secs(1 << 30);

/// How long a client may go on with a body that nobody reads, once it has its answer, before its stream is reset: many (curl
/// 7.88 is one) lose an answer that comes together with the reset. (nginx: `lingering_timeout`.)
const LINGER_OF_STREAM: Duration = Duration::from_secs(1);

/// Fields that speak about a connection of HTTP/1 (RFC 9113 section 8.2.2).
const OF_HTTP1: [HeaderName; 5] = [
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What the requests of one connection have in common.
pub(super) struct Common {
    pub connection: Arc<Connection>,
    pub digest: Digest,
    pub stalled: Arc<Stalled>,
    /// How many bytes all answers that wait may hold.
    pub most_stalled: usize,
    pub traffic: Arc<Traffic>,
    /// Turns true when tunnels are to close.
    pub tunnels: Arc<watch::Sender<bool>>,
}

/// See the module's description.
pub(super) struct Session {
    common: Arc<Common>,
    request: RequestHeader,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    /// Where the answer goes, once its header is sent.
    answer: Option<SendStream<Bytes>>,
    written: Option<Box<ResponseHeader>>,
    /// Whether nothing more is to be sent.
    ended: bool,
    bytes_read: usize,
    bytes_sent: usize,
    retry: Option<Retry>,
    write_timeout: Option<Duration>,
    outlet: Arc<Outlet>,
    wait: Wait,
    /// Where the request is one for a WebSocket.
    bridge: Option<Box<Bridge>>,
}

/// How the client takes its answer.
#[derive(Default)]
struct Wait {
    /// What it has taken since it was last waited for.
    taken: usize,
    /// Where it is noted down that it does not.
    place: Option<Place>,
}

/// The beginning of a body, to send it once more.
#[derive(Default)]
struct Retry {
    bytes: BytesMut,
    truncated: bool,
}

impl Retry {
    fn keep(&mut self, data: &[u8]) {
        self.truncated |= self.bytes.len() + data.len() > RETRY_BUFFER;
        match self.truncated {
            true => self.bytes = BytesMut::new(),
            false => self.bytes.extend_from_slice(data),
        }
    }
}

/// An answer that cannot be written for now.
struct HeldUp<'a> {
    count: &'a AtomicUsize,
    outlet: &'a Outlet,
}

impl<'a> HeldUp<'a> {
    fn new(count: &'a AtomicUsize, outlet: &'a Outlet) -> HeldUp<'a> {
        count.fetch_add(1, Ordering::Relaxed);
        outlet.block();
        HeldUp { count, outlet }
    }
}

impl Drop for HeldUp<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.outlet.open();
    }
}

impl Session {
    pub fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        common: Arc<Common>,
    ) -> Session {
        let (mut request, body) = request.into_parts();
        let bridge = Bridge::of(&mut request, &common.traffic);
        let outlet = Arc::<Outlet>::default();
        request.extensions.insert(outlet.clone());
        Session {
            bridge: bridge.map(Box::new),
            common,
            request: request.into(),
            body,
            respond,
            answer: None,
            written: None,
            ended: false,
            bytes_read: 0,
            bytes_sent: 0,
            retry: None,
            write_timeout: None,
            outlet,
            wait: Wait::default(),
        }
    }

    fn send_header(&mut self, mut header: Box<ResponseHeader>, end: bool) -> Result<()> {
        if self.ended {
            return Ok(());
        }
        if self.bridge.is_some() {
            match header.status {
                StatusCode::SWITCHING_PROTOCOLS => return self.open_tunnel(header),
                // The client would take it for a WebSocket.
                status if status.is_success() => header.set_status(StatusCode::NOT_IMPLEMENTED)?,
                _ => {}
            }
        }
        for name in &OF_HTTP1 {
            header.remove_header(name);
        }
        if header.status.is_informational() {
            let interim = Response::from_parts(header.as_owned_parts(), ());
            return self
                .respond
                .send_informational(interim)
                .or_err(ErrorType::WriteError, "writing an interim answer")
                .map_err(Error::into_down);
        }
        if self.written.is_some() {
            return Ok(());
        }
        self.begin_answer(header, end)
    }

    /// Tells the client that the backend has agreed to a WebSocket. What is remembered of that is the backend's answer.
    fn open_tunnel(&mut self, header: Box<ResponseHeader>) -> Result<()> {
        let mut told = header.clone();
        told.set_status(StatusCode::OK)?;
        // Some send a length of nothing along, which would be that of the tunnel here.
        let others = [header::SEC_WEBSOCKET_ACCEPT, header::CONTENT_LENGTH];
        for name in OF_HTTP1.iter().chain(&others) {
            told.remove_header(name);
        }
        self.written = Some(header);
        self.begin_answer(told, false)?;
        if let Some(bridge) = &mut self.bridge {
            bridge.tunnel = Some(Tunnel::past_head(self.common.tunnels.subscribe()));
        }
        Ok(())
    }

    fn begin_answer(&mut self, mut header: Box<ResponseHeader>, end: bool) -> Result<()> {
        header.insert_header(header::DATE, date::get_cached_date())?;
        let response = Response::from_parts(header.as_owned_parts(), ());
        let answer = self
            .respond
            .send_response(response, end)
            .or_err(ErrorType::WriteError, "writing a header")
            .map_err(Error::into_down)?;
        self.answer = Some(answer);
        self.written.get_or_insert(header);
        self.ended = end;
        Ok(())
    }

    /// The WebSocket, if there is one, and what it goes through.
    fn tunnel(&mut self) -> Option<(&mut Tunnel, Ends<'_>)> {
        let bridge = self.bridge.as_deref_mut()?;
        let ends = Ends {
            body: &mut self.body,
            unread: &mut bridge.unread,
            answer: self.answer.as_mut()?,
        };
        Some((bridge.tunnel.as_mut()?, ends))
    }

    async fn read_tunnel(&mut self) -> Result<Option<Bytes>> {
        let Some((tunnel, mut ends)) = self.tunnel() else {
            return Ok(None);
        };
        let read = poll_fn(|cx| {
            // There only while there is something to read.
            let mut bytes = vec![0; TUNNEL_BUFFER];
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(tunnel.poll_read(&mut ends, cx, &mut buf))?;
            let count = buf.filled().len();
            bytes.truncate(count);
            Poll::Ready(std::io::Result::Ok(Bytes::from(bytes)))
        });
        let bytes = read
            .await
            .or_err(ErrorType::ReadError, "reading from a WebSocket")
            .map_err(Error::into_down)?;
        self.bytes_read += bytes.len();
        if bytes.is_empty()
            && let Some(bridge) = &mut self.bridge
        {
            bridge.left = true;
        }
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    async fn write_tunnel(&mut self, mut data: Bytes) -> Result<()> {
        let limit = self.write_timeout.unwrap_or(NO_LIMIT);
        while !data.is_empty() {
            let Some((tunnel, mut ends)) = self.tunnel() else {
                let why = "an upgraded body where nothing was upgraded";
                return Error::e_explain(ErrorType::InternalError, why);
            };
            let write = poll_fn(|cx| tunnel.poll_write(&mut ends, cx, &data));
            let written = match timeout(limit, write).await {
                Ok(written) => written.or_err(ErrorType::WriteError, "writing to a WebSocket"),
                Err(_) => Error::e_explain(ErrorType::WriteTimedout, "writing to a WebSocket"),
            };
            let written = written.map_err(Error::into_down)?;
            data.advance(written);
            self.bytes_sent += written;
        }
        Ok(())
    }

    async fn send_body(&mut self, mut data: Bytes, end: bool) -> Result<()> {
        if self.ended || (data.is_empty() && !end) {
            return Ok(());
        }
        while !data.is_empty() {
            let room = self.room(data.len()).await?;
            let piece = data.split_to(room.min(data.len()));
            self.bytes_sent += piece.len();
            self.wait.took(piece.len());
            self.send_data(piece, end && data.is_empty())?;
        }
        match end && !self.ended {
            true => self.send_data(Bytes::new(), true),
            false => Ok(()),
        }
    }

    fn send_data(&mut self, data: Bytes, end: bool) -> Result<()> {
        let Some(answer) = &mut self.answer else {
            return Error::e_explain(ErrorType::InternalError, "a body without a header");
        };
        self.ended = end;
        answer
            .send_data(data, end)
            .or_err(ErrorType::WriteError, "writing a body")
            .map_err(Error::into_down)
    }

    /// Waits until the client takes more; the result is how many bytes, at most `want`.
    async fn room(&mut self, want: usize) -> Result<usize> {
        let Some(answer) = &mut self.answer else {
            return Error::e_explain(ErrorType::InternalError, "a body without a header");
        };
        answer.reserve_capacity(want);
        if answer.capacity() > 0 {
            return Ok(answer.capacity());
        }
        let common = &self.common;
        let _held_up = HeldUp::new(&common.connection.held_up, &self.outlet);
        let limit = self.write_timeout.unwrap_or(NO_LIMIT);
        let wait = &mut self.wait;
        if wait.place.is_none() {
            let patience = PATIENCE.min(limit);
            if let Ok(room) = timeout(patience, capacity(answer)).await {
                return room;
            }
            wait.taken = 0;
            let number = common.connection.number;
            wait.place = Some(common.stalled.enter(number, common.most_stalled));
        }
        let given_up = async {
            if let Some(place) = &mut wait.place {
                place.given_up().await;
            }
        };
        let why = tokio::select! {
            biased;
            room = capacity(answer) => return room,
            () = given_up => "given up for others",
            () = sleep(limit.saturating_sub(PATIENCE)) => "time-out",
        };
        answer.send_reset(Reason::CANCEL);
        self.ended = true;
        let why = format!("the client does not take its answer, {why}");
        Err(Error::explain(ErrorType::WriteTimedout, why).into_down())
    }

    /// Ready when the client has reset the request, or is gone.
    async fn left(&mut self) -> Box<Error> {
        let reset = poll_fn(|cx| match &mut self.answer {
            Some(answer) => answer.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        });
        let why = match reset.await {
            Ok(reason) => format!("the client closed the stream: {reason}"),
            Err(e) => format!("the client is gone: {e}"),
        };
        Error::explain(ErrorType::H2Error, why).into_down()
    }

    /// Whether the client may send more of its body, when nobody reads it any more. What is here already is thrown away, for
    /// the end may stand behind it.
    fn is_more_to_come(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut unread = 0;
        // A window has an end, and no room is made in it before what it holds is taken.
        loop {
            match self.body.poll_data(&mut cx) {
                Poll::Ready(Some(Ok(data))) => unread += data.len(),
                // The end, or a reset; the engine makes room when the stream is dropped.
                Poll::Ready(_) => return false,
                Poll::Pending => break,
            }
        }
        // As in `read_body_bytes`.
        let _ = self.body.flow_control().release_capacity(unread);
        true
    }

    fn reset(&mut self, reason: Reason) {
        if !std::mem::replace(&mut self.ended, true) {
            self.respond.send_reset(reason);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let is_answered = self.ended && self.written.is_some();
        if !is_answered || !self.is_more_to_come() {
            return;
        }
        // As long as somebody has a handle, the engine does not reset the stream; what comes is thrown away.
        let handle = self.body.flow_control().clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                sleep(LINGER_OF_STREAM).await;
                drop(handle);
            });
        }
    }
}

impl Wait {
    fn took(&mut self, bytes: usize) {
        if self.place.is_some() {
            self.taken += bytes;
            if self.taken >= PROGRESS {
                self.place = None;
            }
        }
    }
}

async fn capacity(answer: &mut SendStream<Bytes>) -> Result<usize> {
    poll_fn(|cx| poll_capacity(answer, cx)).await
}

fn poll_capacity(answer: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<usize>> {
    loop {
        return Poll::Ready(match ready!(answer.poll_capacity(cx)) {
            // It was taken back.
            Some(Ok(0)) => continue,
            Some(Ok(room)) => Ok(room),
            Some(Err(e)) => {
                let e = Error::because(ErrorType::WriteError, "waiting to write a body", e);
                Err(e.into_down())
            }
            None => {
                let why = "the client closed the stream";
                Err(Error::explain(ErrorType::WriteError, why).into_down())
            }
        });
    }
}

#[async_trait]
impl CustomSession for Session {
    fn req_header(&self) -> &RequestHeader {
        &self.request
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        &mut self.request
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        if self.bridge.is_some() {
            return self.read_tunnel().await;
        }
        let data = self
            .body
            .data()
            .await
            .transpose()
            .or_err(ErrorType::ReadError, "reading a body")
            .map_err(Error::into_down)?;
        if let Some(data) = &data {
            self.bytes_read += data.len();
            if let Some(retry) = &mut self.retry {
                retry.keep(data);
            }
            // Only fails for more than was received.
            let _ = self.body.flow_control().release_capacity(data.len());
        }
        Ok(data)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        if !self.is_body_done() {
            while self.read_body_bytes().await?.is_some() {}
        }
        Ok(())
    }

    async fn write_response_header(&mut self, resp: Box<ResponseHeader>, end: bool) -> Result<()> {
        self.send_header(resp, end)
    }

    async fn write_response_header_ref(&mut self, resp: &ResponseHeader, end: bool) -> Result<()> {
        self.send_header(Box::new(resp.clone()), end)
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.send_body(data, end).await
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        let Some(answer) = &mut self.answer else {
            return Error::e_explain(ErrorType::InternalError, "trailers without a header");
        };
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        answer
            .send_trailers(trailers)
            .or_err(ErrorType::WriteError, "writing trailers")
            .map_err(Error::into_down)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut over = false;
        for task in tasks {
            over |= match task {
                HttpTask::Header(header, end) => {
                    self.send_header(header, end)?;
                    end
                }
                HttpTask::Body(data, end) => {
                    self.send_body(data.unwrap_or_default(), end).await?;
                    end
                }
                HttpTask::UpgradedBody(data, end) => {
                    self.write_tunnel(data.unwrap_or_default()).await?;
                    end
                }
                HttpTask::Trailer(Some(trailers)) => {
                    self.write_trailers(*trailers).await?;
                    true
                }
                HttpTask::Trailer(None) | HttpTask::Done => true,
                HttpTask::Failed(e) => return Err(e),
            };
        }
        if over {
            self.finish().await?;
        }
        Ok(over)
    }

    fn set_read_timeout(&mut self, _timeout: Option<Duration>) {
        // The connection has its limits for clients that stop in the middle.
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        None
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.write_timeout
    }

    fn set_total_drain_timeout(&mut self, _timeout: Option<Duration>) {
        // As for reading.
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        None
    }

    fn request_summary(&self) -> String {
        let (method, uri) = (&self.request.method, &self.request.uri);
        let host = uri.authority().map_or("", |host| host.as_str());
        format!("{method} {}, Host: {host}", uri.path())
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        self.written.as_deref()
    }

    async fn shutdown(&mut self, _code: u32, _why: &str) {
        self.reset(Reason::INTERNAL_ERROR);
    }

    fn is_body_done(&mut self) -> bool {
        if let Some(bridge) = &self.bridge {
            return bridge.tunnel.is_none() || bridge.left;
        }
        self.is_body_empty() || self.body.is_end_stream()
    }

    async fn finish(&mut self) -> Result<()> {
        match self.ended || self.answer.is_none() {
            // Without a header the stream ends with a reset, when this is dropped.
            true => Ok(()),
            false => {
                if let Some((tunnel, mut ends)) = self.tunnel() {
                    poll_fn(|cx| tunnel.poll_end(&mut ends, cx)).await;
                }
                if let Some(bridge) = &mut self.bridge {
                    // A WebSocket ends when either side ends it.
                    bridge.left = true;
                }
                self.send_data(Bytes::new(), true)
            }
        }
    }

    fn is_body_empty(&mut self) -> bool {
        if let Some(bridge) = &self.bridge {
            return bridge.tunnel.is_none();
        }
        let length = self.request.headers.get(header::CONTENT_LENGTH);
        self.bytes_read == 0
            && (self.body.is_end_stream() || length.is_some_and(|length| length == "0"))
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        match no_body_expected || self.is_body_done() {
            true => Err(self.left().await),
            false => self.read_body_bytes().await,
        }
    }

    fn body_bytes_sent(&self) -> usize {
        self.bytes_sent
    }

    fn body_bytes_read(&self) -> usize {
        self.bytes_read
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.common.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        None
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.common.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.common.digest.socket_digest.as_ref()?.local_addr()
    }

    /// For subrequests, of which there are none.
    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        Bytes::new()
    }

    fn enable_retry_buffering(&mut self) {
        self.retry.get_or_insert_default();
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.retry.as_ref().is_some_and(|retry| retry.truncated)
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        let retry = self.retry.as_ref()?;
        (!retry.bytes.is_empty()).then(|| retry.bytes.clone().freeze())
    }

    fn is_upgrade_req(&self) -> bool {
        self.bridge.is_some()
    }

    fn was_upgraded(&self) -> bool {
        let bridge = self.bridge.as_ref();
        bridge.is_some_and(|bridge| bridge.tunnel.is_some())
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

#[cfg(test)]
mod tests {
    use h2::client::ResponseFuture;
    use h2::ext::Protocol;
    use tokio::io::duplex;
    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;

    /// A request of a client that opens windows of that size, and whose answer has begun.
    async fn scene(window: u32, common: &Arc<Common>) -> (Session, ResponseFuture) {
        let request = Request::get("http://localhost/").body(()).unwrap();
        let (mut session, answer, _) = exchange(window, common, request, true).await;
        let header = Box::new(ResponseHeader::build(200, None).unwrap());
        session.write_response_header(header, false).await.unwrap();
        (session, answer)
    }

    /// A request, which may have a body, as both sides see it.
    async fn exchange(
        window: u32,
        common: &Arc<Common>,
        request: Request<()>,
        end: bool,
    ) -> (Session, ResponseFuture, SendStream<Bytes>) {
        let (near, far) = duplex(1 << 20);
        let mut options = h2::client::Builder::new();
        options.initial_window_size(window);
        let (client, server) = tokio::join!(
            options.handshake::<_, Bytes>(near),
            h2::server::handshake(far)
        );
        let ((mut requests, connection), mut server) = (client.unwrap(), server.unwrap());
        tokio::spawn(connection);
        let (answer, body) = requests.send_request(request, end).unwrap();
        let (request, respond) = server.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        let mut session = Session::new(request, respond, common.clone());
        session.set_write_timeout(Some(Duration::from_secs(60)));
        (session, answer, body)
    }

    /// An upload that is answered before its end.
    async fn upload() -> (Session, ResponseFuture, SendStream<Bytes>) {
        let request = Request::post("http://localhost/").body(()).unwrap();
        let common = common(usize::MAX);
        let (mut session, answer, body) = exchange(1 << 16, &common, request, false).await;
        let header = Box::new(ResponseHeader::build(413, None).unwrap());
        session.write_response_header(header, true).await.unwrap();
        (session, answer, body)
    }

    /// Time passes, where it is paused, only when nobody has anything to do: what was sent is there then.
    async fn settle() {
        sleep(Duration::from_millis(1)).await;
    }

    fn tasks() -> usize {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    }

    fn common(most: usize) -> Arc<Common> {
        let digest = Digest {
            ssl_digest: None,
            timing_digest: Vec::new(),
            proxy_digest: None,
            socket_digest: None,
        };
        let connection = Arc::<Connection>::default();
        Arc::new(Common {
            connection: connection.clone(),
            digest,
            stalled: Arc::default(),
            most_stalled: most,
            traffic: Arc::new(Traffic::new(connection)),
            tunnels: Arc::default(),
        })
    }

    #[tokio::test]
    async fn websocket_has_no_length() {
        let (near, far) = duplex(1 << 20);
        let mut options = h2::server::Builder::new();
        options.enable_connect_protocol();
        let (client, server) = tokio::join!(
            h2::client::handshake(near),
            options.handshake::<_, Bytes>(far)
        );
        let ((mut requests, connection), mut server) = (client.unwrap(), server.unwrap());
        tokio::spawn(connection);
        let (send, received) = oneshot::channel();
        tokio::spawn(async move {
            let _ = send.send(server.accept().await);
            while server.accept().await.is_some() {}
        });
        while !requests.is_extended_connect_protocol_enabled() {
            tokio::task::yield_now().await;
        }
        let request = Request::connect("http://localhost/")
            .extension(Protocol::from_static("websocket"))
            .body(())
            .unwrap();
        let (answer, _body) = requests.send_request(request, false).unwrap();
        let (request, respond) = received.await.unwrap().unwrap().unwrap();
        let mut session = Session::new(request, respond, common(usize::MAX));
        let mut header = ResponseHeader::build(101, None).unwrap();
        header.insert_header("Content-Length", "0").unwrap();
        header
            .insert_header("Sec-WebSocket-Protocol", "chat")
            .unwrap();
        session.send_header(Box::new(header), false).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
        assert!(!answer.headers().contains_key(header::CONTENT_LENGTH));
    }

    #[tokio::test(start_paused = true)]
    async fn upload_is_given_up_some_time_after_its_answer() {
        let (session, answer, mut body) = upload().await;
        let begun = Instant::now();
        drop(session);
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let reset = poll_fn(|cx| body.poll_reset(cx)).await;
        assert_eq!(reset.unwrap(), Reason::NO_ERROR);
        assert_eq!(begun.elapsed().as_secs(), LINGER_OF_STREAM.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn upload_may_come_to_its_end_after_its_answer() {
        let (session, answer, mut body) = upload().await;
        body.send_data(Bytes::from_static(b"some"), false).unwrap();
        settle().await;
        let before = tasks();
        drop(session);
        assert_eq!(tasks(), before + 1);
        settle().await;
        body.send_data(Bytes::from_static(b"more"), true).unwrap();
        let mut answer = answer.await.unwrap().into_body();
        sleep(2 * LINGER_OF_STREAM).await;
        assert!(answer.data().await.is_none());
        assert_eq!(tasks(), before);
    }

    #[tokio::test(start_paused = true)]
    async fn upload_that_is_over_is_not_waited_for() {
        for trailers in [false, true] {
            let (session, _answer, mut body) = upload().await;
            body.send_data(Bytes::from_static(b"all"), !trailers)
                .unwrap();
            if trailers {
                body.send_trailers(HeaderMap::new()).unwrap();
            }
            settle().await;
            let before = tasks();
            drop(session);
            assert_eq!(tasks(), before, "trailers: {trailers}");
        }
        let (session, _answer, mut body) = upload().await;
        body.send_data(Bytes::from_static(b"some"), false).unwrap();
        settle().await;
        body.send_reset(Reason::CANCEL);
        settle().await;
        let before = tasks();
        drop(session);
        assert_eq!(tasks(), before, "reset");
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_takes_nothing_is_left_in_time() {
        let common = common(usize::MAX);
        let (mut session, answer) = scene(10, &common).await;
        let begun = Instant::now();
        let body = Bytes::from_static(b"more than ten bytes");
        let error = session.write_body(body, true).await.unwrap_err();
        assert_eq!(*error.etype(), ErrorType::WriteTimedout);
        assert_eq!(begun.elapsed().as_secs(), 60);
        assert!(!common.connection.is_held_up());
        let mut body = answer.await.unwrap().into_body();
        let piece = body.data().await.unwrap().unwrap();
        assert_eq!(piece.len(), 10);
        assert!(body.data().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_that_wait_the_oldest_is_given_up() {
        let common = common(super::super::stalled::HOLD);
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let (mut session, answer) = scene(0, &common).await;
            waiting.push(tokio::spawn(async move {
                let begun = Instant::now();
                let sent = session.write_body(Bytes::from_static(b"x"), true).await;
                drop(answer);
                (sent.is_err(), begun.elapsed().as_secs())
            }));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let second = waiting.pop().unwrap().await.unwrap();
        let first = waiting.pop().unwrap().await.unwrap();
        assert_eq!((first, second), ((true, 1), (true, 60)));
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_takes_a_byte_at_a_time_still_counts_as_waiting() {
        let common = common(usize::MAX);
        let (mut session, _answer) = scene(0, &common).await;
        let number = common.connection.number;
        session.wait.place = Some(common.stalled.enter(number, usize::MAX));
        session.wait.took(1);
        assert!(session.wait.place.is_some());
        session.wait.took(PROGRESS);
        assert!(session.wait.place.is_none());
    }
}
