//! Waiting for something to become true: the tests never sleep and hope.

use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded two-core machine, short enough that a hang shows.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(10);

/// Asks `condition` until it holds; panics when it has not within `deadline`.
#[track_caller]
pub fn eventually(deadline: Duration, condition: impl FnMut() -> bool) {
    assert!(
        holds_within(deadline, condition),
        "did not become true within {deadline:?}"
    );
}

/// Asks `condition` until it holds or `deadline` has passed, and tells which.
pub fn holds_within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    value_within(deadline, || condition().then_some(())).is_some()
}

/// Asks `attempt` until it has a value or `deadline` has passed.
pub fn value_within<T>(deadline: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = attempt() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(STEP);
    }
}
