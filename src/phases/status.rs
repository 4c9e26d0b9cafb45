//! The page of the `status` action.

use std::time::SystemTime;

use bytes::Bytes;
use http::{StatusCode, header};

use crate::exchange::{Body, Reply};
use crate::runtime::Live;
use crate::runtime::status::Status;

pub(super) fn reply(live: &Live) -> Reply {
    let body = Status::of(live, SystemTime::now()).to_json();
    let mut reply = Reply::new(StatusCode::OK, Body::Bytes(Bytes::from(body)));
    let _ = reply
        .head
        .insert_header(header::CONTENT_TYPE, "application/json");
    let _ = reply.head.insert_header(header::CACHE_CONTROL, "no-store");
    reply
}
