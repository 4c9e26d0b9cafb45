//! The page of the `status` action.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::{StatusCode, header};
use serde::Serialize;

use crate::exchange::{Body, Reply};
use crate::pool::PoolStatus;
use crate::runtime::Snapshot;

#[derive(Serialize)]
struct Status {
    version: &'static str,
    process: u32,
    /// Counts the configurations that this process has loaded.
    generation: u64,
    /// When the configuration was loaded, in seconds since 1970.
    since: u64,
    pools: Vec<PoolStatus>,
}

pub(super) fn reply(snapshot: &Snapshot) -> Reply {
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        process: std::process::id(),
        generation: snapshot.generation,
        since: snapshot
            .since
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        pools: snapshot.pools.values().map(|pool| pool.status()).collect(),
    };
    // Numbers, strings and lists of them: there is nothing in it that JSON cannot say.
    let mut body = serde_json::to_vec_pretty(&status).unwrap_or_default();
    body.push(b'\n');
    let mut reply = Reply::new(StatusCode::OK, Body::Bytes(Bytes::from(body)));
    let _ = reply
        .head
        .insert_header(header::CONTENT_TYPE, "application/json");
    let _ = reply.head.insert_header(header::CACHE_CONTROL, "no-store");
    reply
}
