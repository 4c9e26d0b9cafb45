//! `headers`: sets, adds and removes headers, of the request to the backend and of the answer to the client.
//!
//! ```yaml
//! headers:
//!   request:  { set: { X-Real-IP: "$remote_addr" }, remove: [X-Debug] }
//!   response:
//!     set: { Strict-Transport-Security: max-age=31536000 }
//!     add: { Link: ["</a.css>; rel=preload", "</b.js>; rel=preload"] }
//! ```
//!
//! The last policy to run, so that it has the final word. `response` changes every answer that passes the route:
//! from a backend, from files, and those that weir makes itself, errors included. nginx: `proxy_set_header`,
//! `proxy_hide_header`, `add_header ... always`.
//!
//! Levels merge by header: what the nearest level says about one header is all that holds for it, and headers that
//! it does not mention keep what the farther level says.

use std::collections::BTreeMap;
use std::time::SystemTime;

use http::{HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Filter;
use crate::build::Build;
use crate::exchange::Cx;
use crate::exchange::vars::{Stage, Text, View};
use crate::http::header::{self, Name};
use crate::issue::At;
use crate::value::OneOrMany;

/// Changes of headers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Of the request that goes to the backend. Values see the client's request.
    pub request: Changes,
    /// Of the answer that goes to the client.
    pub response: Changes,
}

/// `remove` first, then `set`, then `add`. Values are texts with variables; a value that turns out empty is not sent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Changes {
    /// Headers that have this value, whatever they had before.
    pub set: BTreeMap<String, String>,
    /// Header lines that come in addition; one value or a list.
    pub add: BTreeMap<String, OneOrMany<String>>,
    /// Headers that are taken out, by name.
    pub remove: Vec<String>,
}

#[derive(Debug)]
pub struct Headers {
    request: Vec<Change>,
    response: Vec<Change>,
}

/// All that happens to one header.
#[derive(Debug, Clone)]
struct Change {
    name: Name,
    /// Whether the lines that are there go.
    replace: bool,
    /// The lines that come.
    values: Vec<Value>,
}

#[derive(Debug, Clone)]
enum Value {
    Fixed(HeaderValue),
    Text(Text),
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Headers> {
        let request = self.request.compile(&at.key("request"), Stage::Request, b);
        let response = self
            .response
            .compile(&at.key("response"), Stage::Response, b);
        Some(Headers { request, response })
    }
}

impl Changes {
    fn compile(&self, at: &At<'_>, stage: Stage, b: &mut Build<'_>) -> Vec<Change> {
        let mut changes = Vec::new();
        let key = at.key("remove");
        for (i, name) in self.remove.iter().enumerate() {
            let at = key.index(i);
            if name.contains('*') {
                b.error(&at, format!("`{name}` is not the name of one header"));
            } else if let Some(change) = change(&at, name, &mut changes, b) {
                change.replace = true;
            }
        }
        let key = at.key("set");
        for (name, value) in &self.set {
            let at = key.key(name);
            let Some(change) = change(&at, name, &mut changes, b) else {
                continue;
            };
            if !change.values.is_empty() {
                b.error(&at, format!("`{name}` is set twice")).on_key();
            }
            change.replace = true;
            change.values.extend(Value::compile(&at, value, stage, b));
        }
        let key = at.key("add");
        for (name, values) in &self.add {
            let at = key.key(name);
            let Some(change) = change(&at, name, &mut changes, b) else {
                continue;
            };
            for (i, value) in values.0.iter().enumerate() {
                change
                    .values
                    .extend(Value::compile(&at.index(i), value, stage, b));
            }
        }
        changes
    }
}

/// The change of the header `name`, which is begun if there is none.
fn change<'a>(
    at: &At<'_>,
    name: &str,
    changes: &'a mut Vec<Change>,
    b: &mut Build<'_>,
) -> Option<&'a mut Change> {
    let name = match Name::parse(name) {
        Ok(name) => name,
        Err(message) => {
            b.error(at, message).on_key();
            return None;
        }
    };
    let known = changes
        .iter()
        .position(|change| change.name.name() == name.name());
    let index = known.unwrap_or_else(|| {
        changes.push(Change {
            name,
            replace: false,
            values: Vec::new(),
        });
        changes.len() - 1
    });
    changes.get_mut(index)
}

impl Value {
    fn compile(at: &At<'_>, text: &str, stage: Stage, b: &mut Build<'_>) -> Option<Value> {
        if text.contains('$') {
            return Text::compile_for(stage, at, text, b).map(Value::Text);
        }
        match HeaderValue::from_bytes(text.as_bytes()) {
            Ok(value) => Some(Value::Fixed(value)),
            Err(_) => {
                b.error(
                    at,
                    "the value of a header is one line without control characters",
                );
                None
            }
        }
    }

    /// The value for one message; `None` if it is empty.
    fn render(&self, view: &View<'_>) -> Option<HeaderValue> {
        let value = match self {
            Value::Fixed(value) => value.clone(),
            Value::Text(text) => {
                let mut bytes = Vec::with_capacity(64);
                text.write(view, &mut bytes);
                header::value(&bytes)
            }
        };
        (!value.is_empty()).then_some(value)
    }
}

impl Filter for Headers {
    fn inherit(self, farther: &Headers) -> Headers {
        Headers {
            request: merge(self.request, &farther.request),
            response: merge(self.response, &farther.response),
        }
    }

    fn upstream(
        &self,
        cx: &Cx,
        request: &RequestHeader,
        upstream: &mut RequestHeader,
        wall: SystemTime,
    ) {
        apply(&self.request, cx, request, upstream, wall);
    }

    fn response(
        &self,
        cx: &Cx,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        wall: SystemTime,
    ) {
        apply(&self.response, cx, request, response, wall);
    }
}

/// The farther changes of headers that the nearer ones do not mention, then the nearer ones.
fn merge(nearer: Vec<Change>, farther: &[Change]) -> Vec<Change> {
    let mentioned = |change: &Change| nearer.iter().any(|n| n.name.name() == change.name.name());
    let mut merged: Vec<Change> = farther.iter().filter(|c| !mentioned(c)).cloned().collect();
    merged.extend(nearer);
    merged
}

fn apply<M: Message>(
    changes: &[Change],
    cx: &Cx,
    request: &RequestHeader,
    message: &mut M,
    wall: SystemTime,
) {
    for change in changes {
        let mut replace = change.replace;
        for value in &change.values {
            let view = View {
                cx,
                request,
                response: message.as_response(),
                wall,
            };
            let Some(value) = value.render(&view) else {
                continue;
            };
            if replace {
                message.insert(&change.name, value);
                replace = false;
            } else {
                message.append(&change.name, value);
            }
        }
        if replace {
            message.remove(change.name.name());
        }
    }
}

/// What the headers of requests and of answers have in common.
///
/// Inserting fails only when there are more headers than a map can hold (32,768); the rest of the message is then
/// of more use than none.
trait Message {
    fn as_response(&self) -> Option<&ResponseHeader>;
    fn insert(&mut self, name: &Name, value: HeaderValue);
    fn append(&mut self, name: &Name, value: HeaderValue);
    fn remove(&mut self, name: &HeaderName);
}

impl Message for RequestHeader {
    fn as_response(&self) -> Option<&ResponseHeader> {
        None
    }

    fn insert(&mut self, name: &Name, value: HeaderValue) {
        let _ = self.insert_header(name.written(), value);
    }

    fn append(&mut self, name: &Name, value: HeaderValue) {
        let _ = self.append_header(name.written(), value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }
}

impl Message for ResponseHeader {
    fn as_response(&self) -> Option<&ResponseHeader> {
        Some(self)
    }

    fn insert(&mut self, name: &Name, value: HeaderValue) {
        let _ = self.insert_header(name.written(), value);
    }

    fn append(&mut self, name: &Name, value: HeaderValue) {
        let _ = self.append_header(name.written(), value);
    }

    fn remove(&mut self, name: &HeaderName) {
        self.remove_header(name);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Instant;

    use super::*;
    use crate::exchange::cx::Connection;
    use crate::issue::Sources;

    #[test]
    fn removes_sets_and_adds() {
        let headers = compile(
            "response: { set: { X-Set: new }, add: { X-Set: more, Link: [a, b] }, remove: [Server, X-None] }",
        );
        let response = respond(
            &headers,
            &[("Server", "x"), ("X-Set", "old"), ("Link", "0")],
        );
        assert_eq!(
            lines(&response),
            ["link: 0", "link: a", "link: b", "x-set: new", "x-set: more"]
        );
    }

    #[test]
    fn values_are_rendered_and_empty_ones_are_not_sent() {
        let headers = compile(
            r#"response: { set: { X-Site: "$host", Server: "$arg_none", X-Twice: "$sent_http_x_twice!" } }"#,
        );
        let response = respond(&headers, &[("Server", "x"), ("X-Twice", "a")]);
        assert_eq!(lines(&response), ["x-site: shop.example", "x-twice: a!"]);
    }

    #[test]
    fn a_request_cannot_break_the_line() {
        let headers = compile(r#"response: { set: { X-Path: "$uri" } }"#);
        let response = respond(&headers, &[]);
        assert_eq!(lines(&response), ["x-path: /a%0D%0AX: y"]);
    }

    #[test]
    fn the_request_to_the_backend_changes() {
        let headers =
            compile(r#"request: { set: { Host: app, X-Was: "$http_host" }, remove: [Cookie] }"#);
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        request.insert_header("Host", "shop.example").unwrap();
        request.insert_header("Cookie", "a=b").unwrap();
        let mut upstream = request.clone();
        headers.upstream(&cx(), &request, &mut upstream, SystemTime::UNIX_EPOCH);
        assert_eq!(upstream.headers["host"], "app");
        assert_eq!(upstream.headers["x-was"], "shop.example");
        assert!(!upstream.headers.contains_key("cookie"));
    }

    #[test]
    fn the_nearest_level_decides_about_a_header() {
        let site =
            compile("response: { set: { A: site, B: site }, add: { C: site }, remove: [D] }");
        let route = compile("response: { set: { b: route, D: route }, add: { C: route } }");
        let response = respond(&route.inherit(&site), &[("D", "backend")]);
        assert_eq!(
            lines(&response),
            ["a: site", "b: route", "c: route", "d: route"]
        );
    }

    #[test]
    fn mistakes_are_reported_at_their_keys() {
        for (yaml, expected) in [
            (
                "request: { set: { Content-Length: \"1\" } }",
                "headers.request.set.Content-Length: `Content-Length` frames",
            ),
            (
                "request: { remove: [ok, X y] }",
                "headers.request.remove[1]: `X y` is not a header name",
            ),
            (
                "request: { remove: [X-*] }",
                "headers.request.remove[0]: `X-*` is not the name of one header",
            ),
            (
                "response: { set: { A: a, a: b } }",
                "headers.response.set.a: `a` is set twice",
            ),
            (
                "response: { set: { A: \"x\\ny\" } }",
                "headers.response.set.A: the value of a header is one line",
            ),
            (
                "response: { add: { A: [x, $nonsuch] } }",
                "headers.response.add.A[1]: no variable named `$nonsuch`",
            ),
            (
                "request: { set: { A: $status } }",
                "headers.request.set.A: `$status` has no value here",
            ),
        ] {
            let sources = Sources::default();
            let mut b = Build::new(&sources);
            let config: Config = serde_yaml::from_str(yaml).unwrap();
            config.compile(&At::Root.key("headers"), &mut b);
            let [issue] = b.issues.0.as_slice() else {
                panic!("one issue, not {:?}", b.issues)
            };
            let text = format!("{}: {}", issue.path, issue.message);
            assert!(text.starts_with(expected), "{text}");
        }
    }

    fn compile(yaml: &str) -> Headers {
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let config: Config = serde_yaml::from_str(yaml).unwrap();
        let headers = config.compile(&At::Root, &mut b).unwrap();
        assert_eq!(b.issues.0.len(), 0, "{:?}", b.issues);
        headers
    }

    fn cx() -> Cx {
        let mut cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        cx.host = "shop.example".to_owned();
        cx.path = "/a\r\nX: y".to_owned();
        cx
    }

    fn respond(headers: &Headers, lines: &[(&'static str, &str)]) -> ResponseHeader {
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in lines {
            response.append_header(*name, *value).unwrap();
        }
        headers.response(&cx(), &request, &mut response, SystemTime::UNIX_EPOCH);
        response
    }

    fn lines(response: &ResponseHeader) -> Vec<String> {
        let lines = response.headers.iter();
        let mut lines: Vec<String> = lines
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        // a map keeps the order within one name only
        lines.sort_by(|a, b| a.split(':').next().cmp(&b.split(':').next()));
        lines
    }
}
