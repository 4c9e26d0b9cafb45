//! When a request may be sent to another member after a try that failed.
//!
//! Two questions decide. Is it safe? The request must still be at hand, nothing of an answer may have reached the client,
//! and either the method is idempotent or no byte of the request was sent; `handler/proxy` knows that. Is it wanted? That
//! is said here: which faults, how many tries, and how many retries the pool as a whole may add to its load.
//!
//! ```yaml
//! pools:
//!   app:
//!     backends: [127.0.0.1:9001, 127.0.0.1:9002]
//!     retry: { attempts: 2, on: [connect, reset, 503], budget: 20% }
//! ```

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

use crate::issue::{At, Issues};
use crate::value::{OneOrMany, Ratio};

/// When a request goes to another member after a try that failed. nginx: `proxy_next_upstream`.
///
/// A request is never sent twice once a byte of an answer has reached the client, or once its body is longer than the
/// 64 KiB that are kept for a replay.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many members a request is given to, the first included. Each is asked once, and `max_retries` (16) is the limit
    /// of all. Default: every member. nginx: `proxy_next_upstream_tries`.
    pub attempts: Option<u32>,
    /// The faults that another member may make good: `connect` (no connection, in time or at all), `reset` (the connection
    /// broke before the header of the answer was complete), `timeout` (`timeouts.read` or `write` ran out before that), or
    /// a status from 400 to 599 of an answer, which is then thrown away; the last member's is passed on. Default
    /// `[connect, reset, timeout]`. nginx: `proxy_next_upstream error timeout`, its default.
    pub on: OneOrMany<Fault>,
    /// How many retries there may be for the requests of the last ten seconds, in the whole pool; ten are always allowed.
    /// It keeps a pool that fails under its load from being given a multiple of it. Default: no limit.
    pub budget: Option<Ratio>,
    /// Whether requests with a method that is not idempotent (POST, PATCH) are sent again even if a member may have acted
    /// on them. Default false: they are only if no connection to the member was made. nginx: `non_idempotent`.
    pub non_idempotent: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            attempts: None,
            on: OneOrMany(vec![Fault::Connect, Fault::Reset, Fault::Timeout]),
            budget: None,
            non_idempotent: false,
        }
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<Retry> {
        let mut complete = true;
        if self.attempts == Some(0) {
            issues
                .error(&at.key("attempts"), "`attempts` must be at least 1")
                .hint("the first try counts; `retry: off` makes it the only one");
            complete = false;
        }
        if self.on.0.is_empty() {
            issues
                .error(&at.key("on"), "`on` needs at least one fault")
                .hint("`retry: off` switches retries off");
            complete = false;
        }
        complete.then(|| Retry {
            attempts: self.attempts.unwrap_or(u32::MAX),
            on: self.on.0.as_slice().into(),
            non_idempotent: self.non_idempotent,
            budget: self.budget.map(|share| Budget {
                share,
                spent: Arc::default(),
            }),
        })
    }
}

/// What went wrong with a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There was no connection, so that no byte of the request was sent.
    Connect,
    /// The connection broke before the header of the answer was complete.
    Reset,
    /// The member was silent, or took nothing, for too long.
    Timeout,
    /// The member answered with this status.
    Status(u16),
}

/// What a pool does about tries that fail.
#[derive(Debug)]
pub struct Retry {
    attempts: u32,
    on: Box<[Fault]>,
    non_idempotent: bool,
    budget: Option<Budget>,
}

impl Retry {
    pub fn off() -> Retry {
        Retry {
            attempts: 1,
            on: [].into(),
            non_idempotent: false,
            budget: None,
        }
    }

    /// Goes on with what was spent before a reload.
    pub fn adopt(&mut self, previous: &Retry) {
        if let (Some(budget), Some(previous)) = (&mut self.budget, &previous.budget) {
            budget.spent = previous.spent.clone();
        }
    }

    /// Whether a request of any method may be sent again after it reached a member.
    pub fn non_idempotent(&self) -> bool {
        self.non_idempotent
    }

    /// Whether another member is to be asked when the last of `attempts` tries ended so.
    pub fn allows(&self, fault: Fault, attempts: u32, now: Instant) -> bool {
        attempts < self.attempts
            && self.on.contains(&fault)
            && self.budget.as_ref().is_none_or(|b| b.has_room(now))
    }

    /// A request came to the pool.
    pub fn requested(&self, now: Instant) {
        if let Some(budget) = &self.budget {
            budget.spent.requests.add(budget.spent.second(now));
        }
    }

    /// A request was given to one more member.
    pub fn retried(&self, now: Instant) {
        if let Some(budget) = &self.budget {
            budget.spent.retries.add(budget.spent.second(now));
        }
    }
}

/// How many retries there may be.
#[derive(Debug)]
struct Budget {
    share: Ratio,
    spent: Arc<Spent>,
}

/// What a quiet pool may always retry within the time of a window: a share of few requests would be none at all.
const MINIMUM: f64 = 10.0;

impl Budget {
    /// Whether one more fits in. Requests that ask at the same moment may come to exceed it by their number, which is not
    /// worth a lock.
    fn has_room(&self, now: Instant) -> bool {
        let second = self.spent.second(now);
        let requests = self.spent.requests.sum(second) as f64;
        let retries = self.spent.retries.sum(second) as f64;
        retries + 1.0 <= (requests * self.share.get()).max(MINIMUM)
    }
}

/// Requests and retries of a pool in the last seconds.
#[derive(Debug, Default)]
struct Spent {
    /// When it was first used.
    start: OnceLock<Instant>,
    requests: Window,
    retries: Window,
}

impl Spent {
    /// The second that `now` lies in, from 1 on.
    fn second(&self, now: Instant) -> u32 {
        let start = self.start.get_or_init(|| now);
        let seconds = now.saturating_duration_since(*start).as_secs() + 1;
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}

/// How often something happened in the last [`SECONDS`].
///
/// A slot is a second and its count in one word, so that whoever comes first in a second clears the slot and counts in it
/// by one step.
#[derive(Debug, Default)]
struct Window([AtomicU64; SECONDS as usize]);

const SECONDS: u32 = 10;

impl Window {
    fn add(&self, second: u32) {
        let slot = &self.0[(second % SECONDS) as usize];
        let add = |held| {
            let (of, count) = split(held);
            // A thread that was held up between the clock and here counts in the later second.
            Some(match of >= second {
                true => join(of, count.saturating_add(1)),
                false => join(second, 1),
            })
        };
        // Never refused: `add` always has a value.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn sum(&self, second: u32) -> u64 {
        let slots = self
            .0
            .iter()
            .map(|slot| split(slot.load(Ordering::Relaxed)));
        slots
            .filter(|(of, _)| of + SECONDS > second)
            .map(|(_, count)| u64::from(count))
            .sum()
    }
}

fn split(slot: u64) -> (u32, u32) {
    ((slot >> 32) as u32, slot as u32)
}

fn join(second: u32, count: u32) -> u64 {
    u64::from(second) << 32 | u64::from(count)
}

const EXPECTED: &str = "`connect`, `reset`, `timeout` or a status from 400 to 599";

impl Fault {
    fn from_status(status: u64) -> Option<Fault> {
        let status = u16::try_from(status).ok()?;
        (400..=599)
            .contains(&status)
            .then_some(Fault::Status(status))
    }
}

impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fault, D::Error> {
        struct WordOrStatus;

        impl Visitor<'_> for WordOrStatus {
            type Value = Fault;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Fault, E> {
                let refused = || E::custom(format!("expected {EXPECTED}, found `{number}`"));
                Fault::from_status(number).ok_or_else(refused)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Fault, E> {
                match text {
                    "connect" => Ok(Fault::Connect),
                    "reset" => Ok(Fault::Reset),
                    "timeout" => Ok(Fault::Timeout),
                    _ => Err(E::custom(format!("expected {EXPECTED}, found `{text}`"))),
                }
            }
        }
        deserializer.deserialize_any(WordOrStatus)
    }
}

impl JsonSchema for Fault {
    fn schema_name() -> Cow<'static, str> {
        "Fault".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What may go wrong with a try: connect, reset, timeout, or the status of an answer.",
            "anyOf": [
                { "enum": ["connect", "reset", "timeout"] },
                { "type": "integer", "minimum": 400, "maximum": 599 },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn retry(yaml: &str) -> Retry {
        let config: Config = serde_yaml::from_str(yaml).expect("the test's YAML fits");
        let mut issues = Issues::default();
        let retry = config.compile(&At::Root, &mut issues);
        retry.unwrap_or_else(|| panic!("{:?}", issues.0))
    }

    /// How many of `requests` that come in one second, and all fail, are retried.
    fn retries(retry: &Retry, requests: usize, now: Instant) -> usize {
        let retried = |_: &usize| {
            retry.requested(now);
            let allowed = retry.allows(Fault::Reset, 1, now);
            if allowed {
                retry.retried(now);
            }
            allowed
        };
        (0..requests).filter(retried).count()
    }

    #[test]
    fn faults_are_read() {
        let read = |text: &str| serde_yaml::from_str::<Fault>(text);
        assert_eq!(read("connect").unwrap(), Fault::Connect);
        assert_eq!(read("reset").unwrap(), Fault::Reset);
        assert_eq!(read("timeout").unwrap(), Fault::Timeout);
        assert_eq!(read("503").unwrap(), Fault::Status(503));
        for text in [
            "error", "200", "600", "-1", "99999999", "5.5", "true", "[503]",
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(EXPECTED), "{text}: {message}");
        }
    }

    #[test]
    fn defaults_are_those_of_nginx() {
        let (retry, now) = (retry("{}"), Instant::now());
        for fault in [Fault::Connect, Fault::Reset, Fault::Timeout] {
            assert!(retry.allows(fault, 100, now));
        }
        assert!(!retry.allows(Fault::Status(502), 1, now));
        assert!(!retry.non_idempotent());
    }

    #[test]
    fn only_what_is_listed_is_retried_and_so_often() {
        let (retry, now) = (retry("{ attempts: 3, on: [connect, 503] }"), Instant::now());
        assert!(retry.allows(Fault::Connect, 2, now));
        assert!(retry.allows(Fault::Status(503), 1, now));
        assert!(!retry.allows(Fault::Status(502), 1, now));
        assert!(!retry.allows(Fault::Reset, 1, now));
        assert!(!retry.allows(Fault::Connect, 3, now));
        assert!(!Retry::off().allows(Fault::Connect, 1, now));
    }

    #[test]
    fn budget_is_a_share_of_the_requests() {
        let now = Instant::now();
        assert_eq!(retries(&retry("{ budget: 20% }"), 1000, now), 200);
        assert_eq!(retries(&retry("{ budget: 100% }"), 1000, now), 1000);
        assert_eq!(retries(&retry("{}"), 1000, now), 1000);
    }

    #[test]
    fn quiet_pools_can_retry_all_the_same() {
        let now = Instant::now();
        assert_eq!(retries(&retry("{ budget: 1% }"), 5, now), 5);
        assert_eq!(retries(&retry("{ budget: 0% }"), 1000, now), 10);
    }

    #[test]
    fn budget_looks_back_for_ten_seconds() {
        let (retry, start) = (retry("{ budget: 10% }"), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(retries(&retry, 1000, at(0)), 100);
        // 90 more requests, 9 more retries
        assert_eq!(retries(&retry, 90, at(9)), 9);
        // the first second is forgotten, and what is left is below the minimum
        assert_eq!(retries(&retry, 10, at(10)), 1);
        assert_eq!(retries(&retry, 1000, at(1000)), 100);
    }

    #[test]
    fn budget_outlives_a_reload() {
        let (before, now) = (retry("{ budget: 10% }"), Instant::now());
        retries(&before, 1000, now);
        let mut after = retry("{ budget: 5% }");
        after.adopt(&before);
        assert!(!after.allows(Fault::Reset, 1, now));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (yaml, expected) in [
            ("{ attempts: 0 }", "`attempts` must be at least 1"),
            ("{ on: [] }", "`on` needs at least one fault"),
        ] {
            let config: Config = serde_yaml::from_str(yaml).unwrap();
            let mut issues = Issues::default();
            assert!(config.compile(&At::Root, &mut issues).is_none());
            assert_eq!(issues.0[0].message, expected);
        }
    }

    proptest! {
        #[test]
        fn windows_count_what_a_list_would(steps in prop::collection::vec(0u32..4, 0..200)) {
            let (window, mut list, mut second) = (Window::default(), Vec::new(), 1);
            for step in steps {
                second += step;
                window.add(second);
                list.push(second);
                let expected = list.iter().filter(|of| **of + SECONDS > second).count();
                prop_assert_eq!(window.sum(second), expected as u64);
            }
        }
    }
}
