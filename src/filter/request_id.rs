//! `request_id`: one identifier per request, sent to the backend, returned to the client, and `$request_id` in
//! templates and logs.
//!
//! ```yaml
//! request_id: { header: X-Request-Id, trust: true }
//! ```
//!
//! Runs before everything else, so that an answer of any later policy carries it. nginx: `$request_id` with
//! `proxy_set_header` and `add_header`.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use pingora::http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::Cx;
use crate::http::header::Name;
use crate::issue::At;

/// An identifier for each request: 32 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The header that carries it, to the backend and to the client. Default `X-Request-Id`.
    pub header: String,
    /// Keep the identifier that the request brings, if it is 1 to 128 visible ASCII characters. Default false: a
    /// client could otherwise give many requests the same one.
    pub trust: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            header: "X-Request-Id".to_owned(),
            trust: false,
        }
    }
}

#[derive(Debug)]
pub struct RequestId {
    header: Name,
    trust: bool,
    ids: Ids,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<RequestId> {
        match Name::parse(&self.header) {
            Ok(header) => Some(RequestId {
                header,
                trust: self.trust,
                ids: Ids::default(),
            }),
            Err(message) => {
                b.error(&at.key("header"), message);
                None
            }
        }
    }
}

impl Filter for RequestId {
    async fn request(&self, cx: &mut Cx, request: &RequestHeader, _wall: SystemTime) -> Flow {
        let brought = self.trust.then(|| brought(request, &self.header)).flatten();
        cx.request_id = Some(brought.map_or_else(|| self.ids.next(), str::to_owned));
        Flow::Continue
    }

    fn upstream(
        &self,
        cx: &Cx,
        _request: &RequestHeader,
        upstream: &mut RequestHeader,
        _wall: SystemTime,
    ) {
        if let Some(id) = &cx.request_id {
            // fails only when there are more headers than a map can hold; the rest of the request is more use than
            // none
            let _ = upstream.insert_header(self.header.written(), id);
        }
    }

    fn response(
        &self,
        cx: &Cx,
        _request: &RequestHeader,
        response: &mut ResponseHeader,
        _wall: SystemTime,
    ) {
        if let Some(id) = &cx.request_id {
            let _ = response.insert_header(self.header.written(), id);
        }
    }
}

/// The identifier that a request brings, if it is fit for headers and logs.
fn brought<'a>(request: &'a RequestHeader, header: &Name) -> Option<&'a str> {
    let id = request.headers.get(header.name())?.to_str().ok()?;
    let fit = (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    fit.then_some(id)
}

/// Makes identifiers that differ between requests, processes and machines: a keyed hash of a counter, where the key
/// is random. It needs no system call and no lock per request.
#[derive(Debug, Default)]
struct Ids {
    key: RandomState,
    made: AtomicU64,
}

impl Ids {
    fn next(&self) -> String {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let high = self.key.hash_one((number, 0u8));
        let low = self.key.hash_one((number, 1u8));
        format!("{high:016x}{low:016x}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn identifiers_are_unique_hex_digits() {
        let (one, other) = (Ids::default(), Ids::default());
        let ids: HashSet<_> = (0..1000).flat_map(|_| [one.next(), other.next()]).collect();
        assert_eq!(ids.len(), 2000);
        for id in ids {
            assert_eq!(id.len(), 32);
            assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        }
    }

    #[test]
    fn a_brought_identifier_must_be_short_and_visible() {
        let header = Name::parse("X-Request-Id").unwrap();
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        assert_eq!(brought(&request, &header), None);
        for (id, fit) in [
            ("abc-1", true),
            ("", false),
            ("a b", false),
            (&"x".repeat(128), true),
            (&"x".repeat(129), false),
        ] {
            request.insert_header("X-Request-Id", id).unwrap();
            assert_eq!(brought(&request, &header).is_some(), fit, "{id}");
        }
    }
}
