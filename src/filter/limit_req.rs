//! `limit_req`: how many requests may come in a time, by client or by anything else.
//!
//! ```yaml
//! limit_req: { key: "$remote_addr", rate: 10/s, burst: 20 }
//! ```
//!
//! A leaky bucket, as in nginx: requests fill it, it empties at `rate`, and a request for which it is fuller than
//! `burst` is refused with 429, `Retry-After`, and the headers `RateLimit-Policy` and `RateLimit` (`limit_req` in
//! `$failure`).
//!
//! A request is counted where the limit is written: one in a site counts the requests of all its routes together. It
//! runs before authentication, which is to be protected from guessing, and thus knows no user; and once for each
//! request, as in nginx, also where `files` lead on to another route. Counts outlive a reload as long as place and
//! `key` stay; a new process (`weir upgrade`) begins anew.
//!
//! # Inside
//!
//! What nginx keeps of a bucket, how full it was and when, is here one number: when it will be empty (the virtual
//! scheduling form of the same algorithm, ITU-T I.371). So a bucket that has run empty and one that never was are the
//! same, and forgetting one costs nothing.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ahash::RandomState;
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::vars::{Text, View};
use crate::exchange::{Cx, Failure, Reply, key};
use crate::issue::At;
use crate::value::{OneOrMany, Rate, Size};

/// One limit or a list of them, of which each must let a request through.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(OneOrMany<LimitConfig>);

#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitConfig {
    /// What requests are counted by, a text with variables; where it is empty the request is not limited. Default
    /// `$remote_addr`. nginx: key of `limit_req_zone`.
    #[serde(default = "default_key")]
    key: String,
    /// How many requests, evenly spread over a second (`10/s`), a minute (`30/m`) or an hour (`100/h`). nginx: `rate=`.
    rate: Rate,
    /// How many may come earlier than that. Default 0. nginx: `burst=`.
    #[serde(default)]
    burst: u32,
    /// What becomes of those: `false`, they are served at once (nginx: `nodelay`); `true`, they wait until it is their time
    /// (nginx's default); a number, so many are served at once and the others wait (nginx: `delay=`). Default `false`.
    #[serde(default)]
    delay: Delay,
    /// Only counts, and says in the log and in `$limit_req_status` what it would do. Default false.
    /// nginx: `limit_req_dry_run`.
    #[serde(default)]
    dry_run: bool,
    /// Memory for the counts, 16 bytes for each key; when it is full, the key whose count would run out first is forgotten.
    /// Default `4MiB`, for 262,144 keys. nginx: size of the zone.
    #[serde(default = "default_memory")]
    memory: Size,
}

fn default_key() -> String {
    "$remote_addr".to_owned()
}

fn default_memory() -> Size {
    Size::new(4 << 20)
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected `true`, `false` or a number of requests"
)]
enum Delay {
    All(bool),
    After(u32),
}

impl Default for Delay {
    fn default() -> Delay {
        Delay::All(false)
    }
}

#[derive(Debug)]
pub struct LimitReq(Box<[Limit]>);

#[derive(Debug)]
struct Limit {
    key: Text,
    rule: Rule,
    buckets: Arc<Buckets>,
    dry_run: bool,
    /// Where it is written, for the log.
    place: String,
    /// `RateLimit-Policy` for those whom it refuses.
    policy: HeaderValue,
}

impl Filter for LimitReq {
    async fn request(&self, cx: &mut Cx, request: &RequestHeader, wall: SystemTime) -> Flow {
        if cx.limit_req.is_some() {
            return Flow::Continue;
        }
        let now = cx.started;
        let mut status = Status::default();
        let mut wait = Duration::ZERO;
        for (i, limit) in self.0.iter().enumerate() {
            let view = View {
                cx,
                request,
                response: None,
                wall,
            };
            let Some(key) = limit.key_of(&view) else {
                continue;
            };
            match limit.buckets.admit(key, &limit.rule, now) {
                Verdict::Pass(delay) if limit.dry_run => {
                    status.dry(if delay.is_zero() {
                        "PASSED"
                    } else {
                        "DELAYED_DRY_RUN"
                    });
                }
                Verdict::Pass(delay) => {
                    wait = wait.max(delay);
                }
                Verdict::Reject(_) if limit.dry_run => {
                    status.dry("REJECTED_DRY_RUN");
                    log::info!("{} would refuse {}", limit.place, cx.asked(request));
                }
                Verdict::Reject(after) => {
                    self.give_back(i, &view);
                    cx.limit_req = Some("REJECTED");
                    return Flow::Refuse(Failure::LimitReq, limit.refusal(after));
                }
            }
        }
        if wait.is_zero() {
            cx.limit_req = status.0.or(Some("PASSED"));
        } else {
            cx.limit_req = Some("DELAYED");
            // Who waits here holds nothing but its connection; whether the client is still there is watched.
            tokio::time::sleep(wait).await;
        }
        Flow::Continue
    }

    fn may_wait(&self) -> bool {
        let waits = |limit: &Limit| !limit.dry_run && limit.rule.free < limit.rule.burst;
        self.0.iter().any(waits)
    }
}

impl LimitReq {
    /// Takes a request out of the first limits again that another one has refused.
    fn give_back(&self, count: usize, view: &View<'_>) {
        for limit in self.0[..count].iter().filter(|limit| !limit.dry_run) {
            if let Some(key) = limit.key_of(view) {
                limit.buckets.give_back(key, &limit.rule);
            }
        }
    }
}

/// What a dry run would have come to; the worst of several.
#[derive(Default)]
struct Status(Option<&'static str>);

impl Status {
    fn dry(&mut self, word: &'static str) {
        let worse = match self.0 {
            None | Some("PASSED") => true,
            Some(known) => known == "DELAYED_DRY_RUN" && word == "REJECTED_DRY_RUN",
        };
        if worse {
            self.0 = Some(word);
        }
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<LimitReq> {
        if !b.is_filled(at, &self.0, "limit") {
            return None;
        }
        let limits = self.0.map_at(at, |limit, at| limit.compile(at, b));
        let limits: Option<Vec<_>> = limits.into_iter().collect();
        limits.map(|limits| LimitReq(limits.into()))
    }
}

impl LimitConfig {
    fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Limit> {
        let key = key::compile(&at.key("key"), &self.key, b)?;
        if self.memory < Buckets::LEAST {
            b.error(
                &at.key("memory"),
                format!("must be at least {}", Buckets::LEAST),
            );
            return None;
        }
        let rule = Rule::new(self.rate.interval(), self.burst, self.delay);
        let place = at.to_path().to_string();
        // The same key at the same place is the same count; how fast it runs out may change.
        let name = format!("{place} {}", self.key);
        let rows = Buckets::rows_in(self.memory);
        let buckets = b.carry(
            name,
            |before: &Buckets| before.rows == rows,
            || Buckets::new(rows, Instant::now()),
        );
        Some(Limit {
            key,
            policy: rule.policy(),
            rule,
            buckets,
            dry_run: self.dry_run,
            place,
        })
    }
}

impl Limit {
    fn key_of(&self, view: &View<'_>) -> Option<NonZeroU64> {
        key::hash(&self.key, view, &self.buckets.hasher)
    }

    /// The fields are those of draft-ietf-httpapi-ratelimit-headers-10.
    fn refusal(&self, after: Duration) -> Reply {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        let mut reply = Reply::empty(StatusCode::TOO_MANY_REQUESTS);
        let head = &mut reply.head;
        // Static names with values made here cannot be refused.
        let _ = head.insert_header("Retry-After", HeaderValue::from(seconds));
        let _ = head.insert_header("RateLimit-Policy", self.policy.clone());
        let _ = head.insert_header("RateLimit", format!("\"limit_req\";r=0;t={seconds}"));
        reply
    }
}

/// What buckets hold and how fast they run empty. All of it in nanoseconds: a request fills a bucket by the time that it
/// takes to run out again.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rule {
    interval: u64,
    /// How full a bucket may be for one more request.
    burst: u64,
    /// How full it may be for a request that does not wait.
    free: u64,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    /// It may go on after this time.
    Pass(Duration),
    /// The same request would do so then.
    Reject(Duration),
}

impl Rule {
    fn new(interval: Duration, burst: u32, delay: Delay) -> Rule {
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        let burst = interval.saturating_mul(burst.into());
        let free = match delay {
            Delay::All(false) => burst,
            Delay::All(true) => 0,
            Delay::After(count) => interval.saturating_mul(count.into()).min(burst),
        };
        Rule {
            interval,
            burst,
            free,
        }
    }

    /// A request at `now` to a bucket that would be empty at `empty`: the verdict, and when the bucket is empty then.
    fn judge(&self, empty: u64, now: u64) -> (Verdict, u64) {
        let full = empty.saturating_sub(now);
        if full > self.burst {
            return (
                Verdict::Reject(Duration::from_nanos(full - self.burst)),
                empty,
            );
        }
        let wait = full.saturating_sub(self.free);
        let empty = empty.max(now).saturating_add(self.interval);
        (Verdict::Pass(Duration::from_nanos(wait)), empty)
    }

    /// As many requests as an empty bucket takes at once, in the time that a full one takes to run empty.
    fn policy(&self) -> HeaderValue {
        let quota = self.burst / self.interval + 1;
        let window = Duration::from_nanos(self.burst.saturating_add(self.interval));
        let window = window.as_secs() + u64::from(window.subsec_nanos() > 0);
        let policy = format!("\"limit_req\";q={quota};w={window}");
        HeaderValue::try_from(policy).expect("digits and letters")
    }
}

/// The buckets of one limit, in a fixed amount of memory.
///
/// A key has its place in one row of a table, and there is in any of [`WAYS`] columns. When a row is full, the bucket that is
/// empty soonest gives way: it is the one that loses the least, and an empty one loses nothing. That a client which
/// sends under many keys drives out others is thus harder than if the least recently used went first: those who are
/// close to their limit stay longest.
#[derive(Debug)]
struct Buckets {
    hasher: RandomState,
    /// Where the time of the buckets begins.
    epoch: Instant,
    rows: usize,
    /// Rows behind locks of their own, so that workers rarely meet.
    shards: Box<[Mutex<Shard>]>,
}

/// Rows of [`WAYS`] keys, 0 for none, and as many times at which the buckets are empty.
#[derive(Debug)]
struct Shard(Box<[u64]>);

/// One row is four cache lines.
const WAYS: usize = 16;
const SHARDS: usize = 64;

impl Buckets {
    /// One row in each shard.
    const LEAST: Size = Size::new((SHARDS * WAYS * 16) as u64);

    fn rows_in(memory: Size) -> usize {
        // Nobody has a machine on which this does not fit.
        usize::try_from(memory.get()).unwrap_or(usize::MAX) / (WAYS * 16) / SHARDS * SHARDS
    }

    fn new(rows: usize, epoch: Instant) -> Buckets {
        // Zeroed memory of this size comes from the kernel, which gives each page when it is first used.
        let shard = || Mutex::new(Shard(vec![0; rows / SHARDS * WAYS * 2].into()));
        Buckets {
            hasher: RandomState::new(),
            epoch,
            rows,
            shards: (0..SHARDS).map(|_| shard()).collect(),
        }
    }

    fn admit(&self, key: NonZeroU64, rule: &Rule, now: Instant) -> Verdict {
        let now = self.nanos(now);
        self.with_row(key, |keys, empty| {
            let found = keys.iter().position(|known| *known == key.get());
            let column = found.unwrap_or_else(|| {
                let soonest = empty.iter().enumerate().min_by_key(|(_, empty)| **empty);
                let (column, _) = soonest.expect("a row has columns");
                keys[column] = key.get();
                empty[column] = 0;
                column
            });
            let (verdict, next) = rule.judge(empty[column], now);
            empty[column] = next;
            verdict
        })
    }

    /// Takes a request out again that another limit has refused.
    fn give_back(&self, key: NonZeroU64, rule: &Rule) {
        self.with_row(key, |keys, empty| {
            if let Some(column) = keys.iter().position(|known| *known == key.get()) {
                empty[column] = empty[column].saturating_sub(rule.interval);
            }
        });
    }

    fn with_row<T>(&self, key: NonZeroU64, use_it: impl FnOnce(&mut [u64], &mut [u64]) -> T) -> T {
        // The upper bits choose the shard, those below them the row in it.
        let shard = (key.get() >> (u64::BITS - SHARDS.ilog2())) as usize;
        let rest = u128::from(key.get() << SHARDS.ilog2());
        let row = ((rest * (self.rows / SHARDS) as u128) >> u64::BITS) as usize;
        let mut shard = self.shards[shard].lock();
        let (keys, empty) = shard.0[row * WAYS * 2..][..WAYS * 2].split_at_mut(WAYS);
        use_it(keys, empty)
    }

    fn nanos(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rule(interval: Duration, burst: u32) -> Rule {
        Rule::new(interval, burst, Delay::All(false))
    }

    fn key(number: u64) -> NonZeroU64 {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        NonZeroU64::new(hasher.hash_one(number)).unwrap()
    }

    /// nginx's words for it: how full a bucket is, in requests, and since when; here with exact numbers.
    #[derive(Default)]
    struct Model(HashMap<u64, (u64, u64)>);

    impl Model {
        fn admits(&mut self, key: u64, rule: &Rule, now: u64) -> bool {
            let Some((excess, last)) = self.0.get_mut(&key) else {
                self.0.insert(key, (0, now));
                return true;
            };
            let next = (*excess + rule.interval).saturating_sub(now - *last);
            if next > rule.burst {
                return false;
            }
            (*excess, *last) = (next, now);
            true
        }
    }

    proptest! {
        #[test]
        fn verdicts_are_those_of_nginx(
            interval in 1..2000u64,
            burst in 0..6u32,
            requests in proptest::collection::vec((0..5u64, 0..3000u64), 0..200),
        ) {
            let epoch = Instant::now();
            let buckets = Buckets::new(SHARDS, epoch);
            let rule = rule(Duration::from_nanos(interval), burst);
            let (mut model, mut now) = (Model::default(), 0);
            for (number, later) in requests {
                now += later;
                let verdict = buckets.admit(key(number), &rule, epoch + Duration::from_nanos(now));
                let admitted = matches!(verdict, Verdict::Pass(_));
                prop_assert_eq!(admitted, model.admits(number, &rule, now));
            }
        }

        #[test]
        fn whoever_waits_as_told_is_let_in_and_no_sooner(
            interval in 1..2000u64,
            burst in 0..6u32,
            full in 0..20_000u64,
        ) {
            let rule = rule(Duration::from_nanos(interval), burst);
            if let (Verdict::Reject(after), _) = rule.judge(full, 0) {
                let after = after.as_nanos() as u64;
                let rejects = |now| matches!(rule.judge(full, now).0, Verdict::Reject(_));
                prop_assert!(!rejects(after) && rejects(after - 1));
            }
        }
    }

    #[test]
    fn requests_of_a_burst_wait_for_their_time_or_do_not() {
        let millis = Duration::from_millis;
        for (delay, expected) in [
            (Delay::All(false), [0, 0, 0, 0]),
            (Delay::All(true), [0, 100, 200, 300]),
            (Delay::After(1), [0, 0, 100, 200]),
            (Delay::After(9), [0, 0, 0, 0]),
        ] {
            let rule = Rule::new(millis(100), 3, delay);
            let mut empty = 0;
            for wait in expected {
                let (verdict, next) = rule.judge(empty, 0);
                assert_eq!(verdict, Verdict::Pass(millis(wait)), "{delay:?}");
                empty = next;
            }
            assert_eq!(rule.judge(empty, 0).0, Verdict::Reject(millis(100)));
        }
    }

    #[test]
    fn a_hundred_thousand_keys_are_counted_within_a_percent() {
        let epoch = Instant::now();
        let buckets = Buckets::new(Buckets::rows_in(default_memory()), epoch);
        let rule = rule(SECOND, 4);
        let (mut admitted, keys) = (0u64, 100_000);
        // three requests each in every second
        for tenth in 0..30u64 {
            let now = epoch + Duration::from_secs(1) + SECOND / 3 * tenth as u32;
            for number in 0..keys {
                let verdict = buckets.admit(key(number), &rule, now);
                admitted += u64::from(matches!(verdict, Verdict::Pass(_)));
            }
        }
        // five at once, then one in each of the nine seconds that follow until the last request
        let exact = keys * (5 + 9);
        let off = admitted.abs_diff(exact) as f64 / exact as f64;
        assert!(off < 0.01, "{admitted} of {exact}");
    }

    #[test]
    fn what_is_near_its_limit_is_not_driven_out() {
        let epoch = Instant::now();
        let buckets = Buckets::new(SHARDS, epoch);
        let rule = rule(SECOND, 4);
        let now = epoch + SECOND;
        for _ in 0..6 {
            buckets.admit(key(0), &rule, now);
        }
        for number in 1..100_000 {
            buckets.admit(key(number), &rule, now);
        }
        assert!(matches!(
            buckets.admit(key(0), &rule, now),
            Verdict::Reject(_)
        ));
    }

    #[test]
    fn what_is_given_back_was_never_there() {
        let epoch = Instant::now();
        let buckets = Buckets::new(SHARDS, epoch);
        let rule = rule(SECOND, 0);
        for _ in 0..3 {
            assert_eq!(
                buckets.admit(key(1), &rule, epoch),
                Verdict::Pass(Duration::ZERO)
            );
            buckets.give_back(key(1), &rule);
        }
    }

    #[test]
    fn the_policy_tells_quota_and_window() {
        assert_eq!(rule(SECOND / 10, 20).policy(), "\"limit_req\";q=21;w=3");
        assert_eq!(rule(SECOND * 60, 0).policy(), "\"limit_req\";q=1;w=60");
    }
}
