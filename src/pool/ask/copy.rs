//! A copy of a client's request, whose body comes while it is sent and whose answer nobody reads.
//!
//! Whoever has the original puts the parts of its body into a [`Feed`] and never waits: what the pool has not taken yet is
//! kept up to a bound. Beyond that the copy is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use pingora::http::RequestHeader;
use pingora::upstreams::peer::Peer;
use pingora::{Error, ErrorType, Result};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Asker, write};
use crate::pool::{Choice, Needs, Pool};

/// What a piece counts for beside its bytes, so that a body of many small ones is bounded as well.
const PIECE: usize = 64;

/// Part of a body on its way.
#[derive(Debug)]
pub enum Part {
    Piece(Bytes),
    End,
}

/// The end of a body's way at which it is put in. Dropped before the body has ended, it breaks off.
#[derive(Debug)]
pub struct Feed {
    parts: UnboundedSender<Part>,
    waiting: Arc<AtomicUsize>,
    /// How many bytes may wait.
    room: usize,
}

/// Why a part has not gone into a [`Feed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfed {
    /// More would wait than may.
    Full,
    /// Nobody takes any more of it.
    Gone,
}

/// The body of a request to a pool.
#[derive(Debug)]
pub struct Body {
    /// `None` when there is none.
    parts: Option<UnboundedReceiver<Part>>,
    waiting: Arc<AtomicUsize>,
    is_whole: bool,
    is_over: bool,
}

/// A body of which at most `room` bytes wait to be sent.
pub fn body(room: usize) -> (Feed, Body) {
    let (sender, receiver) = unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let feed = Feed {
        parts: sender,
        waiting: waiting.clone(),
        room,
    };
    let body = Body {
        parts: Some(receiver),
        waiting,
        is_whole: true,
        is_over: false,
    };
    (feed, body)
}

impl Feed {
    /// # Errors
    /// When the piece, and with it the copy, is lost.
    pub fn push(&self, piece: Bytes) -> std::result::Result<(), Unfed> {
        let cost = piece.len() + PIECE;
        let before = self.waiting.fetch_add(cost, Ordering::Relaxed);
        if before + cost > self.room {
            return Err(Unfed::Full);
        }
        let sent = self.parts.send(Part::Piece(piece));
        sent.map_err(|_| Unfed::Gone)
    }

    /// The body is complete.
    pub fn end(self) {
        // Whoever takes no more of it need not know.
        let _ = self.parts.send(Part::End);
    }
}

impl Body {
    /// No body, not even an empty one.
    pub fn none() -> Body {
        Body {
            parts: None,
            waiting: Arc::default(),
            is_whole: true,
            is_over: true,
        }
    }

    pub(super) fn is_any(&self) -> bool {
        self.parts.is_some()
    }

    /// Whether nothing was taken of it yet.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// The next part. Nothing is lost when the wait is given up.
    ///
    /// # Errors
    /// When the body breaks off: the client's fault, as Pingora has it.
    pub(super) async fn next(&mut self) -> Result<Part> {
        let part = match &mut self.parts {
            Some(parts) => parts.recv().await,
            None => Some(Part::End),
        };
        self.is_whole = false;
        match part {
            Some(Part::Piece(piece)) => {
                let cost = piece.len() + PIECE;
                self.waiting.fetch_sub(cost, Ordering::Relaxed);
                Ok(Part::Piece(piece))
            }
            Some(Part::End) => {
                self.is_over = true;
                Ok(Part::End)
            }
            None => {
                let why = "the body breaks off";
                Err(Error::explain(ErrorType::ReadError, why).into_down())
            }
        }
    }
}

impl Asker {
    /// Sends a request, which names its host in `Host`, and reads its answer to the end, of which nothing remains. There is
    /// no limit of time but those of the pool.
    ///
    /// # Errors
    /// When no member answers.
    pub async fn tell(
        &self,
        pool: &Pool,
        request: &RequestHeader,
        mut body: Body,
        choice: Choice,
        needs: Needs,
        clock: fn() -> Instant,
    ) -> Result<()> {
        let mut begun = self
            .begin(pool, request, &mut body, choice, needs, clock)
            .await?;
        let session = &mut begun.session;
        loop {
            tokio::select! {
                part = body.next(), if !body.is_over() => {
                    write(session, &begun.line, part?).await?;
                }
                piece = session.read_response_body() => {
                    begun.line.passed(false);
                    if piece?.is_none() {
                        break;
                    }
                }
            }
        }
        match body.is_over() {
            true => {
                let idle = begun.peer.idle_timeout();
                self.0
                    .release_http_session(begun.session, &*begun.peer, idle)
                    .await;
            }
            // The member wants no more of it.
            false => begun.session.shutdown().await,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_is_bounded() {
        let (feed, mut body) = body(2 * (10 + PIECE));
        let piece = || Bytes::from_static(&[7; 10]);
        assert_eq!(feed.push(piece()), Ok(()));
        assert_eq!(feed.push(piece()), Ok(()));
        assert!(body.is_whole());
        assert!(matches!(body.next().await, Ok(Part::Piece(_))));
        assert!(!body.is_whole());
        assert_eq!(feed.push(piece()), Ok(()));
        assert_eq!(feed.push(piece()), Err(Unfed::Full));
    }

    #[tokio::test]
    async fn a_body_ends_or_breaks_off() {
        let (feed, mut whole) = body(1000);
        feed.end();
        assert!(matches!(whole.next().await, Ok(Part::End)));
        assert!(whole.is_over());
        let (feed, mut broken) = body(1000);
        drop(feed);
        assert!(broken.next().await.is_err());
        let (feed, gone) = body(1000);
        drop(gone);
        assert_eq!(feed.push(Bytes::from_static(b"a")), Err(Unfed::Gone));
    }
}
