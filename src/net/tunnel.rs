//! A WebSocket that passes through, and its end when the process drains.
//!
//! Nothing in a drain would ever end one: it goes on for as long as both sides like. So when its time is over, each side
//! gets a close frame, the client with a code that tells it to come again, and what else the other side has for it is
//! dropped, for nothing may follow a close frame. This can be only where a frame ends; where one has begun, the rest of it is
//! passed on first. Then the client has a moment to close in turn, so that it reads what it was told.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use crate::http::websocket::{self, Frames};

/// For the client's close frame, once it was sent ours.
const LINGER: Duration = Duration::from_secs(2);

const HEAD_END: &[u8] = b"\r\n\r\n";

type Wait = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

pub(super) struct Tunnel {
    /// How much of the end of the answer's head (101) has passed to the client.
    head: usize,
    /// What came from the client along with its request.
    ahead: BytesMut,
    to_client: Frames,
    to_backend: Frames,
    /// Ends when tunnels are to close.
    due: Option<Wait>,
    /// Our close frame for the client, as far as it is not written.
    goodbye: Side,
    /// Our close frame for the backend, as far as the engine has not read it.
    notice: Side,
    /// Runs once the client has been told.
    linger: Option<Pin<Box<Sleep>>>,
    /// Whether the client has nothing more to say.
    left: bool,
}

/// The end of one direction.
enum Side {
    Open,
    /// What is still to be sent, and nothing after it.
    Closing(Bytes),
}

impl Side {
    fn is_open(&self) -> bool {
        matches!(self, Side::Open)
    }
}

impl Tunnel {
    /// `due` turns true when tunnels are to close; `ahead` is what was read of the client's already.
    pub(super) fn new(mut due: watch::Receiver<bool>, ahead: BytesMut) -> Tunnel {
        let due = async move {
            if due.wait_for(|due| *due).await.is_err() {
                // The process ends without that.
                std::future::pending().await
            }
        };
        Tunnel {
            head: 0,
            ahead,
            to_client: Frames::default(),
            to_backend: Frames::default(),
            due: Some(Box::pin(due)),
            goodbye: Side::Open,
            notice: Side::Open,
            linger: None,
            left: false,
        }
    }

    /// The same where the answer's head has passed already.
    pub(super) fn past_head(due: watch::Receiver<bool>) -> Tunnel {
        Tunnel {
            head: HEAD_END.len(),
            ..Tunnel::new(due, BytesMut::new())
        }
    }

    /// What the engine reads: what the client sends, until it is time to go.
    pub(super) fn poll_read<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(due) = &mut self.due
            && due.as_mut().poll(cx).is_ready()
        {
            self.due = None;
        }
        if self.due.is_some() {
            let before = buf.filled().len();
            ready!(self.poll_client(stream, cx, buf))?;
            self.to_backend.pass(&buf.filled()[before..]);
            return Poll::Ready(Ok(()));
        }
        // Whether or not the client takes it now: the backend need not wait for that.
        let told = self.poll_goodbye(stream, cx)?;
        self.begin_notice();
        match &mut self.notice {
            Side::Open => return self.poll_rest_of_frame(stream, cx, buf),
            Side::Closing(notice) if !notice.is_empty() => {
                let count = notice.len().min(buf.remaining());
                buf.put_slice(&notice.split_to(count));
                return Poll::Ready(Ok(()));
            }
            Side::Closing(_) => {}
        }
        ready!(told);
        // No bytes: the end.
        self.poll_left(stream, cx).map(Ok)
    }

    /// What the engine writes: the head of the answer, and what the backend sends.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.begin_goodbye();
        if !self.goodbye.is_open() {
            ready!(self.poll_goodbye(stream, cx))?;
            return Poll::Ready(Ok(bytes.len()));
        }
        let count = match self.due.is_none() && self.head == HEAD_END.len() {
            // No further than where there is room for the good-bye.
            true => self.to_client.clone().pass_frame(bytes),
            false => bytes.len(),
        };
        let written = ready!(Pin::new(stream).poll_write(cx, &bytes[..count]))?;
        self.pass_to_client(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    /// Before the connection is closed: lets the client read what it was told.
    pub(super) fn poll_end<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        if self.due.is_some() || self.goodbye.is_open() {
            return Poll::Ready(());
        }
        match ready!(self.poll_goodbye(stream, cx)) {
            Ok(()) => self.poll_left(stream, cx),
            // There is nobody to wait for.
            Err(_) => Poll::Ready(()),
        }
    }

    /// What the client sends.
    fn poll_client<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(stream).poll_read(cx, buf);
        }
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead.split_to(count));
        if self.ahead.is_empty() {
            // It shares its memory with the head.
            self.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// What is still to come of a frame for the backend, and then no more.
    fn poll_rest_of_frame<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(self.poll_client(stream, cx, buf))?;
        let read = &buf.filled()[before..];
        let passed = self.to_backend.pass_frame(read);
        self.begin_notice();
        self.to_backend.pass(&read[passed..]);
        buf.set_filled(before + passed);
        Poll::Ready(Ok(()))
    }

    /// If there is room for it now.
    fn begin_notice(&mut self) {
        if self.notice.is_open() && self.to_backend.at_boundary() {
            let mask = fastrand::u32(..).to_be_bytes();
            self.notice = Side::Closing(match self.to_backend.is_closing() {
                true => Bytes::new(),
                false => websocket::close(websocket::GOING_AWAY, Some(mask)).into(),
            });
        }
    }

    /// If it is due, and there is room for it now.
    fn begin_goodbye(&mut self) {
        let room = self.head == HEAD_END.len() && self.to_client.at_boundary();
        if self.due.is_none() && self.goodbye.is_open() && room {
            self.goodbye = Side::Closing(match self.to_client.is_closing() {
                true => Bytes::new(),
                false => websocket::close(websocket::SERVICE_RESTART, None).into(),
            });
        }
    }

    /// Ready once the client was sent the last that it gets.
    fn poll_goodbye<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.begin_goodbye();
        let Side::Closing(rest) = &mut self.goodbye else {
            // The engine goes on to write the frame that has begun.
            return Poll::Pending;
        };
        if self.linger.is_some() {
            return Poll::Ready(Ok(()));
        }
        while !rest.is_empty() {
            let written = ready!(Pin::new(&mut *stream).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            rest.advance(written);
        }
        ready!(Pin::new(stream).poll_flush(cx))?;
        self.linger = Some(Box::pin(sleep(LINGER)));
        Poll::Ready(Ok(()))
    }

    /// Ready once the client has closed in turn, is gone, or has taken too long.
    fn poll_left<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let mut unheard = [0; 1024];
        while !self.left && !self.to_backend.is_closing() {
            let mut buf = ReadBuf::new(&mut unheard);
            match self.poll_client(stream, cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.to_backend.pass(buf.filled());
                }
                Poll::Ready(_) => self.left = true,
                Poll::Pending => {
                    if let Some(linger) = &mut self.linger {
                        ready!(linger.as_mut().poll(cx));
                    }
                    self.left = true;
                }
            }
        }
        Poll::Ready(())
    }

    fn pass_to_client(&mut self, mut bytes: &[u8]) {
        while self.head < HEAD_END.len() {
            let Some((byte, rest)) = bytes.split_first() else {
                return;
            };
            self.head = match (*byte == HEAD_END[self.head], *byte) {
                (true, _) => self.head + 1,
                (false, b'\r') => 1,
                _ => 0,
            };
            bytes = rest;
        }
        self.to_client.pass(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const HEAD: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";

    struct Scene {
        tunnel: Tunnel,
        stream: DuplexStream,
        client: DuplexStream,
        due: watch::Sender<bool>,
    }

    impl Scene {
        async fn new() -> Scene {
            let (client, stream) = duplex(4096);
            let due = watch::Sender::new(false);
            let mut scene = Scene {
                tunnel: Tunnel::new(due.subscribe(), BytesMut::new()),
                stream,
                client,
                due,
            };
            scene.write(HEAD).await;
            assert_eq!(scene.received().await, HEAD);
            scene
        }

        /// As the engine writes.
        async fn write(&mut self, mut bytes: &[u8]) {
            while !bytes.is_empty() {
                let write =
                    |cx: &mut Context<'_>| self.tunnel.poll_write(&mut self.stream, cx, bytes);
                bytes = &bytes[poll_fn(write).await.unwrap()..];
            }
        }

        /// As the engine reads; `None` where it would wait.
        async fn read(&mut self) -> Option<Vec<u8>> {
            let mut room = [0; 256];
            poll_fn(|cx| {
                let mut buf = ReadBuf::new(&mut room);
                Poll::Ready(
                    match self.tunnel.poll_read(&mut self.stream, cx, &mut buf) {
                        Poll::Ready(read) => {
                            read.unwrap();
                            Some(buf.filled().to_vec())
                        }
                        Poll::Pending => None,
                    },
                )
            })
            .await
        }

        /// What the client has got by now.
        async fn received(&mut self) -> Vec<u8> {
            let mut all = Vec::new();
            let mut room = [0; 256];
            loop {
                let mut buf = ReadBuf::new(&mut room);
                let read =
                    poll_fn(|cx| Poll::Ready(Pin::new(&mut self.client).poll_read(cx, &mut buf)));
                match read.await {
                    Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                        all.extend_from_slice(buf.filled());
                    }
                    _ => return all,
                }
            }
        }
    }

    /// From the client, masked by zeros.
    const CLIENTS: &[u8] = b"\x81\x82\0\0\0\0hi";
    const BACKENDS: &[u8] = b"\x81\x02hi";
    const GOODBYE: &[u8] = b"\x88\x02\x03\xf4";
    const CLIENTS_CLOSE: &[u8] = b"\x88\x80\0\0\0\0";

    fn is_notice(read: Option<Vec<u8>>) -> bool {
        read.is_some_and(|read| read.len() == 8 && read.starts_with(&[0x88, 0x82]))
    }

    #[tokio::test]
    async fn nothing_is_changed_while_it_is_not_due() {
        let mut scene = Scene::new().await;
        scene.write(&BACKENDS[..3]).await;
        scene.write(&BACKENDS[3..]).await;
        scene.client.write_all(CLIENTS).await.unwrap();
        assert_eq!(scene.read().await.as_deref(), Some(CLIENTS));
        assert_eq!(scene.read().await, None);
        assert_eq!(scene.received().await, BACKENDS);
    }

    #[tokio::test]
    async fn both_sides_are_told_and_nothing_follows() {
        let mut scene = Scene::new().await;
        scene.due.send_replace(true);
        assert!(is_notice(scene.read().await));
        assert_eq!(scene.received().await, GOODBYE);
        scene.write(BACKENDS).await;
        scene.client.write_all(CLIENTS).await.unwrap();
        assert_eq!(scene.read().await, None);
        scene.client.write_all(CLIENTS_CLOSE).await.unwrap();
        assert_eq!(scene.read().await, Some(Vec::new()));
        assert_eq!(scene.received().await, b"");
    }

    #[tokio::test]
    async fn frames_that_have_begun_are_passed_on_first() {
        let mut scene = Scene::new().await;
        scene.write(&BACKENDS[..1]).await;
        scene.client.write_all(&CLIENTS[..5]).await.unwrap();
        assert_eq!(scene.read().await.as_deref(), Some(&CLIENTS[..5]));
        scene.due.send_replace(true);
        assert_eq!(scene.read().await, None);

        scene.client.write_all(&CLIENTS[5..]).await.unwrap();
        scene.client.write_all(CLIENTS).await.unwrap();
        assert_eq!(scene.read().await.as_deref(), Some(&CLIENTS[5..]));
        assert!(is_notice(scene.read().await));
        scene.write(&[&BACKENDS[1..], BACKENDS].concat()).await;
        assert_eq!(scene.read().await, None);
        assert_eq!(scene.received().await, [BACKENDS, GOODBYE].concat());

        scene.client.write_all(CLIENTS_CLOSE).await.unwrap();
        assert_eq!(scene.read().await, Some(Vec::new()));
    }

    #[tokio::test]
    async fn who_has_closed_already_is_not_told() {
        let mut scene = Scene::new().await;
        scene.write(b"\x88\0").await;
        scene.client.write_all(CLIENTS_CLOSE).await.unwrap();
        assert_eq!(scene.read().await.as_deref(), Some(CLIENTS_CLOSE));
        scene.due.send_replace(true);
        assert_eq!(scene.read().await, Some(Vec::new()));
        assert_eq!(scene.received().await, b"\x88\0");
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_does_not_answer_is_not_waited_for_long() {
        let mut scene = Scene::new().await;
        scene.due.send_replace(true);
        assert!(is_notice(scene.read().await));
        assert_eq!(scene.read().await, None);
        let end = poll_fn(|cx| scene.tunnel.poll_end(&mut scene.stream, cx));
        tokio::time::timeout(LINGER * 2, end).await.unwrap();
        let mut last = Vec::new();
        drop(scene.stream);
        scene.client.read_to_end(&mut last).await.unwrap();
        assert_eq!(last, GOODBYE);
    }
}
