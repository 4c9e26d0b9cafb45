//! `body_limit`: how large the body of a request may be.
//!
//! ```yaml
//! body_limit: 10MiB
//! ```
//!
//! A request that says how long its body is gets 413 before a backend is asked and, where it waits with
//! `Expect: 100-continue`, before it has sent any of it. A body that does not say so is counted as it passes; beyond
//! the limit the backend's request breaks off, so that it cannot take what it has for all, and the client gets the 413
//! if no answer has begun.
//!
//! Without this policy there is no limit, as in HAProxy and Caddy (nginx has 1 MiB): weir passes a body on as it comes,
//! and holds hardly any of it, so that a large one costs a backend more than weir, and backends have limits of their
//! own.

use std::time::SystemTime;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::{Cx, Failure};
use crate::issue::At;
use crate::value::Size;

/// The size of the largest body that a request may have; larger ones are answered with 413.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(Size);

/// In bytes.
#[derive(Debug)]
pub struct BodyLimit(u64);

impl Config {
    pub fn compile(self, at: &At<'_>, b: &mut Build<'_>) -> Option<BodyLimit> {
        match self.0.get() {
            0 => {
                b.error(at, "`body_limit` must be at least 1B")
                    .hint("`off` is no limit");
                None
            }
            bytes => Some(BodyLimit(bytes)),
        }
    }
}

impl Filter for BodyLimit {
    async fn request(&self, _cx: &mut Cx, request: &RequestHeader, _wall: SystemTime) -> Flow {
        match promised(request).is_some_and(|length| length > self.0) {
            true => Flow::Fail(Failure::BodyTooLarge),
            false => Flow::Continue,
        }
    }

    fn request_body(&self, cx: &Cx, _body: &mut Option<Bytes>, _end: bool) -> Result<(), Failure> {
        match cx.body_received > self.0 {
            true => Err(Failure::BodyTooLarge),
            false => Ok(()),
        }
    }
}

/// The length that the body is said to have.
fn promised(request: &RequestHeader) -> Option<u64> {
    let length = request.headers.get(CONTENT_LENGTH)?.to_str().ok()?;
    // What is no number is refused elsewhere; a number that is too large for one is beyond any limit.
    Some(length.trim().parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_what_the_request_promises() {
        let mut request = RequestHeader::build("POST", b"/", None).unwrap();
        assert_eq!(promised(&request), None);
        for (length, expected) in [("0", 0), ("10", 10), ("99999999999999999999999", u64::MAX)] {
            request.insert_header(CONTENT_LENGTH, length).unwrap();
            assert_eq!(promised(&request), Some(expected));
        }
    }
}
