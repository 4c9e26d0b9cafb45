//! `request_id`: one identifier per request, sent to the backend, returned to the client, and `$request_id` in
//! templates and logs.
//!
//! ```yaml
//! request_id: { header: X-Request-Id, trust: true }
//! ```
//!
//! Runs before everything else, so that an answer of any later policy carries it. nginx: `$request_id` with
//! `proxy_set_header` and `add_header`.

use std::sync::OnceLock;
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
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<RequestId> {
        match Name::parse(&self.header) {
            Ok(header) => Some(RequestId {
                header,
                trust: self.trust,
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
        match brought {
            Some(id) => cx.request_id = OnceLock::from(id.to_owned()),
            // now, so that the log tells it whatever ends the request
            None => {
                cx.request_id();
            }
        }
        Flow::Continue
    }

    fn upstream(
        &self,
        cx: &Cx,
        _request: &RequestHeader,
        upstream: &mut RequestHeader,
        _wall: SystemTime,
    ) {
        // fails only when there are more headers than a map can hold; the rest of the request is more use than none
        let _ = upstream.insert_header(self.header.written(), cx.request_id());
    }

    fn response(
        &self,
        cx: &Cx,
        _request: &RequestHeader,
        response: &mut ResponseHeader,
        _wall: SystemTime,
    ) {
        let _ = response.insert_header(self.header.written(), cx.request_id());
    }
}

/// The identifier that a request brings, if it is fit for headers and logs.
fn brought<'a>(request: &'a RequestHeader, header: &Name) -> Option<&'a str> {
    let id = request.headers.get(header.name())?.to_str().ok()?;
    let fit = (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    fit.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

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
