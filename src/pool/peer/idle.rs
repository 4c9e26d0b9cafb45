//! Connections of one member between two requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::wire::Link;

/// How often idle connections are looked at: those that the backend has closed hold a descriptor until then.
const SWEEP: Duration = Duration::from_secs(1);

/// The connection that was used last is used next, so that those that a burst made grow old and go.
#[derive(Debug)]
pub(super) struct Idle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// How long a connection is kept.
    limit: Duration,
    /// How many are kept.
    size: usize,
    /// The oldest first.
    links: Mutex<Vec<(Link, Instant)>>,
    swept: AtomicBool,
}

impl Idle {
    pub fn new(limit: Duration, size: usize) -> Idle {
        Idle {
            shared: Arc::new(Shared {
                limit,
                size,
                links: Mutex::default(),
                swept: AtomicBool::new(false),
            }),
        }
    }

    /// A connection of that protocol on which the backend waits for a request.
    pub fn take(&self, http2: bool, now: Instant) -> Option<Link> {
        loop {
            let mut links = self.shared.links.lock();
            let last = links.iter().rposition(|(link, _)| link.http2 == http2)?;
            let (mut link, since) = links.remove(last);
            drop(links);
            if now < since + self.shared.limit && link.is_idle() {
                return Some(link);
            }
        }
    }

    /// Keeps a connection, or closes the oldest when there are enough.
    pub fn put(&self, link: Link, now: Instant) {
        let mut links = self.shared.links.lock();
        let oldest = (links.len() >= self.shared.size).then(|| links.remove(0));
        links.push((link, now));
        drop(links);
        drop(oldest);
        if !self.shared.swept.swap(true, Ordering::Relaxed)
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(sweep(Arc::downgrade(&self.shared)));
        }
    }
}

/// Closes connections that the backend has closed or that were idle for too long, while there are any.
async fn sweep(idle: std::sync::Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(idle) = idle.upgrade() else { return };
        let now = Instant::now();
        let mut links = idle.links.lock();
        links.retain_mut(|(link, since)| now < *since + idle.limit && link.is_idle());
        if links.is_empty() {
            // under the lock: whoever puts the next one sees it
            idle.swept.store(false, Ordering::Relaxed);
            return;
        }
    }
}
