//! Whether a client takes its answer, as whoever fetches that answer from elsewhere must know.
//!
//! Between the two is Pingora's engine, which reads on while it cannot write. What is read ahead of a client that takes
//! nothing is memory for nothing, and with thousands of them it is all the memory there is. So whoever writes says here
//! when it cannot, and whoever reads waits until it can.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// The way out to a client: of one connection of HTTP/1, of one stream of HTTP/2.
#[derive(Debug, Default)]
pub struct Outlet {
    blocked: AtomicBool,
    reader: Mutex<Option<Waker>>,
}

impl Outlet {
    /// Nothing can be written for now.
    pub fn block(&self) {
        self.blocked.store(true, Ordering::Release);
    }

    /// Something can be written again.
    pub fn open(&self) {
        self.blocked.store(false, Ordering::Release);
        let reader = self.reader.lock().take();
        reader.inspect(Waker::wake_by_ref);
    }

    /// Ready when there is something to be read for: at once, mostly.
    pub fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.blocked.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        *self.reader.lock() = Some(cx.waker().clone());
        // It may have been opened in between.
        match self.blocked.load(Ordering::Acquire) {
            true => Poll::Pending,
            false => Poll::Ready(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_reads_waits_until_there_is_a_way_out() {
        let outlet = Outlet::default();
        let bell = Arc::<Bell>::default();
        let waker = bell.clone().into();
        let cx = Context::from_waker(&waker);
        assert!(outlet.poll_open(&cx).is_ready());
        outlet.block();
        assert!(outlet.poll_open(&cx).is_pending());
        assert_eq!(bell.0.load(Ordering::Relaxed), 0);
        outlet.open();
        assert_eq!(bell.0.load(Ordering::Relaxed), 1);
        assert!(outlet.poll_open(&cx).is_ready());
        outlet.open();
        assert_eq!(bell.0.load(Ordering::Relaxed), 1);
    }
}
