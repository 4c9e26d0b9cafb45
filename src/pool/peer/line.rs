//! One try of a request: how it comes to a connection, and how long it may wait on it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::{Error, ErrorType, OrErr, Result};

use super::tls::Offer;
use super::turns::{Turn, Turns};
use super::wire::{Link, Wire};
use super::{Dialer, Needs};
use crate::http::owed::{Owed, Terms};

/// What a try is waiting for; each has a time limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// The whole header of the answer, from the last byte written on.
    Header,
    /// More of the body, from the last byte read on.
    Body,
    /// Anything, in either direction.
    Tunnel,
}

/// How much of an answer is read at once, no more of which is read ahead of what is being written (nginx: `proxy_buffers`):
/// Pingora would read about ten pieces of 64 KiB ahead. What a client leaves waiting it has twice, once in a buffer of
/// Pingora's. So pieces are only as large as that where they are many.
const PIECE: usize = 32 * 1024;
const LARGE_PIECE: usize = 64 * 1024;
const MANY: u64 = 1024 * 1024;
/// As much for a client that may ask for a hundred answers at a time: what goes into a frame of HTTP/2 (RFC 9113 section 4.2).
const FRAME: usize = 16 * 1024;
/// As much where it does ask for many, in the beginning.
const LITTLE: usize = 4 * 1024;
/// For how much that it has taken, beyond what any client of HTTP/2 takes (RFC 9113 section 6.9.2), it gets a byte more.
const GROWTH: u64 = 32;
const WINDOW: u64 = 65_535;
/// How much is read at once with the header: as much as Pingora asks for.
const HEAD: usize = 4 * 1024;

/// One try of a request on one connection; known to the phases of the request and to its stream.
#[derive(Debug)]
pub struct Line {
    me: Weak<Line>,
    pub(super) dialer: Arc<Dialer>,
    pub(super) needs: Needs,
    phase: AtomicU8,
    ahead: Mutex<Ahead>,
    reused: AtomicBool,
    expired: AtomicBool,
    outdated: AtomicBool,
    /// Whether the client still owes a part of its body, so that it, and not the backend, is waited for.
    is_owed: AtomicBool,
    /// How long it may take, if nobody else watches that.
    owed: Mutex<Option<Owed>>,
    overdue: AtomicBool,
    /// Whether the connection is to speak HTTP/2.
    http2: bool,
    offer: Offer,
    /// While this makes a connection that others can share.
    turn: Mutex<Option<Turn>>,
}

/// What was read of an answer that nobody has looked at yet, where that is not to be much.
#[derive(Debug)]
struct Ahead {
    bytes: usize,
    /// What was before that.
    passed: u64,
    /// How much is to be read next.
    piece: usize,
    reader: Option<Waker>,
}

impl Line {
    pub(super) fn new(dialer: Arc<Dialer>, needs: Needs, http2: bool, offer: Offer) -> Arc<Line> {
        Arc::new_cyclic(|me| Line {
            me: me.clone(),
            dialer,
            needs,
            phase: AtomicU8::new(Phase::Header as u8),
            ahead: Mutex::new(Ahead {
                bytes: 0,
                passed: 0,
                piece: HEAD,
                reader: None,
            }),
            reused: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            outdated: AtomicBool::new(false),
            is_owed: AtomicBool::new(false),
            owed: Mutex::default(),
            overdue: AtomicBool::new(false),
            http2,
            offer,
            turn: Mutex::default(),
        })
    }

    /// Whether an earlier request has used the connection.
    pub fn reused(&self) -> bool {
        self.reused.load(Ordering::Relaxed)
    }

    /// Whether the wait for the backend was given up.
    pub fn expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    /// Whether the next try will do better: there is a connection to share by now, or the backend speaks another protocol
    /// than it was thought to.
    pub fn outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }

    /// No connection is being made any more, whether there is one or not: others can look for it.
    pub fn settled(&self) {
        self.turn.lock().take();
    }

    /// The request has a body, which the client sends as `terms` say, if they say anything.
    pub fn expect_body(&self, terms: Option<Terms>) {
        *self.owed.lock() = terms.map(Owed::new);
        self.is_owed.store(true, Ordering::Relaxed);
    }

    /// So many bytes of it have come; with `end` there are no more.
    pub fn received(&self, bytes: usize, end: bool) {
        if !self.is_owed() {
            return;
        }
        if let Some(owed) = &mut *self.owed.lock() {
            owed.receive(bytes, Instant::now);
        }
        if end {
            self.is_owed.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn is_owed(&self) -> bool {
        self.is_owed.load(Ordering::Relaxed)
    }

    /// The backend does not take what there is of the body.
    pub(super) fn pause(&self) {
        if self.is_owed()
            && let Some(owed) = &mut *self.owed.lock()
        {
            owed.pause(Instant::now());
        }
    }

    /// Until when the client may keep us waiting, if anybody is to say.
    pub(super) fn patience(&self, now: Instant) -> Option<Instant> {
        self.owed.lock().as_mut().map(|owed| owed.wait(now))
    }

    /// Whether the client has kept us waiting for too long.
    pub fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::Relaxed)
    }

    pub(super) fn give_up(&self) {
        self.overdue.store(true, Ordering::Relaxed);
    }

    /// The final header of the answer is there; what follows is a body, or a tunnel or a stream of events.
    pub fn answered(&self, tunnel: bool) {
        let phase = if tunnel { Phase::Tunnel } else { Phase::Body };
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Header,
            1 => Phase::Body,
            _ => Phase::Tunnel,
        }
    }

    /// All that was read so far is on its way to the client. It may be one of many answers that it waits for (`crowded`).
    pub fn passed(&self, crowded: bool) {
        let mut ahead = self.ahead.lock();
        ahead.passed += std::mem::take(&mut ahead.bytes) as u64;
        if self.needs.small_pieces {
            ahead.piece = small_piece(ahead.passed, crowded);
        }
        ahead.reader.take().inspect(Waker::wake_by_ref);
    }

    /// Takes note of a piece of the answer.
    pub(super) fn read(&self, count: usize) {
        let mut ahead = self.ahead.lock();
        ahead.bytes += count;
        if !self.needs.small_pieces {
            ahead.piece = match ahead.passed < MANY {
                true => PIECE,
                false => LARGE_PIECE,
            };
        }
    }

    /// How much is to be read next; `None` when enough is read for now, of which the reader is told the end.
    pub(super) fn next_piece(&self, cx: &Context<'_>) -> Option<usize> {
        let phase = self.phase();
        if phase == Phase::Body
            && let Some(outlet) = &self.needs.outlet
            && outlet.poll_open(cx).is_pending()
        {
            return None;
        }
        let mut ahead = self.ahead.lock();
        let most = if self.needs.small_pieces { 0 } else { HEAD };
        if ahead.bytes <= most {
            return Some(ahead.piece);
        }
        match phase {
            Phase::Body => ahead.reader = Some(cx.waker().clone()),
            // Whoever is to look at the header runs in the same task, and gets its turn.
            Phase::Header => {
                ahead.bytes = 0;
                cx.waker().wake_by_ref();
            }
            Phase::Tunnel => return Some(ahead.piece),
        }
        None
    }

    /// When a wait that began at `since` is too long.
    pub(super) fn deadline(&self, phase: Phase, since: Instant) -> Instant {
        let limits = &self.dialer.limits;
        match phase {
            Phase::Tunnel => since + limits.tunnel,
            Phase::Header | Phase::Body => {
                let deadline = since + self.needs.read.unwrap_or(limits.read);
                self.needs
                    .deadline
                    .map_or(deadline, |end| deadline.min(end))
            }
        }
    }

    /// Whether the request has taken too long in all.
    pub fn is_over(&self) -> bool {
        let over = self.needs.deadline.is_some_and(|end| Instant::now() >= end);
        over && self.phase() != Phase::Tunnel
    }

    pub(super) fn expire(&self) {
        self.expired.store(true, Ordering::Relaxed);
    }

    async fn link(&self) -> Result<Link> {
        if self.is_to_share() {
            self.take_turn().await?;
        }
        if !self.needs.fresh
            && let Some(link) = self.dialer.stock.idle.take(self.http2, Instant::now())
        {
            self.reused.store(link.used, Ordering::Relaxed);
            return Ok(link);
        }
        let link = self.dialer.stock.dial(self.offer, self.needs.ends).await?;
        let http2 = link.http2;
        if self.offer == Offer::Both {
            self.dialer.stock.learn(http2);
        }
        if http2 == self.http2 {
            return Ok(link);
        }
        if self.offer == Offer::Both {
            self.dialer.stock.keep(link);
            return self.look_again();
        }
        let spoken = if self.http2 { "no HTTP/2" } else { "HTTP/2" };
        Error::e_explain(ErrorType::H2Error, format!("the backend speaks {spoken}"))
    }

    /// Whether other requests can share what this makes: HTTP/2, or what may turn out to be.
    fn is_to_share(&self) -> bool {
        let may_turn_out = self.offer == Offer::Both && self.dialer.stock.spoken().is_none();
        (self.http2 || may_turn_out) && !self.needs.fresh && !self.dialer.stock.is_per_client()
    }

    /// One request at a time makes a connection that is to be shared; whoever comes meanwhile waits for it. Otherwise each
    /// of a hundred requests that find none would make its own.
    async fn take_turn(&self) -> Result<()> {
        if !self.needs.patient {
            return Ok(());
        }
        if let Some(turn) = Turns::take(&self.dialer.stock.turns).await {
            *self.turn.lock() = Some(turn);
        } else if self.http2 || self.dialer.stock.spoken() == Some(true) {
            return self.look_again();
        }
        Ok(())
    }

    /// Pingora looks for a connection to share only before it asks for a new one.
    fn look_again<T>(&self) -> Result<T> {
        self.outdated.store(true, Ordering::Relaxed);
        Error::e_explain(
            ErrorType::ConnectError,
            "there is another connection by now",
        )
    }
}

#[async_trait]
impl L4Connect for Line {
    /// Pingora asks for a connection to the peer that this belongs to.
    async fn connect(&self, _address: &SocketAddr) -> Result<Stream> {
        let Some(line) = self.me.upgrade() else {
            return Error::e_explain(ErrorType::InternalError, "a request that is over");
        };
        let link = self.link().await?;
        if link.http2 {
            let stream = link.share();
            return stream.or_err(ErrorType::SocketError, "sharing a connection");
        }
        let wire = Wire::new(link, line);
        Ok(VirtualSocketStream::new(Box::new(wire)).into())
    }
}

/// How much is read at once of an answer of which so much was taken, for a client that may ask for a hundred.
fn small_piece(passed: u64, crowded: bool) -> usize {
    if !crowded {
        return FRAME;
    }
    let more = usize::try_from(passed.saturating_sub(WINDOW) / GROWTH).unwrap_or(FRAME);
    LITTLE.saturating_add(more).min(FRAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_answers_gets_more_as_it_is_taken() {
        assert_eq!(small_piece(0, false), FRAME);
        assert_eq!(small_piece(0, true), LITTLE);
        assert_eq!(small_piece(WINDOW, true), LITTLE);
        assert_eq!(small_piece(WINDOW + 128 * 1024, true), 2 * LITTLE);
        assert_eq!(small_piece(u64::MAX, true), FRAME);
    }
}
