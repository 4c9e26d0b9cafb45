//! Requests that wait until a member has room for them.
//!
//! They wait in the order in which they came: the one at the front asks for a member whenever one may have room, all
//! others wait for the front. A request that has tried a member already waits beside the line, for it can take fewer
//! members than those behind it and must not hold them up.
//!
//! Nobody may wait for room that is there. Who waits first says so and then looks for room, who leaves first makes room and
//! then looks for who waits, and all of that is `SeqCst`: in the one order that all threads agree on, either the one sees
//! the room or the other sees who waits.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{Mutex, Notify};

use super::Pick;
use crate::issue::{At, Issues};
use crate::value::Span;

/// Requests wait while every member that they could go to has as many requests as its `max_conns` allows. nginx: `queue`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How many requests may wait at a time, in this process. One more gets 503 at once.
    pub size: NonZeroUsize,
    /// How long each waits at most; then it gets 503. It also ends when the client goes away.
    pub timeout: Span,
}

impl Config {
    /// `limited` is whether any member can be full at all.
    pub fn compile(&self, limited: bool, at: &At<'_>, issues: &mut Issues) -> Option<Limits> {
        if !limited {
            issues
                .warn(at, "nobody waits, because no backend has `max_conns`")
                .hint("give backends the number of requests that they take at a time");
        }
        let timeout = self.timeout.get();
        if timeout.is_zero() {
            let message = "`timeout` must be longer than zero";
            issues.error(&at.key("timeout"), message);
            return None;
        }
        Some(Limits {
            size: self.size.get(),
            timeout,
        })
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    size: usize,
    timeout: Duration,
}

/// Who waits for members of one pool. It stays over reloads: those who leave belong to any of the pool's versions.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: AtomicUsize,
    /// Held by the front; given on in the order in which it was asked for.
    front: Mutex<()>,
    room: Notify,
}

impl Queue {
    /// A member may have room now.
    pub fn has_room(&self) {
        if self.is_awaited() {
            self.room.notify_waiters();
        }
    }

    pub fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) != 0
    }

    /// Waits until `pick` comes to anything else than [`Pick::Busy`]; `first` is whether the request has not tried any
    /// member yet.
    pub async fn wait(&self, limits: Limits, first: bool, mut pick: impl FnMut() -> Pick) -> Pick {
        let Some(_waiting) = Waiting::begin(self, limits.size) else {
            return Pick::Busy;
        };
        let picked = async {
            let _front = match first {
                true => Some(self.front.lock().await),
                false => None,
            };
            loop {
                // before the look, so that no room is missed that there is after it
                let mut room = pin!(self.room.notified());
                room.as_mut().enable();
                match pick() {
                    Pick::Busy => room.await,
                    other => return other,
                }
            }
        };
        let picked = pingora_timeout::timeout(limits.timeout, picked).await;
        picked.unwrap_or(Pick::TimedOut)
    }
}

/// A place among those who wait.
struct Waiting<'q>(&'q Queue);

impl Waiting<'_> {
    fn begin(queue: &Queue, size: usize) -> Option<Waiting<'_>> {
        let before = queue.waiting.fetch_add(1, Ordering::SeqCst);
        let waiting = Waiting(queue);
        (before < size).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
