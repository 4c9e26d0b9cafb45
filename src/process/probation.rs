//! The probation of a new process: it serves, and this one looks on, ready to take over again.
//!
//! This process has its connections move on to the new one as in a drain, but keeps the sockets, and stays the one to ask,
//! to signal and to watch: nothing that outside this pair anybody relies on has changed hands yet, so there is nothing
//! to take back but the accepting.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::upgrade::{Heir, Reports};
use crate::admin::{Terms, Trial};
use crate::runtime::figures::Summary;

/// A share of fewer requests tells nothing.
const ENOUGH: u64 = 50;
/// Fewer requests have no slowest hundredth worth the name; of so many, it is five.
const ENOUGH_FOR_P99: u64 = 500;
/// What is slower by no more than this is never too slow: it may be the scheduler's doing.
const IMPERCEPTIBLE: Duration = Duration::from_millis(10);
/// For how long a new process that has told its figures each second may tell nothing.
const SILENCE: Duration = Duration::from_secs(5);
/// How often a process is looked at that is about to end.
const LOOK: Duration = Duration::from_millis(20);

/// A new process on probation.
pub struct Probation {
    pub heir: Heir,
    reports: Reports,
    terms: Terms,
    /// How this process did.
    before: Summary,
    /// How the new one does.
    now: Summary,
    heard: Instant,
    end: Instant,
}

/// What has come of it.
#[derive(Debug)]
pub enum Verdict {
    Passed,
    Failed(String),
    /// The new process has let go.
    Gone,
}

impl Probation {
    /// Begins now; `before` is how this process did.
    pub fn begin(heir: Heir, reports: Reports, terms: Terms, before: Summary) -> Probation {
        let now = Instant::now();
        Probation {
            reports,
            heir,
            before,
            now: Summary::default(),
            heard: now,
            end: now + terms.length.get(),
            terms,
        }
    }

    /// Watches the new process until it is clear what to do. May be dropped and called again.
    pub async fn verdict(&mut self) -> Verdict {
        loop {
            let silent = self.heard + SILENCE;
            tokio::select! {
                report = self.reports.next() => match report {
                    Some(report) => self.now = report,
                    None => return Verdict::Gone,
                },
                () = sleep_until(silent) => {
                    let reason = format!("it gave no sign of life for {SILENCE:?}");
                    return Verdict::Failed(reason);
                }
            }
            self.heard = Instant::now();
            if let Some(reason) = worse(&self.terms, &self.before, &self.now) {
                return Verdict::Failed(reason);
            }
            // By a report, so that one which tells nothing any more does not pass.
            if self.heard >= self.end {
                return Verdict::Passed;
            }
        }
    }

    /// The figures it was judged by.
    pub fn trial(&self) -> Trial {
        let left = self.end.saturating_duration_since(Instant::now());
        Trial {
            length: self.terms.length,
            cut_short: !left.is_zero(),
            before: self.before,
            new: self.now,
        }
    }
}

/// Waits until a process has ended that does not take over, and ends it if it takes longer than `patience`. All the
/// while the connection with it stays: its end would tell the process to go on.
///
/// # Errors
/// When it is no child of this process.
pub async fn see_off(mut heir: Heir, patience: Duration) -> io::Result<ExitStatus> {
    let Some(child) = &mut heir.child else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
        }
        sleep(LOOK).await;
    }
}

/// Why a process does worse than the terms allow, if it does.
fn worse(terms: &Terms, before: &Summary, now: &Summary) -> Option<String> {
    let allowed = before.failures() + terms.max_5xx.get();
    if now.requests >= ENOUGH && now.failures() > allowed {
        return Some(format!(
            "{} of its {} requests were answered with 5xx, {:.2}%; before, {:.2}% were, and {} more is allowed",
            now.failed,
            now.requests,
            now.failures() * 100.0,
            before.failures() * 100.0,
            terms.max_5xx,
        ));
    }
    let allowed = before
        .p99
        .mul_f64(terms.max_p99.get())
        .max(before.p99 + IMPERCEPTIBLE);
    let comparable = now.requests.min(before.requests) >= ENOUGH_FOR_P99;
    if comparable && now.p99 > allowed {
        return Some(format!(
            "the slowest hundredth of its {} requests took {:.1?} or more; before, {:.1?}, and {} of that is allowed",
            now.requests, now.p99, before.p99, terms.max_p99,
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(requests: u64, failed: u64, milliseconds: u64) -> Summary {
        Summary {
            requests,
            failed,
            p99: Duration::from_millis(milliseconds),
        }
    }

    #[test]
    fn more_failures_than_before_are_too_many() {
        let terms = Terms::default(); // 1% more, 2x as slow
        let too_many = |before, now| worse(&terms, &before, &now).is_some();
        let before = summary(1000, 20, 5);
        assert!(!too_many(before, summary(49, 49, 5)), "too few to tell");
        assert!(too_many(before, summary(50, 2, 5)));
        assert!(!too_many(before, summary(1000, 30, 5)));
        assert!(too_many(before, summary(1000, 31, 5)));
        assert!(!too_many(summary(0, 0, 0), summary(1000, 10, 5)));
        assert!(too_many(summary(0, 0, 0), summary(1000, 11, 5)));
        let reason = worse(&terms, &before, &summary(1000, 31, 5)).unwrap();
        assert_eq!(
            reason,
            "31 of its 1000 requests were answered with 5xx, 3.10%; before, 2.00% were, and 1% more is allowed"
        );
    }

    #[test]
    fn slower_than_before_is_too_slow() {
        let terms = Terms::default();
        let too_slow = |before, now| worse(&terms, &before, &now).is_some();
        let before = summary(500, 0, 50);
        assert!(!too_slow(before, summary(499, 0, 900)), "too few to tell");
        assert!(
            !too_slow(summary(499, 0, 50), summary(500, 0, 900)),
            "no measure"
        );
        assert!(!too_slow(before, summary(500, 0, 100)));
        assert!(too_slow(before, summary(500, 0, 101)));
        assert!(
            !too_slow(summary(500, 0, 1), summary(500, 0, 11)),
            "hardly to be felt"
        );
        assert!(too_slow(summary(500, 0, 1), summary(500, 0, 12)));
    }
}
