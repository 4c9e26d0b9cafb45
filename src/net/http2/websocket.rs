//! A WebSocket over HTTP/2 (RFC 8441).
//!
//! `CONNECT` with `:protocol: websocket` becomes the request for an upgrade that it would be on HTTP/1.1, before anybody
//! looks at it (section 5). So routing, policies, backends, log and drain know one kind of WebSocket; only here it is
//! told to the client in the words of HTTP/2. That the backend means it, by the key that weir made, is looked at where
//! its answer is.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use boring::base64;
use bytes::{Buf, Bytes};
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::request::Parts;
use http::{HeaderValue, Method, Version, header};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Traffic;
use crate::net::tunnel::Tunnel;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE: HeaderValue = HeaderValue::from_static("Upgrade");

/// A request for a WebSocket, and what it becomes.
pub(super) struct Bridge {
    traffic: Arc<Traffic>,
    /// Once the backend has agreed.
    pub tunnel: Option<Tunnel>,
    /// What the client sent that nobody has read yet.
    pub unread: Bytes,
    /// Whether the client has nothing more to say.
    pub left: bool,
}

impl Bridge {
    /// Makes a request for a WebSocket one for an upgrade; `None` where it is no such request.
    pub fn of(request: &mut Parts, traffic: &Arc<Traffic>) -> Option<Bridge> {
        // Taken: on HTTP/2 to a backend it would be asked for there, for a method that knows none.
        let protocol = request.extensions.remove::<Protocol>()?;
        if request.method != Method::CONNECT || protocol.as_str() != "websocket" {
            return None;
        }
        request.method = Method::GET;
        request.version = Version::HTTP_11;
        let fields = &mut request.headers;
        if !fields.contains_key(header::HOST)
            && let Some(authority) = request.uri.authority()
            && let Ok(host) = HeaderValue::from_str(authority.as_str())
        {
            fields.insert(header::HOST, host);
        }
        fields.insert(header::UPGRADE, WEBSOCKET);
        fields.insert(header::CONNECTION, UPGRADE);
        let key = fastrand::u128(..).to_be_bytes();
        if let Ok(key) = HeaderValue::from_str(&base64::encode_block(&key)) {
            fields.insert(header::SEC_WEBSOCKET_KEY, key);
        }
        traffic.tunnels.fetch_add(1, Ordering::Relaxed);
        Some(Bridge {
            traffic: traffic.clone(),
            tunnel: None,
            unread: Bytes::new(),
            left: false,
        })
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.traffic.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Both directions of a stream, as bytes.
pub(super) struct Ends<'a> {
    pub body: &'a mut RecvStream,
    pub unread: &'a mut Bytes,
    pub answer: &'a mut SendStream<Bytes>,
}

impl AsyncRead for Ends<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            let Some(data) = ready!(this.body.poll_data(cx)) else {
                return Poll::Ready(Ok(()));
            };
            *this.unread = data.map_err(io::Error::other)?;
        }
        let count = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..count]);
        this.unread.advance(count);
        // Only fails for more than was received.
        let _ = this.body.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Ends<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let answer = &mut *self.get_mut().answer;
        answer.reserve_capacity(bytes.len());
        while answer.capacity() == 0 {
            match ready!(answer.poll_capacity(cx)) {
                Some(room) => drop(room.map_err(io::Error::other)?),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = answer.capacity().min(bytes.len());
        let sent = answer.send_data(Bytes::copy_from_slice(&bytes[..count]), false);
        Poll::Ready(sent.map(|()| count).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.get_mut().answer.send_data(Bytes::new(), true);
        Poll::Ready(sent.map_err(io::Error::other))
    }
}
