//! One try of a request: how it comes to a connection, and how long it may wait on it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::{Error, ErrorType, Result};

use super::wire::{Link, Wire};
use super::{Dialer, Needs};

/// What a try is waiting for; each has a time limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// The whole header of the answer, from the last byte written on.
    Header,
    /// More of the body, from the last byte read on.
    Body,
}

/// One try of a request on one connection; known to the phases of the request and to its stream.
#[derive(Debug)]
pub struct Line {
    me: Weak<Line>,
    pub(super) dialer: Arc<Dialer>,
    pub(super) needs: Needs,
    phase: AtomicU8,
    reused: AtomicBool,
    expired: AtomicBool,
}

impl Line {
    pub(super) fn new(dialer: Arc<Dialer>, needs: Needs) -> Arc<Line> {
        Arc::new_cyclic(|me| Line {
            me: me.clone(),
            dialer,
            needs,
            phase: AtomicU8::new(Phase::Header as u8),
            reused: AtomicBool::new(false),
            expired: AtomicBool::new(false),
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

    /// The final header of the answer is there.
    pub fn answered(&self) {
        self.phase.store(Phase::Body as u8, Ordering::Relaxed);
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Header,
            _ => Phase::Body,
        }
    }

    /// When a wait that began at `since` is too long.
    pub(super) fn deadline(&self, phase: Phase, since: Instant) -> Instant {
        let limits = &self.dialer.connector.limits;
        let limit: Duration = match phase {
            Phase::Header | Phase::Body => limits.read,
        };
        since + limit
    }

    pub(super) fn expire(&self) {
        self.expired.store(true, Ordering::Relaxed);
    }

    async fn link(&self) -> Result<Link> {
        if !self.needs.fresh
            && let Some(link) = self.dialer.idle.take(Instant::now())
        {
            self.reused.store(true, Ordering::Relaxed);
            return Ok(link);
        }
        self.dialer.dial().await
    }
}

#[async_trait]
impl L4Connect for Line {
    /// Pingora asks for a connection to the peer that this belongs to.
    async fn connect(&self, _address: &SocketAddr) -> Result<Stream> {
        let Some(line) = self.me.upgrade() else {
            return Error::e_explain(ErrorType::InternalError, "a request that is over");
        };
        let wire = Wire::new(self.link().await?, line);
        Ok(VirtualSocketStream::new(Box::new(wire)).into())
    }
}
