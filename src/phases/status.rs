//! The page of the `status` action.

use std::time::SystemTime;

use bytes::Bytes;
use http::{StatusCode, header};

use crate::exchange::{Body, Reply};
use crate::runtime::Live;
use crate::runtime::status::Status;

/// A load balancer in front tells by the status whether to send more clients.
pub(super) fn reply(live: &Live) -> Reply {
    let body = Status::of(live, SystemTime::now()).to_json();
    let status = match live.is_draining() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::OK,
    };
    let mut reply = Reply::new(status, Body::Bytes(Bytes::from(body)));
    let _ = reply
        .head
        .insert_header(header::CONTENT_TYPE, "application/json");
    let _ = reply.head.insert_header(header::CACHE_CONTROL, "no-store");
    reply
}
