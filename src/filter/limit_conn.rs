//! `limit_conn`: how many requests may be served at a time, by client or by anything else.
//!
//! ```yaml
//! limit_conn: { key: "$remote_addr", max: 20 }
//! ```
//!
//! What is counted are requests from the end of their header to the end of their answer, each stream of an HTTP/2
//! connection for itself; a connection that waits for its next request does not count. A WebSocket counts for as long
//! as it lives. One more than `max` is answered with 503, as in nginx, unless `status` says otherwise (`limit_conn` in
//! `$failure`).
//!
//! Like `limit_req`, it counts where it is written (one in a site counts the requests of all its routes together),
//! comes before authentication, so that it knows no user, and is applied once to a request. How many connections there
//! may be is up to `limits` of a listener.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::SystemTime;

use ahash::RandomState;
use http::StatusCode;
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::cx::Held;
use crate::exchange::vars::{Text, View};
use crate::exchange::{Cx, Failure, Reply, key};
use crate::issue::At;
use crate::value::OneOrMany;

/// One limit or a list of them, of which each must have room.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(OneOrMany<PlacesConfig>);

#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlacesConfig {
    /// What requests are counted by, a text with variables; where it is empty the request is not limited. Default
    /// `$remote_addr`. nginx: key of `limit_conn_zone`.
    #[serde(default = "default_key")]
    key: String,
    /// How many at a time. nginx: number of `limit_conn`.
    max: u32,
    /// The answer to one more, 4xx or 5xx. Default 503. nginx: `limit_conn_status`.
    #[serde(default = "default_status")]
    status: u16,
    /// Only counts, and says in the log and in `$limit_conn_status` what it would do. Default false.
    /// nginx: `limit_conn_dry_run`.
    #[serde(default)]
    dry_run: bool,
}

fn default_key() -> String {
    "$remote_addr".to_owned()
}

fn default_status() -> u16 {
    503
}

#[derive(Debug)]
pub struct LimitConn(Box<[Limit]>);

#[derive(Debug)]
struct Limit {
    key: Text,
    max: u32,
    status: StatusCode,
    dry_run: bool,
    /// Where it is written, for the log.
    place: String,
    counts: Arc<Counts>,
}

impl Filter for LimitConn {
    async fn request(&self, cx: &mut Cx, request: &RequestHeader, wall: SystemTime) -> Flow {
        if cx.limit_conn.is_some() {
            return Flow::Continue;
        }
        cx.limit_conn = Some("PASSED");
        for limit in &self.0 {
            let view = View {
                cx,
                request,
                response: None,
                wall,
            };
            let Some(key) = key::hash(&limit.key, &view, &limit.counts.hasher) else {
                continue;
            };
            match Place::take(&limit.counts, key, limit.max) {
                Some(place) => cx.held.push(Box::new(place)),
                None if limit.dry_run => {
                    cx.limit_conn = Some("REJECTED_DRY_RUN");
                    log::info!("{} would refuse {}", limit.place, cx.asked(request));
                }
                None => {
                    cx.limit_conn = Some("REJECTED");
                    // those that other limits have given it
                    cx.held.clear();
                    let status = limit.status.as_u16();
                    let reply = Reply::empty(limit.status);
                    return Flow::Refuse(Failure::LimitConn { status }, reply);
                }
            }
        }
        Flow::Continue
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<LimitConn> {
        if !b.is_filled(at, &self.0, "limit") {
            return None;
        }
        let limits = self.0.map_at(at, |limit, at| limit.compile(at, b));
        let limits: Option<Vec<_>> = limits.into_iter().collect();
        limits.map(|limits| LimitConn(limits.into()))
    }
}

impl PlacesConfig {
    fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Limit> {
        let key = key::compile(&at.key("key"), &self.key, b)?;
        if self.max == 0 {
            b.error(&at.key("max"), "must be at least 1")
                .hint("`access: { deny: [all] }` refuses everybody");
            return None;
        }
        let status = StatusCode::from_u16(self.status);
        let status = status
            .ok()
            .filter(|status| status.is_client_error() || status.is_server_error());
        let Some(status) = status else {
            b.error(
                &at.key("status"),
                format!(
                    "`{}` is not an error; give a status from 400 to 599",
                    self.status
                ),
            );
            return None;
        };
        let place = at.to_path().to_string();
        let name = format!("{place} {}", self.key);
        Some(Limit {
            key,
            max: self.max,
            status,
            dry_run: self.dry_run,
            place,
            counts: b.carry(name, |_| true, Counts::default),
        })
    }
}

/// The requests of each key that are served now. Who has none takes no memory, so that there are never more keys than
/// requests.
#[derive(Debug, Default)]
struct Counts {
    hasher: RandomState,
    shards: [Mutex<HashMap<NonZeroU64, u32, RandomState>>; SHARDS],
}

/// Behind locks of their own, so that workers rarely meet.
const SHARDS: usize = 16;

impl Counts {
    fn shard(&self, key: NonZeroU64) -> &Mutex<HashMap<NonZeroU64, u32, RandomState>> {
        &self.shards[(key.get() >> (u64::BITS - SHARDS.ilog2())) as usize]
    }
}

/// One request that counts, until it is dropped.
#[derive(Debug)]
struct Place {
    counts: Arc<Counts>,
    key: NonZeroU64,
}

impl Held for Place {}

impl Place {
    fn take(counts: &Arc<Counts>, key: NonZeroU64, max: u32) -> Option<Place> {
        let mut shard = counts.shard(key).lock();
        let count = shard.entry(key).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        drop(shard);
        Some(Place {
            counts: counts.clone(),
            key,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut shard = self.counts.shard(self.key).lock();
        if let Some(count) = shard.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> NonZeroU64 {
        NonZeroU64::new(number).unwrap()
    }

    #[test]
    fn there_are_so_many_places_and_each_comes_back() {
        let counts = Arc::<Counts>::default();
        let take = |number| Place::take(&counts, key(number), 2);
        let (first, second) = (take(1), take(1));
        assert!(first.is_some() && second.is_some() && take(1).is_none());
        assert!(take(2).is_some());
        drop(first);
        let third = take(1);
        assert!(third.is_some() && take(1).is_none());
        drop((second, third));
        assert!(counts.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn a_limit_that_was_lowered_waits_for_those_inside() {
        let counts = Arc::<Counts>::default();
        let inside: Vec<_> = (0..4).map(|_| Place::take(&counts, key(1), 4)).collect();
        assert!(Place::take(&counts, key(1), 2).is_none());
        drop(inside);
        assert!(Place::take(&counts, key(1), 2).is_some());
    }
}
