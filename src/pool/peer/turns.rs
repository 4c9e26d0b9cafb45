//! Who makes a connection that many requests can share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// One turn at a time.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: AtomicBool,
    over: Notify,
}

/// Until it is dropped nobody else has a turn.
#[derive(Debug)]
pub(super) struct Turn(Arc<Turns>);

impl Turns {
    /// A turn if nobody has one; otherwise waits until that is over, together with all others who wait.
    pub async fn take(turns: &Arc<Turns>) -> Option<Turn> {
        // before the look: a turn that ends right after it is not missed
        let over = turns.over.notified();
        if !turns.taken.swap(true, Ordering::AcqRel) {
            return Some(Turn(turns.clone()));
        }
        over.await;
        None
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
        self.0.over.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn all_who_wait_go_on_when_the_turn_is_over() {
        let turns = Arc::new(Turns::default());
        let turn = Turns::take(&turns).await.expect("a turn");
        let mut waiting = Vec::new();
        for _ in 0..3 {
            let mut wait = Box::pin(async { Turns::take(&turns).await.is_some() });
            let mut context = Context::from_waker(Waker::noop());
            assert!(wait.as_mut().poll(&mut context).is_pending());
            waiting.push(wait);
        }
        drop(turn);
        for wait in waiting {
            assert!(!wait.await);
        }
        assert!(Turns::take(&turns).await.is_some());
    }
}
