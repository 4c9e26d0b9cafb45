//! What the end of the process cuts off: counted for the exit status, and told to the operator.
//!
//! Nothing is noted for this while requests run. When the process ends, the runtimes drop their tasks, and a request that
//! is dropped before its end says so here.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// How many of them the log tells one by one.
const TOLD: usize = 50;

#[derive(Debug, Default)]
pub struct Cuts {
    /// Whether the process ends now.
    ending: AtomicBool,
    count: AtomicUsize,
}

impl Cuts {
    /// What is dropped from now on is cut off.
    pub fn begin(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// For what was dropped before its end.
    pub fn dropped(&self, what: impl fmt::Display) {
        if !self.ending.load(Ordering::Acquire) {
            return;
        }
        if self.count.fetch_add(1, Ordering::AcqRel) < TOLD {
            log::warn!("cut: {what}");
        }
    }

    /// How much was cut off by now.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Says how much it was in all.
    pub fn report(&self) {
        match self.count() {
            0 => {}
            1 => log::warn!("1 request was cut"),
            count if count <= TOLD => log::warn!("{count} requests were cut"),
            count => log::warn!("{count} requests were cut, of which {TOLD} are told above"),
        }
    }
}
