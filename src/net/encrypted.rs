//! The byte stream of a client connection with TLS.
//!
//! TLS makes a record of each write, with a price for each. So small writes (the header and the body of a small answer,
//! the frames of several answers on HTTP/2) are gathered here until a flush, and encrypted together.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use pingora::protocols::Shutdown;
use pingora::protocols::tls::SslStream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::stream::ClientStream;

/// What fits into one record (RFC 8446 section 5.1).
const RECORD: usize = 16 * 1024;
/// Room for most small answers.
const SMALL: usize = 2048;

/// See the module's description.
pub(super) struct EncryptedStream {
    stream: SslStream<ClientStream>,
    /// Bytes accepted for writing that are not encrypted yet.
    gathered: BytesMut,
}

impl EncryptedStream {
    pub(super) fn new(stream: SslStream<ClientStream>) -> EncryptedStream {
        EncryptedStream {
            stream,
            gathered: BytesMut::new(),
        }
    }

    pub(super) fn get_ref(&self) -> &SslStream<ClientStream> {
        &self.stream
    }

    /// Encrypts what is gathered; ready when nothing is left.
    fn poll_encrypt(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let stream = Pin::new(&mut self.stream);
            let written = ready!(stream.poll_write(cx, &self.gathered))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.advance(written);
        }
        // Nothing is held while the connection is idle.
        self.gathered = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for EncryptedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_pending() && !self.gathered.is_empty() {
            // Nothing more is to come for now, in either direction: what is held back must not wait for it.
            let _ = self.poll_flush(cx)?;
        }
        read
    }
}

impl AsyncWrite for EncryptedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.gathered.len() + bytes.len() > RECORD {
            ready!(self.poll_encrypt(cx))?;
        }
        if bytes.len() >= RECORD {
            return Pin::new(&mut self.stream).poll_write(cx, bytes);
        }
        if self.gathered.capacity() == 0 {
            self.gathered.reserve(SMALL.max(bytes.len()));
        }
        self.gathered.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_encrypt(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_encrypt(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for EncryptedStream {
    /// The engine drops a connection on which an answer broke off: what there is of it is the client's.
    fn drop(&mut self) {
        if !self.gathered.is_empty() {
            // What the socket does not take now is lost, as it would be with the connection.
            let mut nobody = Context::from_waker(Waker::noop());
            let _ = Pin::new(self).poll_flush(&mut nobody);
        }
    }
}

#[async_trait]
impl Shutdown for EncryptedStream {
    async fn shutdown(&mut self) {
        // The client may be gone already; there is nobody to tell.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl fmt::Debug for EncryptedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stream.fmt(f)
    }
}

ask_beneath!([] EncryptedStream, |this| this.stream);
